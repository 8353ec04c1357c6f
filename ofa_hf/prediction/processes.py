"""A job in several processes started by `torchrun`: each takes a share of the images, and the first one merges."""

import glob
import os
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from ofa_hf.errors import UserError
from ofa_hf.prediction.outputs import AnswerFile, Format


Value = TypeVar("Value")

LONGEST_WAIT = timedelta(weeks=4)  # wait for the slowest process; if one dies, torchrun ends the others


class Processes:
    """The processes of this job, this one included; just this one without `torchrun`.

    Args:
        environment: with `RANK`, `WORLD_SIZE` and `LOCAL_RANK`, as `torchrun` and other launchers set them.
    """

    def __init__(self, environment: dict[str, str] = os.environ):
        launched = "RANK" in environment and "MASTER_ADDR" in environment
        self.count = int(environment.get("WORLD_SIZE", 1)) if launched else 1
        self.rank = int(environment["RANK"]) if launched else 0
        self.local_rank = int(environment.get("LOCAL_RANK", self.rank))

    def __enter__(self) -> "Processes":
        if self.count > 1:
            import torch.distributed

            torch.distributed.init_process_group("gloo")  # used for small messages only
            self._group = torch.distributed.new_group(timeout=LONGEST_WAIT)
        return self

    def __exit__(self, *exception) -> None:
        if self.count > 1:
            import torch.distributed

            torch.distributed.destroy_process_group()

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, files: Sequence[str]) -> Sequence[str]:
        """Every n-th file, so that all processes are about equally busy."""
        return files[self.rank :: self.count]

    def device(self, asked: str | None) -> str | None:
        """A GPU for each process of a machine, if there are GPUs and no device was given."""
        import torch

        if self.count == 1 or asked not in (None, "cuda") or not torch.cuda.is_available():
            return asked
        return f"cuda:{self.local_rank % torch.cuda.device_count()}"

    def agree(self, value: Value) -> Value:
        """The first process's value, in all of them."""
        return self._all_of(value)[0]

    def total(self, *numbers: int) -> list[int]:
        """Sums over the processes; waits for all of them."""
        return [sum(column) for column in zip(*self._all_of(numbers), strict=True)]

    def _all_of(self, value: Any) -> list[Any]:
        if self.count == 1:
            return [value]
        import torch.distributed

        values = [None] * self.count
        torch.distributed.all_gather_object(values, value, self._group)
        return values


def open_answer_file(
    path: str | os.PathLike, format: Format, processes: Processes, order: Sequence[str]
) -> "AnswerFile | SharedAnswerFile":
    """The file that answers go to, with all that earlier runs did, in one process or in several.

    Raises:
        UserError: see `AnswerFile`.
    """
    if processes.count > 1:
        return SharedAnswerFile(path, format, processes, order)
    output = AnswerFile(path, format)
    output.absorb(parts_of(output.path), order)
    return output


class SharedAnswerFile:
    """An `AnswerFile` of several processes: each appends to `captions.part-<rank>.jsonl`, the first merges at the end.

    The merged rows are in the order of the images, none twice. Rows in parts that a killed run left count as done,
    for any number of processes, and are merged by the next run that finishes.

    Args:
        path, format: as for `AnswerFile`.
        processes: of this job.
        order: all images of the job.
    """

    def __init__(self, path: str | os.PathLike, format: Format, processes: Processes, order: Iterable[str]):
        self.path, self.processes, self.order = Path(path), processes, order
        # The first process locks the whole file, so that no other run starts to write it.
        self.whole = AnswerFile(path, format) if processes.is_first else None
        self.part = AnswerFile(part_of(self.path, processes.rank), format)
        self.done = self.part.done.union(*map(self.part.done_in, [self.path, *parts_of(self.path)]))
        self.write = self.part.write

    def __enter__(self) -> "SharedAnswerFile":
        return self

    def __exit__(self, error: type | None, *exception) -> None:
        self.part.__exit__()
        if error is None:
            self.processes.total()
            if self.whole:
                self._merge()
            self.processes.total()  # torchrun ends all processes if one fails, so none may leave before the merge
        if self.whole:
            self.whole.__exit__()

    def _merge(self) -> None:
        missing = [part_of(self.path, rank) for rank in range(self.processes.count)]
        missing = [str(part) for part in missing if not part.exists()]
        if missing:
            raise UserError(
                f"The results {', '.join(missing[:3])} are not here. The processes of a job on several machines need "
                f"one folder that all of them see: give --output there, and start again."
            )
        self.whole.absorb(parts_of(self.path), self.order)


def part_of(path: Path, rank: int) -> Path:
    """`captions.jsonl` → `captions.part-0.jsonl`"""
    return path.with_name(f"{path.stem}.part-{rank}{path.suffix}")


def parts_of(path: Path) -> list[Path]:
    """The parts next to an answer file."""
    return sorted(path.parent.glob(f"{glob.escape(path.stem)}.part-[0-9]*{glob.escape(path.suffix)}"))
