"""The inputs of a command (images, folders, tables or texts) → named rows of a task."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from ofa_hf.boxes_ofa import SIDES, parse_box
from ofa_hf.data.tables import name_of_image
from ofa_hf.errors import UserError
from ofa_hf.image_loading_ofa import IMAGE_SUFFIXES, ImageError
from ofa_hf.prediction.inputs import TableImages, find_images, image_of
from ofa_hf.prediction.outputs import Name
from ofa_hf.processing_ofa import is_foreign
from ofa_hf.tables.column_names import FIELDS, matches, plain_name
from ofa_hf.tables.columns import image_column_of
from ofa_hf.tables.encodings import find_encoding, text_lines
from ofa_hf.tables.problems import Problem, describe_form
from ofa_hf.tables.table_files import open_table
from ofa_hf.tasks_ofa import BOX_SLOT, TASKS, Task


TABLE_SUFFIXES = frozenset(".csv .tsv .jsonl .ndjson .json .parquet .xlsx".split())
LINE_SUFFIXES = frozenset({".txt", ".text"})
STDIN = "-"
Found = tuple[str, ...] | Problem | str  # a row, one that cannot be asked, or a note


@dataclass(frozen=True)
class Inputs:
    """The inputs given by the user.

    Args:
        paths: images, folders and tables; for a task without images tables, files with a text per line, `-` for such
            lines on stdin, and texts.
        texts: field of the task → texts that are asked about every image.
        image_folder: of the images that tables name; by default the folder of each table.
        image_column: of tables, in place of the usual names.
        reading: encoding and separator of tables, where they cannot be told, see `open_table`.
        cache_dir: folder of what is unpacked and downloaded.
        ask_with: field → its option on the command line, for messages; other fields are given with --field.
        text_columns: field of the task → names of its column in tables, instead of the common ones.
    """

    paths: Sequence[str]
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    image_folder: str | None = None
    image_column: str | None = None
    ask_with: Mapping[str, str] = field(default_factory=dict)
    reading: Mapping[str, str | None] = field(default_factory=dict)
    text_columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    cache_dir: str | None = None

    def how_to_give(self, fields: Iterable[str]) -> str:
        """The options that give these fields, for messages."""
        options = ((f"{self.ask_with[name]} " if name in self.ask_with else f"--field {name}=") for name in fields)
        return " ".join(f'{option}"…"' for option in options)


@dataclass
class Rows:
    """The rows of a job.

    Args:
        names: of the rows, in order and each once. A name is the row's file, or what `columns` names.
        columns: what the parts of a name are called.
        problems: rows of tables that cannot be asked, a line each.
        counts: what else was noticed, and how often.
        notes: how tables were read, and what was repaired, a sentence each.
        cache_dir: folder of what is downloaded.
    """

    columns: tuple[str, ...]
    names: list[Name] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    cache_dir: str | None = None

    def row(self, name: Name) -> dict[str, Any]:
        """The row that `predict` answers."""
        values = dict(zip(self.columns, (name,) if isinstance(name, str) else name, strict=True))
        row: dict[str, Any] = {"id": name}
        if "file" in values:
            row["image"] = image_of(values.pop("file"), self.cache_dir)
        return row | values


def find_rows(inputs: Inputs, task: Task, language: str, skip: Callable[[str], bool] = lambda file: False) -> Rows:
    """All rows of a job.

    Args:
        skip: whether to leave out an image file.

    Raises:
        UserError: nothing to ask, an input that cannot be read, a table without a column of the task, or a text that
            is none.
    """
    check_texts(inputs, task)
    columns = ("file",) * task.needs_image + task.fields
    rows, seen = Rows(columns, cache_dir=inputs.cache_dir), set()
    finder = _images_and_tables(inputs, task, skip) if task.needs_image else _texts_and_tables(inputs, task)
    for item in finder:
        if isinstance(item, Problem):
            rows.problems.append(str(item))
            continue
        if isinstance(item, str):
            rows.notes.append(item)
            continue
        if item in seen:
            rows.counts["repeated"] += 1
            continue
        seen.add(item)
        rows.names.append(item[0] if len(item) == 1 else item)
        if task.fields:
            _note(item[task.needs_image :], task, language, rows.counts)
    if not rows.names:
        named = ", ".join(path.strip() or "an empty text" for path in inputs.paths)[:300]
        raise UserError(f"Nothing to answer in {named}: {(rows.problems or ['it has no rows'])[0]}.")
    return rows


def columns_asked(model: str, tasks: Iterable[str], named: Sequence[str]) -> list[str]:
    """The columns that a model fills: the given ones, or all of its own tasks, which are not in `TASKS`.

    Raises:
        UserError: the model has no such task, or none of its own.
    """
    tasks = list(tasks)
    own = [name for name in tasks if name not in TASKS]
    columns = list(dict.fromkeys(named)) or own
    if not columns:
        raise UserError(
            f"The model {model} was not trained to fill columns: its tasks are {', '.join(tasks)}. Train one with the "
            f"columns of your table, or name some of these with --columns."
        )
    if unknown := [name for name in columns if name not in tasks]:
        known = f"{', '.join(own)}; it was also trained for" if own else "none; it was trained for"
        others = ", ".join(name for name in tasks if name in TASKS) or "nothing else"
        raise UserError(
            f"The model {model} cannot fill {', '.join(unknown)}. Columns that it knows: {known} {others}. Name some "
            f"of these with --columns, or train a model with the columns of your table."
        )
    return columns


def notes_of(counts: Mapping[str, int], language: str) -> list[str]:
    """A sentence for each observation."""
    texts = {
        "repeated": "{} {were} repeated: each is answered once.",
        "cut": "{} {were} longer than the model was trained with and {are} cut, as the original cuts them.",
        "foreign": {
            "zh": "{} {are} English, but the model reads Chinese: expect worse answers.",
            "en": "{} {are} Chinese, but the model reads English: expect worse answers.",
        }.get(language, "{} {are} in another language than the model reads: expect worse answers."),
    }
    one, many = {"are": "is", "were": "was"}, {"are": "are", "were": "were"}
    return [
        texts[name].format("1 row" if count == 1 else f"{count:,} rows", **(one if count == 1 else many))
        for name, count in counts.items()
    ]


def check_texts(inputs: Inputs, task: Task) -> None:
    """Refuse texts on the command line that the task does not use, or that are not texts.

    Raises:
        UserError: such a text.
    """
    if unknown := [name for name in inputs.texts if name not in task.fields]:
        asked = f"asks about {', '.join(task.fields)}" if task.fields else "asks about nothing but the image"
        raise UserError(f"The task {task.name} {asked}, not about {', '.join(unknown)}. Leave that out.")
    for name, texts in inputs.texts.items():
        for text in texts:
            if problem := problem_of(name, text):
                raise UserError(f"The {name} {text[:100]!r} {problem}.")


def problem_of(name: str, text: str) -> str | None:
    """Why a text cannot be asked; None if it can."""
    if name == BOX_SLOT:
        try:
            parse_box(text)
        except ValueError:
            return "is not a box: pass xmin,ymin,xmax,ymax in pixels of the image"
        return None
    if not text.strip():
        return "is empty: pass a text"
    if " " not in text and os.path.splitext(text)[1].lower() in IMAGE_SUFFIXES:
        return "is the name of an image, where a text belongs: name images first, as inputs"
    return None


def _note(texts: Iterable[str], task: Task, language: str, counts: Counter[str]) -> None:
    texts = {name: text for name, text in zip(task.fields, texts) if name != BOX_SLOT}
    for name, text in texts.items():
        may_be_cut = len(text) > 80 and task.answer != "image"  # a text that is too long to draw is refused
        before, after = len(text.split()), len(task.clean(name, text).split()) if may_be_cut else 0
        if before > after >= 80:  # the shortest limit
            counts["cut"] += 1
    if is_foreign(" ".join(texts.values()), language):
        counts["foreign"] += 1


# ------------------------------------------------------------------------------------------------ where rows are


def _images_and_tables(inputs: Inputs, task: Task, skip: Callable[[str], bool]) -> Iterator[Found]:
    tables = [path for path in inputs.paths if _is_table(path)]
    others = [path for path in inputs.paths if path not in tables]
    missing = [name for name in task.fields if name not in inputs.texts]
    if missing and others:
        raise UserError(
            f"The task {task.name} asks about {', '.join(missing)}, but only images were given. Pass "
            f"{inputs.how_to_give(missing)}, or a table with the columns image, {', '.join(task.fields)}."
        )
    if others or not tables:
        asked = list(product(*(inputs.texts[name] for name in task.fields)))
        yield from ((file, *texts) for file in find_images(others, skip, inputs.cache_dir) for texts in asked)
    for path in tables:
        yield from _table_rows(path, inputs, task)


def _is_table(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in TABLE_SUFFIXES | LINE_SUFFIXES and not os.path.isdir(path)


def _texts_and_tables(inputs: Inputs, task: Task) -> Iterator[Found]:
    missing = [name for name in task.fields if name not in inputs.texts]
    if missing and not inputs.paths:
        options = inputs.how_to_give(missing)
        raise UserError(f"The task {task.name} asks about {', '.join(missing)}. Pass {options}, or a table.")
    if not inputs.paths:
        yield from product(*(inputs.texts[name] for name in task.fields))
    for path in inputs.paths:
        if os.path.splitext(path)[1].lower() in TABLE_SUFFIXES and " " not in path:
            yield from _table_rows(path, inputs, task)
            continue
        if os.path.isdir(path):
            raise UserError(f"{path} is a folder. Accepted: tables, files with a text per line, and texts themselves.")
        if len(task.fields) != 1:
            raise UserError(
                f"The task {task.name} asks about {', '.join(task.fields)}: pass a table with these columns. "
                f"{path[:100]!r} is one text."
            )
        yield from _lines(path, task.fields[0])


def _lines(path: str, name: str) -> Iterator[tuple[str, ...] | Problem]:
    """The texts of stdin or of a file, one per line; other arguments are texts."""
    if path == STDIN:
        lines = enumerate(sys.stdin, start=1)
    elif os.path.isfile(path):
        lines = text_lines(path, find_encoding(path))
    elif os.path.splitext(path)[1].lower() in LINE_SUFFIXES | IMAGE_SUFFIXES and " " not in path:
        raise UserError(f"{path} does not exist. Pass the path of a text file, or a text.")
    else:
        lines = [(0, path)]
    for number, line in lines:
        text = (line or "").strip()
        if text and (problem := problem_of(name, text)):
            yield Problem("no text", "stdin" if path == STDIN else path, number, detail=f"{text[:100]!r} {problem}")
        elif text:
            yield (text,)


def _table_rows(path: str, inputs: Inputs, task: Task) -> Iterator[Found]:
    """The rows of a table; texts of the command line stand in for columns that it lacks."""
    table = open_table(path, **inputs.reading)
    columns = columns_for(table.columns, task, inputs, path)
    place = TableImages(path, inputs.image_folder, inputs.cache_dir)
    yield f"{path} is read as {describe_form({**table.assumed, 'columns': columns})}."
    for number, row in table:
        if isinstance(row, Problem):
            yield row
            continue
        file = name_of_image(row.get(columns["image"])) if task.needs_image else ""
        if task.needs_image and not file:
            yield Problem("no image", path, number, detail=f"the column {columns['image']} is empty")
            continue
        try:
            start = (place.file(file),) if task.needs_image else ()
        except ImageError as error:
            yield Problem("no image", path, number, detail=str(error))
            continue
        for texts in product(*(_texts_of(name, row, columns, inputs) for name in task.fields)):
            faults = ((name, problem_of(name, text)) for name, text in zip(task.fields, texts))
            faults = [f"{name} {fault}" for name, fault in faults if fault]
            yield Problem("cannot be asked", path, number, detail="; ".join(faults)) if faults else (*start, *texts)
    if task.needs_image:
        yield from place.notes()


def _texts_of(name: str, row: Mapping[str, Any], columns: Mapping[str, str], inputs: Inputs) -> Sequence[str]:
    return [cell_text(row.get(columns[name]))] if name in columns else inputs.texts[name]


def cell_text(value: Any) -> str:
    """A table's value as text; a box of JSON as tables write it."""
    if isinstance(value, Mapping):
        value = [value.get(side) for side in SIDES]
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return "" if value is None else str(value).strip()


def columns_for(there: Sequence[str], task: Task, inputs: Inputs, path: str) -> dict[str, str]:
    """The columns of the image and of each field of a task.

    Raises:
        UserError: a column is missing.
    """
    found = {}
    if task.needs_image:
        found["image"] = image_column_of(there, inputs.image_column)
    for name in (name for name in task.fields if name not in inputs.texts):
        named = inputs.text_columns.get(name)
        wanted = FIELDS.get(name, ()) if named is None else list(map(plain_name, named))
        usual = [each for each in matches(there, wanted) if each not in found.values()]
        found[name] = name if name in there and named is None else next(iter(usual), None)
    if missing := [name for name, column in found.items() if not column]:
        missing = [" or ".join(inputs.text_columns.get(name, [name])) for name in missing]
        raise UserError(
            f"{path} has no column {', '.join(missing)}; it has {', '.join(there)[:300]}. The task {task.name} needs "
            f"{', '.join(found)}: rename the columns" + (", or pass --image_column NAME." if "image" in found else ".")
        )
    return found
