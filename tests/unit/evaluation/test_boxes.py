"""Promises of `ofa_hf.evaluation.boxes`: boxes in any form, rows without one, references that are none."""

import pytest

from ofa_hf.errors import UserError
from ofa_hf.evaluation.boxes import score_boxes


BOX = {"xmin": 10, "ymin": 20, "xmax": 30, "ymax": 40}


def test_boxes_of_every_form_are_compared_with_the_best_reference():
    predictions = {"a": BOX, "b": "10,20,30,40", "c": [10, 20, 30, 30], "d": "", "e": "a text", "f": [50, 50, 60, 60]}
    scores = score_boxes(predictions, {id_: ["0,0,5,5", "10,20,30,40"] for id_ in predictions})
    assert scores.each["box_accuracy"] == {"a": 100, "b": 100, "c": 100, "d": 0, "e": 0, "f": 0}
    assert scores["mean_iou"] == pytest.approx(100 * 2.5 / 6, abs=1e-4)


def test_a_reference_that_is_no_box_is_named():
    with pytest.raises(UserError, match="The reference of a is not a box. 'red' is not a box. Accepted: xmin,ymin"):
        score_boxes({"a": BOX}, {"a": ["red"]})
