import csv
import json
import math

import pytest

from ofa_hf.errors import UserError
from ofa_hf.prediction.files import Request
from ofa_hf.prediction.loop import Prediction
from ofa_hf.prediction.outputs import AnswerFile, AnswerPrinter, Box, Format
from ofa_hf.prediction.questions import Inputs


ONE = [{"text": '红色的"裙子"', "score": -0.5}]
TWO = [*ONE, {"text": "蓝色,裙子", "score": -0.75}]


def named(answer: dict) -> dict:
    """An answer as a caption file has it."""
    return {"caption": answer["text"], "score": answer["score"]}


def test_a_jsonl_file_has_one_object_an_image(tmp_path):
    with AnswerFile(tmp_path / "new" / "captions.jsonl", Format("caption", 2)) as output:
        output.write("a.jpg", TWO)
    row = json.loads((tmp_path / "new" / "captions.jsonl").read_text(encoding="utf-8"))
    assert row == {"file": "a.jpg", "caption": '红色的"裙子"', "score": -0.5, "captions": list(map(named, TWO))}


def test_a_csv_file_has_one_row_an_image(tmp_path):
    path = tmp_path / "captions.csv"
    with AnswerFile(path, Format("caption", 2)) as output:
        output.write("a, b.jpg", TWO)
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["file"], row["caption"], row["caption_2"], row["score_2"]) for row in rows] == [
        ("a, b.jpg", '红色的"裙子"', "蓝色,裙子", "-0.75")
    ]


@pytest.mark.parametrize("name", ["captions.jsonl", "captions.csv"])
def test_a_run_killed_at_any_byte_is_continued_without_a_half_or_a_double_line(tmp_path, name):
    path, files = tmp_path / name, ["a.jpg", 'b "quoted"\nline.jpg', "c.jpg"]
    with AnswerFile(path, Format("caption", 1)) as output:
        for file in files:
            output.write(file, ONE)
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        with AnswerFile(path, Format("caption", 1)) as output:
            for file in files:
                if str(tmp_path.cwd() / file) not in output.done:
                    output.write(file, ONE)
        assert path.read_bytes() == whole, cut


@pytest.mark.parametrize("name", ["captions.jsonl", "captions.csv"])
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path, name):
    path = tmp_path / name
    for notes in ("my notes\nof today", "my notes"):
        path.write_text(notes, encoding="utf-8")
        with pytest.raises(UserError, match="was not written by such a run"):
            AnswerFile(path, Format("caption", 1))
        assert path.read_text(encoding="utf-8") == notes


def test_csv_columns_that_differ_are_refused(tmp_path):
    with AnswerFile(tmp_path / "captions.csv", Format("caption", 1)) as output:
        output.write("a.jpg", ONE)
    with pytest.raises(UserError, match="same number of captions"):
        AnswerFile(tmp_path / "captions.csv", Format("caption", 2))


@pytest.mark.parametrize("name", ["captions.jsonl", "captions.csv"])
def test_a_file_of_several_models_is_continued_for_each_of_them(tmp_path, name):
    path = tmp_path / name
    for model, captions in (("shop/a", ONE), ("shop/b", TWO[1:])):
        with AnswerFile(path, Format("caption", 1, model)) as output:
            assert output.done == set()
            output.write("a.jpg", captions)
    with AnswerFile(path, Format("caption", 1, "shop/b")) as output:
        assert output.done == {str(tmp_path.cwd() / "a.jpg")}
        assert output.answers() == {str(tmp_path.cwd() / "a.jpg"): ["蓝色,裙子"]}
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith(("a.jpg,shop/b", '{"file": "a.jpg", "model": "shop/b"'))]


@pytest.mark.parametrize("name", ["captions.jsonl", "captions.csv"])
def test_captions_of_one_model_and_of_several_do_not_mix(tmp_path, name):
    for first, then in ((None, "shop/a"), ("shop/a", None)):
        path = tmp_path / f"{first is None}_{name}"
        with AnswerFile(path, Format("caption", 1, first)) as output:
            output.write("a.jpg", ONE)
        with pytest.raises(UserError, match="for one model or for several"):
            AnswerFile(path, Format("caption", 1, then))


