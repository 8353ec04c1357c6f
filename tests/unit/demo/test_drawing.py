"""What the demo asks its small model to draw, and what it says of the drawings."""

import json
from pathlib import Path

from PIL import Image

from ofa_hf.demo.drawing import DrawingResult, Drawn, caption_with_pattern, select_captions, unseen_products
from ofa_hf.demo.report import drawing_section
from ofa_hf.samples.shop import Product, read_products, split_products, write_shop


def test_a_hundred_different_products_are_drawn_and_their_captions_name_the_pattern():
    unseen = unseen_products(seed=0, count=100)
    assert len(set(unseen)) == 100
    assert set(unseen) >= set(split_products(0)[1])
    assert len(unseen_products(seed=0, count=3)) == 3
    for product in unseen:
        assert all(word in caption_with_pattern(product, 0) for word in (product.colour, product.pattern))


def test_products_to_be_drawn_are_not_learned(tmp_path):
    files = write_shop(tmp_path, num_train=60, num_valid=1, size=32)
    products, unseen = read_products(files.label_file), unseen_products(0, 100)
    kept = select_captions(files, products, unseen, tmp_path / "captions.jsonl").read_text(encoding="utf-8")
    names = [json.loads(line)["image_id"] for line in kept.splitlines()]
    assert 40 <= len(names) < 60
    assert not {products[name] for name in names} & set(unseen)


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
