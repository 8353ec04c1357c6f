"""Promises of `ofa_hf.evaluation.answers`: what counts as right, and what is refused."""

import random

import pytest

from ofa_hf.errors import UserError
from ofa_hf.evaluation.answers import score_answers, score_f1, score_matthews, score_vqa


def test_case_and_blanks_make_no_answer_wrong_and_any_reference_will_do():
    scores = score_answers({"a": "XL 码", "b": "红", "c": ""}, {"a": ["xl码"], "b": ["蓝", "红"], "c": ["红"]})
    assert scores.each["accuracy"] == {"a": 100, "b": 100, "c": 0}
    assert scores["accuracy"] == pytest.approx(200 / 3)


def test_a_vqa_answer_without_confidence_is_right():
    assert score_vqa({"a": "red ", "b": "red"}, {"a": ["blue", "red"], "b": {"red": 0.3}})["vqa_accuracy"] == 65


@pytest.mark.parametrize("score", [score_f1, score_matthews])
def test_scores_of_yes_and_no_refuse_other_answers_and_count_an_open_one_as_no(score):
    assert score({"a": "yes", "b": ""}, {"a": ["yes"], "b": ["no"]})["accuracy"] == 100
    with pytest.raises(UserError, match="scores the answers yes and no, but found 'maybe'"):
        score({"a": "maybe"}, {"a": ["yes"]})


def test_f1_and_matthews_equal_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn (make test-extras)")
    drawn = random.Random(3)
    for size in (2, 5, 40):
        true, said = ([drawn.choice(("yes", "no")) for _ in range(size)] for _ in range(2))
        rows = [dict(enumerate(said)), {number: [answer] for number, answer in enumerate(true)}]
        f1 = metrics.f1_score(true, said, pos_label="yes", zero_division=0)
        assert score_f1(*rows)["f1"] == pytest.approx(100 * f1)
        assert score_matthews(*rows)["matthews"] == pytest.approx(100 * metrics.matthews_corrcoef(true, said))
