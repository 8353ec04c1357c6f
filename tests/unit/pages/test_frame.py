"""Promises of `ofa_hf.pages.frame`: what all pages share is small and escaped."""

import io

from PIL import Image

from ofa_hf.pages.frame import THUMBNAIL_PIXELS, fact_rows, html_page, thumbnail


def test_a_thumbnail_keeps_its_shape_and_is_never_enlarged_or_empty():
    for size, expected in (
        ((1440, 720), (THUMBNAIL_PIXELS, THUMBNAIL_PIXELS // 2)),
        ((40, 30), (40, 30)),
        ((1, 5000), (1, THUMBNAIL_PIXELS)),
    ):
        image = Image.new("RGB", size)
        assert Image.open(io.BytesIO(thumbnail(image))).size == expected
        assert image.size == size


def test_titles_and_facts_are_text():
    page = html_page("<b>", "body {} %s", "p { color: red; }")
    assert "<title>&lt;b&gt;</title>" in page
    assert "<h1>&lt;b&gt;</h1>\nbody {} %s\n" in page
    assert "p { color: red; }" in page
    assert fact_rows({"<i>": ["a", "<b>"]}) == "<tr><td>&lt;i&gt;</td><td>a, &lt;b&gt;</td></tr>"
