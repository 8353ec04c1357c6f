"""Load your own data: a table with or without a folder of images, or any data set of the `datasets` library."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Image, IterableDataset

from ofa_hf.data.answers import TargetForm, confidences_in, is_box, is_nan, targets_in, text_of_box
from ofa_hf.data.build import Recipe, build, cache_root, file_identity
from ofa_hf.data.images import stored_image
from ofa_hf.data.lines import parse_id, whole_characters
from ofa_hf.data.shards import Options, RowRecord, RowTexts, make_row
from ofa_hf.data.target_index import MISSING, TargetIndex
from ofa_hf.errors import UserError
from ofa_hf.images.folders import TEXT, report_left_out, walk_images
from ofa_hf.images.image_finder import ImageFinder, is_one_image, without_suffix
from ofa_hf.images.links import LinkedImages, is_link
from ofa_hf.images.packed import unpacked
from ofa_hf.tables.column_names import IDS, IMAGES, matches
from ofa_hf.tables.columns import Columns, find_columns
from ofa_hf.tables.problems import (
    BROKEN_IMAGE,
    DUPLICATE_ID,
    EMPTY_TARGET,
    MALFORMED_LINE,
    MISSING_FIELD,
    MISSING_ID,
    WITHOUT_TARGETS,
    Problem,
    counted,
)
from ofa_hf.tables.table_files import Table, open_table
from ofa_hf.tables.text_files import TEXT_FILE, TEXT_FILES, texts_identity


logger = logging.getLogger(__name__)

IMAGE_FILE_NAMES = ("path", "filename", *(name for name in IMAGES if name not in IDS), "name")
DATASET = "the data set"  # named in problems, whose lines are row numbers from 1


def load_table(
    table: str | Path,
    folder: str | Path | None = None,
    *,
    image_column: str | None = None,
    target_column: str | None = None,
    id_column: str | None = None,
    fields: Sequence[str] = (),
    encoding: str | None = None,
    separator: str | None = None,
    num_proc: int = 1,
    strict: bool = False,
    check_images: bool = True,
    require_targets: bool = True,
    cache_dir: str | Path | None = None,
    targets: TargetForm | None = None,
) -> Dataset:
    """Load a table, and the folder of images that it names, as rows `{"id", "image", <fields>, "targets"}`.

    Several targets of one image are in repeated lines or, in JSON, in a list. `report_of` tells how the table was
    read, which image names were repaired, and what was left out.

    Args:
        table: any file of `open_table`, or a folder of images with a `.txt` file of the same name next to each.
        folder: folder, zip or tar file of the files that the image column names, see `ImageFinder`. None loads rows
            without images.
        image_column, target_column, id_column: names of the columns; common names are recognized by default.
        fields: columns that fill the task's prompt, such as a question.
        encoding, separator: form of a text table; by default detected.
        num_proc, strict, check_images, require_targets, cache_dir: as in `load_muge`.
        targets: form of the targets, if they are not just texts.

    Raises:
        UserError: a file, folder or column is missing, the encoding is wrong, no row is usable.
    """
    opened = open_table(table, encoding=encoding, separator=separator)
    targets = targets or TargetForm()
    wanted = wanted_columns(Columns(image_column, target_column, id_column, tuple(fields)), targets)
    has_images, needs_targets = folder is not None, require_targets and not targets.cells
    columns = find_columns(str(table), opened.columns, wanted, has_images=has_images, needs_targets=needs_targets)
    columns = replace(columns, target=None) if targets.cells else columns
    options = options_of(Options(strict, check_images, require_targets, has_images=has_images), columns, targets)
    assumed = {**opened.assumed, "columns": columns.assumed()}
    identity = {"source": "table", "table": table_identity(opened.path), "assumed": assumed, "columns": vars(columns)}
    finder = links = None
    if folder is not None:
        folder = unpacked(folder, cache_root(cache_dir)).resolve()
        finder, links = ImageFinder(folder), LinkedImages(cache_root(cache_dir))
        links.fetch(image_names(opened, columns))
        identity |= {"folder": folder_identity(folder), "links": links.count}
    recipe = Recipe(
        name=opened.path.stem[:80],
        identity=identity,
        read_targets=partial(index_table, opened, columns, finder, links),
        make_shards=lambda index: split_table(opened.path, folder, len(index), num_proc),
        find_leftovers=partial(images_without_targets, finder) if finder else None,
        explain_missing=partial(explain_missing, finder, links) if finder else None,
        notes=partial(notes_of, assumed, finder),
    )
    return build(recipe, options, num_proc, cache_dir)


def table_identity(path: Path) -> list:
    """What the rows of a table depend on; for a folder of texts, the texts."""
    return texts_identity(path) if path.is_dir() else file_identity(path)


def folder_identity(folder: Path) -> list:
    """Path of a folder, number and total size of its images, latest modification time."""
    count = size = latest = 0
    for path in walk_images(folder):
        status = os.stat(path)
        count, size, latest = count + 1, size + status.st_size, max(latest, status.st_mtime_ns)
    return [str(folder), count, size, latest]


def notes_of(assumed: Mapping[str, Any], finder: ImageFinder | None) -> dict[str, Any]:
    """Fields of the report other than problems."""
    repaired, left_out = (finder.repaired, dict(finder.left_out)) if finder else ({}, {})
    if assumed.get("kind") == TEXT_FILES:  # each was read or is a problem
        left_out.pop(TEXT, None)
    return {"assumed": dict(assumed), "repaired": dict(repaired), "left_out": dict(left_out)}


def image_names(table: Table, columns: Columns) -> Iterator[str]:
    """The value of the image column."""
    for _, row in table:
        if isinstance(row, dict) and columns.image:
            yield name_of_image(row.get(columns.image))


def index_table(
    table: Table,
    columns: Columns,
    finder: ImageFinder | None,
    links: LinkedImages | None,
    index: TargetIndex,
) -> Iterator[Problem]:
    """Add the texts of a table to the index, each with the path of its image. Yields their problems."""
    for line, row in table:
        if isinstance(row, Problem):
            yield row
            continue
        file = str(row.get(TEXT_FILE, table.path))
        name = name_of_image(row.get(columns.image)) if columns.image else ""
        if columns.image and not name:
            yield Problem(MISSING_ID, file, line, detail=f"no text in column {columns.image}")
            continue
        path = image_path(name, finder, links) if finder else name
        default = name if name and set(columns.fields) <= set(columns.optional) else str(line)
        if finder and path and not columns.id and not columns.fields:
            default = index.id_of_name(path) or name
            if default != name and not is_one_image(default, name):
                yield Problem(DUPLICATE_ID, file, line, name, f"it would be the same file as {default}")
                continue
        yield from index_row(index, file, line, row, columns, default, path or f"{MISSING}{name}")


def image_path(name: str, finder: ImageFinder, links: LinkedImages) -> str:
    """Path of the file for a name or link; empty if there is none."""
    found = links.path(name) if is_link(name) else finder.find(name).path
    return str(found or "")


def explain_missing(finder: ImageFinder, links: LinkedImages, name: str) -> str:
    """Why there is no file for a name or link."""
    return links.explain(name) if is_link(name) else finder.explain(name)


def index_row(
    index: TargetIndex, file: str, line: int, row: dict, columns: Columns, default_id: str, name: str = ""
) -> Iterator[Problem]:
    """Add the texts of one row to the index. Yields its problems."""
    parsed = parse_texts(row, columns, file, line, default_id)
    if isinstance(parsed, Problem):
        yield parsed
        return
    row_id, texts = parsed
    if columns.image and columns.fields and not columns.id:  # several answers to one question about an image
        row_id = index.id_of(name, texts.fields) or row_id
    if row_id in index and (index.name(row_id), index.fields(row_id)) != (name, texts.fields):
        seen = ", ".join(filter(None, (index.name(row_id).removeprefix(MISSING), *index.fields(row_id).values())))
        yield Problem(DUPLICATE_ID, file, line, row_id, f"it already stands for {seen}")
        return
    usable = texts.without_blanks()
    index.add(row_id, usable.targets, file, line, name, texts.fields, usable.confidences)
    num_blank = len(texts.targets) - len(usable.targets)
    yield from (Problem(EMPTY_TARGET, file, line, row_id) for _ in range(num_blank))


def parse_texts(row: dict, columns: Columns, file: str, line: int, default_id: str) -> tuple[str, RowTexts] | Problem:
    """Id and texts of one row of a table, or the problem it has."""
    row_id = parse_id(row.get(columns.id)) if columns.id else default_id
    targets = targets_in(row.get(columns.target)) if columns.target else []
    fields = {name: plain_text(row.get(column)) for name, column in columns.by_field().items()}
    if targets is None:
        return Problem(MALFORMED_LINE, file, line, row_id, f"no text in column {columns.target}")
    if not row_id:
        return Problem(MISSING_ID, file, line)
    blank = [name for name, text in fields.items() if not text and name not in columns.optional]
    if blank:
        return Problem(MISSING_FIELD, file, line, row_id, f"no text in column {', '.join(blank)}")
    confidences = confidences_in(row.get(columns.confidence), len(targets)) if columns.confidence else []
    if confidences is None:
        detail = f"no number from 0 to 1 for each target in column {columns.confidence}"
        return Problem(MALFORMED_LINE, file, line, row_id, detail)
    return row_id, RowTexts(fields, targets, confidences=confidences)


def name_of_image(value: Any) -> str:
    """The name of an image file in a cell; of JSON also the name in an object such as `{"id": 7, "path": "a.jpg"}`,
    or the only one of a list."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict):
        named = (value[key] for key in matches(value, IMAGE_FILE_NAMES))
        return next((each.strip() for each in named if isinstance(each, str) and each.strip()), "")
    return plain_text(value)


