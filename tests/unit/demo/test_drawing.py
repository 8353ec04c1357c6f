"""What the demo asks its small model to draw, and what it says of the drawings."""

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from ofa_hf import OFAForConditionalGeneration, OFAProcessor
from ofa_hf.conversion.convert import convert
from ofa_hf.conversion.vocabulary import build_tokenizer
from ofa_hf.demo.drawing import (
    DrawingResult,
    DrawingSize,
    Drawn,
    caption_with_pattern,
    run_drawing,
    unseen_products,
    write_pairs,
)
from ofa_hf.demo.image_codes import VQGANTraining
from ofa_hf.demo.pretraining import small_config
from ofa_hf.demo.report import drawing_section
from ofa_hf.samples.official_file import write_official_checkpoint
from ofa_hf.samples.shop import Product, is_right, split_products, write_shop


SMALL = DrawingSize(
    num_drawn=2,
    pixels=16,
    num_train=12,
    vqgan=VQGANTraining(factors=(1, 1, 1, 1), width=8, codes=4, steps=4),
    epochs=0.2,
    num_images=2,
)


def test_a_hundred_different_products_are_drawn_and_their_captions_name_the_pattern():
    unseen = unseen_products(seed=0, count=100)
    assert len(set(unseen)) == 100
    assert set(unseen) >= set(split_products(0)[1])
    assert len(unseen_products(seed=0, count=3)) == 3
    for product in unseen:
        assert all(word in caption_with_pattern(product, 0) for word in (product.colour, product.pattern))


def test_products_to_be_drawn_are_not_learned(tmp_path):
    unseen, size = unseen_products(0, 100), DrawingSize(num_train=50, pixels=32)
    caption_file, image_file = write_pairs(unseen, size, 0, tmp_path)
    rows = [json.loads(line) for line in caption_file.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == len(image_file.read_text(encoding="ascii").splitlines()) == 50
    named = {text for row in rows for text in row["text"]}
    for product in unseen:
        assert not any(is_right(text, product) and product.pattern in text for text in named)


def test_both_judges_are_counted_and_shown():
    bag, cup = Product("包包", "红色", "纯色"), Product("杯子", "蓝色", "条纹")
    image, real = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (128, 128), "blue")
    drawn = [
        Drawn(bag, "红色纯色包包", image, real, "红色", "红色包包"),
        Drawn(cup, "<蓝色条纹杯子>", image, real, "红色", "蓝色杯子"),
        Drawn(cup, "蓝色条纹杯子", image, real, "红色", "红色杯子"),
    ]
    result = DrawingResult(Path("model"), Path("images"), drawn, 3, 2)
    assert result.as_dict() == {
        "drawn": 3,
        "colour_right": 1,
        "named_right": 2,
        "real_colour_right": 3,
        "real_named_right": 2,
        "model": "model",
        "images": "images",
    }
    page = drawing_section(result)
    assert page.count("<article") == 3
    assert page.count("<img") == 6
    assert page.count('class="right"') == 1
    assert "1 of 3" in page
    assert "64 codes" in page
    assert "&lt;蓝色条纹杯子&gt;" in page


def test_official_files_are_converted_finetuned_drawn_with_and_judged(tmp_path):
    pytest.importorskip("diffusers", reason="the VQGAN is one of diffusers, which is not installed")
    files = write_shop(tmp_path / "shop", num_train=12, num_valid=1, size=32)
    model = OFAForConditionalGeneration(small_config(len(build_tokenizer(files.vocab_file))))
    checkpoint = tmp_path / "small.pt"
    write_official_checkpoint(model.eval(), checkpoint, 32)
    convert(checkpoint, tmp_path / "captioner", files.vocab_file, image_size=32, verify=False)
    steps = []

    @contextmanager
    def step(name):
        steps.append(name)
        yield

    result = run_drawing(tmp_path / "out", files.vocab_file, tmp_path / "captioner", SMALL, 0, step)
    assert len(steps) == 5
    assert result.as_dict()["drawn"] == 2
    assert result.real_colour_right == 2
    assert [one.image.size for one in result.drawn] == [(16, 16)] * 2
    assert len(list(result.images.glob("*-[12].png"))) == 4
    account = json.loads((tmp_path / "out" / "converted" / "conversion.json").read_text(encoding="utf-8"))
    assert account["proof"]["max_difference"] == 0
    assert OFAProcessor.from_pretrained(result.model).codes()[1] == SMALL.vqgan.codes
    assert account["checkpoint"]["task"] == "image_generation"
