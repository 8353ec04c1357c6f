"""Promises of `ofa_hf.images.packed`: a packed folder is a folder, and can write nowhere else."""

import io
import tarfile
import zipfile

import pytest

from ofa_hf.errors import UserError
from ofa_hf.images.packed import unpacked


def files_of(folder) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_zip_file_is_unpacked_once_below_its_folder_alone(tmp_path):
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("a/红.jpg", "../out.jpg", "/abs.jpg", "C:\\x.jpg", "sub\\b.jpg", "__MACOSX/c.jpg"):
            archive.writestr(name, b"x")
        link = zipfile.ZipInfo("link.jpg")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    folder = unpacked(path, tmp_path / "cache")
    assert files_of(folder) == ["a/红.jpg", "abs.jpg", "sub/b.jpg"]
    (folder / "mark").touch()
    assert unpacked(path, tmp_path / "cache") == folder
    assert (folder / "mark").exists(), "it was not unpacked again"


def test_names_that_chinese_systems_wrote_into_a_zip_file_are_read(tmp_path):
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("aaaaaa.jpg", b"x")
    data = path.read_bytes().replace(b"aaaaaa.jpg", "红苹果".encode("gbk") + b".jpg")
    path.write_bytes(data)
    assert files_of(unpacked(path, tmp_path / "cache")) == ["红苹果.jpg"]


def test_a_tar_file_gives_its_files_and_no_links(tmp_path):
    path = tmp_path / "photos.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("a.jpg", "../../out.jpg"):
            item = tarfile.TarInfo(name)
            item.size = 1
            archive.addfile(item, io.BytesIO(b"x"))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert files_of(unpacked(path, tmp_path / "cache")) == ["a.jpg"]


def test_a_bomb_and_a_damaged_file_are_refused_and_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("ofa_hf.images.packed.SMALLEST", 1000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", bytes(10**6))
    (tmp_path / "torn.zip").write_bytes((tmp_path / "bomb.zip").read_bytes()[:100])
    for name, message in (("bomb.zip", "unpacks to more than"), ("torn.zip", "cannot be unpacked")):
        with pytest.raises(UserError, match=message):
            unpacked(tmp_path / name, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix == ".jpg"]


def test_any_other_path_stays_as_it_is(tmp_path):
    assert unpacked(tmp_path, tmp_path) == tmp_path
