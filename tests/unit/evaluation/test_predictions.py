"""Promises of `ofa_hf.evaluation.predictions`: every bad line is named."""

import json

import pytest

from ofa_hf.errors import UserError
from ofa_hf.evaluation.predictions import read_predictions, read_references, write_submission


@pytest.fixture
def write(tmp_path):
    def write(*lines: str, name: str = "file.jsonl"):
        path = tmp_path / name
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return path

    return write


def test_a_prediction_may_be_a_text_or_a_list_of_one_and_an_id_a_number(write):
    path = write('\ufeff{"image_id": "a", "text": "红围巾"}', "", '{"image_id": 7, "text": ["白杯子"]}')
    assert read_predictions(path) == {"a": "红围巾", "7": "白杯子"}


def test_references_keep_their_order_and_lose_blank_captions(write):
    assert read_references(write('{"image_id": "a", "text": ["二", " ", "一"]}')) == {"a": ["二", "一"]}


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "3", '{"image_id": "a"}', '{"text": "x"}', '{"image_id": null, "text": "x"}', '"x"']
    + ['{"image_id": "a", "text": 3}', '{"image_id": "a", "text": [3]}', '{"image_id": true, "text": "x"}'],
)
def test_a_malformed_line_is_named_with_its_number(write, line):
    path = write('{"image_id": "b", "text": "x"}', line)
    with pytest.raises(UserError, match="line 2 is malformed"):
        read_predictions(path)
    with pytest.raises(UserError, match="line 2 is malformed"):
        read_references(path)


@pytest.mark.parametrize("read", [read_predictions, read_references])
def test_duplicate_ids_empty_missing_and_binary_files_are_said(write, tmp_path, read):
    line = '{"image_id": "a", "text": "x"}'
    with pytest.raises(UserError, match="line 2: a"):
        read(write(line, line))
    with pytest.raises(UserError, match="is empty"):
        read(write())
    with pytest.raises(UserError, match="Cannot read"):
        read(tmp_path / "nowhere.jsonl")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match="not UTF-8"):
        read(tmp_path / "binary")


def test_two_predictions_for_one_image_are_refused(write):
    with pytest.raises(UserError, match="has 2 captions"):
        read_predictions(write('{"image_id": "a", "text": ["x", "y"]}'))


def test_an_image_without_reference_is_refused(write):
    with pytest.raises(UserError, match="line 1: a has no caption"):
        read_references(write('{"image_id": "a", "text": []}'))


def test_a_submission_is_in_muges_form_and_can_be_scored_again(tmp_path):
    path = tmp_path / "new/out.jsonl"
    write_submission({"a": "红围巾", "b": ""}, path)
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [
        {"image_id": "a", "text": "红围巾"},
        {"image_id": "b", "text": ""},
    ]
    assert read_predictions(path) == {"a": "红围巾", "b": ""}


def test_half_characters_are_replaced_since_no_file_can_hold_them(write, tmp_path):
    predictions = read_predictions(write('{"image_id": "1", "text": "红\\ud83d"}'))
    assert predictions == {"1": "红\ufffd"}
    write_submission(predictions, tmp_path / "submission.jsonl")


def test_a_line_nested_without_end_is_malformed(write):
    with pytest.raises(UserError, match="line 1 is malformed"):
        read_predictions(write("[" * 100_000))
