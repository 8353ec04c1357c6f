"""Draw a run's losses and scores into one image. Uses Pillow instead of a plotting library."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ofa_hf.evaluation import METRICS
from ofa_hf.prediction.scoring import MEAN_SCORE


Points = Sequence[tuple[float, float]]  # (step, value)
Curves = Mapping[str, Points]  # by label

WIDTH, HEIGHT = 960, 440  # pixels of one panel
LEFT, TOP, RIGHT, BOTTOM = 84, 64, 40, 48  # margins of a panel
SCALE = 2  # supersampling factor, for smooth lines
COLOURS = ("#2563eb", "#d97706", "#059669", "#db2777")
TEXT, FAINT, GRID = "#111827", "#6b7280", "#e5e7eb"
MAX_DOTS = 40  # longer lines are drawn without dots

LOSSES = {"loss": "training", "eval_loss": "evaluation"}  # key of the Trainer's log → label


def score_titles() -> dict[str, str]:
    """Keys of scores in the Trainer's log → their titles, such as `eval_cider_d` → `CIDEr-D`, for all metrics."""
    return {f"eval_{name}": title for metric in METRICS.values() for name, title in metric.titles.items()}


def score_title(name: str) -> str | None:
    """The title of a score in the Trainer's log, preceded by the task in a run with several tasks.

    `eval_cider_d` → `CIDEr-D`, `eval_颜色_accuracy` → `颜色 Accuracy`; None if it is not a score.
    """
    titles = {**score_titles(), f"eval_{MEAN_SCORE}": "Mean score"}
    if name in titles or not name.startswith("eval_"):
        return titles.get(name)
    ends = [end.removeprefix("eval_") for end in titles if name.endswith(end.removeprefix("eval"))]
    if not ends:
        return None
    end = max(ends, key=len)
    return f"{name.removeprefix('eval_').removesuffix(end).rstrip('_')} {titles[f'eval_{end}']}"


def curves_of(log_history: Sequence[dict]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """The panels for a Trainer's log: title → label → points `(step, value)`."""
    panels = {}
    logged = dict.fromkeys(name for entry in log_history for name in entry)
    scores = {name: title for name in logged if (title := score_title(name))}
    for title, names in {"Loss per token by step": LOSSES, "Scores by step": scores}.items():
        curves = {
            label: [(entry["step"], float(entry[name])) for entry in log_history if name in entry]
            for name, label in names.items()
        }
        if any(curves.values()):
            panels[title] = {label: points for label, points in curves.items() if points}
    return panels


def draw_curves(panels: Mapping[str, Curves], path: str | Path) -> None:
    """Draw panels of lines over steps, one below the other, into a PNG. NaN and infinite values are skipped.

    Args:
        panels: title → label → points `(step, value)`. All panels share one step axis, which starts at 0.
    """
    steps = [step for curves in panels.values() for points in curves.values() for step, _ in points]
    image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE * max(1, len(panels))), "white")
    for number, (title, curves) in enumerate(panels.items()):
        _Panel(image, number * HEIGHT, max(steps, default=1) or 1).draw(title, curves)
    image.resize((image.width // SCALE, image.height // SCALE), Image.Resampling.LANCZOS).save(path)


def round_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Evenly spaced round values that span `low` … `high`."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if span / (factor * power) <= about)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


class _Panel:
    """One pair of axes in an image, starting `top` pixels from the upper edge."""

    def __init__(self, image: Image.Image, top: int, last_step: float):
        self.canvas, self.font = ImageDraw.Draw(image), ImageFont.load_default(15 * SCALE)
        self.top, self.last_step = top, last_step

    def draw(self, title: str, curves: Curves) -> None:
        curves = {label: [point for point in points if math.isfinite(point[1])] for label, points in curves.items()}
        values = [value for points in curves.values() for _, value in points] or [0.0]
        ticks = round_ticks(min(values), max(values))
        self.low, self.high = ticks[0], ticks[-1]
        self._draw_axes(title, ticks)
        coloured = list(zip(curves, curves.values(), itertools.cycle(COLOURS)))
        for _, points, colour in coloured:
            self._draw_line(points, colour)
        right = WIDTH - RIGHT
        for label, _, colour in reversed(coloured):
            right = self._draw_label(label, colour, right)

    def _place(self, step: float, value: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * step / self.last_step
        share = (value - self.low) / (self.high - self.low)
        y = self.top + HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share
        return x * SCALE, y * SCALE

    def _draw_axes(self, title: str, ticks: Sequence[float]) -> None:
        heading = ImageFont.load_default(18 * SCALE)
        self.canvas.text((LEFT * SCALE, (self.top + 28) * SCALE), title, TEXT, heading, anchor="lm")
        for tick in ticks:
            left, right = self._place(0, tick), self._place(self.last_step, tick)
            self.canvas.line([left, right], GRID, width=SCALE)
            self.canvas.text((left[0] - 10 * SCALE, left[1]), f"{tick:.4g}", FAINT, self.font, anchor="rm")
        for step in round_ticks(0, self.last_step, about=8):
            if step <= self.last_step and step == int(step):
                x, y = self._place(step, self.low)
                self.canvas.text((x, y + 10 * SCALE), f"{step:,.0f}", FAINT, self.font, anchor="mt")

    def _draw_line(self, points: Points, colour: str) -> None:
        places = [self._place(*point) for point in points]
        if len(places) > 1:
            self.canvas.line(places, colour, width=2 * SCALE, joint="curve")
        radius = 4 * SCALE
        for x, y in places if len(places) <= MAX_DOTS else ():
            self.canvas.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)

    def _draw_label(self, label: str, colour: str, right: float) -> float:
        """Draw a label that ends at `right`. Returns where the next one to the left may end."""
        left, y = right - self.canvas.textlength(label, self.font) / SCALE, self.top + 28
        self.canvas.text((left * SCALE, y * SCALE), label, TEXT, self.font, anchor="lm")
        self.canvas.line([((left - 30) * SCALE, y * SCALE), ((left - 8) * SCALE, y * SCALE)], colour, width=4 * SCALE)
        return left - 54
