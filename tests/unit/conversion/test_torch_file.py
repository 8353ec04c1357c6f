"""Files of torch.save are read exactly, lazily, and refused in one line when they lie."""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict

import pytest
import torch

from ofa_hf.conversion.fairseq_reader import is_inert
from ofa_hf.conversion.torch_file import FileRefused, TorchFile
from ofa_hf.inert_pickle import PickleRefused


REFUSED = (FileRefused, PickleRefused)


def content(path):
    return TorchFile(path, is_inert).content


def save(path, value, new=True, **kwargs):
    torch.save(value, path, _use_new_zipfile_serialization=new, **kwargs)
    return path


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.float64, torch.bool]
)
def test_tensors_come_back_bit_for_bit(tmp_path, new, protocol, dtype):
    base = (torch.randn(4, 6) * 10).to(dtype)
    tensors = OrderedDict(
        plain=base,
        turned=base.t(),
        part=base[1:3, 2:],
        same=base,
        odd=torch.ones(3, dtype=torch.uint8),  # moves the next storage of a legacy file off its alignment
        parameter=torch.nn.Parameter(base.float()),
        scalar=torch.tensor(7),
        empty=torch.empty(0, 5),
        last=base + base,
    )
    loaded = content(save(tmp_path / "file", tensors, new, pickle_protocol=protocol))
    for name, tensor in tensors.items():
        assert loaded[name].shape == tensor.shape
        assert torch.equal(loaded[name].load(), tensor), name
    assert loaded["plain"].same_place(loaded["same"])
    assert not loaded["plain"].same_place(loaded["part"])


def test_writing_into_a_loaded_tensor_leaves_the_file_alone(tmp_path):
    path = save(tmp_path / "file", {"a": torch.zeros(100)})
    before = path.read_bytes()
    content(path)["a"].load().fill_(1)
    assert path.read_bytes() == before


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_a_file_cut_anywhere_is_refused(tmp_path, new):
    data = save(tmp_path / "file", {"a": torch.randn(50), "b": torch.randn(20)}, new).read_bytes()
    cut = tmp_path / "cut"
    for length in [*range(0, len(data) - 1, 37), len(data) - 1]:
        cut.write_bytes(data[:length])
        with pytest.raises(REFUSED) as error:
            content(cut)
        assert "\n" not in str(error.value)


def test_damaged_numbers_are_found_when_they_are_read(tmp_path):
    path = save(tmp_path / "file", {"a": torch.full((1000,), 3.0)})
    data = path.read_bytes().replace(struct.pack("<f", 3.0), struct.pack("<f", 4.0), 1)
    path.write_bytes(data)
    with pytest.raises(FileRefused, match="checksum"):
        content(path)["a"].load()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>404</html>", "text or web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "text or web page"),
        (b"\xff\xd8\xff\xe0" + bytes(600), "not written by torch.save"),
        (bytes(1) + bytes(256) + b"ustar" + bytes(500), "tar archive"),
        (pickle.dumps({"a": 1}), "not one that torch.save wrote"),
    ],
)
def test_other_files_are_refused_for_what_they_are(tmp_path, data, said):
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(REFUSED, match=said):
        content(path)


def rewrite_zip(path, change, **options):
    """Write an archive again with other parts: `change` maps name → bytes."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    change(parts)
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("name", ["../../evil.py", "/etc/evil", "file\\..\\evil"])
def test_archives_with_paths_are_refused_and_write_nothing(tmp_path, name):
    path = save(tmp_path / "file", {"a": torch.zeros(3)})
    rewrite_zip(path, lambda parts: parts.update({name: b"x"}))
    with pytest.raises(FileRefused, match="path"):
        content(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_compressed_archives_are_refused(tmp_path):
    path = save(tmp_path / "file", {"a": torch.zeros(100_000)})
    rewrite_zip(path, lambda parts: None, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(FileRefused, match="compressed"):
        content(path)


def test_a_storage_of_another_size_than_declared_is_refused(tmp_path):
    path = save(tmp_path / "file", {"a": torch.zeros(10)})
    rewrite_zip(path, lambda parts: parts.update({"file/data/0": bytes(8)}))
    with pytest.raises(PickleRefused, match="40 bytes and the file has 8"):
        content(path)


def test_an_archive_inside_an_archive_is_no_checkpoint(tmp_path):
    inner = save(tmp_path / "inner", {"a": torch.zeros(3)})
    path = tmp_path / "file"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("inner.pt", inner.read_bytes())
    with pytest.raises(FileRefused, match="not one that torch.save wrote"):
        content(path)


def test_a_torchscript_archive_is_named(tmp_path):
    path = save(tmp_path / "file", {"a": torch.zeros(3)})
    rewrite_zip(path, lambda parts: parts.update({"file/constants.pkl": b"x"}))
    with pytest.raises(FileRefused, match="TorchScript"):
        content(path)


class Lie:
    """A tensor whose pickle claims what `arguments` say about a storage of four numbers."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (*self.arguments, False, OrderedDict())


class StoragePickler(pickle.Pickler):
    def persistent_id(self, obj):
        return obj.identity if isinstance(obj, Identity) else None


class Identity:
    def __init__(self, *identity):
        self.identity = identity


