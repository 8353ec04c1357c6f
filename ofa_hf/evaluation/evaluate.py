"""From predictions and references to a result that can be read, saved and cited."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from itertools import islice
from pathlib import Path

from ofa_hf.data.sources import TableForm
from ofa_hf.errors import UserError
from ofa_hf.evaluation.metrics import METRICS, Metric, as_answered, find_metric, metric_of
from ofa_hf.evaluation.predictions import read_predictions, same_names, usable_references
from ofa_hf.evaluation.scores import Predictions, References, Scores
from ofa_hf.files import write_json
from ofa_hf.tasks_ofa import find_task


PACKAGES = ("ofa-hf", "transformers", "torch", "datasets", "pillow")  # packages whose version can affect a score


@dataclass(frozen=True)
class EvaluationResult:
    """Scores, the scored texts, and what was run (`run`: model, data, settings)."""

    scores: Scores
    predictions: Predictions = field(repr=False)
    references: References = field(repr=False)
    metric: Metric = METRICS["caption"]
    run: Mapping[str, object] = field(default_factory=dict)

    def as_dict(self) -> dict:
        """Scores, run, versions and date, ready for JSON; without the texts."""
        return {
            "scores": self.scores.as_dict(),
            "run": dict(self.run),
            "versions": package_versions(),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }

    def save(self, path: str | Path) -> None:
        """Write `as_dict()` as JSON."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_json(path, self.as_dict())

    def table(self) -> str:
        """The metric's published scores and the number of images, aligned for a terminal."""
        rows = [(title, f"{self.scores[name]:.2f}") for name, title in self.metric.titles.items()]
        rows.append(("images", str(len(self.references))))
        width = 2 + max(len(title) for title, _ in rows)
        return "\n".join(f"{title:<{width}}{value:>8}" for title, value in rows)


def evaluate_predictions(
    predictions: Predictions,
    references: References,
    run: Mapping[str, object] | None = None,
    *,
    metric: str = "caption",
) -> EvaluationResult:
    """Score existing answers.

    Args:
        predictions: id → answer.
        references: id → right answers.
        run: origin of the predictions, for the record.
        metric: a name in `METRICS`.

    Raises:
        UserError: the two do not have the same ids, or there is no such metric.
    """
    chosen = find_metric(metric)
    return EvaluationResult(chosen.score(predictions, references), predictions, references, chosen, run or {})


def evaluate_files(
    predictions: str | Path,
    references: str | Path,
    *,
    task: str = "caption",
    limit: int | None = None,
    form: TableForm | None = None,
) -> EvaluationResult:
    """Score answers in a file against references in a file.

    Args:
        predictions, references: tables, see `read_predictions` and `read_references`.
        task: a name in `TASKS`; its metric scores.
        limit: score only this many images, the first of the references.
        form: the user's options for the table of references.

    Raises:
        UserError: a file cannot be read, the two do not have the same ids, or there is no such task.
    """
    try:
        chosen = find_task(task)
    except ValueError as error:
        raise UserError(str(error)) from error
    metric = metric_of(chosen).name
    found, problems = usable_references(references, form, task=chosen)
    expected = first_of(as_answered(found, chosen), limit)
    answers = same_names(read_predictions(predictions, task=chosen), expected)
    if len(unknown := answers.keys() - expected.keys()) <= len(problems):  # those of the references left out
        answers = {id_: text for id_, text in answers.items() if id_ not in unknown}
    answers = {id_: chosen.labels.get(text, text) if chosen.labels else text for id_, text in answers.items()}
    if limit is not None:
        answers = {id_: text for id_, text in answers.items() if id_ in expected}
    run = {"predictions": str(predictions), "captions": str(references)}
    run |= {"references_left_out": len(problems)} if problems else {}
    return evaluate_predictions(answers, expected, run, metric=metric)


def first_of(references: References, limit: int | None) -> References:
    """The first references up to a limit; all of them without a limit."""
    return dict(islice(references.items(), limit))


def package_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue  # run from a source folder
    return versions
