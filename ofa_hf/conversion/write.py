"""Write the files of a Hub-ready folder; weights are written one by one, so that a large model is never in memory."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import GenerationConfig

from ofa_hf.configuration_ofa import OFAConfig
from ofa_hf.errors import UserError
from ofa_hf.files import hub_files, read_json, write_json


MAX_SHARD_BYTES = 5 * 10**9
TENSORS_AT_ONCE = 100
TOKEN_IDS = {"decoder_start_token_id": 0, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
DTYPE_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}
WEIGHTS_NAME, INDEX_NAME = "model.safetensors", "model.safetensors.index.json"


def rows_first(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in row-major order, as in files, including the strides of dimensions of size 1.

    `contiguous()` leaves those as they are, and torch convolves 1 × 1 kernels in `channels_last` because of them.
    """
    return tensor.contiguous().flatten().view(tensor.shape)


class WeightsToSave:
    """Weights of a source in the chosen dtype, as they will be written.

    Args:
        tensors: names → tensors with `shape` and `load()`.
        counters: BatchNorm step counters to write as 0.
        dtype: of the floating-point weights; integers stay as they are.
    """

    def __init__(self, tensors: Mapping[str, Any], counters: Iterable[str], dtype: torch.dtype):
        self.tensors, self.counters, self.dtype = tensors, frozenset(counters), dtype
        self.names = sorted(self.counters.union(tensors))

    def load(self, name: str) -> torch.Tensor:
        """One tensor, contiguous.

        Raises:
            UserError: a number of the source does not fit into the dtype.
        """
        if name in self.counters:
            return torch.zeros((), dtype=torch.int64)
        tensor = self.tensors[name].load()
        if not tensor.is_floating_point() or tensor.dtype == self.dtype:
            return rows_first(tensor)
        converted = tensor.to(self.dtype)
        if not torch.equal(torch.isfinite(converted), torch.isfinite(tensor)):
            raise UserError(f"The weight {name} holds numbers too large for {self.dtype}. Use float32 or bfloat16.")
        return rows_first(converted)

    def layout(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """dtype and shape as they will be written, without reading numbers."""
        if name in self.counters:
            return torch.int64, ()
        tensor = self.tensors[name]
        return self.dtype if tensor.dtype.is_floating_point else tensor.dtype, tuple(tensor.shape)

    def size(self, name: str) -> int:
        dtype, shape = self.layout(name)
        return dtype.itemsize * torch.Size(shape).numel()

    @property
    def total_size(self) -> int:
        """Bytes of all tensors."""
        return sum(map(self.size, self.names))


def write_weights(folder: Path, weights: WeightsToSave, max_shard: int = MAX_SHARD_BYTES) -> list[str]:
    """Write `model.safetensors`, or shards with an index above `max_shard` bytes; returns the file names."""
    shards = split_into_shards(weights, max_shard)
    if len(shards) == 1:
        write_safetensors(folder / WEIGHTS_NAME, weights, shards[0])
        return [WEIGHTS_NAME]
    files = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for file, names in zip(files, shards):
        write_safetensors(folder / file, weights, names)
    weight_map = {name: file for file, names in zip(files, shards) for name in names}
    write_json(folder / INDEX_NAME, {"metadata": {"total_size": weights.total_size}, "weight_map": weight_map})
    return files


def split_into_shards(weights: WeightsToSave, max_shard: int) -> list[list[str]]:
    """Names in groups of at most `max_shard` bytes; a larger tensor is a group of its own."""
    shards, room = [], 0
    for name in weights.names:
        if not shards or weights.size(name) > room:
            shards.append([])
            room = max_shard
        shards[-1].append(name)
        room -= weights.size(name)
    return shards


def write_safetensors(path: Path, weights: WeightsToSave, names: list[str]) -> None:
    """Write the named tensors one after the other.

    Source: the safetensors format: length of the header, header as JSON, numbers in little-endian order.
    """
    header, position = {"__metadata__": {"format": "pt"}}, 0
    for name in names:
        dtype, shape = weights.layout(name)
        end = position + weights.size(name)
        header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # numbers begin at a multiple of 8 bytes
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            flat = weights.load(name).flatten()
            file.write(memoryview(flat.view(torch.uint8).numpy()))
        file.flush()
        os.fsync(file.fileno())


def compare_weights(folder: Path, files: list[str], weights: WeightsToSave) -> int:
    """Compare what was written with the source, tensor by tensor; returns the number of equal tensors.

    Raises:
        UserError: a tensor differs or is absent: the disk is at fault.
    """
    seen = set()
    for file in files:
        for name, tensor in tensors_of(folder / file):
            seen.add(name)
            if not same_bits(tensor, weights.load(name)):
                raise UserError(f"{file} was not written correctly: {name} differs. Check the disk.")
    if seen != set(weights.names):
        raise UserError(f"{', '.join(files)}: not all weights were written. Check the disk.")
    return len(seen)


def tensors_of(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of a safetensors file, which is mapped repeatedly so that not all of it is in memory."""
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
    for begin in range(0, len(names), TENSORS_AT_ONCE):
        with safe_open(path, framework="pt") as file:
            yield from ((name, file.get_tensor(name)) for name in names[begin : begin + TENSORS_AT_ONCE])


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors are equal to the last bit, NaN included."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    return torch.equal(first.flatten().view(torch.uint8), second.flatten().view(torch.uint8))


def write_config(folder: Path, config: OFAConfig, dtype: torch.dtype) -> None:
    config.architectures = ["OFAForConditionalGeneration"]
    config.dtype = dtype
    config.save_pretrained(folder)


def write_generation_config(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write `generation_config.json` including defaults, which can differ in another version of transformers.

    Raises:
        UserError: settings that contradict each other.
    """
    try:
        GenerationConfig(**{**TOKEN_IDS, **settings}).save_pretrained(folder)
    except (ValueError, TypeError) as error:
        raise UserError(f"The generation settings {dict(settings)} do not fit together: {error}") from error
    path = folder / "generation_config.json"
    write_json(path, dict(sorted({**read_json(path), **TOKEN_IDS, **settings}.items())))


def copy_hub_files(folder: Path) -> list[str]:
    """Copy the code files that the folder needs; returns their names."""
    return [shutil.copyfile(file, folder / file.name).name for file in hub_files()]
