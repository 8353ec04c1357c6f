"""Promises of `ofa_hf.prediction.filling` and `ofa-hf fill`: every row, its columns filled with scores."""

import csv
import json

import pytest
import tiny_shop
from PIL import Image

from ofa_hf.cli import main
from ofa_hf.models import load_model
from ofa_hf.prediction import filling, loop
from ofa_hf.prediction.filling import Filling, column_tasks
from ofa_hf.prediction.loop import predict


CLOSED = {"answer": "choice", "choices": ["红", "绿", "蓝"], "metric": "accuracy"}
TASKS = {
    "caption": {},
    "颜色": {"prompt": "什么颜色?", **CLOSED},
    "形": {"prompt": "{名}是方的?", "answer": "choice", "choices": ["方块", "图片"], "metric": "accuracy"},
    "说": {"prompt": "好看?", "generation": {"max_length": 6}, "metric": "ocr"},
}
TABLE = """图片,名,颜色,价
0.png,方块,,"1,5"
1,红色,黄,2
gone.png,白,,3
2.png,,,4
,黑,,5
0.png,绿,,6
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_shop.write_model(tmp_path_factory.mktemp("filling") / "model", TASKS))


@pytest.fixture
def fill(model, tmp_path, monkeypatch, capsys):
    """`fill(*arguments)` → (exit status, stderr), in a folder with a table and its images."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "goods.csv").write_text(TABLE, encoding="utf-8")
    (tmp_path / "images").mkdir()
    for number, colour in enumerate(("red", "lime", "blue")):
        Image.new("RGB", (40, 40 + number), colour).save(tmp_path / "images" / f"{number}.png")

    def run(*arguments, table="goods.csv"):
        status = main(["fill", table, "images", "--model", model, *map(str, arguments)])
        return status, capsys.readouterr().err

    return run


def rows_of(path) -> list[dict]:
    if path.suffix == ".jsonl":
        return list(map(json.loads, path.read_text(encoding="utf-8").splitlines()))
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream))


def test_columns_are_filled_in_the_order_of_the_table(model):
    class Table:
        columns = ("图片", "说", "颜色")

    assert list(column_tasks(Filling("goods.csv", None, model, "filled.csv"), Table)) == ["说", "颜色", "形"]


@pytest.mark.parametrize("name", ["filled.csv", "filled.jsonl"])
def test_every_row_has_its_columns_filled_with_scores_and_others_are_untouched(fill, model, tmp_path, name):
    status, err = fill("--output", name)
    rows = rows_of(tmp_path / name)
    assert status == 1
    assert [row["价"] for row in rows] == ["1,5", "2", "3", "4", "5", "6"]
    assert list(rows[0]) == ["图片", "名", "颜色", "价", "颜色_score", "形", "形_score", "说", "说_score"]
    assert rows[1]["颜色"] == "黄"  # has a value already
    assert not rows[1]["颜色_score"]
    loaded, image = load_model(model), tmp_path / "images" / "0.png"
    for column, row in (("颜色", rows[0]), ("形", rows[0]), ("说", rows[5])):
        asked = [{"id": 0, "image": image, "名": row["名"]}]
        (expected,) = predict(*loaded, asked, task=column, return_scores=True)
        assert row[column] == expected.text
        assert float(row[f"{column}_score"]) == pytest.approx(2.718281828 ** expected.answers[0]["score"], abs=1e-4)
    assert rows[2]["颜色"] in ("", None)
    assert rows[3]["颜色"] in ("红", "绿", "蓝")
    assert rows[3]["形"] in ("", None)
    for problem in ("line 4: gone.png: no such file", "line 5: line 5", "line 6: the column 图片 is empty"):
        assert problem.replace("line 5: line 5", "nothing in 名") in err
    assert "6 rows written" in err
    assert "3 rows not filled" in err


