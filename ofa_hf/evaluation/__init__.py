"""Caption scores (BLEU, ROUGE-L, CIDEr-D) and everything around them: reading, generating, reporting."""

from ofa_hf.evaluation.evaluate import EvaluationResult, evaluate_predictions
from ofa_hf.evaluation.metrics import CaptionScores, score_captions
from ofa_hf.evaluation.predictions import read_predictions, read_references, write_submission
from ofa_hf.evaluation.tokenization import tokenize


__all__ = [
    "CaptionScores",
    "EvaluationResult",
    "evaluate_predictions",
    "read_predictions",
    "read_references",
    "score_captions",
    "tokenize",
    "write_submission",
]
