"""Let a model answer the rows of a data set, and score its answers."""

from collections.abc import Iterable, Mapping, Sequence

from transformers.utils import logging

from ofa_hf.errors import UserError
from ofa_hf.evaluation.evaluate import EvaluationResult, evaluate_predictions
from ofa_hf.evaluation.scores import some_of
from ofa_hf.prediction.loop import Row, predict, show_progress


logger = logging.get_logger(__name__)


def evaluate_model(
    model,
    processor,
    rows: Iterable[Row],
    references: Mapping[str, Sequence[str]],
    *,
    batch_size: int = 8,
    run: Mapping[str, object] | None = None,
    **generate,
) -> EvaluationResult:
    """Answer the rows that have references, and score the answers.

    Images that are missing or cannot be read count with an empty answer.

    Args:
        rows, generate: as for `predict`; rows without references are skipped.
        references: id → right answers.
        run: what was run, for the record.

    Raises:
        UserError: no row has references.
    """
    known = (row for row in rows if row["id"] in references)
    predictions = predict(model, processor, known, batch_size=batch_size, **generate)
    texts = {prediction.id: prediction.text for prediction in show_progress(predictions, len(references))}
    if not texts:
        raise UserError("No image has references: the two files share no id. Pass files of the same split.")
    missing = [id_ for id_ in references if id_ not in texts]
    if missing:
        logger.warning(f"No image for {some_of(missing)}: they count with an empty answer.")
    ordered = {id_: texts.get(id_, "") for id_ in references}
    settings = {"batch_size": batch_size, **generate, "images_missing": len(missing)}
    return evaluate_predictions(ordered, references, {**(run or {}), **settings})
