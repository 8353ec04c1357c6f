"""Find the images for the arguments of a command: files, folders with subfolders, and files of MUGE."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ofa_hf.data import FolderImages, ImagesById, load_muge
from ofa_hf.data.build import cache_root
from ofa_hf.errors import UserError
from ofa_hf.image_loading_ofa import IMAGE_SUFFIXES, URL_PREFIXES
from ofa_hf.images.folders import report_left_out, walk_images
from ofa_hf.images.image_finder import ImageFinder
from ofa_hf.images.packed import is_packed, unpacked


class ImageFile(os.PathLike):
    """The path of an image file, for `load_image`, even if its name looks like something else.

    `pathlib.Path` would intern the names of a million files. The interpreter's table of interned strings does not
    reuse the slots of deleted names, so it would grow by megabytes.
    """

    __slots__ = ("path",)

    def __init__(self, path: str):
        self.path = path

    def __fspath__(self) -> str:
        return self.path


def image_of(file: str) -> ImageFile | str:
    """The argument of `load_image` for a file with any name, or for a URL."""
    return file if file.startswith(URL_PREFIXES) else ImageFile(file)


class TableImages:
    """The image files that a table names.

    Args:
        folder: folder or archive of the images; by default the table's own folder.

    Raises:
        UserError: there is no such folder.
    """

    def __init__(self, table: str | os.PathLike, folder: str | os.PathLike | None = None):
        if folder is not None:
            folder = unpacked(folder, cache_root(None))
            if not os.path.isdir(folder):
                raise UserError(f"{folder} is not a folder. Pass the folder that holds the images of {table}.")
        self.folder = os.fspath(folder or os.path.dirname(table))
        self.finder = ImageFinder(self.folder or ".")

    def file(self, name: str) -> str:
        """The path of a name, see `ImageFinder`, or the name below the folder if it is not found; URLs are
        unchanged."""
        if name.startswith(URL_PREFIXES):
            return name
        found = self.finder.find(name).path or os.path.join(self.finder.folder, name)
        is_inside = found.startswith(self.finder.folder + os.sep)
        below = os.path.join(self.folder, os.path.relpath(found, self.finder.folder)) if is_inside else found
        return os.path.normpath(below)


def find_images(inputs: Iterable[str | os.PathLike], skip: Callable[[str], bool] = lambda file: False) -> list[str]:
    """List image files: named files with any suffix, and the images in folders, in order and without repetition.

    In folders, hidden files and other files are left out and counted in a line of the log. A zip or tar file stands
    for the folder in it.

    Args:
        skip: returns whether to leave out a file.

    Raises:
        UserError: a folder cannot be read, an input is a link, or there is no image at all.
    """
    inputs = [os.fspath(path) for path in inputs]
    if links := [path for path in inputs if path.startswith(("http://", "https://")) and not os.path.exists(path)]:
        raise UserError(
            f"{links[0][:300]} is a link. Accepted: image files and folders. Download it first, or pass the link to "
            f"the pipeline in Python."
        )
    inputs = [os.fspath(unpacked(path, cache_root(None))) for path in inputs]
    inputs = [os.path.normpath(path) for path in inputs]
    found = {}
    for path in inputs:
        for file in _walk(path) if os.path.isdir(path) else [path]:
            if not skip(file):
                found.setdefault(os.path.abspath(file), file)
    if not found:
        raise UserError(
            f"No images in {', '.join(inputs)}. Accepted: files ending in {' '.join(sorted(IMAGE_SUFFIXES))}, in "
            f"subfolders too. Name the images one by one, or another folder."
        )
    if not any(map(os.path.exists, found.values())):
        raise UserError(f"{', '.join(inputs)[:300]}: no such file or folder. Name images, or folders of images.")
    return list(found.values())


def _walk(folder: str) -> Iterator[str]:
    left_out: Counter[str] = Counter()
    yield from walk_images(folder, left_out)
    report_left_out(folder, left_out)


def open_images(path: str | os.PathLike) -> Mapping[str, Any]:
    """Images by id: those of a folder or archive by their names, or those of an image file of MUGE.

    Raises:
        UserError: there is no such folder or file.
    """
    if os.path.isdir(path) or is_packed(path):
        images = FolderImages(unpacked(path, cache_root(None)))
        images.report_left_out()
        return images
    return ImagesById(load_muge(None, path, check_images=False))  # broken images are found when they are answered
