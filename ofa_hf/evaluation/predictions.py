"""Answers in files: JSONL with `image_id` and `text`, one row a line; every complaint names the line.

The id may also be called `id`, `question_id` or `file`, the answer `box`, `answer`, `label`, `caption` or `summary`,
as the commands write them. A box is `{"xmin", "ymin", "xmax", "ymax"}`, four numbers, or a text of them.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ofa_hf.boxes_ofa import SIDES
from ofa_hf.data.answers import is_box
from ofa_hf.data.lines import whole_characters
from ofa_hf.errors import UserError


IDS = ("image_id", "id", "question_id", "file")
ANSWERS = ("text", "box", "answer", "label", "caption", "summary")
PREDICTION_FORM = '{"image_id": "…", "text": "…"}'
REFERENCE_FORM = '{"image_id": "…", "text": ["…", "…"]}'


def read_predictions(path: str | Path) -> dict[str, Any]:
    """Read one answer per row; `text` is a string or a list of one, or a box. An empty answer is a prediction too.

    Raises:
        UserError: the file is missing or empty, a line is malformed, an id comes twice.
    """
    predictions = {}
    for number, image_id, texts in read_answer_lines(path, PREDICTION_FORM):
        if len(texts) != 1:
            raise UserError(
                f"{path}, line {number}: {image_id} has {len(texts)} captions. A prediction is one caption per image, "
                f"{PREDICTION_FORM}. Keep the one that shall be scored."
            )
        if image_id in predictions:
            raise UserError(f"{path}, line {number}: {image_id} is predicted a second time. Keep one line per image.")
        predictions[image_id] = next(iter(texts))
    return predictions


def read_references(path: str | Path) -> dict[str, list[Any] | dict[str, float]]:
    """Read the right answers of every row; `text` is a list of strings (or one string); blank ones are left out.

    Answers that are right to a degree are an object: `{"red": 1.0, "crimson": 0.3}`.

    Raises:
        UserError: the file is missing or empty, a line is malformed, an id comes twice or has no caption.
    """
    references = {}
    for number, image_id, texts in read_answer_lines(path, REFERENCE_FORM):
        captions = texts if isinstance(texts, dict) else [text for text in texts if is_box(text) or text.strip()]
        if not captions:
            raise UserError(
                f"{path}, line {number}: {image_id} has no caption to compare with. References look like "
                f"{REFERENCE_FORM}; the test split of MUGE has none, use --submission for it."
            )
        if image_id in references:
            raise UserError(f"{path}, line {number}: {image_id} comes a second time. Keep one line per image.")
        references[image_id] = captions
    return references


def read_answer_lines(path: str | Path, form: str) -> Iterator[tuple[int, str, list[Any] | dict[str, float]]]:
    """Yield line number, id and answers of each line that is not blank; answers with a confidence as a dict."""
    seen = False
    for number, line in numbered_lines(path):
        try:
            row = json.loads(line)
            id_, value = value_of(row, IDS), value_of(row, ANSWERS)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise malformed_line(path, number, line, form) from error
        answers = answers_in(value)
        is_id = isinstance(id_, (str, int)) and not isinstance(id_, bool)
        if not is_id or answers is None:
            raise malformed_line(path, number, line, form)
        seen = True
        yield number, whole_characters(str(id_)), answers
    if not seen:
        raise UserError(f"{path} is empty. Expected JSONL, one image a line: {form}")


def value_of(row: dict[str, Any], names: tuple[str, ...]) -> Any:
    """The value of the first of these keys that a row has. Raises `KeyError` if it has none."""
    return row[next((name for name in names if name in row), names[0])]


def answers_in(value: Any) -> list[Any] | dict[str, float] | None:
    """Texts, boxes, or texts with confidences that a JSON value holds; None if it holds something else."""
    if isinstance(value, dict) and set(SIDES) != value.keys():
        is_confident = value and all(isinstance(each, (int, float)) for each in value.values())
        return {whole_characters(text): float(each) for text, each in value.items()} if is_confident else None
    if value is None:
        return [""]  # no answer
    answers = value if isinstance(value, list) and not is_box(value) else [value]
    if not all(isinstance(each, str) or is_box(each) for each in answers):
        return None
    return [whole_characters(each) if isinstance(each, str) else each for each in answers]


def numbered_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    try:
        with open(path, encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, line
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason}). Expected JSONL with {REFERENCE_FORM}") from error
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}. Give the path of a readable JSONL file.") from error


def malformed_line(path: str | Path, number: int, line: str, form: str) -> UserError:
    seen = line.strip()
    shown = seen if len(seen) <= 60 else seen[:60] + "…"
    return UserError(f"{path}, line {number} is malformed: {shown} Expected JSON like {form}. Correct or remove it.")


def write_submission(predictions: Mapping[str, str], path: str | Path) -> None:
    """Write the file MUGE asks for: `{"image_id": …, "text": "…"}`, one image a line."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as lines:
        for image_id, text in predictions.items():
            lines.write(json.dumps({"image_id": image_id, "text": text}, ensure_ascii=False) + "\n")
