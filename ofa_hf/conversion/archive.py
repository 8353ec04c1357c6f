"""The published archive of a checkpoint that draws: the checkpoint, its VQGAN and the description of the latter."""

import lzma
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from ofa_hf.errors import UserError, is_full_disk
from ofa_hf.inert_pickle import shown


DAMAGED = (  # what zipfile raises for damaged bytes and for methods that it does not know
    *(zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, OverflowError, struct.error),
    *(zlib.error, lzma.LZMAError),
)
WANTED = {"vqgan": "last.ckpt", "settings": "model.yaml"}  # and a .pt, the checkpoint


@dataclass
class Unpacked:
    """Files of an archive, in a folder that goes away."""

    checkpoint: Path
    vqgan: Path
    settings: Path


@contextmanager
def unpack(path: Path, beside: Path) -> Iterator[Unpacked]:
    """Unpack the three files that are needed, for as long as the context lasts.

    Args:
        beside: an existing folder on the disk to unpack to.

    Raises:
        UserError: it is no such archive, it is damaged, it names files outside of it, or the disk is too small.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (*DAMAGED, OSError) as error:
        raise UserError(f"{path} cannot be unpacked: {error}. Download it again.") from error
    with archive, TemporaryDirectory(prefix=".ofa_hf_unpacked_", dir=beside) as folder:
        members = find_members(path, archive)
        size = sum(member.file_size for member in members.values())
        if size > shutil.disk_usage(folder).free:
            raise UserError(
                f"The disk of {beside} is too small for {path.name}: {size:,} bytes are needed. Make room."
            )
        files = {}
        for name, member in members.items():
            files[name] = Path(folder, PurePosixPath(member.filename).name)
            try:
                with archive.open(member) as source, open(files[name], "wb") as target:
                    shutil.copyfileobj(source, target, 2**20)
            except (*DAMAGED, OSError) as error:
                if is_full_disk(error):
                    raise
                raise UserError(f"{path} cannot be unpacked: {error}. Download it again.") from error
        yield Unpacked(**files)


def find_members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The checkpoint, the VQGAN and its description.

    Raises:
        UserError: one of them is missing or is there twice, or a name leads out of the archive.
    """
    found: dict[str, list[zipfile.ZipInfo]] = {"checkpoint": [], **{name: [] for name in WANTED}}
    for member in archive.infolist():
        name = PurePosixPath(member.filename)
        if name.is_absolute() or ".." in name.parts or "\\" in member.filename or ":" in member.filename:
            raise UserError(f"{path} names a file outside of it: {shown(member.filename)}. Download it again.")
        if "__MACOSX" in name.parts or member.is_dir():
            continue
        kind = next((kind for kind, wanted in WANTED.items() if name.name == wanted), None)
        if name.suffix == ".pt" and name.parent.name != "clip":
            kind = "checkpoint"
        if kind is not None:
            found[kind].append(member)
    if any(len(members) != 1 for members in found.values()):
        seen = ", ".join(f"{len(members)} {WANTED.get(kind, '.pt')}" for kind, members in found.items())
        raise UserError(
            f"{path} is not the archive of a checkpoint that draws: expected one .pt, one last.ckpt and one "
            f"model.yaml, found {seen}. Unpack it and give the files."
        )
    return {kind: members[0] for kind, members in found.items()}
