"""Promises of `ofa_hf.checking.image_check`: copies of an image are found, and different images are not."""

import io

import numpy as np
from PIL import Image

from ofa_hf.checking.image_check import Contents, content_of


def photo(seed: int) -> Image.Image:
    """Soft shapes, as in photos; another image for every seed."""
    small = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((96, 64), Image.Resampling.BICUBIC)


def saved_again(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=60)
    return Image.open(buffer).convert("RGB")


def test_copies_are_found_even_resized_or_saved_again():
    contents = Contents()
    for seed in range(20):
        contents.add(f"{seed}.jpg", content_of(photo(seed)))
    for copy in (photo(7), photo(7).resize((48, 32)), saved_again(photo(7)), saved_again(photo(7).resize((80, 54)))):
        assert contents.find(content_of(copy)) == "7.jpg"


def test_different_images_are_not_copies():
    contents = Contents()
    for seed in range(200):
        content = content_of(photo(seed))
        assert contents.find(content) is None
        contents.add(f"{seed}.jpg", content)
