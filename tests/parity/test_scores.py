"""Scores equal those that the official code gave to the same answers."""

import json

import pytest
from fixtures.recorded import FIXTURES

from ofa_hf.evaluation import METRICS
from ofa_hf.evaluation.boxes import overlap, score_boxes
from ofa_hf.evaluation.reading import edit_distance, score_reading
from ofa_hf.evaluation.summaries import score_summaries
from ofa_hf.tasks_ofa import TASKS


SCORES = json.loads((FIXTURES / "recorded_learning.json").read_text(encoding="utf-8"))["scores"]
OFFICIAL = {"acc": ("accuracy", 4), "mcc": ("matthews", 4), "F1": ("f1", 3)}  # name, digits


def numbered(values) -> dict:
    return {str(number): value for number, value in enumerate(values)}


def test_hits_and_overlaps_of_boxes():
    rows = SCORES["boxes"]
    for row in rows:
        assert overlap(row["box"], row["ref"])[0] == pytest.approx(row["iou_formula"], abs=1e-5)
    scores = score_boxes(numbered(row["box"] for row in rows), numbered([row["ref"]] for row in rows))
    assert list(scores.each["box_accuracy"].values()) == [100 * row["score"] for row in rows]
    assert scores["box_accuracy"] == pytest.approx(100 * sum(row["score"] for row in rows) / len(rows))


def test_texts_that_were_read():
    rows = SCORES["ocr"]
    scores = score_reading(numbered(row["hyp"] for row in rows), numbered([row["ref"]] for row in rows))
    for id_, row in numbered(rows).items():
        assert scores.each["accuracy"][id_] == 100 * row["acc"]
        assert scores.each["ned"][id_] == pytest.approx(100 * (1 - row["norm_distance"]))
        assert edit_distance(row["hyp"].replace(" ", ""), row["ref"].replace(" ", "")) == row["distance"]
    totals = {"acc": scores["accuracy"], "ned": scores["ned"]}
    assert {name: round(value / 100, 4) for name, value in totals.items()} == SCORES["ocr_corpus"]


def test_summaries():
    rows = SCORES["rouge"]
    scores = score_summaries(numbered(row["hyp"] for row in rows), numbered([row["ref"]] for row in rows))
    for official, ours in (("rouge1", "rouge_1"), ("rouge2", "rouge_2"), ("rougeL", "rouge_l")):
        expected = [100 * row[official][2] for row in rows]
        assert list(scores.each[ours].values()) == pytest.approx(expected)


def test_answers_with_confidences():
    for row in SCORES["vqa"]:
        for answer, confidence in row["score_of"].items():
            scores = METRICS["vqa"].score({"q": answer}, {"q": row["ref_dict"]})
            assert scores["vqa_accuracy"] == pytest.approx(100 * confidence)


@pytest.mark.parametrize("case", SCORES["glue"], ids=lambda case: f"{case['task']}-{case['case']}")
def test_answers_about_sentences(case):
    metric = METRICS[TASKS[case["task"]].metric]
    scores = metric.score(numbered(case["preds"]), numbered([ref] for ref in case["refs"]))
    for official, value in case["metrics"].items():
        name, digits = OFFICIAL[official]
        if isinstance(value, str):  # the official code divides by 0 where all answers are alike
            assert scores[name] == 0
        else:
            assert round(scores[name] / 100, digits) == value
    assert {OFFICIAL[name][0] for name in case["metrics"]} <= metric.titles.keys()
