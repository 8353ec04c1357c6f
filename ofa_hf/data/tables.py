"""Load a user's own data: a table with a folder of images or without, or any data set of the `datasets` library."""

import csv
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from datasets import Dataset, Image, IterableDataset

from ofa_hf.data.build import Recipe, build, file_identity
from ofa_hf.data.images import stored_image, why_broken
from ofa_hf.data.lines import parse_id, read_json_lines, target_list, whole_characters
from ofa_hf.data.problems import (
    BROKEN_IMAGE,
    DUPLICATE_ID,
    EMPTY_TARGET,
    MALFORMED_LINE,
    MISSING_FIELD,
    MISSING_ID,
    WITHOUT_TARGETS,
    Problem,
)
from ofa_hf.data.shards import Options, RowRecord, row_features
from ofa_hf.data.target_index import TargetIndex
from ofa_hf.errors import UserError
from ofa_hf.image_loading_ofa import IMAGE_SUFFIXES


logger = logging.getLogger(__name__)

MAX_FIELD = 2**20  # characters of one CSV field
DATASET = "the data set"  # named in problems, whose lines are row numbers from 1


@dataclass(frozen=True)
class Columns:
    """Names of the columns that hold the parts of a row.

    Without an id column, a row without fields is named after its image (in a data set after its row number), and rows
    of the same image are joined; a row with fields is named after its line.
    """

    image: str | None = "image"  # None: rows without images
    target: str = "caption"
    id: str | None = None
    fields: tuple[str, ...] = ()

    def names(self) -> list[str]:
        return [name for name in (self.image, self.target, self.id, *self.fields) if name]

    def texts(self) -> list[str]:
        """The columns that can be read without the images."""
        return sorted({name for name in self.names() if name != self.image})

    def require_in(self, found: Iterable[str], source: str) -> None:
        """Raises `UserError` that names the missing columns."""
        found = list(found)
        missing = [name for name in self.names() if name not in found]
        if missing:
            raise UserError(
                f"{source} has no column {', '.join(missing)}; it has {', '.join(map(str, found)) or 'none'}. "
                "Pass their names as image_column, target_column and id_column; a field is a column of its own name."
            )


def load_table(
    table: str | Path,
    folder: str | Path | None = None,
    *,
    image_column: str = "image",
    target_column: str = "caption",
    id_column: str | None = None,
    fields: Sequence[str] = (),
    encoding: str = "utf-8-sig",
    num_proc: int = 1,
    strict: bool = False,
    check_images: bool = True,
    cache_dir: str | Path | None = None,
) -> Dataset:
    """Load a table, and the folder of images that it names, as rows `{"id", "image", <fields>, "targets"}`.

    Args:
        table: CSV (`.tsv`: tab-separated) with a header, or JSONL. Several targets of one row are repeated lines or,
            in JSONL, a list.
        folder: folder of the files that the image column names, with or without their suffix. The images stay there.
            None loads rows without images.
        fields: columns that fill the task's prompt, such as a question.
        encoding: of a CSV. Chinese spreadsheets are often saved as `gb18030`.
        num_proc, strict, check_images, cache_dir: as in `load_muge`.

    Raises:
        UserError: a file, folder or column is missing, the encoding is wrong, no row is usable.
    """
    table = Path(table)
    columns = Columns(image_column if folder else None, target_column, id_column, tuple(fields))
    identity = {"source": "table", "table": file_identity(table), "columns": vars(columns), "encoding": encoding}
    if folder:
        folder = Path(folder).resolve()
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder. Pass the folder that holds the images.")
        identity["folder"] = folder_identity(folder)
    recipe = Recipe(
        name=table.stem[:80],
        identity=identity,
        read_targets=partial(index_table, table, encoding, columns),
        make_shards=lambda index: split_table(table, folder, len(index), num_proc),
        find_leftovers=partial(images_without_targets, folder) if folder else None,
    )
    options = Options(strict, check_images, fields=columns.fields, has_images=bool(folder))
    return build(recipe, options, num_proc, cache_dir)


