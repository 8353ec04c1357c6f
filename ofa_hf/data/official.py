"""Data files of the official code: TSV without a header, one row per line, with the image as base64.

Lines are written to the Arrow file as they are read, so memory stays flat. Texts are prepared as in the official code.

Source: OFA `data/mm_data/*_dataset.py`, `data/nlu_data/`, `data/nlg_data/`; columns of `run_scripts/`.
"""

import binascii
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

from datasets import Dataset

from ofa_hf.data.answers import AnswerRule
from ofa_hf.data.build import Recipe, build, file_identity
from ofa_hf.data.lines import parse_id, read_lines, whole_characters
from ofa_hf.data.muge import decode_base64
from ofa_hf.data.shards import Options, RowRecord, RowTexts
from ofa_hf.errors import UserError
from ofa_hf.processing_ofa import IDEOGRAPH
from ofa_hf.tables.problems import BROKEN_IMAGE, EMPTY_TARGET, MALFORMED_LINE, MISSING_FIELD, MISSING_ID, Problem
from ofa_hf.tasks_ofa import Task, clean_article, without_punctuation


ID, IMAGE, TARGET = "id", "image", "target"
SEPARATOR, CONFIDENCE = "&&", "|!+"  # between answers; between a confidence and its answer
MAX_CAPTION_WORDS, MAX_READ, MAX_SUMMARY_WORDS = 20, 64, 64  # of targets


@dataclass(frozen=True)
class Form:
    """The columns of a task's files and `selected_cols` of the scripts, counted from 0."""

    names: tuple[str, ...]
    columns: str
    columns_zh: str = ""
    columns_of_tests: str = ""
    others: tuple["Form", ...] = ()  # forms with another number of columns

    def fitting(self, file: Path, selected: str | None) -> "Form":
        """The form for the number of columns in a file, or of selected columns."""
        if not self.others:
            return self
        count = selected.count(",") + 1 if selected else columns_of(file)
        return next((form for form in self.others if len(form.names) == count), self)

    def places(self, language: str, is_test: bool, selected: str | None) -> dict[str, int]:
        """Column of each part.

        Args:
            selected: `selected_cols` given by the user.

        Raises:
            UserError: it is not a list of as many numbers as there are parts.
        """
        text = selected or (self.columns_zh if language == "zh" else "") or self.columns
        if is_test and self.columns_of_tests and not selected:
            text = self.columns_of_tests
        try:
            numbers = [int(number) for number in text.split(",")]
        except ValueError:
            numbers = []
        if not len(self.required) <= len(numbers) <= len(self.names) or min(numbers) < 0:
            raise UserError(
                f"selected_cols is {text!r}; it must be the columns of {', '.join(self.names)} in this order, counted "
                f"from 0, such as {self.columns}."
            )
        return dict(zip(self.names, numbers))

    @property
    def required(self) -> tuple[str, ...]:
        return tuple(name for name in self.names if name != "objects")


FORMS = {
    "caption": Form((ID, IMAGE, TARGET), "0,4,2", columns_of_tests="1,4,2"),  # tests are identified by their image
    "vqa": Form((ID, IMAGE, "question", TARGET, "objects"), "0,5,2,3,4"),
    "entailment": Form((ID, IMAGE, "hypothesis", "caption", TARGET), "0,2,3,4,5"),
    "grounding": Form((ID, IMAGE, "text", TARGET), "0,4,2,3", columns_zh="0,3,1,2"),
    "ocr": Form((ID, IMAGE, TARGET), "0,1,2"),
    "classification": Form((IMAGE, TARGET), "0,2"),
    "summarization": Form(("article", TARGET), "0,1"),
    "image_generation": Form(
        (ID, "text", TARGET), "0,2,1", others=(Form((ID, "text"), "0,1"), Form((ID, IMAGE, "text", TARGET), "0,1,2,3"))
    ),
    "cola": Form(("sentence", TARGET), "1,2"),
    "sst2": Form(("sentence", TARGET), "0,1"),
    "mrpc": Form(("sentence1", "sentence2", TARGET), "0,1,2"),
    "qqp": Form(("question1", "question2", TARGET), "3,4,5"),
    "qnli": Form(("question", "sentence", TARGET), "1,2,3"),
    "rte": Form(("sentence1", "sentence2", TARGET), "1,2,3"),
    "mnli": Form(("sentence1", "sentence2", TARGET), "0,1,2"),
}
NUMBERS = {  # label numbers in official files
    "qnli": {"0": "no", "1": "yes"},
    "mnli": {"0": "maybe", "1": "yes", "2": "no"},
}


