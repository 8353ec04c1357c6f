"""Archives of images: zip and tar files, unpacked once into a cache."""

import hashlib
import logging
import os
import posixpath
import stat
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ofa_hf.errors import UserError, explain_full_disk
from ofa_hf.files import new_folder
from ofa_hf.images.folders import left_out_line


logger = logging.getLogger(__name__)

OUTSIDE, SYSTEM, LINK, SPECIAL = "path out of the folder", "system file", "link out of the archive", "special file"
MAX_LINKS = 8  # maximum number of links in a chain
LONGEST_LINK = 2**12  # bytes
SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
CHUNK = 2**20
MAX_BYTES_PER_BYTE = 200  # limit of the ratio; photos hardly compress, so more is suspicious
SMALLEST = 100 * 2**20  # bytes that can always be unpacked


def is_packed(path: str | Path) -> bool:
    """Whether a path is a zip or tar file by its name."""
    return str(path).lower().endswith(SUFFIXES) and os.path.isfile(path)


def unpacked(path: str | Path, cache: Path) -> Path:
    """The folder in a zip or tar file, unpacked on the first call; other paths are returned unchanged.

    Only files are unpacked, and only below the folder; a link becomes a copy of its target in the archive. Other
    entries are counted in a line of the log.

    Raises:
        UserError: the file is damaged, holds far more than a folder of images would, or the disk is full.
    """
    path = Path(path)
    if not is_packed(path):
        return path
    status = path.stat()
    identity = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
    target = cache / "unpacked" / f"{path.name[:60]}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    notes = target.with_name(f"{target.name}.left_out.txt")
    if not target.is_dir():
        limit = max(SMALLEST, MAX_BYTES_PER_BYTE * status.st_size)
        advice = "Free some space, or unpack the file yourself."
        with explain_full_disk(target.parent, advice), new_folder(target) as new:
            if line := _unpack(path, new.folder, limit):
                notes.write_text(line, "utf-8")
    if notes.is_file():
        logger.warning(notes.read_text("utf-8"))
    return target


def _unpack(path: Path, folder: Path, limit: int) -> str:
    """Unpack a file. Returns a line with counts of skipped entries; empty if there are none."""
    total, links, left_out = 0, {}, Counter()
    try:
        for name, source in _members(path, links, left_out):
            place = _place(name)
            if place is None:
                left_out[SYSTEM if "__MACOSX" in name else OUTSIDE] += 1
                continue
            file = folder / place
            file.parent.mkdir(parents=True, exist_ok=True)
            with source, file.open("wb") as target:
                while chunk := source.read(CHUNK):
                    total += len(chunk)
                    if total > limit:
                        raise UserError(
                            f"{path} unpacks to more than {limit:,} bytes, far more than images would. Unpack it "
                            "yourself if it is yours, and pass the folder."
                        )
                    target.write(chunk)
        _add_links(folder, links, left_out)
        return left_out_line(path, left_out)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, RuntimeError, NotImplementedError) as error:
        raise UserError(
            f"{path} cannot be unpacked ({_why(error)}). Get the file again, or unpack it yourself and pass the "
            "folder."
        ) from error


def _why(error: Exception) -> str:
    is_neither = isinstance(error, tarfile.ReadError) and "method" in str(error)
    return "it is not a complete zip or tar file" if is_neither else str(error)


def _members(path: Path, links: dict[str, str], left_out: Counter[str]) -> Iterator[tuple[str, BinaryIO]]:
    """Name and stream of each regular file. Links within the archive are added to `links` as name → target;
    other entries are counted."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for item in archive.infolist():
                kind = stat.S_IFMT(item.external_attr >> 16)
                if not item.is_dir() and kind in (0, stat.S_IFREG):
                    yield _name_in_zip(item), archive.open(item)
                elif kind == stat.S_IFLNK and item.file_size < LONGEST_LINK:
                    name = _name_in_zip(item)
                    links[name] = _beside(name, archive.read(item).decode("utf-8", "replace"))
                elif not item.is_dir():
                    left_out[SPECIAL] += 1
        return
    with tarfile.open(path) as archive:
        for item in archive:
            if item.isfile():
                yield item.name, archive.extractfile(item)
            elif item.islnk() or item.issym():
                links[item.name] = item.linkname if item.islnk() else _beside(item.name, item.linkname)
            elif not item.isdir():
                left_out[SPECIAL] += 1


def _beside(name: str, target: str) -> str:
    """The target of a symbolic link, as a name in its archive."""
    return posixpath.normpath(posixpath.join("" if target.startswith("/") else posixpath.dirname(name), target))


def _add_links(folder: Path, links: dict[str, str], left_out: Counter[str]) -> None:
    """Copies for links whose target is a file of the archive; no links are created."""
    for name, target in links.items():
        for _ in range(MAX_LINKS):  # a link can point to a link
            target = links.get(target, target)
        place, source = _place(name), _place(target)
        if place is None or source is None or target.startswith("/") or not (folder / source).is_file():
            left_out[LINK] += 1
        elif not (folder / place).exists():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            os.link(folder / source, folder / place)


def _name_in_zip(item: zipfile.ZipInfo) -> str:
    """A file's name. Without the flag for UTF-8, Chinese systems write GBK, which zipfile takes for cp437."""
    if item.flag_bits & 0x800:
        return item.filename
    data = item.filename.encode("cp437", "replace")
    for encoding in ("utf-8", "gb18030"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return item.filename


def _place(name: str) -> PurePosixPath | None:
    """Destination of a file below the folder; None if it would be elsewhere or is not needed."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    if not parts or ".." in parts or parts[0].endswith(":") or any(part.startswith("__MACOSX") for part in parts):
        return None
    return PurePosixPath(*parts)
