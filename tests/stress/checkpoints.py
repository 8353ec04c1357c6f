"""Checkpoints of strangers: the known attacks one by one, and files of every layout with damage of every kind.

Whatever comes in, nothing of it is executed, and it is refused in one line within bounded time and memory. A damaged
zip file that is read all the same must hold the original's numbers: its checksums say so.
"""

import argparse
import functools
import io
import pickle
import pickletools
import random
import struct
import tarfile
import zipfile
from collections import OrderedDict
from itertools import pairwise
from pathlib import Path
from typing import Any

import small_checkpoints
import torch
from stress import fuzz, mutation
from stress.pieces import Figures

from ofa_hf.conversion.convert import match_source
from ofa_hf.conversion.fairseq_reader import read_checkpoint
from ofa_hf.conversion.sources import open_source
from ofa_hf.conversion.torch_file import FileRefused
from ofa_hf.errors import UserError


MAX_LOADED = 64 * 2**20  # bytes of the weights of one file that are looked at
TENSORS = {"encoder.a": torch.arange(12.0).view(3, 4), "decoder.b": torch.ones(5, dtype=torch.float16)}
ARGUMENTS = argparse.Namespace(task="caption", encoder_layers=6, arch="ofa_base")


# ------------------------------------------------------------------------------------------------ pickles


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def by_global(name: str) -> bytes:
    module, _, qualified = name.rpartition(".")
    return f"c{module}\n{qualified}\n".encode()


def by_stack(name: str) -> bytes:
    module, _, qualified = name.rpartition(".")
    return text(module) + text(qualified) + b"\x93"


def call(name: str, arguments: bytes, chance: random.Random) -> bytes:
    """A call of a function by name, in one of the ways that pickles have for it."""
    module, _, qualified = name.rpartition(".")
    found = chance.choice((by_global, by_stack))(name)
    ways = [
        found + b"(" + arguments + b"tR",
        found + b"(" + arguments + b"t\x81",  # NEWOBJ
        found + b"(" + arguments + b"t}\x92",  # NEWOBJ_EX
        b"(" + arguments + f"i{module}\n{qualified}\n".encode(),  # INST
        b"(" + found + arguments + b"o",  # OBJ
        by_global("argparse.Namespace") + b")R" + b"}" + text("__reduce__") + found + b"s" + b"b" + arguments + b"0",
        by_global("argparse.Namespace") + b")R" + found + b"(" + arguments + b"tR" + b"b",
    ]
    return chance.choice(ways)


