"""The demo's page: unseen images with their captions before and after finetuning, the scores, the loss curve."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ofa_hf.evaluation import EvaluationResult
from ofa_hf.files import write_text
from ofa_hf.pages.frame import html_page, image_tag
from ofa_hf.samples.shop import Product, is_right


MORE_STYLE = """
.intro { max-width: 46rem; } .curve { width: 100%; max-width: 60rem; border-radius: .75rem; background: #fff; }
.before { color: var(--dim); margin: 0; } .verdict { font-size: .85rem; font-weight: 650; }
.right .verdict { color: var(--good); } .wrong .verdict { color: var(--bad); }
.label { color: var(--dim); font-size: .75rem; display: block; }
"""

BODY = """<p class="intro">A small OFA learned to write selling copy for products that this demo drew itself. It went
the way any model goes here: official checkpoint → convert → finetune with a locked encoder → score. None of the
{count} combinations of kind, colour and pattern below was shown in training.</p>
<dl class="scores">{scores}</dl>
<h2>Finetuning, step by step</h2>
{curves}
<h2>Unseen products, before and after</h2>
<div class="cards">{cards}</div>"""

CARD = """<article class="{verdict}">{image}<div class="text">
<span class="label">before</span><p class="before" lang="zh">{before}</p>
<span class="label">after</span><p class="caption" lang="zh">{after}</p>
<span class="verdict">{mark} <span lang="zh">{product}</span></span></div></article>
"""


def write_demo_report(
    path: Path,
    before: EvaluationResult,
    after: EvaluationResult,
    products: Mapping[str, Product],
    images: Mapping[str, Any],
    *,
    curves: Sequence[Path],
    accuracy: float,
) -> None:
    """Write one self-contained HTML page.

    Args:
        before, after: captions and scores of the same images.
        products, images: image id → what it shows, and the image.
        curves: PNGs of losses and scores.
        accuracy: share of captions that name kind and colour rightly, 0 to 1.
    """
    body = BODY.format(
        count=len(after.predictions),
        scores=tiles(before, after, accuracy),
        curves="".join(map(curve_tag, curves)),
        cards="".join(card(name, before, after, products[name], images) for name in after.predictions),
    )
    write_text(path, html_page("OFA on the embedded shop", body, MORE_STYLE))


def curve_tag(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img class="curve" alt="Curves by step" src="data:image/png;base64,{data}">'


def tiles(before: EvaluationResult, after: EvaluationResult, accuracy: float) -> str:
    rows = [("Kind and colour right", f"{accuracy:.1%}")]
    for name, title in after.metric.titles.items():
        rows.append((title, f"{before.scores[name]:.1f} → {after.scores[name]:.1f}"))
    return "".join(f"<div><dt>{title}</dt><dd>{value}</dd></div>" for title, value in rows)


def card(
    name: str, before: EvaluationResult, after: EvaluationResult, product: Product, images: Mapping[str, Any]
) -> str:
    right = is_right(after.predictions[name], product)
    return CARD.format(
        verdict="right" if right else "wrong",
        mark="✓" if right else "✗",
        image=image_tag(images, name),
        before=escape(before.predictions[name]) or "(empty)",
        after=escape(after.predictions[name]) or "(empty)",
        product=escape(f"{product.colour} {product.pattern} {product.kind}"),
    )
