"""The demo's page: unseen images with their captions before and after finetuning, the scores, the loss curve.

With drawing also what was drawn, each drawing beside a real image of its product.
"""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from ofa_hf.demo.drawing import DrawingResult, Drawn
from ofa_hf.evaluation import EvaluationResult
from ofa_hf.files import write_text
from ofa_hf.image_processing_ofa import PIXELS_PER_CODE
from ofa_hf.pages.frame import html_page, image_tag, thumbnail, thumbnail_tag
from ofa_hf.samples.shop import Product, is_right


MORE_STYLE = """
.intro { max-width: 46rem; } .curve { width: 100%; max-width: 60rem; border-radius: .75rem; background: #fff; }
.before { color: var(--dim); margin: 0; } .verdict { font-size: .85rem; font-weight: 650; }
.right .verdict { color: var(--good); } .wrong .verdict { color: var(--bad); }
.label { color: var(--dim); font-size: .75rem; display: block; }
.drawn { margin-top: 1rem; } .yes { color: var(--good); } .no { color: var(--bad); }
.drawn { grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 2px; } .pair figure { margin: 0; position: relative; }
.pair img { height: auto; aspect-ratio: 1; object-fit: cover; }
.pair figcaption { position: absolute; left: .4rem; bottom: .4rem; padding: 0 .45rem; border-radius: .5rem;
  font-size: .72rem; background: #fffc; color: #1c2430; }
"""

BODY = """<p class="intro">A small OFA learned to write selling copy for products that this demo drew itself. It went
the way any model goes here: official checkpoint → convert → finetune with a locked encoder → score. None of the
{count} combinations of kind, colour and pattern below was shown in training.</p>
<dl class="scores">{scores}</dl>
<h2>Finetuning, step by step</h2>
{curves}
{drawing}
<h2>Unseen products, before and after</h2>
<div class="cards">{cards}</div>"""

DRAWING = """<h2>Drawn from captions</h2>
<p class="intro">A second small OFA learned to draw: caption in, {codes} codes out, which a small VQGAN turned into the
images on the left. On the right the shop's own drawing of the same product. Neither model was shown any of these
{count} combinations of kind, colour and pattern. The colour is read off the pixels; the captioner of this page says
what it sees.</p>
<dl class="scores">{scores}</dl>
<div class="cards drawn">{cards}</div>"""

DRAWN = """<article class="{verdict}"><div class="pair"><figure>{image}<figcaption>drawn</figcaption></figure>
<figure>{real}<figcaption>real</figcaption></figure></div><div class="text">
<p class="caption" lang="zh">{text}</p>
<span class="label">the captioner sees</span><p class="before" lang="zh">{caption}</p>
<span class="verdict">{colour} {name}</span></div></article>
"""

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
    drawing: DrawingResult | None = None,
) -> None:
    """Write one self-contained HTML page.

    Args:
        before, after: captions and scores of the same images.
        products, images: image id → what it shows, and the image.
        curves: PNGs of losses and scores.
        accuracy: share of captions that name kind and colour rightly, 0 to 1.
        drawing: what was drawn, if anything was.
    """
    body = BODY.format(
        count=len(after.predictions),
        scores=tiles(before, after, accuracy),
        curves="".join(map(curve_tag, curves)),
        drawing=drawing_section(drawing) if drawing else "",
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


def drawing_section(drawing: DrawingResult) -> str:
    count, side = len(drawing.drawn), drawing.drawn[0].image.width // PIXELS_PER_CODE
    rows = (
        ("Colour right", drawing.colour_right, drawing.real_colour_right),
        ("Kind and colour named rightly", drawing.named_right, drawing.real_named_right),
    )
    scores = "".join(
        f"<div><dt>{title}</dt><dd>{own} of {count}</dd><dt>real images: {real}</dt></div>"
        for title, own, real in rows
    )
    return DRAWING.format(codes=side * side, count=count, scores=scores, cards="".join(map(drawn_card, drawing.drawn)))


def drawn_card(one: Drawn) -> str:
    return DRAWN.format(
        verdict="right" if one.has_right_colour and one.is_named_rightly else "wrong",
        image=enlarged_tag(one.image, one.real.width),
        real=enlarged_tag(one.real, one.real.width),
        text=escape(one.text),
        caption=escape(one.caption) or "(empty)",
        colour=mark("colour", one.has_right_colour),
        name=mark("name", one.is_named_rightly),
    )


def mark(what: str, right: bool) -> str:
    return f'<span class="yes">✓ {what}</span>' if right else f'<span class="no">✗ {what}</span>'


def enlarged_tag(image: Image.Image, side: int) -> str:
    """An `<img>` of at least `side` pixels, enlarged more smoothly than browsers do."""
    return thumbnail_tag(thumbnail(image.resize((side, side), Image.Resampling.BICUBIC)))
