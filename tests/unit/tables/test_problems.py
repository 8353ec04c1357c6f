"""Promises of `ofa_hf.tables.problems`."""

import pytest

from ofa_hf.errors import UserError
from ofa_hf.tables.problems import BROKEN_IMAGE, DataReport, Problem, ProblemLog


def test_a_problem_reads_like_a_compilers_message():
    assert str(Problem(BROKEN_IMAGE, "a.tsv", 3, "p1", "cut off")) == "a.tsv, line 3: broken image (p1): cut off"
    assert str(Problem(BROKEN_IMAGE, "a.jpg", 0)) == "a.jpg: broken image"


def test_strict_raises_the_first_and_writes_nothing(tmp_path):
    with ProblemLog(tmp_path / "log", strict=True) as log, pytest.raises(UserError, match="a.tsv, line 3"):
        log.add(Problem(BROKEN_IMAGE, "a.tsv", 3))


def test_reports_add_up():
    total = DataReport(2, 20, {BROKEN_IMAGE: 1}, "x") + DataReport(1, 5, {BROKEN_IMAGE: 2}, "y")
    assert (total.rows, total.targets, total.problems) == (3, 25, {BROKEN_IMAGE: 3})
    assert "3 × broken image" in total.summary()
    assert "no problems" in DataReport(1, 1).summary()
