"""Promises of `ofa_hf.evaluation.evaluate`."""

import json

import pytest

from ofa_hf.errors import UserError
from ofa_hf.evaluation.evaluate import evaluate_files, evaluate_predictions


PREDICTIONS = {"a": "红色围巾", "b": "白色杯子"}
REFERENCES = {"a": ["红色的围巾"], "b": ["白色陶瓷杯子", "杯子"]}


def test_the_result_says_what_was_run_and_with_which_versions(tmp_path):
    result = evaluate_predictions(PREDICTIONS, REFERENCES, {"model": "shop/ofa", "num_beams": 5})
    result.save(tmp_path / "results/scores.json")
    saved = json.loads((tmp_path / "results/scores.json").read_text(encoding="utf-8"))
    assert saved["scores"] == result.scores.as_dict()
    assert saved["run"] == {"model": "shop/ofa", "num_beams": 5}
    assert {"python", "torch", "transformers"} <= saved["versions"].keys()


@pytest.fixture
def files(tmp_path):
    paths = tmp_path / "p.jsonl", tmp_path / "r.jsonl"
    for path, captions in zip(paths, (PREDICTIONS, REFERENCES)):
        path.write_text("".join(json.dumps({"image_id": i, "text": t}) + "\n" for i, t in captions.items()))
    return paths


def test_files_and_mappings_give_the_same_scores(files):
    from_files = evaluate_files(*files)
    assert from_files.scores == evaluate_predictions(PREDICTIONS, REFERENCES).scores
    assert from_files.run == {"predictions": str(files[0]), "captions": str(files[1])}


def test_a_limit_scores_the_first_references_and_an_unknown_task_is_refused(files):
    assert evaluate_files(*files, limit=1).predictions == {"a": PREDICTIONS["a"]}
    with pytest.raises(UserError, match="Unknown task 'nothing'. Accepted: caption"):
        evaluate_files(*files, task="nothing")


def test_boxes_in_files_are_scored_whatever_their_form(tmp_path):
    box = {"xmin": 1, "ymin": 2, "xmax": 8, "ymax": 9}
    predictions = [{"file": "a", "box": box, "score": 0.9}, {"id": "b", "box": [1, 2, 8, 5]}, {"id": "c", "box": None}]
    paths = tmp_path / "predictions.jsonl", tmp_path / "references.jsonl"
    references = [{"image_id": id_, "text": "1,2,8,9"} for id_ in "abc"]
    for path, rows in zip(paths, (predictions, references)):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    result = evaluate_files(*paths, task="grounding")
    assert result.scores["box_accuracy"] == pytest.approx(100 / 3)
    assert result.scores["mean_iou"] == pytest.approx(100 * (1 + 3 / 7) / 3, abs=1e-4)
    assert "Accuracy at IoU 0.5" in result.table()


def test_phrases_tell_the_boxes_of_one_image_apart(tmp_path):
    (tmp_path / "boxes.csv").write_text(
        'image,text,box\nshop/a.jpg,hat,"0,0,9,9"\nshop/a.jpg,shoe,"5,5,9,9"\n', encoding="utf-8"
    )
    lines = [
        {"file": "/photos/shop/a.jpg", "text": text, "box": box, "score": 0.5}
        for text, box in (("shoe", [5, 5, 9, 9]), ("hat", None))
    ]
    (tmp_path / "found.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    result = evaluate_files(tmp_path / "found.jsonl", tmp_path / "boxes.csv", task="grounding")
    assert (result.scores["box_accuracy"], result.scores["num_rows"]) == (50, 2)


def test_labels_of_files_are_answers_by_other_names(tmp_path):
    rows = "image,hypothesis,label\na.jpg,it rains,entailment\na.jpg,it snows,no\n"
    (tmp_path / "true.csv").write_text(rows, encoding="utf-8")
    (tmp_path / "said.csv").write_text(rows.replace("entailment", "yes"), encoding="utf-8")
    assert evaluate_files(tmp_path / "said.csv", tmp_path / "true.csv", task="entailment").scores["accuracy"] == 100


def test_confidences_of_a_table_of_answers_count(tmp_path):
    rows = "image,question,answer,confidence\na.jpg,what?,cat,0.3\na.jpg,what?,dog,1\n"
    (tmp_path / "true.csv").write_text(rows, encoding="utf-8")
    (tmp_path / "said.csv").write_text("file,question,answer,score\na.jpg,what?,cat,0.9\n", encoding="utf-8")
    result = evaluate_files(tmp_path / "said.csv", tmp_path / "true.csv", task="vqa")
    assert result.scores["vqa_accuracy"] == pytest.approx(30)


def test_answers_of_a_file_are_scored_by_their_confidence(tmp_path):
    paths = tmp_path / "predictions.jsonl", tmp_path / "references.jsonl"
    paths[0].write_text('{"question_id": 1, "answer": "red"}\n', encoding="utf-8")
    paths[1].write_text('{"question_id": 1, "answer": {"blue": 1.0, "red": 0.3}}\n', encoding="utf-8")
    assert evaluate_files(*paths, task="vqa").scores["vqa_accuracy"] == pytest.approx(30)


def test_the_table_shows_the_three_published_scores():
    result = evaluate_predictions(PREDICTIONS, REFERENCES)
    assert [line.split()[0] for line in result.table().splitlines()] == ["CIDEr-D", "BLEU-4", "ROUGE-L", "images"]
    assert f"{result.scores['rouge_l']:.2f}" in result.table()
