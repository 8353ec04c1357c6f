"""Let a model answer rows or images, and score its answers."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ofa_hf.data import FolderImages
from ofa_hf.data.sources import TableForm
from ofa_hf.errors import UserError
from ofa_hf.evaluation.evaluate import EvaluationResult, evaluate_predictions, first_of
from ofa_hf.evaluation.metrics import metric_of
from ofa_hf.evaluation.predictions import read_references
from ofa_hf.evaluation.scores import References, some_of
from ofa_hf.models import load_model
from ofa_hf.prediction.loop import Row, find_task, predict, show_progress


logger = logging.get_logger(__name__)


def evaluate_model(
    model,
    processor,
    rows: Iterable[Row],
    references: References,
    *,
    task: str | None = None,
    batch_size: int = 8,
    run: Mapping[str, object] | None = None,
    **generate,
) -> EvaluationResult:
    """Answer the rows that have references, and score the answers with the task's metric.

    Images that are missing or cannot be read count with an empty answer.

    Args:
        rows, task, generate: as for `predict`; rows without references are skipped.
        references: id → right answers.
        run: what was run, for the record.

    Raises:
        UserError: no row has references, or the checkpoint has no such task.
    """
    chosen = find_task(processor, task)
    metric = metric_of(chosen).name  # refused before any image is read
    known = (row for row in rows if row["id"] in references)
    predictions = predict(model, processor, known, task=task, batch_size=batch_size, **generate)
    answers = {prediction.id: prediction.best for prediction in show_progress(predictions, len(references))}
    if not answers:
        raise UserError("No image has references: the two files share no id. Pass files of the same split.")
    missing = [id_ for id_ in references if id_ not in answers]
    if missing:
        logger.warning(f"No image for {some_of(missing)}: they count with an empty answer.")
    ordered = {id_: answers.get(id_, "") for id_ in references}
    run = {**(run or {}), "task": chosen.name, "batch_size": batch_size, **generate, "images_missing": len(missing)}
    return evaluate_predictions(ordered, references, run, metric=metric)


def evaluate_images(
    model: str,
    images: Mapping[str, Any],
    references: str | Path,
    *,
    limit: int | None = None,
    device: str | None = None,
    run: Mapping[str, object] | None = None,
    form: TableForm | None = None,
    **options,
) -> EvaluationResult:
    """Let a model answer images, and score its answers.

    Args:
        model: folder or Hub id.
        images: id → image, such as those of `open_images`.
        references: any table that finetuning takes, see `read_references`.
        limit: only the first so many images of the references.
        run: what was run, for the record; device and dtype are added.
        form: what the user said about the table.
        options: of `evaluate_model`.

    Raises:
        UserError: a file or the model cannot be loaded, or images and references share no id.
    """
    same = images.identity if isinstance(images, FolderImages) else str
    expected = first_of(read_references(references, form, same), limit)
    loaded = load_model(model, device=device)
    rows = ({"id": id_, "image": images[id_]} for id_ in expected if id_ in images)
    run = {**(run or {}), "device": str(loaded.model.device), "dtype": str(loaded.model.dtype)}
    return evaluate_model(*loaded, rows, expected, run=run, **options)


def answer_images(model: str, images: Mapping[str, Any], *, device: str | None = None, **options) -> dict[str, str]:
    """The best answer of a model to each image, by id; empty for images that cannot be read.

    Args:
        model: folder or Hub id.
        options: of `predict`.

    Raises:
        UserError: the model cannot be loaded.
    """
    rows = ({"id": id_, "image": images[id_]} for id_ in images)
    predictions = predict(*load_model(model, device=device), rows, **options)
    return {each.id: each.text for each in show_progress(predictions, len(images))}