@pytest.mark.parametrize("name", ["captions.jsonl", "captions.csv"])
def test_what_was_written_can_be_read_again(tmp_path, name):
    with AnswerFile(tmp_path / name, Format("caption", 2)) as output:
        output.write('b "quoted"\nline.jpg', TWO)
        assert output.answers() == {str(tmp_path.cwd() / 'b "quoted"\nline.jpg'): [row["text"] for row in TWO]}


def test_an_unknown_ending_and_a_second_writer_are_refused(tmp_path):
    with pytest.raises(UserError, match="no known suffix"):
        AnswerFile(tmp_path / "captions.txt", Format("caption", 1))
    with (
        AnswerFile(tmp_path / "captions.jsonl", Format("caption", 1)),
        pytest.raises(UserError, match="being written by another run"),
    ):
        AnswerFile(tmp_path / "captions.jsonl", Format("caption", 1))


def test_the_screen_shows_one_caption_a_line(capsys):
    AnswerPrinter(Format("caption", 2), as_json=False, with_names=False).write("a.jpg", TWO)
    AnswerPrinter(Format("caption", 2), as_json=False, with_names=True).write("a.jpg", ONE)
    AnswerPrinter(Format("caption", 2), as_json=True, with_names=True).write("a.jpg", ONE)
    AnswerPrinter(Format("caption", 1, "shop/a"), as_json=False, with_names=True).write("a.jpg", ONE)
    AnswerPrinter(Format("caption", 1, "shop/a"), as_json=True, with_names=True).write("a.jpg", ONE)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ['红色的"裙子"', "蓝色,裙子", 'a.jpg\t红色的"裙子"']
    assert json.loads(lines[3]) == {"file": "a.jpg", **named(ONE[0])}
    assert lines[4] == 'a.jpg\tshop/a\t红色的"裙子"'
    assert json.loads(lines[5]) == {"file": "a.jpg", "model": "shop/a", **named(ONE[0])}


def spreadsheet(path, encoding: str, separator: str = ",") -> None:
    """Save a CSV as a spreadsheet does."""
    rows = csv.reader(path.read_text(encoding="utf-8-sig").splitlines())
    text = "".join(separator.join(row) + "\r\n" for row in rows)
    path.write_bytes(text.encode(encoding))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["gb18030", "utf-8", "utf-8-sig"])
def test_a_csv_that_a_spreadsheet_saved_again_is_continued_in_its_form(tmp_path, encoding, separator):
    path, format = tmp_path / "captions.csv", Format("caption", 1)
    with AnswerFile(path, format) as output:
        assert path.read_bytes().startswith(b"\xef\xbb\xbf"), "spreadsheets need the mark"
        output.write("a.jpg", [{"text": "红色裙子", "score": -0.5}])
    spreadsheet(path, encoding, separator)
    before = path.read_bytes()
    with AnswerFile(path, format) as output:
        assert output.done == {str(tmp_path.cwd() / "a.jpg")}
        output.write("b.jpg", [{"text": "蓝色裙子", "score": -0.75}])
        assert list(output.answers().values()) == [["红色裙子"], ["蓝色裙子"]]
    added = separator.join(("b.jpg", "蓝色裙子", "-0.75")) + "\r\n"
    assert path.read_bytes() == before + added.encode(encoding.removesuffix("-sig"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("file,caption,score\na.jpg,红,-1\n".encode("utf-16"), "save it as CSV UTF-8"),
        ("file,caption,score\na.jpg,红色裙子,-1\n".encode("gbk") + "b.jpg,蓝色,-1\n".encode(), "two encodings"),
        ("file,caption\na.jpg,红\n".encode(), "first line is not"),
        ("file,caption,score\r\n照片/紅.jpg,紅色連衣裙,-1\r\n".encode("big5"), "another encoding.*UTF-8"),
        ("file;caption;score\r\na.jpg;une robe été;-1\r\n".encode("cp1252"), "another encoding.*UTF-8"),
    ],
)
def test_a_csv_in_a_form_that_cannot_be_continued_is_refused_and_left_alone(tmp_path, data, message):
    (tmp_path / "captions.csv").write_bytes(data)
    with pytest.raises(UserError, match=message):
        AnswerFile(tmp_path / "captions.csv", Format("caption", 1))
    assert (tmp_path / "captions.csv").read_bytes() == data


