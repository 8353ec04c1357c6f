"""Targets of a task as tokens: texts, location tokens, codes, and answers from a list with the allowed words at each
position.

Source: OFA `data/mm_data/*_dataset.py`, `data/nlu_data/`, `data/nlg_data/`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import LongTensor

from ofa_hf.boxes_ofa import CodesOnly, box_to_places, check_box, parse_box
from ofa_hf.data.answers import fit_codes
from ofa_hf.errors import UserError
from ofa_hf.generation_ofa import next_tokens_of
from ofa_hf.processing_ofa import IGNORED_LABEL, OFAProcessor
from ofa_hf.tasks_ofa import Task


Words = tuple[int, ...]  # words that are allowed at a position


@dataclass
class TargetWriter:
    """Encodes the targets of one task.

    Args:
        task: the task of the processor.
    """

    processor: OFAProcessor
    task: Task
    _choices: dict[str, list[int]] = field(init=False, repr=False)
    _following: dict[tuple[int, ...], Words] = field(init=False, repr=False)
    _code_words: Words = field(default=(), init=False, repr=False)

    def __post_init__(self) -> None:
        if self.task.answer == "image":
            eos = self.processor.tokenizer.eos_token_id
            self._code_words = CodesOnly(*self.processor.codes(), 0, eos).words
        choices = self.task.choices if self.task.answer == "choice" else ()
        self._choices = dict(zip(choices, self.processor.encode_choices(choices))) if choices else {}
        following = next_tokens_of(self._choices.values(), self.processor.tokenizer.eos_token_id)
        self._following = {begin: tuple(sorted(words)) for begin, words in following.items()}

    def has_start(self) -> bool:
        """Whether a target starts with the question."""
        return bool(self.task.starts_with)

    def is_bound(self) -> bool:
        """Whether only some words are allowed at the positions of a target."""
        return bool(self._choices or self._code_words)

    def write(self, targets: Sequence[str], image_sizes: Sequence[tuple[int, int] | None], limit: int) -> LongTensor:
        """Targets → labels `(targets, tokens)`: the target and `</s>`, −100 after the end.

        Args:
            image_sizes: `(width, height)` of the image that each target belongs to, for boxes.
            limit: maximum tokens of a text, including `</s>`; longer ones are cut.

        Raises:
            UserError: a box that does not fit its image, an answer that is not in the list, an unknown code.
        """
        if self.task.answer == "image":
            return pad_labels([self._codes(target) for target in targets])
        if self.task.answer == "boxes":
            return pad_labels([self._places(*pair) for pair in zip(targets, image_sizes, strict=True)])
        if self._choices:
            return pad_labels([self._choice(target) for target in targets])
        return self.processor.encode_labels(targets, limit, self.task.blank_before)

    def _places(self, target: str, image_size: tuple[int, int] | None) -> list[int]:
        if image_size is None:
            raise UserError(f"The task {self.task.name} needs the image that the box {target} lies in.")
        try:
            box = check_box(parse_box(target), image_size)
        except ValueError as error:
            raise UserError(f"{error} Load the data with check_images=True to skip it.") from error
        model_size = self.processor.model_size(self.task)
        places = self.processor.encode_bins(box_to_places(box, image_size, model_size))
        return [*places, self.processor.tokenizer.eos_token_id]

    def _codes(self, target: str) -> list[int]:
        first, number = self.processor.codes()
        try:
            codes = fit_codes(target, codebook=number).split()
        except ValueError as error:
            raise UserError(f"A target of the task {self.task.name} cannot be learned: {error}.") from error
        return [*(first + int(code) for code in codes), self.processor.tokenizer.eos_token_id]

    def _choice(self, target: str) -> list[int]:
        target = self.task.labels.get(target, target)
        if target not in self._choices:
            raise UserError(
                f"The answer {target!r} is not in the list of the task {self.task.name}, which has "
                f"{len(self._choices):,}: {', '.join(list(self._choices)[:5])} … Correct it, or add it to the list."
            )
        end = [self.processor.tokenizer.eos_token_id] if self.task.ends else []
        return [*self._choices[target], *end]

    def words_at(self, tokens: Sequence[int]) -> list[Words]:
        """The words that are allowed at each position of a target from a list, or of codes."""
        if self._code_words:
            return [self._code_words] * len(tokens)
        return [self._following[tuple(tokens[:place])] for place in range(len(tokens))]


def pad_labels(rows: Sequence[Sequence[int]], fill: int = IGNORED_LABEL) -> LongTensor:
    """Rows of tokens → `(rows, longest)`, filled up on the right."""
    padded = torch.full((len(rows), max(map(len, rows), default=0)), fill, dtype=torch.long)
    for row, tokens in zip(padded, rows):
        row[: len(tokens)] = torch.tensor(tokens, dtype=torch.long)
    return padded
