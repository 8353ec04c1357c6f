"""Text files line by line, in bounded memory: a line longer than any image is skipped, not read."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ofa_hf.data.problems import MALFORMED_LINE, Problem


MAX_LINE_BYTES = 64 * 2**20  # no image of a caption set is larger; a file without line breaks is no such file
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_lines(path: str | Path, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes | None, int]]:
    """Yield each line that starts in `[start, end)` (bytes) without its break, and its size; None if too long."""
    with open(path, "rb") as stream:
        if start:
            stream.seek(start - 1)
            skip_line(stream)  # it starts before, so it is the range before that reads it
        while end is None or stream.tell() < end:
            position = stream.tell()
            line = stream.readline(MAX_LINE_BYTES)
            if not line:
                return
            if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                skip_line(stream)
                line = None
            elif not position:
                line = line.removeprefix(BYTE_ORDER_MARK)
            yield line if line is None else line.rstrip(b"\r\n"), stream.tell() - position


def skip_line(stream) -> None:
    while True:
        piece = stream.readline(MAX_LINE_BYTES)
        if not piece or piece.endswith(b"\n"):
            return


def read_json_lines(path: str | Path) -> Iterator[tuple[int, dict[str, Any] | Problem]]:
    """Yield line number and object of each line that is not blank, or the problem that line has."""
    for number, (line, _) in enumerate(read_lines(path), start=1):
        if line is not None and not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except (AttributeError, ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            yield number, row
        else:
            yield number, Problem(MALFORMED_LINE, str(path), number, detail="expected a JSON object in UTF-8")


def parse_image_id(value: Any) -> str:
    """An id as text: numbers are accepted, everything else gives the empty text."""
    is_id = isinstance(value, (str, int)) and not isinstance(value, bool)
    return " ".join(whole_characters(str(value)).split()) if is_id else ""


def caption_list(value: Any) -> list[str] | None:
    """Captions from a text or a list of texts; None if it is neither."""
    captions = [value] if isinstance(value, str) else value
    is_list = isinstance(captions, list) and all(isinstance(caption, str) for caption in captions)
    return [whole_characters(caption) for caption in captions] if is_list else None


def whole_characters(text: str) -> str:
    """The text with � for each half character, as of an emoji cut in two: JSON can spell one, but no file holds it."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
