"""The checkpoints in a run's output folder: which one to go on from, and what to say when the disk is full."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import Seq2SeqTrainingArguments
from transformers.utils import logging

from ofa_hf.errors import UserError, is_full_disk


logger = logging.get_logger(__name__)


def checkpoints_in(folder: str | Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    found = [path for path in Path(folder).glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def is_complete(checkpoint: Path) -> bool:
    """Whether saving came to its end: the Trainer's state is written last."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def checkpoint_to_resume(trainer_args: Seq2SeqTrainingArguments) -> str | None:
    """The checkpoint to go on from: the one named, or the newest complete one for `resume_from_checkpoint=true`.

    A run that was killed while saving leaves a checkpoint without its last file; that one is passed over.

    Raises:
        UserError: there is none, or the one named is incomplete.
    """
    wanted, folder = str(trainer_args.resume_from_checkpoint or ""), trainer_args.output_dir
    if wanted.lower() in ("", "false", "none"):
        return None
    if wanted.lower() not in ("true", "last"):
        if not is_complete(Path(wanted)):
            raise UserError(
                f"{wanted} is no complete checkpoint: its trainer_state.json is missing or broken. Name another one, "
                "or give --resume_from_checkpoint true for the newest complete one in output_dir."
            )
        return wanted
    for checkpoint in reversed(checkpoints_in(folder)):
        if is_complete(checkpoint):
            return str(checkpoint)
        logger.warning(f"{checkpoint} is incomplete, as if its run was killed while saving, and is passed over.")
    raise UserError(
        f"{folder} holds no complete checkpoint to resume from. Leave resume_from_checkpoint out and name a new "
        "output_dir to start anew."
    )


def refuse_old_run(trainer_args: Seq2SeqTrainingArguments) -> None:
    """Refuse to mix a new run with the checkpoints of an old one.

    Raises:
        UserError: there are some in the output folder, and the run does not go on from one.
    """
    if checkpoint_to_resume(trainer_args) is None and any(map(is_complete, checkpoints_in(trainer_args.output_dir))):
        raise UserError(
            f"{trainer_args.output_dir} holds checkpoints of an earlier run. Go on with it by "
            "--resume_from_checkpoint true, delete them, or name another output_dir."
        )


@contextmanager
def saving_to(folder: str | Path) -> Iterator[None]:
    """Say plainly when the disk is full, and leave no half-written folder behind.

    The libraries that write weights raise errors of their own kinds, so any error is looked at.
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
            f"The disk that holds {folder} is full, so it could not be written. Checkpoints before it are kept. Free "
            "some room, or keep fewer with save_total_limit, and go on with --resume_from_checkpoint true."
        ) from error
