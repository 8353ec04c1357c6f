"""The exception for errors that a user can fix: the command line prints its text as one line and exits with 1."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager


# Messages about a full disk without an errno, from sqlite, tokenizers, safetensors and torch's writer.
FULL_DISK_WORDS = (
    "disk is full",
    "No space left",
    "os error 28",
    "quota exceeded",
    "file write failed",
    "unexpected pos",
)


MAX_CHARACTERS = 1200  # characters of a message, whose quoted input may be long


class UserError(Exception):
    """Something the user can fix. The text says what is wrong, what was seen, what is accepted, what to do next.

    What was seen may come from a hostile file, so the text is made printable.
    """

    def __init__(self, text: str):
        super().__init__(printable(text))


def printable(text: str) -> str:
    """A text as one line for terminals and log files: control characters escaped, the middle of long texts cut."""
    line = " ".join(line.strip() for line in text.splitlines())
    line = "".join(char if char.isprintable() or char == "\u3000" else ascii(char)[1:-1] for char in line)
    half = MAX_CHARACTERS // 2
    return line if len(line) <= MAX_CHARACTERS else f"{line[:half]} … {line[-half:]}"


def is_full_disk(error: BaseException) -> bool:
    """Whether an error means that the disk is full."""
    is_numbered = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return is_numbered or any(words in str(error) for words in FULL_DISK_WORDS)


def text_of_os_error(error: OSError) -> str:
    """The message for an unexpected error of the operating system."""
    if not is_full_disk(error):
        return str(error)
    return f"The disk is full ({error}). Free some space and run the same command again; finished work is kept."


@contextmanager
def explain_full_disk(place: str | os.PathLike, advice: str) -> Iterator[None]:
    """Turn an error that means a full disk into a `UserError`.

    Args:
        place: what the disk holds.
        advice: what happened to the work, and what to do.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not is_full_disk(error):
            raise
        raise UserError(f"The disk that holds {place} is full. {advice}") from error
