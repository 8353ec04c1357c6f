"""Collect exactly the files that a model repository needs, by following references in the files of the folder."""

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.tokenization_utils_base import ADDED_TOKENS_FILE, SPECIAL_TOKENS_MAP_FILE, TOKENIZER_CONFIG_FILE
from transformers.utils import CHAT_TEMPLATE_FILE, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_NAME

from ofa_hf.errors import UserError
from ofa_hf.files import json_text, new_folder, read_json
from ofa_hf.image_processing_ofa import VQGAN_FOLDER
from ofa_hf.model_card.card import current_card
from ofa_hf.model_card.facts import (
    ACCOUNT_FILE,
    CARD_FILE,
    CURVE_FILE,
    EVALUATION_FILE,
    RESULTS_FILE,
    SETTINGS_FILES,
    FolderFacts,
    read_folder,
    without_paths,
)
from ofa_hf.tasks_ofa import checkpoint_task


RELATIVE_IMPORT = re.compile(r"^\s*from\s+\.(\w+)\s+import", re.MULTILINE)  # names that transformers looks for
VOCABULARY_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt")  # of tokenizers in both languages
VQGAN_WEIGHTS = ("diffusion_pytorch_model.safetensors", "code_logits.safetensors")
MAX_HEADER_BYTES = 100_000_000  # bytes, a limit of the safetensors format


@dataclass(frozen=True)
class Bundle:
    """The files to upload: path in the repository → local file, or bytes for generated content."""

    files: Mapping[str, Path | bytes] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(len(one) if isinstance(one, bytes) else one.stat().st_size for one in self.files.values())

    def lines(self) -> list[str]:
        """One line per file: size and name."""
        sizes = {name: Bundle({name: one}).size for name, one in sorted(self.files.items())}
        return [f"{size:>14,}  {name}" for name, size in sizes.items()]

    def stage(self, folder: str | Path) -> Path:
        """Write the files to a folder, which is replaced atomically; large files become hard links if possible.

        Raises:
            UserError: the folder contains other files.
        """
        folder = Path(folder)
        marker = folder.with_name(f".{folder.name}.staged")

        def check(target: Path) -> None:
            if target.exists() and any(target.iterdir()) and not marker.exists():
                raise UserError(f"{target} holds other files, which are never replaced. Pass another --work folder.")

        with new_folder(folder, check) as (new, _):
            for name, one in self.files.items():
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                if isinstance(one, bytes):
                    (new / name).write_bytes(one)
                else:
                    link_or_copy(one, new / name)
            marker.touch()
        return folder


def link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(source, target)


def bundle_of(folder: str | Path, repo_id: str | None = None, license: str | None = None) -> Bundle:
    """The files of a Hub-ready folder that belong in its repository, including its card.

    Args:
        repo_id, license: for the card.

    Raises:
        UserError: a file is missing, damaged, or of another kind of model.
    """
    folder = Path(folder)
    facts = read_folder(folder)
    tokenizer = tokenizer_files(folder)
    described = [facts.config, facts.processor, facts.image_processor, read_json(folder / TOKENIZER_CONFIG_FILE)]
    names = [*SETTINGS_FILES, *weight_files(folder), *tokenizer, *code_files(folder, described), *vqgan_files(facts)]
    names += [name for name in (CHAT_TEMPLATE_FILE, ACCOUNT_FILE, CURVE_FILE) if (folder / name).is_file()]
    files: dict[str, Path | bytes] = {name: folder / name for name in names}
    for name, values in ((RESULTS_FILE, facts.finetuning), (EVALUATION_FILE, facts.evaluation)):
        if values:
            files[name] = json_text(without_paths(values)).encode()
    files[CARD_FILE] = current_card(folder, repo_id, license).encode()
    return Bundle(files)


def need(path: Path, why: str) -> Path:
    """The path of a required file.

    Raises:
        UserError: there is none.
    """
    if not path.is_file():
        raise UserError(
            f"{path.parent} misses {path.name}, {why}. Save the folder again with "
            f"`ofa-hf convert` or `ofa-hf finetune`, or put the file back."
        )
    return path


