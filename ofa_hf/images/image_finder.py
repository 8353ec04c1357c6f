"""Find the image files that a table names, even if the names were changed on the way.

Tables come from other systems and through spreadsheets: names have backslashes, drive letters, folders of another
machine, another case or Unicode form, no suffix, or are numbers that lost their zeros. A name that matches exactly one
file is used for it, and repairs are counted. A name that matches several files or none is reported with the
nearest match.
"""

import difflib
import os
import re
import sqlite3
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from ofa_hf.errors import UserError
from ofa_hf.image_loading_ofa import IMAGE_SUFFIXES, missing_reader
from ofa_hf.images.folders import walk_images


BACKSLASHES, DRIVE, DOT, QUOTES = "backslashes", "drive letter", "leading ./", "quotes around the name"
FILE_URL, FOLDER, SUBFOLDER = "file:// in front", "folder in front", "subfolder missing"
PERCENT = "letters written as in a link (%20)"
CASE, FORM, NO_SUFFIX = "upper or lower case", "Unicode form", "suffix missing"
OTHER_SUFFIX, NUMBER = "another suffix", "number shortened by a spreadsheet"

SPREADSHEET_DIGITS = 15  # a spreadsheet turns the later digits of a long number into zeros
SCIENTIFIC = re.compile(r"(\d)(?:\.(\d+))?E\+?(\d+)", re.IGNORECASE)
NARROW = {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F) if chr(wide) not in "／＼"} | {0x3000: " "}
MAX_EXPLAINED = 20  # names whose nearest match is looked for, which takes time
MAX_COMPARED = 20_000  # files that it is looked for among

SCHEMA = """
CREATE TABLE files (path TEXT, key TEXT, stem TEXT, name TEXT, name_stem TEXT, digits TEXT);
"""
INDICES = "".join(
    f"CREATE INDEX by_{column} ON files ({column});" for column in ("key", "stem", "name", "name_stem", "digits")
)


class Found(NamedTuple):
    """The file for a name (None if there is none), the repairs, and the message if there is none."""

    path: str | None
    repairs: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()  # several files that match the name


def fold(text: str) -> str:
    """A name without case, Unicode form and full width."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text.translate(NARROW)).casefold())


def without_suffix(name: str) -> str:
    """A name without an image suffix; other dots are kept."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in IMAGE_SUFFIXES else name


def clean_name(name: str) -> tuple[list[str], list[str]]:
    """The parts of a name as a path from any system, and the repairs."""
    text, repairs = name.strip(), []
    # prefixes that make spreadsheets keep a number as text
    if text[:2] in ('="', "='") or text[:1] == "'" and text[-1:] != "'":
        text, repairs = text[1:].strip(), [QUOTES]
    if len(text) > 1 and text[0] in "\"'“‘" and text[-1] in "\"'”’":
        text, repairs = text[1:-1].strip(), [QUOTES]
    if text.lower().startswith("file://"):
        text, repairs = unquote(text[7:]), [*repairs, FILE_URL]
    if "\\" in text:
        text, repairs = text.replace("\\", "/"), [*repairs, BACKSLASHES]
    if re.match(r"/?[A-Za-z]:/", text):
        text, repairs = text.split(":", 1)[1], [*repairs, DRIVE]
    if text.startswith("./"):
        repairs.append(DOT)
    parts = []
    for part in text.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return parts, repairs


