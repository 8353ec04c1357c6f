"""Tensors in a file written by `torch.save`, found without executing anything and read on demand.

Both layouts are supported: the zip archive of torch ≥ 1.6 and the older sequence of pickles. Sizes are checked against
the file before anything is allocated, and tensors are views of the memory-mapped file: unused ones (optimizer states)
are never read.

Source: `torch/serialization.py`, `torch/_utils.py`; zip layout from the PKWARE APPNOTE.
"""

import io
import mmap
import os
import struct
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from ofa_hf.inert_pickle import InertUnpickler, PickleRefused, shown


LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MAX_RECORDS = 100_000
MAX_DIMENSIONS = 16

STORAGE_DTYPES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
REBUILD_TENSOR = frozenset({"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"})
REBUILD_PARAMETER = "torch._utils._rebuild_parameter"
TORCH_NAMES = frozenset(STORAGE_DTYPES) | REBUILD_TENSOR | {REBUILD_PARAMETER}


class FileRefused(Exception):
    """The file cannot be used; the message completes "<file> cannot be converted: "."""


class Record(NamedTuple):
    """The position of a stored file in a zip archive."""

    begin: int
    size: int
    crc: int


@dataclass(eq=False, slots=True)
class Storage:
    """Numbers in the file; `begin` (in bytes) is known once the whole directory has been read."""

    key: str
    dtype: torch.dtype
    length: int
    begin: int = -1
    crc: int | None = None  # None: the layout has no checksum, or it was verified

    @property
    def size(self) -> int:
        return self.length * self.dtype.itemsize


@dataclass(eq=False, slots=True)
class StoredTensor:
    """A tensor still in its file: dtype and shape are known, `load()` maps the numbers."""

    file: "TorchFile" = field(repr=False)
    storage: Storage
    offset: int
    shape: torch.Size
    strides: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.storage.dtype

    def load(self) -> torch.Tensor:
        """The tensor, as a view of the mapped file if its alignment allows; changing it never writes to the file.

        Raises:
            FileRefused: the bytes do not match the checksum that was stored with them.
        """
        return self.file.load(self.storage).as_strided(self.shape, self.strides, self.offset)

    def same_place(self, other: "StoredTensor") -> bool:
        """Whether both are the same numbers in the file."""
        return (self.storage, self.offset, self.shape, self.strides) == (
            other.storage,
            other.offset,
            other.shape,
            other.strides,
        )


