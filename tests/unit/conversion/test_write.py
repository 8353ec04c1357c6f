"""Weights are written exactly, in the official format, whole or in shards."""

import json

import pytest
import torch
from safetensors.torch import load_file

from ofa_hf.conversion.write import (
    WeightsToSave,
    compare_weights,
    copy_hub_files,
    write_generation_config,
    write_weights,
)
from ofa_hf.errors import UserError
from ofa_hf.files import hub_files


class InMemory:
    def __init__(self, tensor):
        self.tensor, self.dtype, self.shape = tensor, tensor.dtype, tensor.shape

    def load(self):
        return self.tensor


@pytest.fixture
def tensors():
    return {"b": torch.randn(3, 5).t(), "a": torch.randn(7), "steps": torch.tensor(3), "c": torch.empty(0, 2)}


def weights_of(tensors, dtype=torch.float32, counters=()):
    return WeightsToSave({name: InMemory(tensor) for name, tensor in tensors.items()}, counters, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_official_library_reads_what_was_written(tensors, tmp_path, dtype):
    weights = weights_of(tensors, dtype, ["new.num_batches_tracked"])
    assert write_weights(tmp_path, weights) == ["model.safetensors"]
    loaded = load_file(tmp_path / "model.safetensors")
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor.to(dtype) if tensor.is_floating_point() else tensor), name
    assert loaded["new.num_batches_tracked"] == 0
    assert compare_weights(tmp_path, ["model.safetensors"], weights) == 5


def test_large_models_are_sharded_with_an_index(tensors, tmp_path):
    weights = weights_of(tensors)
    files = write_weights(tmp_path, weights, max_shard=64)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files)
    assert len(files) == 3
    assert index["metadata"]["total_size"] == weights.total_size
    assert compare_weights(tmp_path, files, weights) == 4


def test_a_flipped_bit_on_disk_is_found(tensors, tmp_path):
    weights = weights_of(tensors)
    write_weights(tmp_path, weights)
    data = bytearray((tmp_path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(bytes(data))
    with pytest.raises(UserError, match="differs"):
        compare_weights(tmp_path, ["model.safetensors"], weights)


def test_numbers_that_do_not_fit_the_dtype_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"weight a holds numbers too large for torch.float16"):
        write_weights(tmp_path, weights_of({"a": torch.tensor([1e30])}, torch.float16))


def test_kernels_kept_channels_last_are_loaded_in_the_order_of_the_file():
    kernel = torch.randn(4, 8, 1, 1).to(memory_format=torch.channels_last)
    loaded = weights_of({"kernel": kernel}).load("kernel")
    assert kernel.is_contiguous()
    assert torch.equal(loaded, kernel)
    assert loaded.stride() == torch.empty(4, 8, 1, 1).stride() != kernel.stride()


def test_numbers_that_are_none_survive_bit_for_bit(tmp_path):
    weights = weights_of({"a": torch.tensor([float("nan"), float("inf"), -0.0])})
    write_weights(tmp_path, weights)
    assert compare_weights(tmp_path, ["model.safetensors"], weights) == 1


def test_generation_settings_that_contradict_each_other_are_refused(tmp_path):
    with pytest.raises(UserError, match="do not fit together"):
        write_generation_config(tmp_path, {"num_beams": 1, "early_stopping": True, "num_return_sequences": 3})


def test_exactly_the_hub_files_are_copied(tmp_path):
    assert copy_hub_files(tmp_path) == [file.name for file in hub_files()]
    assert all((tmp_path / file.name).read_bytes() == file.read_bytes() for file in hub_files())
