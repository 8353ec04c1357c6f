"""Checkpoints in a run's output folder: which one to resume from, and what happens when the disk is full."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import Seq2SeqTrainingArguments
from transformers.utils import logging

from ofa_hf.errors import UserError, is_full_disk
from ofa_hf.files import read_json


logger = logging.get_logger(__name__)


def checkpoints_in(folder: str | Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    found = [path for path in Path(folder).glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def is_complete(checkpoint: Path) -> bool:
    """Whether saving finished: the Trainer's state is written last."""
    try:
        read_json(checkpoint / "trainer_state.json")
    except UserError:
        return False
    return True


def checkpoint_to_resume(trainer_args: Seq2SeqTrainingArguments) -> str | None:
    """The checkpoint to resume from: the one named, or the newest complete one for `resume_from_checkpoint=true`.

    A run that was killed while saving leaves an incomplete checkpoint, which is skipped.

    Raises:
        UserError: there is no checkpoint, or the one named is incomplete.
    """
    wanted, folder = str(trainer_args.resume_from_checkpoint or ""), trainer_args.output_dir
    if wanted.lower() in ("", "false", "none"):
        return None
    if wanted.lower() not in ("true", "last"):
        if not is_complete(Path(wanted)):
            raise UserError(
                f"{wanted} is not a complete checkpoint: its trainer_state.json is missing or broken. Name another "
                "one, or pass --resume_from_checkpoint true for the newest complete one in output_dir."
            )
        return wanted
    for checkpoint in reversed(checkpoints_in(folder)):
        if is_complete(checkpoint):
            return str(checkpoint)
        logger.warning(f"Skipped {checkpoint}: it is incomplete, as if its run was killed while saving.")
    raise UserError(
        f"{folder} has no complete checkpoint to resume from. To start over, drop resume_from_checkpoint and pass a "
        "new output_dir."
    )


def refuse_old_run(trainer_args: Seq2SeqTrainingArguments) -> None:
    """Refuse to mix a new run with the checkpoints of an old one.

    Raises:
        UserError: the output folder has checkpoints, and the run does not resume from one.
    """
    if checkpoint_to_resume(trainer_args) is None and any(map(is_complete, checkpoints_in(trainer_args.output_dir))):
        raise UserError(
            f"{trainer_args.output_dir} has checkpoints of an earlier run. Resume it with --resume_from_checkpoint "
            "true, delete them, or pass another output_dir."
        )


@contextmanager
def saving_to(folder: str | Path) -> Iterator[None]:
    """Turn the errors of a full disk into a `UserError`, and remove a half-written folder.

    Any error is inspected, because the libraries that write weights raise errors of their own kinds.
    """
    folder, is_new = Path(folder), not Path(folder).exists()
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not is_full_disk(error):
            raise
        if is_new:
            shutil.rmtree(folder, ignore_errors=True)
        raise UserError(
            f"Cannot save {folder}: its disk is full. Earlier checkpoints are kept. Free some space, or keep fewer "
            "checkpoints with save_total_limit, and resume with --resume_from_checkpoint true."
        ) from error
