"""Find odd images in a data set: tiny or extreme ones, and duplicates within or between sets.

Images are compared by content: by their pixels, and approximately, so that resized or re-encoded copies are found too.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import numpy as np
from datasets import Dataset
from PIL import Image

from ofa_hf.image_loading_ofa import ImageError, load_image


SMALL, EXTREME = "very small image", "very long or wide image"
SAME, LEAKED = "duplicate image", "image also in the test set"
SMALLEST_SIDE = 32  # pixels
LONGEST_SHAPE = 5.0  # long side ÷ short side
EXAMPLES = 3
SIDE = 8  # side of the small copy that is compared
BANDS = 4  # parts of 16 bits; images are compared if one part is equal
MAX_COMPARED = 64  # images with an equal part to compare with
MAX_BITS = 5  # bits of 64 that may differ
MAX_DIFFERENCE = 6.0  # mean difference of the small copies, 0 … 255
AHEAD = 64  # images decoded in advance


class Content(NamedTuple):
    """Size of an image, digest of its pixels, 64-bit hash of its brightness gradients, and a small copy."""

    size: tuple[int, int]
    digest: bytes
    bits: int
    copy: np.ndarray


def content_of(image: Image.Image) -> Content:
    """The content of a decoded RGB image."""
    digest = hashlib.blake2b(image.tobytes(), digest_size=12, salt=b"%dx%d" % image.size[:2]).digest()
    gray = np.asarray(image.convert("L").resize((SIDE + 1, SIDE), Image.Resampling.BOX), dtype=np.int16)
    steps = (gray[:, 1:] > gray[:, :-1]).ravel()
    small = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.int16)
    return Content(image.size, digest, int.from_bytes(np.packbits(steps).tobytes(), "big"), small)


class Contents:
    """An index of images by content."""

    def __init__(self):
        self._names: list[str] = []
        self._copies: list[np.ndarray] = []
        self._bits: list[int] = []
        self._digests: dict[bytes, int] = {}
        self._bands: list[dict[int, list[int]]] = [{} for _ in range(BANDS)]

    def find(self, content: Content) -> str | None:
        """Name of an added image with this content; None if there is none."""
        if (place := self._digests.get(content.digest)) is not None:
            return self._names[place]
        for band, part in zip(self._bands, _parts(content.bits), strict=True):
            for place in band.get(part, ()):
                is_near = (self._bits[place] ^ content.bits).bit_count() <= MAX_BITS
                if is_near and np.abs(self._copies[place] - content.copy).mean() <= MAX_DIFFERENCE:
                    return self._names[place]
        return None

    def add(self, name: str, content: Content) -> None:
        place = len(self._names)
        self._names.append(name)
        self._bits.append(content.bits)
        self._copies.append(content.copy)
        self._digests.setdefault(content.digest, place)
        for band, part in zip(self._bands, _parts(content.bits), strict=True):
            places = band.setdefault(part, [])
            if len(places) < MAX_COMPARED:
                places.append(place)


def _parts(bits: int) -> list[int]:
    return [bits >> (16 * band) & 0xFFFF for band in range(BANDS)]


@dataclass
class ImageFaults:
    """Counts and examples of odd images by kind."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # kind → (image id, detail)

    def add(self, kind: str, image_id: str, detail: str) -> None:
        self.counts[kind] += 1
        if len(shown := self.examples.setdefault(kind, [])) < EXAMPLES:
            shown.append((image_id, detail))


def contents(rows: Dataset) -> Iterator[tuple[str, Content]]:
    """Id and content of each row's image, read in threads. Images that cannot be read are left out."""

    def read(row: dict) -> tuple[str, Content] | None:
        try:
            return row["id"], content_of(load_image(row["image"]))
        except ImageError:
            return None

    rows = iter(rows.select_columns(["id", "image"]))
    with ThreadPoolExecutor() as pool:
        while batch := list(islice(rows, AHEAD)):
            yield from filter(None, pool.map(read, batch))


def check_images(rows: Dataset, test: Dataset | None = None) -> ImageFaults:
    """Look at every image once.

    Args:
        test: rows of the test set, whose images must not be in `rows`.
    """
    faults, seen, kept = ImageFaults(), Contents(), Contents()
    for image_id, content in contents(test) if test is not None else ():
        kept.add(image_id, content)
    for image_id, content in contents(rows):
        width, height = content.size
        if min(width, height) < SMALLEST_SIDE:
            faults.add(SMALL, image_id, f"{width}×{height} pixels")
        elif max(width, height) > LONGEST_SHAPE * min(width, height):
            faults.add(EXTREME, image_id, f"{width}×{height} pixels")
        if (other := seen.find(content)) is not None:
            faults.add(SAME, image_id, f"the same as {other}")
        if (other := kept.find(content)) is not None:
            faults.add(LEAKED, image_id, f"{other} of the test set")
        seen.add(image_id, content)
    return faults
