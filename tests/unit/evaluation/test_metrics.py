"""Promises of `ofa_hf.evaluation.metrics`: whatever a metric names, its scores have."""

import pytest

from ofa_hf.errors import UserError
from ofa_hf.evaluation.metrics import METRICS, find_metric
from ofa_hf.tasks_ofa import TASKS


@pytest.mark.parametrize("metric", METRICS.values(), ids=list(METRICS))
def test_a_metrics_scores_have_its_titles_and_rank_single_rows(metric):
    references = {"a": ["红色围巾"], "b": ["白色杯子"]}
    scores = metric.score({"a": "红色围巾", "b": "红"}, references)
    assert metric.titles.keys() <= scores.as_dict().keys()
    assert metric.best in metric.titles
    assert scores.each[metric.best].keys() == references.keys()
    assert scores.best_and_worst(metric.best, 1) == (["a"], ["b"])


def test_every_tasks_metric_exists_and_others_are_refused():
    assert all(find_metric(task.metric) for task in TASKS.values())
    with pytest.raises(UserError, match="Unknown metric 'nothing'. Accepted: caption"):
        find_metric("nothing")
