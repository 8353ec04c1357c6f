"""Answers in a table, a row per image or question and a column per model: as HTML and as Markdown."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ofa_hf.boxes_ofa import check_box, parse_box
from ofa_hf.errors import UserError
from ofa_hf.files import write_text
from ofa_hf.image_loading_ofa import ImageError, load_image
from ofa_hf.pages.frame import fact_rows, html_page, show, thumbnail, thumbnail_tag
from ofa_hf.prediction.drawing import COLOURS, Labelled, draw_boxes, files_of
from ofa_hf.prediction.inputs import image_of
from ofa_hf.prediction.outputs import Box, Name
from ofa_hf.prediction.questions import Rows
from ofa_hf.prediction.reading import read_ahead
from ofa_hf.tasks_ofa import BOX_SLOT, Task


IMAGES_PER_PAGE = 200  # a few MB of HTML
READ_AHEAD = 16
TITLE = "Answers compared"
MARK = "<!-- a page of ofa-hf caption -->"  # files with this mark can be replaced
MARK_WITHIN = 65_536  # bytes at the start of the file to search for it
MARKDOWN_MARKS = re.compile(r"([\\`*_{}\[\]<>()#+!|~$&^=])")

STYLE = """
.compare { background: var(--paper); border: 1px solid var(--line); table-layout: fixed; }
.compare th { position: sticky; top: 0; padding: .75rem; background: var(--paper); color: var(--dim);
  text-align: left; overflow-wrap: anywhere; }
.compare th:first-child { width: 14rem; } .compare td { padding: .75rem; }
.compare img { width: 100%; max-height: 12rem; object-fit: contain; background: #fff; display: block;
  border-radius: .4rem; }
.compare .none { height: auto; padding: 1.5rem .75rem; border-radius: .4rem; background: var(--page);
  color: var(--dim); }