class ImageFinder:
    """The images of a folder by the names that tables use.

    Args:
        repaired: counts the repairs by kind.

    Raises:
        UserError: there is no such folder.
    """

    def __init__(self, folder: str | Path):
        self.folder = os.path.abspath(folder)
        if not os.path.isdir(self.folder):
            raise UserError(f"{folder} is not a folder. Pass the folder, .zip or .tar file that holds the images.")
        self.repaired: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self._index: sqlite3.Connection | None = None
        self._explained = 0
        self._find_again = lru_cache(1024)(self._find)  # captions of an image are usually consecutive

    def find(self, name: str) -> Found:
        """The file for a name. Repairs are counted."""
        found = self._find_again(name)
        self.repaired.update(found.repairs)
        return found

    def _find(self, name: str) -> Found:
        exact = os.path.join(self.folder, name)
        if name.strip() and is_file(exact) and not name.startswith("./"):
            return Found(os.path.normpath(exact))
        parts, repairs = clean_name(name)
        for start in range(len(parts)):
            tail = "/".join(parts[start:])
            found = self._similar(tail)
            if found.path or found.candidates:
                folder = [FOLDER] if start else []
                return found._replace(repairs=(*repairs, *folder, *found.repairs) if found.path else ())
        is_elsewhere = bool({DRIVE, FILE_URL}.intersection(repairs)) or name.strip()[:1] in ("/", "\\")
        if len(parts) == 1 or (parts and is_elsewhere):  # folders of another machine say nothing about those here
            last = parts[-1]
            matches = self._query("name", fold(last)) or self._query("name_stem", fold(without_suffix(last)))
            found = self._only(matches, (*repairs, *[FOLDER][: len(parts) - 1], SUBFOLDER))
            if found.path or found.candidates:
                return found
        if (plain := unquote(name)) != name:
            found = self._find(plain)
            return found._replace(repairs=(PERCENT, *found.repairs) if found.path else ())
        return Found(None)

    def _similar(self, tail: str) -> Found:
        """The file at a path below the folder, or the only one whose path differs in case or Unicode form."""
        path = os.path.join(self.folder, tail)
        if is_file(path):
            return Found(os.path.normpath(path))
        if matches := self._query("key", fold(tail)):
            return self._only(matches, [] if len(matches) > 1 else _why_different(tail, matches[0]))
        stem = without_suffix(tail)
        if matches := self._query("stem", fold(stem)):
            return self._only(matches, [NO_SUFFIX if stem == tail else OTHER_SUFFIX])
        return self._only(self._numbers(stem), [NUMBER])

    def _only(self, matches: Sequence[str], repairs: Sequence[str]) -> Found:
        if len(matches) == 1:
            return Found(os.path.join(self.folder, matches[0]), tuple(repairs))
        return Found(None, (), tuple(matches))

    def _numbers(self, stem: str) -> list[str]:
        """Files of one folder whose number a spreadsheet would write as this text."""
        folder, _, name = stem.rpartition("/")
        number, where, values = name.removesuffix(".0"), "digits = ?", ()
        if match := SCIENTIFIC.fullmatch(name):
            length = int(match[3]) + 1
            where, values = "length(digits) = ? AND substr(digits, 1, 1) BETWEEN ? AND ?", (length, "0", "9")
        elif not number.isdecimal():
            return []
        elif len(number) > SPREADSHEET_DIGITS and not number[SPREADSHEET_DIGITS:].strip("0"):
            where = "length(digits) = ? AND substr(digits, 1, ?) = ?"
            values = (len(number), SPREADSHEET_DIGITS, number[:SPREADSHEET_DIGITS])
        else:
            values = (number.lstrip("0") or "0",)
        paths = [row[0] for row in self._files().execute(f"SELECT path FROM files WHERE {where}", values)]
        paths = [path for path in paths if fold(os.path.dirname(path)) == fold(folder)]
        return [path for path in paths if _rounds_to(path, match)][:3] if match else paths[:3]

    def _query(self, column: str, value: str) -> list[str]:
        rows = self._files().execute(f"SELECT path FROM files WHERE {column} = ? ORDER BY path LIMIT 3", (value,))
        return [path for (path,) in rows]

    def _files(self) -> sqlite3.Connection:
        """An index of the folder, built when it is first needed, and on disk if it is large."""
        if self._index is None:
            self._index = sqlite3.connect("", isolation_level=None)
            self._index.executescript(f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; {SCHEMA}")
            self._index.execute("BEGIN")
            self._index.executemany("INSERT INTO files VALUES (?, ?, ?, ?, ?, ?)", map(_index_row, self.walk()))
            self._index.execute("COMMIT")
            self._index.executescript(INDICES)
        return self._index

    def walk(self) -> Iterator[str]:
        """Relative paths of the images, with slashes; other files are counted in `left_out`."""
        self.left_out.clear()
        for path in walk_images(self.folder, self.left_out):
            yield os.path.relpath(path, self.folder).replace(os.sep, "/").encode("utf-8", "replace").decode()

    def explain(self, name: str) -> str:
        """The message for a name without a file: the files that match it, or the nearest match."""
        candidates = self._find_again(name).candidates
        if candidates:
            return f"it may be {' or '.join(candidates)}; write the whole name"
        suffix = os.path.splitext(name.strip())[1].lower()
        if library := missing_reader(suffix):
            return f"{suffix[1:].upper()} images cannot be read without `pip install '{library}'`"
        self._explained += 1
        if self._explained > MAX_EXPLAINED:
            return "no such file"
        rows = self._files().execute("SELECT path FROM files LIMIT ?", (MAX_COMPARED,))
        paths = [path for (path,) in rows]
        wanted = fold(without_suffix("/".join(clean_name(name)[0])))
        stems = {fold(without_suffix(path)): path for path in paths}  # all suffixes are alike
        names = {stem.rpartition("/")[2]: path for stem, path in stems.items()}
        for text, known in ((wanted, stems), (wanted.rpartition("/")[2], names)):
            if nearest := difflib.get_close_matches(text, known, 1, 0.6):
                return f"no such file; the nearest name is {known[nearest[0]]}"
        return "no such file, and no similar name"

    def __getstate__(self) -> dict:
        return {"folder": self.folder}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["folder"])


def _index_row(path: str) -> tuple[str, ...]:
    key, stem = fold(path), fold(without_suffix(path))
    name_stem = stem.rpartition("/")[2]
    digits = (name_stem.lstrip("0") or "0") if name_stem.isdecimal() else ""
    return path, key, stem, key.rpartition("/")[2], name_stem, digits


def _why_different(name: str, path: str) -> list[str]:
    """How a name differs from the path of the same letters."""
    forms = [unicodedata.normalize("NFC", text.translate(NARROW)) for text in (name, path)]
    if forms[0] == forms[1]:
        return [FORM]
    return [CASE] if name.casefold() == path.casefold() else [CASE, FORM]


def _rounds_to(path: str, match: re.Match) -> bool:
    """Whether a file's number, written as a spreadsheet writes long ones, is the text that was matched."""
    digits = without_suffix(path.rpartition("/")[2])
    decimals = match[2] or ""
    return f"{Decimal(digits):.{len(decimals)}E}" == f"{match[1]}{'.' if decimals else ''}{decimals}E+{int(match[3])}"


def is_one_image(first: str, second: str) -> bool:
    """Whether two names can mean the same file: the folders of one are the last folders of the other.

    `shop1/front.jpg` and `shop2/front.jpg` cannot, even if the only file is `front.jpg`.
    """
    folders = sorted((list(map(fold, clean_name(name)[0][:-1])) for name in (first, second)), key=len)
    return not folders[0] or folders[1][-len(folders[0]) :] == folders[0]


def is_file(path: str | Path) -> bool:
    try:
        return os.path.isfile(path)
    except (OSError, ValueError):  # an impossible file name, such as one that is too long
        return False
