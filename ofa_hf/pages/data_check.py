"""A check of data as one self-contained HTML page with thumbnails."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from ofa_hf.checking.checking import DataCheck
from ofa_hf.data.grouping import ImagesById
from ofa_hf.files import write_text
from ofa_hf.pages.frame import html_page, image_tag


SHOWN = 24  # rows

CARD = """<article>{image}<div class="text"><span class="id">{image_id}</span>
<ul lang="zh">{captions}</ul></div></article>
"""


def write_check_page(check: DataCheck, path: str | Path) -> None:
    """Write the page: counts, problems, odd rows and the first rows, with their images."""
    images = ImagesById(check.rows) if check.rows is not None and "image" in check.rows.column_names else None
    tiles = {"Images": check.report.rows, "Captions": check.report.targets, **check.report.problems, **check.odd}
    body = '<dl class="scores">'
    body += "".join(f"<div><dt>{escape(kind)}</dt><dd>{count:,}</dd></div>" for kind, count in tiles.items()) + "</dl>"
    body += f"<h2>What was found</h2><pre>{escape(check.text())}</pre>"
    for kind, ids in check.faulty_ids.items():
        body += section(kind, {image_id: [] for image_id in ids}, check, images)
    first = {row["image_id"]: row["captions"] for row in check.first_rows(SHOWN)}
    body += section("What would be trained on", first, check, images)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, html_page("Data", body, "pre { white-space: pre-wrap; }"), "backslashreplace")


def section(title: str, rows: Mapping[str, list[str]], check: DataCheck, images: Mapping[str, Any] | None) -> str:
    """Some rows with their images; rows without captions are those in the examples."""
    quoted = check.examples.get(title, [])
    cards = ""
    for place, (image_id, captions) in enumerate(rows.items()):
        texts = captions or quoted[place : place + 1]
        items = "".join(f"<li>{escape(text)}</li>" for text in texts[:5])
        cards += CARD.format(image=image_tag(images, image_id), image_id=escape(image_id), captions=items)
    return f'<section><h2>{escape(title)}</h2><div class="cards">{cards}</div></section>'
