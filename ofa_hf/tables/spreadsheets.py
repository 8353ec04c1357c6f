"""Read spreadsheets (xlsx) and parquet files as tables, a few rows at a time."""

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ofa_hf.errors import UserError
from ofa_hf.tables.delimited import check_header
from ofa_hf.tables.problems import MALFORMED_LINE, Problem


BATCH_ROWS = 100  # of a parquet file held in memory, which may hold images

Rows = Iterator[tuple[int, dict[str, Any] | Problem]]


def open_workbook(path: Path):
    """A spreadsheet that is read row by row.

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
        return openpyxl.load_workbook(path, read_only=True, data_only=True)
    except Exception as error:  # a damaged file raises anything
        raise UserError(f"{path} cannot be read as a spreadsheet ({error}). Export the table as CSV.") from error


def sheet_header(path: Path) -> tuple[str, tuple[str, ...]]:
    """Name of the first sheet with text, and the names of its columns."""
    workbook = open_workbook(path)
    try:
        for sheet in workbook.worksheets:
            for number, row in enumerate(sheet.iter_rows(values_only=True), start=1):
                names = tuple(map(cell_text, row))
                while names and not names[-1]:
                    names = names[:-1]
                if names:
                    check_header(path, number, names)
                    return sheet.title, names
    finally:
        workbook.close()
    raise UserError(f"{path} has no row. Pass a spreadsheet whose first row names its columns.")


def read_sheet(path: Path, sheet: str, columns: tuple[str, ...]) -> Rows:
    """Yield number and texts of each row of a sheet below its header; empty rows are skipped."""
    workbook, seen_header = open_workbook(path), False
    try:
        for number, row in enumerate(workbook[sheet].iter_rows(values_only=True), start=1):
            cells = [cell_text(value) for value in row]
            if not any(cells):
                continue
            if not seen_header:
                seen_header = True
            elif any(cells[len(columns) :]):
                yield number, Problem(MALFORMED_LINE, str(path), number, detail="a value outside the header's columns")
            else:
                cells += [""] * (len(columns) - len(cells))
                yield number, dict(zip(columns, cells, strict=False))
    finally:
        workbook.close()


def cell_text(value: Any) -> str:
    """A cell as text. Whole numbers have no point, days have no time, and an empty cell is the empty text."""
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
