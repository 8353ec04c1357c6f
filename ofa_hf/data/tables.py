"""A shop's own data: a folder of images with a table of captions, or any data set of the `datasets` library."""

import csv
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from datasets import Dataset, Image, IterableDataset

from ofa_hf.data.build import Recipe, build, file_identity
from ofa_hf.data.caption_index import CaptionIndex
from ofa_hf.data.images import stored_image, why_broken
from ofa_hf.data.lines import caption_list, parse_image_id, read_json_lines, whole_characters
from ofa_hf.data.problems import (
    BROKEN_IMAGE,
    DUPLICATE_ID,
    EMPTY_CAPTION,
    IMAGE_WITHOUT_CAPTIONS,
    MALFORMED_LINE,
    MISSING_ID,
    Problem,
)
from ofa_hf.data.shards import FEATURES, ImageRecord, Options
from ofa_hf.errors import UserError


logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
MAX_FIELD = 2**20  # characters of one CSV field
DATASET = "the data set"  # named in problems, whose lines are row numbers from 1
ROW_NUMBER = "row number"  # the id column of a data set that has none


@dataclass(frozen=True)
class Columns:
    """Which columns hold what. Without an id column an image's id is its name (its row number in a data set)."""

    image: str = "image"
    caption: str = "caption"
    image_id: str | None = None

    def names(self) -> list[str]:
        return [name for name in (self.image, self.caption, self.image_id) if name]

    def require_in(self, found: Iterable[str], source: str) -> None:
        """Raises `UserError` naming the columns that are not among those found."""
        found = list(found)
        missing = [name for name in self.names() if name not in found]
        if missing:
            raise UserError(
                f"{source} has no column {', '.join(missing)}; it has {', '.join(map(str, found)) or 'none'}. "
                "Name the columns with image_column, caption_column and id_column."
            )


def load_folder(
    captions: str | Path,
    folder: str | Path,
    *,
    image_column: str = "image",
    caption_column: str = "caption",
    id_column: str | None = None,
    encoding: str = "utf-8-sig",
    num_proc: int = 1,
    strict: bool = False,
    check_images: bool = True,
    cache_dir: str | Path | None = None,
) -> Dataset:
    """Load a folder of images and a table of captions as rows `{"image_id", "image", "captions"}`, one per image.

    Args:
        captions: CSV (`.tsv`: tab-separated) with a header, or JSONL. An image's captions come as repeated rows or,
            in JSONL, as a list.
        folder: the image column names files in it, with or without their suffix. Images stay where they are.
        encoding: of a CSV; spreadsheets in Chinese often write `gb18030`.
        num_proc, strict, check_images, cache_dir: as for `load_muge`.

    Raises:
        UserError: a file, folder or column is missing, the encoding is another, there is no usable image.
    """
    captions, folder = Path(captions), Path(folder).resolve()
    columns = Columns(image_column, caption_column, id_column)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder. Give the folder that holds the images.")
    identity = {"source": "folder", "captions": file_identity(captions), "folder": folder_identity(folder)}
    recipe = Recipe(
        name=captions.stem[:80],
        identity={**identity, "columns": columns.names(), "encoding": encoding},
        read_captions=partial(index_table, captions, encoding, columns),
        make_shards=lambda index: split_images(folder, len(index), num_proc),
        find_leftovers=partial(unnamed_images, folder),
    )
    return build(recipe, Options(strict, check_images), num_proc, cache_dir)


def folder_identity(folder: Path) -> list:
    """Path, number of images, their bytes and the latest change."""
    count = size = latest = 0
    for path in images_in(folder):
        status = path.stat()
        count, size, latest = count + 1, size + status.st_size, max(latest, status.st_mtime_ns)
    return [str(folder), count, size, latest]


