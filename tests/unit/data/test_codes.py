"""Images become the official codes, whatever their shape; a checkpoint that cannot make codes is refused."""

import json
import shutil
import sys

import pytest
import torch
from fixtures.recorded import FIXTURES, image_bytes
from PIL import Image
from safetensors.torch import load_file, save_file

from ofa_hf.data.codes import ImageEncoder, image_pixels
from ofa_hf.errors import UserError


RECORDED = json.loads((FIXTURES / "recorded_vqgan.json").read_text(encoding="utf-8"))


def image_of(name: str, height: int, width: int) -> Image.Image:
    return Image.fromarray(image_bytes(RECORDED["seed"], name, height, width))


@pytest.fixture(scope="module")
def encoders(recorded_vqgans):
    return {name: ImageEncoder.load(folder, device="cpu") for name, folder in recorded_vqgans.items()}


@pytest.mark.parametrize("name", RECORDED["encoded"])
def test_images_become_the_official_codes(encoders, name):
    case, encoder = RECORDED["encoded"][name], encoders[name.split("/")[0]]
    images = [image_of(image, case["h"], case["w"]) for image in case["images"]]
    logits = encoder.logits(torch.stack([image_pixels(image, 64) for image in images]))
    assert (logits.flatten()[case["places"]] - torch.tensor(case["logits"])).abs().max() < 1e-4
    different = encoder.codes(images, 64) != torch.tensor(case["argmax_codes"])
    assert int(different.sum()) <= case["unsure"]


def test_codes_are_sampled_as_the_original_does_and_a_seed_brings_them_again(encoders):
    case, encoder = RECORDED["encoded"]["attn2/e64"], encoders["attn2"]
    images = [image_of(image, case["h"], case["w"]) for image in case["images"]]
    sampled = [
        encoder.codes(images, 64, sample=True, generator=torch.Generator().manual_seed(seed)) for seed in (7, 7, 8)
    ]
    assert torch.equal(sampled[0], sampled[1])
    assert not torch.equal(sampled[0], sampled[2])
    # two codes may be equally probable but for rounding
    assert (sampled[0] != torch.tensor(case["official_encode_seed7"])).sum() <= 2


@pytest.mark.parametrize("name", RECORDED["prepared"])
def test_images_are_prepared_as_officially(name):
    case = RECORDED["prepared"][name]
    pixels = image_pixels(image_of(case["image"], case["h"], case["w"]), case["size"], crop=False)
    assert list(pixels.shape) == case["shape"]
    assert (pixels.flatten()[case["places"]] - torch.tensor(case["values"])).abs().max() < 1e-6


def test_images_of_any_mode_and_shape_give_a_square_of_codes(encoders):
    square = image_of("x", 100, 100)
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste(square, (100, 0))
    images = [square, wide, square.convert("RGBA"), Image.new("1", (9, 3)), Image.new("L", (64, 640))]
    codes = encoders["mini"].codes(images, 128)
    assert codes.shape == (5, 16, 16)
    assert codes.dtype == torch.int64
    assert torch.equal(codes[0], codes[1])  # of the square in the middle
    assert torch.equal(codes[0], codes[2])
    with pytest.raises(ValueError, match="multiples of 8"):
        encoders["mini"].codes([square], 100)


def test_another_vqgan_has_another_digest(encoders, recorded_vqgans):
    again = ImageEncoder.load(recorded_vqgans["mini"], device="cpu")
    assert again.digest == encoders["mini"].digest != encoders["attn2"].digest


def test_a_checkpoint_that_cannot_make_codes_is_refused(recorded_vqgans, encoders, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"attn2.*512 codes of 8 × 8 pixels. Accepted: 8,192"):
        encoders["attn2"].check_codes(8192)
    with pytest.raises(UserError, match=r"has no vqgan/code_logits.safetensors.*--vqgan last.ckpt"):
        ImageEncoder.load(tmp_path, device="cpu")
    folder = tmp_path / "model"
    shutil.copytree(recorded_vqgans["attn2"], folder)
    path = folder / "vqgan" / "code_logits.safetensors"
    save_file({name: tensor[:9].clone() for name, tensor in load_file(path).items()}, path)
    with pytest.raises(UserError, match="does not fit its VQGAN, which has 512 codes of width 32"):
        ImageEncoder.load(folder, device="cpu")
    (folder / "vqgan" / "config.json").unlink()
    with pytest.raises(UserError, match="has no VQGAN in vqgan/"):
        ImageEncoder.load(folder, device="cpu")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r"ofa-hf\[draw\]"):
        ImageEncoder.load(recorded_vqgans["attn2"], device="cpu")
