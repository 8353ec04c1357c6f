"""Promises of `ofa-hf evaluate`."""

import json

import pytest
import tiny_shop
from PIL import Image

from ofa_hf.cli import main


@pytest.fixture
def files(tmp_path):
    predictions = {"a": "红色围巾", "b": "白色杯子"}
    references = {"a": ["红色的围巾"], "b": ["白色陶瓷杯子", "杯子"]}
    paths = tmp_path / "p.jsonl", tmp_path / "r.jsonl"
    for path, captions in zip(paths, (predictions, references)):
        path.write_text("".join(json.dumps({"image_id": i, "text": t}) + "\n" for i, t in captions.items()))
    return [str(path) for path in paths]


def test_the_last_line_of_stdout_is_json_with_percentages(files, capsys):
    assert main(["evaluate", "--predictions", files[0], "--captions", files[1], "--json"]) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"bleu_4", "rouge_l", "cider_d"} <= scores.keys()
    assert 1 < scores["rouge_l"] <= 100


def test_results_page_and_submission_are_written(files, tmp_path, capsys):
    outputs = [tmp_path / name for name in ("scores.json", "page.html", "submission.jsonl")]
    arguments = ["--output", str(outputs[0]), "--report", str(outputs[1]), "--submission", str(outputs[2])]
    assert main(["evaluate", "--predictions", files[0], "--captions", files[1], *arguments]) == 0
    assert "CIDEr-D" in capsys.readouterr().out
    assert all(path.stat().st_size for path in outputs)


def test_a_part_can_be_scored_on_purpose(files, capsys):
    assert main(["evaluate", "--predictions", files[0], "--captions", files[1], "--limit", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_images"] == 1


def test_a_model_is_scored_and_writes_a_submission_of_all_images(files, tmp_path, capsys):
    model, images = tiny_shop.write_model(tmp_path / "model"), tmp_path / "images"
    images.mkdir()
    for name in ("a", "b", "c"):
        Image.new("RGB", (40, 40), "red").save(images / f"{name}.png")
    model_and_images = ["evaluate", "--model", str(model), "--images", str(images), "--device", "cpu"]
    assert main([*model_and_images, "--captions", files[1], "--task", "caption", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["num_images"] == 2
    assert main([*model_and_images, "--submission", str(tmp_path / "submission.jsonl")]) == 0
    assert "3 answers in" in capsys.readouterr().err
    assert len((tmp_path / "submission.jsonl").read_text(encoding="utf-8").splitlines()) == 3
    assert main([*model_and_images, "--captions", files[1], "--task", "nothing"]) == 1
    assert "no task 'nothing'" in capsys.readouterr().err


def test_a_bad_file_is_one_clear_line_and_exit_1(files, tmp_path, capsys):
    (tmp_path / "bad.jsonl").write_text("{\n")
    assert main(["evaluate", "--predictions", str(tmp_path / "bad.jsonl"), "--captions", files[1]]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert "bad.jsonl, line 1 is malformed" in errors[0]


@pytest.mark.parametrize(
    "arguments",
    [["--predictions", "p"], ["--model", "m"], ["--model", "m", "--images", "i"], ["--captions", "c"]]
    + [["--model", "m", "--images", "i", "--submission", "s", "--json"], ["--predictions", "p", "--model", "m"]],
)
def test_options_that_make_no_sense_together_are_a_usage_error(arguments):
    with pytest.raises(SystemExit) as exit_:
        main(["evaluate", *arguments])
    assert exit_.value.code == 2
