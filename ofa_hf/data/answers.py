"""Targets of a table that a task can learn: labels become answers from its list, boxes must fit their image, and
codes must form an image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ofa_hf.data.lines import target_list
from ofa_hf.tasks_ofa import Task


CONFIDENT = 1.0  # a target without a confidence
SLACK = 1.0  # pixels by which a box may leave its image; it is then cut


@dataclass(frozen=True)
class AnswerRule:
    """The targets of a task, as plain values, which are part of the fingerprint of rows.

    Args:
        kind: kind of answer, one of `ANSWERS`.
        choices: the list of answers; empty if any text is accepted.
        labels: other names of these answers, such as `entailment` for `yes`.
        codes: number of codes per image and of different codes; empty skips the check.
    """

    kind: str = "text"
    choices: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    codes: Sequence[int] = ()

    @classmethod
    def of(cls, task: Task) -> "AnswerRule":
        return cls(task.answer, tuple(task.choices), dict(task.labels))

    def as_dict(self) -> dict:
        about_codes = {"codes": list(self.codes)} if self.codes else {}
        return {"kind": self.kind, "choices": list(self.choices), "labels": dict(self.labels), **about_codes}

    def answer(self, text: str, image_size: Sequence[int] | None = None) -> str:
        """A target in the form for training.

        Args:
            image_size: `(width, height)`, to check boxes; None skips that check.

        Raises:
            ValueError: it is not in the list, not a box in this image, or not the codes of an image.
        """
        if self.kind == "image":
            return fit_codes(text, *self.codes)
        if self.kind == "boxes":
            return fit_box(text, image_size)
        text = self.labels.get(text, text)
        if self.kind == "choice" and self.choices and text not in self.choices:
            known = ", ".join([*self.choices[:5], *self.labels][:8])
            raise ValueError(f"{text[:100]!r} is not in the list of {len(self.choices):,} answers: {known} …")
        return text


@dataclass(frozen=True)
class TargetForm:
    """The targets of rows, and their columns.

    Args:
        rule: requirements; rows that do not meet them are left out and reported.
        column: common name of their column.
        confidence: name of the column with confidences, 0 to 1. Rows then have their most confident target, its
            `confidence`, and all targets as `references`.
        has_confidences: use a column named `confidence` if there is one.
        more_fields: columns for the task's longer prompts, which can be empty.
        cells: several columns that are tasks, instead of one column of targets. Rows have a target for each non-empty
            cell, and its column in `tasks`.
    """

    rule: AnswerRule = field(default_factory=AnswerRule)
    column: str | None = None
    confidence: str | None = None
    has_confidences: bool = False
    more_fields: tuple[str, ...] = ()
    cells: tuple[str, ...] = ()

    @classmethod
    def of(cls, task: Task, more_fields: Sequence[str] = (), confidence: str | None = None) -> "TargetForm":
        is_scored_by_it = task.metric == "vqa"
        return cls(AnswerRule.of(task), task.target_column, confidence, is_scored_by_it, tuple(more_fields))


def is_box(value: Any) -> bool:
    """Whether a JSON value is a box: four numbers, or a mapping of four sides."""
    if isinstance(value, dict):
        return value.keys() == {"xmin", "ymin", "xmax", "ymax"} and all(map(is_number, value.values()))
    return isinstance(value, list) and len(value) == 4 and all(map(is_number, value))


def text_of_box(value: Any) -> str:
    from ofa_hf.boxes_ofa import parse_box  # imports torch, which other data does not need

    return ",".join(f"{side:.10g}" for side in parse_box(value))


def targets_in(value: Any) -> list[str] | None:
    """Targets from a text, a number, a box, or a list of them; None for anything else."""
    values = [None if is_nan(each) else each for each in (value if isinstance(value, list) else [value])]
    values = [value] if is_box(value) else values
    texts = [text_of_box(each) if is_box(each) else str(each) if is_number(each) else each for each in values]
    return target_list(texts)


def is_nan(value: Any) -> bool:
    """Whether a number is NaN, which pandas writes for empty cells."""
    return isinstance(value, float) and value != value


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def confidences_in(value: Any, number: int) -> list[float] | None:
    """One confidence per target, from a number, a text or a list; None if that is impossible."""
    values = value if isinstance(value, list) else [value] * number
    try:
        found = [CONFIDENT if each in (None, "") else float(each) for each in values]
    except (TypeError, ValueError):
        return None
    is_whole = len(found) == number and all(0 <= each <= 1 for each in found)
    return found if is_whole else None


def fit_box(text: str, image_size: Sequence[int] | None) -> str:
    """A box as `xmin,ymin,xmax,ymax`, cut if it leaves its image by less than a pixel.

    Raises:
        ValueError: it is not a box, empty or reversed, or outside the image.
    """
    from ofa_hf.boxes_ofa import check_box, parse_box

    box = parse_box(text)
    if image_size is not None:
        limits = (image_size[0], image_size[1], image_size[0], image_size[1])
        box = check_box([cut(side, limit) for side, limit in zip(box, limits)], image_size)
    return ",".join(f"{side:.10g}" for side in box)


def fit_codes(text: str, number: int | None = None, codebook: int | None = None) -> str:
    """Codes of an image in the form for training, numbers separated by spaces.

    Raises:
        ValueError: these are not whole numbers, not as many as needed, or not below `codebook`.
    """
    try:
        codes = list(map(int, text.split()))
    except ValueError:
        raise ValueError(f"{text[:60]!r} are not the codes of an image, which are whole numbers") from None
    if number is not None and len(codes) != number:
        raise ValueError(f"it has {len(codes):,} codes, an image of this model has {number:,}")
    if codebook is not None and codes and not 0 <= min(codes) <= max(codes) < codebook:
        raise ValueError(f"it has codes from {min(codes):,} to {max(codes):,}, the model knows 0 to {codebook - 1:,}")
    return " ".join(map(str, codes))


def cut(side: float, limit: int) -> float:
    nearest = min(max(side, 0.0), float(limit))
    return nearest if abs(nearest - side) <= SLACK else side
