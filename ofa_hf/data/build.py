"""One build for every source: its shards become Arrow files, cached, locked, never half there.

A source is a `Recipe`. A finished folder has the fingerprint of all it depends on in its name; one that is still being
written is called otherwise and removed by the next build.
"""

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset
from datasets.utils import tqdm
from filelock import FileLock

from ofa_hf.data.caption_index import CaptionIndex
from ofa_hf.data.problems import (
    CAPTION_WITHOUT_IMAGE,
    DUPLICATE_ID,
    IMAGE_WITHOUT_CAPTIONS,
    REPORT_FILE,
    DataReport,
    Problem,
    ProblemLog,
    read_report,
    write_report,
)
from ofa_hf.data.shards import INDEX_FILE, Options, Shard, ShardResult, drop_rows, read_shards
from ofa_hf.errors import UserError, full_disk_told


logger = logging.getLogger(__name__)

FULL_DISK_ADVICE = (
    "The build needs about as much room as the images. Free some, or choose another place with cache_dir or the "
    "variable HF_HOME; nothing half-built was kept."
)
FORMAT_VERSION = 1  # part of every fingerprint: count up when the same files give other rows


@dataclass(frozen=True)
class Recipe:
    """A source of images with captions."""

    name: str
    identity: dict[str, Any]  # everything the rows depend on
    read_captions: Callable[[CaptionIndex], Iterable[Problem]] | None  # None: images alone
    make_shards: Callable[[CaptionIndex | None], Sequence[Shard]]
    total: int | None = None  # units of the progress bar
    unit: str = " images"
    find_leftovers: Callable[[CaptionIndex], Iterable[Problem]] | None = None  # problems seen only when all was read


def build(recipe: Recipe, options: Options, num_proc: int = 1, cache_dir: str | Path | None = None) -> Dataset:
    """Return the recipe's rows, memory-mapped, building them first unless that was done before.

    Raises:
        UserError: no usable row, a full disk, a process that was killed; in strict mode the first problem.
    """
    folder = cache_root(cache_dir) / f"{recipe.name}-{fingerprint(recipe.identity, options)}"
    with full_disk_told(folder.parent, FULL_DISK_ADVICE):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # a second process waits here and then finds the folder
            if not folder.is_dir():
                build_folder(recipe, options, num_proc, folder)
    report = read_report(folder)
    (logger.warning if report.problems else logger.info)(f"{recipe.name}: {report.summary()}")
    return datasets.concatenate_datasets([Dataset.from_file(str(path)) for path in sorted(folder.glob("*.arrow"))])


def cache_root(cache_dir: str | Path | None) -> Path:
    return Path(cache_dir) if cache_dir else Path(datasets.config.HF_DATASETS_CACHE) / "ofa_hf"


def fingerprint(identity: dict[str, Any], options: Options) -> str:
    everything = {"version": FORMAT_VERSION, "identity": identity, "options": vars(options)}
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:16]


def file_identity(path: str | Path) -> list:
    """Full path, size and time of change of a file: another content is another identity.

    Raises:
        UserError: there is no such file, or it is empty.
    """
    path = Path(path).resolve()
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}. Give the path of an existing file.") from error
    if not path.is_file():
        raise UserError(f"{path} is not a file. Give the path of an existing file.")
    if not status.st_size:
        raise UserError(f"{path} is empty (0 bytes). Give the complete file; perhaps its download broke off.")
    return [str(path), status.st_size, status.st_mtime_ns]


def build_folder(recipe: Recipe, options: Options, num_proc: int, folder: Path) -> None:
    """Build beside the final place and move there when all is well."""
    for leftover in folder.parent.glob(f"{folder.name}.incomplete-*"):  # of a killed build: the lock is ours
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
        if recipe.read_captions:
            index = CaptionIndex(work / INDEX_FILE)
            log.add_all(recipe.read_captions(index))
            index.commit()
        results = read_and_log(recipe, recipe.make_shards(index), options, num_proc, work, log)
        mark_duplicates(results, index, log)
        if index:
            log.add_all(unfound_captions(index))
            log.add_all(recipe.find_leftovers(index) if recipe.find_leftovers else ())
            index.close()
    images, captions = count_rows([result.arrow for result, _ in results])
    if not images:
        raise no_usable_row(recipe, log, work / REPORT_FILE)
    write_report(work, DataReport(images, captions, log.counts))
    for scratch in (*work.glob("*.ids"), *work.glob("*.problems"), *work.glob(INDEX_FILE)):
        scratch.unlink()


def read_and_log(
    recipe: Recipe, shards: Sequence[Shard], options: Options, num_proc: int, work: Path, log: ProblemLog
) -> list[tuple[ShardResult, int]]:
    """Read the shards; returns each result with the number of lines that precede it in its file."""
    results, lines = [], {}
    with tqdm(total=recipe.total, unit=recipe.unit, unit_scale=recipe.unit == "B", desc=recipe.name) as bar:
        for result in read_shards(shards, options, work, num_proc, bar):
            before = lines.get(result.file, 0)
            log.add_all(replace(problem, line=problem.line + before) for problem in stored_problems(result.problems))
            results.append((result, before))
            lines[result.file] = before + result.lines
    return results


def stored_problems(path: Path) -> Iterator[Problem]:
    with path.open(encoding="utf-8") as lines:
        yield from (Problem(**json.loads(line)) for line in lines)


def mark_duplicates(results: list[tuple[ShardResult, int]], index: CaptionIndex | None, log: ProblemLog) -> None:
    """Keep the first usable image of every id, and note in the index which ids had an image at all."""
    kept = CaptionIndex()
    for result, lines_before in results:
        repeated = []
        with result.ids.open(encoding="utf-8") as seen:
            for entry in seen:
                line, position, image_id = entry.rstrip("\n").split("\t", 2)
                if index:
                    index.mark_found(image_id)
                if int(position) >= 0 and not kept.add(image_id):
                    repeated.append(int(position))
                    log.add(Problem(DUPLICATE_ID, result.file, int(line) + lines_before, image_id))
        if repeated:
            drop_rows(result.arrow, repeated)
    kept.close()


def unfound_captions(index: CaptionIndex) -> Iterator[Problem]:
    for image_id, file, line in index.not_found():
        yield Problem(CAPTION_WITHOUT_IMAGE, file, line, image_id)


def count_rows(files: Iterable[Path]) -> tuple[int, int]:
    """Images and captions in Arrow files."""
    images = captions = 0
    for path in files:
        with pa.memory_map(str(path)) as source:
            for batch in pa.ipc.open_stream(source):
                images += batch.num_rows
                captions += len(batch.column("captions").flatten())
    return images, captions


def no_usable_row(recipe: Recipe, log: ProblemLog, report: Path) -> UserError:
    if log.counts.keys() == {CAPTION_WITHOUT_IMAGE, IMAGE_WITHOUT_CAPTIONS}:
        hint = "The captions do not belong to the images: they share no id. Give files of the same split."
    else:
        hint = "Check that these are the right files, and captions and images not exchanged."
    counts = ", ".join(f"{count:,} × {kind}" for kind, count in sorted(log.counts.items())) or "no rows at all"
    first = [f" First: {problem}" for problem, _ in zip(stored_problems(report), range(1))]
    return UserError(f"{recipe.name}: no usable image with captions, but {counts}. {hint}{''.join(first)}")
