"""Read the shards of a source, in one process or several, into one Arrow file each.

Memory stays flat: rows are written as they are read, and problems and ids to separate files.
"""

import json
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
from datasets import Features, Image, Value
from datasets.utils import tqdm

from ofa_hf.data.answers import AnswerRule, fit_box
from ofa_hf.data.images import measure
from ofa_hf.data.target_index import TargetIndex
from ofa_hf.errors import UserError
from ofa_hf.tables.problems import BROKEN_IMAGE, UNFIT_ANSWER, WITHOUT_TARGETS, Problem
from ofa_hf.tasks_ofa import BOX_SLOT


BATCH_BYTES = 16 * 2**20  # bytes of images in memory before they are written
BATCH_ROWS = 1000
# Names of columns of rows and of training items.
RESERVED_COLUMNS = frozenset("id image targets tasks confidence references row_number encoded".split())
INDEX_FILE = "targets.sqlite"


def row_features(
    fields: Sequence[str] = (), has_images: bool = True, has_tasks: bool = False, has_confidences: bool = False
) -> Features:
    """Columns of a task's rows.

    Args:
        fields: names of the text columns that fill the task's prompt.
        has_images: False for a task that reads only text.
        has_tasks: `tasks` names the task that each target answers.
        has_confidences: `confidence` is that of the target; `references` are all right answers with confidences.
    """
    reserved = RESERVED_COLUMNS.intersection(fields)
    if reserved:
        raise ValueError(f"The field of a task cannot be called {', '.join(sorted(reserved))}. Rename it.")
    image = {"image": Image(decode=False)} if has_images else {}
    texts = {name: Value("string") for name in fields}
    tasks = {"tasks": [Value("string")]} if has_tasks else {}
    known = {"text": Value("string"), "confidence": Value("float64")}
    confidences = {"confidence": Value("float64"), "references": [known]} if has_confidences else {}
    return Features({"id": Value("string"), **image, **texts, "targets": [Value("string")], **tasks, **confidences})


@dataclass(frozen=True)
class Options:
    """Options of all sources."""

    strict: bool = False  # stop at the first problem instead of skipping it
    check_images: bool = True  # decode every image once, so that none is broken in training
    require_targets: bool = True  # skip rows without targets
    fields: tuple[str, ...] = ()  # text columns that fill the task's prompt
    has_images: bool = True
    has_tasks: bool = False  # targets have tasks
    has_confidences: bool = False
    rule: Mapping[str, Any] = field(default_factory=dict)  # requirements for targets, see `AnswerRule`

    @property
    def features(self) -> Features:
        return row_features(self.fields, self.has_images, self.has_tasks, self.has_confidences)


@dataclass(frozen=True)
class RowTexts:
    """The texts of a row.

    Args:
        tasks: task of each target, if rows have several tasks.
        confidences: confidences of the targets, if they have any; the most confident one is trained.
    """

    fields: Mapping[str, str]
    targets: Sequence[str]
    tasks: Sequence[str] = ()
    confidences: Sequence[float] = ()

    def without_blanks(self) -> "RowTexts":
        """The targets that are not blank."""
        kept = [place for place, target in enumerate(self.targets) if target.strip()]
        confidences = [self.confidences[place] for place in kept if self.confidences]
        return replace(self, targets=[self.targets[place].strip() for place in kept], confidences=confidences)


@dataclass(frozen=True)
class RowRecord:
    """A row found in a shard.

    Args:
        image: `{"bytes", "path"}`, one of them None; None for a row without an image.
        texts: None if the texts are in the index.
    """

    id: str
    line: int
    image: dict[str, Any] | None = None
    texts: RowTexts | None = None


class Shard(Protocol):
    """A part of a source that one process reads."""

    file: str  # named in problems
    lines: int  # after reading: offset for the line numbers of later shards of this file

    def read(self, index: TargetIndex | None, advance: Callable[[int], None]) -> Iterator[RowRecord | Problem]:
        """Yield rows and problems, and call `advance` with the finished units."""


@dataclass(frozen=True)
class ShardResult:
    """Files written for a shard: its rows, all ids, and its problems."""

    file: str
    lines: int
    arrow: Path
    ids: Path  # lines of: line number, position in `arrow` or −1, id
    problems: Path
    counts: Counter


def read_shard(
    shard: Shard, options: Options, work: Path, number: int, total: int, advance: Callable[[int], None]
) -> ShardResult:
    """Read one shard to its end, or in strict mode to its first problem."""
    arrow = work / f"data-{number:05d}-of-{total:05d}.arrow"
    ids, problems, counts = arrow.with_suffix(".ids"), arrow.with_suffix(".problems"), Counter()
    index = TargetIndex(work / INDEX_FILE) if (work / INDEX_FILE).exists() else None
    with (
        ArrowFile(arrow, options.features) as rows,
        ids.open("w", encoding="utf-8") as seen,
        problems.open("w", encoding="utf-8") as log,
    ):
        for found in shard.read(index, advance):
            row = found if isinstance(found, Problem) else make_row(found, shard.file, index, options)
            is_row = isinstance(row, dict)
            if isinstance(found, RowRecord) or found.kind == BROKEN_IMAGE:
                seen.write(f"{found.line}\t{rows.num_rows if is_row else -1}\t{found.id}\n")
            if is_row:
                rows.write(row)
                continue
            counts[row.kind] += 1
            log.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")
            if options.strict:
                break
    if index is not None:
        index.close()
    return ShardResult(shard.file, shard.lines, arrow, ids, problems, counts)


