"""Find odd captions in a data set: too short, file names, whole rows, characters that the vocabulary lacks."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from datasets import Dataset

from ofa_hf.image_loading_ofa import IMAGE_SUFFIXES
from ofa_hf.images.image_finder import without_suffix
from ofa_hf.tables.encodings import find_encoding, text_lines
from ofa_hf.tables.spreadsheets import ERRORS
from ofa_hf.tasks_ofa import Task


NEAR_EMPTY, FILE_NAME, WHOLE_ROW = "near-empty caption", "caption like a file name", "caption like a whole row"
SHEET_ERROR = "caption that is a spreadsheet's error"
UNKNOWN, REPEATED = "caption with characters not in the vocabulary", "caption repeated for one image"
FILE = re.compile(r"[^\s,;，；。]*(?:" + "|".join(map(re.escape, sorted(IMAGE_SUFFIXES))) + r")", re.IGNORECASE)
FILE_INSIDE = re.compile(rf"(?:^|[,;\t\n\"]){FILE.pattern}(?:[,;\t\"]|$)", re.IGNORECASE)
CAMERA_NAME = re.compile(
    r"(?:IMG|DSC|DSCN|DSCF|PXL|MVIMG|P|微信图片|mmexport|Screenshot)[_-]?\d{3,}\w*", re.IGNORECASE
)
PUBLISHED_LACK = frozenset("“”‘’—…\u200d\ufe0f")
FIRST_EMOJI = "\U0001f000"
BATCH = 1000
EXAMPLES = 3  # of each kind


@dataclass
class TextFaults:
    """Odd captions, counted by kind with some examples, and the characters that the vocabulary lacks."""

    counts: Counter[str] = field(default_factory=Counter)
    characters: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # kind → (image id, caption)

    def add(self, kind: str, image_id: str, caption: str) -> None:
        self.counts[kind] += 1
        if len(shown := self.examples.setdefault(kind, [])) < EXAMPLES:
            shown.append((image_id, caption))

    def __add__(self, other: "TextFaults") -> "TextFaults":
        examples = {kind: [*self.examples.get(kind, []), *found] for kind, found in other.examples.items()}
        counts, characters = self.counts + other.counts, self.characters + other.characters
        return TextFaults(counts, characters, {**self.examples, **examples})

    def line(self) -> str:
        """A summary in one line; empty if nothing is odd."""
        parts = [f"{count:,} × {kind}" for kind, count in sorted(self.counts.items())]
        if self.characters:
            shown = ", ".join(f"{char} {count:,}" for char, count in self.characters.most_common(10))
            more = len(self.characters) - 10
            parts.append(f"unknown characters: {shown}" + (f" and {more:,} more" if more > 0 else ""))
        return "; ".join(parts)


def are_sentences(task: Task) -> bool:
    """Whether the answers of a task are sentences about an image."""
    return (task.answer == "text" and task.metric == "caption") or task.answer == "image"


def vocabulary_of(task: Task, unknown: Callable[[Iterable[str]], set[str]] | None):
    """`unknown` for a task whose answers are texts; None for boxes, which become location tokens."""
    return None if task.answer == "boxes" else unknown


def drawn_field(task: Task) -> str | None:
    """The field with the texts of a task whose targets are codes; None for other tasks."""
    return next(iter(task.fields), None) if task.answer == "image" else None


def texts_of(rows: Dataset, field: str | None = None) -> Iterator[tuple[str, list[str]]]:
    """Id and targets of each row, or the text in a field; images are not read."""
    for batch in rows.select_columns(["id", field or "targets"]).iter(batch_size=BATCH):
        texts = [[text] for text in batch[field]] if field else batch["targets"]
        yield from zip(batch["id"], texts, strict=True)


def check_texts(
    rows: Iterable[tuple[str, list[str]]],
    unknown: Callable[[Iterable[str]], set[str]] | None = None,
    are_sentences: bool = True,
) -> TextFaults:
    """Look at every caption once.

    Args:
        rows: ids and captions.
        unknown: returns which of some characters the vocabulary lacks; None skips this check.
        are_sentences: also report very short texts, which are normal as answers to a question.
    """
    faults, known, missing = TextFaults(), set(), set()
    for image_id, captions in rows:
        seen = set()
        for caption in captions:
            if are_sentences and (kind := why_odd(caption, image_id)):
                faults.add(kind, image_id, caption)
            if caption in seen:
                faults.add(REPEATED, image_id, caption)
            seen.add(caption)
            if unknown is None:
                continue
            if new := set(caption) - known - missing:
                missing |= (lacking := unknown(new))
                known |= new - lacking
            if lacks := [char for char in caption if char in missing]:
                faults.add(UNKNOWN, image_id, caption)
                faults.characters.update(lacks)
    return faults


def why_odd(caption: str, image_id: str) -> str:
    """What is odd about a caption; empty if nothing is."""
    if sum(not char.isspace() and not unicodedata.category(char).startswith("P") for char in caption) < 2:
        return NEAR_EMPTY
    if caption in ERRORS:
        return SHEET_ERROR
    name = image_id.rpartition("/")[2]
    if FILE.fullmatch(caption) or CAMERA_NAME.fullmatch(caption) or caption == without_suffix(name):
        return FILE_NAME
    is_row = FILE_INSIDE.search(caption) or caption.count("\t") > 1 or caption.startswith(('{"', "[{"))
    return WHOLE_ROW if is_row or caption.count("\n") > 3 else ""


def unknown_to(tokenizer) -> Callable[[Iterable[str]], set[str]]:
    """Returns which of some characters are unknown to a tokenizer."""
    unknown_ids = {tokenizer.unk_token_id, *tokenizer.convert_tokens_to_ids(["[UNK]", "<unk>"])}

    def find(characters: Iterable[str]) -> set[str]:
        visible = [char for char in characters if not char.isspace()]
        if not visible:
            return set()
        pieces = tokenizer(visible, add_special_tokens=False)["input_ids"]
        return {char for char, ids in zip(visible, pieces, strict=True) if unknown_ids.intersection(ids)}

    return find


def unknown_to_published(characters: Iterable[str]) -> set[str]:
    """Which of some characters no published Chinese checkpoint has: emoji, curly quotes, long dashes.

    They lack others too; for those, use `unknown_to` with the vocabulary of a checkpoint.
    """
    return {char for char in characters if char in PUBLISHED_LACK or char >= FIRST_EMOJI}


def unknown_to_list(path: str) -> Callable[[Iterable[str]], set[str]]:
    """Returns which of some characters a `vocab.txt` (one word piece per line) lacks, ignoring case."""
    pieces = {(line or "").rstrip("\r\n").removeprefix("##") for _, line in text_lines(path, find_encoding(path))}
    return lambda chars: {char for char in chars if not char.isspace() and not {char, char.lower()} & pieces}
