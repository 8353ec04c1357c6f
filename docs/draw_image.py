"""Draw the image at the top of the README: python docs/draw_image.py"""

from pathlib import Path

from PIL import Image

from ofa_hf.samples.shop import Product, draw


PATH = Path(__file__).parent / "images" / "dress.jpg"
PRODUCT = Product("连衣裙", "红色", "格子")  # the demo keeps this combination out of its training images


def draw_image() -> Image.Image:
    return draw(PRODUCT, seed=7, size=320)


if __name__ == "__main__":
    draw_image().save(PATH, quality=90)
