"""Promises of `ofa_hf.pages.comparison`: one table of all images and models, which trusts no text and no file."""

import os
import re
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest
from PIL import Image

from ofa_hf.errors import UserError
from ofa_hf.pages import comparison as compare
from ofa_hf.pages.comparison import ComparisonReport, plain, short_names


EVIL = '<script>alert("1")</script> | *a* [b](c)'


class Cells(HTMLParser):
    """The texts of a page's table, row by row, and how many images each row has."""

    def __init__(self):
        super().__init__()
        self.rows, self.images, self.scripts, self.inside, self.in_cell = [], [], 0, False, False

    def handle_starttag(self, tag, attributes):
        self.scripts += tag == "script"
        if tag == "table":
            self.inside = dict(attributes).get("class") == "compare"
        elif self.inside and tag == "tr":
            self.rows.append([])
            self.images.append(0)
        elif self.inside and tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True
        elif self.inside and tag == "img":
            assert dict(attributes)["src"].startswith("data:image/jpeg;base64,")
            self.images[-1] += 1

    def handle_endtag(self, tag):
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self.in_cell:
            self.rows[-1][-1] += data


def cells_of(page) -> Cells:
    cells = Cells()
    cells.feed(page.read_text(encoding="utf-8"))
    return cells


def write_images(folder, count: int) -> list[str]:
    folder.mkdir()
    files = [str(folder / f"{number}.jpg") for number in range(count)]
    for number, file in enumerate(files):
        Image.new("RGB", (500, 300), (number, 90, 90)).save(file)
    return files


def said_of(files: list[str], text: str = "文案 {}") -> dict[str, list[str]]:
    return {os.path.abspath(file): [text.format(number)] for number, file in enumerate(files)}


def test_images_go_down_and_models_across_in_both_forms(tmp_path):
    files = write_images(tmp_path / "photos", 3)
    captions = {"shop/a": said_of(files, "甲{}"), "shop/b": said_of(files, "乙{}")}
    ComparisonReport(tmp_path / "new" / "page.html").write(files, captions, {"beams": 5})
    cells = cells_of(tmp_path / "new" / "page.html")
    assert cells.rows[0] == ["Image", "shop/a", "shop/b"]
    assert cells.rows[1:] == [[file, f"甲{number}", f"乙{number}"] for number, file in enumerate(files)]
    assert cells.images == [0, 1, 1, 1]
    text = (tmp_path / "new" / "page.md").read_text(encoding="utf-8")
    assert "| Image | shop/a | shop/b |\n| --- | --- | --- |\n" in text
    assert re.findall(r"\| (甲\d) \| (乙\d) \|", text) == [("甲0", "乙0"), ("甲1", "乙1"), ("甲2", "乙2")]
    for target in re.findall(r"!\[\]\((.*?)\)", text):
        assert Image.open(tmp_path / "new" / target).size == (360, 216)
    assert "http" not in (tmp_path / "new" / "page.html").read_text(encoding="utf-8")


def test_text_from_outside_is_shown_and_never_obeyed(tmp_path):
    files = write_images(tmp_path / "<i>|photos", 1)
    ComparisonReport(tmp_path / "page.html").write(files, {EVIL: {files[0]: [EVIL, ""]}}, {"prompt": EVIL})
    cells = cells_of(tmp_path / "page.html")
    assert cells.scripts == 0
    assert cells.rows == [["Image", EVIL], [files[0], f"{EVIL}(empty)"]]
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert not re.search(r"(?<!\\)<(script|i)", text)
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in text.splitlines() if line.startswith("|"))
    assert plain("a|b_c\n<d>") == r"a\|b\_c \<d\>"


def test_a_broken_image_has_a_row_that_says_so(tmp_path):
    files = write_images(tmp_path / "photos", 2)
    (tmp_path / "photos" / "1.jpg").write_text("no image")
    ComparisonReport(tmp_path / "page.html").write(files, {"m": said_of(files[:1])}, {})
    cells = cells_of(tmp_path / "page.html")
    assert cells.images == [0, 1, 0]
    assert "is not an image" in cells.rows[2][0]
    assert cells.rows[2][1] == "–"
    assert "without an answer: 1" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "is not an image" in (tmp_path / "page.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["我的 page.html", "page.htm", "page.md", "page.MD"])
def test_many_images_make_pages_that_lead_to_each_other(tmp_path, monkeypatch, name):
    monkeypatch.setattr(compare, "IMAGES_PER_PAGE", 2)
    files, seen = write_images(tmp_path / "photos", 5), []
    ComparisonReport(tmp_path / name).write(files, {"m": said_of(files)}, {}, lambda: seen.append(1))
    assert len(seen) == 5
    suffix, page, pages = os.path.splitext(name)[1], tmp_path / name, []
    link = r"\[page \d →\]\((.*?)\)" if suffix.lower() == ".md" else r'<a href="([^"]*)">page \d →'
    while page:
        text = page.read_text(encoding="utf-8")
        pages.append(re.findall(r"文案 (\d)", text))
        assert f"page {len(pages)} of 3" in text
        for target in re.findall(r"!\[\]\((.*?)\)", text):
            assert (page.parent / unquote(target)).is_file()
        follow = re.search(link, text)
        page = follow and page.parent / unquote(follow[1])
    assert pages == [["0", "1"], ["2", "3"], ["4"]]


def test_a_page_is_replaced_by_a_new_one_and_nothing_else_is(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "IMAGES_PER_PAGE", 2)
    files = write_images(tmp_path / "photos", 5)
    ComparisonReport(tmp_path / "page.html").write(files, {"m": said_of(files)}, {})
    (tmp_path / "page_files" / "notes.txt").write_text("mine")
    ComparisonReport(tmp_path / "page.html").write(files[:1], {"m": said_of(files)}, {})
    assert sorted(path.name for path in (tmp_path / "page_files").iterdir()) == ["000001.jpg", "notes.txt"]


@pytest.mark.parametrize("there", ["page.html", "page.md", "page_files/holiday.jpg"])
def test_what_is_no_page_of_ours_is_refused_and_left_alone(tmp_path, there):
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).write_text("years of work")
    with pytest.raises(UserError, match=rf"would replace .*{there.split('/')[0]}"):
        ComparisonReport(tmp_path / "page.html")
    assert (tmp_path / there).read_text() == "years of work"


def test_an_unknown_ending_is_refused(tmp_path):
    for name in ("page", "page.pdf"):
        with pytest.raises(UserError, match="no known suffix"):
            ComparisonReport(tmp_path / name)


def test_small_images_of_an_earlier_report_are_known(tmp_path):
    report = ComparisonReport(tmp_path / "photos" / "page.html")
    assert report.owns(tmp_path / "photos" / "page_files" / "000001.jpg")
    assert not report.owns(tmp_path / "photos" / "000001.jpg")


def test_columns_have_short_names_that_tell_models_apart(tmp_path):
    for name in ("one/model", "two/model", "two/other"):
        (tmp_path / name).mkdir(parents=True)
    one, two, other = (str(tmp_path / name) for name in ("one/model", "two/model", "two/other"))
    assert short_names([one, other, "owner/model"]) == ["model", "other", "owner/model"]
    assert short_names([one, two]) == [one, two]


def test_a_file_name_that_is_no_text_is_shown_somehow(tmp_path):
    files = [os.fsdecode(b"bad \xff.jpg")]
    ComparisonReport(tmp_path / "page.html").write(files, {"m": {}}, {})
    assert "bad \\udcff.jpg" in (tmp_path / "page.html").read_text(encoding="utf-8")
