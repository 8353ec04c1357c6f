"""Promises of `ofa_hf.data.caption_index`."""

from ofa_hf.data.caption_index import CaptionIndex


def test_captions_keep_their_order_and_a_known_image_is_told(tmp_path):
    index = CaptionIndex(tmp_path / "index")
    assert index.add("a", ["二", "一"], "f", 1)
    assert index.add("b", ["三"], "f", 2)
    assert not index.add("a", ["四"], "f", 3)
    assert index.captions("a") == ["二", "一", "四"]
    assert index.captions("unknown") == []
    assert len(index) == 2


def test_another_reader_sees_what_was_committed(tmp_path):
    index = CaptionIndex(tmp_path / "index")
    index.add("a", ["一"], "f", 1)
    index.commit()
    assert CaptionIndex(tmp_path / "index").captions("a") == ["一"]


def test_images_that_never_came_are_listed_in_order():
    index = CaptionIndex()
    for line, image_id in enumerate("cab", start=1):
        index.add(image_id, ["x"], "f", line)
    index.mark_found("a")
    assert list(index.not_found()) == [("c", "f", 1), ("b", "f", 3)]
