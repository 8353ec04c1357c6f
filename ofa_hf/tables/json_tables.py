"""Read JSON as a table, element by element: lines of objects, a list, and the formats of common data sets.

Recognised objects: COCO's (`images` and `annotations`), Karpathy's (`images` with `sentences`), a list under any name,
and texts by file name. Objects may hold a conversation, as in LLaVA's files: a question about an image and its answer.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from ofa_hf.errors import UserError
from ofa_hf.tables.column_names import IMAGES, is_usual_name, matches
from ofa_hf.tables.conversations import as_question
from ofa_hf.tables.encodings import text_lines
from ofa_hf.tables.problems import MALFORMED_LINE, Problem


CHUNK = 2**20  # characters per read
MAX_ELEMENT = 2**26  # maximum characters of an element
SAMPLE_ROWS = 100  # whose keys are the columns
JSON_LINES, JSON_LIST, COCO, KARPATHY, BY_NAME = "jsonl", "json list", "coco json", "karpathy json", "json by name"

Rows = Iterator[tuple[int, dict[str, Any] | Problem]]


@dataclass
class JsonText:
    """A JSON text that is decoded incrementally.

    Raises:
        UserError: the text is not JSON; the line is named.
    """

    path: Path
    encoding: str
    line: int = 1
    _text: str = ""
    _place: int = 0
    _decoder: json.JSONDecoder = field(default_factory=json.JSONDecoder)

    def __post_init__(self):
        self._stream = open(self.path, encoding=self.encoding, newline="")  # noqa: SIM115 (closed by close)
        self.skip("\ufeff")

    def __enter__(self) -> "JsonText":
        return self

    def __exit__(self, *exception) -> None:
        self._stream.close()

    def _more(self, size: int = CHUNK) -> bool:
        try:
            read = self._stream.read(size)
        except UnicodeError as error:
            raise UserError(
                f"{self.path} is not {self.encoding} beyond line {self.line}. Save it as UTF-8, or name its encoding "
                "with --encoding (encoding= in Python)."
            ) from error
        if read:
            self._text = self._text[self._place :] + read
            self._place = 0
        return bool(read)

    def peek(self) -> str:
        """The next character that is not whitespace; empty at the end."""
        while True:
            while self._place < len(self._text) and self._text[self._place].isspace():
                self.line += self._text[self._place] == "\n"
                self._place += 1
            if self._place < len(self._text):
                return self._text[self._place]
            if not self._more():
                return ""

    def skip(self, character: str) -> bool:
        """Skip a character if it is next."""
        if self.peek() != character:
            return False
        self._place += 1
        return True

    def value(self) -> Any:
        """Decode the next value."""
        self.peek()
        size = CHUNK
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._place)
                if end < len(self._text) or not self._more(size):  # a number at the end may continue
                    break
                continue
            except RecursionError as error:
                raise self.fault("it is nested too deeply") from error
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated") or error.pos >= len(self._text) - 8
                is_short = len(self._text) - self._place < MAX_ELEMENT
                if not (is_cut and is_short and self._more(size)):
                    self.line += self._text.count("\n", self._place, error.pos)
                    raise self.fault(error.msg) from error
                size *= 2
        self.line += self._text.count("\n", self._place, end)
        self._place = end
        return value

    def fault(self, why: str) -> UserError:
        return UserError(f"{self.path}, line {self.line} is not valid JSON: {why}. Correct it, or export it again.")

    def elements(self) -> Iterator[tuple[int, Any]]:
        """Line and value of each element of the next array."""
        if not self.skip("["):
            raise self.fault("expected a list")
        while not self.skip("]"):
            self.peek()
            line = self.line
            yield line, self.value()
            if not self.skip(",") and self.peek() != "]":
                raise self.fault("expected a comma or the end of the list")

    def members(self) -> Iterator[str]:
        """Keys of the next object; the caller must read each value before the next key."""
        if not self.skip("{"):
            raise self.fault("expected an object")
        while not self.skip("}"):
            key = self.value() if self.peek() == '"' else None
            if key is None or not self.skip(":"):
                raise self.fault("expected a name and a colon")
            yield key
            if not self.skip(",") and self.peek() != "}":
                raise self.fault("expected a comma or the end of the object")


def find_json_kind(path: Path, encoding: str) -> tuple[str, str] | None:
    """Kind of a JSON file, and the key of the list with its rows; None if it is not a known table."""
    is_lines = path.suffix.lower() in (".jsonl", ".ndjson")
    with JsonText(path, encoding) as text:
        if text.skip("[") and (not is_lines or text.peek() == "{"):
            return JSON_LIST, ""
    first = next((line for _, line in text_lines(path, encoding) if line is None or line.strip()), None)
    try:
        row = json.loads(first or "")
    except (ValueError, RecursionError):
        row = None
    if isinstance(row, dict) and not _is_collection(row):
        _refuse_columns(path, row)
        return JSON_LINES, ""
    if is_lines:
        return JSON_LINES, ""
    return _object_kind(path, encoding)


def _refuse_columns(path: Path, row: dict[str, Any]) -> None:
    """Raises `UserError` if an object holds whole columns, as pandas writes them by default."""
    image = next((row[name] for name in matches(row, IMAGES)), None)
    is_numbered = isinstance(image, dict) and all(map(str.isdecimal, image))
    if not (is_numbered or isinstance(image, list)) or len(image) < 2:
        return
    if sum(isinstance(value, type(image)) and len(value) == len(image) for value in row.values()) > 1:
        raise UserError(
            f"{path} holds columns, not rows. Write a list of objects, one per row; in pandas that is "
            "to_json(path, orient='records')."
        )


def _is_collection(row: dict[str, Any]) -> bool:
    """Whether an object on one line is a whole file: it contains a list of objects, or texts by file name."""
    holds_rows = any(isinstance(value, list) and value and isinstance(value[0], dict) for value in row.values())
    return holds_rows or not (any(map(is_usual_name, row)) or len(row) == 1 and not _is_text(next(iter(row.values()))))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str) for each in value))


def _object_kind(path: Path, encoding: str) -> tuple[str, str] | None:
    with JsonText(path, encoding) as text:
        for key in text.members():
            if text.peek() != "[":
                value = text.value()
                if isinstance(value, str) and not is_usual_name(key) and "." in key:
                    return BY_NAME, ""
                if isinstance(value, dict) and any(map(is_usual_name, value)):
                    return BY_NAME, ""
                continue
            elements = (element for _, element in text.elements())
            first = next(elements, None)
            if isinstance(first, str) and key not in ("columns", "index"):  # those are pandas's
                return BY_NAME, ""
            if isinstance(first, dict) and key in ("images", "annotations"):
                return (KARPATHY, key) if "sentences" in first else (COCO, "annotations")
            if isinstance(first, dict) and any(map(is_usual_name, first)):
                return JSON_LIST, key
            for _ in elements:
                pass
    return None


def read_json_table(path: Path, encoding: str, kind: str, key: str) -> Rows:
    """Yield line number and row of each element of a JSON file of this kind."""
    return _READERS[kind](path, encoding, key)


def json_columns(rows: Iterable[tuple[int, dict[str, Any] | Problem]]) -> tuple[str, ...]:
    """Names in the first rows, in order."""
    found: dict[str, None] = {}
    for _, row in islice(rows, SAMPLE_ROWS):
        if isinstance(row, dict):
            found.update(dict.fromkeys(row))
    return tuple(found)


def _json_lines(path: Path, encoding: str, key: str) -> Rows:
    for number, line in text_lines(path, encoding):
        if line is not None and not line.strip():
            continue
        try:
            row = json.loads(line or "")
        except (ValueError, RecursionError):
            row = None
        yield number, _row_of(row, path, number)


def _json_list(path: Path, encoding: str, key: str) -> Rows:
    for number, row in _elements_of(path, encoding, key):
        yield number, _row_of(row, path, number)


def _row_of(value: Any, path: Path, number: int) -> dict[str, Any] | Problem:
    """The row that an element of a file is."""
    row = as_question(value) if isinstance(value, dict) else "expected a JSON object"
    return Problem(MALFORMED_LINE, str(path), number, detail=row) if isinstance(row, str) else row


def _elements_of(path: Path, encoding: str, key: str) -> Iterator[tuple[int, Any]]:
    """Elements of a file's list, or of the list under a key of its object."""
    with JsonText(path, encoding) as text:
        if not key:
            yield from text.elements()
            return
        for name in text.members():
            if text.peek() != "[":
                text.value()
                continue
            for number, element in text.elements():
                if name == key:
                    yield number, element


