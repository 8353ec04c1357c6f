"""Detect the encoding of a text file from its first bytes, and read its lines in bounded memory.

Supported: UTF-8 with and without byte order mark, UTF-16, UTF-32, GB18030 (which includes GBK and GB2312) and Big5.
Files in other encodings are refused, even if only a later line does not fit.
"""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path

from ofa_hf.errors import UserError


SAMPLE_BYTES = 4 * 2**20  # bytes at the start of a file, for detecting the encoding
MAX_LINE = 2**24  # characters; longer lines occur only in files without line breaks
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is a prefix
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
DOUBLE_BYTES = re.compile(rb"[\x81-\xfe][\x40-\xfe]")
# Byte pairs of common text: punctuation and frequent characters.
COMMON_GB18030 = re.compile(rb"[\xa1-\xa3\xb0-\xd7][\xa1-\xfe]")
COMMON_BIG5 = re.compile(rb"[\xa1-\xc6][\x40-\x7e\xa1-\xfe]")
COMMON_SHARE = 0.3  # of the pairs must be common ones; other languages' encodings have far fewer
LATE_SHARE = 0.05  # of GB18030's characters at least are beyond those that Korean's EUC-KR uses; of Chinese, 45 %
KANA_SHARE = 0.4  # of the pairs are where EUC-JP has its kana only in Japanese
FEWEST = 10  # characters from which a language can be told
SUPERSETS = {"gb2312": "gb18030", "gbk": "gb18030", "utf-8": "utf-8-sig"}
MIXED = ("gb18030", "big5", "cp950", "big5hkscs")  # encodings in which a line of UTF-8 can be decoded by mistake
ACCEPTED = "utf-8, gb18030, big5 or utf-16"


def find_encoding(path: str | Path, given: str | None = None) -> str:
    """The encoding of a text file: the given one, or the one detected from its start.

    Raises:
        UserError: the file cannot be opened or is empty, or its encoding is unknown.
    """
    sample = read_start(path, SAMPLE_BYTES)
    if given:
        return _known(given)
    if mark := next((name for mark, name in MARKS if sample.startswith(mark)), None):
        return mark
    if wide := _wide_encoding(sample):
        return wide
    if b"\0" in sample:
        raise UserError(f"{path} is not a text file: it has bytes of value 0. Export the table as CSV in UTF-8.")
    if _decodes(sample, "utf-8"):
        return "utf-8"
    if found := _chinese_encoding(sample):
        return found
    line = _first_bad_line(path, "utf-8")
    raise UserError(
        f"{path}, line {line}: the encoding is unknown; it is none of {ACCEPTED}. Save the file as UTF-8, or name "
        "its encoding with --encoding (encoding= in Python)."
    )


def read_start(path: str | Path, size: int) -> bytes:
    """The first bytes of a file.

    Raises:
        UserError: it cannot be opened, is a folder or is empty.
    """
    try:
        with open(path, "rb") as stream:
            start = stream.read(size)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}. Pass the path of an existing file.") from error
    if not start:
        raise UserError(f"{path} is empty (0 bytes). Pass the complete file; its download may have been interrupted.")
    return start


def _known(name: str) -> str:
    try:
        found = codecs.lookup(name)
        if not found._is_text_encoding:  # base64 and such
            raise LookupError(f"{name} is not a text encoding")
    except LookupError as error:
        raise UserError(
            f"{name!r} is not a known encoding. Accepted: {ACCEPTED}, and other encodings of Python."
        ) from error
    return SUPERSETS.get(found.name, found.name)


def _wide_encoding(sample: bytes) -> str | None:
    """UTF-16 without a mark: line ends and Latin letters have a 0 in every second byte."""
    zeros = sample[::2].count(0), sample[1::2].count(0)
    if max(zeros) < 2 or min(zeros) > max(zeros) // 10:
        return None
    name = "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
    return name if _decodes(sample, name) else None


