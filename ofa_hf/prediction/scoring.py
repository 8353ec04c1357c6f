"""Rows and references of an evaluation, for one task, several tasks, or columns."""

from collections.abc import Iterator, Mapping
from typing import Any

from datasets import Dataset

from ofa_hf.evaluation.answers import mean_of, score_answers
from ofa_hf.evaluation.metrics import Metric, as_answered, metric_of
from ofa_hf.evaluation.scores import References, Scores


MEAN_SCORE = "mean_score"  # in a run of several tasks, the mean of their best-checkpoint scores


def questions_of(row: Mapping[str, Any], task: str | None) -> Iterator[dict[str, Any]]:
    """Rows for `predict`, named `(task, id)`: one for each task of the row, which share its image."""
    for name in dict.fromkeys(row.get("tasks") or [task]):
        asked = {**row, "id": (name, row["id"])}
        yield asked if name is None else {**asked, "task": name}


def references_of(rows: Dataset, number: int, task: str | None) -> dict[str | None, References]:
    """Right answers of the first rows by task and id. The images are not read."""
    names = {"id", "targets", "tasks", "references"} & set(rows.column_names)
    found: dict[str | None, dict[str, Any]] = {}
    for row in rows.select_columns(sorted(names)).select(range(number)):
        if row.get("references"):
            own = {each["text"]: each["confidence"] for each in row["references"]}
            found.setdefault(task, {})[row["id"]] = own
            continue
        for name, target in zip(row.get("tasks") or [task] * len(row["targets"]), row["targets"]):
            found.setdefault(name, {}).setdefault(row["id"], []).append(target)
    return found


def score_tasks(
    answered: Mapping[str | None, tuple[dict[str, Any], References]], processor, is_mixed: bool = False
) -> dict[str, float]:
    """Scores of a run: those of its metric, or `<task>_<score>` for several tasks and their mean.

    Args:
        answered: task → answers and right answers, both by id; None is the default task.
        is_mixed: the run has several tasks, even if only one of them is scored.
    """
    is_mixed = is_mixed or len(answered) > 1
    scores, best = {}, []
    for name, (predictions, references) in answered.items():
        task = processor.find_task(name)
        metric = metric_of(task)
        found = metric.score(predictions, as_answered(references, task))
        start = f"{name}_" if is_mixed else ""
        scores |= {start + score: found[score] for score in metric.titles}
        best.append(found[metric.best])
    return {**scores, MEAN_SCORE: sum(best) / len(best)} if is_mixed and best else scores


def score_columns(answered: Mapping[str, tuple[dict[str, Any], References]]) -> tuple[Metric, Scores]:
    """Share of correct cells, in all columns and in each.

    Args:
        answered: column → answers and right answers, both by id.
    """
    found = {column: score_answers(*both) for column, both in answered.items()}
    each = {f"{column}: {id_}": value for column, one in found.items() for id_, value in one.each["accuracy"].items()}
    totals = {"accuracy": mean_of(each), **{f"{column}_accuracy": one["accuracy"] for column, one in found.items()}}
    titles = {"accuracy": "Cells right", **{f"{column}_accuracy": column for column in found}}
    metric = Metric("columns", best="accuracy", titles=titles, score=score_answers)
    return metric, Scores({**totals, "num_cells": len(each)}, {"accuracy": each})
