"""Outputs other than growing files: a text next to each image, and a spreadsheet written at the end."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from ofa_hf.errors import UserError
from ofa_hf.files import refuse_unwritable, write_text
from ofa_hf.image_loading_ofa import URL_PREFIXES
from ofa_hf.images.image_finder import without_suffix
from ofa_hf.prediction.outputs import Answers, Format, Name
from ofa_hf.tables.spreadsheets import cell_text
from ofa_hf.tables.text_files import text_called


SHEET_SUFFIX = ".xlsx"


def record_of(path: str | Path) -> Path:
    """The JSONL next to a spreadsheet, with its answers until it is written; other outputs unchanged."""
    path = Path(path)
    return path.with_suffix(".jsonl") if path.suffix.lower() == SHEET_SUFFIX else path


def check_output(path: str | Path | None) -> None:
    """Raises `UserError` if an output cannot be written, or needs a library that is missing."""
    if path is None:
        return
    refuse_unwritable([path])
    if Path(path).suffix.lower() == SHEET_SUFFIX:
        try:
            import openpyxl  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"The output {path} is a spreadsheet, which needs the package openpyxl. Install it: `pip install "
                "'ofa-hf[tables]'`, or write a .csv, which spreadsheets open too."
            ) from error


def refuse_changed_sheet(record: Path, path: Path, format: Format) -> None:
    """Raises `UserError` if a spreadsheet that would be made anew holds anything but answers of its record, such as
    captions that somebody corrected."""
    if not path.exists():
        return
    import openpyxl

    rows = (cells_of(row, format) for row in _rows_of(record))
    try:
        workbook = openpyxl.load_workbook(path, read_only=True)
        found = ([_shown(value) for value in row] for row in workbook.active.iter_rows(values_only=True))
        pairs = zip(found, chain([format.csv_header], rows, repeat(None)))  # the record may have more rows
        is_ours = all(made and row == [_shown(_legal(value)) for value in made] for row, made in pairs)
        workbook.close()
    except Exception:  # a damaged file raises anything
        is_ours = False
    if not is_ours:
        raise UserError(
            f"{path} would be replaced, but was changed since it was made from {record.name}, or is of another run. "
            "Move it away, or give another --output. `ofa-hf check` and `ofa-hf finetune` take it as it is."
        )


def _rows_of(record: Path) -> Iterator[dict[str, Any]]:
    if record.exists():
        with record.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def _shown(value: Any) -> str:
    """A cell as text; of numbers as many digits as a spreadsheet keeps in any case."""
    return f"{value:.9g}" if isinstance(value, (int, float)) else cell_text(value)


def _legal(value: Any) -> Any:
    """A value without what no spreadsheet can hold."""
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    return ILLEGAL_CHARACTERS_RE.sub("\ufffd", value) if isinstance(value, str) else value


def write_sheet(record: Path, path: Path, format: Format) -> None:
    """Write the answers of a JSONL file as a spreadsheet with the columns of a CSV."""
    import openpyxl
    from openpyxl.cell import WriteOnlyCell

    workbook = openpyxl.Workbook(write_only=True)
    sheet = workbook.create_sheet(f"{format.answer}s"[:31])

    def cell(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        made = WriteOnlyCell(sheet, _legal(value))
        made.data_type = "s"  # a caption that starts with = is no formula
        return made

    sheet.append(format.csv_header)
    for row in _rows_of(record):
        sheet.append([cell(value) for value in cells_of(row, format)])
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        workbook.save(draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def cells_of(row: dict[str, Any], format: Format) -> list[Any]:
    """The cells of a line of JSON, as in a CSV."""
    answers = [
        {"text": each[format.answer], "box": each[format.answer], "score": each.get("score"), "size": _size(row)}
        for each in row.get(format.plural, [row])
    ]
    names = tuple(row[name] for name in format.names)
    model = {"model": row["model"]} if format.model else {}
    return format._replace(**model).csv_cells(names, answers)


def _size(row: dict[str, Any]) -> tuple[Any, Any]:
    return row.get("width"), row.get("height")


class _Written:
    """The images with a text file next to them."""

    def __init__(self, files: "TextFiles"):
        self.files = files

    def __contains__(self, key: str) -> bool:
        return os.path.isfile(self.files.path(key))


class TextFiles:
    """Write the answers to each image into a text file next to it, one per line; existing files are kept.

    Args:
        names: all images of the job. Images that differ only in their suffix get `a.jpg.txt` and `a.png.txt`.

    Raises:
        UserError: an image is a link, or its folder cannot be written.
    """

    def __init__(self, names: Sequence[str]):
        if links := [name for name in names if name.startswith(URL_PREFIXES)]:
            raise UserError(f"{links[0][:300]} is a link, so no text can be written next to it. Use --output FILE.")
        self.stems = Counter(without_suffix(os.path.abspath(name)) for name in names)
        for folder in sorted({os.path.dirname(stem) for stem in self.stems}):
            refuse_unwritable([os.path.join(folder, "text.txt")])
        self.done = _Written(self)

    def path(self, file: str) -> str:
        """The text file of an image."""
        whole = os.path.abspath(file)
        stem = without_suffix(whole)
        base = whole if self.stems[stem] > 1 else stem
        return text_called(base) or f"{base}.txt"

    def __enter__(self) -> "TextFiles":
        return self

    def __exit__(self, *exception) -> None:
        pass

    def write(self, name: Name, answers: Answers) -> None:
        write_text(self.path(name), "".join(f"{' '.join(answer['text'].split())}\n" for answer in answers), "replace")

    def answers_to(self, names: Iterable[str]) -> dict[str, list[str]]:
        """The contents of the texts, by name."""
        paths = {name: Path(self.path(name)) for name in names}
        return {name: path.read_text("utf-8-sig").splitlines() for name, path in paths.items() if path.is_file()}
