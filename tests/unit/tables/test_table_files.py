"""Promises of `ofa_hf.tables.table_files`: any usual table is read as it is meant, or refused with the line."""

import datetime
import json
import pickle

import pyarrow
import pyarrow.parquet
import pytest

from ofa_hf.data import Problem
from ofa_hf.errors import UserError
from ofa_hf.tables import encodings as encodings_module
from ofa_hf.tables.columns import missing_columns
from ofa_hf.tables.problems import describe_form
from ofa_hf.tables.table_files import open_table


ROWS = [("apple.jpg", "新鲜红苹果 脆甜多汁"), ("cake.jpg", "网红生日蛋糕 同城配送"), ("shoes.jpg", "夏季透气小白鞋")]
TRADITIONAL = [
    ("apple.jpg", "新鮮紅蘋果 脆甜多汁"),
    ("cake.jpg", "網紅生日蛋糕 同城配送"),
    ("shoes.jpg", "夏季透氣小白鞋"),
]


def text_of(separator=",", rows=ROWS, header=("image", "caption"), end="\r\n") -> str:
    return "".join(separator.join(row) + end for row in (header, *rows))


def write(path, text: str, encoding: str = "utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def rows_of(table) -> list[dict]:
    return [row for _, row in table if not isinstance(row, Problem)]


def problems_of(table) -> list[Problem]:
    return [row for _, row in table if isinstance(row, Problem)]


def as_dicts(rows, header=("image", "caption")) -> list[dict]:
    return [dict(zip(header, row, strict=True)) for row in rows]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    ("encoding", "rows", "assumed"),
    [
        ("utf-8", ROWS, "utf-8"),
        ("utf-8-sig", ROWS, "utf-8-sig"),
        ("gbk", ROWS, "gb18030"),
        ("gb18030", [*ROWS, ("x.jpg", "苹果🍎")], "gb18030"),
        ("big5", TRADITIONAL, "big5"),
        ("utf-16", ROWS, "utf-16"),
        ("utf-16-le", ROWS, "utf-16-le"),
        ("utf-16-be", ROWS, "utf-16-be"),
    ],
)
def test_encodings_are_told_from_the_text(tmp_path, encoding, rows, assumed, end):
    table = open_table(write(tmp_path / "t.csv", text_of(rows=rows, end=end), encoding))
    assert rows_of(table) == as_dicts(rows)
    assert table.assumed == {"kind": "csv", "encoding": assumed, "separator": ","}


@pytest.mark.parametrize("separator", [",", ";", "\t", "，", "|"])
@pytest.mark.parametrize("name", ["t.csv", "t.txt", "t.tsv"])
def test_separators_are_told_from_header_and_rows(tmp_path, separator, name):
    table = open_table(write(tmp_path / name, text_of(separator, header=("图片", "标题"))))
    assert rows_of(table) == as_dicts(ROWS, ("图片", "标题"))
    assert table.assumed["separator"] == separator


def test_a_separator_is_told_among_unknown_names_and_other_characters(tmp_path):
    rows = [("a, b", "1;2"), ("c, d", "3"), ("e, f, g", "4")]
    assert open_table(write(tmp_path / "t.csv", text_of("\t", rows, ("x", "y")))).columns == ("x", "y")


def test_the_line_with_which_excel_names_the_separator_is_no_row(tmp_path):
    table = open_table(write(tmp_path / "t.csv", "sep=;\r\n" + text_of(";")))
    assert (table.columns, table.assumed["separator"], len(rows_of(table))) == (("image", "caption"), ";", 3)
    assert next(iter(table))[0] == 3


def test_encoding_and_separator_can_be_named(tmp_path):
    path = write(tmp_path / "t.csv", text_of("~"), "gbk")
    table = open_table(path, encoding="gbk", separator="~")
    assert (rows_of(table), table.assumed["separator"]) == (as_dicts(ROWS), "~")
    assert open_table(write(tmp_path / "t.txt", text_of("\t")), separator="tab").columns == ("image", "caption")
    with pytest.raises(UserError, match="not a known encoding"):
        open_table(path, encoding="gbx")
    with pytest.raises(UserError, match="not one character"):
        open_table(path, separator="::")