@pytest.mark.parametrize("name", ["captions.jsonl", "captions.csv"])
def test_an_image_is_known_by_what_it_is_from_whatever_folder(tmp_path, monkeypatch, name):
    path = tmp_path / name
    for shop in ("shop1", "shop2"):
        (tmp_path / shop).mkdir()
        (tmp_path / shop / "front.jpg").touch()
        monkeypatch.chdir(tmp_path / shop)
        with AnswerFile(path, Format("caption", 1)) as output:
            assert str(tmp_path / shop / "front.jpg") not in output.done
            output.write("front.jpg", ONE)
    monkeypatch.chdir(tmp_path)
    with AnswerFile(path, Format("caption", 1)) as output:
        assert output.done == {str(tmp_path / shop / "front.jpg") for shop in ("shop1", "shop2")}
        (tmp_path / "own.jpg").touch()
        output.write("own.jpg", ONE)
    assert b"own.jpg" in path.read_bytes().splitlines()[-1]
    assert str(tmp_path / "own.jpg").encode() not in path.read_bytes(), "the folder may move"
    monkeypatch.chdir("/")
    with AnswerFile(path, Format("caption", 1)) as output:
        assert str(tmp_path / "own.jpg") in output.done


def test_boxes_are_written_inside_their_image_and_read_again(tmp_path):
    request = Request("ground", "box", Inputs(()), [], threshold=0.5)
    box = {"xmin": 30.004, "ymin": -2.0, "xmax": 10.0, "ymax": 99.0}
    answers = [{"box": box, "score": math.log(0.6)}, {"box": box, "score": math.log(0.4)}]
    written = request.written(Prediction(("a.jpg", "红"), answers, (40, 50)))
    format = Format("box", 2, names=("file", "text"), has_boxes=True)
    expected = [Box((10.0, 0.0, 30.0, 50.0), pytest.approx(0.6), (40, 50)), Box(None, pytest.approx(0.4), (40, 50))]
    for name in ("boxes.csv", "boxes.jsonl"):
        with AnswerFile(tmp_path / name, format) as output:
            output.write(("a.jpg", "红"), written)
            assert list(output.answers().values()) == [expected]


@pytest.mark.parametrize("kept", ["a.jpg,红,-0.5", 'a.jpg,"红, 绿",-0.5'])
def test_the_last_row_of_a_spreadsheet_counts_without_a_line_end_and_a_torn_one_does_not(tmp_path, kept):
    path, format = tmp_path / "captions.csv", Format("caption", 1)
    path.write_bytes(f"file,caption,score\r\n{kept}".encode("gbk"))
    with AnswerFile(path, format) as output:
        assert output.done == {str(tmp_path.cwd() / "a.jpg")}
        output.write("b.jpg", [{"text": "蓝", "score": -1}])
    assert path.read_bytes() == f"file,caption,score\r\n{kept}\r\nb.jpg,蓝,-1\r\n".encode("gbk")
    for torn in ("c.jpg,黄", 'c.jpg,"黄,-1', "c.jpg,黄,-"):
        path.write_bytes(f"file,caption,score\r\n{kept}\r\n{torn}".encode("gbk"))
        with AnswerFile(path, format) as output:
            assert len(output.done) == 1
    path.write_bytes("\ufefffile,caption,score\na.jpg,红,-1\nb.jpg,绿,-0.2".encode())  # ours, torn
    with AnswerFile(path, format) as output:
        assert len(output.done) == 1
