"""The colour of a drawn product, read off the pixels alone."""

import numpy as np
from PIL import Image

from ofa_hf.samples.shop import COLOURS


LIVELY = 70  # difference between the largest and the smallest channel; walls, shadows and metal have less
LEAST_LIVELY = 0.06  # share of the pixels
DARK = 95  # the largest channel of a dark pixel; shadows are lighter
LEAST_DARK = 0.05
LIGHTNESS_WEIGHT = 0.5  # beside the hue: red and pink differ mostly in lightness
BLACK, WHITE = "黑色", "白色"
LIVELY_COLOURS = tuple(name for name in COLOURS if name not in (BLACK, WHITE))


def colour_of(image: Image.Image) -> str:
    """The colour of the product on an image of the shop, a key of `COLOURS`.

    Lively pixels vote for the colour of the nearest hue and lightness, each with its liveliness. Without enough of
    them the product is black if enough pixels are dark, and white if not.
    """
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64).reshape(-1, 3)
    chroma = pixels.max(-1) - pixels.min(-1)
    lively = chroma > LIVELY
    if lively.mean() < LEAST_LIVELY:
        return BLACK if (pixels.max(-1) < DARK).mean() > LEAST_DARK else WHITE
    palette = np.array([COLOURS[name] for name in LIVELY_COLOURS], dtype=np.float64)
    distances = hue_and_lightness(pixels[lively])[:, None] - hue_and_lightness(palette)[None]
    nearest = (distances**2).sum(-1).argmin(1)
    votes = np.bincount(nearest, weights=chroma[lively], minlength=len(palette))
    return LIVELY_COLOURS[int(votes.argmax())]


def hue_and_lightness(pixels: np.ndarray) -> np.ndarray:
    """`(N, 3)` lively RGB pixels → `(N, 4)`: the direction away from grey, and the weighted mean."""
    mean = pixels.mean(-1, keepdims=True)
    away = pixels - mean
    return np.concatenate([away / np.linalg.norm(away, axis=-1, keepdims=True), LIGHTNESS_WEIGHT * mean / 255], -1)
