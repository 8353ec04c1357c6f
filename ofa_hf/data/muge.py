"""Load MUGE (ECommerce-IC) as distributed: images as base64 in a TSV, captions as JSONL, both one image per line.

The files are `IC_train.tsv` (`image_id <TAB> base64`) and `IC_train.jsonl` (`{"image_id": "…", "text": ["…", …]}`),
and the same for `valid`. The `test` split has ids without captions.
"""

import base64
import binascii
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from ofa_hf.data.answers import targets_in
from ofa_hf.data.build import Recipe, build, file_identity
from ofa_hf.data.lines import parse_id, read_lines
from ofa_hf.data.shards import Options, RowRecord
from ofa_hf.data.target_index import TargetIndex
from ofa_hf.errors import UserError
from ofa_hf.tables.column_names import IDS, IMAGES, TARGETS, matches
from ofa_hf.tables.columns import Columns, missing_columns
from ofa_hf.tables.problems import (
    BROKEN_IMAGE,
    EMPTY_TARGET,
    MALFORMED_LINE,
    MISSING_ID,
    Problem,
)
from ofa_hf.tables.table_files import Table, open_table


Paths = str | Path | Sequence[str | Path]

URL_SAFE = bytes.maketrans(b"-_", b"+/")


def load_muge(
    captions: Paths | None,
    images: Paths,
    *,
    num_proc: int = 1,
    strict: bool = False,
    check_images: bool = True,
    require_targets: bool = True,
    cache_dir: str | Path | None = None,
    image_column: str | None = None,
    target_column: str | None = None,
    id_column: str | None = None,
    **reading: str | None,
) -> Dataset:
    """Load MUGE files as rows `{"id", "image", "targets"}`, one per image, in the order of the images.

    The files are read once, line by line; later calls map the rows into memory from a cache. Memory does not grow with
    the size of the files. Lines with a problem are skipped, counted and listed in a file, see `report_of`.

    Args:
        captions: JSONL file, or another table of ids and captions; several are merged, as the article merges train
            and valid. None loads only the images.
        images: TSV file or files.
        num_proc: number of processes that read the images; 0 reads them in this process.
        strict: raise the first problem instead of skipping it.
        check_images: decode every image once, so that broken ones are found now and not during training.
        require_targets: skip images without captions, such as those of the test split.
        cache_dir: folder of the Arrow files. Default: the cache of `datasets`.
        image_column, target_column, id_column: of the captions; usual names are recognized by default.
        reading: `encoding` and `separator` of the captions, see `open_table`.

    Raises:
        UserError: a file is missing or empty, captions and images do not belong together, the disk is full.
    """
    caption_files, image_files = as_paths(captions), as_paths(images)
    if not image_files:
        raise UserError("No image file was given. Pass a file such as IC_train.tsv.")
    if any(path.suffix == ".tsv" for path in caption_files) and not any(path.suffix == ".tsv" for path in image_files):
        raise UserError(f"Are {caption_files[0]} and {image_files[0]} swapped? Pass the captions first.")
    identity = {"captions": [file_identity(path) for path in caption_files]}
    identity["images"] = [file_identity(path) for path in image_files]
    columns = Columns(image_column, target_column, id_column)
    tables = [CaptionFile.open(path, columns, **reading) for path in caption_files]
    assumed = {"assumed": tables[0].assumed()} if tables else {}
    recipe = Recipe(
        name="-".join(path.stem for path in image_files)[:80],
        identity={"source": "muge", **identity, **assumed},
        read_targets=partial(index_captions, tables) if tables else None,
        notes=partial(dict, assumed),
        make_shards=lambda index: split_files(image_files, num_proc),
        total=sum(size for _, size, _ in identity["images"]),
        unit="B",
    )
    options = Options(strict, check_images, require_targets and bool(caption_files))
    return build(recipe, options, num_proc, cache_dir)


def load_muge_splits(
    folder: str | Path, splits: Sequence[str] = ("train", "valid"), *, merge: bool = False, **options
) -> DatasetDict:
    """Load `IC_<split>.jsonl` and `IC_<split>.tsv` of a folder, kept apart or merged into one `train` split.

    Args:
        options: as for `load_muge`.

    Raises:
        UserError: see `load_muge`.
    """
    folder = Path(folder)
    captions = {split: folder / f"IC_{split}.jsonl" for split in splits}
    images = {split: folder / f"IC_{split}.tsv" for split in splits}
    if merge:
        return DatasetDict(train=load_muge(list(captions.values()), list(images.values()), **options))
    return DatasetDict({split: load_muge(captions[split], images[split], **options) for split in splits})


def as_paths(paths: Paths | None) -> list[Path]:
    single = isinstance(paths, (str, Path))
    return [Path(path) for path in ([paths] if single else paths or [])]


