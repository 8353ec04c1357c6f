"""Promises of `ofa_hf.tables.public`: public sets are read from the files as they are distributed."""

import json
import os
import pickle

import pytest

from ofa_hf.cli import main
from ofa_hf.data import Problem
from ofa_hf.data.sources import TableForm, load_source
from ofa_hf.errors import UserError
from ofa_hf.images.image_finder import ImageFinder
from ofa_hf.tables.public import join_words
from ofa_hf.tables.table_files import open_table


COCO_CN = "COCO_train2014_000000000072#0\t一只长颈鹿\nCOCO_train2014_000000000072#1\t两只\nCOCO_val2014_0001#0\t狗\n"
FILES = {
    "coco-cn": {
        "coco-cn_train.txt": "COCO_train2014_000000000072\n",
        "coco-cn_val.txt": "COCO_val2014_0001\n",
        "imageid.human-written-caption.txt": COCO_CN,
    },
    "coco-cn-translated": {
        "coco-cn_train.txt": "COCO_train2014_000000000072\n",
        "imageid.manually-translated-caption.txt": "COCO_train2014_000000000072#0\t译文\n",
    },
    "flickr8k-cn": {"flickr8kzhc.caption.txt": "1305564994_513.jpg#zhc#0 一个人 走路\n1305564994_513.jpg#zhc#1 人\n"},
    "flickr30k-cn": {
        "flickr30k-cn/TextData/seg.flickr30kzhbbosontrain.caption.txt": "1000092795#0 两个 白人 穿 Nike Air 鞋\n",
        "flickr30k-cn/TextData/seg.flickr30kzhmbosontest.caption.txt": "2#0 狗\n",
    },
    "flickr30k-cna": {
        "flickr30k_cna_train.txt": "1000092795#0\t两个年轻人\n",
        "flickr30k_cn_test.txt": "2.jpg#0\t狗\n",
    },
    "aic-icc": {
        "caption_train_annotations_20170902.json": json.dumps(
            [{"url": "http://a.cn/1", "image_id": "8f00.jpg", "caption": ["房间里", "一个人"]}]
        )
    },
    "coco": {
        "annotations/captions_train2017.json": json.dumps(
            {
                "images": [{"id": 9, "file_name": "000009.jpg"}],
                "annotations": [{"id": 1, "image_id": 9, "caption": "a"}],
            }
        )
    },
}
ROWS = {
    "coco-cn": [("COCO_train2014_000000000072.jpg", "一只长颈鹿"), ("COCO_train2014_000000000072.jpg", "两只")],
    "coco-cn-translated": [("COCO_train2014_000000000072.jpg", "译文")],
    "flickr8k-cn": [("1305564994_513.jpg", "一个人 走路"), ("1305564994_513.jpg", "人")],
    "flickr30k-cn": [("1000092795.jpg", "两个白人穿Nike Air鞋")],
    "flickr30k-cna": [("1000092795.jpg", "两个年轻人")],
    "aic-icc": [("8f00.jpg", ["房间里", "一个人"])],
    "coco": [("000009.jpg", "a")],
}
REFS = [
    {
        "ref_id": 0,
        "ann_id": 5,
        "image_id": 9,
        "split": "train",
        "file_name": "COCO_train2014_000000000009_5.jpg",
        "sentences": [{"raw": "left man ", "sent": "left man", "tokens": ["left", "man"]}, {"sent": "him"}],
    },
    {"ref_id": 1, "ann_id": 6, "image_id": 9, "split": "testA", "sentences": []},
    {"ref_id": 2, "ann_id": 7, "image_id": 9, "split": "train", "sentences": []},
]
INSTANCES = {
    "images": [{"id": 9, "file_name": "COCO_train2014_000000000009.jpg"}],
    "annotations": [{"id": 5, "bbox": [1.5, 2, 10, 20]}, {"id": 6, "bbox": [0, 0, 1, 1]}],
}


def write(folder, files: dict[str, str]):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", FILES)
def test_captions_of_public_sets_are_tables(tmp_path, name):
    table = open_table(f"{name}:{write(tmp_path, FILES[name])}@train")
    rows = [(row.get("image") or row["image_id"], row["caption"]) for _, row in table]
    assert rows == ROWS[name]
    assert table.assumed["kind"] == f"{name}, train"


