"""A folder of images with a text file of the same name next to each, as a table."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ofa_hf.errors import UserError
from ofa_hf.images.folders import walk_files, walk_images
from ofa_hf.tables.encodings import find_encoding, text_lines
from ofa_hf.tables.problems import MALFORMED_LINE, TARGETS_WITHOUT_IMAGE, WITHOUT_TARGETS, Problem


TEXT_FILES = "text files"  # kind of this table
TEXT_FILE = "text file"  # column with the file of a caption
SUFFIXES = (".txt", ".caption")
ALL_SUFFIXES = (*SUFFIXES, *map(str.upper, SUFFIXES))

Rows = Iterator[tuple[int, dict[str, Any] | Problem]]


def text_beside(image: str) -> str | None:
    """The text file that belongs to an image: `a.txt` to `a.jpg`, or `a.jpg.txt` where two images are called a."""
    return text_called(image) or text_called(os.path.splitext(image)[0])


def text_called(base: str) -> str | None:
    """The text file of this name and any of the suffixes."""
    return next(filter(os.path.isfile, (base + suffix for suffix in ALL_SUFFIXES)), None)


def read_text_files(folder: Path) -> Rows:
    """Yield the captions of each image, one per line; images without a text file are skipped.

    A text that belongs to two images, as `a.txt` to `a.jpg` and `a.png`, is a problem, and so is one without an image.
    """
    owners = Counter(filter(None, map(text_beside, walk_images(folder))))
    for entry in walk_files(folder, Counter()):
        if entry.name.lower().endswith(SUFFIXES) and entry.path not in owners:
            name = os.path.relpath(entry.path, folder).replace(os.sep, "/")
            read = text_called(os.path.splitext(entry.path)[0])
            why = f"{os.path.basename(read)} is read in its place" if read in owners else "no image of this name"
            yield 0, Problem(TARGETS_WITHOUT_IMAGE, entry.path, 0, name, why)
    for image in walk_images(folder):
        text = text_beside(image)
        if text is None:
            continue
        name = os.path.relpath(image, folder).replace(os.sep, "/")
        if owners[text] > 1:
            detail = f"it may belong to any of {owners[text]} images; call it {os.path.basename(name)}.txt"
            yield 0, Problem(MALFORMED_LINE, text, 0, name, detail)
            continue
        try:
            captions = [line.strip() for _, line in text_lines(text, find_encoding(text)) if line and line.strip()]
        except UserError as error:
            yield 0, Problem(WITHOUT_TARGETS, text, 0, name, str(error))
            continue
        yield 0, {"image": name, "caption": captions, TEXT_FILE: text}


def has_text_files(folder: Path) -> bool:
    """Whether any image of a folder has a text file next to it."""
    return any(map(text_beside, walk_images(folder)))


def texts_identity(folder: Path) -> list:
    """Path of a folder, number and total size of the texts next to its images, latest modification time."""
    count = size = latest = 0
    for text in filter(None, map(text_beside, walk_images(folder))):
        status = os.stat(text)
        count, size, latest = count + 1, size + status.st_size, max(latest, status.st_mtime_ns)
    return [str(folder.resolve()), count, size, latest]