def folder_identity(folder: Path) -> list:
    """Path of a folder, number and total size of its images, latest modification time."""
    count = size = latest = 0
    for path in images_in(folder):
        status = path.stat()
        count, size, latest = count + 1, size + status.st_size, max(latest, status.st_mtime_ns)
    return [str(folder), count, size, latest]


def images_in(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def index_table(path: Path, encoding: str, columns: Columns, index: TargetIndex) -> Iterator[Problem]:
    """Put the texts of a CSV or JSONL file into the index. Yields their problems."""
    is_json = path.suffix.lower() in (".jsonl", ".json", ".ndjson")
    lines = read_json_lines(path) if is_json else read_csv(path, encoding)
    checked = False
    for line, row in lines:
        if isinstance(row, Problem):
            yield row
            continue
        if not checked:
            columns.require_in(row, str(path))
            checked = True
        name = plain_text(row.get(columns.image)) if columns.image else ""
        if columns.image and not name:
            yield Problem(MISSING_ID, str(path), line, detail=f"no text in column {columns.image}")
            continue
        default = name if name and not columns.fields else str(line)
        yield from index_row(index, str(path), line, row, columns, default, name)


def read_csv(path: Path, encoding: str) -> Iterator[tuple[int, dict[str, Any] | Problem]]:
    """Yield the line number and row of each line of a CSV with a header."""
    limit_before = csv.field_size_limit(MAX_FIELD)  # a setting of the whole process, so it is restored
    try:
        with path.open(encoding=encoding, newline="") as stream:
            rows = csv.DictReader(stream, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            while True:
                try:
                    row = next(rows)
                except StopIteration:
                    return
                except csv.Error as error:
                    row = Problem(MALFORMED_LINE, str(path), rows.line_num, detail=str(error))
                if isinstance(row, dict) and any(row.get(None, ())):
                    detail = f"more values than the header's {len(rows.fieldnames)}; put a text with a comma in quotes"
                    row = Problem(MALFORMED_LINE, str(path), rows.line_num, detail=detail)
                yield rows.line_num, row
    except (UnicodeError, LookupError) as error:
        raise UserError(
            f"{path} cannot be read as {encoding} ({error}). Save it as UTF-8, or pass its encoding; Chinese "
            "spreadsheets are often saved as gb18030."
        ) from error
    finally:
        csv.field_size_limit(limit_before)


def index_row(
    index: TargetIndex, file: str, line: int, row: dict, columns: Columns, default_id: str, name: str = ""
) -> Iterator[Problem]:
    """Put the texts of one row into the index. Yields its problems."""
    parsed = parse_texts(row, columns, file, line, default_id)
    if isinstance(parsed, Problem):
        yield parsed
        return
    row_id, fields, targets = parsed
    if row_id in index and (index.name(row_id), index.fields(row_id)) != (name, fields):
        seen = ", ".join(filter(None, (index.name(row_id), *index.fields(row_id).values())))
        yield Problem(DUPLICATE_ID, file, line, row_id, f"it already stands for {seen}")
        return
    usable = [target.strip() for target in targets if target.strip()]
    index.add(row_id, usable, file, line, name, fields)
    yield from (Problem(EMPTY_TARGET, file, line, row_id) for _ in range(len(targets) - len(usable)))


def parse_texts(
    row: dict, columns: Columns, file: str, line: int, default_id: str
) -> tuple[str, dict[str, str], list[str]] | Problem:
    """Id, fields and targets of one row of a table, or the problem it has."""
    row_id = parse_id(row.get(columns.id)) if columns.id else default_id
    targets = target_list(row.get(columns.target))
    fields = {name: plain_text(row.get(name)) for name in columns.fields}
    if targets is None:
        return Problem(MALFORMED_LINE, file, line, row_id, f"no text in column {columns.target}")
    if not row_id:
        return Problem(MISSING_ID, file, line)
    blank = [name for name, text in fields.items() if not text]
    if blank:
        return Problem(MISSING_FIELD, file, line, row_id, f"no text in column {', '.join(blank)}")
    return row_id, fields, targets


def plain_text(value: Any) -> str:
    """A string or number of a table as text; anything else gives the empty string."""
    is_text = isinstance(value, (str, int, float)) and not isinstance(value, bool)
    return whole_characters(str(value)).strip() if is_text else ""


def split_table(table: Path, folder: Path | None, count: int, num_proc: int) -> list["TableRows"]:
    bounds = [count * part // max(1, num_proc) for part in range(max(1, num_proc) + 1)]
    return [TableRows(str(folder or table), folder, first, last) for first, last in pairwise(bounds)]


@dataclass
class TableRows:
    """The rows `first … last − 1` of an indexed table, with the images they name if there is a folder."""

    file: str
    folder: Path | None
    first: int
    last: int
    lines: int = 0  # the lines are already those of the table

    def read(self, index: TargetIndex, advance: Callable[[int], None]) -> Iterator[RowRecord]:
        for row_id, name, _, line in index.entries(self.first, self.last):
            if self.folder is None:
                yield RowRecord(row_id, line)
            elif path := find_image(self.folder, name):
                yield RowRecord(row_id, line, {"bytes": None, "path": str(path)})
            advance(1)


def find_image(folder: Path, name: str) -> Path | None:
    """The file of this name in a folder; the name may lack its suffix."""
    suffixes = sorted(IMAGE_SUFFIXES)
    endings = ["", *suffixes, *map(str.upper, suffixes)]  # cameras write .JPG
    candidates = (folder / (name + ending) for ending in endings)
    return next((path for path in candidates if is_file(path)), None)


def is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file can have, such as one that is too long
        return False


class FolderImages(Mapping):
    """The images of a folder by name, with or without suffix, as a caption file calls them in `image_id`."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UserError(f"{folder} is not a folder. Pass the folder that holds the images.")

    def __getitem__(self, name: str) -> dict[str, Any]:
        path = find_image(self.folder, name)
        if path is None:
            raise KeyError(name)
        return {"bytes": None, "path": str(path)}

    def __iter__(self) -> Iterator[str]:
        return (path.relative_to(self.folder).with_suffix("").as_posix() for path in sorted(images_in(self.folder)))

    def __len__(self) -> int:
        return sum(1 for _ in images_in(self.folder))


def images_without_targets(folder: Path, index: TargetIndex) -> Iterator[Problem]:
    for path in images_in(folder):
        relative = path.relative_to(folder)
        if not index.has_name([relative.as_posix(), relative.with_suffix("").as_posix(), str(path)]):
            yield Problem(WITHOUT_TARGETS, str(path), 0, relative.as_posix())


def load_rows(
    dataset: Dataset,
    *,
    image_column: str | None = "image",
    target_column: str = "caption",
    id_column: str | None = None,
    fields: Sequence[str] = (),
    num_proc: int = 1,
    strict: bool = False,
    check_images: bool = True,
    cache_dir: str | Path | None = None,
) -> Dataset:
    """Convert any data set of the `datasets` library (local, parquet, from the Hub) to rows of a task.

    Args:
        dataset: result of `load_dataset(…, split=…)` or `load_from_disk`.
        image_column: column of `Image`, bytes or paths. None: rows without images.
        target_column: column of texts or lists of texts.
        id_column: rows with the same id are joined: the first one gives the image, all of them the targets.
        fields: columns that fill the task's prompt, such as a question.
        num_proc, strict, check_images, cache_dir: as in `load_muge`.

    Raises:
        UserError: a column is missing, no row is usable, the disk is full.
    """
    columns = Columns(image_column, target_column, id_column, tuple(fields))
    columns.require_in(dataset.column_names, "The data set")
    stored = undecoded(dataset.select_columns(sorted(set(columns.names()))), image_column)
    recipe = Recipe(
        name=f"rows-{dataset.split or 'all'}",
        identity={"source": "datasets", "fingerprint": dataset._fingerprint, "columns": vars(columns)},
        read_targets=partial(index_rows, stored, columns),
        make_shards=lambda index: split_rows(stored, columns, num_proc),
        total=len(dataset),
    )
    options = Options(strict, check_images, fields=columns.fields, has_images=bool(image_column))
    return build(recipe, options, num_proc, cache_dir)


def undecoded(dataset: Dataset | IterableDataset, image_column: str | None) -> Dataset | IterableDataset:
    """Keep images as they are stored; they are decoded when a batch is made."""
    features = dataset.features or {}
    if isinstance(features.get(image_column), Image):
        return dataset.cast_column(image_column, Image(decode=False))
    return dataset


def index_rows(dataset: Dataset, columns: Columns, index: TargetIndex) -> Iterator[Problem]:
    for number, row in enumerate(dataset.select_columns(columns.texts())):
        yield from index_row(index, DATASET, number + 1, row, columns, str(number))


def split_rows(dataset: Dataset, columns: Columns, num_proc: int) -> list["DatasetRows"]:
    bounds = [len(dataset) * part // max(1, num_proc) for part in range(max(1, num_proc) + 1)]
    return [DatasetRows(dataset, columns, first, last) for first, last in pairwise(bounds)]


@dataclass
class DatasetRows:
    """The rows `first … last − 1` of a data set. Of rows with the same id only the first gives a row."""

    dataset: Dataset
    columns: Columns
    first: int
    last: int
    file: str = DATASET
    lines: int = 0  # the lines are already row numbers of the whole data set

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
) -> IterableDataset:
    """Convert a streaming data set to rows of a task while it streams; nothing is stored.

    Rows with the same id are not joined. Rows with a problem are skipped and logged with their row number; in strict
    mode the first problem is raised as `UserError`.
    """
    columns = Columns(image_column, target_column, id_column, tuple(fields))
    if dataset.column_names:
        columns.require_in(dataset.column_names, "The data set")
    return undecoded(dataset, image_column).map(
        partial(stream_batch, columns=columns, strict=strict),
        batched=True,
        batch_size=8,
        with_indices=True,
        remove_columns=dataset.column_names,
        features=row_features(columns.fields, bool(image_column)),
    )


def stream_batch(batch: dict[str, list], numbers: list[int], columns: Columns, strict: bool) -> dict[str, list]:
    rows = []
    for position, number in enumerate(numbers):
        found = stream_row({name: values[position] for name, values in batch.items()}, number, columns)
        if isinstance(found, dict):
            rows.append(found)
        elif strict:
            raise UserError(f"{found}. Fix it, or turn strict mode off to skip it.")
        else:
            logger.warning(f"Skipped: {found}")
    return {name: [row[name] for row in rows] for name in row_features(columns.fields, bool(columns.image))}


def stream_row(row: dict[str, Any], number: int, columns: Columns) -> dict | Problem:
    parsed = parse_texts(row, columns, DATASET, number + 1, str(number))
    if isinstance(parsed, Problem):
        return parsed
    row_id, fields, targets = parsed
    targets = [target.strip() for target in targets if target.strip()]
    if not targets:
        return Problem(WITHOUT_TARGETS, DATASET, number + 1, row_id)
    if not columns.image:
        return {"id": row_id, **fields, "targets": targets}
    image = stored_image(row.get(columns.image))
    fault = why_broken(image or b"")
    if fault:
        return Problem(BROKEN_IMAGE, DATASET, number + 1, row_id, fault)
    return {"id": row_id, "image": image, **fields, "targets": targets}
