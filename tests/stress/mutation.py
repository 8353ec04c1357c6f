"""Bytes that were right once: cut, spliced, overwritten with the numbers that break programs."""

import random
import struct
import zlib
from collections.abc import Sequence


EDGES = (0, 1, -1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63)
WIDTHS = {1: 0xFF, 2: 0xFFFF, 4: 0xFFFFFFFF, 8: 0xFFFFFFFFFFFFFFFF}
CODES = {1: "B", 2: "H", 4: "I", 8: "Q"}


def mutate(data: bytes, chance: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """Change a file in one to five places; `others` are files to splice with."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 5))):
        if not changed:
            break
        chance.choice(CHANGES)(changed, chance, others or (data,))
    return bytes(changed)


def flip_bit(data: bytearray, chance: random.Random, _) -> None:
    data[place(data, chance)] ^= 1 << chance.randrange(8)


def set_byte(data: bytearray, chance: random.Random, _) -> None:
    data[place(data, chance)] = chance.randrange(256)


def set_number(data: bytearray, chance: random.Random, _) -> None:
    width, at = chance.choice(list(WIDTHS)), place(data, chance)
    number = chance.choice(EDGES) & WIDTHS[width]
    data[at : at + width] = struct.pack(chance.choice("<>") + CODES[width], number)[: len(data) - at]


def add_to_number(data: bytearray, chance: random.Random, _) -> None:
    at = place(data, chance)
    data[at] = (data[at] + chance.choice((-16, -2, -1, 1, 2, 16))) % 256


def cut(data: bytearray, chance: random.Random, _) -> None:
    del data[place(data, chance) :]


def remove(data: bytearray, chance: random.Random, _) -> None:
    start, end = span(data, chance)
    del data[start:end]


def repeat(data: bytearray, chance: random.Random, _) -> None:
    start, end = span(data, chance)
    data[start:start] = data[start:end] * chance.choice((1, 1, 2, 50))


def blank(data: bytearray, chance: random.Random, _) -> None:
    start, end = span(data, chance)
    data[start:end] = bytes([chance.choice((0, 0xFF, 0x41))]) * (end - start)


def scramble(data: bytearray, chance: random.Random, _) -> None:
    start, end = span(data, chance)
    data[start:end] = chance.randbytes(end - start)


def splice(data: bytearray, chance: random.Random, others: Sequence[bytes]) -> None:
    other = chance.choice(others)
    start, end = span(other, chance)
    at = place(data, chance)
    data[at : at + chance.choice((0, end - start))] = other[start:end]


def join(data: bytearray, chance: random.Random, others: Sequence[bytes]) -> None:
    other = chance.choice(others)
    del data[place(data, chance) :]
    data += other[chance.randrange(len(other)) :]


CHANGES = (flip_bit, flip_bit, set_byte, set_byte, set_number, set_number, set_number, add_to_number, add_to_number)
CHANGES += (cut, remove, repeat, blank, scramble, splice, join)


def place(data: bytes | bytearray, chance: random.Random) -> int:
    """A position; every second time near the beginning, where headers are."""
    limit = min(len(data), 128) if chance.random() < 0.5 else len(data)
    return chance.randrange(limit)


def span(data: bytes | bytearray, chance: random.Random) -> tuple[int, int]:
    start = place(data, chance)
    return start, min(len(data), start + chance.choice((1, 2, 4, 16, 64, 512)))


def sign_png(data: bytes) -> bytes:
    """Give every chunk of a PNG the checksum that its changed content needs, so that a reader believes it."""
    signed, at = bytearray(data[:8]), 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        body = data[at + 4 : at + 8 + length]
        if len(body) < 4 + length:
            break
        signed += struct.pack(">I", length) + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return bytes(signed + data[at:])
