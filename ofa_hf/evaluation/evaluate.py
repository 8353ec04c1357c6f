"""From predictions and references to a result one can read, save and cite."""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from ofa_hf.evaluation.metrics import CaptionScores, score_captions
from ofa_hf.evaluation.predictions import read_predictions, read_references


PACKAGES = ("ofa-hf", "transformers", "torch", "datasets", "pillow")  # whose versions a score may depend on
ROW_TITLES = {"cider_d": "CIDEr-D", "bleu_4": "BLEU-4", "rouge_l": "ROUGE-L"}


@dataclass(frozen=True)
class EvaluationResult:
    """Scores, the texts they are of, and what was run (`run`: model, data, settings), so that a card can cite it."""

    scores: CaptionScores
    predictions: Mapping[str, str] = field(repr=False)
    references: Mapping[str, Sequence[str]] = field(repr=False)
    run: Mapping[str, object] = field(default_factory=dict)

    def as_dict(self) -> dict:
        """Scores, run, versions and date, ready for JSON; the texts stay out."""
        return {
            "scores": self.scores.as_dict(),
            "run": dict(self.run),
            "versions": package_versions(),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }

    def save(self, path: str | Path) -> None:
        """Write `as_dict()` as JSON."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.as_dict(), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

    def table(self) -> str:
        """The three published scores and the number of images, aligned for a terminal."""
        rows = [(title, f"{getattr(self.scores, name):.2f}") for name, title in ROW_TITLES.items()]
        rows.append(("images", str(self.scores.num_images)))
        return "\n".join(f"{title:<10}{value:>8}" for title, value in rows)


def evaluate_predictions(
    predictions: Mapping[str, str] | str | Path,
    references: Mapping[str, Sequence[str]] | str | Path,
    run: Mapping[str, object] | None = None,
) -> EvaluationResult:
    """Score captions that exist already.

    Args:
        predictions: image id → caption, or a JSONL file of `{"image_id", "text"}`.
        references: image id → captions, or a JSONL file of `{"image_id", "text": […]}`.
        run: what made the predictions, for the record.

    Raises:
        UserError: a file that cannot be read, or the two are not about the same images.
    """
    run = dict(run or {})
    if isinstance(predictions, (str, Path)):
        run.setdefault("predictions", str(predictions))
        predictions = read_predictions(predictions)
    if isinstance(references, (str, Path)):
        run.setdefault("captions", str(references))
        references = read_references(references)
    return EvaluationResult(score_captions(predictions, references), predictions, references, run)


def package_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue  # used from a source folder
    return versions
