"""Promises of `ofa_hf.evaluation.metrics`: whatever a metric names, its scores have."""

from dataclasses import replace

import pytest

from ofa_hf.errors import UserError
from ofa_hf.evaluation import metrics
from ofa_hf.evaluation.metrics import METRICS, find_metric, metric_of
from ofa_hf.tasks_ofa import TASKS, Task, checkpoint_task


ROWS = {  # metric → answers of a right and of a wrong row, and their references
    "box": ("1,1,9,9", "1,1,2,2", ["1,1,9,9"]),
    "clip": (0.4, 0.1, ["a dog"]),
    "f1": ("yes", "no", ["yes"]),
    "matthews": ("yes", "no", ["yes"]),
    "rouge": ("red scarf", "cup", ["red scarf"]),
}


@pytest.mark.parametrize("metric", METRICS.values(), ids=list(METRICS))
def test_a_metrics_scores_have_its_titles_and_rank_single_rows(metric):
    right, wrong, reference = ROWS.get(metric.name, ("红色围巾", "红", ["红色围巾"]))
    other = reference if metric.name in ROWS else ["白色杯子"]
    scores = metric.score({"a": right, "b": wrong}, {"a": reference, "b": other})
    assert metric.titles.keys() <= scores.as_dict().keys()
    assert metric.best in metric.titles
    assert metric.ranks_by in metric.titles
    assert scores.best_and_worst(metric.ranks_by, 1) == (["a"], ["b"])
    assert all(0 <= scores[name] <= 100 for name in metric.titles if name != "cider_d")


def test_one_score_has_one_title():
    named = [pair for metric in METRICS.values() for pair in metric.titles.items()]
    assert len(dict(named)) == len(set(named))


def test_every_tasks_metric_exists_and_scores_its_kind_of_answer():
    assert all(metric_of(task) for task in TASKS.values() if task.answer != "image")
    assert metric_of(checkpoint_task("size", {"prompt": "?", "answer": "choice"}, "zh")).name == "accuracy"


def test_what_cannot_be_scored_is_refused(monkeypatch):
    with pytest.raises(UserError, match="Unknown metric 'nothing'. Accepted: caption"):
        find_metric("nothing")
    with pytest.raises(UserError, match="The metric caption cannot score the task x, whose answers are boxes"):
        metric_of(Task("x", {"zh": "?"}, answer="boxes", metric="caption"))
    with pytest.raises(UserError, match="The metric box cannot score the task x, whose answers are not boxes"):
        metric_of(Task("x", {"zh": "?"}, metric="box"))
    monkeypatch.setitem(metrics.METRICS, "rouge", replace(METRICS["rouge"], needs="no_such_module"))
    with pytest.raises(UserError, match=r"needs the package no_such_module. Install it with `pip install 'ofa-hf\[sc"):
        find_metric("rouge")