def test_text_stays_text(tmp_path):
    values = ["00123", "NA", "null", "nan", "1.50", "True", "1e5", ""]
    table = open_table(write(tmp_path / "t.csv", text_of(rows=[("a.jpg", value) for value in values])))
    assert [row["caption"] for row in rows_of(table)] == values


def test_a_row_that_does_not_fit_is_reported_with_its_line_and_the_others_are_read(tmp_path):
    text = 'image,caption\na.jpg,红色,新款\nb.jpg,"红色,新款"\n\nc.jpg\nd.jpg,红,,\n,,\ne.jpg,"两\n行"\n'
    table = open_table(write(tmp_path / "t.csv", text))
    assert rows_of(table) == as_dicts([("b.jpg", "红色,新款"), ("d.jpg", "红"), ("e.jpg", "两\n行")])
    many, few = problems_of(table)
    assert (many.line, few.line) == (2, 5)
    assert "contains a comma in quotes" in many.detail
    assert "fewer" in few.detail


def test_a_quote_that_never_closes_spoils_its_own_line_alone(tmp_path):
    text = 'image,caption\na.jpg,"5"" 屏\nb.jpg,二\nc.jpg,"三, 好"\nd.jpg,"四" 好\ne.jpg,"五\n'
    table = open_table(write(tmp_path / "t.csv", text))
    assert rows_of(table) == as_dicts([("b.jpg", "二"), ("c.jpg", "三, 好")])
    opened, inside, last = problems_of(table)
    assert (opened.line, inside.line, last.line) == (2, 5, 6)
    assert "never closes" in opened.detail
    assert "twice" in inside.detail


@pytest.mark.parametrize("first", ["apple.jpg,红苹果", "https://a.cn/1,红", "1,红苹果"])
def test_a_first_line_that_is_data_is_refused(tmp_path, first):
    with pytest.raises(UserError, match=r"line 1 looks like data.*Add a first line"):
        open_table(write(tmp_path / "t.csv", f"{first}\ncake.jpg,蛋糕\n"))


def test_columns_of_one_name_are_refused_and_empty_ones_are_dropped(tmp_path):
    with pytest.raises(UserError, match="two columns 'caption'"):
        open_table(write(tmp_path / "t.csv", "image,caption,caption\na.jpg,一,二\n"))
    assert open_table(write(tmp_path / "t.csv", "image,caption,,\na.jpg,一,,\n")).columns == ("image", "caption")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("image,caption\na.jpg,café\n".encode("latin-1"), "line 2.*encoding is unknown.*--encoding"),
        (
            text_of().encode("gbk") + "d.jpg,新的图片\n".encode(),
            "line 5 is UTF-8, but other lines are gb18030",
        ),
        (b"image,caption\n\0\1\2\3,a\n", "not a text file"),
        (b"", "is empty"),
        (b"\xd0\xcf\x11\xe0" + bytes(99), "Save it as .xlsx"),
        (b"PK\x03\x04" + bytes(99), "damaged"),
        (b"PAR1" + bytes(99), "cannot be read as parquet"),
        (b"\x1f\x8b" + bytes(99), "Unpack"),
        (b"\n\n", "has no row"),
        (
            "image,caption\na.jpg,신선한 빨간 사과\nb.jpg,생일 케이크\n".encode("euc-kr"),
            "line 2.*encoding is unknown",
        ),
        ("image,caption\na.jpg,あかいりんごのケーキ\n".encode("euc-jp"), "line 2.*encoding is unknown"),
        ("导出 5 月,\n\n图片,标题\na.jpg,红\n".encode(), "line 1 names no column.*line 3 does: 图片, 标题. Remove"),
        ("共 6 条\n图片;标题\na.jpg;红\n".encode("gbk"), "line 2 does: 图片, 标题"),
        (b'{"image": {"0": "a.jpg", "1": "b.jpg"}, "caption": {"0": "x", "1": "y"}}', "holds columns, not rows"),
        (b'{"image": ["a.jpg", "b.jpg"], "caption": ["x", "y"]}', "orient='records'"),
        (b'{"columns": ["image", "caption"], "data": [["a.jpg", "x"]]}', "holds no table"),
        (b'{"a": {"b": 1}, "c": 3}', "holds no table"),
    ],
)
def test_what_is_no_table_is_refused_with_the_next_step(tmp_path, data, message):
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(UserError, match=message):
        list(open_table(tmp_path / "t.csv"))


