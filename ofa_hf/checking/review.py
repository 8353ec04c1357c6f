"""Review of captions: decisions are saved immediately, and accepted captions form a table for finetuning."""

import csv
import io
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ofa_hf.data.answers import targets_in
from ofa_hf.data.sources import TableForm
from ofa_hf.data.tables import name_of_image
from ofa_hf.errors import UserError
from ofa_hf.files import refuse_unwritable, write_bytes
from ofa_hf.images.image_finder import ImageFinder
from ofa_hf.tables.columns import Columns, find_columns
from ofa_hf.tables.problems import EMPTY_TARGET, MISSING_ID, Problem, describe_form
from ofa_hf.tables.table_files import open_table


ACCEPTED, REJECTED, OPEN = "accepted", "rejected", "open"
MARK = b"\xef\xbb\xbf"  # so that a spreadsheet takes the file for UTF-8
HEADER = ["image", "caption"]
LONGEST = 10_000  # characters of a caption


@dataclass
class Item:
    """A caption of an image, and the decision about it."""

    image: str  # name in the table
    original: str
    caption: str
    decision: str = OPEN

    @property
    def key(self) -> tuple[str, str]:
        return self.image, self.original


class Review:
    """The captions of a table, one after another.

    Decisions are written immediately to a file next to the output, from which the next review resumes. The output
    contains the accepted captions, with edits.

    Args:
        table: see `open_table`.
        folder: folder of the images.
        output: CSV of `image,caption`; by default the table's name with `.reviewed.csv`.
        form: the user's options for the table.

    Raises:
        UserError: a file cannot be read or written, or the table has no caption.
    """

    def __init__(
        self,
        table: str | Path,
        folder: str | Path,
        output: str | Path | None = None,
        form: TableForm | None = None,
    ):
        form = form or TableForm()
        table = Path(table)
        self.output = Path(output) if output else table.with_name(f"{table.stem}.reviewed.csv")
        if self.output.exists() and table.exists() and self.output.samefile(table):
            raise UserError(f"{table} is the table under review and is never replaced. Pass another --output.")
        self.decisions = self.output.with_name(f"{self.output.name}.decisions.jsonl")
        refuse_unwritable([self.output, self.decisions])
        self.finder = ImageFinder(folder)
        self.problems: Counter[str] = Counter()
        self.notes: list[str] = []  # how the table was read
        self.items = self._read(table, form)
        if not self.items:
            raise UserError(f"{table} has no caption to review. Pass a table of images and captions.")
        self._take_up()

    def _read(self, path: Path, form: TableForm) -> list[Item]:
        table = open_table(path, **form.reading())
        wanted = Columns(form.image_column, form.caption_column, form.id_column)
        columns = find_columns(str(path), table.columns, wanted)
        items: dict[tuple[str, str], Item] = {}
        for _, row in table:
            if isinstance(row, Problem):
                self.problems[row.kind] += 1
                continue
            image, captions = name_of_image(row.get(columns.image)), targets_in(row.get(columns.target)) or [""]
            if not image:
                self.problems[MISSING_ID] += 1
                continue
            self.problems[EMPTY_TARGET] += sum(not caption.strip() for caption in captions)
            for caption in filter(str.strip, captions):
                item = Item(image, caption.strip(), caption.strip())
                items.setdefault(item.key, item)
        self.problems = +self.problems  # without zeros
        self.notes.append(f"{path} is read as {describe_form({**table.assumed, 'columns': columns.assumed()})}.")
        return list(items.values())

    def _take_up(self) -> None:
        """What an earlier review decided; the last decision about a caption counts."""
        known, accepted = {item.key: item for item in self.items}, set()
        has_decisions = self.decisions.exists()
        lines = self.decisions.read_text(encoding="utf-8", errors="replace").splitlines() if has_decisions else []
        for line in lines:
            try:
                made = json.loads(line)
                item = known.get((made["image"], made["original"]))
                decision, caption = made["decision"], made["caption"]
            except (ValueError, KeyError, TypeError):  # an incomplete line after a crash
                continue
            if isinstance(caption, str):
                accepted.add(tuple(text.encode("utf-8", "replace").decode() for text in (made["image"], caption)))
            if item and decision in (ACCEPTED, REJECTED, OPEN) and isinstance(caption, str):
                item.decision, item.caption = decision, caption
        self._refuse_changed(accepted)
        if has_decisions:
            self._write_output()

    def _refuse_changed(self, accepted: set[tuple[str, str]]) -> None:
        """Raises `UserError` if the output holds what no review decided, such as corrections made in a spreadsheet."""
        if not self.output.exists() or not self.output.stat().st_size:
            return
        try:
            text = self.output.read_bytes().decode("utf-8-sig")
            header, *rows = csv.reader(io.StringIO(text, newline=""))
            is_ours = header == HEADER and all(tuple(row) in accepted for row in rows)
        except (ValueError, csv.Error):
            is_ours = False
        if not is_ours:
            raise UserError(
                f"{self.output} would be replaced, but holds what no review decided: it was changed since, or is of "
                "another program. Move it away, or give another --output. `ofa-hf finetune` takes it as it is."
            )

    def path(self, number: int) -> str | None:
        """The file of an item's image; None if there is none."""
        return self.finder.find(self.items[number].image).path

    def state(self, number: int) -> dict[str, Any]:
        """An item for the page, with the decision so far. Numbers out of range are clamped."""
        number = min(max(number, 0), len(self.items) - 1)
        counts = Counter(item.decision for item in self.items)
        decided = {"accepted": counts[ACCEPTED], "rejected": counts[REJECTED], "open": counts[OPEN]}
        item = self.items[number]
        why = "" if self.path(number) else self.finder.explain(item.image)
        return {"number": number, "count": len(self.items), **decided, "item": vars(item), "missing": why}

    def next_open(self, number: int) -> int:
        """The next undecided item, wrapping around at the end; the same one if there is none."""
        order = [*range(number, len(self.items)), *range(number)]
        return next((each for each in order if self.items[each].decision == OPEN), number)

    def decide(self, number: int, decision: str, caption: str | None = None) -> None:
        """Save a decision.

        Args:
            caption: the edited text; None keeps the caption.

        Raises:
            ValueError: no such item or decision, or an accepted caption without text.
        """
        if not 0 <= number < len(self.items) or decision not in (ACCEPTED, REJECTED, OPEN):
            raise ValueError(f"there is no caption {number}, or {decision!r} is not a decision")
        item = self.items[number]
        text = item.caption if caption is None else " ".join(caption.split())[:LONGEST]
        if decision == ACCEPTED and not text:
            raise ValueError("an accepted caption needs a text")
        item.caption, item.decision = text or item.original, decision
        with self.decisions.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(vars(item), ensure_ascii=False) + "\n")
            lines.flush()
            os.fsync(lines.fileno())
        self._write_output()

    def _write_output(self) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\r\n")
        writer.writerow(HEADER)
        writer.writerows([item.image, item.caption] for item in self.items if item.decision == ACCEPTED)
        write_bytes(self.output, MARK + text.getvalue().encode("utf-8", "replace"))