def images_in(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def index_table(path: Path, encoding: str, columns: Columns, index: CaptionIndex) -> Iterator[Problem]:
    """Put the captions of a CSV or JSONL file into the index; yields what is wrong with them."""
    is_json = path.suffix.lower() in (".jsonl", ".json", ".ndjson")
    rows = read_json_lines(path) if is_json else read_csv(path, encoding)
    checked = False
    for line, row in rows:
        if isinstance(row, Problem):
            yield row
            continue
        if not checked:
            columns.require_in(row, str(path))
            checked = True
        yield from index_row(index, str(path), line, row, columns)


def read_csv(path: Path, encoding: str) -> Iterator[tuple[int, dict[str, Any] | Problem]]:
    """Yield line number and row of a CSV with a header."""
    limit_before = csv.field_size_limit(MAX_FIELD)  # of the whole process, so it is put back
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
                yield rows.line_num, row
    except (UnicodeError, LookupError) as error:
        raise UserError(
            f"{path} cannot be read as {encoding} ({error}). Save it as UTF-8, or name its encoding; spreadsheets in "
            "Chinese often write gb18030."
        ) from error
    finally:
        csv.field_size_limit(limit_before)


def index_row(index: CaptionIndex, file: str, line: int, row: dict, columns: Columns) -> Iterator[Problem]:
    name = row.get(columns.image)
    name = whole_characters(str(name)).strip() if isinstance(name, (str, int)) else ""
    image_id = parse_image_id(row.get(columns.image_id)) if columns.image_id else name
    captions = caption_list(row.get(columns.caption))
    if captions is None:
        yield Problem(MALFORMED_LINE, file, line, image_id, f"no text in column {columns.caption}")
    elif not image_id or not name:
        yield Problem(MISSING_ID, file, line)
    elif index.name(image_id) not in (None, name):
        yield Problem(DUPLICATE_ID, file, line, image_id, f"it already names {index.name(image_id)}")
    else:
        usable = [caption.strip() for caption in captions if caption.strip()]
        index.add(image_id, usable, file, line, name)
        yield from (Problem(EMPTY_CAPTION, file, line, image_id) for _ in range(len(captions) - len(usable)))


def split_images(folder: Path, count: int, num_proc: int) -> list["NamedImages"]:
    bounds = [count * part // max(1, num_proc) for part in range(max(1, num_proc) + 1)]
    return [NamedImages(str(folder), first, last) for first, last in pairwise(bounds)]


@dataclass
class NamedImages:
    """The images `first … last − 1` that the captions name."""

    file: str
    first: int
    last: int
    lines: int = 0  # the lines are those of the caption file already

    def read(self, index: CaptionIndex, advance: Callable[[int], None]) -> Iterator[ImageRecord]:
        for image_id, name, _, line in index.images(self.first, self.last):
            path = find_image(Path(self.file), name)
            if path:
                yield ImageRecord(image_id, line, {"bytes": None, "path": str(path)})
            advance(1)


def find_image(folder: Path, name: str) -> Path | None:
    """The file of this name in a folder, its suffix given or not."""
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
    """The images of a folder by their name, its suffix given or not: what a caption file calls `image_id`."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UserError(f"{folder} is not a folder. Give the folder that holds the images.")

    def __getitem__(self, name: str) -> dict[str, Any]:
        path = find_image(self.folder, name)
        if path is None:
            raise KeyError(name)
        return {"bytes": None, "path": str(path)}

    def __iter__(self) -> Iterator[str]:
        return (path.relative_to(self.folder).with_suffix("").as_posix() for path in sorted(images_in(self.folder)))

    def __len__(self) -> int:
        return sum(1 for _ in images_in(self.folder))


def unnamed_images(folder: Path, index: CaptionIndex) -> Iterator[Problem]:
    for path in images_in(folder):
        relative = path.relative_to(folder)
        if not index.has_name([relative.as_posix(), relative.with_suffix("").as_posix(), str(path)]):
            yield Problem(IMAGE_WITHOUT_CAPTIONS, str(path), 0, relative.as_posix())


def load_rows(
    dataset: Dataset,
    *,
    image_column: str = "image",
    caption_column: str = "caption",
    id_column: str | None = None,
    num_proc: int = 1,
    strict: bool = False,
    check_images: bool = True,
    cache_dir: str | Path | None = None,
) -> Dataset:
    """Bring any data set of the `datasets` library (local, parquet, from the Hub) to rows of one image each.

    Args:
        dataset: what `load_dataset(…, split=…)` or `load_from_disk` returned. The image column holds an `Image`, bytes
            or a path; the caption column a text or a list of texts.
        id_column: rows of the same id are one image; its first row gives the image, all rows the captions.
        num_proc, strict, check_images, cache_dir: as for `load_muge`.

    Raises:
        UserError: a column is missing, there is no usable row, the disk is full.
    """
    columns = Columns(image_column, caption_column, id_column)
    columns.require_in(dataset.column_names, "The data set")
    images = undecoded(dataset.select_columns(sorted(set(columns.names()))), image_column)
    recipe = Recipe(
        name=f"rows-{dataset.split or 'all'}",
        identity={"source": "datasets", "fingerprint": dataset._fingerprint, "columns": columns.names()},
        read_captions=partial(index_rows, images, columns),
        make_shards=lambda index: split_rows(images, columns, num_proc),
        total=len(dataset),
    )
    return build(recipe, Options(strict, check_images), num_proc, cache_dir)


def undecoded(dataset: Dataset | IterableDataset, image_column: str) -> Dataset | IterableDataset:
    """Keep images as they are stored; they are decoded when a batch is made."""
    features = dataset.features or {}
    if isinstance(features.get(image_column), Image):
        return dataset.cast_column(image_column, Image(decode=False))
    return dataset


def index_rows(dataset: Dataset, columns: Columns, index: CaptionIndex) -> Iterator[Problem]:
    texts = dataset.select_columns(sorted({columns.caption, *filter(None, [columns.image_id])}))
    for number, row in enumerate(texts):
        row[columns.image] = "row"  # the image itself is read by the shards
        image_id = {} if columns.image_id else {ROW_NUMBER: number}
        yield from index_row(index, DATASET, number + 1, row | image_id, columns_with_id(columns))


def columns_with_id(columns: Columns) -> Columns:
    return Columns(columns.image, columns.caption, columns.image_id or ROW_NUMBER)


def split_rows(dataset: Dataset, columns: Columns, num_proc: int) -> list["DatasetRows"]:
    bounds = [len(dataset) * part // max(1, num_proc) for part in range(max(1, num_proc) + 1)]
    return [DatasetRows(dataset, columns, first, last) for first, last in pairwise(bounds)]


@dataclass
class DatasetRows:
    """The rows `first … last − 1` of a data set; of rows with the same id only the first one is an image."""

    dataset: Dataset
    columns: Columns
    first: int
    last: int
    file: str = DATASET
    lines: int = 0  # the lines are row numbers of the whole data set already

    def read(self, index: CaptionIndex, advance: Callable[[int], None]) -> Iterator[ImageRecord | Problem]:
        for number in range(self.first, self.last):
            row = self.dataset[number]
            image_id = parse_image_id(row[self.columns.image_id]) if self.columns.image_id else str(number)
            if image_id and index.line(image_id) in (None, number + 1):
                yield self.record(image_id, number + 1, row[self.columns.image])
            advance(1)

    def record(self, image_id: str, line: int, value: Any) -> ImageRecord | Problem:
        stored = stored_image(value)
        return (
            ImageRecord(image_id, line, stored) if stored else Problem(BROKEN_IMAGE, self.file, line, image_id, "none")
        )


def stream_rows(
    dataset: IterableDataset,
    *,
    image_column: str = "image",
    caption_column: str = "caption",
    id_column: str | None = None,
    strict: bool = False,
) -> IterableDataset:
    """Bring a streaming data set to the same rows while it streams; nothing is stored.

    Rows are not brought together by id: one row is one image. Those with a problem are left out and logged with
    their row number; in strict mode the first one is raised as `UserError`.
    """
    columns = Columns(image_column, caption_column, id_column)
    if dataset.column_names:
        columns.require_in(dataset.column_names, "The data set")
    convert = partial(stream_batch, columns=columns, strict=strict)
    return undecoded(dataset, image_column).map(
        convert, batched=True, batch_size=8, with_indices=True, remove_columns=dataset.column_names, features=FEATURES
    )


def stream_batch(batch: dict[str, list], numbers: list[int], columns: Columns, strict: bool) -> dict[str, list]:
    rows = []
    for position, number in enumerate(numbers):
        found = stream_row({name: values[position] for name, values in batch.items()}, number, columns)
        if isinstance(found, dict):
            rows.append(found)
        elif strict:
            raise UserError(f"{found}. Correct it, or leave strict mode to go on without it.")
        else:
            logger.warning(f"Left out: {found}")
    return {name: [row[name] for row in rows] for name in FEATURES}


def stream_row(row: dict[str, Any], number: int, columns: Columns) -> dict | Problem:
    image_id = parse_image_id(row.get(columns.image_id)) if columns.image_id else str(number)
    captions = [text.strip() for text in caption_list(row.get(columns.caption)) or [] if text.strip()]
    image = stored_image(row.get(columns.image))
    if not image_id:
        return Problem(MISSING_ID, DATASET, number + 1)
    if not captions:
        return Problem(IMAGE_WITHOUT_CAPTIONS, DATASET, number + 1, image_id)
    fault = why_broken(image or b"")
    if fault:
        return Problem(BROKEN_IMAGE, DATASET, number + 1, image_id, fault)
    return {"image_id": image_id, "image": image, "captions": captions}