def make_row(found: RowRecord, file: str, index: TargetIndex | None, options: Options) -> dict | Problem:
    """Add texts to what a shard found, or return the problem for which the row is skipped."""
    texts = found.texts or texts_of(found.id, index, options)
    if options.require_targets and not texts.targets:
        return Problem(WITHOUT_TARGETS, file, found.line, found.id)
    size, fault = None, ""
    if options.check_images and options.has_images:
        size, fault = measure(found.image)
    if fault:
        return Problem(BROKEN_IMAGE, file, found.line, found.id, fault)
    rule = AnswerRule(**options.rule)
    try:
        if BOX_SLOT in texts.fields:
            fit_box(texts.fields[BOX_SLOT], size)
        targets = [rule.answer(target, size) for target in texts.targets]
    except ValueError as error:
        return Problem(UNFIT_ANSWER, file, found.line, found.id, str(error))
    return row_of(found, replace(texts, targets=targets), options)


def texts_of(row_id: str, index: TargetIndex | None, options: Options) -> RowTexts:
    """The texts that an index has of a row."""
    if index is None:
        return RowTexts({}, ())
    fields = index.fields(row_id) if options.fields or options.has_tasks else {}
    if options.has_tasks:
        cells = {name: text for name, text in fields.items() if text}
        return RowTexts({}, list(cells.values()), list(cells))
    confidences = index.confidences(row_id) if options.has_confidences else ()
    return RowTexts(fields, index.targets(row_id), confidences=confidences)


def row_of(found: RowRecord, texts: RowTexts, options: Options) -> dict[str, Any]:
    """A row as it is stored."""
    row = {"id": found.id, **({"image": found.image} if options.has_images else {})}
    row |= {name: texts.fields.get(name) for name in options.fields}
    if not options.has_confidences:
        return {**row, "targets": texts.targets, **({"tasks": texts.tasks} if options.has_tasks else {})}
    confidences = list(texts.confidences) or [1.0] * len(texts.targets)
    best = max(range(len(confidences)), key=confidences.__getitem__, default=0)  # the first of several
    known = [{"text": text, "confidence": value} for text, value in zip(texts.targets, confidences, strict=True)]
    return {
        **row,
        "targets": texts.targets[best : best + 1],
        "confidence": confidences[best] if confidences else None,
        "references": known,
    }


class ArrowFile:
    """Writes rows in batches of bounded size to a file that `datasets` maps into memory."""

    def __init__(self, path: Path, features: Features):
        self.num_rows = 0
        self._path = path
        self._schema = features.arrow_schema
        self._rows: list[dict] = []
        self._size = 0

    def __enter__(self) -> "ArrowFile":
        self._sink = pa.OSFile(str(self._path), "wb")
        self._writer = pa.ipc.new_stream(self._sink, self._schema)
        return self

    def write(self, row: dict) -> None:
        self._rows.append(row)
        self.num_rows += 1
        self._size += len(row.get("image", {}).get("bytes") or b"")
        if self._size >= BATCH_BYTES or len(self._rows) >= BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=self._schema))
        self._rows, self._size = [], 0

    def __exit__(self, error_type, *_) -> None:
        if error_type is None:
            self._flush()
        self._writer.close()
        self._sink.close()


def drop_rows(path: Path, positions: Sequence[int]) -> None:
    """Rewrite an Arrow file without the rows at these positions."""
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
    """Read all shards, `num_proc` at a time, and yield their results in order.

    If starting a process is cheap, even a single shard is read in a new process, whose memory is freed at its end.
    `num_proc=0` reads in this process.
    """
    jobs = [(shard, options, work, number, len(shards)) for number, shard in enumerate(shards)]
    can_fork = "fork" in multiprocessing.get_all_start_methods()
    if num_proc < (1 if can_fork else 2) or multiprocessing.current_process().daemon:
        for job in jobs:
            yield read_shard(*job, bar.update)
        return
    context = multiprocessing.get_context("fork" if can_fork else "spawn")
    done, stop = context.Value("q", 0), context.Value("b", 0)
    with ProcessPoolExecutor(num_proc, context, start_worker, (done, stop, os.getpid())) as pool:
        try:
            futures = [pool.submit(read_shard_in_worker, *job) for job in jobs]
            for future in futures:
                yield result_of(future, done, bar)
        finally:
            stop.value = 1  # after an error, a problem in strict mode or Ctrl-C, the others can stop
            pool.shutdown(wait=True, cancel_futures=True)


def result_of(future: Future, done, bar: tqdm) -> ShardResult:
    """Wait for one shard while updating the progress bar for all of them."""
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
            "A worker process was killed, most likely because memory ran out. The unfinished build was removed. Try "
            "again with a smaller num_proc."
        ) from error


def start_worker(done, stop, parent: int) -> None:
    """Share the counters with this process, leave Ctrl-C to the parent, and end when the parent ends."""
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
    """End with the parent process. Otherwise a worker could wait forever, since its siblings keep its pipes open."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def read_shard_in_worker(*job) -> ShardResult:
    return read_shard(*job, _advance)
