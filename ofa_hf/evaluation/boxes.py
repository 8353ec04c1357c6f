"""Scores of boxes: the share with an overlap of at least one half.

Source: OFA `utils/eval_utils.py`, `eval_refcoco`, whose float32 arithmetic is kept.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ofa_hf.boxes_ofa import parse_box
from ofa_hf.errors import UserError
from ofa_hf.evaluation.answers import mean_of
from ofa_hf.evaluation.scores import Scores, check_ids


ENOUGH = 0.5  # minimum intersection over union of a right box
TINY = np.float32(1e-6)  # the original's guard against 0 / 0, kept because it affects its results


def overlap(one: Any, other: Any) -> tuple[float, bool]:
    """Intersection over union of two boxes by the official formula, and whether they intersect at all."""
    first, second = (np.array(parse_box(box), dtype=np.float32) for box in (one, other))
    sides = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    common = sides[0] * sides[1]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    iou = common / (areas[0] + areas[1] - common + TINY)
    return float(iou), bool((sides > 0).all())


def score_boxes(predictions: Mapping[str, Any], references: Mapping[str, Any]) -> Scores:
    """Share of boxes that overlap a right one by at least half, and the mean overlap, both in percent.

    Args:
        predictions: id → box, as `parse_box` takes it; a row without a box, or without four numbers, counts as wrong.
        references: id → right boxes.

    Raises:
        UserError: nothing to score, ids without their counterpart, a reference that is not a box.
    """
    check_ids(predictions, references)
    hits, overlaps = {}, {}
    for id_, boxes in references.items():
        best = max(_overlap_of(predictions[id_], box, id_) for box in boxes)
        overlaps[id_], hits[id_] = 100 * best, 100.0 * (best >= ENOUGH)
    totals = {"box_accuracy": mean_of(hits), "mean_iou": mean_of(overlaps), "num_rows": len(hits)}
    return Scores(totals, {"box_accuracy": hits, "mean_iou": overlaps})


def _overlap_of(prediction: Any, reference: Any, id_: str) -> float:
    try:
        parse_box(reference)
    except ValueError as error:
        raise UserError(f"The reference of {id_} is not a box. {error} Correct it.") from error
    try:
        iou, is_overlap = overlap(prediction, reference)
    except ValueError:  # the model generated something else, or nothing
        return 0.0
    return iou if is_overlap else 0.0  # the formula gives large values for distant boxes
