"""Promises of `ofa_hf.data.lines`."""

import pytest

from ofa_hf.data import lines
from ofa_hf.data.lines import parse_id, read_lines, target_list


@pytest.mark.parametrize("cuts", [[0, 23], [0, 1, 23], [0, 5, 6, 7, 23], list(range(24))])
def test_ranges_of_bytes_read_every_line_exactly_once(tmp_path, cuts):
    path = tmp_path / "lines"
    path.write_bytes(b"one\ntwo\n\nthree four\nlast")
    found = [line for start, end in zip(cuts, [*cuts[1:], 24]) for line, _ in read_lines(path, start, end)]
    assert found == [b"one", b"two", b"", b"three four", b"last"]
    assert sum(size for _, size in read_lines(path)) == 24


def test_a_line_that_would_fill_the_memory_is_skipped_and_the_next_one_read(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 8)
    path = tmp_path / "lines"
    path.write_bytes(b"short\n" + 30 * b"x" + b"\nnext\n" + 20 * b"y")
    assert [line for line, _ in read_lines(path)] == [b"short", None, b"next", None]


def test_half_characters_are_replaced_since_no_file_can_hold_them():
    """JSON can spell the half of an emoji that was cut in two."""
    assert parse_id("a\ud83d") == "a\ufffd"
    assert target_list(["红\ude00", "裙"]) == ["红\ufffd", "裙"]
    assert target_list("\ud83d\ude00") == ["😀"]
