"""Read text tables: CSV with any common separator, including variants written by spreadsheets.

A row that does not match the header is a problem with its line number; later rows are not affected. Text stays text:
`NA`, `null` and `00123` are not converted.
"""

import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from ofa_hf.errors import UserError
from ofa_hf.image_loading_ofa import IMAGE_SUFFIXES, URL_PREFIXES
from ofa_hf.tables.column_names import is_usual_name
from ofa_hf.tables.encodings import MAX_LINE, text_lines
from ofa_hf.tables.problems import MALFORMED_LINE, Problem


SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "，": "full-width comma", "|": "bar"}
NAMED_SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t", "bar": "|", "full-width comma": "，"}
SAMPLE_ROWS = 200  # from which the separator is told
MAX_ROW_LINES = 200  # a quoted text of more lines than this is a quote that was never closed
LONGEST_NAME = 80  # characters of a column's name; longer ones are data
TITLE_LINES = 10  # below the first in which names of columns are looked for

Line = tuple[int, str | None]
Cells = list[str]


def find_separator(path: Path, encoding: str, given: str | None = None) -> str:
    """The separator of a table: the given one, that of a `sep=` line, or the one that fits best.

    Raises:
        UserError: the given separator is not a single character.
    """
    if given:
        separator = NAMED_SEPARATORS.get(given, given)
        if len(separator) != 1:
            raise UserError(
                f"The separator {given!r} is not one character. Accepted: a character such as ; or one of "
                f"{', '.join(SEPARATORS.values())}."
            )
        return separator
    lines = [line for _, line in islice(text_lines(path, encoding), SAMPLE_ROWS) if line and line.strip()]
    if lines and (named := separator_line(lines[0])):
        return named
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    return max(SEPARATORS, key=lambda separator: (*_fit(lines, separator), separator == usual))


def separator_line(line: str) -> str | None:
    """The separator in a line such as `sep=;`, which Excel reads and writes at the start."""
    text = line.strip("\r\n \ufeff").strip('"')
    return text[4:] if text.lower().startswith("sep=") and len(text) == 5 else "\t" if line[:5] == "sep=\t" else None


def _fit(lines: list[str], separator: str) -> tuple[int, float]:
    """How well a separator fits: common names in the header, then the share of rows with as many cells."""
    cells = [split_row(line.rstrip("\r\n"), separator) for line in lines]
    header = cells[0] if cells and isinstance(cells[0], list) else []
    if len(header) < 2:
        return 0, 0.0
    fitting = sum(isinstance(row, list) and len(row) == len(header) for row in cells)
    return sum(map(is_usual_name, header)), fitting / len(cells)


def split_row(text: str, separator: str) -> Cells | str:
    """Cells of a row without its line break; or what is wrong with its quotes, `""` if one is still open."""
    if '"' not in text:
        return text.split(separator)
    cells, place = [], 0
    while True:
        if quoted := _quoted_between_blanks(text, separator, place):
            cell, end = quoted
            cells.append(cell)
        elif not text.startswith('"', place):
            end = text.find(separator, place)
            cells.append(text[place:] if end < 0 else text[place:end])
        else:
            end = _closing_quote(text, place + 1)
            if end < 0:
                return ""
            cells.append(text[place + 1 : end].replace('""', '"'))
            end = end + 1 if end + 1 < len(text) else -1
            if end > 0 and text[end] != separator:
                shown = text[end : end + 12].splitlines()[0] if text[end : end + 12].strip() else ""
                return f"a quote ends before {shown!r}; write a quote inside a quoted text twice"
        if end < 0:
            return cells
        place = end + 1


def _quoted_between_blanks(text: str, separator: str, place: int) -> tuple[str, int] | None:
    """A quoted text with spaces around its quotes, and its end (−1: end of the row); None if there is none."""
    start = place
    while text.startswith(" ", start):
        start += 1
    if not text.startswith('"', start):
        return None
    last = _closing_quote(text, start + 1)
    end = last + 1
    while text.startswith(" ", end):
        end += 1
    if last < 0 or text[end : end + 1] not in ("", separator):
        return None
    return text[start + 1 : last].replace('""', '"'), end if end < len(text) else -1


def _closing_quote(text: str, start: int) -> int:
    """Where a quoted text ends; −1 if it does not. Two quotes in a row stand for one in the text."""
    end = text.find('"', start)
    while end >= 0 and text.startswith('""', end):
        end = text.find('"', end + 2)
    return end


def read_rows(path: Path, encoding: str, separator: str) -> Iterator[tuple[int, Cells | Problem]]:
    """Yield line number and cells of each row of the file, the header too; rows without any text are skipped.

    An unclosed quote affects only its own line.
    """
    lines, ahead = iter(text_lines(path, encoding)), deque()
    while line := ahead.popleft() if ahead else next(lines, None):
        number, text = line
        if number == 1 and text and separator_line(text):
            continue
        if text is None:
            yield number, Problem(MALFORMED_LINE, str(path), number, detail=f"more than {MAX_LINE:,} characters")
            continue
        cells = split_row(text.rstrip("\r\n"), separator)
        if cells == "":
            cells = _read_on(text, separator, lines, ahead)
        if isinstance(cells, str):
            yield number, Problem(MALFORMED_LINE, str(path), number, detail=cells)
        elif any(map(str.strip, cells)):
            yield number, cells


