"""Find the images for the arguments of a command: files, folders with subfolders, and files of MUGE."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ofa_hf.data import FolderImages, ImagesById, load_muge
from ofa_hf.data.build import cache_root
from ofa_hf.errors import UserError
from ofa_hf.image_loading_ofa import IMAGE_SUFFIXES, ImageError
from ofa_hf.images.folders import left_out_line, report_left_out, walk_images
from ofa_hf.images.image_finder import ImageFinder
from ofa_hf.images.links import LinkedFile, is_link
from ofa_hf.images.packed import is_packed, unpacked
from ofa_hf.tables.problems import counted


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

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageFile) and self.path == other.path

    def __hash__(self) -> int:
        return hash(self.path)


def image_of(file: str, cache_dir: str | None = None) -> os.PathLike:
    """What `load_image` takes for a file, whatever its name looks like, or for a link, which is fetched once."""
    return LinkedFile(file, cache_root(cache_dir)) if is_link(file) else ImageFile(file)


class TableImages:
    """The image files that a table names.

    Args:
        folder: that holds them, or a packed one; by default the table's own folder.
        cache_dir: folder of what is unpacked.

    Raises:
        UserError: there is no such folder.
    """

    def __init__(
        self, table: str | os.PathLike, folder: str | os.PathLike | None = None, cache_dir: str | None = None
    ):
        if folder is not None:
            folder = unpacked(folder, cache_root(cache_dir))
            if not os.path.isdir(folder):
                raise UserError(f"{folder} is not a folder. Pass the folder that holds the images of {table}.")
        self.folder = os.fspath(folder or os.path.dirname(table))
        self.finder = ImageFinder(self.folder or ".")

    def file(self, name: str) -> str:
        """The file of a name, see `ImageFinder`, as a path through the folder; a link as it is.

        Raises:
            ImageError: there is none; the nearest name is named.
        """
        if is_link(name):
            scheme, colon, rest = name.partition(":")
            return scheme.lower() + colon + rest
        found = self.finder.find(name).path
        if found is None:
            raise ImageError(f"{name[:500]}: {self.finder.explain(name)}. It was looked for in {self.folder or '.'}.")
        is_inside = found.startswith(self.finder.folder + os.sep)
        below = os.path.join(self.folder, os.path.relpath(found, self.finder.folder)) if is_inside else found
        return os.path.normpath(below)

    def notes(self) -> list[str]:
        """What was repaired and left out so far, a sentence each."""
        repaired = self.finder.repaired
        lines = [f"Names of images repaired: {counted(repaired)}." if repaired else ""]
        return list(filter(None, [*lines, left_out_line(self.folder or ".", self.finder.left_out)]))


def find_images(
    inputs: Iterable[str | os.PathLike],
    skip: Callable[[str], bool] = lambda file: False,
    cache_dir: str | None = None,
) -> list[str]:
    """List image files: named files whatever their suffix, and the images in folders, each file once and in order.

    In folders, hidden files and other files are left out and counted in a line of the log. A zip or tar file stands
    for the folder in it.

    Args:
        skip: whether to leave out a file.
        cache_dir: folder of what is unpacked.

    Raises:
        UserError: a folder cannot be read, an input is a link, or there is no image at all.
    """
    inputs = [os.fspath(path) for path in inputs]
    if links := [path for path in inputs if is_link(path) and not os.path.exists(path)]:
        raise UserError(
            f"{links[0][:300]} is a link. Accepted: image files, folders, and tables, which may name images by links. "
            f"Download it first, or put it into a table with a column url."
        )
    inputs = [os.fspath(unpacked(path, cache_root(cache_dir))) for path in inputs]
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


def open_images(
    path: str | os.PathLike, cache_dir: str | None = None, captions: str | os.PathLike | None = None
) -> Mapping[str, Any]:
    """Images by id: those of a folder or packed folder by their names, or those of an image file of MUGE.

    Args:
        cache_dir: folder of what is unpacked and built.
        captions: what is read with them; texts of a folder are not counted as left out.

    Raises:
        UserError: there is no such folder or file.
    """
    if os.path.isdir(path) or is_packed(path):
        images = FolderImages(unpacked(path, cache_root(cache_dir)))
        images.report_left_out(texts_are_read=captions is not None and os.path.isdir(captions))
        return images
    # a broken image is noticed when it is answered
    return ImagesById(load_muge(None, path, check_images=False, cache_dir=cache_dir))
