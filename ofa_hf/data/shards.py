"""Shards of a source, read by one process or several, into one Arrow file each. Memory stays flat: rows are written as
they come, problems and ids go to files of their own."""

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
from datasets import Features, Image, Value
from datasets.utils import tqdm

from ofa_hf.data.caption_index import CaptionIndex
from ofa_hf.data.images import why_broken
from ofa_hf.data.problems import BROKEN_IMAGE, IMAGE_WITHOUT_CAPTIONS, Problem
from ofa_hf.errors import UserError


BATCH_BYTES = 16 * 2**20  # of images held in memory before they are written
BATCH_ROWS = 1000
FEATURES = Features({"image_id": Value("string"), "image": Image(decode=False), "captions": [Value("string")]})
INDEX_FILE = "captions.sqlite"


@dataclass(frozen=True)
class Options:
    """What a user may choose for any source."""

    strict: bool = False  # stop at the first problem instead of leaving it out
    check_images: bool = True  # decode every image once, so that training meets no broken one
    require_captions: bool = True  # leave out images without captions


@dataclass(frozen=True)
class ImageRecord:
    """An image that a shard found. `image` is `{"bytes", "path"}`, one of them None."""

    image_id: str
    line: int
    image: dict[str, Any]


class Shard(Protocol):
    """A part of a source that one process reads. Lines count from the shard's start or the file's, see `lines`."""

    file: str  # named in problems
    lines: int  # after reading: what to add to the line numbers of this file's later shards

    def read(self, index: CaptionIndex | None, advance: Callable[[int], None]) -> Iterator[ImageRecord | Problem]:
        """Yield images and problems, calling `advance` with the units done."""


@dataclass(frozen=True)
class ShardResult:
    """What reading a shard left behind: rows in `arrow`, in `ids` every id seen, and `problems`."""

    file: str
    lines: int
    arrow: Path
    ids: Path  # line, position in `arrow` or −1, id
    problems: Path
    counts: Counter


def read_shard(
    shard: Shard, options: Options, work: Path, number: int, total: int, advance: Callable[[int], None]
) -> ShardResult:
    """Read one shard to its end; in strict mode to its first problem."""
    arrow = work / f"data-{number:05d}-of-{total:05d}.arrow"
    ids, problems, counts = arrow.with_suffix(".ids"), arrow.with_suffix(".problems"), Counter()
    index = CaptionIndex(work / INDEX_FILE) if (work / INDEX_FILE).exists() else None
    with (
        ArrowFile(arrow) as rows,
        ids.open("w", encoding="utf-8") as seen,
        problems.open("w", encoding="utf-8") as log,
    ):
        for found in shard.read(index, advance):
            row = found if isinstance(found, Problem) else make_row(found, shard.file, index, options)
            is_row = isinstance(row, dict)
            if isinstance(found, ImageRecord) or found.kind == BROKEN_IMAGE:
                seen.write(f"{found.line}\t{rows.num_rows if is_row else -1}\t{found.image_id}\n")
            if is_row:
                rows.write(row)
                continue
            counts[row.kind] += 1
            log.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")
            if options.strict:
                break
    if index:
        index.close()
    return ShardResult(shard.file, shard.lines, arrow, ids, problems, counts)


def make_row(image: ImageRecord, file: str, index: CaptionIndex | None, options: Options) -> dict | Problem:
    """Give an image its captions, or say why it is left out."""
    captions = index.captions(image.image_id) if index else []
    if options.require_captions and not captions:
        return Problem(IMAGE_WITHOUT_CAPTIONS, file, image.line, image.image_id)
    fault = why_broken(image.image) if options.check_images else ""
    if fault:
        return Problem(BROKEN_IMAGE, file, image.line, image.image_id, fault)
    return {"image_id": image.image_id, "image": image.image, "captions": captions}