def test_a_table_that_is_not_there_is_said(tmp_path):
    with pytest.raises(UserError, match="existing file"):
        open_table(tmp_path / "gone.csv")


def test_an_encoding_that_stops_fitting_is_named_with_its_line(tmp_path, monkeypatch):
    monkeypatch.setattr(encodings_module, "SAMPLE_BYTES", 64)
    lines = ["image,caption", *(f"{number}.jpg,plain words" for number in range(20)), "x.jpg,红苹果"]
    path = write(tmp_path / "t.csv", "\n".join(lines), "gbk")
    with pytest.raises(UserError, match="line 22 is not utf-8"):
        list(open_table(path))
    assert len(rows_of(open_table(path, encoding="gbk"))) == 21


def test_an_endless_line_costs_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("ofa_hf.tables.encodings.MAX_LINE", 100)
    table = open_table(write(tmp_path / "t.csv", f"image,caption\na.jpg,{'红' * 500}\nb.jpg,红\n"))
    assert [row["image"] for row in rows_of(table)] == ["b.jpg"]
    assert [problem.line for problem in problems_of(table)] == [2]


JSON_FORMS = {
    "lines": ("jsonl", "\n".join(json.dumps(row) for row in as_dicts(ROWS))),
    "list": ("json list", json.dumps(as_dicts(ROWS), indent=1, ensure_ascii=False)),
    "list in one line": ("json list", json.dumps(as_dicts(ROWS))),
    "named list": ("json list", json.dumps({"info": {"a": 1}, "data": as_dicts(ROWS)})),
    "by name": ("json by name", json.dumps(dict(ROWS), indent=1)),
    "lists by name": ("json by name", json.dumps({name: [text] for name, text in ROWS})),
    "objects by name": ("json by name", json.dumps({name: {"caption": text} for name, text in ROWS})),
}


@pytest.mark.parametrize("form", JSON_FORMS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
def test_json_in_its_usual_forms(tmp_path, form, encoding):
    kind, text = JSON_FORMS[form]
    table = open_table(write(tmp_path / "t.json", text, encoding))
    assert table.assumed["kind"] == kind
    assert table.columns == ("image", "caption")
    captions = [row["caption"] for row in rows_of(table)]
    assert [text if isinstance(text, str) else text[0] for text in captions] == [text for _, text in ROWS]
    assert rows_of(table) == rows_of(table), "it can be read again"


def test_coco_and_karpathy_files_name_their_images(tmp_path):
    images = [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "b.jpg"}]
    annotations = [{"id": 1, "image_id": 8, "caption": "乙"}, {"id": 2, "image_id": 9, "caption": "丙"}]
    for keys in (("images", "annotations"), ("annotations", "images")):
        parts = {"info": {}, "images": images, "annotations": annotations}
        table = open_table(write(tmp_path / "t.json", json.dumps({key: parts[key] for key in ("info", *keys)})))
        assert table.assumed["kind"] == "coco json"
        assert rows_of(table) == [{"image": "b.jpg", "image_id": 8, "caption": "乙"}]
        assert [problem.id for problem in problems_of(table)] == ["9"]
    image = {"filename": "a.jpg", "filepath": "val", "split": "train", "sentences": [{"raw": "甲"}, {"raw": "乙"}]}
    table = open_table(write(tmp_path / "t.json", json.dumps({"images": [image], "dataset": "coco"})))
    assert rows_of(table) == [{"image": "val/a.jpg", "caption": ["甲", "乙"], "split": "train"}]


def test_broken_json_names_its_line(tmp_path):
    text = json.dumps(as_dicts(ROWS), indent=0).replace("},", "}", 1)
    with pytest.raises(UserError, match="line [56] is not valid JSON"):
        list(open_table(write(tmp_path / "t.json", text)))
    table = open_table(write(tmp_path / "t.jsonl", '{"image": "a", "caption": "b"}\n{"image":\n[1]\n'))
    assert [problem.line for problem in problems_of(table)] == [2, 3]


