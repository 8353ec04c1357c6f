"""Promises of `ofa_hf.pages.scores`: one page that needs nothing else and trusts no text."""

import numpy as np
from PIL import Image

from ofa_hf.evaluation.evaluate import evaluate_predictions
from ofa_hf.pages.frame import THUMBNAIL_PIXELS
from ofa_hf.pages.scores import write_report


def result_of(captions: dict[str, str]):
    return evaluate_predictions(captions, {image_id: ["红色围巾"] for image_id in captions}, {"model": "<i>m</i>"})


def test_the_page_holds_captions_scores_and_small_images_and_loads_nothing(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (900, 600, 3), dtype=np.uint8)
    result = result_of({"a": "红色围巾", "b": "白色杯子"})
    write_report(result, tmp_path / "new/page.html", {"a": Image.fromarray(pixels)})
    page = (tmp_path / "new/page.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 1
    assert "no image" in page  # of b
    assert "红色围巾" in page
    assert "白色杯子" in page
    assert "http" not in page
    assert len(page) < 4 * THUMBNAIL_PIXELS**2


def test_text_from_outside_is_shown_and_never_run(tmp_path):
    evil = "<script>alert(1)</script>"
    write_report(result_of({evil: evil, "b": ""}), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "<i>m" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "(empty)" in page


def test_a_broken_image_leaves_its_card_in_the_page(tmp_path):
    write_report(result_of({"a": "红", "b": "白"}), tmp_path / "page.html", {"a": b"no image", "b": {"path": "gone"}})
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("broken image") == 2
