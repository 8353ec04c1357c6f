"""Promises of `ofa_hf.data.tables`: a shop's own files, in the forms shops have them."""

import csv
import json
from pathlib import Path

import datasets
import pytest
from datasets import Dataset, Features, Image, Value

from ofa_hf.data import FolderImages, load_rows, load_table, report_of, stream_rows
from ofa_hf.errors import UserError


@pytest.fixture
def photos(tmp_path, jpeg):
    folder = tmp_path / "photos"
    (folder / "shoes").mkdir(parents=True)
    for number, name in enumerate(("scarf.jpg", "mug.PNG", "shoes/红鞋.jpeg", "lamp.jpg")):
        (folder / name).write_bytes(jpeg(number))
    return folder


def write(path, text: str, encoding: str = "utf-8"):
    path.write_text(text, encoding=encoding)
    return path


def kinds(dataset) -> dict:
    return dict(report_of(dataset).problems)


@pytest.mark.parametrize("num_proc", [1, 2])
def test_repeated_rows_of_a_csv_are_captions_of_one_image(photos, tmp_path, num_proc):
    lines = ["image,caption,price", "scarf.jpg,红围巾,5", 'mug.PNG,"白杯子, 大",6', "scarf.jpg,温暖,5"]
    text = "\n".join([*lines, "shoes/红鞋.jpeg,红鞋,7", "lamp,灯,8"])
    captions = write(tmp_path / "captions.csv", text)
    dataset = load_table(captions, photos, num_proc=num_proc, cache_dir=tmp_path / "cache")
    assert dataset["id"][:] == ["scarf.jpg", "mug.PNG", "shoes/红鞋.jpeg", "lamp"]
    assert dataset["targets"][:] == [["红围巾", "温暖"], ["白杯子, 大"], ["红鞋"], ["灯"]]
    assert dataset[0]["image"] == {"bytes": None, "path": str(photos / "scarf.jpg")}
    assert kinds(dataset) == {}


