"""The prediction loop: rows in, answers out, in order, with images read ahead in threads while the model works.

Commands, evaluation, Ray workers and the Trainer all use it.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets.utils import tqdm
from PIL import Image
from transformers.utils import logging

from ofa_hf.errors import UserError
from ofa_hf.image_loading_ofa import ImageError, load_image
from ofa_hf.pipeline_ofa import leave_lost_threads, with_length
from ofa_hf.prediction.batches import Answering, EncodedRow, Question, in_batches
from ofa_hf.prediction.reading import read_ahead
from ofa_hf.tasks_ofa import Task


logger = logging.get_logger(__name__)

BATCHES_AHEAD = 2  # read while the model works on another one
ROWS_PER_IMAGE = 256  # maximum rows per image in a group; further rows form another group

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Prediction:
    """The answers to one row, best first; empty if the row cannot be answered.

    An answer is `{"text": …}`, or `{"box": …}` from a task that answers with boxes, with a `"score"` if asked for. A
    score is the mean log-probability of the answer's tokens, including `</s>`; for an answer chosen from a list, it is
    the log-probability of the answer in the list.
    """

    id: Any
    answers: list[dict[str, Any]]
    image_size: tuple[int, int] | None = None  # width and height of the original image

    @property
    def best(self) -> Any:
        """The best answer, a text or a box; the empty text if there is none."""
        answer = self.answers[0] if self.answers else {}
        return answer.get("text") or answer.get("box") or ""

    @property
    def text(self) -> str:
        """The best text; empty if there is none."""
        return self.answers[0].get("text", "") if self.answers else ""


def predict(
    model,
    processor,
    rows: Iterable[Row],
    *,
    task: str | None = None,
    prompt: str | None = None,
    batch_size: int = 8,
    num_answers: int = 1,
    return_scores: bool = False,
    choices: Sequence[str] | None = None,
    on_failure: Callable[[Any, ValueError], None] | None = None,
    **generate,
) -> Iterator[Prediction]:
    """Answer rows in batches, while the next images are decoded in threads, each of them once.

    Consecutive rows with the same image (one object, or one path) are questions about one image, which is decoded and
    encoded by the ResNet once.

    Args:
        model, processor: as `load_model` returns them. The model is in inference mode while this runs.
        rows: `{"id", "image", <fields of the task>}`; an image is anything that `load_image` takes. Rows of a task
            without images have none. A row can have its own `"task"`.
        task: one of `processor.tasks`, for rows that name none; by default the checkpoint's default task.
        prompt: the whole question of those rows, instead of the task's prompt.
        batch_size: number of images whose rows are prepared together, and of rows per batch of the model.
        num_answers: answers per row.
        choices: answers to choose from, by default those of the task. Scores are then log-probabilities in the list.
        on_failure: called with id and error of a row that cannot be answered, because its image cannot be read, a text
            is missing or too long, or a box does not fit. By default a warning is logged. The prediction of that row
            has no answers.
        generate: overrides of the generation settings, such as `num_beams=5`.

    Raises:
        UserError: the checkpoint has no such task, fewer beams than answers were asked for, there are no choices for
            a task that needs them, or the model computes NaN.
    """
    prepare = _Preparation(model, processor, num_answers, generate)
    prepare.questions[None] = prepare.question(task, prompt, choices)
    on_failure = on_failure or _warn
    leave_lost_threads()
    was_training = model.training
    model.eval()
    try:
        answer = Answering(model, processor, batch_size, num_answers, return_scores)
        groups = read_ahead(by_image(rows), prepare, (BATCHES_AHEAD + 1) * batch_size)
        whole = ((group, [found] * len(group) if isinstance(found, ImageError) else found) for group, found in groups)
        for batch in in_batches(whole, batch_size):
            readable = [encoded for _, encoded in batch if isinstance(encoded, EncodedRow)]
            for row, encoded in batch:
                if not isinstance(encoded, EncodedRow):
                    on_failure(row["id"], encoded)
            answers = iter(answer(readable) if readable else ())
            for row, encoded in batch:
                if isinstance(encoded, EncodedRow):
                    yield Prediction(row["id"], next(answers), encoded.image_size)
                else:
                    yield Prediction(row["id"], [])
    finally:
        model.train(was_training)


def by_image(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Group consecutive rows with the same image; rows without an image form their own groups."""
    group: list[Row] = []
    for row in rows:
        if group and (len(group) == ROWS_PER_IMAGE or not _is_same(group[-1].get("image"), row.get("image"))):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, (str, os.PathLike)) and isinstance(other, (str, os.PathLike)):
        return one == other
    return one is other and one is not None


