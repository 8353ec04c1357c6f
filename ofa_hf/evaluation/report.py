"""The best and the worst captions of an evaluation with their pictures, as one HTML page that needs nothing else."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ofa_hf.data.pictures import open_picture
from ofa_hf.evaluation.evaluate import ROW_TITLES, EvaluationResult
from ofa_hf.image_processing_ofa import PictureError


THUMBNAIL_PIXELS = 360  # longest side; sharp on a phone, some 20 KB each
SHOWN_REFERENCES = 5

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2430; --dim: #5d6b7c; --page: #f3f5f8; --line: #dde3ea;
  --good: #12805c; --bad: #b3382c; }
@media (prefers-color-scheme: dark) { :root { --paper: #1a2029; --ink: #e8edf3; --dim: #98a5b5; --page: #10151b;
  --line: #2d3743; --good: #4cc79a; --bad: #f08a7e; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", sans-serif; }
main { max-width: 70rem; margin: 0 auto; padding: 1.25rem 1rem 3rem; }
h1 { font-size: 1.5rem; margin: 0 0 .75rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .75rem; }
.scores { display: grid; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); gap: .75rem; margin: 0; }
.scores div, article { background: var(--paper); border: 1px solid var(--line); border-radius: .75rem; }
.scores div { padding: .75rem 1rem; } .scores dt { color: var(--dim); font-size: .85rem; }
.scores dd { margin: 0; font-size: 1.6rem; font-weight: 650; font-variant-numeric: tabular-nums; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 16rem), 1fr)); gap: 1rem; }
article { overflow: hidden; display: flex; flex-direction: column; overflow-wrap: anywhere; }
article img, .none { width: 100%; height: 13rem; object-fit: contain; background: #fff; display: block; }
.none { display: grid; place-items: center; color: #5d6b7c; }
.text { padding: .75rem 1rem 1rem; } .caption { font-size: 1.1rem; font-weight: 600; margin: 0 0 .35rem; }
.score { font-variant-numeric: tabular-nums; font-weight: 650; } .best .score { color: var(--good); }
.worst .score { color: var(--bad); } .id, .run { color: var(--dim); font-size: .85rem; }
ul { margin: .5rem 0 0; padding-left: 1.1rem; color: var(--dim); font-size: .95rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
td { padding: .3rem .5rem .3rem 0; border-top: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
"""

PAGE = """<!DOCTYPE html>
<html lang="zh"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head><body><main>
<h1>{title}</h1>
<dl class="scores">{scores}</dl>
<section class="best"><h2>Best captions</h2><div class="cards">{best}</div></section>
<section class="worst"><h2>Worst captions</h2><div class="cards">{worst}</div></section>
<h2>What was run</h2><table>{run}</table>
</main></body></html>
"""

CARD = """<article>{picture}<div class="text"><p class="caption" lang="zh">{caption}</p>
<span class="score">CIDEr-D {score:.1f}</span> <span class="id">{image_id}</span>
<ul lang="zh">{references}</ul></div></article>
"""


def write_report(
    result: EvaluationResult, path: str | Path, pictures: Mapping[str, Any] | None = None, examples: int = 12
) -> None:
    """Write the page.

    Args:
        pictures: picture id → anything `load_picture` takes or `{"bytes", "path"}`; looked up for the examples alone.
        examples: at most so many of the best and of the worst captions, by CIDEr-D.
    """
    best, worst = result.scores.best_and_worst(examples)
    page = PAGE.format(
        title="Caption scores",
        style=STYLE,
        scores=score_tiles(result),
        best="".join(card(result, image_id, pictures) for image_id in best),
        worst="".join(card(result, image_id, pictures) for image_id in worst),
        run=run_rows(result),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def score_tiles(result: EvaluationResult) -> str:
    tiles = [(title, f"{getattr(result.scores, name):.2f}") for name, title in ROW_TITLES.items()]
    tiles.append(("Pictures", f"{result.scores.num_images:,}"))
    return "".join(f"<div><dt>{title}</dt><dd>{value}</dd></div>" for title, value in tiles)


def card(result: EvaluationResult, image_id: str, pictures: Mapping[str, Any] | None) -> str:
    references = result.references[image_id]
    more = len(references) - SHOWN_REFERENCES
    shown = [escape(text) for text in references[:SHOWN_REFERENCES]] + ([f"… {more} more"] if more > 0 else [])
    return CARD.format(
        picture=picture_tag(pictures, image_id),
        caption=escape(result.predictions[image_id]) or "(empty)",
        score=result.scores.cider_d_each[image_id],
        image_id=escape(image_id),
        references="".join(f"<li>{text}</li>" for text in shown),
    )


def picture_tag(pictures: Mapping[str, Any] | None, image_id: str) -> str:
    """The picture itself, small, inside the page; a word where there is none."""
    if not pictures or image_id not in pictures:
        return "" if not pictures else '<div class="none">no picture</div>'
    try:
        picture = open_picture(pictures[image_id])
    except PictureError:
        return '<div class="none">broken picture</div>'
    picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="" loading="lazy" src="data:image/jpeg;base64,{data}">'


def run_rows(result: EvaluationResult) -> str:
    facts = result.as_dict()
    rows = [*facts["run"].items(), *facts["versions"].items(), ("date", facts["date"])]
    return "".join(f"<tr><td>{escape(str(name))}</td><td>{escape(show(value))}</td></tr>" for name, value in rows)


def show(value: object) -> str:
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    return ", ".join(map(str, value)) if is_list else str(value)
