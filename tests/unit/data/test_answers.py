"""Promises of `ofa_hf.data.answers`: labels become answers, boxes fit their image, anything else is said."""

import pytest

from ofa_hf.data.answers import AnswerRule, TargetForm, confidences_in, fit_box, targets_in
from ofa_hf.tasks_ofa import TASKS


def test_labels_become_answers_and_others_are_refused():
    rule = AnswerRule.of(TASKS["entailment"])
    assert [rule.answer(text) for text in ("entailment", "no")] == ["yes", "no"]
    with pytest.raises(ValueError, match="'perhaps' is not in the list of 3 answers: no, yes, maybe, contradiction"):
        rule.answer("perhaps")
    assert AnswerRule("choice").answer("anything") == "anything", "a list that the data makes"
    assert AnswerRule(**rule.as_dict()) == AnswerRule(**rule.as_dict())


@pytest.mark.parametrize("name", ["mnli", "qnli", "rte"])
def test_numbers_of_labels_that_mean_opposite_things_elsewhere_are_refused(name):
    with pytest.raises(ValueError, match="'1' is not in the list"):
        AnswerRule.of(TASKS[name]).answer("1")


def test_boxes_are_cut_by_a_pixel_and_refused_beyond():
    assert fit_box("-0.5,0,30.7,20", (30, 20)) == "0,0,30,20"
    for box in ("0,0,32,20", "10,5,10,9", "20,5,10,9", "40,40,50,50"):
        with pytest.raises(ValueError, match="does not fit an image of 30×20 pixels"):
            fit_box(box, (30, 20))
    with pytest.raises(ValueError, match="'a,b' is not a box"):
        fit_box("a,b", (30, 20))
    assert fit_box("0,0,900,20", None) == "0,0,900,20"


def test_codes_are_those_of_one_image_that_the_model_knows():
    rule = AnswerRule("image", codes=(4, 100))
    assert rule.answer(" 1 2\t3  99 ") == "1 2 3 99"
    for text, why in (("1 2 3", "has 3 codes, .* has 4"), ("1 2 3 100", "to 100, .* knows 0 to 99"), ("a", "whole")):
        with pytest.raises(ValueError, match=why):
            rule.answer(text)
    assert AnswerRule(**rule.as_dict()).answer("0 0 0 0") == "0 0 0 0"


def test_targets_are_texts_numbers_and_boxes_of_every_form():
    box = {"xmin": 1, "ymin": 2, "xmax": 3.5, "ymax": 4}
    assert targets_in("红") == ["红"]
    assert targets_in(3) == ["3"]
    assert targets_in([1, 2, 3.5, 4]) == targets_in(box) == ["1,2,3.5,4"]
    assert targets_in([box, "5,5,6,6"]) == ["1,2,3.5,4", "5,5,6,6"]
    assert targets_in(["红", "绿"]) == ["红", "绿"]
    assert targets_in(None) is targets_in({"a": 1}) is targets_in([None]) is None


def test_there_are_as_many_confidences_as_targets():
    assert confidences_in("0.3", 2) == [0.3, 0.3]
    assert confidences_in([1, "0.5"], 2) == [1.0, 0.5]
    assert confidences_in("", 1) == [1.0]
    assert confidences_in([1], 2) is confidences_in("many", 1) is confidences_in(2, 1) is None


def test_a_tasks_targets_know_their_column():
    assert TargetForm.of(TASKS["grounding"]).column == "box"
    assert TargetForm.of(TASKS["vqa"]).has_confidences
    assert TargetForm.of(TASKS["caption"]).column == "caption"
