"""Conversion in one straight line: read → configuration → account of the weights → folder → proof → into place."""

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from ofa_hf import OFAImageProcessor, OFAProcessor, __version__  # from here: this registers them for saving
from ofa_hf.catalogue.published import TaskDefaults
from ofa_hf.conversion.configuration import ConfigDecisions
from ofa_hf.conversion.renames import WeightAccount, match_weights, rename_key
from ofa_hf.conversion.sources import ACCOUNT_FILE, OFFICIAL_KIND, Source, open_source
from ofa_hf.conversion.torch_file import FileRefused
from ofa_hf.conversion.verify import Proof, empty_model, prove
from ofa_hf.conversion.vocabulary import build_tokenizer, fetch_vocabulary, load_legacy_tokenizer
from ofa_hf.conversion.workspace import publish, workspace_for
from ofa_hf.conversion.write import (
    WeightsToSave,
    compare_weights,
    copy_hub_files,
    write_config,
    write_generation_config,
    write_json,
    write_weights,
)
from ofa_hf.errors import UserError, full_disk_told
from ofa_hf.publishing.card import write_card


ACCOUNT_VERSION = 1
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ENGLISH_VOCABULARY = 59457
ROOM_BESIDE_WEIGHTS = 100 * 2**20  # bytes for code, tokenizer and the proof


@dataclass
class ConversionAccount:
    """What a conversion did; `values` is what `conversion.json` holds."""

    folder: Path
    values: dict[str, Any]

    def lines(self) -> list[str]:
        """The account for a person, a few lines."""
        source, model, checkpoint = (self.values[part] for part in ("source", "model", "checkpoint"))
        proof, counts = self.values["proof"], self.values["weights"]["counts"]
        lines = [
            f"{source['kind']} {source['name']} → {self.folder}",
            f"size {model['size']}, {model['parameters']:,} parameters, {model['dtype']}",
            "weights: " + ", ".join(f"{number} {word}" for word, number in counts.items() if number),
            f"task {checkpoint['task']}, prompt {checkpoint['prompt']}, {checkpoint['image_size']} px, "
            f"generation {checkpoint['generation']}",
        ]
        lines += [f"note: {note}" for note in self.values["notes"]]
        if proof:
            lines.append(
                f"proof: a fresh process loaded {proof['equal_tensors']} equal tensors; "
                f"logits {proof['logits_shape']} differ by {proof['max_difference']} from the source's"
            )
        return lines


def convert(
    checkpoint: str | Path,
    out: str | Path,
    vocab: str | Path | None = None,
    *,
    dtype: str | torch.dtype | None = None,
    prompt: str | None = None,
    image_size: int | None = None,
    generation: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    verify: bool = True,
    progress: Callable[[str], None] = lambda step: None,
) -> ConversionAccount:
    """Convert a checkpoint into a Hub-ready folder and prove it.

    Args:
        checkpoint: official `.pt`, legacy folder, name of a published checkpoint (downloaded first) or Hub id.
        out: the folder; it appears complete or not at all.
        vocab: Chinese BERT `vocab.txt`; by default the legacy folder's tokenizer, else the file from the Hub.
        dtype: of the saved weights; by default the source's.
        prompt, image_size, generation: replace what belongs to the checkpoint.
        overwrite: replace an earlier conversion at `out`.
        verify: compare the folder, loaded in a fresh process, with the source.
        progress: called with what happens now.

    Raises:
        UserError: anything about the checkpoint, the options or the disk that stands in the way; nothing is written.
    """
    target = Path(out).absolute()
    with (
        full_disk_told(target.parent, "Free some room and convert again; nothing half-written was kept."),
        workspace_for(target, overwrite) as workspace,
    ):
        try:
            job = Conversion(open_source(checkpoint), progress)
            values = job.run(workspace, vocab, as_dtype(dtype), prompt, image_size, generation or {}, verify)
        except FileRefused as error:  # found while numbers were read: damaged bytes
            raise UserError(f"{checkpoint} cannot be converted: {error}.") from error
        publish(workspace / "folder", target, workspace)
    return ConversionAccount(target, values)


