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


def test_a_task_whose_answers_are_no_texts_is_not_scored_as_one(files):
    with pytest.raises(UserError, match="Answers of the task grounding cannot be scored: they are boxes"):
        evaluate_files(*files, task="grounding")


def test_the_table_shows_the_three_published_scores():
    result = evaluate_predictions(PREDICTIONS, REFERENCES)
    assert [line.split()[0] for line in result.table().splitlines()] == ["CIDEr-D", "BLEU-4", "ROUGE-L", "images"]
    assert f"{result.scores['rouge_l']:.2f}" in result.table()
