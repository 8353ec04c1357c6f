"""Reading a pickle executes nothing, refuses by name and stays within time and memory."""

import builtins
import contextlib
import io
import os
import pickle
import pickletools
import random
import struct
import time
from collections import OrderedDict

import pytest

from ofa_hf.conversion.fairseq_reader import is_inert
from ofa_hf.inert_pickle import Inert, InertUnpickler, PickleRefused, shown


def read(data: bytes):
    return InertUnpickler(is_inert).load(io.BytesIO(data), len(data))


class Reduces:
    """An object whose pickle calls `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_data_is_read_as_it_was_written(protocol):
    value = {"a": [1, 2.5, None, True, "字", (1, (2, 3))], 3: OrderedDict(b=-(2**40)), "s": {1}}
    assert read(pickle.dumps(value, protocol)) == {**value, "s": [1]}


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (Reduces(os.system, "touch hacked"), "system"),
        (Reduces(eval, "1+1"), "eval"),
        (Reduces(exec, "pass"), "exec"),
        (Reduces(getattr, "x", "upper"), "getattr"),
        (Reduces(builtins.__import__, "os"), "__import__"),
        (Reduces(open, "hacked", "w"), "open"),
        (Reduces(pickle.loads, b"N."), "loads"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_calls_are_refused_by_name_and_not_executed(call, name, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PickleRefused, match=name):
        read(pickle.dumps({"model": [call]}, protocol))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("data", [b"cos\nsystem\n(S'id'\ntR.", b"(S'id'\nios\nsystem\n.", b"(cos\nsystem\nS'id'\no."])
def test_text_protocol_attacks_are_refused(data):
    with pytest.raises(PickleRefused):
        read(data)


def test_allowed_classes_become_records_that_cannot_be_changed_into_attacks():
    import argparse

    record = read(pickle.dumps(argparse.Namespace(layers=3), 2))
    assert isinstance(record, Inert)
    assert record.attributes() == {"layers": 3}
    class_as_target = b"\x80\x02cargparse\nNamespace\nN}X\x08\x00\x00\x00__init__K\x01s\x86b."
    with pytest.raises(PickleRefused, match="attributes"):
        read(class_as_target)
    assert callable(argparse.Namespace.__init__)


def test_deep_nesting_is_no_recursion():
    depth = 200_000
    assert read(b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b".") is not None
    assert read(b"\x80\x02)" + b"\x85" * depth + b".") is not None
    with pytest.raises(PickleRefused, match="key"):
        read(b"\x80\x02})" + b"\x85" * depth + b"K\x01s.")  # hashing this key would overflow the C stack


def test_self_reference_is_just_a_reference():
    value = []
    value.append(value)
    result = read(pickle.dumps(value, 2))
    assert result[0] is result


def test_repeated_copies_of_one_list_run_out_of_budget():
    pairs = b"](" + b"(K\x01K\x02t" * 5000 + b"eq\x00"  # a list of 5,000 pairs, remembered
    bomb = b"\x80\x02" + pairs + b"0" + b"".join(b"ccollections\nOrderedDict\nh\x00\x85R" for _ in range(5000)) + b"."
    begin = time.perf_counter()
    with pytest.raises(PickleRefused, match="steps"):
        read(bomb)
    assert time.perf_counter() - begin < 20


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02B\xff\xff\xff\x7f.",  # bytes of 2 GB
        b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b".",  # text of 4 EB
        b"\x80\x02\x8b\xff\xff\xff\x7f.",  # a whole number of 2 GB
        b"\x80\x02X\xff\xff\xff\x7fabc.",
    ],
)
def test_declared_lengths_that_lie_allocate_nothing(data):
    with pytest.raises(PickleRefused):
        read(data)


def test_colliding_keys_are_refused():
    with pytest.raises(PickleRefused, match="key"):
        read(pickle.dumps({2**61 - 1: 1}, 2))


def test_truncated_pickles_are_refused_wherever_they_end():
    data = pickle.dumps({"a": [1, 2, {"b": (3, 4)}], "c": "text"}, 2)
    for length in range(len(data)):
        with pytest.raises(PickleRefused):
            read(data[:length])


def test_mutated_pickles_are_read_or_refused_but_never_crash():
    choose = random.Random(0)
    data = pickle.dumps({"a": [1, 2.0, "x" * 20, (1, 2, 3), OrderedDict(b=2)], "n": None}, 2)
    for _ in range(3000):
        mutated = bytearray(data)
        for _ in range(choose.randint(1, 4)):
            mutated[choose.randrange(len(mutated))] = choose.randrange(256)
        with contextlib.suppress(PickleRefused):
            read(bytes(mutated))


def test_every_instruction_is_either_known_or_refused_by_name():
    for opcode in pickletools.opcodes:
        with contextlib.suppress(PickleRefused):
            read(opcode.code.encode("latin-1") + b"1\n1\n" + b"\x00" * 20)


def test_values_from_outside_are_shown_short_and_printable():
    assert shown("a" * 500).endswith("...")
    assert "\n" not in shown("a\nb\x1b[31m")
    assert shown(10**5000) == "a number beyond 64 bits"
    assert shown({"deep": 1}) == "a value of type dict"