class Conversion:
    """One run: the source and what was decided about it."""

    def __init__(self, source: Source, progress: Callable[[str], None]):
        self.source, self.progress = source, progress
        progress(f"reading {source.name}")
        self.decisions = source.decide_config({rename_key(name): tuple(t.shape) for name, t in source.weights.items()})
        expected = {name: tensor.shape for name, tensor in empty_model(self.config).state_dict().items()}
        self.matched, self.weight_account = match_weights(source.weights, expected, self.config, source.name)
        self.task, self.defaults, self.task_reason = source.recognise_task()

    @property
    def config(self):
        return self.decisions.config

    def run(self, workspace: Path, vocab, dtype, prompt, image_size, generation, verify: bool) -> dict[str, Any]:
        """Build the folder in `workspace / "folder"`; returns the account."""
        folder, scratch = workspace / "folder", workspace / "proof"
        folder.mkdir()
        scratch.mkdir()
        weights = WeightsToSave(self.matched, self.weight_account.filled, dtype or self.source_dtype())
        check_room(workspace, weights.total_size)
        settings = self.settings_of(prompt, image_size, generation)
        processor = self.write_small_files(folder, vocab, settings, weights.dtype)
        self.progress("writing weights")
        files = write_weights(folder, weights)
        compare_weights(folder, files, weights)
        proof = None
        if verify:
            self.progress("proving the folder in a fresh process")
            proof = prove(folder, files, self.config, weights, processor, scratch)
        self.progress("writing the account")
        values = self.account(weights, settings, proof)
        write_json(folder / ACCOUNT_FILE, values)
        write_card(folder)
        return values

    def source_dtype(self) -> torch.dtype:
        """The one dtype of the source's weights; float32, which holds them all exactly, where they are mixed."""
        dtypes = {tensor.dtype for tensor in self.matched.values() if tensor.dtype.is_floating_point}
        return dtypes.pop() if len(dtypes) == 1 else torch.float32

    def settings_of(self, prompt: str | None, image_size: int | None, generation: Mapping[str, Any]) -> TaskDefaults:
        """What belongs to this checkpoint, with the caller's own choices on top.

        Raises:
            UserError: a choice the model cannot work with.
        """
        largest = 16 * self.config.image_bucket_size
        size = min(self.defaults.image_size, largest) if image_size is None else image_size
        if not 16 <= size <= largest:
            raise UserError(f"Images of {size} pixels do not fit {self.source.name}. Accepted: 16 to {largest}.")
        chosen = {**self.defaults.generation, **generation}
        if chosen["num_beams"] == 1:
            chosen.pop("early_stopping", None)
        limit = self.config.max_position_embeddings
        if generation.get("max_length", 0) > limit:
            raise UserError(
                f"A maximum length of {generation['max_length']} exceeds the {limit} positions of the model."
            )
        chosen["max_length"] = min(chosen["max_length"], limit)
        return TaskDefaults(self.defaults.prompt if prompt is None else prompt, size, chosen)

    def write_small_files(self, folder: Path, vocab, settings: TaskDefaults, dtype: torch.dtype) -> OFAProcessor:
        """Everything but the weights and the account; returns the processor, made from the source."""
        tokenizer = self.make_tokenizer(vocab)
        if len(tokenizer) != self.config.vocab_size:
            english = " It is an English checkpoint." if self.config.vocab_size == ENGLISH_VOCABULARY else ""
            raise UserError(
                f"The vocabulary gives {len(tokenizer):,} symbols, but {self.source.name} has "
                f"{self.config.vocab_size:,}.{english} Give the vocab.txt of this checkpoint with "
                f"--vocab; the Chinese ones have 21,128 lines."
            )
        limit = self.config.max_position_embeddings
        image_processor = OFAImageProcessor(size=settings.image_size)
        tasks = {"caption": {"prompt": settings.prompt}}
        processor = OFAProcessor(image_processor, tokenizer, tasks, max_prompt_tokens=limit, max_target_tokens=limit)
        write_config(folder, self.config, dtype)
        write_generation_config(folder, settings.generation)
        processor.save_pretrained(folder)
        copy_hub_files(folder)
        return processor

    def make_tokenizer(self, vocab: str | Path | None):
        """The tokenizer the checkpoint was trained with; the two projects mark unknown text differently."""
        official = self.source.kind == OFFICIAL_KIND
        if vocab is None and self.source.has_tokenizer:
            return load_legacy_tokenizer(self.source.folder)
        return build_tokenizer(fetch_vocabulary() if vocab is None else vocab, "[UNK]" if official else "<unk>")

    def account(self, weights: WeightsToSave, settings: TaskDefaults, proof: Proof | None) -> dict[str, Any]:
        source, published = self.source, self.source.published
        return {
            "version": ACCOUNT_VERSION,
            "source": {
                "kind": source.kind,
                "name": source.name,
                "file": source.weights_file.name,
                "layout": source.layout,
                "bytes": source.weights_file.stat().st_size,
                "sha256": self.checked_digest(),
                "published_as": published and published.name,
                "url": published and (published.url or f"https://huggingface.co/{published.hub_id}"),
                "ignored": source.ignored,
            },
            "model": {
                "size": self.decisions.size,
                "parameters": self.count_parameters(),
                "dtype": str(weights.dtype).removeprefix("torch."),
            },
            "published": published.facts() if published else {},
            "config": describe_config(self.decisions),
            "checkpoint": {"task": self.task, "recognised_by": self.task_reason} | asdict(settings),
            "weights": describe_weights(self.weight_account),
            "proof": asdict(proof) if proof else None,
            "notes": self.decisions.notes,
            "versions": {
                "ofa_hf": __version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
        }

    def count_parameters(self) -> int:
        """Trained numbers, tied ones once; BatchNorm's statistics are none."""
        return sum(parameter.numel() for parameter in set(empty_model(self.config).parameters()))

    def checked_digest(self) -> str:
        """sha256 of the source file, compared with the published one where that is known."""
        published, digest = self.source.published, file_digest(self.source.weights_file)
        if published and published.sha256 and published.sha256 != digest:
            raise UserError(
                f"{self.source.weights_file} has sha256 {digest}, but {published.name} is {published.sha256}. "
                f"Delete the file and download it again, or rename it if it is one of your own."
            )
        return digest


def describe_config(decisions: ConfigDecisions) -> dict[str, list[str]]:
    return {
        "read_off_the_weights": decisions.from_shapes,
        "settings_confirmed_by_the_weights": decisions.confirmed,
        "from_settings": decisions.from_settings,
        "defaults": decisions.defaults,
    }


def describe_weights(account: WeightAccount) -> dict[str, Any]:
    names = asdict(account)
    return {"counts": {word: len(entries) for word, entries in names.items()}, **names}


def as_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A dtype by name."""
    dtype = DTYPES.get(dtype, dtype)
    if dtype is not None and dtype not in DTYPES.values():
        raise UserError(f"Weights cannot be saved as {dtype}. Accepted: {', '.join(DTYPES)}.")
    return dtype


def check_room(folder: Path, weights_size: int) -> None:
    """Refuse to begin what the disk cannot hold."""
    needed, free = weights_size + ROOM_BESIDE_WEIGHTS, shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(f"The disk of {folder.parent} has {free:,} bytes left, {needed:,} are needed. Make room.")


def file_digest(path: Path) -> str:
    """sha256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
