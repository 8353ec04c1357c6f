"""Promises of `ofa_hf.evaluation.summaries`: Chinese counts by character, English as the library counts it."""

import pytest
from rouge_score.rouge_scorer import RougeScorer

from ofa_hf.evaluation.summaries import score_summaries


def test_chinese_summaries_are_compared_by_character():
    scores = score_summaries({"a": "北京天气"}, {"a": ["天气，北京", "上海"]})
    assert (scores["rouge_1"], scores["rouge_2"], scores["rouge_l"]) == pytest.approx((100, 200 / 3, 50))


@pytest.mark.parametrize("text", ["The CATS were running—fast, 42 times!", "café naïve 3.5%", "a_b u.s. dogs'"])
def test_other_texts_have_the_librarys_scores(text):
    reference = "a cat runs fast; 42 cafés naive 3.5 dogs b u s"
    theirs = RougeScorer(["rouge1", "rougeL"], use_stemmer=True).score(reference, text)
    ours = score_summaries({"a": text}, {"a": [reference]})
    assert ours["rouge_1"] == pytest.approx(100 * theirs["rouge1"].fmeasure)
    assert ours["rouge_l"] == pytest.approx(100 * theirs["rougeL"].fmeasure)
