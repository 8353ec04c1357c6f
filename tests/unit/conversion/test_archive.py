"""The published archive of a checkpoint that draws: unpacked for a while, and refused if anything is wrong with it."""

import errno
import random
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest

from ofa_hf.conversion.archive import unpack
from ofa_hf.conversion.convert import convert
from ofa_hf.errors import UserError


MEMBERS = {"image_gen/best.pt": b"checkpoint", "vqgan/last.ckpt": b"vqgan", "vqgan/model.yaml": b"a: 1"}


def write_archive(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_an_archive_is_unpacked_for_a_while(tmp_path):
    path = write_archive(tmp_path / "a.zip", {**MEMBERS, "clip/ViT-B-16.pt": b"clip", "readme.txt": b"hello"})
    with unpack(path, tmp_path) as files:
        assert [one.read_bytes() for one in (files.checkpoint, files.vqgan, files.settings)] == list(MEMBERS.values())
    assert [one.name for one in tmp_path.iterdir()] == ["a.zip"]


@pytest.mark.parametrize("name", ["../out.pt", "/out.pt", "a/../../out.pt", "..\\out.pt", "C:out.pt"])
def test_an_archive_with_a_path_out_of_it_is_refused(tmp_path, name):
    path = write_archive(tmp_path / "a.zip", {**MEMBERS, name: b"x"})
    with pytest.raises(UserError, match="names a file outside of it"), unpack(path, tmp_path):
        pytest.fail("unpacked")
    assert [one.name for one in tmp_path.iterdir()] == ["a.zip"]


@pytest.mark.parametrize("missing", MEMBERS)
def test_an_archive_without_one_of_the_files_is_refused(tmp_path, missing):
    path = write_archive(tmp_path / "a.zip", {name: data for name, data in MEMBERS.items() if name != missing})
    with (
        pytest.raises(UserError, match=rf"found .*0 {Path(missing).name.removeprefix('best')}"),
        unpack(path, tmp_path),
    ):
        pytest.fail("unpacked")


def test_a_damaged_archive_is_refused(tmp_path):
    path = write_archive(tmp_path / "a.zip", MEMBERS)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"vqgan/last.ckpt", b"vqgan/last.ckpX", 1))
    with pytest.raises(UserError, match="cannot be unpacked"), unpack(path, tmp_path):
        pytest.fail("unpacked")
    path.write_bytes(data[:100])
    with pytest.raises(UserError, match="cannot be unpacked"), unpack(path, tmp_path):
        pytest.fail("unpacked")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damaged_bytes_of_an_archive_are_an_error_of_the_archive(tmp_path, method):
    members = {name: random.Random(0).randbytes(3000) for name in MEMBERS}
    data = write_archive(tmp_path / "a.zip", members, method).read_bytes()
    draws = random.Random(0)
    unpacked = 0
    for _ in range(100):
        damaged = bytearray(data)
        for _ in range(5):
            damaged[draws.randrange(len(data))] = draws.randrange(256)
        (tmp_path / "a.zip").write_bytes(damaged)
        with suppress(UserError), unpack(tmp_path / "a.zip", tmp_path):
            unpacked += 1
    assert unpacked < 10


def test_a_full_disk_is_not_a_damaged_archive(tmp_path, monkeypatch):
    write_archive(tmp_path / "a.zip", MEMBERS)

    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", fail)
    with pytest.raises(UserError, match="The disk that holds .* is full. Free some space"):
        convert(tmp_path / "a.zip", tmp_path / "out")
    assert not list(tmp_path.glob("[.]ofa_hf*"))
    assert not (tmp_path / "out").exists()
