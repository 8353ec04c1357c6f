"""Let a model answer rows or images, and score its answers."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ofa_hf.data import FolderImages
from ofa_hf.data.answers import TargetForm
from ofa_hf.data.sources import Files, TableForm, load_task_files
from ofa_hf.errors import UserError
from ofa_hf.evaluation.evaluate import EvaluationResult, evaluate_predictions, first_of
from ofa_hf.evaluation.metrics import as_answered, metric_of
from ofa_hf.evaluation.predictions import read_references
from ofa_hf.evaluation.scores import References, some_of
from ofa_hf.models import load_model, load_processor
from ofa_hf.prediction.loop import Row, find_task, predict, show_progress
from ofa_hf.prediction.questions import columns_asked
from ofa_hf.prediction.scoring import questions_of, references_of, score_columns
from ofa_hf.tasks_ofa import Task


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

    Images that are missing or cannot be read count as empty answers.

    Args:
        rows, task, generate: as for `predict`; rows without references are skipped.
        references: id → right answers.
        run: what was run, for the record.

    Raises:
        UserError: no row has references, or the checkpoint has no such task.
    """
    chosen = find_task(processor, task)
    metric = metric_of(chosen).name  # refused before images are read
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
        limit: score only this many images, the first of the references.
        run: what was run, for the record; device and dtype are added.
        form: the user's options for the table.
        options: keywords of `evaluate_model`.

    Raises:
        UserError: a file or the model cannot be loaded, or images and references share no id.
    """
    same = images.identity if isinstance(images, FolderImages) else str
    expected = first_of(read_references(references, form, same), limit)
    if isinstance(images, FolderImages):
        images.report_repaired(expected)
    loaded = load_model(model, device=device)
    rows = ({"id": id_, "image": images[id_]} for id_ in expected if id_ in images)
    run = {**(run or {}), "device": str(loaded.model.device), "dtype": str(loaded.model.dtype)}
    return evaluate_model(*loaded, rows, expected, run=run, **options)


def evaluate_table(
    model: str,
    files: Files,
    *,
    task: str | None = None,
    columns: Sequence[str] | None = None,
    limit: int | None = None,
    device: str | None = None,
    run: Mapping[str, object] | None = None,
    batch_size: int = 8,
    **generate,
) -> EvaluationResult:
    """Let a model answer the rows of a table as finetuning reads it, and score its answers.

    Args:
        model: folder or Hub id.
        columns: score these columns of the table instead of one task; empty means all of the model's own tasks.
        limit: score only the first rows, up to this number.
        run: what was run, for the record.
        generate: overrides of the generation settings.

    Raises:
        UserError: the model or the table cannot be loaded, or they do not fit together.
    """
    processor = load_processor(model)
    chosen, targets = questions_asked(model, processor, task, columns)
    rows = load_task_files(files, chosen, processor.language, targets, check_images=False)
    number = min(limit or len(rows), len(rows))
    references = references_of(rows, number, chosen.name)
    loaded = load_model(model, device=device)
    asked = (question for index in range(number) for question in questions_of(rows[index], chosen.name))
    predictions = predict(*loaded, asked, batch_size=batch_size, **generate)
    total = sum(map(len, references.values()))
    answers = {prediction.id: prediction.best for prediction in show_progress(predictions, total)}
    references = {name: as_answered(own, find_task(processor, name)) for name, own in references.items()}
    answered = {name: ({id_: answers.get((name, id_), "") for id_ in own}, own) for name, own in references.items()}
    facts = {"device": str(loaded.model.device), "dtype": str(loaded.model.dtype), "batch_size": batch_size}
    run = {**(run or {}), "task": ", ".join(answered), **facts, **generate}
    if not targets.cells:
        return evaluate_predictions(*answered[chosen.name], run, metric=metric_of(chosen).name)
    metric, scores = score_columns(answered)
    texts, right = (
        {f"{name}: {id_}": each for name, both in answered.items() for id_, each in both[place].items()}
        for place in (0, 1)
    )
    return EvaluationResult(scores, texts, right, metric, run)


def questions_asked(model: str, processor, task: str | None, columns: Sequence[str] | None) -> tuple[Task, TargetForm]:
    """The task of the rows, or a task that stands for the columns, and the form of the targets.

    Raises:
        UserError: the model lacks a task or a column.
    """
    if columns is None:
        chosen = find_task(processor, task)
        metric_of(chosen)
        return chosen, TargetForm.of(chosen)
    names = columns_asked(model, processor.tasks, columns)
    return find_task(processor, names[0]), TargetForm(cells=tuple(names))


def answer_images(model: str, images: Mapping[str, Any], *, device: str | None = None, **options) -> dict[str, str]:
    """The best answer of a model to each image, by id; empty for images that cannot be read.

    Args:
        model: folder or Hub id.
        options: keywords of `predict`.

    Raises:
        UserError: the model cannot be loaded.
    """
    rows = ({"id": id_, "image": images[id_]} for id_ in images)
    predictions = predict(*load_model(model, device=device), rows, **options)
    return {each.id: each.text for each in show_progress(predictions, len(images))}