def _read_on(text: str, separator: str, lines: Iterator[Line], ahead: deque[Line]) -> Cells | str:
    """Cells of a row whose quoted text continues on later lines. Lines that do not belong to it are not consumed."""
    used = 0
    while used < MAX_ROW_LINES and len(text) < MAX_LINE:
        if used == len(ahead):
            if (line := next(lines, None)) is None:
                break
            ahead.append(line)
        part = ahead[used][1]
        used += 1
        if part is None:
            break
        text += part
        if '"' in part and (cells := split_row(text.rstrip("\r\n"), separator)) != "":
            if isinstance(cells, list):
                for _ in range(used):
                    ahead.popleft()
                return cells
            break
    return "a quote opens here and never closes; close it, and write a quote inside a quoted text twice"


def read_header(path: Path, encoding: str, separator: str) -> tuple[str, ...]:
    """Column names, from the first row.

    Raises:
        UserError: there is no row, the first one looks like data, or two columns have one name.
    """
    number, cells = next(read_rows(path, encoding, separator), (0, None))
    if cells is None:
        raise UserError(f"{path} has no row. Pass a table whose first line names its columns, such as image,caption.")
    if isinstance(cells, Problem):
        raise UserError(f"{cells}. The first line must name the columns, such as image,caption.")
    names = tuple(unicodedata.normalize("NFC", cell.strip()) for cell in cells)
    while names and not names[-1]:  # a spreadsheet's empty columns
        names = names[:-1]
    check_header(path, number, names, separator)
    if not any(map(is_usual_name, names)):
        refuse_late_header(path, number, _split_in_all_ways(path, encoding))
    return names


def _split_in_all_ways(path: Path, encoding: str) -> Iterator[tuple[int, Cells]]:
    for number, line in text_lines(path, encoding):
        for separator in SEPARATORS:
            cells = split_row((line or "").rstrip("\r\n"), separator)
            if isinstance(cells, list):
                yield number, cells


def refuse_late_header(path: Path, first: int, rows: Iterable[tuple[int, Iterable[str]]]) -> None:
    """Raises `UserError` if a row soon after the first one names columns, as below the title of an export."""
    for number, cells in rows:
        if number > first + TITLE_LINES:
            return
        names = [cell.strip() for cell in cells if is_usual_name(cell)]
        if number > first and len(names) > 1:
            raise UserError(
                f"{path}, line {first} names no column that is known here, but line {number} does: "
                f"{', '.join(names)[:200]}. Remove what is above line {number}."
            )


def check_header(path: Path, number: int, names: tuple[str, ...], separator: str = ",") -> None:
    """Raises `UserError` if column names look like data or are repeated."""
    if shown := next((name for name in names if looks_like_data(name, names)), None):
        raise UserError(
            f"{path}, line {number} looks like data, not like names of columns: {shown[:60]!r}. Add a first line that "
            f"names them, such as {separator.join(('image', 'caption'))!r}."
        )
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{path}, line {number} names two columns {twice!r}. Give each column its own name.")


def looks_like_data(name: str, names: tuple[str, ...]) -> bool:
    """Whether a cell of the first line is a value and not a name: a file, a link, or a number among unknown names."""
    if name.lower().endswith(tuple(IMAGE_SUFFIXES)) or name.lower().startswith(URL_PREFIXES):
        return True
    is_value = len(name) > LONGEST_NAME or name.replace(".", "").replace("-", "").isdigit()
    return is_value and not any(map(is_usual_name, names))


def fit_header(
    path: Path, number: int, cells: Cells, columns: tuple[str, ...], separator: str
) -> dict[str, str] | Problem:
    """The row of these cells, or a problem if their number differs from the header."""
    if len(cells) > len(columns) and not any(map(str.strip, cells[len(columns) :])):  # a spreadsheet's empty columns
        cells = cells[: len(columns)]
    if len(cells) == len(columns):
        return dict(zip(columns, cells, strict=True))
    name = SEPARATORS.get(separator, repr(separator))
    remedy = (
        f"put a text that contains a {name} in quotes" if len(cells) > len(columns) else "complete or remove the line"
    )
    how = "more" if len(cells) > len(columns) else "fewer"
    detail = f"{len(cells)} values, {how} values than the header's {len(columns)}; {remedy}"
    return Problem(MALFORMED_LINE, str(path), number, detail=detail)


def read_delimited(
    path: Path, encoding: str, separator: str, columns: tuple[str, ...]
) -> Iterator[tuple[int, dict[str, str] | Problem]]:
    """Yield line number and row, by column, of each row below the header."""
    for number, cells in islice(read_rows(path, encoding, separator), 1, None):
        is_problem = isinstance(cells, Problem)
        yield number, cells if is_problem else fit_header(path, number, cells, columns, separator)