CANARY = text("touch canary")
CALLS = {  # function → its arguments as a pickle; each would leave a trace if it ran
    "os.system": CANARY,
    "posix.system": CANARY,
    "nt.system": CANARY,
    "os.popen": CANARY,
    "os.execvp": text("touch") + b"](" + text("touch") + CANARY + b"e",
    "os.remove": text("canary"),
    "subprocess.Popen": b"](" + text("touch") + text("canary") + b"e",
    "subprocess.check_output": b"](" + text("touch") + text("canary") + b"e",
    "pty.spawn": CANARY,
    "builtins.eval": text("open('canary', 'w')"),
    "builtins.exec": text("open('canary', 'w')"),
    "builtins.compile": text("1") + text("canary") + text("exec"),
    "builtins.open": text("canary") + text("w"),
    "builtins.__import__": text("antigravity"),
    "builtins.getattr": by_global("os.system") + text("__call__"),
    "builtins.map": by_global("os.system") + b"](" + CANARY + b"e",
    "builtins.setattr": by_global("argparse.Namespace") + text("x") + b"N",
    "builtins.input": b"",
    "builtins.breakpoint": b"",
    "__builtin__.eval": text("open('canary', 'w')"),
    "io.open": text("canary") + text("w"),
    "functools.partial": by_global("functools.partial") + by_global("os.system") + CANARY,
    "operator.methodcaller": text("system") + CANARY,
    "operator.attrgetter": text("system"),
    "types.CodeType": b"K\x00",
    "types.FunctionType": b"N}",
    "importlib.import_module": text("antigravity"),
    "runpy.run_path": text("canary.py"),
    "shutil.rmtree": text("canary"),
    "socket.create_connection": text("127.0.0.1") + b"K\x09",
    "urllib.request.urlopen": text("http://127.0.0.1:9/"),
    "ctypes.CDLL": text("libc.so.6"),
    "pickle.loads": b"B\x02\x00\x00\x00N.",
    "_pickle.Unpickler": b"N",
    "marshal.loads": b"B\x01\x00\x00\x00N",
    "torch.load": text("canary"),
    "torch.hub.load": text("a/b") + text("c"),
    "torch.storage._load_from_bytes": b"B\x02\x00\x00\x00N.",
    "torch._utils._rebuild_wrapper_subclass": by_global("os.system"),
    "torch._tensor._rebuild_from_type_v2": by_global("os.system") + b"N)}",
    "torch.jit.load": text("canary"),
    "numpy.load": text("canary"),
    "numpy.core.multiarray._reconstruct.__class__": b"N",
    "fairseq.utils.import_user_module": b"N",
    "omegaconf._utils.get_yaml_loader": b"",
    "omegaconf.dictconfig.DictConfig.__init__.__globals__": b"",
    "argparse.Namespace.__init__": b"N",
    "argparse._sys.modules": b"",
    "collections.abc.sys.modules": b"",
    "collections._sys.exit": b"",
    "copyreg.__newobj__": by_global("os.system"),
    "timeit.timeit": text("open('canary', 'w')"),
    "code.interact": b"",
    "pdb.run": text("1"),
    "webbrowser.open": text("http://127.0.0.1:9/"),
    "atexit.register": by_global("os.system") + CANARY,
    "os.system\nos": CANARY,
    "os .system": CANARY,
    "OS.system": CANARY,
    "ｏｓ.system": CANARY,
}
INERT_CALLS = {  # names that official files do contain, with arguments that would cost or do something if they ran
    "builtins.bytearray": b"\x8a\x06\x00\x00\x00\x00\x00\x10",
    "builtins.int": text("9" * 4000),
    "builtins.list": by_global("builtins.object"),
    "_codecs.encode": text("A" * 1000) + text("bz2"),
    "operator.getitem": b"]" + b"K\x00",
    "torch.Size": b"(\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x0ft",
    "torch.device": text("cuda"),
    "numpy.dtype": text("V999999999999"),
    "numpy.ndarray": b"(\x8a\x06\x00\x00\x00\x00\x00\x10t",
    "pathlib.PosixPath": text("/etc/passwd"),
    "collections.Counter": text("x" * 100),
    "collections.defaultdict": by_global("builtins.object"),
    "argparse.Namespace": b"",
    "omegaconf.dictconfig.DictConfig": b"}",
    "fairseq.dataclass.configs.FairseqConfig": b"",
}


