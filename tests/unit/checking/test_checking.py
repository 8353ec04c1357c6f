"""Promises of `ofa_hf.checking.checking`: what is odd about captions and images is counted, and nothing else is."""

import io

import numpy as np
import pytest
from PIL import Image

from ofa_hf.checking.checking import check_data
from ofa_hf.data.sources import TableForm
from ofa_hf.errors import UserError
from ofa_hf.tasks_ofa import TASKS


def photo(seed: int, size=(96, 64)) -> Image.Image:
    """Soft shapes, as photos have them, another picture for every seed."""
    small = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def jpeg_of(image: Image.Image, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


@pytest.fixture
def shop(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(4):
        (photos / f"{number}.jpg").write_bytes(jpeg_of(photo(number)))
    return photos


def test_a_check_counts_what_finetune_would_train_on(shop, tmp_path):
    (shop / "tiny.png").write_bytes(b"")
    photo(9, (8, 8)).save(shop / "tiny.png")
    photo(8, (600, 60)).save(shop / "wide.png")
    photo(0).resize((48, 32)).save(shop / "again.webp", quality=60)
    table = tmp_path / "t.csv"
    lines = [
        "图片;标题",
        "x\\0.jpg;红色连衣裙",
        "1.jpg;蓝",
        "tiny.png;白色杯子",
        "wide.png;长围巾很长",
        "again;红裙子",
    ]
    table.write_bytes("\n".join([*lines, "gone.jpg;没有", "2.jpg;a;b"]).encode("gb18030"))
    form = TableForm(cache_dir=str(tmp_path / "cache"))
    check = check_data(table, shop, TASKS["caption"], form=form)
    found = check.as_dict()
    assert (found["images"], found["captions"]) == (5, 5)
    assert found["problems"] == {
        "targets without image": 1,
        "malformed line": 1,
        "no targets": 2,
        "near-empty caption": 1,
        "very small image": 1,
        "very long or wide image": 1,
        "duplicate image": 1,
    }
    assert found["assumed"]["encoding"] == "gb18030"
    assert found["assumed"]["separator"] == ";"
    assert found["assumed"]["columns"] == {"image": "图片", "caption": "标题"}
    assert found["examples"][0] == {"image_id": "x\\0.jpg", "captions": ["红色连衣裙"]}
    assert found["repaired"] == {"backslashes": 1, "folder in front": 1, "suffix missing": 1}
    assert "line 8: malformed line" in check.text()
    assert "the same as x\\0.jpg" in check.text()


def test_boxes_are_not_looked_up_in_the_vocabulary(shop, tmp_path):
    (tmp_path / "boxes.csv").write_text('image,text,box\n0.jpg,红,"1,2,30,40"\n', encoding="utf-8")
    form = TableForm(cache_dir=str(tmp_path / "cache"))
    check = check_data(tmp_path / "boxes.csv", shop, TASKS["grounding"], form=form, unknown=set)  # lacks everything
    assert (check.rows["targets"], check.characters) == ([["1,2,30,40"]], {})


def test_images_that_are_in_both_sets_are_found_by_content(shop, tmp_path):
    test = tmp_path / "test"
    test.mkdir()
    (test / "x.jpg").write_bytes(jpeg_of(photo(2).resize((80, 54)), 60))
    (test / "y.jpg").write_bytes(jpeg_of(photo(77)))
    for folder, names in ((shop, ("1.jpg", "2.jpg")), (test, ("x.jpg", "y.jpg"))):
        lines = "".join(f"{name},红色裙子\n" for name in names)
        (folder / "t.csv").write_text(f"image,caption\n{lines}", encoding="utf-8")
    form = TableForm(cache_dir=str(tmp_path / "cache"))
    check = check_data(shop / "t.csv", shop, TASKS["caption"], form=form, test=(test / "t.csv", test))
    assert check.odd == {"image also in the test set": 1}
    assert check.examples["image also in the test set"] == ["2.jpg: x.jpg of the test set"]


def test_data_of_which_nothing_can_be_used_says_why(shop, tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("image,caption\n0.jpg,红色,新款\n1.jpg,蓝,新\n", encoding="utf-8")
    check = check_data(table, shop, TASKS["caption"], form=TableForm(cache_dir=str(tmp_path / "cache")))
    assert check.as_dict()["images"] == 0
    assert check.as_dict()["problems"]["malformed line"] == 2
    assert check.as_dict()["assumed"]["columns"] == {"image": "image", "caption": "caption"}
    assert "in quotes" in check.text()
    assert "no usable row" in check.why_empty
    with pytest.raises(UserError, match="images are missing"):
        check_data(table, None, TASKS["caption"])


def test_answers_to_questions_may_be_short(shop, tmp_path):
    table = tmp_path / "q.csv"
    table.write_text("image,question,answer\n0.jpg,颜色?,红\n", encoding="utf-8")
    check = check_data(table, shop, TASKS["vqa"], form=TableForm(cache_dir=str(tmp_path / "cache")))
    assert (check.report.rows, check.odd) == (1, {})


def test_what_a_drawing_task_would_learn_is_checked_as_captions_are(shop, tmp_path):
    table = tmp_path / "pairs.csv"
    table.write_text("image,text\n0.jpg,a dog\n1.jpg,x\n2.jpg,\ngone.jpg,a cat\n", encoding="utf-8")
    check = check_data(table, shop, TASKS["image_generation"], form=TableForm(cache_dir=str(tmp_path / "cache")))
    assert check.report.rows == 2
    assert check.odd == {"near-empty caption": 1}
    assert "2 images with 2 captions would be trained on" in check.text()
