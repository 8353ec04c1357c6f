"""Every recorded grid of codes, image and preparation of the official VQGAN, that of the published size too.

`unit/data/test_codes.py` and `unit/conversion/test_vqgan.py` compare a part of them, which is kept here.
"""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.recorded import image_bytes
from PIL import Image


SHARED = Path(__file__).parents[2].parent / "shared" / "golden_gen"
CLOSE, CLOSE_OF_LARGE = 1e-4, 3e-4  # of values up to 10; the latter of grids above 16 × 16
SURE = 1e-3  # margin of a code over the next
pytestmark = [
    pytest.mark.skipif(not SHARED.is_dir(), reason="needs the recordings in ../shared/golden_gen, not here"),
    pytest.mark.slow,
]


@cache
def everything(name: str) -> tuple[dict, dict]:
    facts = json.loads((SHARED / f"golden_{name}.json").read_text(encoding="utf-8"))
    return facts, np.load(SHARED / f"golden_{name}.npz")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The recorded VQGANs, converted."""
    pytest.importorskip("diffusers", reason="drawing needs diffusers")
    from drawing_checkpoint import write_recorded_vqgan

    found = {}
    for name in ("mini", "attn2", "f8"):
        config = json.loads((SHARED / "specs" / f"spec_vqgan_{name}.json").read_text(encoding="utf-8"))["config"]
        seed = everything("vqganf8" if name == "f8" else "vqgan")[0]["meta"]["seed"]
        found[name] = write_recorded_vqgan(tmp_path_factory.mktemp(name), seed, {"model": config})
    return found


def error(recorded: dict, tag: str, found: torch.Tensor) -> float:
    assert tuple(recorded[f"{tag}/shape"]) == found.shape, tag
    places = torch.from_numpy(recorded[f"{tag}/idx"].astype(np.int64))
    return float((found.flatten()[places] - torch.from_numpy(recorded[f"{tag}/val"])).abs().max())


@pytest.mark.parametrize("source", ["vqgan", "vqganf8"])
def test_every_grid_of_codes_becomes_the_official_image(folders, source):
    from ofa_hf.image_processing_ofa import images_of_codes, load_image_decoder

    facts, arrays = everything(source)
    for tag, case in facts["decode"].items():
        decoder = load_image_decoder(str(folders[case["config"]]))
        codes = torch.tensor(case["codes"])
        with torch.no_grad():
            shape = (*codes.shape, decoder.config.vq_embed_dim)
            image = decoder.decode(codes, force_not_quantize=True, shape=shape).sample
        tolerance = CLOSE if max(codes.shape[1:]) <= 16 else CLOSE_OF_LARGE
        assert error(arrays, f"decode/{tag}/image", image) < tolerance, tag
        colors = np.concatenate([np.asarray(one).ravel() for one in images_of_codes(decoder, codes)]).astype(int)
        difference = np.abs(colors[arrays[f"decode/{tag}/u8/idx"]] - arrays[f"decode/{tag}/u8/val"].astype(int))
        assert difference.max() <= 1, tag
        assert (difference > 0).mean() <= 1 / 200, tag
    assert len(facts["decode"]) == {"vqgan": 8, "vqganf8": 1}[source]


@pytest.mark.parametrize("source", ["vqgan", "vqganf8"])
def test_every_image_becomes_the_official_codes(folders, source):
    from ofa_hf.data.codes import ImageEncoder, image_pixels

    facts, arrays = everything(source)
    for tag, case in facts["encode"].items():
        encoder = ImageEncoder.load(folders[case["config"]], device="cpu")
        images = [image_bytes(facts["meta"]["seed"], name, case["h"], case["w"]) for name in case["images"]]
        side = min(case["h"], case["w"])
        pixels = torch.stack([image_pixels(Image.fromarray(image), side, crop=False) for image in images])
        assert error(arrays, f"encode/{tag}/input", pixels) < 1e-6, tag
        with torch.no_grad():
            assert error(arrays, f"encode/{tag}/prequant", encoder.layers(pixels)) < CLOSE, tag
        assert error(arrays, f"encode/{tag}/logits", encoder.logits(pixels)) < CLOSE, tag
        recorded = torch.tensor(case["argmax_codes"])
        sure = torch.from_numpy(arrays[f"encode/{tag}/margin"] > SURE).view(recorded.shape)
        assert torch.equal(encoder.codes_of_pixels(pixels)[sure], recorded[sure]), tag
    assert len(facts["encode"]) == {"vqgan": 4, "vqganf8": 1}[source]


def test_every_image_is_prepared_as_officially():
    from ofa_hf.data.codes import image_pixels

    facts, arrays = everything("vqgan")
    for tag, case in facts["preprocess"].items():
        image = Image.fromarray(image_bytes(facts["meta"]["seed"], case["image"], case["h"], case["w"]))
        assert error(arrays, f"preprocess/{tag}", image_pixels(image, case["size"], crop=False)) < 1e-6, tag
        if case["h"] == case["w"]:
            assert torch.equal(image_pixels(image, case["size"]), image_pixels(image, case["size"], crop=False))
    assert len(facts["preprocess"]) == 12