def structures(chance: random.Random) -> dict[str, bytes]:
    """Pickled values that cost stack, time or memory where a reader is careless."""
    depth = chance.choice((10_000, 100_000, 300_000))
    doubled = b"](K\x01K\x02e" + b"".join(
        b"q" + bytes([n]) + b"](h" + bytes([n]) + b"h" + bytes([n]) + b"e" for n in range(60)
    )
    boxes = b"".join(by_global("argparse.Namespace") + b")R}" + text("_val") for _ in range(5_000))
    itself = by_global("argparse.Namespace") + b")Rq\x01}" + text("_val") + b"h\x01sb"
    return {
        "lists in lists": b"]" * depth + b"a" * (depth - 1),
        "tuples in tuples": b")" + b"\x85" * depth,
        "dictionaries in dictionaries": (b"}" + text("a")) * (depth // 10) + b"N" + b"s" * (depth // 10),
        "marks without end": b"(" * depth,
        "boxes in boxes": boxes + b"K\x01" + b"sb" * 5_000,
        "a box that holds itself": itself,
        "a list that holds itself": b"]q\x00h\x00a",
        "doubled sixty times": doubled,
        "copies of a long list": b"]("
        + b"(K\x01K\x02t" * 5000
        + b"eq\x00"
        + (by_global("collections.OrderedDict") + b"h\x00\x85R0") * 5000,
        "sets of a long list": b"]("
        + b"K\x01" * 9000
        + b"eq\x00"
        + (by_global("builtins.set") + b"h\x00\x85R0") * 5000,
        "bytes of 2 GB": b"B\xff\xff\xff\x7f",
        "bytes of 8 EB": b"\x8e" + struct.pack("<Q", 2**63),
        "text of 4 EB": b"\x8d" + struct.pack("<Q", 2**62) + b"abc",
        "a number of 2 GB": b"\x8b\xff\xff\xff\x7f",
        "a negative length": b"\x8b" + struct.pack("<i", -5),
        "a number of 300 kB": b"\x8b" + struct.pack("<i", 300_000) + b"\x7f" * 300_000,
        "a number of many digits": b"I" + b"9" * 4000 + b"\n",
        "a long number as key": b"}\x8a\x08" + struct.pack("<q", 2**61 - 1) + b"Ns",
        "a tuple as key": b"}" + b")" + b"\x85" * depth + b"Ns",
        "text of 40 MB": text("a" * (40 * 2**20 if chance.random() < 0.02 else 2**20)),
        "a memo far away": b"Nr\xff\xff\xff\xff0j\xff\xff\xff\xff",
        "a memo never made": b"h\x07",
        "an empty stack": b"00000R",
        "an extension": b"\x82\x01",
        "outside buffers": b"\x97\x98",
        "an outside value by text": b"Pos.system\n",
        "an outside value of code": text("storage") + b"Q",
        "a copy of the top": b"N2",
        "a frame that lies": b"\x95" + struct.pack("<Q", 2**60) + b"N",
        "protocol 99": b"\x80\x63N",
        "a state for a number": b"K\x01}b",
        "a state for a list": b"]}b",
        "no end": b"N" * 10,
        "half a surrogate": b"X\x03\x00\x00\x00\xed\xa0\x80",
        "a name of line breaks": b"c\n\n",
        "a name of 1 MB": text("a" * 2**20) + text("b") + b"\x93",
        "a name of escape codes": text("\x1b[2J\x07") + text("x\r\n") + b"\x93",
    }


HARMLESS = frozenset(  # these may be read: they say nothing that anybody looks at
    "lists in lists/tuples in tuples/dictionaries in dictionaries/boxes in boxes/a box that holds itself/a list that "
    "holds itself/doubled sixty times/text of 40 MB/a number of 300 kB/a memo far away/protocol 99/a frame that lies/"
    "half a surrogate".split("/")
)


# -------------------------------------------------------------------------------------------- containers


def plain_file(value: Any, zipped: bool = True, protocol: int = 2) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    return stream.getvalue()


def hidden(value: bytes, chance: random.Random) -> bytes:
    """The pickle of a checkpoint that could be read, but for this value somewhere in it."""
    place = chance.choice(("args", "cfg", "model", "extra_state", "task_state"))
    weights = b"}" + text("encoder.a") + tensor(("FloatStorage", "0", 12), 0, (3, 4), (4, 1)) + b"s"
    if place == "model":
        return b"\x80\x02}" + text("model") + weights + text("x") + value + b"ss."
    inner = b"}" + text("x") + value + b"s" if chance.random() < 0.5 else value
    return b"\x80\x02}" + text("model") + weights + b"s" + text(place) + inner + b"s."


def zip_with(pickled: bytes, **changes: bytes) -> bytes:
    """An archive as torch writes it, around another pickle."""
    parts = unpacked(plain_file(TENSORS))
    return packed({**parts, "archive/data.pkl": pickled, **changes})


def unpacked(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(parts: dict[str, bytes], **options) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", **options) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return stream.getvalue()


def legacy_with(pickled: bytes) -> bytes:
    """The older row of pickles, around another one."""
    data = plain_file({}, zipped=False)
    head = data[: data.index(b"\x80\x02}", data.index(b"little_endian"))]
    return head + pickled + pickle.dumps(["0"], 2) + struct.pack("<q", 12) + bytes(48)


def tar_with(pickled: bytes) -> bytes:
    """What torch wrote before 0.2."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in ("storages", "tensors", "pickle", "../../canary"):
            entry = tarfile.TarInfo(name)
            entry.size = len(pickled)
            archive.addfile(entry, io.BytesIO(pickled))
    return stream.getvalue()


CONTAINERS = {
    "zip": zip_with,
    "legacy": legacy_with,
    "pickle alone": lambda pickled: pickled,
    "tar": tar_with,
    "zip in zip": lambda pickled: packed({"inner.pt": zip_with(pickled)}),
    "attack beside": lambda pickled: packed({**unpacked(plain_file(TENSORS)), "other/data.pkl": pickled}),
}
CONTAINER_WEIGHTS = (4, 4, 1, 1, 1, 1)


def archives(chance: random.Random) -> dict[str, bytes]:
    """Zip files that lie about themselves."""
    parts = unpacked(plain_file(TENSORS))
    whole = plain_file(TENSORS)
    directory, end = whole.rfind(b"PK\x01\x02"), whole.rfind(b"PK\x06\x06")  # torch writes the 64-bit form too
    return {
        "path upwards": packed({**parts, "../../canary": b"x"}),
        "path from the root": packed({**parts, "/tmp/canary": b"x"}),
        "path of Windows": packed({**parts, "archive\\..\\..\\canary": b"x"}),
        "compressed": packed(parts, compression=zipfile.ZIP_DEFLATED),
        "bomb": bomb(),
        "entry twice": twice(parts),
        "overlapping parts": overlapping(parts),
        "millions of parts": patched(whole, end + 24, struct.pack("<2Q", 2**40, 2**40)),
        "part beyond the end": patched(whole, directory + 20, b"\xff\xff\xff\x7f" * 2),
        "directory elsewhere": patched(whole, end + 48, struct.pack("<Q", chance.randrange(2**40))),
        "storage shorter": packed({**parts, "archive/data/0": b"1234"}),
        "storage longer": packed({**parts, "archive/data/0": bytes(1000)}),
        "storage missing": packed({name: data for name, data in parts.items() if not name.endswith("data/0")}),
        "big-endian": packed({**parts, "archive/byteorder": b"big"}),
        "two pickles": packed({**parts, "other/data.pkl": parts["archive/data.pkl"]}),
        "TorchScript": packed({**parts, "archive/constants.pkl": b"N."}),
        "head of a zip alone": b"PK\x03\x04" + chance.randbytes(200),
    }


@functools.cache
def bomb() -> bytes:
    """50 MiB of zeros in a small file."""
    parts = {**unpacked(plain_file(TENSORS)), "archive/data/0": bytes(50 * 2**20)}
    return packed(parts, compression=zipfile.ZIP_DEFLATED)


def twice(parts: dict[str, bytes]) -> bytes:
    stream = io.BytesIO(packed(parts))
    with zipfile.ZipFile(stream, "a") as archive:
        archive.fp.seek(archive.start_dir)
        info = zipfile.ZipInfo("archive/data.pkl")
        archive.NameToInfo.clear()
        archive.writestr(info, b"\x80\x02}.")
    return stream.getvalue()


def overlapping(parts: dict[str, bytes]) -> bytes:
    """A second storage that is the first one again: a small file may so claim any number of weights."""
    stream = io.BytesIO(packed(parts))
    with zipfile.ZipFile(stream, "a") as archive:
        first = archive.NameToInfo["archive/data/0"]
        again = zipfile.ZipInfo("archive/data/7")
        again.CRC, again.file_size, again.compress_size = first.CRC, first.file_size, first.compress_size
        again.header_offset = first.header_offset
        archive.filelist.append(again)
        archive._didModify = True
    return stream.getvalue()


def patched(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


def lies(chance: random.Random) -> dict[str, bytes]:
    """Tensors that do not fit their storage of four numbers, or storages that do not fit their file."""
    many = chance.choice((2**31, 2**40, 2**47, 2**62))
    ok = ("FloatStorage", "0", 4)
    return {
        "beyond the storage": tensor(ok, 0, (5,), (1,)),
        "offset": tensor(ok, 2, (3,), (1,)),
        "one number many times": tensor(ok, 0, (many,), (0,)),
        "product beyond 64 bits": tensor(ok, 0, (2**24,) * 3, (0,) * 3),
        "negative stride": tensor(ok, 3, (4,), (-1,)),
        "negative size": tensor(ok, 0, (-4,), (1,)),
        "negative offset": tensor(ok, -1, (1,), (1,)),
        "strides missing": tensor(ok, 0, (2, 2), (1,)),
        "hundred dimensions": tensor(ok, 0, (1,) * 100, (1,) * 100),
        "storage of many numbers": tensor(("FloatStorage", "0", many), 0, (4,), (1,)),
        "storage of a negative length": tensor(("FloatStorage", "0", -4), 0, (4,), (1,)),
        "storage elsewhere": tensor(("FloatStorage", "../../etc/passwd", 4), 0, (4,), (1,)),
        "storage of another kind": tensor(("DoubleStorage", "0", 4), 0, (4,), (1,)),
        "storage of no kind": tensor(("UntypedStorage", "0", 4), 0, (4,), (1,)),
        "storage of objects": tensor(("_C.ObjectStorage", "0", 4), 0, (4,), (1,)),
    }


def tensor(storage: tuple[str, str, int], offset: int, shape: tuple, strides: tuple) -> bytes:
    kind, key, length = storage
    place = b"(" + text("storage") + by_global(f"torch.{kind}") + text(key) + text("cpu") + number(length) + b"tQ"
    sizes = b"".join(b"(" + b"".join(map(number, values)) + b"t" for values in (shape, strides))
    return by_global("torch._utils._rebuild_tensor_v2") + b"(" + place + number(offset) + sizes + b"\x89" + b"}tR"


def number(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


# ------------------------------------------------------------------------------------------------ attacks


class AttackTarget(fuzz.Target):
    """One attack an input, all of them in turn."""

    refusals = (UserError,)
    seconds = 20.0
    megabytes = 700

    def __init__(self, folder: Path):
        super().__init__(folder)
        (folder / "canary.py").write_text("open('canary', 'w')")

    def make(self, chance: random.Random) -> tuple[str, bytes, bool]:
        name, value, may_be_read = choose(self.number, chance)
        if may_be_read is None:  # a whole file
            return name, value, name == "file: millions of parts"  # the number is not believed
        container = (
            chance.choices(list(CONTAINERS), weights=CONTAINER_WEIGHTS)[0] if not name.startswith("lie") else "zip"
        )
        return f"{name} in {container}", CONTAINERS[container](hidden(value, chance)), may_be_read

    def attempt(self, made: tuple[str, bytes, bool]) -> str:
        name, data, may_be_read = made
        path = self.folder / "file.pt"
        path.write_bytes(data)
        try:
            checkpoint = read_checkpoint(path)
        finally:
            assert not (self.folder / "canary").exists(), f"{name} was executed"
        assert may_be_read, f"{name} was read: {checkpoint}"
        return "harmless"


@functools.cache
def names() -> list[tuple[str, str]]:
    """Kind and name of every attack."""
    chance = random.Random(0)
    kinds = {"call": CALLS, "inert": INERT_CALLS, "shape": structures(chance)}
    kinds |= {"file": archives(chance), "lie": lies(chance)}
    return [(kind, name) for kind, attacks in kinds.items() for name in attacks]


def choose(position: int, chance: random.Random) -> tuple[str, bytes, bool | None]:
    """Attack of this number: name, bytes, and whether reading it is no fault (None: the bytes are a whole file)."""
    kind, name = names()[position % len(names())]
    if kind == "call":
        return name, call(name, CALLS[name], chance), False
    if kind == "inert":
        return name, by_global(name) + b"(" + INERT_CALLS[name] + b"tR", True
    if kind == "shape":
        return name, structures(chance)[name], name in HARMLESS
    if kind == "lie":
        return f"lie: {name}", lies(chance)[name], False
    return f"file: {name}", archives(chance)[name], None


def attacks(seed: int, amount: int, folder: Path) -> Figures:
    """Every known attack, `amount` times in other containers, places and ways to call."""
    figures = fuzz.try_inputs(AttackTarget, seed, amount * len(names()), folder)
    return {"attacks": len(names()), **figures}


# ---------------------------------------------------------------------------------------------- mutations


class DamageTarget(fuzz.Target):
    """Changed files of both layouts: a few tensors, or a whole tiny network that goes on to the account of weights."""

    refusals = (UserError,)
    megabytes = 700

    def __init__(self, folder: Path):
        super().__init__(folder)
        config = small_checkpoints.make_config()
        weights = small_checkpoints.make_official_weights(config, small_checkpoints.make_weights(config))
        whole = small_checkpoints.write_official(folder / "whole.pt", weights, small_checkpoints.make_arguments())
        content = {"args": ARGUMENTS, "cfg": None, "model": OrderedDict(TENSORS)}
        self.small = [plain_file(content, zipped, protocol) for zipped in (True, False) for protocol in (2, 4)]
        self.parts = unpacked(self.small[0])
        self.whole = unpacked(whole.read_bytes())

    def make(self, chance: random.Random) -> tuple[str, bytes]:
        kind = chance.choice(("zip", "zip", "legacy", "signed", "signed", "whole"))
        if kind == "zip":
            return kind, mutation.mutate(chance.choice(self.small[:2]), chance, self.small)
        if kind == "legacy":
            return kind, mutation.mutate(chance.choice(self.small[2:]), chance, self.small)
        if kind == "whole" and chance.random() < 0.9:  # these take long
            kind = "signed"
        parts, name = (self.whole, "whole/data.pkl") if kind == "whole" else (self.parts, "archive/data.pkl")
        return kind, packed({**parts, name: mutate_pickle(parts[name], chance)})  # with a checksum that fits

    def attempt(self, made: tuple[str, bytes]) -> str:
        kind, data = made
        path = self.folder / "file.pt"
        path.write_bytes(data)
        if kind == "whole":
            match_source(open_source(path))
            return "whole network read"
        loaded = load_all(path, len(data))
        if kind == "zip":
            wrong = [name for name, value in loaded.items() if not is_original(name, value)]
            assert not wrong, f"read with other numbers: {wrong}"
            assert len(loaded) == len(TENSORS), f"read with other names: {loaded.keys()}"
        return f"{kind} read"


def load_all(path: Path, file_size: int) -> dict[str, torch.Tensor]:
    """Every weight of a file; what several weights share counts as often."""
    weights = read_checkpoint(path).weights
    size = sum(stored.shape.numel() * stored.dtype.itemsize for stored in weights.values())
    assert size <= MAX_LOADED, f"{size:,} bytes of weights in a file of {file_size:,}"
    try:
        return {name: stored.load() for name, stored in weights.items()}
    except FileRefused as error:  # found while numbers are read; `convert` makes one line of it
        raise UserError(str(error)) from error


def is_original(name: str, value: torch.Tensor) -> bool:
    original = TENSORS.get(name)
    return original is not None and value.dtype == original.dtype and torch.equal(value, original)


def mutate_pickle(data: bytes, chance: random.Random) -> bytes:
    """Change a pickle by bytes, or by whole instructions put elsewhere."""
    if chance.random() < 0.5:
        return mutation.mutate(data, chance)
    places = [position for _, _, position in pickletools.genops(data)] + [len(data)]
    pieces = [data[start:end] for start, end in pairwise(places)]
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = chance.randrange(len(pieces))
        change = chance.choice(("drop", "double", "move", "swap"))
        if change == "drop":
            pieces[at] = b""
        elif change == "double":
            pieces[at] *= chance.choice((2, 3, 100))
        elif change == "move":
            pieces.insert(chance.randrange(len(pieces)), pieces[at])
        else:
            other = chance.randrange(len(pieces))
            pieces[at], pieces[other] = pieces[other], pieces[at]
    return b"".join(pieces)


def mutations(seed: int, amount: int, folder: Path) -> Figures:
    """Files with damage of every kind."""
    return fuzz.try_inputs(DamageTarget, seed, amount, folder)
