"""Boxes are written as the official code writes them, and read back into pixels."""

import json
from pathlib import Path

import pytest
import torch
from fixtures import recorded_tasks

from ofa_hf.boxes_ofa import NUM_PLACES, PlacesOnly, box_to_places, check_box, places_to_box


SHARED = Path(__file__).resolve().parents[3] / "shared" / "golden_tasks" / "box_golden.json"


def check_encoding(row: dict, size: int, target: list[int]) -> None:
    box = [float(side) for side in row["box"].split(",")]
    places = box_to_places(box, (row["w"], row["h"]), (size, size), row["max_image_size"])
    assert [place + recorded_tasks.FIRST_PLACE[row["lang"]] for place in places] == target[:4]


def check_decoding(row: dict) -> None:
    places = [token - recorded_tasks.FIRST_PLACE[row["lang"]] for token in row["tokens"][:4]]
    size = round(row["w_resize_ratio"] * row["w"])
    box = places_to_box(places, (row["w"], row["h"]), (size, size), row["max_image_size"])
    assert list(box) == ["xmin", "ymin", "xmax", "ymax"]
    assert list(box.values()) == pytest.approx(row["box"], rel=1e-6)


@pytest.mark.parametrize("row", recorded_tasks.facts()["box_to_places"])
def test_boxes_become_the_official_places(row):
    check_encoding(row, row["size"], row["target"])


@pytest.mark.parametrize("row", recorded_tasks.facts()["places_to_box"])
def test_places_become_the_official_boxes(row):
    check_decoding(row)


@pytest.mark.skipif(not SHARED.is_file(), reason="shared/golden_tasks/box_golden.json is not next to this repository")
def test_every_recorded_box_is_read_and_written_as_officially():
    recorded = json.loads(SHARED.read_text(encoding="utf-8"))
    for row in recorded["encode"]:
        if row["target_ids"][0] > 3:  # a box outside the image became <unk>
            check_encoding(row, row["patch_image_size"], row["target_ids"])
    for row in recorded["decode"]:
        check_decoding(row)


def test_halves_are_rounded_to_even():
    places = box_to_places((256, 768, 256, 768), (1024, 1024), (512, 512))
    assert places == [250, 749, 250, 749]  # 249.75 and 749.25
    odd = box_to_places((0.5, 1.5, 2.5, 3.5), (999, 999), (512, 512), max_size=512)
    assert odd == [0, 2, 2, 4]


def test_a_box_survives_the_way_there_and_back_at_any_size():
    for size in (256, 480, 512):
        places = box_to_places((20, 30, 400.5, 299), (640, 300), (size, size))
        box = places_to_box(places, (640, 300), (size, size))
        assert list(box.values()) == pytest.approx([20, 30, 400.5, 299], abs=0.75)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((5, 5, 5, 9), "does not fit an image of 40×20"),  # empty
        ((9, 5, 5, 9), "does not fit"),  # reversed
        ((0, 0, 41, 9), "does not fit"),
        ((-1, 0, 4, 9), "does not fit"),
        ((0, 0, float("nan"), 9), "does not fit"),
        ((0, 0, 4), "is not four numbers"),
        (("a", 0, 4, 9), "is not four numbers"),
        (None, "is not four numbers"),
    ],
)
def test_a_box_that_is_none_is_refused(box, message):
    with pytest.raises(ValueError, match=message):
        check_box(box, (40, 20))


def test_only_places_then_the_end():
    first = 10
    scores = torch.randn(2, first + NUM_PLACES + 5).log_softmax(-1)
    processor = PlacesOnly(first, eos_token_id=2)
    for length in range(1, 5):
        allowed = processor(torch.zeros(2, length, dtype=torch.long), scores).isfinite()
        assert allowed[:, first : first + NUM_PLACES].all()
        assert allowed.sum() == 2 * NUM_PLACES
    last = processor(torch.zeros(2, 5, dtype=torch.long), scores)
    assert last.isfinite().nonzero()[:, 1].tolist() == [2, 2]
    known = torch.cat([scores[:, :4], scores[:, first : first + NUM_PLACES]], dim=1)
    assert torch.allclose(last[:, 2], scores[:, 2] - known.logsumexp(-1))
    among_all = PlacesOnly(first, eos_token_id=2, renormalize=False)(torch.zeros(2, 5, dtype=torch.long), scores)
    assert torch.equal(among_all[:, 2], scores[:, 2])