def test_jsonl_with_lists_and_columns_of_other_names(photos, tmp_path):
    rows = [
        {"sku": 1, "photo": "scarf.jpg", "texts": ["红围巾", "温暖"]},
        {"sku": 2, "photo": "mug", "texts": "白杯子"},
    ]
    captions = write(tmp_path / "captions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    columns = {"image_column": "photo", "target_column": "texts", "id_column": "sku"}
    dataset = load_table(captions, photos, **columns, cache_dir=tmp_path / "cache")
    assert dataset["id"][:] == ["1", "2"]
    assert dataset["targets"][:] == [["红围巾", "温暖"], ["白杯子"]]


def test_what_is_wrong_with_a_shops_files_is_counted_with_its_line(photos, tmp_path):
    (photos / "scarf.jpg").write_bytes(b"no image")
    text = "image,caption\nscarf.jpg,红围巾\nmug.PNG, \nmug.PNG,白杯子\ngone.jpg,没有\n,无名\nlamp.jpg\n"
    dataset = load_table(write(tmp_path / "c.csv", text), photos, cache_dir=tmp_path / "cache")
    assert dataset["id"][:] == ["mug.PNG"]
    with open(report_of(dataset).report_file, encoding="utf-8") as lines:
        found = {(p["kind"], p["line"]) for p in map(json.loads, lines)}
    assert found == {
        ("empty target", 3),
        ("missing id", 6),
        ("malformed line", 7),
        ("broken image", 2),
        ("targets without image", 5),
        ("no targets", 0),  # lamp and shoes
    }
    assert kinds(dataset)["no targets"] == 2


def test_one_id_for_two_images_is_a_problem(photos, tmp_path):
    text = "image,caption,id\nscarf.jpg,红围巾,1\nmug.PNG,白杯子,1\n"
    dataset = load_table(write(tmp_path / "c.csv", text), photos, id_column="id", cache_dir=tmp_path / "cache")
    assert kinds(dataset)["duplicate id"] == 1
    assert dataset["targets"][:] == [["红围巾"]]


def test_a_new_image_in_the_folder_is_noticed(photos, tmp_path, jpeg):
    captions = write(tmp_path / "c.csv", "image,caption\nscarf.jpg,红\nnew.jpg,新\n")
    assert len(load_table(captions, photos, cache_dir=tmp_path / "cache")) == 1
    (photos / "new.jpg").write_bytes(jpeg(9))
    assert len(load_table(captions, photos, cache_dir=tmp_path / "cache")) == 2


def test_a_spreadsheet_in_another_encoding_is_said_and_can_be_named(photos, tmp_path):
    captions = write(tmp_path / "c.csv", "image,caption\nscarf.jpg,红围巾\n", "gb18030")
    dataset = load_table(captions, photos, cache_dir=tmp_path / "cache")
    assert dataset["targets"][:] == [["红围巾"]]
    assert report_of(dataset).assumed["encoding"] == "gb18030"
    with pytest.raises(UserError, match="line 2 is not utf-8.*--encoding"):
        load_table(captions, photos, encoding="utf-8", cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(("name", "text"), [("c.csv", "x,y\na,b\n"), ("c.jsonl", '{"x": "a", "y": "b"}\n')])
def test_columns_that_are_not_there_are_named_with_those_that_are(photos, tmp_path, name, text):
    with pytest.raises(UserError, match="no column image, caption; it has x, y.*--image_column"):
        load_table(write(tmp_path / name, text), photos, cache_dir=tmp_path / "cache")


def test_no_usable_pair_is_said(photos, tmp_path):
    with pytest.raises(UserError, match="no usable row"):
        load_table(write(tmp_path / "c.csv", "image,caption\nx.jpg,红\n"), photos, cache_dir=tmp_path / "cache")
    with pytest.raises(UserError, match="not a folder"):
        load_table(tmp_path / "c.csv", tmp_path / "nowhere", cache_dir=tmp_path / "cache")


def image_rows(jpeg) -> Dataset:
    rows = [
        ("a", jpeg(0), "一"),
        ("b", jpeg(1), "二"),
        ("a", jpeg(0), "三"),
        ("c", b"broken", "四"),
        ("d", jpeg(3), ""),
    ]
    features = Features({"key": Value("string"), "pixels": Image(), "text": Value("string"), "price": Value("int64")})
    columns = [{"key": k, "pixels": {"bytes": p, "path": None}, "text": t, "price": 1} for k, p, t in rows]
    return Dataset.from_list(columns, features=features)


COLUMNS = {"image_column": "pixels", "target_column": "text"}


@pytest.mark.parametrize("num_proc", [1, 3])
def test_rows_of_one_id_in_any_data_set_become_one_image(jpeg, tmp_path, num_proc):
    source = image_rows(jpeg)
    dataset = load_rows(source, **COLUMNS, id_column="key", num_proc=num_proc, cache_dir=tmp_path / "cache")
    assert dataset["id"][:] == ["a", "b"]
    assert dataset["targets"][:] == [["一", "三"], ["二"]]
    assert dataset[1]["image"]["bytes"] == jpeg(1)
    assert kinds(dataset) == {"broken image": 1, "empty target": 1, "no targets": 1}


def test_without_an_id_column_every_row_is_an_image(jpeg, tmp_path):
    dataset = load_rows(image_rows(jpeg), **COLUMNS, cache_dir=tmp_path / "cache")
    assert dataset["id"][:] == ["0", "1", "2"]


def test_parquet_files_load_like_any_other(jpeg, tmp_path):
    image_rows(jpeg).to_parquet(tmp_path / "rows.parquet")
    source = datasets.load_dataset("parquet", data_files=str(tmp_path / "rows.parquet"), split="train")
    assert len(load_rows(source, **COLUMNS, cache_dir=tmp_path / "cache")) == 3


def test_rows_with_paths_and_lists_of_captions(photos, tmp_path):
    source = Dataset.from_dict({"image": [str(photos / "scarf.jpg")], "caption": [["一", "二"]]})
    dataset = load_rows(source, cache_dir=tmp_path / "cache")
    assert dataset[0]["targets"] == ["一", "二"]
    assert dataset[0]["image"]["path"] == str(photos / "scarf.jpg")


def test_a_data_set_without_the_columns_is_refused_with_its_columns(tmp_path):
    with pytest.raises(UserError, match="it has a"):
        load_rows(Dataset.from_dict({"a": [1]}), cache_dir=tmp_path / "cache")


def test_streaming_rows_have_the_same_form_and_lose_only_bad_ones(jpeg):
    stream = image_rows(jpeg).to_iterable_dataset()
    rows = list(stream_rows(stream, **COLUMNS, id_column="key"))
    assert [(row["id"], row["targets"]) for row in rows] == [("a", ["一"]), ("b", ["二"]), ("a", ["三"])]
    assert rows[1]["image"]["bytes"] == jpeg(1)


def test_streaming_in_strict_mode_stops_at_the_first_problem(jpeg):
    stream = stream_rows(image_rows(jpeg).to_iterable_dataset(), **COLUMNS, strict=True)
    with pytest.raises(UserError, match=r"line 4: broken image \(3\)"):
        list(stream)


def test_images_of_a_folder_are_found_with_and_without_their_suffix(photos):
    images = FolderImages(photos)
    assert images["scarf"] == images["scarf.jpg"]
    assert set(images) == {"scarf", "mug", "shoes/红鞋", "lamp"}
    assert "gone" not in images
    with pytest.raises(UserError, match="not a folder"):
        FolderImages(photos / "nowhere")


def test_a_name_too_long_for_a_file_is_an_image_that_is_not_there(photos, tmp_path):
    rows = [{"image": "scarf.jpg", "caption": "红"}, {"image": "字" * 300, "caption": "红"}]
    captions = write(tmp_path / "captions.jsonl", "\n".join(map(json.dumps, rows)))
    dataset = load_table(captions, photos, num_proc=0, cache_dir=tmp_path / "cache")
    assert dataset["id"][:] == ["scarf.jpg"]
    assert kinds(dataset)["targets without image"] == 1


def test_half_a_character_in_a_caption_or_a_name_does_not_stop_the_build(photos, tmp_path):
    rows = [{"image": "scarf.jpg", "caption": "红\ud83d"}, {"image": "\ude00", "caption": "红"}]
    captions = write(tmp_path / "captions.jsonl", "\n".join(map(json.dumps, rows)))
    dataset = load_table(captions, photos, num_proc=0, cache_dir=tmp_path / "cache")
    assert dataset["targets"][:] == [["红\ufffd"]]


def test_the_host_programs_limit_for_csv_fields_stays_as_it_was(photos, tmp_path):
    before = csv.field_size_limit(12345)
    try:
        captions = write(tmp_path / "captions.csv", f"image,caption\nscarf.jpg,{'红' * 20_000}\n")
        assert len(load_table(captions, photos, num_proc=0, cache_dir=tmp_path / "cache")) == 1
        assert csv.field_size_limit() == 12345
    finally:
        csv.field_size_limit(before)


QUESTIONS = """image,question,answer,sku
scarf.jpg,什么颜色?,红,1
scarf.jpg,什么材质?,羊毛,2
mug.PNG, ,白,3
mug.PNG,多大?,大,2
"""


def test_fields_of_a_task_are_columns_of_its_rows(photos, tmp_path):
    table = write(tmp_path / "q.csv", QUESTIONS)
    rows = load_table(table, photos, target_column="answer", fields=["question"], cache_dir=tmp_path / "cache")
    assert rows.column_names == ["id", "image", "question", "targets"]
    assert rows["id"][:] == ["2", "3", "5"], "line numbers: two rows may ask about one image"
    assert rows["question"][:] == ["什么颜色?", "什么材质?", "多大?"]
    assert rows["targets"][:] == [["红"], ["羊毛"], ["大"]]
    assert kinds(rows) == {"missing field": 1, "no targets": 2}


def test_one_id_for_two_questions_is_a_problem(photos, tmp_path):
    columns = {"target_column": "answer", "id_column": "sku", "fields": ["question"]}
    rows = load_table(write(tmp_path / "q.csv", QUESTIONS), photos, **columns, cache_dir=tmp_path / "cache")
    assert rows["targets"][:] == [["红"], ["羊毛"]]
    assert kinds(rows)["duplicate id"] == 1


def test_rows_of_a_table_without_images_have_no_image(tmp_path):
    table = write(tmp_path / "news.tsv", "text\tsummary\n很长的新闻\t新闻\n更长的\t\n")
    rows = load_table(table, target_column="summary", fields=["text"], num_proc=0, cache_dir=tmp_path / "cache")
    assert list(rows) == [{"id": "2", "text": "很长的新闻", "targets": ["新闻"]}]
    assert kinds(rows) == {"empty target": 1, "no targets": 1}


def test_any_data_set_gives_rows_with_fields_and_without_images(tmp_path):
    source = Dataset.from_dict(
        {"text": ["长", "更长", ""], "summary": [["一", "二"], ["三"], ["四"]], "price": [1, 2, 3]}
    )
    columns = {"image_column": None, "target_column": "summary", "fields": ["text"]}
    rows = load_rows(source, **columns, num_proc=2, cache_dir=tmp_path / "cache")
    assert list(rows) == [
        {"id": "0", "text": "长", "targets": ["一", "二"]},
        {"id": "1", "text": "更长", "targets": ["三"]},
    ]
    assert kinds(rows) == {"missing field": 1, "no targets": 1}
    assert list(stream_rows(source.to_iterable_dataset(), **columns)) == list(rows)


@pytest.mark.parametrize("name", ["image", "targets", "id"])
def test_a_field_named_like_a_part_of_the_row_is_refused(tmp_path, name):
    source = Dataset.from_dict({name: ["a"], "image": ["b"], "caption": ["c"]} | {name: ["a"]})
    with pytest.raises(ValueError, match=f"cannot be called {name}"):
        load_rows(source, fields=[name], cache_dir=tmp_path / "cache")


def test_a_report_says_how_a_table_was_read_and_which_names_were_repaired(photos, tmp_path):
    text = "图片;标题;id\nD:\\x\\scarf.jpg;红围巾;1\n./scarf.JPG;温暖;2\nmug;白杯子;3\n"
    dataset = load_table(write(tmp_path / "c.csv", text, "gb18030"), photos, cache_dir=tmp_path / "cache")
    assert dataset["targets"][:] == [["红围巾", "温暖"], ["白杯子"]]
    report = report_of(dataset)
    columns = {"image": "图片", "caption": "标题"}
    assert report.assumed == {"kind": "csv", "encoding": "gb18030", "separator": ";", "columns": columns}
    assert report.repaired == {
        "backslashes": 1,
        "drive letter": 1,
        "folder in front": 1,
        "leading ./": 1,
        "upper or lower case": 1,
        "suffix missing": 1,
    }
    assert "gb18030, separator ';', image in column 图片, caption in column 标题" in report.summary()


def test_an_image_that_is_not_there_is_named_with_the_nearest_one(photos, tmp_path):
    captions = write(tmp_path / "c.csv", "image,caption\nscarf.jpg,红\nscraf.jpg,红\n")
    dataset = load_table(captions, photos, cache_dir=tmp_path / "cache")
    with open(report_of(dataset).report_file, encoding="utf-8") as lines:
        problem = next(each for each in map(json.loads, lines) if each["kind"] == "targets without image")
    assert (problem["line"], problem["detail"]) == (3, "no such file; the nearest name is scarf.jpg")


def test_two_images_of_one_stem_stay_two(photos, tmp_path, jpeg):
    (photos / "scarf.png").write_bytes(jpeg(7))
    captions = write(tmp_path / "c.csv", "image,caption\nscarf.jpg,甲\nscarf.png,乙\nscarf,丙\n")
    dataset = load_table(captions, photos, cache_dir=tmp_path / "cache")
    assert dataset["targets"][:] == [["甲"], ["乙"]]
    assert kinds(dataset)["targets without image"] == 1
    assert {"scarf.jpg", "scarf.png", "lamp"} < set(FolderImages(photos))


def test_two_folders_of_another_machine_are_not_one_here(photos, tmp_path):
    captions = write(tmp_path / "c.csv", "image,caption\nshop1/lamp.jpg,甲\nshop2/lamp.jpg,乙\n")
    dataset = load_table(captions, photos, cache_dir=tmp_path / "cache")
    assert dataset["targets"][:] == [["甲"]]
    assert kinds(dataset)["duplicate id"] == 1


def test_several_columns_that_may_hold_captions_are_asked_about(photos, tmp_path):
    captions = write(tmp_path / "c.csv", "image,标题,描述\nscarf.jpg,甲,乙\n")
    with pytest.raises(UserError, match="标题, 描述.*--caption_column"):
        load_table(captions, photos, cache_dir=tmp_path / "cache")
    dataset = load_table(captions, photos, target_column="描述", cache_dir=tmp_path / "cache")
    assert dataset["targets"][:] == [["乙"]]


def test_texts_beside_images_are_a_table(photos, tmp_path, jpeg):
    for name in ("twin.jpg", "twin.png"):
        (photos / name).write_bytes(jpeg(8))
    write(photos / "scarf.txt", "红围巾\r\n\r\n温暖\r\n", "gb18030")
    write(photos / "shoes" / "红鞋.txt", "红鞋")
    write(photos / "twin.txt", "双")
    write(photos / "gone.txt", "无")
    write(photos / "scarf.caption", "另一句")
    (photos / "shoes" / "红鞋.txt").rename(photos / "shoes" / "红鞋.TXT")
    dataset = load_table(photos, photos, cache_dir=tmp_path / "cache")
    assert dataset["targets"][:] == [["红围巾", "温暖"], ["红鞋"]]
    assert kinds(dataset) == {"malformed line": 2, "no targets": 4, "targets without image": 2}
    report = Path(report_of(dataset).report_file).read_text(encoding="utf-8")
    assert "scarf.txt is read in its place" in report
    assert "no image of this name" in report
    assert "text file" not in report_of(dataset).left_out
    header_only = write(tmp_path / "empty.csv", "image,caption\n")
    with pytest.raises(UserError, match="anything below the names of columns"):
        load_table(header_only, photos, cache_dir=tmp_path / "cache")
    with pytest.raises(UserError, match="no image in it has a .txt"):
        load_table(tmp_path / "cache", photos)


def test_the_column_of_a_field_has_a_usual_name_too(photos, tmp_path):
    table = write(tmp_path / "q.csv", "图片,问题,答案\nscarf.jpg,什么颜色?,红\n")
    rows = load_table(table, photos, fields=["question"], cache_dir=tmp_path / "cache")
    assert (rows[0]["question"], rows[0]["targets"]) == ("什么颜色?", ["红"])


def test_what_pandas_writes_for_nothing_is_no_caption(photos, tmp_path):
    table = write(
        tmp_path / "nan.json", '[{"image": "scarf.jpg", "caption": NaN}, {"image": "mug.jpg", "caption": 12}]'
    )
    dataset = load_table(table, photos, cache_dir=tmp_path / "cache")
    assert dataset["targets"][:] == [["12"]]
    assert kinds(dataset)["malformed line"] == 1


def test_an_image_in_json_may_be_an_object_that_names_its_file(photos, tmp_path):
    images = [{"id": 7, "path": "scarf.jpg"}, {"id": 8, "file_name": "mug.jpg"}, {"id": 9}]
    rows = [{"image": image, "caption": text} for image, text in zip(images, ("红", "白", "黑"), strict=True)]
    table = write(tmp_path / "nested.json", json.dumps(rows, ensure_ascii=False))
    dataset = load_table(table, photos, cache_dir=tmp_path / "cache")
    assert (dataset["id"][:], dataset["targets"][:]) == (["scarf.jpg", "mug.jpg"], [["红"], ["白"]])
    assert kinds(dataset)["missing id"] == 1


def test_what_was_repaired_in_names_of_a_folder_is_logged_once_by_kind(photos, caplog):
    images = FolderImages(photos)
    images.report_repaired(["scarf.jpg"])
    assert not caplog.text
    images.report_repaired(["x\\scarf.jpg", "mug", "gone"])
    assert "repaired: 1 × backslashes, 1 × folder in front, 1 × suffix missing." in caplog.text