def file_with(tmp_path, value):
    """A zip checkpoint whose pickle is that of `value`, with one storage of four float32."""
    path = save(tmp_path / "file", {"a": torch.zeros(4)})
    data = io.BytesIO()
    StoragePickler(data, 2).dump(value)
    return rewrite_zip(path, lambda parts: parts.update({"file/data.pkl": data.getvalue()}))


FOUR = ("storage", torch.FloatStorage, "0", "cpu", 4)


def test_the_maker_of_lies_can_also_tell_the_truth(tmp_path):
    tensor = content(file_with(tmp_path, {"a": Lie(Identity(*FOUR), 0, (2, 2), (2, 1))}))["a"]
    assert torch.equal(tensor.load(), torch.zeros(2, 2))


@pytest.mark.parametrize(
    "value",
    [
        Lie(Identity(*FOUR), 0, (5,), (1,)),  # beyond the storage
        Lie(Identity(*FOUR), 1, (4,), (1,)),
        Lie(Identity(*FOUR), 0, (2**40,), (0,)),  # one number a trillion times
        Lie(Identity(*FOUR), 0, (2**24, 2**24, 2**24), (0, 0, 0)),
        Lie(Identity(*FOUR), 0, (-1,), (1,)),
        Lie(Identity(*FOUR), 0, (2, 2), (-1, 1)),
        Lie(Identity(*FOUR), -1, (2,), (1,)),
        Lie(Identity(*FOUR), 0, (2.0,), (1,)),
        Lie(Identity(*FOUR), 0, (1,) * 100, (1,) * 100),
        Lie(Identity(*FOUR), 0, (2, 2), (1,)),
        Lie(Identity("storage", torch.FloatStorage, "0", "cpu", 2**40), 0, (4,), (1,)),
        Lie(Identity("storage", torch.FloatStorage, "../0", "cpu", 4), 0, (4,), (1,)),
        Lie(Identity("storage", torch.DoubleStorage, "0", "cpu", 4), 0, (4,), (1,)),
        Lie(Identity("storage", torch.FloatStorage, 0, "cpu", 4), 0, (4,), (1,)),
        Lie(Identity("module", torch.FloatStorage, "0", "cpu", 4), 0, (4,), (1,)),
        Lie("no storage", 0, (4,), (1,)),
        [
            Lie(Identity(*FOUR), 0, (4,), (1,)),
            Lie(Identity("storage", torch.HalfStorage, "0", "cpu", 8), 0, (4,), (1,)),
        ],
    ],
)
def test_tensors_that_lie_about_their_size_are_refused(tmp_path, value):
    with pytest.raises(PickleRefused):
        content(file_with(tmp_path, {"a": value}))


def test_legacy_storages_that_lie_about_their_length_are_refused(tmp_path):
    path = save(tmp_path / "file", {"a": torch.ones(6)}, new=False)
    data = path.read_bytes()
    position = len(data) - 6 * 4 - 8
    path.write_bytes(data[:position] + struct.pack("<q", 2**50) + data[position + 8 :])
    with pytest.raises(FileRefused, match="length"):
        content(path)


def test_a_directory_that_claims_millions_of_parts_is_not_believed(tmp_path):
    path = save(tmp_path / "file", {"a": torch.zeros(3)})
    data = bytearray(path.read_bytes())
    end = data.rfind(b"PK\x06\x06")  # torch always writes the 64-bit form
    data[end + 32 : end + 40] = struct.pack("<Q", 2**40)
    path.write_bytes(bytes(data))
    assert torch.equal(content(path)["a"].load(), torch.zeros(3))


def test_mutated_files_are_read_or_refused_but_never_crash(tmp_path):
    import random

    choose = random.Random(0)
    originals = [save(tmp_path / f"{new}", {"a": torch.ones(5)}, new).read_bytes() for new in (True, False)]
    path = tmp_path / "mutated"
    for round_ in range(400):
        data = bytearray(originals[round_ % 2])
        for _ in range(choose.randint(1, 5)):
            data[choose.randrange(len(data))] = choose.randrange(256)
        path.write_bytes(bytes(data))
        try:
            for tensor in content(path).values():
                tensor.load()
        except (*REFUSED, AttributeError):  # AttributeError: a value that is no tensor any more has no load()
            pass


def test_parts_that_share_bytes_are_refused(tmp_path):
    """A small file could claim any number of weights."""
    path = save(tmp_path / "file", {"a": torch.zeros(3), "b": torch.ones(3)})
    rewrite_zip(path, lambda parts: None)
    with zipfile.ZipFile(path, "a") as archive:
        first = archive.NameToInfo["file/data/0"]
        again = zipfile.ZipInfo("file/data/7")
        again.CRC, again.file_size, again.compress_size = first.CRC, first.file_size, first.compress_size
        again.header_offset = first.header_offset
        archive.filelist.append(again)
        archive._didModify = True  # the directory is written again, no part is
    with pytest.raises(FileRefused, match="overlaps"):
        content(path)


def test_tensors_are_read_again_after_their_pages_were_released(tmp_path):
    expected = torch.arange(100_000.0)
    torch.save({"a": expected}, tmp_path / "file.pt")
    file = TorchFile(tmp_path / "file.pt", is_inert)
    tensor = file.content["a"].load()
    assert torch.equal(tensor, expected)
    file.release_pages()
    assert torch.equal(tensor, expected)
    assert torch.equal(file.content["a"].load(), expected)
