"""Run a batch of encoded rows: the ResNet encodes shared images once, and rows are grouped by task."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ofa_hf.errors import UserError
from ofa_hf.pipeline_ofa import generate_answers
from ofa_hf.tasks_ofa import Task


Answers = list[dict[str, Any]]  # answers to one row, best first


@dataclass(frozen=True)
class Question:
    """How to answer rows of one task.

    Args:
        prompt: the whole question, instead of the task's prompt.
        choices: answers to choose from, and their token ids; empty if the answer is generated.
        settings: keywords of `generate`.
        room: maximum tokens of an answer.
    """

    task: Task
    prompt: str | None = None
    choices: Sequence[str] = ()
    choice_ids: Sequence[Sequence[int]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    room: int = 1


class EncodedRow(NamedTuple):
    """Text inputs of one row, `(1, …)` each, its image as pixels, and the `(width, height)` that the image had."""

    question: Question
    inputs: dict[str, Tensor]
    pixels: Tensor | None = None
    image_size: tuple[int, int] | None = None


@dataclass
class Answering:
    """A model that answers encoded rows.

    Args:
        rows_at_once: rows per batch of the model.
    """

    model: Any
    processor: Any
    rows_at_once: int
    num_answers: int
    with_scores: bool

    @torch.inference_mode()
    def __call__(self, rows: Sequence[EncodedRow]) -> list[Answers]:
        """The answers to rows of any task, in order."""
        images, answers = SharedImages(self.model, rows), [[]] * len(rows)
        for numbers in self._parts(rows):
            part = [rows[number] for number in numbers]
            inputs = collate([row.inputs for row in part], self.processor.tokenizer.pad_token_id)
            inputs = {name: moved(tensor, self.model) for name, tensor in inputs.items()} | images.inputs(part)
            answer = self._choose if part[0].question.choices else self._generate
            for number, found in zip(numbers, answer(part[0].question, part, inputs), strict=True):
                answers[number] = found
        return answers

    def _parts(self, rows: Sequence[EncodedRow]) -> Iterator[list[int]]:
        """Numbers of rows that are one question about images of one size."""
        alike: dict[tuple, list[int]] = {}
        for number, row in enumerate(rows):
            shape = None if row.pixels is None else row.pixels.shape
            alike.setdefault((id(row.question), shape), []).append(number)
        for numbers in alike.values():
            yield from (numbers[at : at + self.rows_at_once] for at in range(0, len(numbers), self.rows_at_once))

    def _generate(self, question: Question, rows: list[EncodedRow], inputs: dict[str, Tensor]) -> list[Answers]:
        task = question.task
        sequences, scores = generate_answers(self.model, inputs, self.with_scores, **question.settings)
        number = len(sequences) // len(rows)
        sizes = [row.image_size for row in rows for _ in range(number)]
        key = "box" if task.answer == "boxes" else "text"
        answers = [{key: answer} for answer in self.processor.post_process(sequences, task.name, sizes)]
        if scores is not None:
            check_scores(scores)
            scores = scores.float().tolist()
            answers = [{**answer, "score": score} for answer, score in zip(answers, scores, strict=True)]
        return [answers[start : start + number] for start in range(0, len(answers), number)]

    def _choose(self, question: Question, rows: list[EncodedRow], inputs: dict[str, Tensor]) -> list[Answers]:
        scores = self.model.score_choices(question.choice_ids, **inputs)
        check_scores(scores)
        scores, order = scores.sort(dim=1, descending=True)
        return [
            [
                {"text": question.choices[index], "score": score}
                if self.with_scores
                else {"text": question.choices[index]}
                for score, index in zip(of_row[: self.num_answers], order_of_row)
            ]
            for of_row, order_of_row in zip(scores.tolist(), order.tolist(), strict=True)
        ]


class SharedImages:
    """The images of a batch. The ResNet encodes an image of several rows once.

    Args:
        rows: rows of the batch. Rows of one image share `pixels`.
    """

    def __init__(self, model: Any, rows: Sequence[EncodedRow]):
        self.model = model
        uses = Counter(id(row.pixels) for row in rows if row.pixels is not None)
        self.is_shared = any(count > 1 for count in uses.values())
        self.cells: dict[int, Tensor] = {}  # by `id` of the pixels

    def inputs(self, rows: Sequence[EncodedRow]) -> dict[str, Tensor]:
        """`pixel_values` of some rows, or `image_embeds` if rows share images; empty without images."""
        if rows[0].pixels is None:
            return {}
        if not self.is_shared:
            return {"pixel_values": moved(torch.cat([row.pixels for row in rows]), self.model)}
        new = {id(row.pixels): row.pixels for row in rows if id(row.pixels) not in self.cells}
        if new:
            pixels = moved(torch.cat(list(new.values())), self.model)
            self.cells.update(zip(new, self.model.embed_shared_images(pixels), strict=True))
        return {"image_embeds": torch.stack([self.cells[id(row.pixels)] for row in rows])}


def check_scores(scores: Tensor) -> None:
    """Stop if a model computes NaN.

    Raises:
        UserError: a score is not a number.
    """
    if scores.isnan().any():
        raise UserError(
            "The model computes NaN: its activations overflow, or its training diverged. Load it with "
            "dtype float32, or use an earlier checkpoint."
        )


def moved(tensor: Tensor, model: Any) -> Tensor:
    """A tensor on the model's device; floating-point ones also in its dtype."""
    return tensor.to(model.device, model.dtype if tensor.is_floating_point() else None)


def collate(encoded: Sequence[dict[str, Tensor]], pad_token_id: int) -> dict[str, Tensor]:
    """Inputs of single rows → inputs of a batch: prompts padded on the right, starts of answers on the left."""
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


def in_batches(
    groups: Iterable[tuple[Sequence[Any], Sequence[EncodedRow | Exception]]], batch_size: int
) -> Iterator[list[tuple[Any, EncodedRow | Exception]]]:
    """Join groups of rows so that `batch_size` groups with a readable row go through the model together.

    Yields:
        rows with their encodings, in order.
    """
    batch, readable = [], 0
    for rows, encoded in groups:
        batch += zip(rows, encoded, strict=True)
        readable += any(isinstance(one, EncodedRow) for one in encoded)
        if readable == batch_size:
            yield batch
            batch, readable = [], 0
    if batch:
        yield batch
