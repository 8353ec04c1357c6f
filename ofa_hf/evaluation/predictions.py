"""Captions in files: JSONL with `image_id` and `text`, one image a line; every complaint names the line."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from ofa_hf.data.lines import whole_characters
from ofa_hf.errors import UserError


PREDICTION_FORM = '{"image_id": "…", "text": "…"}'
REFERENCE_FORM = '{"image_id": "…", "text": ["…", "…"]}'


def read_predictions(path: str | Path) -> dict[str, str]:
    """Read one caption per image; `text` is a string or a list of one. An empty caption is a prediction too.

    Raises:
        UserError: the file is missing or empty, a line is malformed, an id comes twice.
    """
    predictions = {}
    for number, image_id, texts in read_caption_lines(path, PREDICTION_FORM):
        if len(texts) != 1:
            raise UserError(
                f"{path}, line {number}: {image_id} has {len(texts)} captions. A prediction is one caption per image, "
                f"{PREDICTION_FORM}. Keep the one that shall be scored."
            )
        if image_id in predictions:
            raise UserError(f"{path}, line {number}: {image_id} is predicted a second time. Keep one line per image.")
        predictions[image_id] = texts[0]
    return predictions


def read_references(path: str | Path) -> dict[str, list[str]]:
    """Read the captions of every image; `text` is a list of strings (or one string); blank ones are left out.

    Raises:
        UserError: the file is missing or empty, a line is malformed, an id comes twice or has no caption.
    """
    references = {}
    for number, image_id, texts in read_caption_lines(path, REFERENCE_FORM):
        captions = [text for text in texts if text.strip()]
        if not captions:
            raise UserError(
                f"{path}, line {number}: {image_id} has no caption to compare with. References look like "
                f"{REFERENCE_FORM}; the test split of MUGE has none, use --submission for it."
            )
        if image_id in references:
            raise UserError(f"{path}, line {number}: {image_id} comes a second time. Keep one line per image.")
        references[image_id] = captions
    return references


def read_caption_lines(path: str | Path, form: str) -> Iterator[tuple[int, str, list[str]]]:
    """Yield line number, image id and captions of each line that is not blank."""
    seen = False
    for number, line in numbered_lines(path):
        try:
            row = json.loads(line)
            image_id, text = row["image_id"], row["text"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise malformed_line(path, number, line, form) from error
        texts = [text] if isinstance(text, str) else text
        is_id = isinstance(image_id, (str, int)) and not isinstance(image_id, bool)
        if not is_id or not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
            raise malformed_line(path, number, line, form)
        seen = True
        yield number, whole_characters(str(image_id)), [whole_characters(each) for each in texts]
    if not seen:
        raise UserError(f"{path} is empty. Expected JSONL, one image a line: {form}")


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
