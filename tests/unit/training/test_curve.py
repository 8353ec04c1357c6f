"""The curve of a run."""

import math

import pytest
from PIL import Image

from ofa_hf.training.curve import COLOURS, curves_of, draw_curves, round_ticks, score_title


def colours_in(path) -> set:
    with Image.open(path) as image:
        return {f"#{red:02x}{green:02x}{blue:02x}" for _, (red, green, blue) in image.getcolors(1_000_000)}


def test_losses_and_scores_of_a_log_become_panels():
    log = [{"step": 1, "loss": 2.0}, {"step": 2, "eval_loss": 1.5, "eval_cider_d": 0.1}, {"step": 2, "runtime": 3}]
    panels = curves_of(log)
    assert list(panels.values()) == [{"training": [(1, 2.0)], "evaluation": [(2, 1.5)]}, {"CIDEr-D": [(2, 0.1)]}]


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("eval_cider_d", "CIDEr-D"),
        ("eval_颜色_accuracy", "颜色 Accuracy"),
        ("eval_grounding_box_accuracy", "grounding Accuracy at IoU 0.5"),
        ("eval_mean_score", "Mean score"),
        ("eval_runtime", None),
        ("train_loss", None),
    ],
)
def test_scores_of_several_tasks_have_their_task_in_the_title(name, title):
    assert score_title(name) == title


def test_a_log_without_losses_gives_no_panel():
    assert curves_of([{"step": 1, "epoch": 1.0}]) == {}


@pytest.mark.parametrize(
    "points",
    [
        [(1, 5.0)],
        [(1, 3.0), (2, 3.0)],
        [(0, 0.0)],
        [(1, 9.0), (2, math.nan), (3, 1.0)],
        [(n, 1 / n) for n in range(1, 999)],
    ],
)
def test_every_line_is_drawn(tmp_path, points):
    draw_curves({"Loss": {"a": points, "b": [(1, 2.0), (3, 4.0)]}}, tmp_path / "curve.png")
    assert set(COLOURS[:2]) <= colours_in(tmp_path / "curve.png")


def test_panels_lie_below_each_other(tmp_path):
    for number in (1, 2):
        draw_curves({str(panel): {"a": [(1, 1.0)]} for panel in range(number)}, tmp_path / f"{number}.png")
    heights = [Image.open(tmp_path / f"{number}.png").height for number in (1, 2)]
    assert heights[1] == 2 * heights[0]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (9.01, 9.2), (-3, 1e6), (5, 5), (0, 0), (1e-9, 2e-9)])
def test_ticks_are_few_round_and_span_the_values(low, high):
    ticks = round_ticks(low, high)
    assert 2 <= len(ticks) <= 8
    assert ticks[0] <= low + 1e-6 * abs(low)
    assert ticks[-1] >= high - 1e-6 * abs(high)
