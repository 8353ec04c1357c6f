"""The form of an output CSV: for spreadsheet applications, or as one of them has saved it."""

import csv
import io
from collections.abc import Sequence
from typing import NamedTuple

from ofa_hf.tables.delimited import SEPARATORS
from ofa_hf.tables.encodings import is_big5, is_gb18030


MARK = b"\xef\xbb\xbf"  # without it, spreadsheet applications read UTF-8 as a regional encoding
WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff")


class CsvForm(NamedTuple):
    """Encoding, separator and line end of a CSV file, and whether it starts with a byte order mark."""

    encoding: str = "utf-8"
    separator: str = ","
    line_end: str = "\n"
    has_mark: bool = True

    @property
    def errors(self) -> str:
        """File names can contain bytes that are not UTF-8."""
        return "surrogateescape" if self.encoding == "utf-8" else "strict"

    def encode(self, text: str) -> bytes:
        """A line as bytes for the file.

        Raises:
            UnicodeEncodeError: the encoding lacks a character.
        """
        return text.encode(self.encoding, self.errors)

    def decode(self, data: bytes) -> str:
        return data.removeprefix(MARK).decode(self.encoding, self.errors)

    def line(self, cells: Sequence[object]) -> str:
        text = io.StringIO()
        csv.writer(text, delimiter=self.separator, lineterminator=self.line_end).writerow(cells)
        return text.getvalue()


def form_of(data: bytes, header: Sequence[str]) -> CsvForm:
    """Detect the form of a CSV from its bytes.

    Args:
        header: names that its columns must have.

    Raises:
        ValueError: it has other columns, or an encoding in which nothing can be appended.
    """
    if data.startswith(WIDE_MARKS):
        raise ValueError("a program saved it as UTF-16; save it as CSV UTF-8")
    encoding = encoding_of(data)
    first, _, _ = data.removeprefix(MARK).partition(b"\n")
    line_end = "\r\n" if first.endswith(b"\r") else "\n"
    text = first.rstrip(b"\r").decode(encoding, "surrogateescape")
    for separator in SEPARATORS:
        if [cell.strip() for cell in next(csv.reader([text], delimiter=separator), [])] == list(header):
            return CsvForm(encoding, separator, line_end, data.startswith(MARK))
    raise ValueError(f"its first line is not {','.join(header)!r}")


def encoding_of(data: bytes) -> str:
    """UTF-8 or GB18030.

    Raises:
        ValueError: it is neither, or lines in both are mixed.
    """
    lines = [line for line in data.split(b"\n") if not line.isascii()]
    wrong = [line for line in lines if not _is_utf8(line)]
    if not wrong:
        return "utf-8"
    if len(wrong) == len(lines) and is_gb18030(b"\n".join(wrong)):
        return "gb18030"
    if len(wrong) < len(lines) and is_gb18030(b"\n".join(wrong)):
        raise ValueError("its lines are in two encodings, UTF-8 and GB18030; save it as CSV UTF-8")
    if is_big5(b"\n".join(wrong)) or any(map(_has_foreign_text, wrong)):
        raise ValueError("a program saved it in another encoding; save it as CSV UTF-8")
    return "utf-8"  # file names can contain any bytes


def _has_foreign_text(line: bytes) -> bool:
    """Whether a line has bytes that are not UTF-8 after the name of its file, which is all that may have them."""
    text = line.decode("utf-8", "surrogateescape")
    cells = (next(csv.reader([text], delimiter=separator), []) for separator in SEPARATORS if separator in text)
    return all(any(map(_is_surrogate, "".join(each[1:]))) for each in cells)


def _is_surrogate(char: str) -> bool:
    return "\ud800" <= char <= "\udfff"


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