def form_of(task: Task) -> Form:
    """The form of a task's files.

    Raises:
        UserError: the official code has no files for it.
    """
    if task.name not in FORMS:
        raise UserError(
            f"The official code has no files for the task {task.name}. Accepted with data_format official: "
            f"{', '.join(FORMS)}. Pass a table with a header."
        )
    return FORMS[task.name]


def load_official(
    file: str | Path,
    task: Task,
    language: str,
    *,
    is_test: bool = False,
    selected_cols: str | None = None,
    more_fields: Sequence[str] = (),
    rule: AnswerRule | None = None,
    num_proc: int = 1,
    strict: bool = False,
    check_images: bool = True,
    cache_dir: str | Path | None = None,
) -> Dataset:
    """Load an official TSV file as rows of a task, in the order of the file.

    Args:
        file: a line per row, columns separated by tabs, no header.
        is_test: captions keep their punctuation, and there can be several, separated by `&&`.
        selected_cols: columns of the parts, as in the official scripts; by default those of the published files.
        more_fields: fields of the task's longer prompts, such as `objects`.
        rule: requirements for targets; by default those of the task.
        num_proc, strict, check_images, cache_dir: as in `load_muge`.

    Raises:
        UserError: there are no such official files, the file cannot be read, or no row is usable.
    """
    path, fields = Path(file), (*task.fields, *more_fields)
    places = places_of(path, task, fields, language, is_test, selected_cols)
    identity = {"source": "official", "file": file_identity(path), "task": task.name, "places": places}
    identity |= {"language": language, "is_test": is_test, "fields": fields}
    size = path.stat().st_size
    read_target = target_reader(task, language, is_test)
    parse = partial(parse_line, places=places, fields=fields, needed=task.fields, read_target=read_target)
    parts = max(1, num_proc)
    bounds = [size * part // parts for part in range(parts + 1)]
    recipe = Recipe(
        name=path.stem[:80],
        identity=identity,
        read_targets=None,
        make_shards=lambda _: [LineRange(str(path), *pair, parse) for pair in pairwise(bounds)],
        total=size,
        unit="B",
    )
    options = Options(
        strict,
        check_images,
        require_targets=TARGET in places,
        fields=fields,
        has_images=IMAGE in places,
        has_confidences=task.name == "vqa",
        rule=(rule or AnswerRule.of(task)).as_dict(),
    )
    return build(recipe, options, num_proc, cache_dir)


def places_of(
    path: Path, task: Task, fields: Sequence[str], language: str, is_test: bool, selected_cols: str | None
) -> dict[str, int]:
    """Column of each part of the rows of a file.

    Raises:
        UserError: the file has no targets to train on, or no column for a field.
    """
    form = form_of(task).fitting(path, selected_cols)
    places = form.places(language, is_test, selected_cols)
    if not task.needs_image:
        places.pop(IMAGE, None)
    if TARGET not in places and not is_test:
        raise UserError(
            f"{path} has the columns {', '.join(places)} and nothing to learn. Pass a file with the codes of the "
            f"images as well, or a table of images and texts."
        )
    if missing := [name for name in fields if name not in places]:
        raise UserError(
            f"The prompt of the task {task.name} asks for {', '.join(missing)}, which official files do not "
            f"have. They have {', '.join(form.names)}."
        )
    return places


def columns_of(file: Path) -> int:
    """Number of columns in the first line that is not blank."""
    lines = (line for line, _ in read_lines(file) if line is not None and line.strip())
    return next(lines, b"").count(b"\t") + 1


@dataclass
class LineRange:
    """The lines of a file that start in a range of bytes. Lines are counted from the start of the range."""

    file: str
    start: int
    end: int
    parse: Callable[[bytes | None, str, int], RowRecord | Problem]
    lines: int = 0

    def read(self, index: None, advance: Callable[[int], None]) -> Iterator[RowRecord | Problem]:
        for line, size in read_lines(self.file, self.start, self.end):
            self.lines += 1
            if line is None or line.strip():
                yield self.parse(line, self.file, self.lines)
            advance(size)


def parse_line(
    line: bytes | None,
    file: str,
    number: int,
    *,
    places: Mapping[str, int],
    fields: Sequence[str],
    needed: Sequence[str],
    read_target: Callable[[str], "Targets"],
) -> RowRecord | Problem:
    """One line as a row, or its problem. The image stays encoded as it is."""
    cells = (line or b"").split(b"\t")
    if max(places.values()) >= len(cells):
        detail = f"it has {len(cells)} columns; {', '.join(places)} are in {', '.join(map(str, places.values()))}"
        return Problem(MALFORMED_LINE, file, number, detail=f"{detail}, counted from 0")
    texts = {
        name: whole_characters(cells[place].decode("utf-8", "replace"))
        for name, place in places.items()
        if name != IMAGE
    }
    row_id = parse_id(texts[ID]) if ID in texts else f"{Path(file).stem}-{number}"
    blank = [name for name in needed if not texts[name].strip()]
    if not row_id or blank:
        kind = MISSING_FIELD if row_id else MISSING_ID
        return Problem(kind, file, number, row_id, f"no text for {', '.join(blank)}" if blank else "")
    try:
        targets, confidences = read_target(texts[TARGET]) if TARGET in texts else ([], [])
    except ValueError as error:
        return Problem(MALFORMED_LINE, file, number, row_id, str(error))
    if TARGET in texts and not any(targets):
        return Problem(EMPTY_TARGET, file, number, row_id)
    image = None
    if IMAGE in places:
        try:
            image = {"bytes": decode_base64(cells[places[IMAGE]]), "path": None}
        except (binascii.Error, ValueError) as error:
            return Problem(BROKEN_IMAGE, file, number, row_id, f"invalid base64: {error}")
    return RowRecord(
        row_id, number, image, RowTexts({name: texts[name] for name in fields}, targets, confidences=confidences)
    )


# ---------------------------------------------------------------------------------------------- targets

Targets = tuple[list[str], list[float]]  # answers, and their confidences if there are any


def target_reader(task: Task, language: str, is_test: bool) -> Callable[[str], Targets]:
    """Returns a function from a target in a file to answers for training or scoring."""
    if task.name == "vqa":
        return read_confidences
    readers = {
        "caption": read_references if is_test else clean_caption,
        "ocr": partial(clean_read_text, language=language),
        "summarization": clean_summary,
        **{name: partial(read_label, numbers=numbers) for name, numbers in NUMBERS.items()},
    }
    return partial(_one, readers.get(task.name, str.strip))


def _one(read: Callable[[str], str | list[str]], text: str) -> Targets:
    found = read(text)
    return (found if isinstance(found, list) else [found]), []


def read_confidences(text: str) -> Targets:
    """`0.6|!+no&&1.0|!+yes` → answers and confidences.

    Raises:
        ValueError: it has another format.
    """
    pairs = [part.split(CONFIDENCE, 1) for part in text.strip().split(SEPARATOR)]
    if not all(len(pair) == 2 for pair in pairs):
        raise ValueError(f"expected answers such as 0.6|!+no&&1.0|!+yes, not {text[:60]!r}")
    known = {answer: float(confidence) for confidence, answer in pairs}  # the last one of repeated answers counts
    return list(known), list(known.values())


def read_references(text: str) -> list[str]:
    return [part.strip() for part in text.split(SEPARATOR) if part.strip()]


def read_label(text: str, numbers: Mapping[str, str]) -> str:
    return numbers.get(text.strip(), text.strip())


def clean_caption(text: str, max_words: int = MAX_CAPTION_WORDS) -> str:
    """A caption to train on: without ASCII punctuation, at most 20 words."""
    return " ".join(without_punctuation(text).split()[:max_words])


def clean_summary(text: str, max_words: int = MAX_SUMMARY_WORDS) -> str:
    return " ".join(clean_article(text).split(" ")[:max_words])


def clean_read_text(text: str, language: str, limit: int = MAX_READ) -> str:
    """A text on an image: simplified characters, compatible forms (NFKC), lowercase, cut.

    Args:
        limit: characters in Chinese, words in English.
    """
    text = unicodedata.normalize("NFKC", simplify(text))
    return text[:limit].lower() if language == "zh" else " ".join(text.lower().strip().split()[:limit])


def simplify(text: str) -> str:
    """Traditional Chinese characters → simplified ones.

    Raises:
        UserError: the text has Chinese characters and the package zhconv is not installed.
    """
    if not IDEOGRAPH.search(text):
        return text
    try:
        from zhconv import convert
    except ImportError as error:
        raise UserError(
            "The official code converts texts in images to simplified Chinese, which needs the package zhconv. "
            "Install it with `pip install 'ofa-hf[official]'`, or pass a table, whose texts stay as they are."
        ) from error
    return convert(re.sub(r"\0", "", text), "zh-hans")
