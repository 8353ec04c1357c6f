"""Open tables of any kind (CSV, JSON, spreadsheets, parquet) and read them row by row."""

import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ofa_hf.errors import UserError
from ofa_hf.tables.conversations import are_conversations
from ofa_hf.tables.delimited import find_separator, read_delimited, read_header
from ofa_hf.tables.encodings import find_encoding, read_start
from ofa_hf.tables.json_tables import find_json_kind, json_columns, read_json_table
from ofa_hf.tables.problems import Problem
from ofa_hf.tables.public import Named, named_set
from ofa_hf.tables.spreadsheets import parquet_columns, read_parquet, read_sheet, sheet_header
from ofa_hf.tables.text_files import TEXT_FILES, has_text_files, read_text_files


JSON_SUFFIXES = frozenset({".json", ".jsonl", ".ndjson"})
SHEET_SUFFIXES = frozenset({".xlsx", ".xlsm", ".xltx", ".xltm"})
ACCEPTED = "CSV or another text table, JSONL, JSON, xlsx and parquet"
NOT_TABLES = {  # first bytes → kind of file
    b"\xd0\xcf\x11\xe0": "an old (.xls) or a protected spreadsheet. Save it as .xlsx without a password, or as CSV",
    b"\x1f\x8b": "packed with gzip. Unpack it first",
    b"%PDF": "a PDF. Export the table as CSV",
    b"Rar!": "a packed file. Unpack it first",
    b"7z\xbc\xaf": "a packed file. Unpack it first",
    b"RIFF": "an image. Pass the table that names the images",
    b"GIF8": "an image. Pass the table that names the images",
    b"\x89PNG": "an image. Pass the table that names the images",
    b"\xff\xd8\xff": "an image. Pass the table that names the images",
}
MARKUP = ("<html", "<!doctype", "<table", "<?xml", "<meta", "<head", "<style")


@dataclass(frozen=True)
class Table:
    """A table that is read row by row, again at each iteration: `(line number, row | Problem)`.

    Args:
        columns: names of the columns; for JSON, those of the first rows.
        assumed: how the file was read: `kind`, `encoding` and `separator` (None if there is none), and the `sheet`
            of a spreadsheet, with the names of `other_sheets` that contain text.
    """

    path: Path
    columns: tuple[str, ...]
    assumed: dict[str, Any]
    _read: Callable[[], Iterator[tuple[int, dict[str, Any] | Problem]]] = field(repr=False)

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any] | Problem]]:
        return self._read()


def open_table(path: str | Path, *, encoding: str | None = None, separator: str | None = None) -> Table:
    """Open a table of any common kind; its format is detected and recorded in `assumed`.

    Args:
        path: a file; a folder of images with a text file of the same name next to each; or a public set by name, such
            as `coco-cn:FOLDER@train`.
        encoding: encoding of a text file; by default detected from its first bytes.
        separator: character between the cells of a text table, or its name, such as "tab"; by default detected.

    Raises:
        UserError: the file is missing, empty or no table, its encoding cannot be detected, or its first line does
            not name the columns.
    """
    if public := named_set(path):
        read = NamedRows(public.name, str(public.folder), public.split)
        return _table(public.file(), f"{public.name}, {public.split}", public.set.columns, read)
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    start = read_start(path, 2**16)
    if start.startswith(b"PAR1"):
        return _table(path, "parquet", parquet_columns(path), partial(read_parquet, path))
    if start.startswith(b"PK\x03\x04"):
        return _open_sheet(path)
    if what := next((what for mark, what in NOT_TABLES.items() if start.startswith(mark)), None):
        raise UserError(f"{path} is {what}. Accepted: {ACCEPTED}.")
    encoding = find_encoding(path, encoding)
    if start.decode(encoding, "ignore").lstrip("\ufeff \t\r\n").lower().startswith(MARKUP):
        raise UserError(
            f"{path} is a page (HTML or XML), as shop systems export it under the name of a spreadsheet. Open it in a "
            f"spreadsheet program and save it as .xlsx or CSV. Accepted: {ACCEPTED}."
        )
    if separator is None and _looks_like_json(path, start, encoding):
        return _open_json(path, encoding)
    separator = find_separator(path, encoding, separator)
    columns = read_header(path, encoding, separator)
    read = partial(read_delimited, path, encoding, separator, columns)
    return _table(path, "csv", columns, read, encoding=encoding, separator=separator)


@dataclass(frozen=True)
class NamedRows:
    """Reads the rows of a split of a public set."""

    name: str
    folder: str
    split: str

    def __call__(self) -> Iterator[tuple[int, dict[str, Any] | Problem]]:
        return Named(self.name, Path(self.folder), self.split).rows()


def _table(path: Path, kind: str, columns: tuple[str, ...], read: Callable, **assumed: Any) -> Table:
    return Table(path, columns, {"kind": kind, "encoding": None, "separator": None, **assumed}, read)


def _open_folder(path: Path) -> Table:
    if not has_text_files(path):
        shards = f" Its .tar files may be shards: pass '{path}/*.tar'." if any(path.glob("*.tar")) else ""
        raise UserError(
            f"{path} is a folder without captions: no image in it has a .txt file of the same name. Pass a table, or "
            f"put a text file beside each image.{shards}"
        )
    return _table(path, TEXT_FILES, ("image", "caption"), partial(read_text_files, path))


def _open_sheet(path: Path) -> Table:
    try:
        with zipfile.ZipFile(path) as archive:
            is_sheet = "xl/workbook.xml" in archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path} is damaged ({error}). Get the file again.") from error
    if not is_sheet:
        raise UserError(f"{path} is a packed file, not a table. Accepted: {ACCEPTED}. Unpack it first.")
    if path.suffix.lower() not in SHEET_SUFFIXES:
        raise UserError(f"{path} is a spreadsheet under the name of another kind of file. Rename it to end in .xlsx.")
    sheet, columns, others = sheet_header(path)
    more = {"other_sheets": list(others)} if others else {}
    return _table(path, "xlsx", columns, partial(read_sheet, path, sheet, columns), sheet=sheet, **more)


def _looks_like_json(path: Path, start: bytes, encoding: str) -> bool:
    text = start.decode(encoding, "ignore").lstrip("\ufeff \t\r\n")
    return text.startswith(("{", "[")) and (path.suffix.lower() in JSON_SUFFIXES or text[1:].lstrip()[:1] in '"{')


def _open_json(path: Path, encoding: str) -> Table:
    found = find_json_kind(path, encoding)
    if found is None:
        raise UserError(
            f"{path} holds no table. Accepted: a JSON object per line, a list of objects, or COCO's form with images "
            "and annotations."
        )
    kind, key = found
    read = partial(read_json_table, path, encoding, kind, key)
    columns = json_columns(read())
    if not columns and (problem := next((row for _, row in read() if isinstance(row, Problem)), None)):
        raise UserError(
            f"{path}, line {problem.line} is malformed: {problem.detail}; no usable row at its start. Correct it, "
            "or export it again."
        )
    shown = f"{kind} of conversations" if are_conversations(columns) else kind
    return _table(path, shown, columns, read, encoding=encoding)
