"""Promises of `ofa_hf.prediction.inputs`: which files a command's arguments name."""

import sys

import pytest
from PIL import Image

from ofa_hf.errors import UserError
from ofa_hf.image_loading_ofa import ImageError, load_image
from ofa_hf.prediction.inputs import ImageFile, TableImages, find_images, image_of, open_images


@pytest.fixture
def shop(tmp_path):
    for name in ("b.JPG", "a.png", "deep/c.webp", ".hidden/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (30, 20), "red").save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_folders_are_searched_with_their_subfolders_and_each_file_is_listed_once(shop):
    found = find_images([shop / "a.png", shop, f"{shop}/deep/../a.png"])
    assert [path.removeprefix(f"{shop}/") for path in found] == ["a.png", "b.JPG", "deep/c.webp"]


def test_skipped_files_are_left_out(shop):
    assert find_images([shop], skip=lambda file: "a.png" in file)[0].endswith("b.JPG")


def test_a_file_that_is_named_counts_whatever_its_suffix(shop):
    assert find_images([shop / "notes.txt"]) == [str(shop / "notes.txt")]


def test_an_image_file_is_read_by_its_path_whatever_it_looks_like(shop, monkeypatch):
    monkeypatch.chdir(shop)
    (shop / "http:").mkdir()
    (shop / "a.png").rename(shop / "http:" / "a.png")
    assert load_image(ImageFile("http://a.png")).size == (30, 20)


def test_no_file_name_is_interned(shop, monkeypatch):
    """The table of interned strings grows with every name that ever was in it; pathlib would add each one."""
    interned, intern = [], sys.intern
    monkeypatch.setattr(sys, "intern", lambda text: interned.append(text) or intern(text))
    for file in find_images([shop]):
        load_image(ImageFile(file))
    assert not {"a.png", "b.JPG", "c.webp"} & set(interned)


def test_nothing_to_do_is_said_clearly(tmp_path):
    with pytest.raises(UserError, match="No images in"):
        find_images([tmp_path])
    with pytest.raises(UserError, match="no such file or folder"):
        find_images([tmp_path / "nowhere"])


def test_a_link_is_refused_with_the_next_step(shop):
    with pytest.raises(UserError, match="https://example.com/a.jpg is a link. .* Download it first"):
        find_images([shop, "https://example.com/a.jpg"])


def test_images_of_a_table_are_found_counted_and_linked_ones_named_alike(shop):
    images = TableImages(shop / "t.csv")
    assert images.file("C:\\x\\A.PNG") == str(shop / "a.png")
    assert images.notes()[0].startswith("Names of images repaired: 1 × backslashes, 1 × drive letter")
    assert images.notes()[1].endswith("1 × hidden or system file, 1 × text file.")
    with pytest.raises(ImageError, match=r"deep/d.webp: no such file; the nearest name is deep/c.webp"):
        images.file("deep/d.webp")
    assert images.file("HTTPS://a.cn/B.jpg") == "https://a.cn/B.jpg"
    assert image_of("https://a.cn/B.jpg", str(shop)).cache == shop


@pytest.mark.parametrize(("captions", "said"), [(None, 1), ("t.csv", 1), ("", 0)])
def test_texts_that_are_captions_are_not_left_out(shop, caplog, captions, said):
    open_images(shop, captions=captions if captions is None else shop / captions)
    assert caplog.text.count("1 × text file") == said
    assert "1 × hidden or system file" in caplog.text
