"""Scores of drawn images: CLIP similarity with their texts."""

from ofa_hf.evaluation.answers import mean_of
from ofa_hf.evaluation.scores import Predictions, References, Scores, check_ids


def score_cosines(predictions: Predictions, references: References) -> Scores:
    """Mean of the best cosines, times 100.

    Args:
        predictions: text → cosine of its best image, −1 to 1.
        references: text → the text.

    Source: OFA `evaluate.py`, `eval_image_gen`: the mean over the texts of the best of their images' cosines.
    """
    check_ids(predictions, references)
    each = {text: 100 * predictions[text] for text in references}
    return Scores({"clip_score": mean_of(each), "num_texts": len(each)}, {"clip_score": each})
