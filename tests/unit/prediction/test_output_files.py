"""Promises of `ofa_hf.prediction.output_files`: texts beside images and spreadsheets."""

import os

import pytest

from ofa_hf.errors import UserError
from ofa_hf.prediction.output_files import TextFiles, check_output, record_of, refuse_changed_sheet, write_sheet
from ofa_hf.prediction.outputs import AnswerFile, Format


TWO = [{"text": "红色\n裙子", "score": -0.5}, {"text": "=蓝色", "score": -0.75}]


@pytest.fixture
def names(tmp_path):
    files = [str(tmp_path / name) for name in ("a.jpg", "item.jpg", "item.png")]
    for file in files:
        open(file, "w").close()
    return files


def test_each_image_gets_a_text_of_its_own_and_keeps_one_that_is_there(names, tmp_path):
    (tmp_path / "item.png.txt").write_text("我的", encoding="utf-8")
    (tmp_path / "b.caption").write_text("也是我的", encoding="utf-8")
    with TextFiles([*names, str(tmp_path / "b.jpg")]) as output:
        assert [name in output.done for name in names] == [False, False, True]
        assert str(tmp_path / "b.jpg") in output.done, "a text of another suffix is not shadowed"
        for name in names[:2]:
            output.write(name, TWO)
        assert all(name in output.done for name in names)
        assert output.answers_to(names)[names[2]] == ["我的"]
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "红色 裙子\n=蓝色\n"
    assert (tmp_path / "item.jpg.txt").exists()
    with pytest.raises(UserError, match="is a link"):
        TextFiles(["https://example.com/a.jpg"])


def test_a_spreadsheet_has_the_columns_of_a_csv_and_no_formulas(tmp_path):
    openpyxl = pytest.importorskip("openpyxl", reason="needs the extra tables")
    path, format = tmp_path / "captions.xlsx", Format("caption", 2)
    assert record_of(path) == tmp_path / "captions.jsonl"
    with AnswerFile(record_of(path), format) as output:
        output.write("a\x01.jpg", TWO)
    write_sheet(record_of(path), path, format)
    rows = list(openpyxl.load_workbook(path).active.iter_rows())
    assert [cell.value for cell in rows[0]] == ["file", "caption", "score", "caption_2", "score_2"]
    assert [cell.value for cell in rows[1]] == ["a\ufffd.jpg", "红色\n裙子", -0.5, "=蓝色", -0.75]
    assert rows[1][3].data_type == "s"


def test_an_output_that_cannot_be_written_is_refused_at_once(tmp_path, monkeypatch):
    check_output(None)
    check_output(tmp_path / "new" / "a.csv")
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "a.csv", tmp_path):
        with pytest.raises(UserError, match="cannot be written"):
            check_output(path)
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    with pytest.raises(UserError, match=r"ofa-hf\[tables\]"):
        check_output(tmp_path / "a.xlsx")


@pytest.mark.skipif(os.geteuid() == 0, reason="needs a user who may not write everywhere; this one is root")
def test_a_folder_without_permission_is_refused(names, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written"):
        TextFiles(names)
    tmp_path.chmod(0o700)


def test_a_spreadsheet_that_somebody_corrected_is_not_replaced(tmp_path):
    openpyxl = pytest.importorskip("openpyxl", reason="needs the extra tables")
    path, record, format = tmp_path / "captions.xlsx", tmp_path / "captions.jsonl", Format("caption", 1)
    refuse_changed_sheet(record, path, format)
    for name in ("a\x01.jpg", "b.jpg"):
        with AnswerFile(record, format) as output:
            output.write(name, [{"text": " =1\n二", "score": -0.0027214369979701794}])
        refuse_changed_sheet(record, path, format)  # the record is ahead after the first round
        write_sheet(record, path, format)
        refuse_changed_sheet(record, path, format)
    workbook = openpyxl.load_workbook(path)
    workbook.active["B3"] = "改好的标题"
    workbook.save(path)
    with pytest.raises(UserError, match=r"was changed since it was made from captions\.jsonl"):
        refuse_changed_sheet(record, path, format)
    write_sheet(record, path, format)
    record.unlink()
    with pytest.raises(UserError, match="would be replaced"):
        refuse_changed_sheet(record, path, format)
