"""Promises of `ofa_hf.evaluation.evaluate`."""

import json

from ofa_hf.evaluation.evaluate import evaluate_predictions


PREDICTIONS = {"a": "红色围巾", "b": "白色杯子"}
REFERENCES = {"a": ["红色的围巾"], "b": ["白色陶瓷杯子", "杯子"]}


def test_the_result_says_what_was_run_and_with_which_versions(tmp_path):
    result = evaluate_predictions(PREDICTIONS, REFERENCES, {"model": "shop/ofa", "num_beams": 5})
    result.save(tmp_path / "results/scores.json")
    saved = json.loads((tmp_path / "results/scores.json").read_text(encoding="utf-8"))
    assert saved["scores"] == result.scores.as_dict()
    assert saved["run"] == {"model": "shop/ofa", "num_beams": 5}
    assert {"python", "torch", "transformers"} <= saved["versions"].keys()


def test_files_and_mappings_give_the_same_scores(tmp_path):
    predictions, references = tmp_path / "p.jsonl", tmp_path / "r.jsonl"
    for path, captions in ((predictions, PREDICTIONS), (references, REFERENCES)):
        path.write_text("".join(json.dumps({"image_id": i, "text": t}) + "\n" for i, t in captions.items()))
    from_files = evaluate_predictions(predictions, str(references))
    assert from_files.scores == evaluate_predictions(PREDICTIONS, REFERENCES).scores
    assert from_files.run == {"predictions": str(predictions), "captions": str(references)}


def test_the_table_shows_the_three_published_scores():
    result = evaluate_predictions(PREDICTIONS, REFERENCES)
    assert [line.split()[0] for line in result.table().splitlines()] == ["CIDEr-D", "BLEU-4", "ROUGE-L", "images"]
    assert f"{result.scores['rouge_l']:.2f}" in result.table()