@pytest.mark.parametrize("name", ["filled.csv", "filled.jsonl"])
def test_a_run_killed_at_any_row_is_continued(fill, tmp_path, name):
    fill("--output", "whole" + name[6:])
    whole = (tmp_path / ("whole" + name[6:])).read_bytes()
    for share in (0.6, 0.85):
        (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
        _, err = fill("--output", name)
        assert "done before" in err
        assert (tmp_path / name).read_bytes() == whole
    status, err = fill("--output", name)
    assert (status, "3 rows not filled, 3 rows done before" in err) == (1, True)
    assert (tmp_path / name).read_bytes() == whole


@pytest.mark.parametrize("name", ["filled.csv", "filled.jsonl"])
def test_cells_that_could_not_be_filled_are_asked_again_and_nothing_else_is(fill, tmp_path, monkeypatch, name):
    fill("--output", name)
    before = rows_of(tmp_path / name)
    asked = []
    monkeypatch.setattr(filling, "predict", lambda *loaded, **options: recorded(asked, predict(*loaded, **options)))
    (tmp_path / "images" / "gone.png").write_bytes((tmp_path / "images" / "0.png").read_bytes())
    status, err = fill("--output", name)
    assert (status, "3 rows done before" in err, "2 rows not filled" in err) == (1, True, True)
    after = rows_of(tmp_path / name)
    assert [after[number] == before[number] for number in range(6)] == [True, True, False, True, True, True]
    assert after[2]["颜色"] == before[0]["颜色"]
    assert {each.id[0] for each in asked} == {4, 5}  # lines of the table
    assert [path.name for path in tmp_path.glob(".*")] == []


def recorded(seen, predictions):
    for prediction in predictions:
        seen.append(prediction)
        yield prediction


@pytest.mark.parametrize("name", ["filled.csv", "filled.jsonl"])
def test_a_run_killed_while_it_asks_again_loses_nothing(fill, tmp_path, name):
    fill("--output", name)
    old = (tmp_path / name).read_bytes()
    (tmp_path / "images" / "gone.png").write_bytes((tmp_path / "images" / "0.png").read_bytes())
    fill("--output", name)
    new = (tmp_path / name).read_bytes()
    for size in (2, len(new) // 2):
        (tmp_path / name).write_bytes(old)
        (tmp_path / f".{name}.draft").write_bytes(new[:size])  # what was written when the run was killed
        fill("--output", name)
        assert (tmp_path / name).read_bytes() == new, size


def test_a_table_without_rows_is_said(fill, tmp_path):
    (tmp_path / "goods.csv").write_text(TABLE.splitlines()[0] + "\n", encoding="utf-8")
    status, err = fill("--output", "filled.csv")
    assert (status, "Nothing to fill in goods.csv: it has no rows." in err) == (1, True)
    assert not (tmp_path / "filled.csv").exists()


def test_each_image_is_decoded_and_passes_the_resnet_once_for_all_columns(fill, tmp_path, monkeypatch):
    decoded, load = [], loop.load_image
    monkeypatch.setattr(loop, "load_image", lambda image: decoded.append(image) or load(image))
    fill("--output", "filled.csv")
    assert len(decoded) == 4


def test_columns_can_be_chosen_overwritten_and_left_empty_where_the_model_is_unsure(fill, tmp_path):
    fill("--output", "a.csv", "--columns", "颜色", "--overwrite")
    rows = rows_of(tmp_path / "a.csv")
    assert list(rows[0]) == ["图片", "名", "颜色", "价", "颜色_score"]
    assert rows[1]["颜色"] in ("红", "绿", "蓝")
    fill("--output", "b.csv", "--columns", "颜色", "--min-score", "1")
    rows = rows_of(tmp_path / "b.csv")
    assert [row["颜色"] for row in rows] == ["", "黄", "", "", "", ""]
    assert 0 < float(rows[0]["颜色_score"]) < 1
    _, err = fill("--output", "c.csv", table="a.csv")  # a filled table is a table
    assert "4 kept" in err


def test_what_cannot_be_filled_is_refused_before_work(fill, tmp_path):
    (tmp_path / "mine.csv").write_text("years,of,work\n1,2,3\n", encoding="utf-8")
    (tmp_path / "note.csv").write_text("my notes", encoding="utf-8")
    (tmp_path / "no.csv").write_text("name,price\na,2\n", encoding="utf-8")
    (tmp_path / "other.csv").write_text(TABLE.replace("方块", "蓝色"), encoding="utf-8")
    fill("--output", "other_filled.csv", "--columns", "颜色", table="other.csv")
    for arguments, table, problem in (
        (
            ("--output", "x.csv", "--columns", "材质"),
            "goods.csv",
            "cannot fill 材质. Columns that it knows: 形, 说, 颜色; it was also trained for caption.",
        ),
        (("--output", "mine.csv"), "goods.csv", "was not made of goods.csv"),
        (("--output", "note.csv"), "goods.csv", "was not made of goods.csv"),
        (("--output", "goods.csv"), "goods.csv", "is the table itself"),
        (("--output", "x.xml"), "goods.csv", "no known suffix"),
        (("--output", "x.csv"), "no.csv", "no.csv has no column image"),
        (("--output", "x.csv", "--image-column", "照"), "goods.csv", "has no column 照"),
        (("--output", "other_filled.csv", "--columns", "颜色"), "goods.csv", "has another 名"),
    ):
        status, err = fill(*arguments, table=table)
        assert status == 1, problem
        assert problem in err.splitlines()[-1]
    assert (tmp_path / "note.csv").read_text(encoding="utf-8") == "my notes"
    assert (tmp_path / "mine.csv").read_text(encoding="utf-8") == "years,of,work\n1,2,3\n"
