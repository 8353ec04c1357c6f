"""Read predictions and references: tables with a column of row names and one of answers; errors name the line.

The columns are those of finetuning and those that the commands write. A box is `{"xmin", "ymin", "xmax",
"ymax"}`, four numbers, or a text of them.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ofa_hf.boxes_ofa import SIDES
from ofa_hf.data.answers import confidences_in, is_box, is_nan, is_number
from ofa_hf.data.lines import whole_characters
from ofa_hf.data.sources import TableForm
from ofa_hf.errors import UserError
from ofa_hf.images.image_finder import clean_name, fold, without_suffix
from ofa_hf.tables.column_names import IDS, IMAGES, TARGETS, matches
from ofa_hf.tables.columns import missing_columns
from ofa_hf.tables.problems import MALFORMED_LINE, WITHOUT_TARGETS, Problem, counted, describe_form
from ofa_hf.tables.table_files import open_table
from ofa_hf.tasks_ofa import Task


logger = logging.getLogger(__name__)

BETWEEN = "\t"  # in a row's name, between the image and the question
CONFIDENCE = "confidence"
MISSING = object()  # not a JSON value
QUESTIONS = ("question", "expression", "region", "box")  # columns of ids of rows that can share an image
IMAGE_FILES = tuple(name for name in IMAGES if name not in IDS)
ANSWERS = ("text", "box", "answer", "label", "caption", "summary")
MIXED_ANSWERS = "rows with and without confidences are mixed. Use one form."
PREDICTION_FORM = '{"image_id": "…", "text": "…"}'
REFERENCE_FORM = '{"image_id": "…", "text": ["…", "…"]}'
HINT = f"References look like {REFERENCE_FORM}; the test split of MUGE has none, use --submission for it."


def read_predictions(path: str | Path, form: TableForm | None = None, task: Task | None = None) -> dict[str, Any]:
    """Read one answer per row: a string, a list of one string, or a box. An empty answer is also a prediction.

    Args:
        path: any table, such as one written by the commands.
        form: the user's options for the table.
        task: the task; its fields, such as a phrase, distinguish rows of one image.

    Raises:
        UserError: the file is missing or empty, a line is malformed, or an id is repeated.
    """
    predictions = {}
    for line in read_answer_lines(path, PREDICTION_FORM, form, task):
        if isinstance(line, Problem):
            raise UserError(f"{path}, line {line.line} is malformed: {line.detail} Correct or remove it.")
        number, image_id, texts = line
        if len(texts) != 1:
            raise UserError(
                f"{path}, line {number}: {image_id} has {len(texts)} captions. A prediction is one caption per image, "
                f"{PREDICTION_FORM}. Keep the one to score."
            )
        if image_id in predictions:
            raise UserError(f"{path}, line {number}: {image_id} is predicted twice. Keep one line per image.")
        predictions[image_id] = next(iter(texts))
    return predictions


def read_references(
    path: str | Path, form: TableForm | None = None, same: Callable[[str], str] = str, task: Task | None = None
) -> dict[str, list[Any] | dict[str, float]]:
    """Read the right answers of every row; blank ones are left out, and rows with the same id are joined.

    Answers with confidences are an object: `{"red": 1.0, "crimson": 0.3}`. Unusable rows are left out, counted and
    logged, as in finetuning.

    Args:
        path: any table that finetuning takes, see `open_table`.
        form: the user's options for the table.
        same: maps different names of one image to the same text.
        task: as in `read_predictions`.

    Raises:
        UserError: the file is missing or empty, or no row can be used.
    """
    return usable_references(path, form, same, task)[0]


def usable_references(
    path: str | Path, form: TableForm | None = None, same: Callable[[str], str] = str, task: Task | None = None
) -> tuple[dict[str, list[Any] | dict[str, float]], list[Problem]]:
    """Like `read_references`, with the rows that were left out."""
    references, first_name, problems = {}, {}, []
    for line in read_answer_lines(path, REFERENCE_FORM, form, task):
        if isinstance(line, Problem):
            problems.append(line)
            continue
        number, image_id, texts = line
        captions = texts if isinstance(texts, dict) else [text for text in texts if is_box(text) or text.strip()]
        known = references.setdefault(first_name.setdefault(same(image_id), image_id), type(captions)())
        if isinstance(known, dict) != isinstance(captions, dict):
            problems.append(Problem(MALFORMED_LINE, str(path), number, image_id, MIXED_ANSWERS))
        else:
            known.update(captions) if isinstance(known, dict) else known.extend(captions)
    without = [id_ for id_, answers in references.items() if not answers]
    problems += [Problem(WITHOUT_TARGETS, str(path), 0, id_, f"nothing to compare with. {HINT}") for id_ in without]
    references = {id_: answers for id_, answers in references.items() if answers}
    if not references:
        raise UserError(f"No usable row in {path}. First: {problems[0]} Correct it.")
    if problems:
        logger.warning(f"Left out of {path}: {counted(Counter(each.kind for each in problems))}. First: {problems[0]}")
    return references, problems


def read_answer_lines(
    path: str | Path, wanted: str, form: TableForm | None = None, task: Task | None = None
) -> Iterator[tuple[int, str, list[Any] | dict[str, float]] | Problem]:
    """Yield line number, id and answers of each row of a table (a dict if they have confidences), or a problem.

    Args:
        wanted: an example row, for messages.
    """
    form, seen = form or TableForm(), False
    table = open_table(path, **form.reading())
    fields = fields_in(table.columns, form, task)
    has_confidences = bool(task) and task.metric == "vqa" and CONFIDENCE in table.columns
    ids, answer_names = answer_columns(path, table.columns, form)
    if task and task.target_column in table.columns and not form.caption_column:
        others = (name for name in answer_names if name not in task.fields)
        answer_names = list(dict.fromkeys((task.target_column, *others)))
    columns = dict(zip(("image", "caption"), (ids[0], answer_names[0]))) if table.columns else {}
    logger.warning(f"{path} is read as {describe_form({**table.assumed, 'columns': columns})}.")
    for number, row in table:
        seen = True
        if isinstance(row, Problem):
            is_json = row.kind == MALFORMED_LINE and not table.assumed["separator"]
            expected = f" Expected {wanted}." if is_json else ""
            yield replace(row, detail=f"{row.detail}.{expected}")
            continue
        id_, answers = value_of(row, ids), answers_in(value_of(row, answer_names))
        confidences = confidences_in(row.get(CONFIDENCE), len(answers or ())) if has_confidences else None
        is_id = isinstance(id_, (str, int)) and not isinstance(id_, bool)
        if not is_id or answers is None or (has_confidences and confidences is None):
            yield malformed_line(path, number, json.dumps(row, ensure_ascii=False, default=str), wanted)
            continue
        name = BETWEEN.join([str(id_), *(str(row.get(field, "")).strip() for field in fields)])
        yield number, whole_characters(name), dict(zip(answers, confidences)) if has_confidences else answers
    if not seen:
        raise UserError(f"{path} is empty. Expected one row per image: {wanted}")


def fields_in(columns: Sequence[str], form: TableForm, task: Task | None) -> list[str]:
    """The columns that distinguish rows of one image: the fields of the task, unless a column has row ids.

    Without the task's own column of answers, a column with the name of a field can contain the answers.
    """
    has_own_names = form.id_column or {"question_id", "id"} & set(columns)
    if task is None or has_own_names or task.target_column not in columns:
        return []
    return [name for name in task.fields if name in columns]


def answer_columns(path: str | Path, columns: Sequence[str], form: TableForm) -> tuple[list[str], list[str]]:
    """Possible columns of row names and of answers; the first one that a row has is used.

    Rows with questions are named by an id, others by their image, as finetuning joins rows.

    Raises:
        UserError: there are no such columns.
    """
    first = ["question_id", "id"] if any(name in columns for name in QUESTIONS) else ["question_id"]
    ids = [name for name in first if name in columns] + matches(columns, IMAGE_FILES) + matches(columns, IDS)
    ids = [name for name in (form.id_column, form.image_column) if name][:1] or list(dict.fromkeys(ids))
    left = [name for name in columns if name not in ids[:1]]
    answers = [name for name in ANSWERS if name in left] or matches(left, TARGETS)
    answers = [form.caption_column] if form.caption_column else answers
    missing = [name for name, found in (("image_id", ids), ("text", answers)) if not set(found) & set(columns)]
    if missing and columns:
        raise missing_columns(str(path), missing, columns)
    return ids, answers


def value_of(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    """A row's value of the first existing column; `MISSING` if there is none."""
    return next((row[name] for name in names if name in row), MISSING)


