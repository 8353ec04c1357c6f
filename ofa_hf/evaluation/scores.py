"""The result of a metric, and the checks that all metrics share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ofa_hf.errors import UserError


Predictions = Mapping[str, Any]  # id → answer: a text, or a box
# id → right answers, at least one; with confidences, a mapping from answers
References = Mapping[str, Sequence[Any] | Mapping[str, float]]


@dataclass(frozen=True)
class Scores:
    """The scores of a set of predictions.

    Args:
        totals: score name → value over all rows: published scores, then others, and the number of rows.
        each: score name → id → value, for scores of single rows.
    """

    totals: Mapping[str, float]
    each: Mapping[str, Mapping[str, float]] = field(default_factory=dict, repr=False)

    def __getitem__(self, name: str) -> float:
        return self.totals[name]

    def as_dict(self) -> dict[str, float]:
        """The totals, ready for JSON."""
        return dict(self.totals)

    def best_and_worst(self, name: str, count: int) -> tuple[list[str], list[str]]:
        """Ids with the highest and the lowest values of a score, extreme ones first, without overlap."""
        values = self.each[name]
        ranked = sorted(values, key=lambda id_: (-values[id_], id_))
        num_best = min(count, (len(ranked) + 1) // 2)
        num_worst = min(count, len(ranked) - num_best)
        return ranked[:num_best], ranked[len(ranked) - num_worst :][::-1]


def check_ids(predictions: Predictions, references: References) -> None:
    """Check that predictions and references have the same ids, and every id at least one reference.

    Raises:
        UserError: they do not, or there are none.
    """
    if not predictions or not references:
        what = "predictions" if not predictions else "references"
        raise UserError(f"Nothing to score: there are no {what}. At least one id with both is needed.")
    without_references = [id_ for id_, texts in references.items() if not texts]
    if without_references:
        raise UserError(f"No references for {some_of(without_references)}. Each id needs at least one.")
    missing = [id_ for id_ in references if id_ not in predictions]
    unknown = [id_ for id_ in predictions if id_ not in references]
    if missing or unknown:
        seen = [f"no prediction for {some_of(missing)}"] if missing else []
        seen += [f"no references for {some_of(unknown)}"] if unknown else []
        raise UserError(
            f"Predictions and references do not have the same ids: {'; '.join(seen)}. Every id needs both, because "
            "scores of a part are not comparable. Check that the two files are of the same split."
        )


def some_of(ids: Sequence[str], shown: int = 3) -> str:
    """The first ids and the number of others: `a, b, c (+12)`."""
    return ", ".join(map(str, ids[:shown])) + (f" (+{len(ids) - shown})" if len(ids) > shown else "")
