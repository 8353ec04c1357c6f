"""Rows of numbers in a file, written in any order by any number of processes, read one row at a time.

A second file holds one byte per row that says whether the row is written. It is set after the values are safely on
disk, so any process that sees it may read the row, and a killed run loses only the rows it wrote last.
"""

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


VALUES, WRITTEN = "values.bin", "written.bin"
FLUSH_BYTES = 256 * 2**20  # rows wait until they fill this many bytes, or
FLUSH_SECONDS = 10.0  # for this many seconds, before they are synced to disk and marked as written


class RowStore:
    """`num_rows` tensors of one shape and dtype in `folder`, each of them present or not.

    `row in store` says whether a row is present, `store[row]` reads it. A store sees its own rows at once, and those
    of stores in other processes once they are marked as written. The files have their full length from the start but
    use disk space only as they fill.

    Args:
        folder: created if it does not exist. An existing one must have the same shape and dtype.
    """

    def __init__(self, folder: str | Path, num_rows: int, shape: Sequence[int], dtype: torch.dtype):
        self.folder, self.num_rows, self.shape, self.dtype = Path(folder), num_rows, tuple(shape), dtype
        self.folder.mkdir(parents=True, exist_ok=True)
        self._open()

    def _open(self) -> None:
        # Not with `open`: a second process must neither truncate existing files nor fail on them.
        self._values, self._marks = (
            os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o666) for name in (VALUES, WRITTEN)
        )
        if os.fstat(self._values).st_size != self.num_rows * self.row_bytes:  # new, or truncated
            os.ftruncate(self._marks, 0)
            os.ftruncate(self._values, self.num_rows * self.row_bytes)
        os.ftruncate(self._marks, self.num_rows)
        self._written = np.memmap(self.folder / WRITTEN, dtype=np.uint8, mode="r")
        self._waiting: set[int] = set()
        self._last_flush = time.monotonic()

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def num_written(self) -> int:
        return int(np.count_nonzero(self._written))

    def __len__(self) -> int:
        return self.num_rows

    def __contains__(self, row: int) -> bool:
        return bool(self._written[row]) or row in self._waiting

    def __getitem__(self, row: int) -> Tensor:
        # Not through a memory map, whose pages would count as memory of this process.
        size = self.row_bytes
        values = np.fromfile(self.folder / VALUES, dtype=np.uint8, count=size, offset=row * size)
        return torch.from_numpy(values).view(self.dtype).view(self.shape)

    def write(self, rows: Sequence[int], values: Tensor) -> None:
        """Write `(len(rows), *shape)` values.

        Raises:
            OSError: the disk is full.
        """
        values = values.detach().to("cpu", self.dtype).contiguous()
        if values.shape[1:] != self.shape:
            raise ValueError(f"Rows have the shape {self.shape}, not {tuple(values.shape[1:])}.")
        for row, value in zip(rows, values, strict=True):
            content = memoryview(value.view(-1).view(torch.uint8).numpy())
            offset = row * self.row_bytes
            while content:
                count = os.pwrite(self._values, content, offset)
                content, offset = content[count:], offset + count
            self._waiting.add(row)
        many = len(self._waiting) * self.row_bytes >= FLUSH_BYTES
        if many or time.monotonic() - self._last_flush > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Sync written rows to disk, then mark them."""
        if self._waiting:
            os.fsync(self._values)
            for row in self._waiting:
                os.pwrite(self._marks, b"\1", row)
        self._waiting, self._last_flush = set(), time.monotonic()

    def __getstate__(self) -> tuple:
        return self.folder, self.num_rows, self.shape, self.dtype

    def __setstate__(self, state: tuple) -> None:
        self.folder, self.num_rows, self.shape, self.dtype = state
        self._open()

    def __del__(self):
        for name in ("_values", "_marks"):
            if name in self.__dict__:
                os.close(self.__dict__[name])


def bytes_on_disk(folder: str | Path) -> int:
    """Disk space that a store in `folder` already uses."""
    return sum(path.stat().st_blocks * 512 for path in Path(folder).glob("*.bin"))