def answers_in(value: Any) -> list[Any] | dict[str, float] | None:
    """Texts, boxes, or texts with confidences in a JSON value; None for other values."""
    if isinstance(value, dict) and set(SIDES) != value.keys():
        is_confident = value and all(isinstance(each, (int, float)) for each in value.values())
        return {whole_characters(text): float(each) for text, each in value.items()} if is_confident else None
    if value is None or is_nan(value):
        return [""]  # no answer
    answers = value if isinstance(value, list) and not is_box(value) else [value]
    answers = [str(each) if is_number(each) else each for each in answers]
    if not all(isinstance(each, str) or is_box(each) for each in answers):
        return None
    return [whole_characters(each) if isinstance(each, str) else each for each in answers]


def malformed_line(path: str | Path, number: int, line: str, form: str) -> Problem:
    seen = line.strip()
    shown = seen if len(seen) <= 60 else seen[:60] + "…"
    return Problem(MALFORMED_LINE, str(path), number, detail=f"{shown} Expected JSON like {form}.")


def same_names(predictions: Mapping[str, Any], references: Mapping[str, Any]) -> dict[str, Any]:
    """Predictions with the names of the references, where folders or suffixes of the names can differ.

    A name that matches several references or none is kept.
    """
    if predictions.keys() == references.keys():
        return dict(predictions)
    by_end: dict[str, set[str]] = {}
    for name in references:
        for end in ends_of(name):
            by_end.setdefault(end, set()).add(name)
    renamed = {}
    for name, value in predictions.items():
        known = [by_end[end] for end in ends_of(name) if end in by_end]
        fits = name if name in references or not known or len(known[0]) > 1 else next(iter(known[0]))
        renamed[name if fits in renamed else fits] = value
    return renamed


def ends_of(name: str) -> Iterator[str]:
    """Ways to write a path, the most exact first: with fewer and fewer folders, with and without its suffix."""
    path, between, fields = name.partition(BETWEEN)
    parts = clean_name(path)[0]
    for start in range(len(parts)):
        end = fold("/".join(parts[start:]))
        yield end + between + fields
        yield without_suffix(end) + between + fields


def write_submission(predictions: Mapping[str, str], path: str | Path) -> None:
    """Write a submission for MUGE: `{"image_id": …, "text": "…"}`, one image per line."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as lines:
        for image_id, text in predictions.items():
            lines.write(json.dumps({"image_id": image_id, "text": text}, ensure_ascii=False) + "\n")
