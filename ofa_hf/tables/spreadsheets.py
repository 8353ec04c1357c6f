"""Read spreadsheets (xlsx) and parquet files as tables, a few rows at a time."""

import datetime
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

from ofa_hf.errors import UserError
from ofa_hf.tables.column_names import is_usual_name
from ofa_hf.tables.delimited import TITLE_LINES, check_header, refuse_late_header
from ofa_hf.tables.problems import MALFORMED_LINE, Problem


ERRORS = frozenset("#N/A #NAME? #REF! #VALUE! #DIV/0! #NULL! #NUM!".split())
FORMULA = re.compile(rb"<f[ >/]")
MERGED = re.compile(rb"<mergeCell ref=\"([A-Z]+)(\d+):[A-Z]+(\d+)\"")
BATCH_ROWS = 100  # rows of a parquet file in memory, which can contain images

Rows = Iterator[tuple[int, dict[str, Any] | Problem]]


def open_workbook(path: Path, values: bool = True):
    """A spreadsheet that is read row by row.

    Args:
        values: read the saved results of formulas; False reads the formulas.

    Raises:
        UserError: the library is missing, or the file is damaged.
    """
    try:
        import openpyxl
    except ImportError as error:
        raise UserError(
            f"{path} is a spreadsheet, which needs the package openpyxl. Install it: `pip install 'ofa-hf[tables]'`, "
            "or export the table as CSV."
        ) from error
    try:
        return openpyxl.load_workbook(path, read_only=True, data_only=values)
    except Exception as error:  # a damaged file can raise any error
        raise UserError(f"{path} cannot be read as a spreadsheet ({error}). Export the table as CSV.") from error


def sheet_header(path: Path) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Name of the sheet that is read, names of its columns, and names of the other sheets with text.

    The sheet whose first row has the most usual names of columns is read; of several, the first.
    """
    workbook, found = open_workbook(path), {}
    try:
        for sheet in workbook.worksheets:
            rows = enumerate(sheet.iter_rows(values_only=True), start=1)
            texts = ((number, tuple(map(cell_text, row))) for number, row in rows)
            if first := list(islice(((number, cells) for number, cells in texts if any(cells)), TITLE_LINES)):
                found[sheet.title] = first
    finally:
        workbook.close()
    if not found:
        raise UserError(f"{path} has no row. Pass a spreadsheet whose first row names its columns.")
    title = max(found, key=lambda name: sum(map(is_usual_name, found[name][0][1])))
    number, names = found[title][0]
    while not names[-1]:
        names = names[:-1]
    check_header(path, number, names)
    if not any(map(is_usual_name, names)):
        for first in found.values():
            refuse_late_header(path, first[0][0], first)
    return title, names, tuple(name for name in found if name != title)


def read_sheet(path: Path, sheet: str, columns: tuple[str, ...]) -> Rows:
    """Yield number and texts of each row of a sheet below its header; empty rows are skipped.

    Cells merged over several rows have their value in each. A row with an error, such as `#N/A`, or a formula without
    a saved value is a problem.
    """
    workbook, merged = open_workbook(path), _merged_cells(path, sheet)
    formulas = open_workbook(path, values=False) if _has_formulas(path) else None
    rows, seen_header, spread = workbook[sheet].iter_rows(values_only=True), False, {}
    sources = formulas[sheet].iter_rows(values_only=True) if formulas else repeat(())
    try:
        for number, (row, source) in enumerate(zip(rows, sources), start=1):
            cells = [cell_text(value) for value in row]
            for column, last in merged.get(number, ()):
                if column < len(cells):
                    spread[column] = last, cells[column]
            for column, (last, value) in spread.items():
                if number <= last and column < len(cells):
                    cells[column] = cells[column] or value
            if not any(cells) and not any(source):
                continue
            if not seen_header:
                seen_header = True
            elif fault := _fault(cells, source, columns):
                yield number, Problem(MALFORMED_LINE, str(path), number, detail=fault)
            else:
                cells += [""] * (len(columns) - len(cells))
                yield number, dict(zip(columns, cells, strict=False))
    finally:
        workbook.close()
        if formulas:
            formulas.close()


def _fault(cells: list[str], source: tuple, columns: tuple[str, ...]) -> str:
    """The problem with a row of a sheet; empty if there is none."""
    if any(cells[len(columns) :]):
        return "a value outside the header's columns"
    for column, cell, formula in zip(columns, cells, chain(source, repeat(None))):
        if "DISPIMG(" in str(formula or cell):
            return f"column {column} holds an image, not its name; save the images as files and write their names"
        if cell in ERRORS:
            return f"column {column} holds the error {cell}; correct the cell"
        if not cell and str(formula or "").startswith("="):
            return f"column {column} holds a formula without its value; open the file in a spreadsheet and save it"
    return ""


def _has_formulas(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        sheets = [name for name in archive.namelist() if name.startswith("xl/worksheets/")]
        return any(FORMULA.search(part) for name in sheets for part in _parts(archive, name))


def _merged_cells(path: Path, sheet: str) -> dict[int, list[tuple[int, int]]]:
    """Cells of a sheet merged over several rows: first row → columns, from 0, and the last row of each."""
    workbook = open_workbook(path)
    place = workbook[sheet]._worksheet_path
    workbook.close()
    merged: dict[int, list[tuple[int, int]]] = {}
    with zipfile.ZipFile(path) as archive:
        for match in {match for part in _parts(archive, place) for match in MERGED.findall(part)}:
            letters, first, last = match[0].decode(), int(match[1]), int(match[2])
            column = sum((ord(letter) - 64) * 26**power for power, letter in enumerate(reversed(letters))) - 1
            if last > first:
                merged.setdefault(first, []).append((column, last))
    return merged


def _parts(archive: zipfile.ZipFile, name: str) -> Iterator[bytes]:
    """A file of an archive in chunks, each preceded by the end of the previous one."""
    with archive.open(name) as stream:
        end = b""
        while piece := stream.read(2**20):
            yield end + piece
            end = piece[-100:]


def cell_text(value: Any) -> str:
    """A cell as text: integers without a decimal point, dates without a time, empty cells as empty text."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return str(value).strip()


def parquet_columns(path: Path) -> tuple[str, ...]:
    """Names of a parquet file's columns.

    Raises:
        UserError: the file is damaged.
    """
    return tuple(_open_parquet(path).schema_arrow.names)


def _open_parquet(path: Path):
    import pyarrow.parquet

    with _explain_parquet(path):
        return pyarrow.parquet.ParquetFile(path)


@contextmanager
def _explain_parquet(path: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read as parquet ({str(error).splitlines()[0]}). Get the file again, or export it again."
        ) from error


def read_parquet(path: Path) -> Rows:
    """Yield row number, from 1, and row of a parquet file."""
    number = 0
    with _open_parquet(path) as file, _explain_parquet(path):
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield number, row
