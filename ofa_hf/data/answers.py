"""Which targets of a table a task can learn: labels become answers of its list, boxes must fit their image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ofa_hf.boxes_ofa import check_box, parse_box
from ofa_hf.tasks_ofa import Task


SLACK = 1.0  # pixels by which annotated boxes leave their image; such boxes are cut


@dataclass(frozen=True)
class AnswerRule:
    """What the targets of a task are, as plain values: it is part of what rows are built from.

    Args:
        kind: of answer, one of `ANSWERS`.
        choices: the list of answers; empty where any text will do.
        labels: other names of these answers, such as `entailment` for `yes`.
    """

    kind: str = "text"
    choices: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, task: Task) -> "AnswerRule":
        return cls(task.answer, tuple(task.choices), dict(task.labels))

    def as_dict(self) -> dict:
        return {"kind": self.kind, "choices": list(self.choices), "labels": dict(self.labels)}

    def answer(self, text: str, image_size: Sequence[int] | None = None) -> str:
        """A target as training writes it.

        Args:
            image_size: `(width, height)`, for boxes; without it, whether a box fits is not checked.

        Raises:
            ValueError: it is not in the list, or no box of this image.
        """
        if self.kind == "boxes":
            return fit_box(text, image_size)
        text = self.labels.get(text, text)
        if self.kind == "choice" and self.choices and text not in self.choices:
            known = ", ".join([*self.choices[:5], *self.labels][:8])
            raise ValueError(f"{text[:100]!r} is not in the list of {len(self.choices):,} answers: {known} …")
        return text


def fit_box(text: str, image_size: Sequence[int] | None) -> str:
    """A box as `xmin,ymin,xmax,ymax`, cut where it leaves its image by less than a pixel.

    Raises:
        ValueError: it is no box, empty or reversed, or outside the image.
    """
    box = parse_box(text)
    if image_size is not None:
        limits = (image_size[0], image_size[1], image_size[0], image_size[1])
        box = check_box([cut(side, limit) for side, limit in zip(box, limits)], image_size)
    return ",".join(f"{side:.10g}" for side in box)


def cut(side: float, limit: int) -> float:
    nearest = min(max(side, 0.0), float(limit))
    return nearest if abs(nearest - side) <= SLACK else side
