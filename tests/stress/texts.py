"""Texts of every script and length through the processor, against BERT's encoding written down once more.

The reference follows the published rules (clean, separate ideographs, lower-case, strip accents, cut at punctuation,
longest known piece first) in plain Python; it shares no line with the tokenizers library.
"""

import random
import re
import time
import unicodedata
from pathlib import Path

import small_checkpoints
from hypothesis import HealthCheck, given, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st
from stress.pieces import Figures

from ofa_hf import OFAImageProcessor, OFAProcessor
from ofa_hf.conversion.vocabulary import build_tokenizer


BOS, EOS = 0, 2
SYMBOLS = re.compile(
    r"(\[PAD\]|\[UNK\]|\[CLS\]|\[SEP\]|\[MASK\])"
)  # the official encoding keeps them whole between blanks
UPPER = re.compile("[A-Z]")
IDEOGRAPHS = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F))
IDEOGRAPHS += ((0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F))
LONGEST_WORD = 100  # characters; longer ones are unknown
EXTRA_PIECES = (*"abcdefghijklmnopqrstuvwxyz0123456789_/#[]", "##s", "##12", "code", "bin", "mask", "pad", "un", "##a")
TYPED = (
    "<s>",
    "</s>",
    "<pad>",
    "<unk>",
    "<mask>",
    "<code_0>",
    "<code_8191>",
    "<bin_12>",
    "[MASK]",
    "[PAD]",
    "[CLS]",
    "[SEP]",
    "[UNK]",
)
ODD = (
    "\x00",
    "\x1b[31m",
    "\u200b",
    "\u202e",
    "\ufeff",
    "\ufffd",
    "\u2028",
    "\u3000",
    "e\u0301",
    "İ",
    "ß",
    "Σ",
    "ﬁ",
    "１",
    "＜s＞",
    "אב",
    "नमस्ते",
    "👩‍👩‍👧",
    "\U000e0041",
    "t恤",
    "ＡＢ",
)
MAX_SECONDS = 10.0  # of CPU time for a megabyte


def make_processor(folder: Path) -> OFAProcessor:
    path = folder / "vocab.txt"
    path.write_text("\n".join([*small_checkpoints.WORD_PIECES, *EXTRA_PIECES]) + "\n", encoding="utf-8")
    return OFAProcessor(OFAImageProcessor(size=16), build_tokenizer(path), max_prompt_tokens=40)


def old_characters() -> list[str]:
    """What Unicode 3.2 assigned and left as it was: libraries have different tables of what came later."""
    old = unicodedata.ucd_3_2_0.category
    every = (chr(code) for code in range(0x30000) if not 0xD800 <= code < 0xF900)
    return [char for char in every if old(char) != "Cn" and old(char) == unicodedata.category(char)]


def texts_of_all_kinds() -> st.SearchStrategy[str]:
    words = st.sampled_from(["a" * 100, "a" * 101, *TYPED, *ODD, *small_checkpoints.WORD_PIECES, *EXTRA_PIECES])
    anything = st.text(st.sampled_from(old_characters()), max_size=20)
    return st.lists(st.one_of(words, anything, st.just(" ")), max_size=12).map("".join)


# -------------------------------------------------------------------------------------------- the reference


def expected_ids(text: str, vocabulary: dict[str, int]) -> list[int]:
    """`<s>`, the pieces of the text, `</s>`."""
    parts = (part if SYMBOLS.fullmatch(part) else UPPER.sub(lower, part) for part in SYMBOLS.split(text))
    return [BOS, *(vocabulary[piece] for piece in pieces_of("".join(parts), vocabulary)), EOS]


def lower(match: re.Match) -> str:
    return match[0].lower()


def pieces_of(text: str, vocabulary: dict[str, int]) -> list[str]:
    return [piece for word in words_of(text) for piece in word_pieces(word, vocabulary)]


def words_of(text: str) -> list[str]:
    clean = "".join(" " if is_blank(char) else char for char in text if not is_control(char))
    spaced = "".join(f" {char} " if is_ideograph(char) else char for char in clean)
    return [word for run in spaced.split() for word in ([run] if SYMBOLS.fullmatch(run) else cut_run(run))]


def cut_run(run: str) -> list[str]:
    """The words of a text without blanks: lower-cased, without accents, cut at punctuation."""
    plain = "".join(char for char in unicodedata.normalize("NFD", run) if unicodedata.category(char) != "Mn")
    lowered = "".join(char.lower() for char in plain)
    cut = "".join(f" {char} " if is_punctuation(char) else char for char in lowered)
    return cut.split()


