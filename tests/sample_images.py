"""Images that the tests of loading and of processing share."""

import io

import numpy as np
from PIL import Image


def photo(width=64, height=48) -> Image.Image:
    """An image without two equal rows or columns."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows * 5 % 256, columns * 3 % 256, (rows * columns) % 256], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image: Image.Image, kind="PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()
