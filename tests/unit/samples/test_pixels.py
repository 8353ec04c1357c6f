"""The colour of a product by its pixels."""

from PIL import Image, ImageFilter

from ofa_hf.samples.pixels import colour_of
from ofa_hf.samples.shop import COLOURS, KINDS, PATTERNS, Product, draw


PRODUCTS = [
    Product(kind, colour, PATTERNS[(row + column) % len(PATTERNS)])
    for row, kind in enumerate(KINDS)
    for column, colour in enumerate(COLOURS)
]


def test_the_colours_of_real_images_are_told_by_their_pixels():
    images = [draw(product, seed, size=64) for seed, product in enumerate(PRODUCTS)]
    right = sum(colour_of(image) == product.colour for image, product in zip(images, PRODUCTS))
    assert right >= 0.95 * len(PRODUCTS)
    blurred = [image.filter(ImageFilter.GaussianBlur(1)) for image in images]
    right = sum(colour_of(image) == product.colour for image, product in zip(blurred, PRODUCTS))
    assert right >= 0.9 * len(PRODUCTS)


def test_plain_images_have_the_colour_they_are_painted_in():
    assert {name: colour_of(Image.new("RGB", (8, 8), rgb)) for name, rgb in COLOURS.items()} == {n: n for n in COLOURS}
