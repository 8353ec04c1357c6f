"""Scores of answers that are right or wrong: accuracy, VQA's soft accuracy, F1 and Matthews correlation.

Sources: OFA `utils/eval_utils.py`, `tasks/mm_tasks/vqa_gen.py` and `tasks/nlu_tasks/*.py`. All scores are percentages.
"""

import math
from collections.abc import Callable, Mapping
from itertools import chain

from ofa_hf.errors import UserError
from ofa_hf.evaluation.scores import Predictions, References, Scores, check_ids
from ofa_hf.evaluation.tokenization import tokenize


POSITIVE, NEGATIVE = "yes", "no"  # the answers of yes/no tasks


def mean_of(each: Mapping[str, float]) -> float:
    return math.fsum(each.values()) / len(each)


def score_answers(predictions: Predictions, references: References) -> Scores:
    """Share of right answers, ignoring case and spaces (see `tokenization`).

    Raises:
        UserError: nothing to score, or ids without their counterpart.
    """
    check_ids(predictions, references)
    right = {id_: set(map(tuple, map(tokenize, texts))) for id_, texts in references.items()}
    each = {id_: 100.0 * (tuple(tokenize(predictions[id_])) in right[id_]) for id_ in references}
    return Scores({"accuracy": mean_of(each), "num_rows": len(each)}, {"accuracy": each})


def score_vqa(predictions: Predictions, references: References) -> Scores:
    """Mean confidence of the answers, as in VQA; 0 for an answer that is not a reference.

    Args:
        references: id → answer → confidence from 0 to 1; answers without confidence count as right.

    Raises:
        UserError: nothing to score, or ids without their counterpart.
    """
    check_ids(predictions, references)
    known = {
        id_: dict(own) if isinstance(own, Mapping) else dict.fromkeys(own, 1.0) for id_, own in references.items()
    }
    each = {id_: 100.0 * known[id_].get(predictions[id_].strip(), 0.0) for id_ in references}
    return Scores({"vqa_accuracy": mean_of(each), "num_rows": len(each)}, {"vqa_accuracy": each})


def score_f1(predictions: Predictions, references: References) -> Scores:
    """F1 of the answer "yes", and accuracy.

    Raises:
        UserError: an answer is neither yes nor no.
    """

    def f1(right_yes: int, wrong_yes: int, right_no: int, wrong_no: int) -> float:
        wanted = 2 * right_yes + wrong_yes + wrong_no
        return 2 * right_yes / wanted if wanted else 0.0

    return _score_yes_or_no("f1", f1, predictions, references)


def score_matthews(predictions: Predictions, references: References) -> Scores:
    """Matthews correlation of yes and no, −100 … 100, and accuracy; 0 if all answers or all references are the same.

    Raises:
        UserError: an answer is neither yes nor no.
    """

    def matthews(right_yes: int, wrong_yes: int, right_no: int, wrong_no: int) -> float:
        margins = (right_yes + wrong_yes) * (right_yes + wrong_no) * (right_no + wrong_yes) * (right_no + wrong_no)
        return (right_yes * right_no - wrong_yes * wrong_no) / math.sqrt(margins) if margins else 0.0

    return _score_yes_or_no("matthews", matthews, predictions, references)


def _score_yes_or_no(
    name: str, formula: Callable[[int, int, int, int], float], predictions: Predictions, references: References
) -> Scores:
    """A score of the four counts: right and wrong yes, right and wrong no. An empty answer counts as no."""
    check_ids(predictions, references)
    counts = {(said, true): 0 for said in (POSITIVE, NEGATIVE) for true in (POSITIVE, NEGATIVE)}
    seen = set(chain.from_iterable(references.values())) | set(filter(None, predictions.values()))
    if others := sorted(seen - {POSITIVE, NEGATIVE}):
        raise UserError(
            f"The metric {name} scores the answers {POSITIVE} and {NEGATIVE}, but found {others[0]!r}. Correct the "
            f"answers, or set the metric of the task to accuracy."
        )
    each = {}
    for id_, own in references.items():
        said, true = predictions[id_] or NEGATIVE, next(iter(own))
        counts[said, true] += 1
        each[id_] = 100.0 * (said == true)
    order = ((POSITIVE, POSITIVE), (POSITIVE, NEGATIVE), (NEGATIVE, NEGATIVE), (NEGATIVE, POSITIVE))
    totals = {name: 100 * formula(*(counts[pair] for pair in order)), "accuracy": mean_of(each)}
    return Scores({**totals, "num_rows": len(each)}, {"accuracy": each})