def test_a_long_list_is_decoded_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr("ofa_hf.tables.json_tables.CHUNK", 7)
    rows = [{"image": f"{number}.jpg", "caption": "红" * number, "n": number} for number in range(30)]
    table = open_table(write(tmp_path / "t.json", json.dumps(rows, ensure_ascii=False, indent=2)))
    assert [row for _, row in table] == rows
    assert [line for line, _ in table] == list(range(2, 152, 5))


def test_parquet_is_read_in_batches(tmp_path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(as_dicts(ROWS)), tmp_path / "t.parquet")
    table = open_table(tmp_path / "t.parquet")
    assert (table.assumed["kind"], rows_of(table)) == ("parquet", as_dicts(ROWS))


def test_a_spreadsheet_is_read_as_its_reader_sees_it(tmp_path):
    openpyxl = pytest.importorskip("openpyxl", reason="needs the extra tables")
    workbook = openpyxl.Workbook()
    workbook.active.title = "空"
    sheet = workbook.create_sheet("商品")
    for row in [["图片", "标题", None], [123, "00123"], [], [1.5, datetime.datetime(2024, 5, 1)], ["a", "b", "c"]]:
        sheet.append(row)
    workbook.save(tmp_path / "t.xlsx")
    table = open_table(tmp_path / "t.xlsx")
    assert table.assumed == {"kind": "xlsx", "encoding": None, "separator": None, "sheet": "商品"}
    assert rows_of(table) == [{"图片": "123", "标题": "00123"}, {"图片": "1.5", "标题": "2024-05-01"}]
    assert [problem.line for problem in problems_of(table)] == [5]


def test_a_spreadsheet_without_its_library_names_the_extra(tmp_path, monkeypatch):
    pytest.importorskip("openpyxl", reason="needs the extra tables").Workbook().save(tmp_path / "t.xlsx")
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    with pytest.raises(UserError, match=r"ofa-hf\[tables\]"):
        open_table(tmp_path / "t.xlsx")


def test_a_table_can_be_sent_to_another_process(tmp_path):
    table = pickle.loads(pickle.dumps(open_table(write(tmp_path / "t.csv", text_of()))))
    assert rows_of(table) == as_dicts(ROWS)


def test_blanks_around_quotes_belong_to_no_cell(tmp_path):
    text = '"image" , "caption"\na.jpg, "红, ""蓝""" \nb.jpg, 5" 屏\nc.jpg, "红" 色\n'
    table = open_table(write(tmp_path / "blanks.csv", text))
    assert rows_of(table) == as_dicts([("a.jpg", '红, "蓝"'), ("b.jpg", ' 5" 屏'), ("c.jpg", ' "红" 色')])


@pytest.mark.parametrize("start", ["<html><table>", '\ufeff<?xml version="1.0"?>\n<Workbook>', "  <TABLE border=1>"])
def test_a_page_that_calls_itself_a_spreadsheet_is_said(tmp_path, start):
    with pytest.raises(UserError, match="HTML or XML.*save it as .xlsx or CSV"):
        open_table(write(tmp_path / "orders.xls", start + "<tr><td>image</td><td>caption</td></tr></table>\n"))


def test_numbers_of_images_in_coco_may_be_texts(tmp_path):
    images = [{"id": 1, "file_name": "a.jpg"}]
    rows = [{"image_id": "1", "caption": "红"}, {"image_id": 7, "caption": "蓝"}]
    table = open_table(write(tmp_path / "coco.json", json.dumps({"images": images, "annotations": rows})))
    assert [row["image"] for row in rows_of(table)] == ["a.jpg"]
    assert [problem.detail for problem in problems_of(table)] == ["no such image"]


def test_a_table_without_a_usable_row_names_the_first_problem(tmp_path):
    with pytest.raises(UserError, match="line 1 is malformed: expected a JSON object"):
        open_table(write(tmp_path / "lines.jsonl", "['a.jpg', 'red']\n['b.jpg', 'blue']\n"))


