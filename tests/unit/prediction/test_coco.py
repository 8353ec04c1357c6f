"""Promises of `ofa_hf.prediction.coco`: labelling tools can read every annotation."""

import json

from ofa_hf.prediction.coco import CocoFile
from ofa_hf.prediction.outputs import Box


def test_boxes_without_area_are_left_out_and_counted(tmp_path, caplog):
    boxes = [Box((1.0, 2.0, 4.0, 6.0), 0.5, (10, 8)), Box((5.0, 0.0, 5.0, 8.0), 0.4, (10, 8)), Box(None, 0.1, (10, 8))]
    names = [("shop/a.jpg", "红"), ("shop/b.jpg", "红")]
    found = {"tiny": dict(zip(names, (boxes, boxes[1:2]), strict=True))}
    CocoFile(tmp_path / "boxes.json").write(names, found, {"beams": 1})
    whole = json.loads((tmp_path / "boxes.json").read_text(encoding="utf-8"))
    (only,) = whole["annotations"]
    assert (only["id"], only["image_id"], only["category_id"]) == (1, 1, 1)
    assert (only["bbox"], only["area"], only["score"]) == ([1.0, 2.0, 3.0, 4.0], 12.0, 0.5)
    assert [image["file_name"] for image in whole["images"]] == ["a.jpg", "b.jpg"]
    assert whole["info"]["boxes_without_area"] == 2
    assert "2 × box without area" in caplog.text
