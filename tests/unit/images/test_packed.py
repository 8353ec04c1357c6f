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


def test_links_in_an_archive_are_files_and_what_is_left_out_is_counted_each_time(tmp_path, caplog):
    path = tmp_path / "photos.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("p/a.jpg", "../out.jpg"):
            item = tarfile.TarInfo(name)
            item.size = 3
            archive.addfile(item, io.BytesIO(b"abc"))
        links = {"p/hard.jpg": "p/a.jpg", "q/soft.jpg": "../p/a.jpg", "p/again.jpg": "../q/soft.jpg"}
        for name, target in {
            **links,
            "bad.jpg": "/etc/hostname",
            "up.jpg": "../../x.jpg",
            "round.jpg": "round.jpg",
        }.items():
            item = tarfile.TarInfo(name)
            item.type = tarfile.LNKTYPE if "hard" in name else tarfile.SYMTYPE
            item.linkname = target
            archive.addfile(item)
    for _ in range(2):
        caplog.clear()
        folder = unpacked(path, tmp_path / "cache")
        assert "1 × path out of the folder" in caplog.text
        assert "3 × link out of the archive" in caplog.text
    images = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*.jpg")}
    assert images == dict.fromkeys(["p/a.jpg", *links], b"abc")
    assert not any(file.is_symlink() for file in folder.rglob("*"))


def test_a_file_that_is_no_archive_is_said_in_few_words(tmp_path):
    (tmp_path / "half.zip").write_bytes(b"PK\x03\x04half")
    with pytest.raises(UserError, match=r"cannot be unpacked \(it is not a complete zip or tar file\)"):
        unpacked(tmp_path / "half.zip", tmp_path / "cache")