def is_blank(char: str) -> bool:
    return char in "\t\n\r" or unicodedata.category(char) == "Zs" or char in "\u0085\u2028\u2029\x0b\x0c"


def is_control(char: str) -> bool:
    return char in "\x00\ufffd" or char not in "\t\n\r" and unicodedata.category(char) in ("Cc", "Cf", "Cn", "Co")


def is_ideograph(char: str) -> bool:
    return any(low <= ord(char) <= high for low, high in IDEOGRAPHS)


def is_punctuation(char: str) -> bool:
    return char in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~" or unicodedata.category(char).startswith("P")


def word_pieces(word: str, vocabulary: dict[str, int]) -> list[str]:
    """The longest known piece, again and again; a word with an unknown rest is unknown as a whole."""
    pieces, start = [], 0
    while start < len(word) <= LONGEST_WORD:
        mark = "##" if start else ""
        ends = range(len(word), start, -1)
        end = next((end for end in ends if mark + word[start:end] in vocabulary), None)
        if end is None:
            return ["[UNK]"]
        pieces.append(mark + word[start:end])
        start = end
    return pieces if word[LONGEST_WORD:] == "" else ["[UNK]"]


# ------------------------------------------------------------------------------------------------ pieces


def texts(seed: int, amount: int, folder: Path) -> Figures:
    """Texts that hypothesis makes, against the reference; then what has another rule: halves, megabytes, ids."""
    processor = make_processor(folder)
    vocabulary, longest = processor.tokenizer.get_vocab(), 0

    @hypothesis_seed(seed)
    @settings(max_examples=amount, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(texts_of_all_kinds())
    def check(text: str) -> None:
        nonlocal longest
        longest = max(longest, len(text))
        check_text(text, processor, vocabulary)

    check()
    halves = check_halves(random.Random(seed), processor)
    size = min(2**20, amount * 2**9)  # a megabyte in a long run
    return {"texts": amount, "longest": longest, "halves": halves, **check_lengths(size, processor, vocabulary)}


def check_text(text: str, processor: OFAProcessor, vocabulary: dict[str, int]) -> None:
    expected = expected_ids(text, vocabulary)
    found = processor(text=text, truncation=False)["input_ids"][0].tolist()
    assert found == expected, f"{text!r}\n{found}\n{expected}"
    cut = processor(text=text)
    limit = processor.max_prompt_tokens
    assert cut["input_ids"][0].tolist() == (expected if len(expected) <= limit else [*expected[: limit - 1], EOS])
    labels = processor.encode_labels([text])[0].tolist()
    assert labels == expected[1:]
    said = processor.decode(found)
    assert said.isprintable() or not text.isprintable(), said
    assert not set(TYPED[8:]) & {said}, said


def check_halves(chance: random.Random, processor: OFAProcessor) -> int:
    """Half characters, as of an emoji cut in two: no encoding can hold one, so it counts as an unprintable one."""
    halves = [chr(chance.randrange(0xD800, 0xE000)) for _ in range(20)]
    for half in halves:
        plain = processor(text="红色裙子")["input_ids"]
        assert processor(text=f"红色{half}裙子")["input_ids"].equal(plain)
        assert processor.encode_labels([f"红色{half}"]).equal(processor.encode_labels(["红色"]))
    return len(halves)


def check_lengths(size: int, processor: OFAProcessor, vocabulary: dict[str, int]) -> dict[str, float]:
    """So many bytes of one kind of text: cut to what the model takes, in bounded time."""
    kinds = {
        "ideographs": "红",
        "letters": "a",
        "blanks": " ",
        "unknown": "é̈",
        "typed": "<code_0>",
        "symbols": "[MASK]",
        "emoji": "🛒",
    }
    seconds = {}
    for name, unit in kinds.items():
        text, start = unit * (size // len(unit.encode())), time.process_time()
        ids = processor(text=text)["input_ids"][0].tolist()
        seconds[f"{size // 2**10} KiB of {name} s"] = taken = round(time.process_time() - start, 2)
        assert len(ids) <= processor.max_prompt_tokens, len(ids)
        assert taken < MAX_SECONDS * size / 2**20, seconds
        assert ids == expected_ids(text[:4000], vocabulary)[: len(ids) - 1] + [EOS] or name == "letters"
    return seconds
