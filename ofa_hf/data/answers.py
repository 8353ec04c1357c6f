"""Which targets of a table a task can learn: labels become answers of its list, boxes must fit their image, codes
must be those of one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ofa_hf.data.lines import target_list
from ofa_hf.tasks_ofa import Task


CONFIDENT = 1.0  # a target without a confidence
SLACK = 1.0  # pixels by which annotated boxes leave their image; such boxes are cut


@dataclass(frozen=True)
class AnswerRule:
    """What the targets of a task are, as plain values: it is part of what rows are built from.

    Args:
        kind: of answer, one of `ANSWERS`.
        choices: the list of answers; empty where any text will do.
        labels: other names of these answers, such as `entailment` for `yes`.
        codes: of images, how many there are of one, and how many different ones; not checked where it is empty.
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
        """A target as training writes it.

        Args:
            image_size: `(width, height)`, for boxes; without it, whether a box fits is not checked.

        Raises:
            ValueError: it is not in the list, no box of this image, or not the codes of an image.
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
    """What the targets of rows are, and which columns hold them.

    Args:
        rule: what they must be; rows with others are left out and reported.
        column: usual name of their column.
        confidence: name of the column that says how right a target is, 0 to 1. Rows then have their most confident
            target, its `confidence`, and all of them as `references`.
        has_confidences: such a column is used wherever it has its usual name, `confidence`.
        more_fields: columns of the task's longer prompts, which rows may leave empty.
        cells: instead of one column of targets, several that are tasks of their own. Rows have a target for each cell
            with a text, and its column in `tasks`.
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
    from ofa_hf.boxes_ofa import parse_box  # with torch, which preparing other data does not need

    return ",".join(f"{side:.10g}" for side in parse_box(value))


def targets_in(value: Any) -> list[str] | None:
    """Targets from a text, a number, a box, or a list of them; None for anything else."""
    values = [None if is_nan(each) else each for each in (value if isinstance(value, list) else [value])]
    values = [value] if is_box(value) else values
    texts = [text_of_box(each) if is_box(each) else str(each) if is_number(each) else each for each in values]
    return target_list(texts)


def is_nan(value: Any) -> bool:
    """Whether a number is NaN, which pandas writes where a table has nothing."""
    return isinstance(value, float) and value != value


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def confidences_in(value: Any, number: int) -> list[float] | None:
    """As many confidences as there are targets, from a number, a text or a list; None if they are none."""
    values = value if isinstance(value, list) else [value] * number
    try:
        found = [CONFIDENT if each in (None, "") else float(each) for each in values]
    except (TypeError, ValueError):
        return None
    is_whole = len(found) == number and all(0 <= each <= 1 for each in found)
    return found if is_whole else None


def fit_box(text: str, image_size: Sequence[int] | None) -> str:
    """A box as `xmin,ymin,xmax,ymax`, cut where it leaves its image by less than a pixel.

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
    """Codes of an image as they are trained on, numbers divided by blanks.

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
