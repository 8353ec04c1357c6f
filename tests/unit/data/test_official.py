"""Promises of `ofa_hf.data.official`: the original's files as they are, every bad line counted."""

import base64
import importlib.util

import pytest

from ofa_hf.data import report_of
from ofa_hf.data.official import FORMS, clean_read_text, load_official
from ofa_hf.errors import UserError
from ofa_hf.tasks_ofa import TASKS


@pytest.fixture
def load(tmp_path, jpeg):
    """Writes lines whose `IMAGE` is an image, and loads them as a task's file."""

    def load(task: str, *lines: str, language: str = "en", **options):
        image = base64.b64encode(jpeg(1)).decode()
        path = tmp_path / f"{task}.tsv"
        path.write_text("".join(line.replace("IMAGE", image) + "\n" for line in lines), encoding="utf-8")
        return load_official(path, TASKS[task], language, num_proc=0, cache_dir=tmp_path / "cache", **options)

    return load


def test_captions_are_cleaned_for_training_and_split_for_scoring(load):
    line = "7\t42\tA dog, running -- fast!&&two dogs\tdog\tIMAGE"
    (row,) = load("caption", line)
    assert (row["id"], row["targets"]) == ("7", ["A dog running fasttwo dogs"])
    (row,) = load("caption", line, is_test=True)
    assert (row["id"], row["targets"]) == ("42", ["A dog, running -- fast!", "two dogs"])


def test_answers_have_their_confidences_and_the_best_is_the_target(load):
    (row,) = load("vqa", "1\t9\tWhat is it?\t0.3|!+cat&&1.0|!+dog\tdog&&ball\tIMAGE", more_fields=["objects"])
    assert (row["targets"], row["confidence"]) == (["dog"], 1.0)
    assert row["references"] == [{"text": "cat", "confidence": 0.3}, {"text": "dog", "confidence": 1.0}]
    assert (row["question"], row["objects"]) == ("What is it?", "dog&&ball")


def test_boxes_stand_in_other_columns_in_chinese(load):
    for language, line in (("en", "1\t2\ta dog\t0,0,9.5,9\tIMAGE"), ("zh", "1\ta dog\t0,0,9.5,9\tIMAGE")):
        (row,) = load("grounding", line, language=language)
        assert (row["text"], row["targets"]) == ("a dog", ["0,0,9.5,9"])


def test_labels_have_the_original_numbers(load):
    rows = load("mnli", "a b\tc d\t0", "e\tf\t2", "g\th\t7")
    assert [row["targets"] for row in rows] == [["maybe"], ["no"]]
    assert report_of(rows).problems == {"unfit answer": 1}
    assert [row["targets"] for row in load("entailment", "1\tx\tIMAGE\tit is\ta cat\tneutral")] == [["maybe"]]


def test_bad_lines_are_counted_and_the_others_kept(load):
    good = "1\ta dog\t0,0,9,9\tIMAGE"
    bad = [
        "2\ta dog",
        "3\t\t0,0,9,9\tIMAGE",
        "4\tx\t0,0,99,9\tIMAGE",
        "5\tx\t0,0,9,9\t!!",
        "\tx\t0,0,9,9\tIMAGE",
        good,
    ]
    rows = load("grounding", good, *bad, language="zh")
    assert rows["id"] == ["1"]
    expected = {"malformed line": 1, "missing field": 1, "unfit answer": 1, "broken image": 1, "missing id": 1}
    assert report_of(rows).problems == {**expected, "duplicate id": 1}


def test_columns_can_be_named_as_in_the_scripts(load):
    (row,) = load("caption", "two dogs\tIMAGE\tx", selected_cols="2,1,0")
    assert (row["id"], row["targets"]) == ("x", ["two dogs"])
    with pytest.raises(UserError, match="selected_cols is '0,x'; it must be the columns of id, image, target in this"):
        load("caption", "a", selected_cols="0,x")


def test_tasks_and_prompts_without_files_are_refused(load, tmp_path):
    with pytest.raises(
        UserError, match="The official code has no files for the task region_caption. Accepted with data_fo"
    ):
        load("region_caption", "x")
    with pytest.raises(UserError, match="asks for objects, which official files do not have"):
        load("grounding", "1\ta\t0,0,9,9\tIMAGE", language="zh", more_fields=["objects"])
    assert set(FORMS) == set(TASKS) - {"region_caption"}


def test_read_texts_are_lowercase_compatible_and_cut():
    assert clean_read_text("ＡＢＣ  Ｄ", "en", 1) == "abc"
    assert clean_read_text("ＡＢＣ１２３", "zh", 4) == "abc1"
    if importlib.util.find_spec("zhconv"):
        assert clean_read_text("臺灣", "zh") == "台湾"
    else:
        with pytest.raises(UserError, match=r"pip install 'ofa-hf\[official\]'"):
            clean_read_text("臺灣", "zh")
