"""Promises of `ofa_hf.prediction.drawing`: labels that can be read, in the image, in a font that has their script."""

import os

import numpy as np
import pytest
from PIL import Image, ImageColor

from ofa_hf.prediction import drawing
from ofa_hf.prediction.drawing import COLOURS, Labelled, chinese_font, draw_boxes, places_below, shortened


@pytest.fixture
def fonts(tmp_path, monkeypatch):
    """A folder that stands for all folders of fonts."""
    monkeypatch.setattr(drawing, "FONT_FOLDERS", (str(tmp_path),))
    monkeypatch.setattr(drawing, "_opens", lambda path: "broken" not in path)
    chinese_font.cache_clear()
    yield tmp_path
    chinese_font.cache_clear()


def test_a_font_with_chinese_is_found_wherever_it_lies(fonts):
    for name in (
        "DejaVuSans.ttf",
        "cjk/NotoSansCJK-broken.ttc",
        "cjk/NotoSansCJK.txt",
        "win/simsun.ttc",
        "win/msyh.ttc",
    ):
        (fonts / name).parent.mkdir(exist_ok=True)
        (fonts / name).touch()
    assert chinese_font() == str(fonts / "win" / "msyh.ttc")


def test_without_one_nothing_is_found(fonts):
    (fonts / "DejaVuSans.ttf").touch()
    assert chinese_font() is None
    assert drawing.can_write("red dress")
    assert not drawing.can_write("红裙")


@pytest.mark.parametrize("sides", [(0, 0, 199, 99), (150, 60, 200, 100), (0, 95, 200, 100), (199, 0, 200, 1)])
def test_a_box_and_its_label_are_drawn_in_the_image_and_on_a_copy(sides):
    image = Image.new("RGB", (200, 100), "white")
    drawn = draw_boxes(image, [Labelled(sides, "a label", "#ff0000")])
    assert drawn.size == image.size
    assert image.getcolors() == [(20000, (255, 255, 255))]
    pixels = np.asarray(drawn).reshape(-1, 3)
    assert (pixels == (255, 0, 0)).all(1).sum() > 200  # the label's ground
    assert ((pixels[:, 0] == 255) & (pixels[:, 1] > 0) & (pixels[:, 1] < 255)).any()  # and its letters


def test_labels_of_boxes_on_top_of_each_other_are_all_seen():
    boxes = [Labelled((40 + number, 30 + number, 150, 90), "a label", colour) for number, colour in enumerate(COLOURS)]
    drawn = draw_boxes(Image.new("RGB", (400, 400), "white"), boxes)
    grounds = {color: count for count, color in drawn.getcolors(1 << 20)}
    grounds = [grounds[ImageColor.getrgb(colour)] for colour in COLOURS]
    assert min(grounds) > 0.6 * max(grounds)


def test_a_label_that_is_too_wide_keeps_its_score():
    assert shortened("red dress 0.87", lambda text: len(text) <= 14) == "red dress 0.87"
    assert shortened("red dress 0.87", lambda text: len(text) <= 10) == "red… 0.87"
    assert shortened("红色连衣裙 0.87", lambda text: len(text) <= 8) == "红色… 0.87"
    assert shortened("red dress 0.87", lambda text: len(text) <= 5) == "0.87"
    assert shortened("0.87", lambda text: False) == "0.87"


def test_no_two_drawings_have_one_place(tmp_path):
    files = [os.path.join(tmp_path, name) for name in ("a/x.jpg", "b/x.jpg", "b/y.webp", "b/y.webp.png")]
    assert places_below(files) == ["a/x.jpg", "b/x.jpg", "b/y.webp.png", "b/y.webp_2.png"]
    assert places_below([*files[:1], "https://shop.example/photos/x.jpg?size=2"]) == ["x.jpg", "x_2.jpg"]