class TorchFile:
    """A file written by `torch.save`: `content` is its object as inert data with `StoredTensor` leaves.

    Args:
        path: the file.
        is_allowed: names of classes, besides torch's own for tensors, that may appear in it.

    Raises:
        FileRefused: not such a file, truncated, damaged, or holding anything else than allowed data.
    """

    def __init__(self, path: Path, is_allowed):
        self.storages: dict[str, Storage] = {}
        self._is_allowed = is_allowed
        with open(path, "rb") as file:
            self.size = os.fstat(file.fileno()).st_size
            if not self.size:
                raise FileRefused("it is empty (0 bytes). Download it again")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            head = file.read(8)
            self.layout = "zip" if head[:4] == b"PK\x03\x04" else "legacy"
            self.content = self._read_zip(file) if self.layout == "zip" else self._read_legacy(file, head)

    def release_pages(self) -> None:
        """Release the memory of what was read so far; tensors stay valid and are read again."""
        if hasattr(self._map, "madvise"):  # not available on Windows
            self._map.madvise(mmap.MADV_DONTNEED)

    def load(self, storage: Storage) -> torch.Tensor:
        """All numbers of `storage` as a flat tensor, checked against their checksum the first time."""
        if not storage.length:
            return torch.empty(0, dtype=storage.dtype)
        if storage.crc is not None:
            self._check_crc(storage.key, Record(storage.begin, storage.size, storage.crc))
            storage.crc = None
        if storage.begin % storage.dtype.itemsize:
            data = bytearray(self._map[storage.begin : storage.begin + storage.size])  # not aligned: needs a copy
            return torch.frombuffer(data, dtype=storage.dtype)
        return torch.frombuffer(self._map, dtype=storage.dtype, count=storage.length, offset=storage.begin)

    def _check_crc(self, name: str, record: Record) -> None:
        with memoryview(self._map) as view, view[record.begin : record.begin + record.size] as data:
            if zlib.crc32(data) != record.crc:
                raise FileRefused(f"its part {shown(name)} is damaged: the checksum differs. Download the file again")

    # Zip layout

    def _read_zip(self, file: BinaryIO) -> Any:
        records = read_zip_directory(file, self._map)
        names = [name for name in records if name.endswith("/data.pkl")]
        if any(name.endswith("/constants.pkl") for name in records):
            raise FileRefused("it is a TorchScript archive. Pass the training checkpoint, written by torch.save")
        if len(names) != 1 or names[0].count("/") != 1:
            raise FileRefused("it is a zip archive, but not one that torch.save wrote. Pass the checkpoint itself")
        prefix = names[0].removesuffix("data.pkl")
        order = records.get(f"{prefix}byteorder")
        if order and self._map[order.begin : order.begin + min(order.size, 16)] != b"little":
            raise FileRefused("its numbers are big-endian. Save it again with torch.save on a little-endian machine")
        self._check_crc(names[0], records[names[0]])
        self._records = {name.removeprefix(f"{prefix}data/"): record for name, record in records.items()}
        pickle = records[names[0]]
        data = io.BytesIO(self._map[pickle.begin : pickle.begin + pickle.size])
        return self._unpickler(self._find_zip_storage).load(data, pickle.size)

    def _find_zip_storage(self, storage: Storage) -> None:
        record = self._records.get(storage.key)
        if record is None or record.size != storage.size:
            seen = "no record" if record is None else f"{record.size:,} bytes"
            raise PickleRefused(
                f"its storage {shown(storage.key)} needs {storage.size:,} bytes and the file has {seen}"
            )
        storage.begin, storage.crc = record.begin, record.crc

    # Legacy layout: magic number, protocol, system, content, keys, then length and numbers of each storage

    def _read_legacy(self, file, head: bytes) -> Any:
        if head[:1] != b"\x80":
            raise FileRefused(describe_strange_file(head, self._map))
        file.seek(0)
        plain = InertUnpickler(lambda name: False)
        magic = plain.load(file, self.size)
        if magic != LEGACY_MAGIC or type(magic) is not int:
            raise FileRefused("it is a pickle, but not one that torch.save wrote")
        protocol, system = plain.load(file, self.size), plain.load(file, self.size)
        if protocol != LEGACY_PROTOCOL or not isinstance(system, dict) or system.get("little_endian") is not True:
            raise FileRefused("it was written by an unknown version of torch.save or on a big-endian machine")
        content = self._unpickler(self._check_legacy_storage).load(file, self.size - file.tell())
        keys = plain.load(file, self.size - file.tell())
        self._place_legacy_storages(keys, file.tell())
        return content

    def _check_legacy_storage(self, storage: Storage) -> None:
        if storage.size > self.size:
            raise PickleRefused(
                f"its storage {shown(storage.key)} claims {storage.size:,} bytes, the file has {self.size:,}"
            )

    def _place_legacy_storages(self, keys: Any, position: int) -> None:
        if not isinstance(keys, list) or len(keys) > MAX_RECORDS or not all(isinstance(key, str) for key in keys):
            raise FileRefused("its list of storages is damaged")
        for key in keys:
            storage = self.storages.get(key)
            header = self._map[position : position + 8]
            if storage is None or len(header) < 8 or struct.unpack("<q", header)[0] != storage.length:
                raise FileRefused(f"its storage {shown(key)} is missing, cut off or of another length than declared")
            storage.begin = position + 8
            position = storage.begin + storage.size
            if position > self.size:
                raise FileRefused(f"it is truncated: {position:,} bytes are needed, {self.size:,} are there")
        lost = [key for key, storage in self.storages.items() if storage.begin < 0]
        if lost:
            raise FileRefused(f"its storage {shown(lost[0])} is not in the file")

    # Both layouts

    def _unpickler(self, check_storage) -> InertUnpickler:
        def is_allowed(name: str) -> bool:
            return name in TORCH_NAMES or self._is_allowed(name)

        def find_storage(identity: Any) -> Storage:
            return self._find_storage(identity, check_storage)

        return InertUnpickler(is_allowed, self._call, find_storage)

    def _find_storage(self, identity: Any, check_storage) -> Storage:
        """`("storage", class, key, device, length)`, in old files with a sixth part for views, which is None."""
        if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
            raise PickleRefused("it refers to something that is not a tensor's storage")
        _, kind, key, _, length = identity[:5]
        dtype = STORAGE_DTYPES.get(getattr(kind, "name", None))
        if dtype is None or type(key) is not str or not is_count(length) or any(identity[5:]):
            raise PickleRefused("it declares a storage of an unknown kind")
        storage = self.storages.get(key)
        if storage is None:
            storage = Storage(key, dtype, length)
            check_storage(storage)
            self.storages[key] = storage
        if (storage.dtype, storage.length) != (dtype, length):
            raise PickleRefused(f"it declares its storage {shown(key)} twice, differently")
        return storage

    def _call(self, name: str, arguments: tuple) -> Any:
        if name in REBUILD_TENSOR:
            return self._rebuild_tensor(arguments)
        if name == REBUILD_PARAMETER:
            if not arguments or not isinstance(arguments[0], StoredTensor):
                raise PickleRefused("it makes a parameter of something that is not a tensor")
            return arguments[0]
        if name in STORAGE_DTYPES:
            raise PickleRefused(f"it makes a {name} by itself, which torch.save never writes")
        return None

    def _rebuild_tensor(self, arguments: tuple) -> StoredTensor:
        """A tensor that stays inside its storage and uses each number of it at most once."""
        if len(arguments) < 4 or not isinstance(arguments[0], Storage):
            raise PickleRefused("it makes a tensor of something that is not a storage")
        storage, offset, shape, strides = arguments[:4]
        if not (is_count(offset) and are_counts(shape) and are_counts(strides) and len(shape) == len(strides)):
            raise PickleRefused("it holds a tensor with an impossible shape")
        count, last = 1, offset
        for size, stride in zip(shape, strides):
            count, last = count * size, last + max(size - 1, 0) * stride
        if count and (last >= storage.length or count > storage.length):
            raise PickleRefused(f"it holds a tensor of {count:,} numbers in a storage of {storage.length:,}")
        return StoredTensor(self, storage, offset if count else 0, torch.Size(shape), strides)


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**48