def plain_text(value: Any) -> str:
    """A string, a number (not NaN) or a box of a table as text; anything else gives the empty string."""
    if is_box(value):
        return text_of_box(value)
    is_text = isinstance(value, (str, int, float)) and not isinstance(value, bool) and not is_nan(value)
    return whole_characters(str(value)).strip() if is_text else ""


def split_table(table: Path, folder: Path | None, count: int, num_proc: int) -> list["TableRows"]:
    bounds = [count * part // max(1, num_proc) for part in range(max(1, num_proc) + 1)]
    return [TableRows(str(table), folder is not None, first, last) for first, last in pairwise(bounds)]


@dataclass
class TableRows:
    """The rows `first … last − 1` of an indexed table, with the images whose paths the index has."""

    file: str
    has_images: bool
    first: int
    last: int
    lines: int = 0  # lines are already those of the table

    def read(self, index: TargetIndex, advance: Callable[[int], None]) -> Iterator[RowRecord]:
        for row_id, path, _, line in index.entries(self.first, self.last):
            if not self.has_images:
                yield RowRecord(row_id, line)
            elif not path.startswith(MISSING):
                yield RowRecord(row_id, line, {"bytes": None, "path": path})
            advance(1)


class FolderImages(Mapping):
    """The images of a folder by name, as a table calls them, see `ImageFinder`.

    Iteration yields relative paths without suffix, as in `image_id`, or with it if two images differ only in that.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.finder = ImageFinder(self.folder)

    def __getitem__(self, name: str) -> dict[str, Any]:
        path = self.finder.find(name).path
        if path is None:
            raise KeyError(name)
        return {"bytes": None, "path": path}

    def report_left_out(self, texts_are_read: bool = False) -> None:
        """Log by kind what the folder holds besides.

        Args:
            texts_are_read: texts beside images are the captions, and are none of it.
        """
        len(self)
        left_out = {kind: count for kind, count in self.finder.left_out.items() if kind != TEXT or not texts_are_read}
        report_left_out(self.folder, Counter(left_out))

    def report_repaired(self, names: Iterable[str]) -> None:
        """Log counts of repaired names, by kind."""
        repaired = Counter(repair for name in names for repair in self.finder.find(name).repairs)
        if repaired:
            logger.warning(f"Names of images repaired: {counted(repaired)}.")

    def identity(self, name: str) -> str:
        """A canonical name for all names of one image: the path of its file, or the name if there is none."""
        return self.finder.find(name).path or name

    def __iter__(self) -> Iterator[str]:
        paths = sorted(self.finder.walk())
        stems = Counter(map(without_suffix, paths))
        return (stem if stems[stem := without_suffix(path)] == 1 else path for path in paths)

    def __len__(self) -> int:
        return sum(1 for _ in self.finder.walk())


def images_without_targets(finder: ImageFinder, index: TargetIndex) -> Iterator[Problem]:
    for relative in finder.walk():
        path = os.path.normpath(os.path.join(finder.folder, relative))
        if not index.has_name([path]):
            yield Problem(WITHOUT_TARGETS, path, 0, relative)


def load_rows(
    dataset: Dataset,
    *,
    image_column: str | None = "image",
    target_column: str | None = "caption",
    id_column: str | None = None,
    fields: Sequence[str] = (),
    num_proc: int = 1,
    strict: bool = False,
    check_images: bool = True,
    cache_dir: str | Path | None = None,
    targets: TargetForm | None = None,
    assumed: Mapping[str, Any] | None = None,
) -> Dataset:
    """Convert any data set of the `datasets` library (local, parquet, from the Hub) to rows of a task.

    Args:
        dataset: result of `load_dataset(…, split=…)` or `load_from_disk`.
        image_column: column of `Image`, bytes or paths. None: rows without images.
        target_column: column of texts or lists of texts.
        id_column: rows with the same id are joined: the first one gives the image, all of them the targets.
        fields: columns that fill the task's prompt, such as a question.
        num_proc, strict, check_images, cache_dir: as in `load_muge`.
        targets: as in `load_table`.
        assumed: assumptions about the data set, for the report.

    Raises:
        UserError: a column is missing, no row is usable, the disk is full.
    """
    targets = targets or TargetForm()
    columns = wanted_columns(Columns(image_column, target_column, id_column, tuple(fields)), targets)
    columns = with_confidences(columns, dataset.column_names)
    columns.require_in(dataset.column_names, "The data set")
    options = options_of(Options(strict, check_images, has_images=bool(image_column)), columns, targets)
    stored = undecoded(dataset.select_columns(sorted(set(columns.names()))), image_column)
    recipe = Recipe(
        name=f"rows-{dataset.split or 'all'}",
        identity={"source": "datasets", "fingerprint": dataset._fingerprint, "columns": vars(columns)},
        read_targets=partial(index_rows, stored, columns),
        make_shards=lambda index: split_rows(stored, columns, num_proc),
        total=len(dataset),
        notes=partial(notes_of, assumed or {}, None),
    )
    return build(recipe, options, num_proc, cache_dir)


def undecoded(dataset: Dataset | IterableDataset, image_column: str | None) -> Dataset | IterableDataset:
    """Keep images as they are stored; they are decoded when a batch is created."""
    features = dataset.features or {}
    if isinstance(features.get(image_column), Image):
        return dataset.cast_column(image_column, Image(decode=False))
    return dataset


def index_rows(dataset: Dataset, columns: Columns, index: TargetIndex) -> Iterator[Problem]:
    names = label_names(dataset, columns.target)
    for number, row in enumerate(dataset.select_columns(columns.texts())):
        row = with_label(row, columns.target, names)
        yield from index_row(index, DATASET, number + 1, row, columns, str(number))


def split_rows(dataset: Dataset, columns: Columns, num_proc: int) -> list["DatasetRows"]:
    bounds = [len(dataset) * part // max(1, num_proc) for part in range(max(1, num_proc) + 1)]
    return [DatasetRows(dataset, columns, first, last) for first, last in pairwise(bounds)]


@dataclass
class DatasetRows:
    """The rows `first … last − 1` of a data set. Only the first of rows with the same id is kept."""

    dataset: Dataset
    columns: Columns
    first: int
    last: int
    file: str = DATASET
    lines: int = 0  # lines are already row numbers of the whole data set

    def read(self, index: TargetIndex, advance: Callable[[int], None]) -> Iterator[RowRecord | Problem]:
        for number in range(self.first, self.last):
            row = self.dataset[number]
            row_id = parse_id(row[self.columns.id]) if self.columns.id else str(number)
            if row_id and index.line(row_id) in (None, number + 1):
                yield self.record(row_id, number + 1, row)
            advance(1)

    def record(self, row_id: str, line: int, row: dict[str, Any]) -> RowRecord | Problem:
        if not self.columns.image:
            return RowRecord(row_id, line)
        stored = stored_image(row[self.columns.image])
        return RowRecord(row_id, line, stored) if stored else Problem(BROKEN_IMAGE, self.file, line, row_id, "none")


def stream_rows(
    dataset: IterableDataset,
    *,
    image_column: str | None = "image",
    target_column: str = "caption",
    id_column: str | None = None,
    fields: Sequence[str] = (),
    strict: bool = False,
    targets: TargetForm | None = None,
) -> IterableDataset:
    """Convert a streaming data set to rows of a task while it streams; nothing is stored.

    Rows with the same id are not joined. Rows with a problem are skipped and logged with their row number; in strict
    mode the first problem is raised as `UserError`.

    Args:
        targets: as in `load_table`.
    """
    targets = targets or TargetForm()
    columns = wanted_columns(Columns(image_column, target_column, id_column, tuple(fields)), targets)
    columns = with_confidences(columns, dataset.column_names or ())
    options = options_of(Options(strict, has_images=bool(image_column)), columns, targets)
    if dataset.column_names:
        columns.require_in(dataset.column_names, "The data set")
    return undecoded(dataset, image_column).map(
        partial(stream_batch, columns=columns, options=options, names=label_names(dataset, target_column)),
        batched=True,
        batch_size=8,
        with_indices=True,
        remove_columns=dataset.column_names,
        features=options.features,
    )


def stream_batch(
    batch: dict[str, list], numbers: list[int], columns: Columns, options: Options, names: Sequence[str]
) -> dict[str, list]:
    rows = []
    for position, number in enumerate(numbers):
        row = with_label({name: values[position] for name, values in batch.items()}, columns.target, names)
        found = stream_row(row, number, columns, options)
        if isinstance(found, dict):
            rows.append(found)
        elif options.strict:
            raise UserError(f"{found}. Fix it, or turn strict mode off to skip it.")
        else:
            logger.warning(f"Skipped: {found}")
    return {name: [row[name] for row in rows] for name in options.features}


def stream_row(row: dict[str, Any], number: int, columns: Columns, options: Options) -> dict | Problem:
    parsed = parse_texts(row, columns, DATASET, number + 1, str(number))
    if isinstance(parsed, Problem):
        return parsed
    row_id, texts = parsed
    image = stored_image(row.get(columns.image)) if columns.image else None
    if columns.image and image is None:
        return Problem(BROKEN_IMAGE, DATASET, number + 1, row_id, "none")
    return make_row(RowRecord(row_id, number + 1, image, texts.without_blanks()), DATASET, None, options)


def label_names(dataset: Dataset | IterableDataset, column: str) -> list[str]:
    """Names of the numbers in a column of labels; empty for other columns."""
    feature = (dataset.features or {}).get(column)
    return list(feature.names) if isinstance(feature, ClassLabel) else []


def with_label(row: dict[str, Any], column: str, names: Sequence[str]) -> dict[str, Any]:
    """A row with label names instead of numbers; −1, which means unknown, becomes empty."""
    number = row.get(column)
    if not names or not isinstance(number, int):
        return row
    return {**row, column: names[number] if 0 <= number < len(names) else ""}


def wanted_columns(columns: Columns, targets: TargetForm) -> Columns:
    """The columns to read from a source, with those that its targets need."""
    more = (*targets.more_fields, *targets.cells)
    return replace(
        columns,
        fields=(*columns.fields, *more),
        optional=more,
        confidence=targets.confidence,
        usual_target=targets.column,
        usual_confidence="confidence" if targets.has_confidences else None,
    )


def with_confidences(columns: Columns, found: Sequence[str]) -> Columns:
    """Columns of a data set, with that of confidences if there is one with the common name."""
    usual = columns.usual_confidence if columns.usual_confidence in found else None
    return replace(columns, confidence=columns.confidence or usual)


def options_of(options: Options, columns: Columns, targets: TargetForm) -> Options:
    """Options of a source whose columns were found."""
    return replace(
        options,
        fields=() if targets.cells else columns.fields,
        has_tasks=bool(targets.cells),
        has_confidences=bool(columns.confidence),
        rule=targets.rule.as_dict(),
    )
