"""Promises of `ofa_hf.images.image_finder`: names of images from other systems are found, and never the wrong ones."""

import os
import unicodedata

import pytest

from ofa_hf.errors import UserError
from ofa_hf.images.image_finder import ImageFinder, is_one_image


NFC, NFD = unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")
FILES = [
    "apple.jpg",
    "Cake.PNG",
    "sub/红鞋.jpeg",
    f"{NFD}.jpg",
    "00123.jpg",
    "4006381333931.jpg",
    "12345678901234567890.png",
    "twice/item.jpg",
    "twice/item.png",
    "a b.jpg",
    "v1.2.jpg",
]


@pytest.fixture(scope="module")
def finder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop") / "photos"
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return ImageFinder(folder)


@pytest.mark.parametrize(
    ("name", "file", "repairs"),
    [
        ("apple.jpg", "apple.jpg", []),
        ("sub/红鞋.jpeg", "sub/红鞋.jpeg", []),
        ("sub\\红鞋.jpeg", "sub/红鞋.jpeg", ["backslashes"]),
        ("other\\apple.jpg", "apple.jpg", ["backslashes", "folder in front"]),
        ("D:\\shop\\photos\\sub\\红鞋.jpeg", "sub/红鞋.jpeg", ["backslashes", "drive letter", "folder in front"]),
        ("c:/x/apple.jpg", "apple.jpg", ["drive letter", "folder in front"]),
        ("\\\\server\\share\\apple.jpg", "apple.jpg", ["backslashes", "folder in front"]),
        ("file:///home/x/a%20b.jpg", "a b.jpg", ["file:// in front", "folder in front"]),
        ("photos/apple.jpg", "apple.jpg", ["folder in front"]),
        ("/data/photos/apple.jpg", "apple.jpg", ["folder in front"]),
        ("../photos2/../apple.jpg", "apple.jpg", []),
        ("./apple.jpg", "apple.jpg", ["leading ./"]),
        (" apple.jpg ", "apple.jpg", []),
        ('"apple.jpg"', "apple.jpg", ["quotes around the name"]),
        ('="00123"', "00123.jpg", ["quotes around the name", "suffix missing"]),
        ("'00123", "00123.jpg", ["quotes around the name", "suffix missing"]),
        ("APPLE.JPG", "apple.jpg", ["upper or lower case"]),
        ("cake.png", "Cake.PNG", ["upper or lower case"]),
        (f"{NFC}.jpg", f"{NFD}.jpg", ["Unicode form"]),
        ("apple", "apple.jpg", ["suffix missing"]),
        ("apple.webp", "apple.jpg", ["another suffix"]),
        ("v1.2", "v1.2.jpg", ["suffix missing"]),
        ("红鞋.jpeg", "sub/红鞋.jpeg", ["subfolder missing"]),
        (
            "D:\\goods\\红鞋.JPEG",
            "sub/红鞋.jpeg",
            ["backslashes", "drive letter", "folder in front", "subfolder missing"],
        ),
        ("/home/me/红鞋.jpeg", "sub/红鞋.jpeg", ["folder in front", "subfolder missing"]),
        ("ａｐｐｌｅ．ｊｐｇ", "apple.jpg", ["Unicode form"]),
        ("123", "00123.jpg", ["number shortened by a spreadsheet"]),
        ("123.0", "00123.jpg", ["number shortened by a spreadsheet"]),
        ("4.00638E+12", "4006381333931.jpg", ["number shortened by a spreadsheet"]),
        ("4006381333931.0", "4006381333931.jpg", ["number shortened by a spreadsheet"]),
        ("12345678901234500000", "12345678901234567890.png", ["number shortened by a spreadsheet"]),
        ("1.23457E+19", "12345678901234567890.png", ["number shortened by a spreadsheet"]),
    ],
)
def test_a_name_that_fits_one_file_stands_for_it_and_the_repair_is_counted(finder, name, file, repairs):
    finder.repaired.clear()
    assert finder.find(name).path == os.path.join(finder.folder, *file.split("/"))
    assert list(finder.repaired.elements()) == repairs


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("twice/item", "it may be twice/item.jpg or twice/item.png; write the whole name"),
        ("item", "it may be twice/item.jpg or twice/item.png"),
        ("aple.jpg", "the nearest name is apple.jpg"),
        ("elsewhere/aple.jpg", "the nearest name is apple.jpg"),
        ("elsewhere/红鞋.jpeg", "the nearest name is sub/红鞋.jpeg"),
        ("D:\\x\\item.jpeg", "it may be twice/item.jpg or twice/item.png"),
        ("qqqqqqqqqqqqqqqqqqqqqq", "no similar name"),
        ("4.1E+12", "no such file"),
        ("字" * 300, "no similar name"),
        ("", "no similar name"),
        ("..", "no"),
        ("sub", "no such file"),
    ],
)
def test_a_name_that_fits_none_or_several_says_so(finder, name, message):
    assert finder.find(name).path is None
    assert message in finder.explain(name)


def test_the_search_for_near_names_ends_where_it_would_take_hours(finder):
    finder._explained = 0
    said = [finder.explain(f"aple{number}.jpg") for number in range(30)]
    assert said[0].endswith("apple.jpg")
    assert said[-1] == "no such file"


def test_an_absolute_path_that_exists_is_itself(finder, tmp_path):
    (tmp_path / "x.jpg").touch()
    assert finder.find(str(tmp_path / "x.jpg")).path == str(tmp_path / "x.jpg")


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(UserError, match="not a folder"):
        ImageFinder(tmp_path / "gone")


def test_two_names_mean_one_image_only_if_their_folders_agree():
    assert is_one_image("photos/a.jpg", "a.jpg")
    assert is_one_image("D:\\shop\\photos\\a.jpg", "photos/A.JPG")
    assert not is_one_image("shop1/front.jpg", "shop2/front.jpg")


def test_a_name_written_as_in_a_link_is_found_and_counted(finder):
    found = finder.find("/data/local-files/a%20b.jpg")
    assert found.path.endswith("a b.jpg")
    assert found.repairs[0] == "letters written as in a link (%20)"


def test_the_nearest_name_is_told_without_the_suffixes(tmp_path):
    for name in ("b.jpg", "裙子1.png"):
        (tmp_path / name).touch()
    assert ImageFinder(tmp_path).explain("裙子2.jpg").endswith("the nearest name is 裙子1.png")
    assert ImageFinder(tmp_path).explain("衣.jpg").endswith("no similar name")


def test_an_image_that_needs_a_library_says_so_in_place_of_a_near_name(finder, monkeypatch):
    monkeypatch.setattr(
        "ofa_hf.images.image_finder.missing_reader", lambda suffix: "ofa-hf[images]" * (suffix == ".heic")
    )
    assert finder.explain("gone.HEIC") == "HEIC images cannot be read without `pip install 'ofa-hf[images]'`"
