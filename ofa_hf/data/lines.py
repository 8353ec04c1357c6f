"""Read text files line by line in bounded memory; lines longer than any image are skipped."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any


MAX_LINE_BYTES = 64 * 2**20  # larger than all images of MUGE; longer lines occur only in files without line breaks
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_lines(path: str | Path, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes | None, int]]:
    """Yield each line that starts in bytes `[start, end)`, without its line break, and its size in bytes.

    The line is None if it is longer than `MAX_LINE_BYTES`.
    """
    with open(path, "rb") as stream:
        if start:
            stream.seek(start - 1)
            skip_line(stream)  # it starts earlier and belongs to the previous range
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


def parse_id(value: Any) -> str:
    """An id as text. Numbers are accepted; any other type gives the empty string."""
    is_id = isinstance(value, (str, int)) and not isinstance(value, bool)
    return " ".join(whole_characters(str(value)).split()) if is_id else ""


def target_list(value: Any) -> list[str] | None:
    """Targets from a string or a list of strings; None for anything else."""
    targets = [value] if isinstance(value, str) else value
    is_list = isinstance(targets, list) and all(isinstance(target, str) for target in targets)
    return [whole_characters(target) for target in targets] if is_list else None


def whole_characters(text: str) -> str:
    """Replace unpaired surrogates by �. JSON can contain them (a cut emoji), but UTF-8 cannot store them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