def are_counts(values: Any) -> bool:
    return isinstance(values, tuple) and len(values) <= MAX_DIMENSIONS and all(map(is_count, values))


def read_zip_directory(file: BinaryIO, data: mmap.mmap) -> dict[str, Record]:
    """Names and positions of the stored files of an archive, checked to be inside it.

    Raises:
        FileRefused: cut off, damaged, compressed (torch never compresses: a bomb), or with names that are paths.
    """
    try:
        entries = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, OverflowError, OSError) as error:
        raise FileRefused(f"it is truncated, or its directory is damaged ({error}). Download it again") from error
    records = {}
    for entry in entries:
        name = entry.orig_filename
        if name in records:
            raise FileRefused(f"it holds {shown(name)} twice")
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise FileRefused(f"it holds a part named like a path outside the archive: {shown(name)}")
        if entry.compress_type or entry.flag_bits & 1 or entry.compress_size != entry.file_size:
            raise FileRefused(f"its part {shown(name)} is compressed or encrypted, which torch.save never does")
        records[name] = Record(begin_of_part(entry, data), entry.file_size, entry.CRC)
    refuse_overlaps(records)
    return records


def begin_of_part(entry: zipfile.ZipInfo, data: mmap.mmap) -> int:
    """Position of the first byte of a part, behind its local header."""
    header = data[entry.header_offset : entry.header_offset + 30] if 0 <= entry.header_offset < len(data) else b""
    if header[:4] != b"PK\x03\x04" or len(header) < 30:
        raise FileRefused(f"its part {shown(entry.orig_filename)} is not where the directory says")
    begin = entry.header_offset + 30 + sum(struct.unpack("<2H", header[26:30]))
    if begin + entry.file_size > len(data):
        raise FileRefused(
            f"its part {shown(entry.orig_filename)} claims {entry.file_size:,} bytes, more than the file has"
        )
    return begin


def refuse_overlaps(records: dict[str, Record]) -> None:
    """Refuse parts that share bytes, with which a small file could claim any number of weights."""
    end = 0
    for name, record in sorted(records.items(), key=lambda item: item[1].begin):
        if record.begin < end and record.size:
            raise FileRefused(f"its part {shown(name)} overlaps another, which torch.save never does")
        end = max(end, record.begin + record.size)


def describe_strange_file(head: bytes, data: mmap.mmap) -> str:
    """Describe a file that is not a checkpoint from its first bytes."""
    if head[:1] in (b"<", b"{") or head[:7].isascii() and head[:7].decode("ascii").isprintable():
        return f"it is a text or web page, not a checkpoint (it starts with {shown(head.decode('latin-1'))})"
    if data[257:262] == b"ustar":
        return "it is a tar archive (torch before 0.2 wrote those). Load and save it again with a newer torch"
    return "it was not written by torch.save. Pass an official .pt file or a legacy pytorch_model.bin"
