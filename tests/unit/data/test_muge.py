"""Promises of `ofa_hf.data.muge`: every good row arrives as distributed, every bad one is named."""

import json
from collections import Counter

import pytest

from ofa_hf.data import load_muge, load_muge_splits, report_of
from ofa_hf.errors import UserError


BAD_CAPTIONS = [
    '{"image_id": "3", "text": ["again"]}',  # line 11 of ten good ones
    "{broken",
    '{"text": ["no id"]}',
    '{"image_id": "50", "text": ["nobody"]}',
    '{"image_id": "51", "text": "　"}',
    '{"image_id": "52", "text": [[3]]}',
    '{"image_id": "53", "text": ["of a broken image"]}',
]


@pytest.fixture
def bad_images(jpeg, tsv_line) -> list[bytes]:
    return [
        tsv_line("4", jpeg(99)),  # line 11
        b"no tab here\n",
        b"\tAAAA\n",
        tsv_line("53", b"no image"),
        b"54\t!!!!\n",
        tsv_line("51", jpeg(51)),
    ]


def problems(dataset) -> list[dict]:
    with open(report_of(dataset).report_file, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_images_keep_their_bytes_and_targets_their_order(write_muge, jpeg, tmp_path):
    dataset = load_muge(*write_muge(range(6)), cache_dir=tmp_path / "cache")
    assert dataset["id"][:] == [str(i) for i in range(6)]
    for i, row in enumerate(dataset):  # odd ones are url-safe base64
        assert row["image"] == {"bytes": jpeg(i), "path": None}
        assert row["targets"] == [f"标题{i}的{j}" for j in range(3)]
    assert report_of(dataset).problems == {}


@pytest.mark.parametrize("num_proc", [1, 3])
def test_every_problem_is_counted_with_its_line_and_no_good_row_is_lost(
    write_muge, bad_images, jpeg, tmp_path, num_proc
):
    files = write_muge(range(10), caption_lines=BAD_CAPTIONS, image_lines=bad_images)
    dataset = load_muge(*files, num_proc=num_proc, cache_dir=tmp_path / "cache")
    assert dataset["id"][:] == [str(i) for i in range(10)]
    assert dataset[4]["image"]["bytes"] == jpeg(4)
    found = {(p["kind"], p["file"].rpartition(".")[2], p["line"]) for p in problems(dataset)}
    assert found == {
        ("malformed line", "jsonl", 12),
        ("missing id", "jsonl", 13),
        ("targets without image", "jsonl", 14),
        ("empty target", "jsonl", 15),
        ("malformed line", "jsonl", 16),
        ("duplicate id", "tsv", 11),
        ("malformed line", "tsv", 12),
        ("missing id", "tsv", 13),
        ("broken image", "tsv", 14),
        ("broken image", "tsv", 15),
        ("no targets", "tsv", 16),
    }
    report = report_of(dataset)
    assert report.problems == Counter(p["kind"] for p in problems(dataset))
    assert (report.rows, report.targets) == (10, 31)
    assert "2 × broken image" in report.summary()


@pytest.mark.parametrize("num_proc", [1, 3])
def test_strict_stops_at_the_first_problem_with_its_line(write_muge, tsv_line, tmp_path, num_proc):
    files = write_muge(range(10), image_lines=[tsv_line("53", b"no image"), b"no tab here\n"])
    with pytest.raises(UserError, match=r"IC_train.tsv, line 11: no targets \(53\)"):
        load_muge(*files, strict=True, num_proc=num_proc, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*/"))


def test_strict_passes_files_without_a_problem(write_muge, tmp_path):
    assert len(load_muge(*write_muge(range(4)), strict=True, num_proc=2, cache_dir=tmp_path / "cache")) == 4


def test_train_and_valid_are_kept_apart_or_merged_on_demand(write_muge, tmp_path):
    write_muge(range(5), "train")
    write_muge([7, 8, 3], "valid")
    apart = load_muge_splits(tmp_path, cache_dir=tmp_path / "cache")
    assert {name: len(split) for name, split in apart.items()} == {"train": 5, "valid": 3}
    merged = load_muge_splits(tmp_path, merge=True, num_proc=2, cache_dir=tmp_path / "cache")["train"]
    assert merged["id"][:] == ["0", "1", "2", "3", "4", "7", "8"]  # 3 is in both: one image, the captions of both
    assert len(merged["targets"][3]) == 6
    assert [(p["kind"], p["line"]) for p in problems(merged)] == [("duplicate id", 3)]


def test_the_test_split_gives_images_without_captions(write_muge, tmp_path):
    _, images = write_muge(range(3), "test")
    (tmp_path / "ids.jsonl").write_text("".join(f'{{"image_id": "{i}"}}\n' for i in range(3)))
    for captions in (None, tmp_path / "ids.jsonl"):
        dataset = load_muge(captions, images, require_targets=False, cache_dir=tmp_path / "cache")
        assert dataset["targets"][:] == [[], [], []]


def test_captions_of_another_split_are_told_from_broken_ones(write_muge, tmp_path):
    captions, _ = write_muge(range(3), "train")
    _, images = write_muge(range(10, 13), "valid")
    with pytest.raises(UserError, match="share no id"):
        load_muge(captions, images, cache_dir=tmp_path / "cache")
    with pytest.raises(UserError, match="swapped"):
        load_muge(images, captions, cache_dir=tmp_path / "cache")


def test_empty_and_missing_files_are_said(write_muge, tmp_path):
    captions, images = write_muge(range(3))
    (tmp_path / "empty").touch()
    with pytest.raises(UserError, match="empty is empty"):
        load_muge(captions, tmp_path / "empty", cache_dir=tmp_path / "cache")
    with pytest.raises(UserError, match="Cannot read"):
        load_muge(tmp_path / "nowhere", images, cache_dir=tmp_path / "cache")
    with pytest.raises(UserError, match="not a file"):
        load_muge(captions, tmp_path, cache_dir=tmp_path / "cache")


def test_windows_line_ends_a_byte_order_mark_and_blank_lines_are_no_problem(write_muge, tmp_path):
    captions, images = write_muge(range(4))
    for path in (captions, images):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\r\n")
    dataset = load_muge(captions, images, cache_dir=tmp_path / "cache")
    assert len(dataset) == 4
    assert report_of(dataset).problems == {}


def test_captions_of_muges_images_may_be_any_table_with_ids_of_any_usual_name(write_muge, tmp_path):
    _, images = write_muge(range(3))
    table = tmp_path / "captions.csv"
    table.write_text("编号;标题\n0;红\n1;绿\n0;蓝\n", encoding="gb18030")
    dataset = load_muge(table, images, cache_dir=tmp_path / "cache")
    assert dataset["targets"][:] == [["红", "蓝"], ["绿"]]
    report = report_of(dataset)
    assert report.assumed["encoding"] == "gb18030"
    assert report.assumed["columns"] == {"image": "编号", "caption": "标题"}
    assert "Read as csv, gb18030, separator ';', image in column 编号, caption in column 标题." in report.notes()
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text('{"image_id": 0, "text": "红"}\n{"id": "1", "caption": ["绿"]}\n', encoding="utf-8")
    assert load_muge(mixed, images, cache_dir=tmp_path / "cache")["targets"][:] == [["红"], ["绿"]]
    with pytest.raises(UserError, match="has no column 卖点; it has 编号, 标题"):
        load_muge(table, images, target_column="卖点", cache_dir=tmp_path / "cache")
