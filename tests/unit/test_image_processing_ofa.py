import hashlib
import json
import random
import sys
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from fixtures.recorded import image_bytes
from PIL import Image
from sample_images import encoded, photo

from ofa_hf.image_loading_ofa import ImageError
from ofa_hf.image_processing_ofa import OFAImageProcessor


SHARED = Path(__file__).resolve().parents[3] / "shared"


def test_pixel_values_equal_torchvision_bit_for_bit():
    transforms = pytest.importorskip("torchvision.transforms")
    every_value = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    expected = transforms.Normalize(0.5, 0.5)(transforms.ToTensor()(Image.fromarray(every_value)))
    values = OFAImageProcessor(do_resize=False)(every_value, return_tensors="pt")["pixel_values"]
    assert torch.equal(values[0], expected)
    small = photo().resize((37, 21), Image.Resampling.BICUBIC)
    expected = transforms.Normalize(0.5, 0.5)(transforms.ToTensor()(small))
    values = OFAImageProcessor(size={"height": 21, "width": 37})(photo(), return_tensors="pt")["pixel_values"]
    assert torch.equal(values[0], expected)


@pytest.mark.skipif(
    not (SHARED / "golden" / "fill.py").is_file(), reason="shared/golden is not beside this repository"
)
@pytest.mark.skipif(PIL.__version__.split(".")[0] != "13", reason="recorded with Pillow 13; others round otherwise")
def test_pixel_values_equal_the_recorded_official_ones(monkeypatch):
    monkeypatch.syspath_prepend(str(SHARED / "golden"))
    fill = pytest.importorskip("fill")
    meta = json.loads((SHARED / "golden" / "golden_mini.json").read_text(encoding="utf-8"))["meta"]
    for case in meta["c14_preprocess"]:
        image = fill.image_u8(meta["seed"], case["name"], case["h"], case["w"])
        values = OFAImageProcessor(size=case["resolution"])(image)["pixel_values"]
        assert hashlib.sha256(values.tobytes()).hexdigest() == case["float_sha256"], case["name"]
    sys.modules.pop("fill", None)


def test_a_batch_may_hold_images_of_any_kind_and_size():
    values = OFAImageProcessor()([photo(), encoded(photo(9, 200)), np.zeros((5, 5), np.uint8)])["pixel_values"]
    assert values.shape == (3, 3, 480, 480)
    assert values.dtype == np.float32
    assert OFAImageProcessor(size=8)(np.zeros((2, 5, 5, 3), np.uint8))["pixel_values"].shape == (2, 3, 8, 8)


def test_every_setting_can_be_overridden_in_a_call():
    processor, white = OFAImageProcessor(size=16), Image.new("RGB", (4, 4), "white")
    assert processor(white, size={"height": 8, "width": 24})["pixel_values"].shape == (1, 3, 8, 24)
    assert processor(white, do_resize=False)["pixel_values"].shape == (1, 3, 4, 4)
    assert processor(white, do_normalize=False)["pixel_values"].max() == 1
    assert processor(white, do_normalize=False, do_rescale=False)["pixel_values"].max() == 255
    assert processor(white, do_normalize=False, rescale_factor=0.5)["pixel_values"].max() == 127.5
    assert processor(white, image_mean=[0, 0.5, 1], image_std=0.5)["pixel_values"][0, :, 0, 0].tolist() == [2, 1, 0]
    nearest = processor(photo(), resample=Image.Resampling.NEAREST)["pixel_values"]
    assert not np.array_equal(nearest, processor(photo())["pixel_values"])
    with pytest.raises(ImageError, match="Leave do_convert_rgb on"):
        processor(Image.new("L", (4, 4)), do_convert_rgb=False)


def test_what_makes_no_batch_is_refused():
    with pytest.raises(ValueError, match="images of one size"):
        OFAImageProcessor(do_resize=False)([photo(), photo(5, 5)])
    with pytest.raises(ValueError, match="no images"):
        OFAImageProcessor()([])
    with pytest.raises(ValueError, match="is not valid"):
        OFAImageProcessor(size={"shortest_edge": 224})


