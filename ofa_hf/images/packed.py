"""Packed folders of images: zip and tar files, unpacked once into a cache."""

import hashlib
import os
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ofa_hf.errors import UserError, explain_full_disk
from ofa_hf.files import new_folder


SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
CHUNK = 2**20
MAX_BYTES_PER_BYTE = 200  # unpacked; photos do not shrink, so more is no folder of images
SMALLEST = 100 * 2**20  # bytes that may be unpacked in any case


def is_packed(path: str | Path) -> bool:
    """Whether a path is a zip or tar file by its name."""
    return str(path).lower().endswith(SUFFIXES) and os.path.isfile(path)


def unpacked(path: str | Path, cache: Path) -> Path:
    """The folder that a zip or tar file holds, unpacked on the first call; any other path as it is.

    Only regular files are unpacked, below the folder and nowhere else.

    Raises:
        UserError: the file is damaged, holds far more than a folder of images would, or the disk is full.
    """
    path = Path(path)
    if not is_packed(path):
        return path
    status = path.stat()
    identity = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
    target = cache / "unpacked" / f"{path.name[:60]}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    if not target.is_dir():
        limit = max(SMALLEST, MAX_BYTES_PER_BYTE * status.st_size)
        advice = "Free some space, or unpack the file yourself."
        with explain_full_disk(target.parent, advice), new_folder(target) as new:
            _unpack(path, new.folder, limit)
    return target


def _unpack(path: Path, folder: Path, limit: int) -> None:
    total = 0
    try:
        for name, source in _members(path):
            place = _place(name)
            if place is None:
                continue
            file = folder / place
            file.parent.mkdir(parents=True, exist_ok=True)
            with source, file.open("wb") as target:
                while chunk := source.read(CHUNK):
                    total += len(chunk)
                    if total > limit:
                        raise UserError(
                            f"{path} unpacks to more than {limit:,} bytes, which no folder of images does. Unpack it "
                            "yourself if it is yours, and pass the folder."
                        )
                    target.write(chunk)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, RuntimeError, NotImplementedError) as error:
        raise UserError(
            f"{path} cannot be unpacked ({error}). Get the file again, or unpack it yourself and pass the folder."
        ) from error


def _members(path: Path) -> Iterator[tuple[str, BinaryIO]]:
    """Name and stream of each regular file."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for item in archive.infolist():
                kind = stat.S_IFMT(item.external_attr >> 16)
                if not item.is_dir() and kind in (0, stat.S_IFREG):
                    yield _name_in_zip(item), archive.open(item)
        return
    with tarfile.open(path) as archive:
        for item in archive:
            if item.isfile():
                yield item.name, archive.extractfile(item)


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
    """Where a file goes below the folder; None if it would go elsewhere or is nothing that is looked for."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    if not parts or ".." in parts or parts[0].endswith(":") or any(part.startswith("__MACOSX") for part in parts):
        return None
    return PurePosixPath(*parts)