def _coco(path: Path, encoding: str, key: str) -> Rows:
    """Annotations with the file name of their image as `image`."""
    images = (row for _, row in _elements_of(path, encoding, "images") if isinstance(row, dict))
    names = {str(row.get("id")): row.get("file_name") for row in images}  # some tools write numbers as strings
    for number, row in _json_list(path, encoding, key):
        if isinstance(row, dict):
            name = names.get(str(row.get("image_id")))
            if name is None:
                row = Problem(MALFORMED_LINE, str(path), number, str(row.get("image_id", "")), "no such image")
            else:
                row = {"image": name, **{name: value for name, value in row.items() if name != "id"}}
        yield number, row


def _karpathy(path: Path, encoding: str, key: str) -> Rows:
    for number, row in _json_list(path, encoding, key):
        if isinstance(row, dict):
            sentences = [each.get("raw", "") for each in row.get("sentences", []) if isinstance(each, dict)]
            name = "/".join(filter(None, (row.get("filepath"), row.get("filename"))))
            row = {"image": name, "caption": sentences, "split": row.get("split", "")}
        yield number, row


def _by_name(path: Path, encoding: str, key: str) -> Rows:
    """Texts, lists of texts or objects by the name of their image."""
    with JsonText(path, encoding) as text:
        for name in text.members():
            number, value = text.line, text.value()
            if _is_text(value):
                yield number, {"image": name, "caption": value}
            elif isinstance(value, dict):
                yield number, {"image": name, **value}
            else:
                yield number, Problem(MALFORMED_LINE, str(path), number, name, "expected a text or a list of texts")


_READERS: dict[str, Callable[[Path, str, str], Rows]] = {
    JSON_LINES: _json_lines,
    JSON_LIST: _json_list,
    COCO: _coco,
    KARPATHY: _karpathy,
    BY_NAME: _by_name,
}
