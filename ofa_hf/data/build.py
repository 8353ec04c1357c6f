"""Build the rows of any source into Arrow files: cached, locked, complete or absent.

A source is a `Recipe`. The name of a finished folder holds a fingerprint of everything it depends on. An unfinished
folder has another name, and the next build removes it.
"""

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset
from datasets.utils import tqdm
from filelock import FileLock

from ofa_hf.data.shards import INDEX_FILE, Options, Shard, ShardResult, drop_rows, read_shards
from ofa_hf.data.target_index import MISSING, TargetIndex
from ofa_hf.errors import UserError, explain_full_disk, is_full_disk
from ofa_hf.tables.problems import (
    DUPLICATE_ID,
    REPORT_FILE,
    TARGETS_WITHOUT_IMAGE,
    WITHOUT_TARGETS,
    DataReport,
    Problem,
    ProblemLog,
    read_report,
    stored_problems,
    write_report,
)


logger = logging.getLogger(__name__)

FULL_DISK_ADVICE = (
    "The build needs about as much space as the images. Free some space, or choose another disk with cache_dir or the "
    "environment variable HF_HOME. The unfinished build was removed."
)
SHOWN_PROBLEMS = 1000  # of a source without a usable row
FORMAT_VERSION = 4  # part of every fingerprint: increase it when the same files give other rows


class NoUsableRow(UserError):
    """A source has no row that can be trained on.

    Args:
        report: the report of the source; `problems` are the first problems.
    """

    def __init__(self, text: str, report: DataReport, problems: list[Problem]):
        super().__init__(text)
        self.report, self.problems = report, problems


@dataclass(frozen=True)
class Recipe:
    """A source of rows."""

    name: str
    identity: dict[str, Any]  # everything that the rows depend on
    read_targets: Callable[[TargetIndex], Iterable[Problem]] | None  # None: only images
    make_shards: Callable[[TargetIndex | None], Sequence[Shard]]
    total: int | None = None  # units of the progress bar
    unit: str = " rows"
    find_leftovers: Callable[[TargetIndex], Iterable[Problem]] | None = None  # problems found after reading everything
    explain_missing: Callable[[str], str] | None = None  # image name → why it is missing
    notes: Callable[[], dict[str, Any]] = dict  # after reading everything: more fields of the report


def build(recipe: Recipe, options: Options, num_proc: int = 1, cache_dir: str | Path | None = None) -> Dataset:
    """Return the recipe's rows, memory-mapped. They are built on the first call.

    Raises:
        UserError: no usable row, a full disk, a killed process; in strict mode the first problem.
    """
    folder = cache_root(cache_dir) / f"{recipe.name}-{fingerprint(recipe.identity, options)}"
    with explain_full_disk(folder.parent, FULL_DISK_ADVICE):
        refuse_unwritable_cache(folder.parent)
        with FileLock(f"{folder}.lock"):  # a second process waits here, then finds the folder
            if not folder.is_dir():
                build_folder(recipe, options, num_proc, folder)
    report = read_report(folder)
    (logger.warning if report.problems or report.notes() else logger.info)(f"{recipe.name}: {report.summary()}")
    return datasets.concatenate_datasets([Dataset.from_file(str(path)) for path in sorted(folder.glob("*.arrow"))])