def _chinese_encoding(sample: bytes) -> str | None:
    """GB18030 or Big5, whichever gives more common characters; None if neither gives many."""
    pairs = DOUBLE_BYTES.findall(sample)
    scores = {}
    for names, common in ((("gb18030",), COMMON_GB18030), (("big5", "cp950", "big5hkscs"), COMMON_BIG5)):
        name = next((name for name in names if _decodes(sample, name)), None)
        if name and pairs:
            scores[name] = sum(common.fullmatch(pair) is not None for pair in pairs) / len(pairs)
    best = max(scores, key=scores.get, default=None)
    if best is None or scores[best] < COMMON_SHARE or _is_other_language(pairs, best):
        return None
    return best


def _is_other_language(pairs: list[bytes], encoding: str) -> bool:
    """Whether pairs of bytes that a Chinese encoding can read are Korean (EUC-KR) or Japanese (EUC-JP) in truth.

    EUC-KR has its syllables where GB18030 has the first half of its common characters.
    """
    leads = [pair[0] for pair in pairs]
    characters = [lead for lead in leads if 0xB0 <= lead <= 0xF7]
    num_late = sum(lead > 0xC8 for lead in characters)
    num_kana = leads.count(0xA4) + leads.count(0xA5)
    is_korean = len(characters) >= FEWEST and num_late < LATE_SHARE * len(characters)
    is_japanese = len(leads) >= FEWEST and num_kana > KANA_SHARE * len(leads)
    return is_japanese or (is_korean and encoding == "gb18030")


def _decodes(sample: bytes, encoding: str) -> bool:
    try:
        codecs.getincrementaldecoder(encoding)().decode(sample, final=len(sample) < SAMPLE_BYTES)
    except UnicodeError:
        return False
    return True


def text_lines(path: str | Path, encoding: str) -> Iterator[tuple[int, str | None]]:
    """Yield number and text of each line with its line break; None for a line of more than `MAX_LINE` characters.

    Raises:
        UserError: a line is not in the encoding; its number is named.
    """
    number, stream = 0, open(path, encoding=encoding, newline="")  # noqa: SIM115 (closed below)
    with stream:
        try:
            while line := stream.readline(MAX_LINE):
                number += 1
                if len(line) == MAX_LINE and not line.endswith(("\n", "\r")):
                    while (rest := stream.readline(MAX_LINE)) and not rest.endswith(("\n", "\r")):
                        pass
                    yield number, None
                    continue
                if encoding in MIXED and is_utf8(line, encoding):
                    raise _mixed(path, number, encoding)
                yield number, line.removeprefix("\ufeff") if number == 1 else line
        except UnicodeError as error:
            line, plain = _first_bad_line(path, encoding) or number + 1, encoding.removesuffix("-sig")
            like = ", as the lines before it are" if line > 1 else ""
            raise UserError(
                f"{path}, line {line} is not {plain}{like}. Save the file as UTF-8, or name its encoding ({ACCEPTED}) "
                "with --encoding (encoding= in Python)."
            ) from error


def is_utf8(line: str, encoding: str) -> bool:
    """Whether a line that was decoded in a Chinese encoding is actually UTF-8, appended by another program."""
    if line.isascii():
        return False
    try:
        text = line.encode(encoding).decode("utf-8")
    except UnicodeError:
        return False
    return sum(not char.isascii() for char in text) > 1  # a single one can be a coincidence


def _mixed(path: str | Path, number: int, encoding: str) -> UserError:
    return UserError(
        f"{path}, line {number} is UTF-8, but other lines are {encoding}: another program may have appended to the "
        "file. Save all of it as UTF-8."
    )


def _first_bad_line(path: str | Path, encoding: str) -> int:
    """Number of the first line that cannot be decoded; 0 if there is none or lines cannot be separated by bytes."""
    if "16" in encoding or "32" in encoding:
        return 0
    with open(path, "rb") as stream:
        for number, line in enumerate(iter(lambda: stream.readline(4 * MAX_LINE), b""), start=1):
            try:
                line.decode(encoding)
            except UnicodeError:
                return number
    return 0


def is_big5(data: bytes) -> bool:
    """Whether bytes that are not UTF-8 are Chinese text in Big5."""
    return (_chinese_encoding(data) or "").startswith(("big5", "cp950"))


def is_gb18030(data: bytes) -> bool:
    """Whether bytes that are not UTF-8 are Chinese text in GB18030."""
    return _chinese_encoding(data) == "gb18030"
