"""Promises of `ofa_hf.evaluation.scores`: ids that do not match are named, extremes are ranked."""

import pytest

from ofa_hf.errors import UserError
from ofa_hf.evaluation.scores import Scores, check_ids


def test_missing_and_unknown_ids_are_named_both_ways():
    with pytest.raises(UserError, match=r"no prediction for b; no references for c"):
        check_ids({"a": "x", "c": "x"}, {"a": ["x"], "b": ["x"]})


@pytest.mark.parametrize(
    ("predictions", "references", "said"),
    [
        ({}, {"a": ["x"]}, "there are no predictions"),
        ({"a": "x"}, {}, "there are no references"),
        ({"a": "x"}, {"a": []}, "No references for a"),
    ],
)
def test_nothing_to_score_is_said(predictions, references, said):
    with pytest.raises(UserError, match=said):
        check_ids(predictions, references)


def test_best_and_worst_share_no_row_and_put_the_extremes_first():
    values = {f"p{number}": float(number * 3 % 7) for number in range(7)}
    scores = Scores({"mean": 3.0}, {"own": values})
    best, worst = scores.best_and_worst("own", 5)
    assert [values[id_] for id_ in best] == [6, 5, 4, 3]
    assert [values[id_] for id_ in worst] == [0, 1, 2]
    assert scores["mean"] == scores.as_dict()["mean"] == 3
