"""The prediction loop: rows in, answers out, in order, with images read ahead in threads while the model works.

Commands, evaluation, Ray workers and the Trainer all use it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from datasets.utils import tqdm
from PIL import Image
from torch import Tensor
from transformers.utils import logging

from ofa_hf.errors import UserError
from ofa_hf.image_loading_ofa import ImageError, load_image
from ofa_hf.pipeline_ofa import generate_answers, leave_lost_threads
from ofa_hf.prediction.reading import read_ahead
from ofa_hf.tasks_ofa import Task


logger = logging.get_logger(__name__)

BATCHES_AHEAD = 2  # read while the model works on another one

Row = Mapping[str, Any]


class EncodedRow(NamedTuple):
    """Model inputs of one row, `(1, …)` each, and the `(width, height)` of its image."""

    inputs: dict[str, Tensor]
    image_size: tuple[int, int] | None


@dataclass(frozen=True)
class Prediction:
    """The answers to one row, best first; none for an unreadable image.

    An answer is `{"text": …}`, or `{"box": …}` from a task that answers with boxes, with a `"score"` if asked for. A
    score is the mean log-probability of the answer's tokens, `</s>` included.
    """

    id: str
    answers: list[dict[str, Any]]

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
    on_failure: Callable[[str, ImageError], None] | None = None,
    **generate,
) -> Iterator[Prediction]:
    """Answer rows in batches; the next images are decoded in threads meanwhile, each of them once.

    Args:
        model, processor: as `load_model` returns them. The model is in inference mode while this runs.
        rows: `{"id", "image", <fields of the task>}`; an image is anything `load_image` takes. Rows of a task without
            images have none.
        task: one of `processor.tasks`; by default the checkpoint's default task.
        prompt: the whole question for every row, in place of the task's.
        num_answers: answers per row.
        choices: answers to choose from, by default those of the task. Their scores are log-probabilities that the
            answer is this one of the list.
        on_failure: called with id and error of a row whose image cannot be read; by default a warning is logged. That
            row's prediction has no answers and costs the model nothing.
        generate: overrides of the generation settings, such as `num_beams=5`.

    Raises:
        UserError: the checkpoint has no such task, fewer beams than answers were asked for, or there are no choices
            for a task that needs them.
    """
    chosen = find_task(processor, task)
    choices = check_choices(processor, chosen, choices)
    generate = {**processor.generation_kwargs(chosen.name), **generate}
    settings = answer_settings(model.generation_config, num_answers, generate)
    on_failure = on_failure or _warn
    leave_lost_threads()

    def encode(row: Row) -> EncodedRow:
        image = row.get("image")
        if image is None and chosen.needs_image:
            raise ImageError(f"{row['id']} has no image, which the task {chosen.name} needs.")
        image = None if image is None else _load(row["id"], image)
        fields = {name: row[name] for name in chosen.fields}
        text, of_task = (fields, chosen.name) if prompt is None else (prompt, None)
        return EncodedRow(dict(processor(images=image, text=text, task=of_task)), image and image.size)

    was_training = model.training
    model.eval()
    try:
        rows_read = read_ahead(rows, encode, (BATCHES_AHEAD + 1) * batch_size)
        for ids, encoded in _batches(rows_read, batch_size, on_failure):
            if not encoded:
                answers = iter(())
            elif choices:
                answers = iter(_choose(model, processor, encoded, choices, num_answers, return_scores))
            else:
                answers = iter(_answer(model, processor, chosen.name, encoded, return_scores, settings))
            for id_, is_readable in ids:
                yield Prediction(id_, next(answers) if is_readable else [])
    finally:
        model.train(was_training)


def _load(id_: str, image: Any) -> Image.Image:
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
    """Settings of `generate` that give a number of answers per row, with at least one beam for each.

    Args:
        defaults: the model's generation config.
        generate: what overrides it.

    Raises:
        UserError: fewer beams than answers were asked for.
    """
    check_beams(num_answers, generate.get("num_beams"))
    settings = {"num_return_sequences": num_answers, **generate}
    if "num_beams" not in generate and (defaults.num_beams or 1) < num_answers:
        settings["num_beams"] = num_answers
    return settings


def check_choices(processor, task: Task, choices: Sequence[str] | None) -> list[str]:
    """The answers to choose from; none for a task that answers freely.

    Raises:
        UserError: the task needs some, or the model cannot choose among these.
    """
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


def _warn(id_: str, error: ImageError) -> None:
    logger.warning(f"{id_} has no answer: {error}")


def _batches(
    rows_read: Iterable[tuple[Row, EncodedRow | ImageError]], batch_size: int, on_failure: Callable
) -> Iterator[tuple[list[tuple[str, bool]], list[EncodedRow]]]:
    """Group rows so that `batch_size` readable ones go through the model together.

    Yields:
        `(id, is readable)` of all rows of the group, in order, and the readable ones, encoded.
    """
    ids, encoded = [], []
    for row, result in rows_read:
        is_readable = not isinstance(result, ImageError)
        ids.append((row["id"], is_readable))
        if is_readable:
            encoded.append(result)
        else:
            on_failure(row["id"], result)
        if len(encoded) == batch_size:
            yield ids, encoded
            ids, encoded = [], []
    if ids:
        yield ids, encoded


@torch.inference_mode()
def _answer(
    model, processor, task: str, rows: list[EncodedRow], return_scores: bool, settings: dict[str, Any]
) -> list[list[dict[str, Any]]]:
    """Answers of a batch, by row and best first."""
    inputs = collate([row.inputs for row in rows], processor.tokenizer.pad_token_id)
    inputs = {name: _moved(tensor, model) for name, tensor in inputs.items()}
    sequences, scores = generate_answers(model, inputs, return_scores, **settings)
    number = len(sequences) // len(rows)
    sizes = [row.image_size for row in rows for _ in range(number)]
    key = "box" if processor.find_task(task).answer == "boxes" else "text"
    answers = [{key: answer} for answer in processor.post_process(sequences, task, sizes)]
    if scores is not None:
        answers = [{**answer, "score": score} for answer, score in zip(answers, scores.float().tolist(), strict=True)]
    return [answers[start : start + number] for start in range(0, len(answers), number)]


@torch.inference_mode()
def _choose(
    model, processor, rows: list[EncodedRow], choices: list[str], num_answers: int, return_scores: bool
) -> list[list[dict[str, Any]]]:
    """The best answers of a list, by row and best first."""
    inputs = collate([row.inputs for row in rows], processor.tokenizer.pad_token_id)
    inputs = {name: _moved(tensor, model) for name, tensor in inputs.items()}
    scores, order = model.score_choices(processor.encode_choices(choices), **inputs).sort(dim=1, descending=True)
    return [
        [
            {"text": choices[index], "score": score} if return_scores else {"text": choices[index]}
            for score, index in zip(row_scores[:num_answers], row_order[:num_answers])
        ]
        for row_scores, row_order in zip(scores.tolist(), order.tolist(), strict=True)
    ]


def _moved(tensor: Tensor, model) -> Tensor:
    return tensor.to(model.device, model.dtype if tensor.is_floating_point() else None)


def collate(encoded: list[dict[str, Tensor]], pad_token_id: int) -> dict[str, Tensor]:
    """Model inputs of one row each → of a batch: prompts padded on the right, starts of answers on the left."""
    return {name: _joined([row[name] for row in encoded], name, pad_token_id) for name in encoded[0]}


def _joined(tensors: list[Tensor], name: str, pad_token_id: int) -> Tensor:
    longest = max(tensor.shape[1] for tensor in tensors)
    if all(tensor.shape[1] == longest for tensor in tensors):
        return torch.cat(tensors)
    fill = pad_token_id if name.endswith("input_ids") else 0
    is_left = name.startswith("decoder_")
    joined = tensors[0].new_full((len(tensors), longest), fill)
    for row, tensor in zip(joined, tensors):
        length = tensor.shape[1]
        row[longest - length if is_left else 0 : longest if is_left else length] = tensor[0]
    return joined