def test_the_first_line_of_a_file_in_another_encoding_has_no_lines_before_it(tmp_path):
    path = write(tmp_path / "a.csv", "图片,caption\na.jpg,红\n")
    with pytest.raises(UserError, match=r"line 1 is not ascii\. Save"):
        open_table(path, encoding="ascii")


def test_what_a_spreadsheet_holds_instead_of_texts_is_said(tmp_path):
    openpyxl = pytest.importorskip("openpyxl", reason="needs the extra tables")
    workbook = openpyxl.Workbook()
    sheet = workbook.active
    rows = [("image", "caption"), ("a.jpg", "红"), (None, "蓝"), ("b.jpg", "#N/A"), ("c.jpg", '="红"&"色"')]
    for row in [*rows, ('=DISPIMG("ID_1",1)', "黄"), ("d.jpg", None), ("e.jpg", "黑")]:
        sheet.append(row)
    sheet.merge_cells("A2:A3")
    workbook.create_sheet("more").append(["image", "caption"])
    workbook.create_sheet("empty")
    workbook.save(tmp_path / "t.xlsx")
    table = open_table(tmp_path / "t.xlsx")
    assert table.assumed["other_sheets"] == ["more"]
    assert "not the sheets more" in describe_form(table.assumed)
    assert rows_of(table) == as_dicts([("a.jpg", "红"), ("a.jpg", "蓝"), ("d.jpg", ""), ("e.jpg", "黑")])
    problems = problems_of(table)
    assert [problem.line for problem in problems] == [4, 5, 6]
    for problem, said in zip(
        problems, ("the error #N/A", "a formula without its value", "holds an image"), strict=True
    ):
        assert said in problem.detail


def test_the_sheet_that_names_columns_is_read_and_the_others_are_named(tmp_path):
    openpyxl = pytest.importorskip("openpyxl", reason="needs the extra tables")
    workbook = openpyxl.Workbook()
    workbook.active.append(["请先阅读"])
    sheet = workbook.create_sheet("数据")
    for row in (("图片", "标题"), *ROWS):
        sheet.append(row)
    workbook.save(tmp_path / "t.xlsx")
    table = open_table(tmp_path / "t.xlsx")
    assert (table.assumed["sheet"], table.assumed["other_sheets"]) == ("数据", ["Sheet"])
    assert rows_of(table) == as_dicts(ROWS, ("图片", "标题"))
    sheet.insert_rows(1)
    sheet["A1"] = "五月的商品"
    workbook.save(tmp_path / "t.xlsx")
    with pytest.raises(UserError, match="line 2 does: 图片, 标题. Remove what is above line 2"):
        open_table(tmp_path / "t.xlsx")
    (tmp_path / "t.xlsx").rename(tmp_path / "t.csv")
    with pytest.raises(UserError, match="Rename it to end in .xlsx"):
        open_table(tmp_path / "t.csv")


def test_conversations_about_an_image_are_questions_with_answers(tmp_path):
    asked = [{"from": "human", "value": "<image>\n什么颜色?"}, {"from": "gpt", "value": "红"}]
    parts = [{"type": "image", "image": "b.jpg"}, {"type": "text", "text": "什么颜色?"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "蓝"}]
    rows = [{"image": "a.jpg", "conversations": asked}, {"messages": messages}, {"messages": messages * 2}]
    table = open_table(write(tmp_path / "t.json", json.dumps(rows)))
    assert table.assumed["kind"] == "json list of conversations"
    found = [(row["image"], row["question"], row["answer"]) for row in rows_of(table)]
    assert found == [("a.jpg", "什么颜色?", "红"), ("b.jpg", "什么颜色?", "蓝")]
    (problem,) = problems_of(table)
    assert (problem.line, "2 answers" in problem.detail) == (1, True)


@pytest.mark.parametrize("name", ["image~caption", "图片、标题"])
def test_a_table_of_one_column_names_the_option_for_its_separator(tmp_path, name):
    table = open_table(write(tmp_path / "t.txt", f"{name}\nx\n"))
    assert "--separator" in str(missing_columns("t.txt", ["image"], table.columns))
