"""Promises of `ofa_hf.data.sources`: whatever form the data has, its rows are the same."""

import io
import json
import tarfile
import zipfile

import pytest
from datasets import Dataset, Features, Image, Value

from ofa_hf.data import report_of
from ofa_hf.data.sources import TableForm, has_its_images, load_source
from ofa_hf.errors import UserError


@pytest.fixture
def form(tmp_path):
    return TableForm(cache_dir=str(tmp_path / "cache"))


def shard(path, rows: dict[str, dict[str, bytes]]):
    with tarfile.open(path, "w") as archive:
        for key, files in rows.items():
            for suffix, data in files.items():
                item = tarfile.TarInfo(f"{key}.{suffix}")
                item.size = len(data)
                archive.addfile(item, io.BytesIO(data))
    return path


def test_muge_and_a_table_join_the_rows_of_one_image(write_muge, jpeg, tmp_path, form):
    lines = ['{"image_id": "0", "text": "又一"}']
    muge = load_source(*write_muge([0], num_captions=1, caption_lines=lines), form=form, num_proc=0)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "0.jpg").write_bytes(jpeg(0))
    table = load_source(tmp_path / "IC_train.jsonl", tmp_path / "photos", form=form, num_proc=0)
    assert muge["id"][:] == table["id"][:] == ["0"]
    assert muge["targets"][:] == table["targets"][:] == [["标题0的0", "又一"]]


def test_a_packed_folder_is_a_folder(jpeg, tmp_path, form):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("photos/a.jpg", jpeg(0))
    (tmp_path / "t.csv").write_text("image,caption\na.jpg,甲\n", encoding="utf-8")
    rows = load_source(tmp_path / "t.csv", tmp_path / "photos.zip", form=form, num_proc=0)
    assert rows["targets"][:] == [["甲"]]


def test_parquet_may_hold_the_images(jpeg, tmp_path, form):
    rows = Dataset.from_list(
        [{"图片": None, "标题": "无"}, {"图片": {"bytes": jpeg(0), "path": None}, "标题": "甲"}],
        features=Features({"图片": Image(), "标题": Value("string")}),
    )
    rows.to_parquet(tmp_path / "t.parquet")
    assert has_its_images(tmp_path / "t.parquet", form)
    loaded = load_source(tmp_path / "t.parquet", form=form, num_proc=0)
    assert (loaded[0]["targets"], loaded[0]["image"]["bytes"]) == (["甲"], jpeg(0))
    report = report_of(loaded)
    assert (report.assumed["kind"], report.assumed["columns"]) == ("parquet", {"image": "图片", "caption": "标题"})
    assert report.problems == {"broken image": 1}
    with pytest.raises(UserError, match="t.parquet holds its images, but .* was also given. Leave that out"):
        load_source(tmp_path / "t.parquet", tmp_path, form=form, num_proc=0)


@pytest.mark.parametrize("suffix", ["txt", "json"])
def test_shards_of_webdataset_are_rows_by_key(jpeg, tmp_path, form, suffix):
    texts = {"txt": "甲".encode(), "json": json.dumps({"caption": "甲", "width": 3}).encode()}
    for number in range(2):
        shard(tmp_path / f"s{number}.tar", {f"k{number}": {"jpg": jpeg(number), suffix: texts[suffix]}})
    rows = load_source(tmp_path / "s*.tar", form=form, num_proc=0)
    assert rows["id"][:] == ["k0", "k1"]
    assert rows["targets"][:] == [["甲"], ["甲"]]


def test_what_is_no_shard_says_what_one_is(jpeg, tmp_path, form):
    with pytest.raises(UserError, match="No file fits"):
        load_source(tmp_path / "gone*.tar", form=form)
    with pytest.raises(UserError, match="--caption_column"):
        load_source(shard(tmp_path / "s.tar", {"a": {"jpg": jpeg(0)}}), form=form)


def test_muge_has_no_columns_for_fields(write_muge, form):
    with pytest.raises(UserError, match="question"):
        load_source(*write_muge([0]), fields=["question"], form=form)


def test_shards_are_named_by_numbers_too_and_a_folder_of_them_says_how(jpeg, tmp_path):
    for number in (9, 10):
        shard(tmp_path / f"s{number:03}.tar", {f"k{number}": {"jpg": jpeg(number), "txt": "红".encode()}})
    form = TableForm(cache_dir=str(tmp_path / "cache"))
    assert len(load_source(tmp_path / "s{009..010}.tar", form=form, num_proc=0)) == 2
    with pytest.raises(UserError, match=r"names .*s011.tar, which does not exist"):
        load_source(tmp_path / "s{009..011}.tar", form=form, num_proc=0)
    with pytest.raises(UserError, match=r"may be shards: pass '.*\*\.tar'"):
        load_source(tmp_path, form=form, num_proc=0)


def test_parquet_whose_images_have_no_usual_name_asks_for_it(jpeg, tmp_path):
    Dataset.from_dict({"jpg": [jpeg(1)], "txt": ["红"]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(UserError, match="has no column image; it has jpg, txt.*--image_column"):
        load_source(tmp_path / "t.parquet", num_proc=0)
    form = TableForm(image_column="jpg", caption_column="txt", cache_dir=str(tmp_path / "cache"))
    assert load_source(tmp_path / "t.parquet", form=form, num_proc=0)["targets"][:] == [["红"]]