class ArrowFile:
    """Rows of `FEATURES` in a file that `datasets` maps into memory, written in batches of bounded size."""

    def __init__(self, path: Path):
        self.num_rows = 0
        self._path = path
        self._rows: list[dict] = []
        self._size = 0

    def __enter__(self) -> "ArrowFile":
        self._sink = pa.OSFile(str(self._path), "wb")
        self._writer = pa.ipc.new_stream(self._sink, FEATURES.arrow_schema)
        return self

    def write(self, row: dict) -> None:
        self._rows.append(row)
        self.num_rows += 1
        self._size += len(row["image"]["bytes"] or b"")
        if self._size >= BATCH_BYTES or len(self._rows) >= BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=FEATURES.arrow_schema))
        self._rows, self._size = [], 0

    def __exit__(self, error_type, *_) -> None:
        if error_type is None:
            self._flush()
        self._writer.close()
        self._sink.close()


def drop_rows(path: Path, positions: Sequence[int]) -> None:
    """Write an Arrow file again without the rows at these positions."""
    shorter, dropped, start = path.with_suffix(".shorter"), set(positions), 0
    with pa.memory_map(str(path)) as source, pa.OSFile(str(shorter), "wb") as sink:
        reader = pa.ipc.open_stream(source)
        with pa.ipc.new_stream(sink, reader.schema) as writer:
            for batch in reader:
                kept = pa.array([start + row not in dropped for row in range(batch.num_rows)], type=pa.bool_())
                writer.write_batch(batch.filter(kept))
                start += batch.num_rows
    shorter.replace(path)


def read_shards(
    shards: Sequence[Shard], options: Options, work: Path, num_proc: int, bar: tqdm
) -> Iterator[ShardResult]:
    """Read all shards, several at a time, and yield their results in order.

    Even one shard is read by a process of its own where that is cheap: it is the one that loads torch to decode
    images, and its memory goes when it is done. `num_proc=0` reads here.
    """
    jobs = [(shard, options, work, number, len(shards)) for number, shard in enumerate(shards)]
    can_fork = "fork" in multiprocessing.get_all_start_methods()
    if num_proc < (1 if can_fork else 2) or multiprocessing.current_process().daemon:
        for job in jobs:
            yield read_shard(*job, bar.update)
        return
    context = multiprocessing.get_context("fork" if can_fork else "spawn")
    if "torch" in sys.modules:  # in memory anyway: let the workers share the decoder instead of loading their own
        import_module("ofa_hf.image_processing_ofa")
    done, stop = context.Value("q", 0), context.Value("b", 0)
    with ProcessPoolExecutor(num_proc, context, start_worker, (done, stop, os.getpid())) as pool:
        try:
            futures = [pool.submit(read_shard_in_worker, *job) for job in jobs]
            for future in futures:
                yield result_of(future, done, bar)
        finally:
            stop.value = 1  # after an error, strict mode's first problem or Ctrl-C the others need not go on
            pool.shutdown(wait=True, cancel_futures=True)


def result_of(future: Future, done, bar: tqdm) -> ShardResult:
    """Wait for a shard, moving the progress bar for all of them meanwhile."""
    while True:
        finished, _ = wait([future], timeout=0.2)
        if done.value > bar.n:
            bar.update(done.value - bar.n)
        if finished:
            break
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "A process of the build was killed, most likely because memory ran out. Nothing half-built was kept. "
            "Use a smaller num_proc and try again."
        ) from error


def start_worker(done, stop, parent: int) -> None:
    """Share the counters with this process; Ctrl-C is the parent's to handle, and its end is ours too."""
    global _advance
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with, args=(parent,), daemon=True).start()

    def advance(units: int) -> None:
        if stop.value:
            raise InterruptedError("the build was stopped")
        with done.get_lock():
            done.value += units

    _advance = advance


def end_with(parent: int) -> None:
    """A worker whose parent was killed would wait for work for ever: its pipes are held open by its siblings."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def read_shard_in_worker(*job) -> ShardResult:
    return read_shard(*job, _advance)
