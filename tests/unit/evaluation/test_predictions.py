"""Promises of `ofa_hf.evaluation.predictions`: every bad line is named."""

import json

import pytest

from ofa_hf.data.sources import TableForm
from ofa_hf.errors import UserError
from ofa_hf.evaluation.evaluate import evaluate_files
from ofa_hf.evaluation.predictions import read_predictions, read_references, same_names, write_submission
from ofa_hf.tasks_ofa import TASKS


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
    + ['{"image_id": "a", "text": true}', '{"image_id": "a", "text": [true]}', '{"image_id": true, "text": "x"}'],
)
def test_a_malformed_prediction_is_refused_and_a_malformed_reference_left_out_and_counted(write, line, caplog):
    path = write('{"image_id": "b", "text": "x"}', line)
    with pytest.raises(UserError, match="line 2 is malformed"):
        read_predictions(path)
    assert read_references(path) == {"b": ["x"]}
    assert "1 × malformed line. First:" in caplog.text
    assert "line 2: malformed line" in caplog.text


@pytest.mark.parametrize("read", [read_predictions, read_references])
def test_empty_missing_and_binary_files_are_said(write, tmp_path, read):
    with pytest.raises(UserError, match="is empty"):
        read(write())
    with pytest.raises(UserError, match="Cannot read"):
        read(tmp_path / "nowhere.jsonl")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match="has no column"):
        read(tmp_path / "binary")


def test_two_predictions_for_one_image_are_refused(write):
    with pytest.raises(UserError, match="has 2 captions"):
        read_predictions(write('{"image_id": "a", "text": ["x", "y"]}'))


def test_an_image_that_is_predicted_twice_is_refused_and_its_references_are_joined(write):
    path = write('{"image_id": "a", "text": "x"}', '{"image_id": "a", "text": ["y"]}')
    with pytest.raises(UserError, match="line 2: a"):
        read_predictions(path)
    assert read_references(path) == {"a": ["x", "y"]}


def test_whatever_finetuning_takes_and_captioning_writes_is_read(tmp_path):
    (tmp_path / "own.csv").write_bytes("图片;标题\na.jpg;红\n./a.jpg;围巾\n".encode("gb18030"))
    assert read_references(tmp_path / "own.csv", same=lambda name: name.removeprefix("./")) == {
        "a.jpg": ["红", "围巾"]
    }
    (tmp_path / "out.csv").write_text("file,caption,score\nphotos/a.jpg,红,-1.5\n", encoding="utf-8-sig")
    (tmp_path / "out.jsonl").write_text('{"file": "photos/a.jpg", "caption": "红", "score": -1.5}\n', encoding="utf-8")
    for name in ("out.csv", "out.jsonl"):
        assert read_predictions(tmp_path / name) == read_predictions(tmp_path / name) == {"photos/a.jpg": "红"}
    form = TableForm(caption_column="b", image_column="a", encoding="gbk", separator="~")
    (tmp_path / "odd.csv").write_bytes("a~b\nx~红\n".encode("gbk"))
    assert read_references(tmp_path / "odd.csv", form) == {"x": ["红"]}


def test_predictions_are_matched_by_the_end_of_their_path_but_never_to_two(tmp_path):
    references = {"a.jpg": [], "shop/b": [], "x/c.jpg": [], "y/c.jpg": [], "item.jpg": [], "item.png": []}
    predictions = {"/data/a.jpg": 1, "D:\\shop\\B.png": 2, "c.jpg": 3, "p/item.png": 4, "p/item": 5, "y/c.jpg": 6}
    expected = {"a.jpg": 1, "shop/b": 2, "c.jpg": 3, "item.png": 4, "p/item": 5, "y/c.jpg": 6}
    assert same_names(predictions, references) == expected


def test_references_without_any_caption_are_refused(write):
    with pytest.raises(UserError, match=r"no targets \(a\): nothing to compare with\. .*use --submission"):
        read_references(write('{"image_id": "a", "text": []}'))


def test_an_image_without_caption_is_left_out_and_its_prediction_too(write, caplog):
    references = write('{"image_id": "a", "text": []}', '{"image_id": "b", "text": "红"}', "{", name="r.jsonl")
    answers = ['{"image_id": "a", "text": "白"}', '{"image_id": "b", "text": "红"}']
    result = evaluate_files(write(*answers), references)
    assert result.predictions == {"b": "红"}
    assert result.run["references_left_out"] == 2
    assert "1 × malformed line, 1 × no targets" in caplog.text
    more = (f'{{"image_id": "{number}", "text": "红"}}' for number in range(3))
    with pytest.raises(UserError, match="no reference"):
        evaluate_files(write(*answers, *more), references)


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


def test_a_number_is_an_answer_as_it_is_for_finetuning(write):
    path = write('{"image_id": "a", "text": 12}', '{"image_id": "b", "text": NaN}')
    assert read_predictions(path) == {"a": "12", "b": ""}


def test_a_malformed_row_of_a_csv_is_not_told_to_be_json(tmp_path):
    (tmp_path / "c.csv").write_text("image,caption\na.jpg,red,blue\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"in quotes\. Correct"):
        read_references(tmp_path / "c.csv")


def test_a_row_that_calls_its_answer_otherwise_costs_no_other_row(write, caplog):
    lines = '{"image_id": "1", "text": ["红"]}\n{"image_id": "2", "caption": "绿"}\n'
    assert read_references(write(lines), task=TASKS["caption"]) == {"1": ["红"], "2": ["绿"]}
    assert "is read as jsonl, utf-8, image in column image_id, caption in column caption." in caplog.text


def test_a_text_without_an_image_is_left_out_as_what_it_is(tmp_path, caplog):
    for name, data in (("a.jpg", b"x"), ("a.txt", "红".encode()), ("b.txt", "绿".encode())):
        (tmp_path / name).write_bytes(data)
    assert read_references(tmp_path) == {"a.jpg": ["红"]}
    assert "1 × targets without image. First:" in caplog.text
    assert "Expected" not in caplog.text
