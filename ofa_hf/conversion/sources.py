"""Find a checkpoint (file, folder, catalogue name, Hub id) and open its settings and weights."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ofa_hf.catalogue.published import (
    CATALOGUE,
    LEGACY,
    PublishedCheckpoint,
    TaskDefaults,
    find_published,
    nearest_names,
    recognize_task,
    settings_of_task,
)
from ofa_hf.conversion.configuration import ConfigDecisions, config_from_fairseq, config_from_legacy
from ofa_hf.conversion.download import download_file, download_repository
from ofa_hf.conversion.fairseq_reader import read_checkpoint
from ofa_hf.conversion.torch_file import StoredTensor
from ofa_hf.errors import UserError
from ofa_hf.files import read_json, refuse_pointer
from ofa_hf.inert_pickle import shown
from ofa_hf.model_card.facts import ACCOUNT_FILE


OFFICIAL_KIND, LEGACY_KIND = "official fairseq checkpoint", "legacy OFA folder"
OUR_FILES = (ACCOUNT_FILE, "processor_config.json")  # either one shows that this package wrote the folder
LEGACY_WEIGHTS = ("pytorch_model.bin", "model.safetensors")
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")
MAX_CONFIG_BYTES = 1_000_000
SAFETENSORS_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}


@dataclass
class Source:
    """A checkpoint whose weights have not been read yet."""

    kind: str
    name: str  # file name, folder name or Hub id, for messages
    weights_file: Path
    layout: str  # how the weights are stored: "zip", "legacy" (both torch.save) or "safetensors"
    weights: Mapping[str, Any]  # names → tensors with dtype, shape and load()
    settings: dict[str, Any]  # fairseq's arguments or the fields of a legacy config.json
    ignored: list[str] = field(default_factory=list)
    folder: Path | None = None  # folder of a legacy checkpoint
    published: PublishedCheckpoint | None = None

    def release_pages(self) -> None:
        """Release the memory of the weights read so far."""
        for file in {tensor.file for tensor in self.weights.values() if isinstance(tensor, StoredTensor)}:
            file.release_pages()

    def decide_config(self, shapes: Mapping[str, tuple]) -> ConfigDecisions:
        """Configuration from settings and shapes (our names → shapes)."""
        decide = config_from_fairseq if self.kind == OFFICIAL_KIND else config_from_legacy
        return decide(self.settings, shapes, self.name)

    def recognize_task(self, language: str, wanted: str | None = None) -> tuple[TaskDefaults, str]:
        """What the checkpoint, whose texts are in `language`, was trained for, and the reason for the choice.

        Args:
            wanted: a task given by the user, which takes precedence.
        """
        if self.kind == OFFICIAL_KIND:
            return recognize_task(self.settings, self.name, language, wanted)
        if wanted is not None:
            return settings_of_task(wanted, language), "the task was given"
        published = self.published
        if published and published.hub_id and published.defaults.language == language:
            return published.defaults, f"name {self.name}"
        return LEGACY[language], "legacy folders caption"

    @property
    def has_tokenizer(self) -> bool:
        """Whether the folder holds a Chinese tokenizer; an English one is `has_english_vocabulary`."""
        return self.folder is not None and any((self.folder / name).is_file() for name in TOKENIZER_FILES)


@dataclass
class SafetensorsTensor:
    """A tensor in a safetensors file, with the interface of `StoredTensor`."""

    handle: Any = field(repr=False)
    name: str
    dtype: torch.dtype | None
    shape: torch.Size

    def load(self) -> torch.Tensor:
        return self.handle.get_tensor(self.name)

    def same_place(self, other: Any) -> bool:
        return self is other


def open_source(checkpoint: str | Path) -> Source:
    """Find and open a checkpoint, downloading a published one first.

    Args:
        checkpoint: an official `.pt` file, a legacy folder or its weights file, a name of the catalogue, or a Hub id.

    Raises:
        UserError: nothing of the kind, or a file that cannot be used.
    """
    path = Path(checkpoint)
    if path.is_dir():
        return open_folder(path, path.resolve().name)
    if path.exists():
        return open_file(path)
    name = str(checkpoint)
    published = CATALOGUE.get(name)
    if published and published.url:
        return open_file(download_file(published.url))
    if published or re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) and path.suffix not in (".pt", ".bin"):
        return open_folder(download_repository(name), name)
    raise UserError(explain_missing(name))


def explain_missing(name: str) -> str:
    """Advice for a checkpoint that was not found."""
    published = find_published(name) if name.endswith(".pt") else None
    if published and published.url:
        return f"No checkpoint file at {name}. Pass its path, or {published.name} without .pt to download it first."
    near = nearest_names(name)
    meant = f" Did you mean {' or '.join(near)}?" if near else ""
    return (
        f"No checkpoint at {name}. Accepted: a .pt file, a legacy folder, a Hub id, or a published name.{meant} "
        f"`python -m hub_upload catalogue` lists the {len(CATALOGUE)} published ones."
    )


def open_file(path: Path) -> Source:
    """An official `.pt`, or the weights file of a legacy folder."""
    refuse_pointer(path)
    if path.suffix == ".safetensors" or (path.parent / "config.json").is_file() and path.name in LEGACY_WEIGHTS:
        return open_folder(path.parent, path.resolve().parent.name)
    checkpoint = read_checkpoint(path)
    return Source(
        OFFICIAL_KIND,
        path.name,
        path,
        checkpoint.layout,
        checkpoint.weights,
        checkpoint.settings,
        checkpoint.ignored,
        published=find_published(path.name),
    )


def open_folder(folder: Path, name: str) -> Source:
    """A legacy folder of OFA-Chinese or of OFA-Sys (2022).

    It holds `config.json` and `pytorch_model.bin` or `model.safetensors`.
    """
    if any((folder / name).exists() for name in OUR_FILES):
        raise UserError(f"{folder} needs no conversion: ofa-hf wrote it. Load it with from_pretrained.")
    file = next((folder / weights for weights in LEGACY_WEIGHTS if (folder / weights).is_file()), None)
    if file is None or not (folder / "config.json").is_file():
        seen = ", ".join(sorted(shown(entry.name) for entry in folder.iterdir())[:8]) or "nothing"
        raise UserError(
            f"{folder} is not a legacy OFA folder: it holds {seen}; expected config.json and pytorch_model.bin. "
            f"For an official checkpoint pass the .pt file itself."
        )
    refuse_pointer(file)
    settings = read_json(folder / "config.json", "Expected the config.json of a legacy OFA folder.", MAX_CONFIG_BYTES)
    source = Source(LEGACY_KIND, name, file, "safetensors", {}, settings, folder=folder)
    source.published = find_published(name)
    if file.suffix == ".safetensors":
        source.weights = read_safetensors(file)
    else:
        checkpoint = read_checkpoint(file)
        source.layout, source.weights, source.ignored = checkpoint.layout, checkpoint.weights, checkpoint.ignored
    return source


def read_safetensors(path: Path) -> dict[str, SafetensorsTensor]:
    """Names → tensors of a safetensors file, not read yet."""
    try:
        handle = safe_open(path, framework="pt")
        slices = {name: handle.get_slice(name) for name in handle.keys()}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} cannot be converted: it is damaged or truncated ({error}). Download it again, and compare its "
            f"size with the one its page shows: {path.stat().st_size:,} bytes are here."
        ) from error
    return {
        name: SafetensorsTensor(handle, name, SAFETENSORS_DTYPES.get(part.get_dtype()), torch.Size(part.get_shape()))
        for name, part in slices.items()
    }