class _Preparation:
    """Encodes the rows of one image, which is decoded once, and resized once for all tasks with the same settings."""

    def __init__(self, model, processor, num_answers: int, generate: Mapping[str, Any]):
        self.processor, self.num_answers, self.generate = processor, num_answers, generate
        self.defaults, self.positions = model.generation_config, model.config.max_position_embeddings
        self.questions: dict[str | None, Question] = {}  # None: rows that name no task
        self.turns = threading.Lock()

    def question(self, task: str | None, prompt: str | None = None, choices: Sequence[str] | None = None) -> Question:
        """How to answer rows of a task."""
        chosen = find_task(self.processor, task)
        choices = check_choices(self.processor, chosen, choices)
        ids = self.processor.encode_choices(choices) if choices else []
        of_task = self.processor.generation_kwargs(chosen.name)
        settings = with_length(of_task, self.generate, self.defaults, bool(chosen.starts_with))
        if "max_new_tokens" in settings:  # the question also needs positions
            settings["max_new_tokens"] = min(settings["max_new_tokens"], self.positions // 2)
        settings = answer_settings(self.defaults, self.num_answers, settings)
        room = max(map(len, ids)) + 1 if ids else settings.get("max_new_tokens", 1)
        return Question(chosen, prompt, choices, ids, settings, room)

    def __call__(self, rows: Sequence[Row]) -> list[EncodedRow | ValueError]:
        """The encoding of each row, or the error why it cannot be answered.

        Raises:
            ImageError: the shared image cannot be read.
        """
        image, pixels = rows[0].get("image"), {}
        image = None if image is None else _load(rows[0]["id"], image)
        encoded: list[EncodedRow | ValueError] = []
        for row in rows:
            try:
                encoded.append(self._encode(row, image, pixels))
            except UserError:
                raise
            except ImageError as error:
                encoded.append(error)
            except ValueError as error:
                encoded.append(ValueError(f"{_named(row)}: {error}"))
        return encoded

    def _encode(self, row: Row, image: Image.Image | None, pixels: dict[str, Any]) -> EncodedRow:
        question = self._question_of(row)
        task = question.task
        if image is None and task.needs_image:
            raise ImageError(f"{_named(row)} has no image, which the task {task.name} needs.")
        text = {} if question.prompt else {field: row.get(field) for field in task.fields}
        if lacking := [field for field, value in text.items() if value in (None, "")]:
            raise ValueError(f"nothing in {', '.join(lacking)}, which the task {task.name} asks about.")
        size = None if image is None else image.size
        inputs = dict(self.processor.encode_question(text, task.name, size, question.prompt, False))
        self._check_length(row, question, inputs)
        if image is None:
            return EncodedRow(question, inputs)
        wanted = repr(sorted(task.image.items()))
        if wanted not in pixels:
            pixels[wanted] = self.processor.image_processor(image, return_tensors="pt", **task.image)["pixel_values"]
        return EncodedRow(question, inputs, pixels[wanted], size)

    def _question_of(self, row: Row) -> Question:
        name = row.get("task")
        with self.turns:
            if name not in self.questions:
                self.questions[name] = self.question(name)
            return self.questions[name]

    def _check_length(self, row: Row, question: Question, inputs: Mapping[str, Any]) -> None:
        """Refuse a text that would be cut or would leave no room for an answer."""
        limit = min(self.processor.max_prompt_tokens, self.positions)
        if "decoder_input_ids" in inputs:
            limit = min(limit, self.positions - question.room)
        if (length := inputs["input_ids"].shape[1]) > limit:
            raise ValueError(f"the question has {length:,} tokens, but at most {limit:,} fit. Shorten it.")


def _named(row: Row) -> str:
    """The row in a message; a name with several parts can contain a long text."""
    parts = row["id"] if isinstance(row["id"], tuple) else (row["id"],)
    return ", ".join(str(part)[:100] for part in parts)


def _load(id_: Any, image: Any) -> Image.Image:
    try:
        return load_image(image)
    except MemoryError as error:
        raise ImageError(f"{id_} does not fit into memory {error}. Make it smaller first.") from error


def find_task(processor, name: str | None) -> Task:
    """A task of the checkpoint; the default one if no name is given.

    Raises:
        UserError: the checkpoint has no such task.
    """
    try:
        return processor.find_task(name)
    except ValueError as error:
        raise UserError(str(error)) from error


def answer_settings(defaults, num_answers: int, generate: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of `generate` for a number of answers per row, with at least one beam for each.

    Args:
        defaults: the model's generation config.
        generate: overrides.

    Raises:
        UserError: fewer beams than answers were asked for.
    """
    check_beams(num_answers, generate.get("num_beams"))
    settings = {"num_return_sequences": num_answers, **generate}
    if "num_beams" not in generate and (defaults.num_beams or 1) < num_answers:
        settings["num_beams"] = num_answers
    return settings


def refuse_drawing(task: Task) -> None:
    """Raises `UserError` for a task whose answers are images, for which there is `ofa-hf draw`."""
    if task.answer == "image":
        raise UserError(f"The task {task.name} answers with images. Draw them with `ofa-hf draw`.")


def check_choices(processor, task: Task, choices: Sequence[str] | None) -> list[str]:
    """The answers to choose from; empty for a task that answers freely.

    Raises:
        UserError: the task needs some, the model cannot choose among these, or the task draws images.
    """
    refuse_drawing(task)
    choices = list(task.choices if choices is None else choices)
    if task.answer == "choice" and not choices:
        raise UserError(f"The task {task.name} chooses among answers, but none were given. Pass a list of them.")
    try:
        if choices:
            processor.encode_choices(choices)
    except ValueError as error:
        raise UserError(str(error)) from error
    return choices


def check_beams(num_answers: int, num_beams: int | None) -> None:
    """Check that a search has at least one beam per answer.

    Raises:
        UserError: it has fewer.
    """
    if num_beams is not None and num_beams < num_answers:
        raise UserError(
            f"A search with {num_beams} beams cannot give {num_answers} answers per image. Accepted: at least one "
            f"beam per answer. Raise the number of beams, or leave it out."
        )


def show_progress(predictions: Iterable[Prediction], total: int) -> Iterator[Prediction]:
    """Pass predictions through, with a bar on stderr."""
    yield from tqdm(predictions, total=total, unit="image", desc="predicting")


def _warn(id_: Any, error: ValueError) -> None:
    name = ", ".join(map(str, id_)) if isinstance(id_, tuple) else id_
    logger.warning(f"{name} has no answer: {error}")
