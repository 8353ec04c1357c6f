"""Promises of `ofa_hf.checking.text_check`: odd captions and unknown characters are found, and nothing else is."""

import pytest

from ofa_hf.checking.text_check import check_texts, unknown_to, unknown_to_list, unknown_to_published, why_odd
from ofa_hf.errors import UserError


@pytest.mark.parametrize(
    ("caption", "kind"),
    [
        ("红色连衣裙", ""),
        ("红，", "near-empty caption"),
        ("……", "near-empty caption"),
        ("a.jpg", "caption like a file name"),
        ("IMG_20240101", "caption like a file name"),
        ("sku-17", "caption like a file name"),
        ("红裙\nb.jpg,蓝裙\nc.jpg,白裙", "caption like a whole row"),
        ("a.jpg,红裙", "caption like a whole row"),
        ("1\t红裙\t99", "caption like a whole row"),
        ('{"caption": "红"}', "caption like a whole row"),
        ("#N/A", "caption that is a spreadsheet's error"),
        ("#1 爆款", ""),
        ("5寸屏, 黑色, 新款", ""),
        ("适合iPhone.jpg格式壁纸", ""),
    ],
)
def test_captions_that_are_none_are_told(caption, kind):
    assert why_odd(caption, "photos/sku-17.jpg") == kind


def test_characters_that_the_vocabulary_lacks_are_counted_by_character(tiny_processor, tmp_path):
    rows = [("1.jpg", ["红色🍎围巾🍎", "红色围巾", "“红色”"]), ("2.jpg", ["红色围巾", "红色围巾"])]
    faults = check_texts(rows, unknown_to(tiny_processor.tokenizer))
    assert faults.characters == {"🍎": 2, "“": 1, "”": 1}
    assert faults.counts["caption with characters not in the vocabulary"] == 2
    assert faults.counts["caption repeated for one image"] == 1
    assert "🍎 2" in faults.line()
    assert unknown_to_published("红🍎…a") == {"🍎", "…"}
    (tmp_path / "vocab.txt").write_text("红\n色\n围\n##巾\na\n", encoding="utf-8")
    assert unknown_to_list(str(tmp_path / "vocab.txt"))("红巾A🍎 ") == {"🍎"}
    with pytest.raises(UserError, match="Cannot read .*gone.txt"):
        unknown_to_list(str(tmp_path / "gone.txt"))
