"""Promises of `ofa_hf.evaluation.captions`: the digits of the reference scorers, in percent, quickly."""

import json
import random
import time
from pathlib import Path

import pytest

from ofa_hf.evaluation.captions import longest_common_subsequence, score_captions
from ofa_hf.evaluation.tokenization import tokenize


REPOSITORY = Path(__file__).parents[3]
RECORDED = REPOSITORY / "tests/fixtures/caption_scores.json"
GOLDEN = REPOSITORY.parent / "shared/golden/caption_metrics.json"
WORDS = "的一红色围巾温暖时尚连衣裙显瘦，！" + "abc" + "12" + " "


def assert_equals_recorded(scores, recorded: dict, ids: list[str]) -> None:
    bleu = [scores[f"bleu_{order}"] for order in (1, 2, 3, 4)]
    assert bleu == pytest.approx([100 * value for value in recorded["bleu"]], abs=1e-9)
    assert scores["rouge_l"] == pytest.approx(100 * recorded["rouge_l"], abs=1e-9)
    assert scores["cider_d"] == pytest.approx(100 * recorded["cider_d"], abs=1e-9)
    for name in ("cider_d", "rouge_l"):
        each = recorded[f"{name}_each"]
        each = each.values() if isinstance(each, dict) else each
        mine = [scores.each[name][image_id] for image_id in ids]
        assert mine == pytest.approx([100 * value for value in each], abs=1e-9), name


def random_captions(rng: random.Random, count: int, references: int = 5) -> tuple[dict, dict]:
    def caption():
        return "".join(rng.choice(WORDS) for _ in range(rng.randint(1, 20))) + "。"

    ids = [f"p{number}" for number in range(count)]
    predictions = {image_id: caption() for image_id in ids}
    return predictions, {image_id: [caption() for _ in range(rng.randint(1, references))] for image_id in ids}


def test_scores_are_the_ones_the_reference_scorers_gave_for_the_recorded_captions():
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    scores = score_captions(recorded["predictions"], recorded["references"])
    assert_equals_recorded(scores, recorded, list(recorded["predictions"]))


@pytest.mark.skipif(not GOLDEN.is_file(), reason="the recorded scores shared/golden/caption_metrics.json are not here")
def test_scores_are_the_golden_ones_in_every_recorded_case():
    for case in json.loads(GOLDEN.read_text(encoding="utf-8"))["cases"]:
        ids = [str(number) for number in range(len(case["hypotheses"]))]
        predictions, references = dict(zip(ids, case["hypotheses"])), dict(zip(ids, case["references"]))
        assert tokenize(case["hypotheses"][0]) == case["tokens_of_first"], case["name"]
        assert_equals_recorded(score_captions(predictions, references), case, ids)


@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_those_of_pycocoevalcap_on_random_captions(seed):
    reason = "pycocoevalcap is not installed (dev extra)"
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu", reason=reason)
    rouge = pytest.importorskip("pycocoevalcap.rouge.rouge", reason=reason)
    cider = pytest.importorskip("pycocoevalcap.cider.cider", reason=reason)
    predictions, references = random_captions(random.Random(seed), 60)
    hypotheses = {image_id: [" ".join(tokenize(text))] for image_id, text in predictions.items()}
    spaced = {image_id: [" ".join(tokenize(text)) for text in texts] for image_id, texts in references.items()}
    recorded = {"bleu": bleu.Bleu(4).compute_score(spaced, hypotheses, verbose=0)[0]}
    recorded["rouge_l"], recorded["rouge_l_each"] = rouge.Rouge().compute_score(spaced, hypotheses)
    recorded["cider_d"], recorded["cider_d_each"] = cider.Cider().compute_score(spaced, hypotheses)
    recorded = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in recorded.items()}
    assert_equals_recorded(score_captions(predictions, references), recorded, list(predictions))


def test_a_caption_without_tokens_scores_zero_and_hurts_no_other():
    scores = score_captions({"a": " ", "b": "红围巾"}, {"a": ["白杯子"], "b": ["红围巾"]})
    assert scores.each["cider_d"]["a"] == scores.each["rouge_l"]["a"] == 0
    assert scores.each["rouge_l"]["b"] == pytest.approx(100)


def test_all_captions_empty_gives_zeros_not_a_crash():
    scores = score_captions({"a": "", "b": ""}, {"a": ["白杯子"], "b": ["红围巾"]})
    assert scores.as_dict() | {"num_images": 0} == dict.fromkeys(scores.as_dict(), 0)


def test_the_order_of_images_and_references_changes_nothing():
    predictions, references = random_captions(random.Random(7), 30)
    turned = {image_id: references[image_id][::-1] for image_id in reversed(references)}
    assert score_captions(predictions, turned).as_dict() == pytest.approx(
        score_captions(predictions, references).as_dict()
    )


def test_longest_common_subsequence_equals_the_textbook_table():
    rng = random.Random(0)
    for _ in range(200):
        first = [rng.choice("abcd") for _ in range(rng.randint(0, 9))]
        second = [rng.choice("abcd") for _ in range(rng.randint(0, 9))]
        table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
        for i, left in enumerate(first):
            for j, right in enumerate(second):
                table[i + 1][j + 1] = table[i][j] + 1 if left == right else max(table[i][j + 1], table[i + 1][j])
        assert longest_common_subsequence(first, second) == table[-1][-1], (first, second)


def test_a_thousand_images_with_ten_references_are_scored_in_seconds():
    predictions, references = random_captions(random.Random(2), 1000, references=10)
    start = time.process_time()
    score_captions(predictions, references)
    assert time.process_time() - start < 5  # 0.3 s where this was written; a quadratic slip takes minutes
