"""Common parts of all pages: style, frame, and embedded thumbnails."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from PIL import Image

from ofa_hf.image_loading_ofa import ImageError, load_image


THUMBNAIL_PIXELS = 360  # longest side; sharp on a phone, some 20 KB each

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
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head><body><main>
<h1>{title}</h1>
{body}
</main></body></html>
"""


def html_page(title: str, body: str, more_style: str = "") -> str:
    """A self-contained page.

    Args:
        title: plain text; it is escaped here.
        body: HTML below the title; its texts must be escaped already.
        more_style: additional CSS of this page.
    """
    return PAGE.format(title=escape(title), style=STYLE + more_style, body=body)


def thumbnail(image: Image.Image) -> bytes:
    """An image as a small JPEG file."""
    scale = min(1.0, THUMBNAIL_PIXELS / max(image.size))
    size = tuple(max(1, round(scale * side)) for side in image.size)
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def thumbnail_tag(jpeg: bytes) -> str:
    """An `<img>` with the embedded image."""
    data = base64.b64encode(jpeg).decode("ascii")
    return f'<img alt="" loading="lazy" src="data:image/jpeg;base64,{data}">'


def image_tag(images: Mapping[str, Any] | None, image_id: str) -> str:
    """An `<img>` with an embedded thumbnail, or a placeholder."""
    if not images or image_id not in images:
        return "" if not images else '<div class="none">no image</div>'
    try:
        return thumbnail_tag(thumbnail(load_image(images[image_id])))
    except ImageError:
        return '<div class="none">broken image</div>'


def fact_rows(facts: Mapping[str, object]) -> str:
    """Rows of a table of what was run: name and value, lists joined by commas."""
    return "".join(
        f"<tr><td>{escape(str(name))}</td><td>{escape(show(value))}</td></tr>" for name, value in facts.items()
    )


def show(value: object) -> str:
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    return ", ".join(map(str, value)) if is_list else str(value)
