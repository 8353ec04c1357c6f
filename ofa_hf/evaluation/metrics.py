"""The metrics: how the answers of a task are scored. A task names its metric; to add one, add a row to `METRICS`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ofa_hf.errors import UserError
from ofa_hf.evaluation.captions import score_captions
from ofa_hf.evaluation.scores import Scores
from ofa_hf.tasks_ofa import Task


Predictions = Mapping[str, str]  # id → answer
References = Mapping[str, Sequence[str]]  # id → right answers, at least one


@dataclass(frozen=True)
class Metric:
    """A way to score answers.

    Args:
        name: as tasks name it.
        best: the score that picks the best checkpoint and ranks single rows; higher is better.
        titles: published scores → how tables and pages call them, in that order.
        score: predictions and references of the same ids → scores; raises `UserError` if the ids differ.
    """

    name: str
    best: str
    titles: Mapping[str, str]
    score: Callable[[Predictions, References], Scores]


METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            name="caption",
            best="cider_d",
            titles={"cider_d": "CIDEr-D", "bleu_4": "BLEU-4", "rouge_l": "ROUGE-L"},
            score=score_captions,
        ),
    )
}


def find_metric(name: str) -> Metric:
    """A metric by name.

    Raises:
        UserError: there is no such metric.
    """
    if name not in METRICS:
        raise UserError(f"Unknown metric {name!r}. Accepted: {', '.join(METRICS)}. Correct the task that names it.")
    return METRICS[name]


def metric_of(task: Task) -> Metric:
    """The metric of a task.

    Raises:
        UserError: its answers are no texts, which no metric here can score.
    """
    if task.answer != "text":
        raise UserError(
            f"Answers of the task {task.name} cannot be scored: they are {task.answer}, and the metrics here score "
            f"texts. Use a task whose answer is a text, such as caption."
        )
    return find_metric(task.metric)
