"""The metrics that score the answers of tasks. A task names its metric; to add one, add a row to `METRICS`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from ofa_hf.errors import UserError
from ofa_hf.evaluation.answers import score_answers, score_f1, score_matthews, score_vqa
from ofa_hf.evaluation.boxes import score_boxes
from ofa_hf.evaluation.captions import score_captions
from ofa_hf.evaluation.drawings import score_cosines
from ofa_hf.evaluation.reading import score_reading
from ofa_hf.evaluation.scores import Predictions, References, Scores
from ofa_hf.evaluation.summaries import score_summaries
from ofa_hf.tasks_ofa import Task


@dataclass(frozen=True)
class Metric:
    """A way to score answers.

    Args:
        name: name of the metric in a task.
        best: the score that selects the best checkpoint; higher is better.
        titles: published scores → their titles in tables and pages, in this order.
        score: predictions and references of the same ids → scores; raises `UserError` if the ids differ.
        ranks: the score by which single rows are ranked, if `best` exists only for all rows together.
        needs: a module of the extra `scores` that the metric needs.
    """

    name: str
    best: str
    titles: Mapping[str, str]
    score: Callable[[Predictions, References], Scores]
    ranks: str = ""
    needs: str = ""

    @property
    def ranks_by(self) -> str:
        return self.ranks or self.best


METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            name="caption",
            best="cider_d",
            titles={"cider_d": "CIDEr-D", "bleu_4": "BLEU-4", "rouge_l": "ROUGE-L"},
            score=score_captions,
        ),
        Metric("accuracy", best="accuracy", titles={"accuracy": "Accuracy"}, score=score_answers),
        Metric("vqa", best="vqa_accuracy", titles={"vqa_accuracy": "VQA accuracy"}, score=score_vqa),
        Metric(
            name="box",
            best="box_accuracy",
            titles={"box_accuracy": "Accuracy at IoU 0.5", "mean_iou": "Mean IoU"},
            score=score_boxes,
            ranks="mean_iou",
        ),
        Metric("ocr", best="accuracy", titles={"accuracy": "Accuracy", "ned": "1 − NED"}, score=score_reading),
        Metric(
            name="rouge",
            best="rouge_l",
            titles={"rouge_1": "ROUGE-1", "rouge_2": "ROUGE-2", "rouge_l": "ROUGE-L"},
            score=score_summaries,
            needs="rouge_score",
        ),
        Metric(
            name="matthews",
            best="matthews",
            titles={"matthews": "Matthews correlation", "accuracy": "Accuracy"},
            score=score_matthews,
            ranks="accuracy",
        ),
        # the official scripts keep the checkpoint with the best accuracy
        Metric("clip", best="clip_score", titles={"clip_score": "CLIP cosine × 100"}, score=score_cosines),
        Metric("f1", best="accuracy", titles={"f1": "F1", "accuracy": "Accuracy"}, score=score_f1),
    )
}


def find_metric(name: str) -> Metric:
    """A metric by name.

    Raises:
        UserError: there is no such metric, or it needs a package that is not installed.
    """
    if name not in METRICS:
        raise UserError(f"Unknown metric {name!r}. Accepted: {', '.join(METRICS)}. Correct the task that names it.")
    metric = METRICS[name]
    if metric.needs and find_spec(metric.needs) is None:
        raise UserError(
            f"The metric {name} needs the package {metric.needs}. Install it with `pip install 'ofa-hf[scores]'`."
        )
    return metric


def metric_of(task: Task) -> Metric:
    """The metric of a task.

    Raises:
        UserError: there is no such metric, it needs a package that is not installed, or it does not score the kind of
            answer that the task has; images are scored by a CLIP, see `evaluate_drawings`.
    """
    if task.answer == "image":
        raise UserError(
            f"The task {task.name} answers with images, which a CLIP scores: `ofa-hf evaluate --model … --captions … "
            f"--clip DIR_OR_ID`. Draw with `ofa-hf draw`."
        )
    metric = find_metric(task.metric)
    if (task.answer == "boxes") != (metric is METRICS["box"]):
        kind = "boxes" if task.answer == "boxes" else "not boxes"
        raise UserError(
            f"The metric {metric.name} cannot score the task {task.name}, whose answers are {kind}. Correct its "
            f"metric in processor_config.json; boxes have the metric box."
        )
    return metric


def as_answered(references: References, task: Task) -> References:
    """Right answers as the task's list has them, if the data uses other names for them."""
    if not task.labels:
        return references
    return {id_: [task.labels.get(text, text) for text in texts] for id_, texts in references.items()}