.compare .id { display: block; margin-top: .35rem; } .facts, nav { color: var(--dim); } nav { margin: 1rem 0; }
nav > * { margin-right: 1rem; } a { color: inherit; } .run td:first-child { width: 30%; }
@media (max-width: 44rem) {
  .compare thead { display: none; } .compare, .compare tbody, .compare tr, .compare td { display: block; }
  .compare tr + tr { border-top: .5rem solid var(--page); } .compare td { border: 0; padding: .5rem .75rem; }
  .compare td[data-model]::before { content: attr(data-model); display: block; color: var(--dim); font-size: .8rem; }
  .compare img { max-height: 20rem; }
}
"""

BODY = """{mark}
<p class="facts">{facts}</p>
{links}
<table class="compare"><thead><tr><th>Image</th>{heads}</tr></thead><tbody>
{rows}
</tbody></table>
{links}
<h2>What was run</h2><table class="run">{run}</table>"""


@dataclass(frozen=True)
class Row:
    """One image and its answers."""

    number: int
    title: str  # the file, and what was asked about it
    thumbnail: bytes | ImageError | None  # a JPEG, the reason why there is none, or None if no image was asked about
    answers: list[list[str] | None]  # by model, best first; None if a model has none


@dataclass(frozen=True)
class Page:
    """One of the pages, with their common parts."""

    heads: list[str]  # column titles
    facts: str
    run: Mapping[str, object]
    number: int
    count: int
    rows: list[Row]


class ComparisonReport:
    """Writes the table: `page.html`, which is self-contained, and `page.md` with its images in `page_files/`.

    Beyond `IMAGES_PER_PAGE` images, further pages are written to that folder, with links between them. For `page.md`,
    only Markdown is written.

    Args:
        path: ends in `.html`, `.htm` or `.md`.

    Raises:
        UserError: another suffix, or an existing file of this name that is not such a page.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if self.path.suffix.lower() not in (".html", ".htm", ".md"):
            raise UserError(
                f"--report {self.path} has no known suffix. Accepted: .html (a page, and the same as Markdown next to "
                f"it) and .md (only Markdown). Rename the report."
            )
        self.folder = self.path.with_name(f"{self.path.stem}_files")
        self.suffixes = [self.path.suffix] if is_markdown(self.path) else [self.path.suffix, ".md"]
        self.markdown = self.path.with_suffix(self.suffixes[-1])
        self._refuse_foreign()
        self.path.parent.mkdir(parents=True, exist_ok=True)  # fails now rather than after hours

    def _refuse_foreign(self) -> None:
        """Refuse to replace anything that this command did not write. The folder belongs to the Markdown page."""
        foreign = [path for path in map(self.path.with_suffix, self.suffixes) if path.exists() and not is_ours(path)]
        if self.folder.exists() and not is_ours(self.markdown):
            foreign.append(self.folder)
        if foreign:
            raise UserError(
                f"--report {self.path} would replace {foreign[0]}, which exists and was not written by this command. "
                f"Accepted: a new name, or that of an earlier report. Choose another name, or move the file away."
            )

    def owns(self, file: str | os.PathLike) -> bool:
        """Whether an image is a thumbnail of an earlier report in a folder of images."""
        return os.path.abspath(os.path.dirname(file)) == os.path.abspath(self.folder)

    def check(self, rows: Rows, task: Task) -> None:
        """Any rows of any task can be shown."""

    def write(
        self,
        names: Sequence[Name],
        answers: Mapping[str, Mapping[Name, list[Any]]],
        run: Mapping[str, object],
        on_row: Callable[[], object] = lambda: None,
        columns: tuple[str, ...] = ("file",),
    ) -> None:
        """Write all pages; the images are read page by page, so that memory stays flat. Boxes are drawn on them.

        Args:
            names: names of the rows, as in `Rows`.
            answers: model → name → answers, best first.
            run: what was run, shown at the end.
            on_row: called after each row.
            columns: names of the parts of a name.
        """
        self._make_room()
        heads, facts, count = short_names(list(answers)), facts_of(names, answers), -(-len(names) // IMAGES_PER_PAGE)
        rows = self._rows(names, list(answers.values()), on_row, columns)
        for number in range(1, count + 1):
            self._write_page(Page(heads, facts, run, number, count, list(islice(rows, IMAGES_PER_PAGE))))

    def _make_room(self) -> None:
        """Remove the files of an earlier report, and no others in its folder."""
        write_text(self.markdown, MARK)  # marks the folder as ours, in case this run is interrupted
        self.folder.mkdir(exist_ok=True)
        for file in self.folder.iterdir():
            if re.fullmatch(r"\d{6,}\.jpg|page-\d+\.(html?|md)", file.name):
                file.unlink()

    @staticmethod
    def _rows(
        names: Sequence[Name],
        models: Sequence[Mapping[Name, list[Any]]],
        on_row: Callable[[], object],
        columns: tuple[str, ...],
    ) -> Iterator[Row]:
        def read(name: Name) -> bytes | None:
            boxes = [box for answers in models for box in answers.get(name, ())[:1]]
            asked = name[columns.index(BOX_SLOT)] if BOX_SLOT in columns else None
            return read_thumbnail(files_of([name], columns)[0], boxes, asked) if "file" in columns else None

        for number, (name, small) in enumerate(read_ahead(names, read, READ_AHEAD), 1):
            title = name if isinstance(name, str) else " · ".join(name)
            answers = [answers.get(name) for answers in models]
            yield Row(number, title, small, [each and list(map(str, each)) for each in answers])
            on_row()

    def _write_page(self, page: Page) -> None:
        for row in page.rows:
            if isinstance(row.thumbnail, bytes):
                self._image(row).write_bytes(row.thumbnail)
        for suffix in self.suffixes:
            here = self._file(page.number, suffix)
            others = {f"← page {page.number - 1}": page.number - 1, f"page {page.number + 1} →": page.number + 1}
            links = {
                words: address(here, self._file(other, suffix))
                for words, other in others.items()
                if 1 <= other <= page.count
            }
            if is_markdown(here):
                text = markdown_text(page, links, lambda row, here=here: address(here, self._image(row)))
            else:
                text = html_text(page, links)
            write_text(here, text, errors="backslashreplace")  # file names can be invalid UTF-8

    def _file(self, number: int, suffix: str) -> Path:
        return self.path.with_suffix(suffix) if number == 1 else self.folder / f"page-{number}{suffix}"

    def _image(self, row: Row) -> Path:
        return self.folder / f"{row.number:06}.jpg"


def read_thumbnail(file: str, answers: Sequence[Any] = (), asked: str | None = None) -> bytes:
    """A small JPEG of an image, with the boxes among the best answers of models, with a color per model.

    Args:
        asked: the box of the question. It is also drawn, unless it does not fit the image.
    """
    image = load_image(image_of(file))
    found = [(box.sides, COLOURS[number % len(COLOURS)]) for number, box in enumerate(answers) if isinstance(box, Box)]
    if asked is not None:
        with suppress(ValueError):  # such a row has no answer, and the run has reported why
            found.append((check_box(parse_box(asked), image.size), COLOURS[len(answers) % len(COLOURS)]))
    boxes = [Labelled(sides, "", colour) for sides, colour in found if sides is not None]
    return thumbnail(draw_boxes(image, boxes, with_labels=False) if boxes else image)


def is_markdown(path: Path) -> bool:
    return path.suffix.lower() == ".md"


def is_ours(path: Path) -> bool:
    """Whether an earlier run wrote this page."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return MARK.encode() in stream.read(MARK_WITHIN)


def short_names(models: Sequence[str]) -> list[str]:
    """Column titles: the last part of folders if these differ, and Hub ids."""
    names = [os.path.basename(os.path.abspath(model)) if os.path.isdir(model) else model for model in models]
    return names if len(set(names)) == len(names) else list(models)


def facts_of(names: Sequence[Name], answers: Mapping[str, Mapping[Name, list[Any]]]) -> str:
    """Numbers of rows and models, in a line."""
    num_missing = sum(not any(name in column for column in answers.values()) for name in names)
    facts = [f"{'Images' if isinstance(names[0], str) else 'Rows'}: {len(names):,}", f"models: {len(answers)}"]
    return " · ".join(facts + [f"without an answer: {num_missing:,}"] * bool(num_missing))


def address(start: Path, target: Path) -> str:
    """URL of a file relative to another file."""
    return quote(Path(os.path.relpath(target, start.parent)).as_posix(), errors="surrogateescape")


def html_text(page: Page, links: Mapping[str, str]) -> str:
    """A page as HTML; `links` to its neighbors are text → address."""
    anchors = "".join(f'<a href="{escape(link)}">{words}</a>' for words, link in links.items())
    body = BODY.format(
        mark=MARK,
        facts=page.facts,
        links=f"<nav><span>page {page.number} of {page.count}</span>{anchors}</nav>" if links else "",
        heads="".join(f"<th>{escape(head)}</th>" for head in page.heads),
        rows="\n".join(html_row(row, page.heads) for row in page.rows),
        run=fact_rows(page.run),
    )
    return html_page(TITLE, body, STYLE)


def html_row(row: Row, heads: Sequence[str]) -> str:
    broken = isinstance(row.thumbnail, ImageError)
    image = f'<div class="none">{escape(str(row.thumbnail))}</div>' if broken else thumbnail_tag(row.thumbnail or b"")
    image = image if row.thumbnail else ""
    cells = "".join(
        f'<td data-model="{escape(head)}">{html_answers(answers)}</td>' for head, answers in zip(heads, row.answers)
    )
    return f'<tr><td>{image}<span class="id">{escape(row.title)}</span></td>{cells}</tr>'


def html_answers(answers: list[str] | None) -> str:
    """The best answer large, the others as a list."""
    if not answers:
        return "–"
    best, *others = (escape(text) or "(empty)" for text in answers)
    more = "".join(f"<li>{text}</li>" for text in others)
    return f'<p class="caption" lang="zh">{best}</p>' + (f'<ul lang="zh">{more}</ul>' if more else "")


def markdown_text(page: Page, links: Mapping[str, str], place_of: Callable[[Row], str]) -> str:
    """A page as Markdown; `place_of` gives the address of a row's image."""
    lines = [MARK, f"# {TITLE}", "", page.facts, ""]
    if links:
        pointers = [f"[{words}]({link})" for words, link in links.items()]
        lines += [" · ".join([f"page {page.number} of {page.count}", *pointers]), ""]
    lines += [markdown_row(["Image", *map(plain, page.heads)]), markdown_row(["---"] * (1 + len(page.heads)))]
    for row in page.rows:
        broken = isinstance(row.thumbnail, ImageError)
        image = plain(str(row.thumbnail)) if broken else f"![]({place_of(row)})" if row.thumbnail else ""
        cells = ("<br>".join(map(plain, answers)) if answers else "–" for answers in row.answers)
        lines.append(markdown_row([f"{image}<br>{plain(row.title)}", *cells]))
    lines += ["", "## What was run", "", *(f"- {plain(name)}: {plain(show(fact))}" for name, fact in page.run.items())]
    return "\n".join(lines) + "\n"


def markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def plain(text: str) -> str:
    """Text that Markdown shows unchanged, on one line."""
    return MARKDOWN_MARKS.sub(r"\\\1", " ".join(text.split())) or "(empty)"
