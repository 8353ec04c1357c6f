"""A full disk is recognized whoever tells of it, and told in one clear line."""

import errno
import sqlite3

import pytest

from ofa_hf.errors import UserError, explain_full_disk, is_full_disk, text_of_os_error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        sqlite3.OperationalError("database or disk is full"),
        RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["device", "quota", "sqlite", "torch position", "torch write", "safetensors and tokenizers"],
)
def test_a_full_disk_is_recognized_and_told_with_what_to_do(error):
    assert is_full_disk(error)
    with (
        pytest.raises(UserError, match="^The disk that holds a/b is full. Free some.$"),
        explain_full_disk("a/b", "Free some."),
    ):
        raise error


@pytest.mark.parametrize(
    "error", [KeyError("x"), OSError(errno.EACCES, "Permission denied"), UserError("No space left")]
)
def test_other_errors_pass_unchanged(error):
    with pytest.raises(type(error)) as seen, explain_full_disk("a/b", "Free some."):
        raise error
    assert seen.value is error


def test_an_error_of_the_operating_system_is_told_with_its_file():
    assert (
        text_of_os_error(OSError(errno.EACCES, "Permission denied", "a.jsonl"))
        == "[Errno 13] Permission denied: 'a.jsonl'"
    )
    full = text_of_os_error(OSError(errno.ENOSPC, "No space left on device"))
    assert full.startswith("The disk is full")
    assert "run the same command again" in full


def test_what_a_hostile_file_says_cannot_command_the_terminal():
    text = str(UserError("red \x1b[31m, half \ud83d,\nnext line\u2028and 红\u3000色"))
    assert text == "red \\x1b[31m, half \\ud83d, next line and 红\u3000色"
    text.encode("utf-8")


def test_a_message_keeps_its_beginning_and_its_advice_however_long_the_text_it_quotes():
    text = str(UserError(f"Unknown word {'x' * 10**6}. Remove it."))
    assert len(text) < 1300
    assert text.startswith("Unknown word")
    assert text.endswith("Remove it.")