def vqgan_files(facts: FolderFacts) -> list[str]:
    """The VQGAN of a checkpoint that draws, with diffusers' file names; empty for other checkpoints.

    Raises:
        UserError: one of them is missing or damaged.
    """
    draws = any(checkpoint_task(name, own, facts.language).answer == "image" for name, own in facts.tasks.items())
    if not draws:
        return []
    folder = facts.folder / VQGAN_FOLDER
    for name in VQGAN_WEIGHTS:
        check_weights(need(folder / name, "the VQGAN, without which nothing can be drawn"))
    need(folder / "config.json", "the settings of the VQGAN")
    return [f"{VQGAN_FOLDER}/{name}" for name in ("config.json", *VQGAN_WEIGHTS)]


# ------------------------------------------------------------------------------------------------- code


def code_files(folder: Path, described: Iterable[Mapping[str, Any]]) -> list[str]:
    """Python files named in the settings, and all files that these import."""
    modules, names = {reference.partition(".")[0] for one in described for reference in references(one)}, []
    if not modules:
        raise UserError(
            f"{folder / 'config.json'} names no code (auto_map), so the model could not be loaded. Save the folder "
            f"again with `ofa-hf convert` or `ofa-hf finetune`."
        )
    while modules:
        name = f"{modules.pop()}.py"
        names.append(name)
        text = need(folder / name, "which its settings or its code import").read_text(encoding="utf-8")
        modules |= {sibling for sibling in RELATIVE_IMPORT.findall(text) if f"{sibling}.py" not in names}
    return sorted(names)


def references(settings: Mapping[str, Any]) -> list[str]:
    """`module.Class` of every custom class in a settings file."""
    found = []
    for value in settings.get("auto_map", {}).values():
        found += value if isinstance(value, (list, tuple)) else [value]
    found += [pipeline["impl"] for pipeline in settings.get("custom_pipelines", {}).values()]
    return [reference.rpartition("--")[2] for reference in found if reference]  # `owner/name--module.Class`


# ---------------------------------------------------------------------------------------------- weights


def weight_files(folder: Path) -> list[str]:
    """Weight files: one, or shards with their index; each is checked to be complete."""
    if (folder / SAFE_WEIGHTS_NAME).is_file():
        names, files = [SAFE_WEIGHTS_NAME], [SAFE_WEIGHTS_NAME]
    elif (folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
        shards = set(read_json(folder / SAFE_WEIGHTS_INDEX_NAME).get("weight_map", {}).values())
        files = sorted(shards)
        names = [SAFE_WEIGHTS_INDEX_NAME, *files]
    elif (folder / WEIGHTS_NAME).is_file():
        raise UserError(
            f"{folder} holds {WEIGHTS_NAME}, the old format, which can run code when it is loaded; only safetensors "
            f"are uploaded. Convert it first: python -m hub_upload publish {folder} …"
        )
    else:
        files = [need(folder / SAFE_WEIGHTS_NAME, "the weights").name]
    for name in files:
        check_weights(need(folder / name, "a part of the weights"))
    return names


def check_weights(path: Path) -> None:
    """Raises `UserError` if a safetensors file is not as long as its own header says."""
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(size, MAX_HEADER_BYTES):
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        if 8 + length + max(ends, default=0) != size:
            raise ValueError(f"it has {size:,} bytes, {8 + length + max(ends, default=0):,} are announced")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged or cut off: {error}. Write the folder again before you upload it."
        ) from error


# -------------------------------------------------------------------------------------------- tokenizer


def tokenizer_files(folder: Path) -> list[str]:
    """Files of the tokenizer, by the names that transformers uses."""
    need(folder / VOCABULARY_FILES[0], "the tokenizer")
    present = [name for name in VOCABULARY_FILES if (folder / name).is_file()]
    need(folder / TOKENIZER_CONFIG_FILE, "the tokenizer's settings")
    others = [name for name in (SPECIAL_TOKENS_MAP_FILE, ADDED_TOKENS_FILE) if (folder / name).is_file()]
    return [TOKENIZER_CONFIG_FILE, *present, *others]
