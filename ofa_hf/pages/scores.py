"""The best and the worst answers of an evaluation with their images, as one self-contained HTML page."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from ofa_hf.evaluation.evaluate import EvaluationResult
from ofa_hf.files import write_text
from ofa_hf.pages.frame import fact_rows, html_page, image_tag


SHOWN_REFERENCES = 5

BODY = """<dl class="scores">{scores}</dl>
<section class="best"><h2>Best answers</h2><div class="cards">{best}</div></section>
<section class="worst"><h2>Worst answers</h2><div class="cards">{worst}</div></section>
<h2>What was run</h2><table>{run}</table>"""

CARD = """<article>{image}<div class="text"><p class="caption" lang="zh">{answer}</p>
<span class="score">{title} {score:.1f}</span> <span class="id">{image_id}</span>
<ul lang="zh">{references}</ul></div></article>
"""


def write_report(
    result: EvaluationResult, path: str | Path, images: Mapping[str, Any] | None = None, examples: int = 12
) -> None:
    """Write the page.

    Args:
        images: id → anything `load_image` takes or `{"bytes", "path"}`; only those of the examples are read.
        examples: number of best and of worst answers to show, by the score that ranks rows.
    """
    best, worst = result.scores.best_and_worst(result.metric.ranks_by, examples)
    body = BODY.format(
        scores=score_tiles(result),
        best="".join(card(result, image_id, images) for image_id in best),
        worst="".join(card(result, image_id, images) for image_id in worst),
        run=run_rows(result),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, html_page("Scores", body))


def score_tiles(result: EvaluationResult) -> str:
    tiles = [(title, f"{result.scores[name]:.2f}") for name, title in result.metric.titles.items()]
    tiles.append(("Images", f"{len(result.references):,}"))
    return "".join(f"<div><dt>{title}</dt><dd>{value}</dd></div>" for title, value in tiles)


def card(result: EvaluationResult, image_id: str, images: Mapping[str, Any] | None) -> str:
    references = list(map(as_text, result.references[image_id]))
    more = len(references) - SHOWN_REFERENCES
    shown = [escape(text) for text in references[:SHOWN_REFERENCES]] + ([f"… {more} more"] if more > 0 else [])
    return CARD.format(
        image=image_tag(images, image_id),
        answer=escape(as_text(result.predictions[image_id])) or "(empty)",
        title=result.metric.titles[result.metric.ranks_by],
        score=result.scores.each[result.metric.ranks_by][image_id],
        image_id=escape(image_id),
        references="".join(f"<li>{text}</li>" for text in shown),
    )


def as_text(answer: Any) -> str:
    """An answer for people: the text, or the four sides of a box."""
    sides = answer.values() if isinstance(answer, Mapping) else answer
    return answer if isinstance(answer, str) else ", ".join(f"{side:.0f}" for side in sides or ())


def run_rows(result: EvaluationResult) -> str:
    facts = result.as_dict()
    return fact_rows({**facts["run"], **facts["versions"], "date": facts["date"]})
