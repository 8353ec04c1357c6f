"""From predictions and references to a result that can be read, saved and cited."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from ofa_hf.evaluation.metrics import METRICS, Metric
from ofa_hf.evaluation.predictions import read_predictions, read_references
from ofa_hf.evaluation.scores import Scores
from ofa_hf.files import write_json


PACKAGES = ("ofa-hf", "transformers", "torch", "datasets", "pillow")  # whose versions a score may depend on


@dataclass(frozen=True)
class EvaluationResult:
    """Scores, the texts that were scored, and what was run (`run`: model, data, settings)."""

    scores: Scores
    predictions: Mapping[str, str] = field(repr=False)
    references: Mapping[str, Sequence[str]] = field(repr=False)
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
    predictions: Mapping[str, str] | str | Path,
    references: Mapping[str, Sequence[str]] | str | Path,
    run: Mapping[str, object] | None = None,
    *,
    metric: str = "caption",
) -> EvaluationResult:
    """Score answers that exist already.

    Args:
        predictions: id → answer, or a JSONL file of `{"image_id", "text"}`.
        references: id → right answers, or a JSONL file of `{"image_id", "text": […]}`.
        run: what made the predictions, for the record.
        metric: a name in `METRICS`.

    Raises:
        UserError: a file cannot be read, or the two do not have the same ids.
    """
    run = dict(run or {})
    if isinstance(predictions, (str, Path)):
        run.setdefault("predictions", str(predictions))
        predictions = read_predictions(predictions)
    if isinstance(references, (str, Path)):
        run.setdefault("captions", str(references))
        references = read_references(references)
    scores = METRICS[metric].score(predictions, references)
    return EvaluationResult(scores, predictions, references, METRICS[metric], run)


def package_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue  # used from a source folder
    return versions
