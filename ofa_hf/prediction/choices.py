"""Lists of answers to choose from, in files or texts; answers that cannot be chosen are left out and reported."""

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from ofa_hf.errors import UserError
from ofa_hf.tables.encodings import find_encoding, text_lines


SEPARATORS = re.compile("[,，、;；\n]")
SHOWN = 3


class Choices(NamedTuple):
    """Answers, and a sentence for each reason why others were left out."""

    texts: list[str]
    left_out: list[str]


def read_choices(given: Sequence[str]) -> list[tuple[str, str]]:
    """The answers given on a command line: files with one per line, or comma-separated lists.

    Returns:
        position of each, for messages, and its text, which can be empty.

    Raises:
        UserError: a file cannot be read, or there is no answer.
    """
    found = []
    for item in given:
        if os.path.isfile(item):
            found += choices_in(item)
        elif item.lower().endswith((".txt", ".csv", ".tsv", ".json", ".jsonl")):
            raise UserError(f"{item} does not exist. Pass a text file with an answer per line, or answers: 红色,蓝色.")
        else:
            found += [(f"answer {number}", text.strip()) for number, text in enumerate(SEPARATORS.split(item), 1)]
    if not any(text for _, text in found):
        raise UserError(f"{', '.join(given)[:100]} holds no answer. Pass a file with one per line, or 红色,蓝色.")
    return found


def choices_in(file: str) -> list[tuple[str, str]]:
    """The lines of a file of answers in any encoding: position, for messages, and text.

    Raises:
        UserError: it cannot be read.
    """
    lines = text_lines(file, find_encoding(file))
    return [(f"line {number}", (line or "").strip()) for number, line in lines]


def usable_choices(processor, given: Sequence[tuple[str, str]]) -> Choices:
    """Leave out what a model cannot choose: empty lines, repeated answers, and words missing from its vocabulary.

    Args:
        given: position and text of each answer.

    Raises:
        UserError: nothing is left.
    """
    texts, seen = [], {}
    empty, repeated, unwritable = [], [], []
    for place, text in given:
        if not text:
            empty.append(place)
            continue
        try:
            (ids,) = processor.encode_choices([text])
        except ValueError:
            unwritable.append(f"{place}: {text[:40]}")
            continue
        if tuple(ids) in seen:
            repeated.append(f"{place}: {text[:40]}")
            continue
        seen[tuple(ids)] = text
        texts.append(text)
    faults = {
        "empty": empty,
        "the same as an earlier one for the model": repeated,
        "with words that are not in the vocabulary": unwritable,
    }
    left_out = [f"{len(places):,} {what} ({_some(places)})" for what, places in faults.items() if places]
    if not texts:
        raise UserError(f"None of {len(given):,} answers can be chosen: {'; '.join(left_out)}. Pass others.")
    return Choices(texts, left_out)


def _some(places: Sequence[str]) -> str:
    return ", ".join(places[:SHOWN]) + (", …" if len(places) > SHOWN else "")
