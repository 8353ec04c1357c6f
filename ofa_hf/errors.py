"""The one exception that speaks to a user: the command line prints its text as one line and exits with 1."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager


# How libraries tell of a full disk whose errors carry no number: sqlite, tokenizers and safetensors, torch's writer.
FULL_DISK_WORDS = (
    "disk is full",
    "No space left",
    "os error 28",
    "quota exceeded",
    "file write failed",
    "unexpected pos",
)


MAX_CHARACTERS = 1200  # of a message; what it quotes may be endless


class UserError(Exception):
    """Something the user can put right. The text says what is wrong, what was seen, what is accepted, what to do.

    What was seen may come from a hostile file, so the text is made printable.
    """

    def __init__(self, text: str):
        super().__init__(printable(text))


def printable(text: str) -> str:
    """A text as one line that any terminal and log file takes: control characters and the like spelled out, the middle
    left out if it is long."""
    line = " ".join(line.strip() for line in text.splitlines())
    line = "".join(char if char.isprintable() or char == "\u3000" else ascii(char)[1:-1] for char in line)
    half = MAX_CHARACTERS // 2
    return line if len(line) <= MAX_CHARACTERS else f"{line[:half]} … {line[-half:]}"


def is_full_disk(error: BaseException) -> bool:
    """Whether an error tells of a full disk."""
    is_numbered = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return is_numbered or any(words in str(error) for words in FULL_DISK_WORDS)


def text_of_os_error(error: OSError) -> str:
    """What to say about an error of the operating system that nobody expected where it came."""
    if not is_full_disk(error):
        return str(error)
    return f"The disk is full ({error}). Free some room and run the same command again; what was complete is kept."


@contextmanager
def full_disk_told(place: str | os.PathLike, advice: str) -> Iterator[None]:
    """Turn whatever tells of a full disk into a `UserError`.

    Args:
        place: what the disk holds.
        advice: what became of the work, and what to do.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not is_full_disk(error):
            raise
        raise UserError(f"The disk that holds {place} is full. {advice}") from error