def test_other_splits_and_what_is_missing(tmp_path):
    folder = write(tmp_path, {**FILES["coco-cn"], **FILES["flickr30k-cna"], **FILES["flickr30k-cn"]})
    assert [row["caption"] for _, row in open_table(f"coco-cn:{folder}@val")] == ["狗"]
    assert [row["image"] for _, row in open_table(f"flickr30k-cna:{folder}@test")] == ["2.jpg"]
    assert [row["image"] for _, row in open_table(f"Flickr30k-CN:{folder}@test")] == ["2.jpg"]
    with pytest.raises(UserError, match="has no split 'dev'; it has train, val, test"):
        open_table(f"coco-cn:{folder}@dev")
    with pytest.raises(UserError, match=r"holds no caption_train_annotations\*.json"):
        open_table(f"aic-icc:{folder}")
    (folder / "flickr30k_cna_val.txt").write_text("无编号\n", encoding="utf-8")
    assert [row.line for _, row in open_table(f"flickr30k-cna:{folder}@val") if isinstance(row, Problem)] == [1]


def python_2(value) -> bytes:
    """A pickle as Python 2 wrote it, text in bytes; the names of its memo are of no use here."""
    if isinstance(value, dict):
        return b"(dp0\n" + b"".join(python_2(key) + python_2(item) + b"s" for key, item in value.items())
    if isinstance(value, list):
        return b"(lp1\n" + b"".join(python_2(item) + b"a" for item in value)
    return f"S'{value}'\np2\n".encode() if isinstance(value, str) else f"I{value}\n".encode()


@pytest.mark.parametrize("form", ["python 2", 0, 2, 4])
def test_refcoco_is_read_as_data_with_boxes_in_pixels(tmp_path, form):
    (tmp_path / "instances.json").write_text(json.dumps(INSTANCES))
    data = python_2(REFS) + b"." if form == "python 2" else pickle.dumps(REFS, protocol=form)
    (tmp_path / "refs(unc).p").write_bytes(data)
    rows = [row for _, row in open_table(f"refcoco:{tmp_path}@train")]
    image, box = "COCO_train2014_000000000009.jpg", "1.5,2,11.5,22"
    assert rows[:2] == [
        {"image": image, "text": "left man", "box": box, "caption": "left man"},
        {"image": image, "text": "him", "box": box, "caption": "him"},
    ]
    assert isinstance(rows[2], Problem)


def test_a_pickle_that_would_run_something_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, ("touch /tmp/never",)

    (tmp_path / "instances.json").write_text(json.dumps(INSTANCES))
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps([Evil()]))
    with pytest.raises(UserError, match=r"refs\(unc\).p cannot be read"):
        list(open_table(f"refcoco:{tmp_path}@train"))


@pytest.mark.parametrize("text", ["{", "[]", '{"images": []}', '{"images": [1], "annotations": []}'])
def test_instances_without_images_and_boxes_are_refused(tmp_path, text):
    (tmp_path / "instances.json").write_text(text)
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(REFS))
    with pytest.raises(UserError, match="instances.json .*Get RefCOCO's file again"):
        list(open_table(f"refcoco:{tmp_path}@train"))


def test_a_public_set_is_loaded_with_its_images(tmp_path, jpeg):
    photos = tmp_path / "images" / "train2014"
    photos.mkdir(parents=True)
    (photos / "COCO_train2014_000000000072.jpg").write_bytes(jpeg(1))
    folder = write(tmp_path / "coco-cn", FILES["coco-cn"])
    form = TableForm(cache_dir=str(tmp_path / "cache"))
    rows = load_source(f"coco-cn:{folder}@train", tmp_path / "images", form=form, num_proc=0)
    assert rows["targets"][:] == [["一只长颈鹿", "两只"]]


def test_muge_has_a_name_too(write_muge, tmp_path, capsys):
    write_muge([1, 2])
    assert main(["check", f"muge:{tmp_path}@train", "--json", "--cache-dir", str(tmp_path / "cache")]) == 0
    assert json.loads(capsys.readouterr().out)["captions"] == 6


def test_segmented_words_are_joined_as_they_are_written():
    assert join_words("一只 iPhone 15 Pro 和 狗") == "一只iPhone 15 Pro和狗"


def test_images_are_found_below_the_folder_that_is_named(tmp_path):
    (tmp_path / "train2014").mkdir()
    (tmp_path / "train2014" / "COCO_train2014_1.jpg").touch()
    assert ImageFinder(tmp_path).find("COCO_train2014_1.jpg").path.endswith("train2014/COCO_train2014_1.jpg")
