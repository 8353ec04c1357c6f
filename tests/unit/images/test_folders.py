"""Promises of `ofa_hf.images.folders`: every image once, and a count of everything else."""

import logging
import os
from collections import Counter

import pytest
from PIL import Image

from ofa_hf.errors import UserError
from ofa_hf.image_loading_ofa import ImageError, load_image
from ofa_hf.images.folders import report_left_out, walk_images


@pytest.fixture
def phone(tmp_path):
    names = "b.JPG a.png IMG_1.HEIC clip.MOV logo.svg ._b.jpg .DS_Store Thumbs.db notes.txt x.cr2 .git/c.png"
    for name in (*names.split(), "deep/c.webp", "__MACOSX/d.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_what_is_left_out_is_counted_by_kind_in_one_line(phone, monkeypatch, caplog):
    monkeypatch.setattr("ofa_hf.images.folders.missing_reader", lambda suffix: "ofa-hf[images]" * (suffix == ".heic"))
    left_out = Counter()
    found = [os.path.relpath(path, phone) for path in walk_images(phone, left_out)]
    assert found == ["a.png", "b.JPG", "deep/c.webp"]
    heic = "HEIC image (pip install 'ofa-hf[images]' to read them)"
    expected = {"video": 1, "drawing such as SVG": 1, "raw photo": 1, "text file": 1, "hidden or system file": 5}
    assert left_out == {**expected, heic: 1}
    report_left_out(phone, left_out)
    assert len(caplog.records) == 1
    assert f"1 × {heic}" in caplog.text


def test_a_folder_of_images_alone_leaves_nothing_to_say(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    report_left_out(tmp_path, Counter())
    assert not caplog.records


def test_links_are_followed_once_and_never_in_a_circle(phone, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "e.jpg").touch()
    os.symlink(other, phone / "0_linked")
    os.symlink(phone, other / "back")
    os.symlink(phone / "deep", phone / "0_deep")
    os.symlink(phone / "gone.jpg", phone / "broken.jpg")
    left_out = Counter()
    found = [os.path.relpath(path, phone) for path in walk_images(phone, left_out)]
    assert [path for path in found if "HEIC" not in path] == ["a.png", "b.JPG", "deep/c.webp", "0_linked/e.jpg"]
    assert left_out["broken link"] == 1


def test_a_folder_that_is_not_there_is_a_users_error(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        list(walk_images(tmp_path / "gone"))


@pytest.mark.parametrize(("library", "suffix"), [("pillow_heif", ".HEIC"), ("pillow_jxl", ".jxl")])
def test_images_of_phones_are_read_with_their_library(tmp_path, library, suffix):
    module = pytest.importorskip(library, reason="needs the extra images")
    image = Image.new("RGB", (48, 32), (200, 30, 30))
    if library == "pillow_heif":
        module.from_pillow(image).save(tmp_path / f"IMG_1{suffix}")
    else:
        image.save(tmp_path / f"IMG_1{suffix}")
    left_out = Counter()
    (path,) = walk_images(tmp_path, left_out)
    assert not left_out
    red, green, _ = load_image(path).getpixel((20, 20))
    assert red > 150 > green


def test_an_image_without_its_library_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("ofa_hf.image_loading_ofa._can_read", lambda kind: False)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200))
    with pytest.raises(ImageError, match=r"HEIC image.*ofa-hf\[images\]"):
        load_image(tmp_path / "a.heic")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (b'\xef\xbb\xbf<?xml version="1.0"?><svg/>', "an SVG drawing"),
        (b"\0\0\0\x20ftypisom" + bytes(99), "a video"),
        (b"\0\0\0\x14ftypqt  " + bytes(99), "a video"),
        (b"\x1aE\xdf\xa3" + bytes(99), "a video"),
    ],
)
def test_drawings_and_videos_are_named_as_what_they_are(tmp_path, data, what):
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(ImageError, match=what):
        load_image(tmp_path / "a.jpg")


def test_files_of_no_known_kind_are_counted_by_their_suffix_as_long_as_there_are_few(tmp_path):
    for name in ("a.AAE", "b.aae", "list.csv", "README", "x.jpg!w800", "log.2024", "inner.zip"):
        (tmp_path / name).touch()
    left_out = Counter()
    assert not list(walk_images(tmp_path, left_out))
    expected = {".aae file": 2, ".csv file": 1, ".zip file": 1, "file without a suffix": 1, "other file": 2}
    assert left_out == expected
    for number in range(30):
        (tmp_path / f"z.q{number}").touch()
    (tmp_path / "zz.mp4").touch()
    left_out.clear()
    assert not list(walk_images(tmp_path, left_out))
    assert left_out["video"] == 1
    assert len(left_out) <= 22