def test_a_saved_image_processor_comes_back_equal(tmp_path):
    processor = OFAImageProcessor(size={"height": 32, "width": 48}, image_mean=[0.1, 0.2, 0.3])
    processor.save_pretrained(tmp_path)
    loaded = OFAImageProcessor.from_pretrained(tmp_path)
    assert np.array_equal(loaded(photo())["pixel_values"], processor(photo())["pixel_values"])
    assert loaded.size == {"height": 32, "width": 48}


@pytest.mark.parametrize(
    ("size", "shape"),  # of the image, and of what it becomes: (width, height)
    [((640, 480), (480, 360)), ((300, 512), (281, 480)), ((47, 33), (480, 337)), ((1000, 20), (480, 64))],
)
def test_an_image_keeps_its_shape_in_the_middle_of_a_square(size, shape):
    values = OFAImageProcessor(size=480, fit="center")(photo(*size))["pixel_values"][0]
    resized = OFAImageProcessor(size={"width": shape[0], "height": shape[1]})(photo(*size))["pixel_values"][0]
    top, left = (480 - shape[1]) // 2, (480 - shape[0]) // 2
    assert np.array_equal(values[:, top : top + shape[1], left : left + shape[0]], resized)
    assert np.array_equal(values[:, 0, 0], resized[:, 0, 0])  # the edge is repeated
    assert np.array_equal(values[:, -1, -1], resized[:, -1, -1])


def test_the_official_place_in_the_square_is_random():
    processor = OFAImageProcessor(size=96)
    random.seed(7)
    places = {processor(photo(), fit="random")["pixel_values"].tobytes() for _ in range(8)}
    assert len(places) > 1
    assert processor(photo(), fit="center")["pixel_values"].tobytes() != processor(photo())["pixel_values"].tobytes()


def test_a_fit_that_is_none_is_refused():
    with pytest.raises(
        ValueError, match="Unknown fit 'left'. Accepted: stretch, center, start, end, random, document"
    ):
        OFAImageProcessor(fit="left")
    for size in ({"height": 96, "width": 64}, 32):
        with pytest.raises(ValueError, match="needs a square of at least 64 pixels"):
            OFAImageProcessor()(photo(), fit="center", size=size)


TRANSPARENT = ("RGBA", "LA")  # transparent parts become white here, and in the original whatever lies under them
OCR_FITS = {"first": "start", "last": "end", "centre": "center", "seed7": "random"}


def recorded_image(seed: str, row: dict) -> Image.Image:
    name, mode = row["name"].partition(" ")[0], row["kind"].partition("mode ")[2]
    pixels = image_bytes(seed, name, row["h"], row["w"])
    if mode == "CMYK":
        alpha = image_bytes(seed, "alpha", row["h"], row["w"])[:, :, :1]
        return Image.fromarray(np.concatenate([pixels, alpha], axis=2), "CMYK")
    if mode == "1":
        return Image.fromarray(pixels[:, :, 0]).point(lambda value: 255 * (value > 127), "1")
    return Image.fromarray(pixels[:, :, 0] if mode == "L" else pixels)


@pytest.mark.skipif(
    not (SHARED / "golden_tasks" / "image_golden.json").is_file(),
    reason="shared/golden_tasks is not beside this repository",
)
@pytest.mark.skipif(PIL.__version__.split(".")[0] != "13", reason="recorded with Pillow 13; others round otherwise")
def test_images_of_the_tasks_equal_the_recorded_official_ones():
    recorded = json.loads((SHARED / "golden_tasks" / "image_golden.json").read_text(encoding="utf-8"))
    compared = 0
    for row in recorded["images"]:
        if "error" in row or row["kind"].endswith(TRANSPARENT):  # the original takes no document of another size
            continue
        options = {"size": row["patch_image_size"]}
        if row.get("imagenet_mean_std"):
            options |= {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
        if "offset" in row:
            options["fit"] = "document" if "document" in row["kind"] else OCR_FITS[row["offset"]]
            random.seed(7)
        image = recorded_image(recorded["meta"]["seed"], row)
        values = OFAImageProcessor()(image, **options)["pixel_values"][0]
        assert hashlib.sha256(values.tobytes()).hexdigest() == row["float_sha256"], row
        compared += 1
    assert compared == 77
