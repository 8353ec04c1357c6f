"""The best and the worst captions of an evaluation with their images, as one HTML page that needs nothing else."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from ofa_hf.evaluation.evaluate import ROW_TITLES, EvaluationResult
from ofa_hf.pages.frame import fact_rows, html_page, image_tag


SHOWN_REFERENCES = 5

BODY = """<dl class="scores">{scores}</dl>
<section class="best"><h2>Best captions</h2><div class="cards">{best}</div></section>
<section class="worst"><h2>Worst captions</h2><div class="cards">{worst}</div></section>
<h2>What was run</h2><table>{run}</table>"""

CARD = """<article>{image}<div class="text"><p class="caption" lang="zh">{caption}</p>
<span class="score">CIDEr-D {score:.1f}</span> <span class="id">{image_id}</span>
<ul lang="zh">{references}</ul></div></article>
"""


def write_report(
    result: EvaluationResult, path: str | Path, images: Mapping[str, Any] | None = None, examples: int = 12
) -> None:
    """Write the page.

    Args:
        images: image id → anything `load_image` takes or `{"bytes", "path"}`; looked up for the examples alone.
        examples: at most so many of the best and of the worst captions, by CIDEr-D.
    """
    best, worst = result.scores.best_and_worst(examples)
    body = BODY.format(
        scores=score_tiles(result),
        best="".join(card(result, image_id, images) for image_id in best),
        worst="".join(card(result, image_id, images) for image_id in worst),
        run=run_rows(result),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html_page("Caption scores", body), encoding="utf-8")


def score_tiles(result: EvaluationResult) -> str:
    tiles = [(title, f"{getattr(result.scores, name):.2f}") for name, title in ROW_TITLES.items()]
    tiles.append(("Images", f"{result.scores.num_images:,}"))
    return "".join(f"<div><dt>{title}</dt><dd>{value}</dd></div>" for title, value in tiles)


def card(result: EvaluationResult, image_id: str, images: Mapping[str, Any] | None) -> str:
    references = result.references[image_id]
    more = len(references) - SHOWN_REFERENCES
    shown = [escape(text) for text in references[:SHOWN_REFERENCES]] + ([f"… {more} more"] if more > 0 else [])
    return CARD.format(
        image=image_tag(images, image_id),
        caption=escape(result.predictions[image_id]) or "(empty)",
        score=result.scores.cider_d_each[image_id],
        image_id=escape(image_id),
        references="".join(f"<li>{text}</li>" for text in shown),
    )


def run_rows(result: EvaluationResult) -> str:
    facts = result.as_dict()
    return fact_rows({**facts["run"], **facts["versions"], "date": facts["date"]})
