"""Promises of `ofa_hf.evaluation.tokenization`."""

import unicodedata

import pytest

from ofa_hf.evaluation.tokenization import tokenize


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("红色围巾", ["红", "色", "围", "巾"]),
        ("性感T恤", ["性", "感", "t", "恤"]),
        ("iPhone11Pro", ["iphone", "11", "pro"]),
        ("100%纯棉，3.5折", ["100", "%", "纯", "棉", "，", "3", ".", "5", "折"]),
        ("it's", ["it", "'", "s"]),
        ("ab  c\u3000d\n", ["ab", "c", "d"]),
        ("ＡＢ１！!", ["ａ", "ｂ", "１", "！", "!"]),
        ("café", ["caf", "é"]),
        ("a_b-c", ["a", "_", "b", "-", "c"]),
        ("👍🏽", ["👍", "🏽"]),
        ("", []),
        (" \u3000\t", []),
    ],
)
def test_characters_are_tokens_and_so_are_runs_of_latin_letters_or_digits(text, tokens):
    assert tokenize(text) == tokens


def test_text_that_looks_the_same_gives_the_same_tokens():
    composed, decomposed = (unicodedata.normalize(form, "Café Ångström") for form in ("NFC", "NFD"))
    assert composed != decomposed
    assert tokenize(composed) == tokenize(decomposed)


def test_case_does_not_count():
    assert tokenize("NIKE运动鞋") == tokenize("nike运动鞋")