def refuse_unwritable_cache(folder: Path) -> None:
    """Create a cache folder and check that it is writable.

    Raises:
        UserError: there is no permission.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        if is_full_disk(error):
            raise
        raise UserError(
            f"The cache {folder} cannot be written: {error.strerror}. Name another folder with --cache_dir "
            "(cache_dir= in Python) or the environment variable HF_HOME."
        ) from error


def cache_root(cache_dir: str | Path | None) -> Path:
    return Path(cache_dir) if cache_dir else Path(datasets.config.HF_DATASETS_CACHE) / "ofa_hf"


def fingerprint(identity: dict[str, Any], options: Options) -> str:
    everything = {"version": FORMAT_VERSION, "identity": identity, "options": vars(options)}
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:16]


def file_identity(path: str | Path) -> list:
    """Absolute path, size and modification time of a file.

    Raises:
        UserError: the file does not exist or is empty.
    """
    path = Path(path).resolve()
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}. Pass the path of an existing file.") from error
    if not path.is_file():
        raise UserError(f"{path} is not a file. Pass the path of an existing file.")
    if not status.st_size:
        raise UserError(f"{path} is empty (0 bytes). Pass the complete file; its download may have been interrupted.")
    return [str(path), status.st_size, status.st_mtime_ns]


def build_folder(recipe: Recipe, options: Options, num_proc: int, folder: Path) -> None:
    """Build next to the final folder and rename when complete."""
    for leftover in folder.parent.glob(f"{folder.name}.incomplete-*"):  # of a killed build, since we hold the lock
        shutil.rmtree(leftover, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f"{folder.name}.incomplete-", dir=folder.parent))
    try:
        write_rows_and_report(recipe, options, num_proc, work)
        work.replace(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_rows_and_report(recipe: Recipe, options: Options, num_proc: int, work: Path) -> None:
    index = None
    with ProblemLog(work / REPORT_FILE, options.strict) as log:
        if recipe.read_targets:
            index = TargetIndex(work / INDEX_FILE)
            log.add_all(recipe.read_targets(index))
            index.commit()
        results = read_and_log(recipe, recipe.make_shards(index), options, num_proc, work, log)
        mark_duplicates(results, index, log)
        if index is not None:
            log.add_all(targets_without_image(index, recipe.explain_missing))
            log.add_all(recipe.find_leftovers(index) if recipe.find_leftovers else ())
            index.close()
    rows, targets = count_rows([result.arrow for result, _ in results])
    if not rows:
        raise no_usable_row(recipe, log, work / REPORT_FILE)
    write_report(work, DataReport(rows, targets, log.counts, **recipe.notes()))
    for scratch in (*work.glob("*.ids"), *work.glob("*.problems"), *work.glob(INDEX_FILE)):
        scratch.unlink()


def read_and_log(
    recipe: Recipe, shards: Sequence[Shard], options: Options, num_proc: int, work: Path, log: ProblemLog
) -> list[tuple[ShardResult, int]]:
    """Read the shards. Returns each result with the number of lines that precede it in its file."""
    results, lines = [], {}
    with tqdm(total=recipe.total, unit=recipe.unit, unit_scale=recipe.unit == "B", desc=recipe.name) as bar:
        for result in read_shards(shards, options, work, num_proc, bar):
            before = lines.get(result.file, 0)
            log.add_all(replace(problem, line=problem.line + before) for problem in stored_problems(result.problems))
            results.append((result, before))
            lines[result.file] = before + result.lines
    return results


def mark_duplicates(results: list[tuple[ShardResult, int]], index: TargetIndex | None, log: ProblemLog) -> None:
    """Keep the first usable row of every id, and note in the index which ids were found."""
    kept = TargetIndex()
    for result, lines_before in results:
        repeated = []
        with result.ids.open(encoding="utf-8") as seen:
            for entry in seen:
                line, position, row_id = entry.rstrip("\n").split("\t", 2)
                if index is not None:
                    index.mark_found(row_id)
                if int(position) >= 0 and not kept.add(row_id):
                    repeated.append(int(position))
                    log.add(Problem(DUPLICATE_ID, result.file, int(line) + lines_before, row_id))
        if repeated:
            drop_rows(result.arrow, repeated)
    kept.close()


def targets_without_image(index: TargetIndex, explain: Callable[[str], str] | None) -> Iterator[Problem]:
    for row_id, name, file, line in index.not_found():
        is_missing = explain is not None and name.startswith(MISSING)
        detail = explain(name.removeprefix(MISSING)) if is_missing else ""
        yield Problem(TARGETS_WITHOUT_IMAGE, file, line, row_id, detail)


def count_rows(files: Iterable[Path]) -> tuple[int, int]:
    """Number of rows and targets in Arrow files."""
    rows = targets = 0
    for path in files:
        with pa.memory_map(str(path)) as source:
            for batch in pa.ipc.open_stream(source):
                rows += batch.num_rows
                targets += len(batch.column("targets").flatten())
    return rows, targets


def no_usable_row(recipe: Recipe, log: ProblemLog, report: Path) -> UserError:
    if log.counts.keys() == {TARGETS_WITHOUT_IMAGE, WITHOUT_TARGETS}:
        hint = "The targets do not belong to the images: they share no id or name. Pass files of the same split."
    elif log.counts.keys() == {WITHOUT_TARGETS}:
        hint = "No row was found that belongs to the images; is there anything below the names of columns?"
    else:
        hint = "Check that these are the right files and that targets and images are not swapped."
    counts = ", ".join(f"{count:,} × {kind}" for kind, count in sorted(log.counts.items())) or "no rows at all"
    problems = list(islice(stored_problems(report), SHOWN_PROBLEMS))
    first = f" First: {problems[0]}" if problems else ""
    text = f"{recipe.name}: no usable row, but {counts}. {hint}{first}"
    return NoUsableRow(text, DataReport(0, 0, dict(log.counts), **recipe.notes()), problems)
