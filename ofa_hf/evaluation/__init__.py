"""Score answers: metrics of the tasks, reading of predictions and references, and results."""

from ofa_hf.evaluation.captions import score_captions
from ofa_hf.evaluation.evaluate import EvaluationResult, evaluate_files, evaluate_predictions
from ofa_hf.evaluation.metrics import METRICS, Metric, find_metric, metric_of
from ofa_hf.evaluation.predictions import read_predictions, read_references, write_submission
from ofa_hf.evaluation.scores import Scores
from ofa_hf.evaluation.tokenization import tokenize


__all__ = [
    "METRICS",
    "EvaluationResult",
    "Metric",
    "Scores",
    "evaluate_files",
    "evaluate_predictions",
    "find_metric",
    "metric_of",
    "read_predictions",
    "read_references",
    "score_captions",
    "tokenize",
    "write_submission",
]