@dataclass(frozen=True)
class CaptionFile:
    """A table of ids and captions, MUGE's or another one.

    Args:
        ids, targets: columns that may hold them; the first that a row has counts.
    """

    table: Table
    ids: Sequence[str]
    targets: Sequence[str]

    @classmethod
    def open(cls, path: Path, columns: Columns, **reading: str | None) -> "CaptionFile":
        """Raises `UserError` if no column names images."""
        table = open_table(path, **reading)
        ids = [name for name in (columns.id, columns.image) if name][:1]
        ids = ids or [*matches(table.columns, IDS), *matches(table.columns, IMAGES)]
        targets = [columns.target] if columns.target else matches(table.columns, TARGETS)
        columns.require_in(table.columns, str(path))
        if not ids:
            raise missing_columns(str(path), ["image_id"], table.columns)
        return cls(table, ids, targets)

    def assumed(self) -> dict[str, Any]:
        """How the file is read, for the report."""
        columns = zip(("image", "caption"), (self.ids[0], *self.targets[:1]), strict=False)
        return {**self.table.assumed, "columns": dict(columns)}

    def index(self, index: TargetIndex) -> Iterator[Problem]:
        """Put the captions into the index. Yields their problems."""
        for line, row in self.table:
            if isinstance(row, Problem):
                yield row
            else:
                yield from self._index_row(index, line, row)

    def _index_row(self, index: TargetIndex, line: int, row: dict) -> Iterator[Problem]:
        file = str(self.table.path)
        image_id = next((parse_id(row[name]) for name in self.ids if name in row), "")
        target = next((name for name in self.targets if name in row), None)
        captions = targets_in(row[target]) if target else []  # the test split has only ids
        if not image_id:
            yield Problem(MISSING_ID, file, line)
            return
        if captions is None:
            yield Problem(MALFORMED_LINE, file, line, image_id, f'expected "{target}" to be a list of captions')
            return
        usable = [caption.strip() for caption in captions if caption.strip()]
        index.add(image_id, usable, file, line)  # lines of one id are joined, as the rows of a table are
        for _ in range(len(captions) - len(usable)):
            yield Problem(EMPTY_TARGET, file, line, image_id)


def index_captions(files: Sequence[CaptionFile], index: TargetIndex) -> Iterator[Problem]:
    """Put the captions of files into the index. Yields their problems."""
    for file in files:
        yield from file.index(index)


def split_files(files: Sequence[Path], num_proc: int) -> list["TsvRange"]:
    """Split the files into ranges of similar size: one per process, at least one per file."""
    sizes = [path.stat().st_size for path in files]
    shards = []
    for path, size in zip(files, sizes, strict=True):
        parts = max(1, round(max(1, num_proc) * size / sum(sizes)))
        bounds = [size * part // parts for part in range(parts + 1)]
        shards += [TsvRange(str(path), start, end) for start, end in pairwise(bounds)]
    return shards


@dataclass
class TsvRange:
    """The lines of a TSV file that start in a range of bytes. Lines are counted from the start of the range."""

    file: str
    start: int
    end: int
    lines: int = 0

    def read(self, index: TargetIndex | None, advance: Callable[[int], None]) -> Iterator[RowRecord | Problem]:
        for line, size in read_lines(self.file, self.start, self.end):
            self.lines += 1
            if line is None or line.strip():
                yield parse_image(line, self.file, self.lines)
            advance(size)


def parse_image(line: bytes | None, file: str, number: int) -> RowRecord | Problem:
    """Parse `image_id <TAB> base64`. The image stays encoded as it is."""
    key, tab, payload = (line or b"").partition(b"\t")
    image_id = parse_id(key.decode("utf-8", errors="replace"))
    if not tab:
        return Problem(MALFORMED_LINE, file, number, detail="expected image_id, a tab and the image as base64")
    if not image_id:
        return Problem(MISSING_ID, file, number)
    try:
        return RowRecord(image_id, number, {"bytes": decode_base64(payload), "path": None})
    except (binascii.Error, ValueError) as error:
        return Problem(BROKEN_IMAGE, file, number, image_id, f"invalid base64: {error}")


def decode_base64(text: bytes) -> bytes:
    """Decode base64, url-safe or standard, with or without padding. A truncated text gives the bytes before the cut.

    Raises:
        ValueError: the text has other characters or is empty.
    """
    compact = b"".join(text.split()).translate(URL_SAFE).rstrip(b"=")
    compact = compact[: len(compact) - (len(compact) % 4 == 1)]  # a single character encodes less than a byte
    if not compact:
        raise ValueError("it is empty")
    return base64.b64decode(compact + b"=" * (-len(compact) % 4), validate=True)
