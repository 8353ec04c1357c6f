"""Scores of texts read from images: exact matches and character edit distance, ignoring spaces.

Source: OFA `tasks/mm_tasks/ocr.py`.
"""

from collections.abc import Sequence

from ofa_hf.evaluation.answers import mean_of
from ofa_hf.evaluation.scores import Predictions, References, Scores, check_ids


def edit_distance(one: Sequence, other: Sequence) -> int:
    """Number of insertions, deletions and replacements between two sequences (Levenshtein 1966)."""
    previous = list(range(len(other) + 1))
    for number, left in enumerate(one, start=1):
        current = [number]
        for place, right in enumerate(other, start=1):
            current.append(min(previous[place] + 1, current[-1] + 1, previous[place - 1] + (left != right)))
        previous = current
    return previous[-1]


def similarity(text: str, reference: str) -> float:
    """1 − edit distance / length of the longer text, both without spaces; 1 for two empty texts."""
    text, reference = text.replace(" ", ""), reference.replace(" ", "")
    return 1 - edit_distance(text, reference) / max(len(text), len(reference), 1)


def score_reading(predictions: Predictions, references: References) -> Scores:
    """Share of exactly matching texts, and the mean similarity (1 − NED), both in percent.

    The most similar of several references counts.

    Raises:
        UserError: nothing to score, or ids without their counterpart.
    """
    check_ids(predictions, references)
    each = {id_: 100 * max(similarity(predictions[id_], text) for text in texts) for id_, texts in references.items()}
    exact = {id_: 100.0 * (value == 100) for id_, value in each.items()}
    totals = {"accuracy": mean_of(exact), "ned": mean_of(each), "num_rows": len(each)}
    return Scores(totals, {"accuracy": exact, "ned": each})
