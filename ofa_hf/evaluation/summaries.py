"""ROUGE of summaries, with Google's library: English words are stemmed, Chinese characters are single tokens."""

import re
from functools import cache

from ofa_hf.evaluation.answers import mean_of
from ofa_hf.evaluation.scores import Predictions, References, Scores, check_ids
from ofa_hf.processing_ofa import UNSPACED


NAMES = {"rouge1": "rouge_1", "rouge2": "rouge_2", "rougeL": "rouge_l"}  # the library's → ours
TOKEN = re.compile(rf"[a-z0-9]+|(?![\W_])[{UNSPACED}]")
MIN_STEMMED = 4  # letters; the library stems no shorter words


class Tokens:
    """The library's tokens, and the characters of scripts that it ignores, such as Chinese."""

    def __init__(self):
        from nltk.stem import porter  # which the library stems with

        self._stem = porter.PorterStemmer().stem

    def tokenize(self, text: str) -> list[str]:
        return [self._stem(one) if len(one) >= MIN_STEMMED else one for one in TOKEN.findall(text.lower())]


@cache
def scorer():
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(NAMES), tokenizer=Tokens())


def score_summaries(predictions: Predictions, references: References) -> Scores:
    """ROUGE-1, ROUGE-2 and ROUGE-L (F-measure), in percent; the best of several references counts.

    Raises:
        UserError: nothing to score, or ids without their counterpart.

    Source: Lin 2004; settings of OFA `utils/eval_utils.py`, `eval_gigaword`.
    """
    check_ids(predictions, references)
    each: dict[str, dict[str, float]] = {name: {} for name in NAMES.values()}
    for id_, texts in references.items():
        found = [scorer().score(text, predictions[id_]) for text in texts]
        for theirs, ours in NAMES.items():
            each[ours][id_] = 100 * max(score[theirs].fmeasure for score in found)
    totals = {name: mean_of(values) for name, values in each.items()}
    return Scores({**totals, "num_rows": len(references)}, each)
