"""Conversion in one straight line: read → configuration → account of the weights → folder → verify → into place."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from ofa_hf import OFAImageProcessor, OFAProcessor, __version__  # from here: this registers them for saving
from ofa_hf.boxes_ofa import NUM_PLACES
from ofa_hf.catalogue.published import CATALOGUE, TaskDefaults
from ofa_hf.conversion.archive import unpack
from ofa_hf.conversion.configuration import ConfigDecisions
from ofa_hf.conversion.download import download_file
from ofa_hf.conversion.english_vocabulary import (
    build_english_tokenizer,
    fetch_byte_pairs,
    has_english_vocabulary,
    read_byte_pairs,
)
from ofa_hf.conversion.renames import WeightAccount, match_weights, rename_key
from ofa_hf.conversion.sources import OFFICIAL_KIND, Source, open_source
from ofa_hf.conversion.tasks import fitting, name_pipelines, offered_tasks, recognise_task
from ofa_hf.conversion.torch_file import FileRefused
from ofa_hf.conversion.verify import Verification, empty_model, verify_written
from ofa_hf.conversion.vocabulary import NUM_CODES, build_tokenizer, fetch_vocabulary, load_legacy_tokenizer
from ofa_hf.conversion.vqgan import VQGANSource, find_diffusers, with_vqgan
from ofa_hf.conversion.write import (
    WeightsToSave,
    compare_weights,
    copy_hub_files,
    write_config,
    write_generation_config,
    write_weights,
)
from ofa_hf.errors import UserError, explain_full_disk
from ofa_hf.files import file_digest, new_folder, write_json
from ofa_hf.model_card.card import write_card
from ofa_hf.model_card.facts import ACCOUNT_FILE
from ofa_hf.tasks_ofa import SLOT, TASKS


ACCOUNT_VERSION = 1
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ENGLISH_VOCABULARY = 59457
OF_SAMPLES = ("top_k", "top_p", "temperature")  # settings that a search does not have
VOCABULARY_LANGUAGES = {30325: "Chinese", ENGLISH_VOCABULARY: "English"}
ROOM_FOR_OTHER_FILES = 100 * 2**20  # bytes for code, tokenizer and verification


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
        others = [name for name in checkpoint["tasks"] if name != checkpoint["task"]]
        lines += [f"also trained for {', '.join(others)}"] if others else []
        lines += [f"note: {note}" for note in self.values["notes"]]
        if proof:
            lines.append(
                f"verified: a fresh process loaded {proof['equal_tensors']} equal tensors; "
                f"logits {proof['logits_shape']} differ by {proof['max_difference']} from the source's"
            )
        return lines


def convert(
    checkpoint: str | Path,
    out: str | Path,
    vocab: str | Path | None = None,
    *,
    dtype: str | torch.dtype | None = None,
    task: str | None = None,
    prompt: str | None = None,
    image_size: int | None = None,
    generation: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    verify: bool = True,
    vqgan: str | Path | None = None,
    vqgan_config: str | Path | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> ConversionAccount:
    """Convert a checkpoint into a Hub-ready folder and verify it.

    Args:
        checkpoint: official `.pt`, legacy folder, name of a published checkpoint (downloaded first) or Hub id; or the
            published archive of a checkpoint that draws, which has its VQGAN with it.
        out: the folder; it appears whole or not at all.
        vocab: Chinese BERT `vocab.txt`; or the folder with the English `encoder.json`, `vocab.bpe` and `dict.txt`, or
            `vocab.json` and `merges.txt`. By default the legacy folder's tokenizer, else the files from the Hub.
        dtype: of the saved weights; by default the source's.
        task: what the checkpoint was trained for, a name of `TASKS`; by default recognized from the file.
        prompt, image_size, generation: replace what belongs to the checkpoint.
        overwrite: replace an earlier conversion at `out`.
        verify: compare the folder, loaded in a fresh process, with the source.
        vqgan, vqgan_config: `last.ckpt` and `model.yaml` of the VQGAN, which a checkpoint that draws needs.
        progress: called with what happens now.

    Raises:
        UserError: the checkpoint, the options or the disk do not allow it; nothing is written.
    """
    target = Path(out).absolute()
    full_disk = explain_full_disk(target.parent, "Free some room and convert again; nothing half-written was kept.")
    check_before_download(checkpoint, partial(check_target, target, overwrite), task, (vqgan, vqgan_config))
    if archive := archive_of(checkpoint):
        refuse_other_vqgan(archive, (vqgan, vqgan_config))
        options = {"dtype": dtype, "task": task, "prompt": prompt, "image_size": image_size, "generation": generation}
        options |= {"overwrite": overwrite, "verify": verify, "progress": progress}
        check_target(target, overwrite)
        progress(f"unpacking {archive.name}")
        target.parent.mkdir(parents=True, exist_ok=True)
        with full_disk, unpack(archive, target.parent) as files:
            try:
                return convert(files.checkpoint, out, vocab, **options, vqgan=files.vqgan, vqgan_config=files.settings)
            except UserError as error:  # about a file that is gone by then
                raise UserError(str(error).replace(str(files.checkpoint.parent), str(archive))) from error
    with full_disk, new_folder(target, partial(check_target, overwrite=overwrite)) as (folder, scratch):
        try:
            job = Conversion(open_source(checkpoint), progress, (vqgan, vqgan_config))
            options = {"task": task, "prompt": prompt, "image_size": image_size, "generation": generation or {}}
            values = job.run(folder, scratch, vocab, as_dtype(dtype), options, verify)
        except FileRefused as error:  # found while numbers were read: damaged bytes
            raise UserError(f"{checkpoint} cannot be converted: {error}.") from error
    return ConversionAccount(target, values)


def check_before_download(
    checkpoint: str | Path,
    check_target: Callable[[], None],
    task: str | None,
    vqgan: tuple[str | Path | None, str | Path | None],
) -> None:
    """Refuse what would be refused after the download of a published checkpoint.

    Args:
        check_target: raises `UserError` if the folder must not be replaced.
        task: that the user names.

    Raises:
        UserError: the folder must not be replaced, or the VQGAN of a checkpoint that draws is missing or too many.
    """
    published = CATALOGUE.get(str(checkpoint))
    if published is None or not published.url or Path(checkpoint).exists():
        return
    check_target()
    if published.url.endswith(".zip"):
        refuse_other_vqgan(checkpoint, vqgan)
        find_diffusers()
    elif task in (None, published.defaults.task) and TASKS[published.defaults.task].answer == "image":
        with_vqgan(*vqgan)


def refuse_other_vqgan(archive: str | Path, vqgan: tuple[str | Path | None, str | Path | None]) -> None:
    if any(vqgan):
        raise UserError(f"{archive} has its VQGAN with it. Leave out --vqgan and --vqgan-config.")


def archive_of(checkpoint: str | Path) -> Path | None:
    """The archive that a path or a published name means, downloaded first; None if it means something else."""
    published = CATALOGUE.get(str(checkpoint))
    if published and (published.url or "").endswith(".zip") and not Path(checkpoint).exists():
        return download_file(published.url)
    path = Path(checkpoint)
    return path if path.suffix == ".zip" and path.is_file() else None


def check_target(target: Path, overwrite: bool) -> None:
    """Refuse to replace anything but an earlier conversion, and that only when asked."""
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"{target} is a file. Give a folder that does not exist yet.")
    if any(target.iterdir()) and not (target / ACCOUNT_FILE).is_file():
        raise UserError(
            f"{target} holds other files, which are never replaced. Give a folder that does not exist yet."
        )
    if any(target.iterdir()) and not overwrite:
        raise UserError(
            f"{target} holds an earlier conversion. Add --overwrite to replace it, or give another folder."
        )


@dataclass
class MatchedSource:
    """A source whose every weight has its place in the network."""

    decisions: ConfigDecisions
    tensors: dict[str, Any]  # names here → tensors of the source, not read yet
    account: WeightAccount

    def weights_to_save(self, dtype: torch.dtype | None = None) -> WeightsToSave:
        """The weights in `dtype`, by default the source's own; float32, which holds them all exactly, if mixed."""
        dtypes = {tensor.dtype for tensor in self.tensors.values() if tensor.dtype.is_floating_point}
        own = dtypes.pop() if len(dtypes) == 1 else torch.float32
        return WeightsToSave(self.tensors, self.account.filled, dtype or own)


def match_source(source: Source) -> MatchedSource:
    """Decide the configuration of a source and give every weight its name here.

    Raises:
        UserError: it is not an OFA network, or a weight is unknown, missing or of another shape.
    """
    decisions = source.decide_config({rename_key(name): tuple(t.shape) for name, t in source.weights.items()})
    expected = {name: tensor.shape for name, tensor in empty_model(decisions.config).state_dict().items()}
    return MatchedSource(decisions, *match_weights(source.weights, expected, decisions.config, source.name))


class Conversion:
    """One run: the source and what was decided about it."""

    def __init__(
        self,
        source: Source,
        progress: Callable[[str], None],
        vqgan: tuple[str | Path | None, str | Path | None] = (None, None),
    ):
        self.source, self.progress, self.vqgan_files = source, progress, vqgan
        self.vqgan: VQGANSource | None = None
        progress(f"reading {source.name}")
        self.matched = match_source(source)
        self.decisions, self.config = self.matched.decisions, self.matched.decisions.config

    def run(self, folder: Path, scratch: Path, vocab, dtype, options: dict[str, Any], verify: bool) -> dict[str, Any]:
        """Build the folder; returns the account. `options` are `task`, `prompt`, `image_size`, `generation`."""
        weights = self.matched.weights_to_save(dtype)
        check_room(folder, weights.total_size)
        tokenizer, language = self.make_tokenizer(vocab)
        self.defaults, self.task_reason = recognise_task(self.source, language, options.pop("task"), options["prompt"])
        settings = self.settings_of(**options)
        self.open_vqgan(settings)
        processor = self.write_small_files(folder, tokenizer, settings, weights.dtype)
        self.progress("writing weights")
        compare_weights(folder, write_weights(folder, weights), weights)
        self.source.release_pages()
        verification = None
        if verify:
            self.progress("verifying the folder in a fresh process")
            verification = verify_written(folder, self.config, weights, processor, scratch)
        drawing = self.vqgan and self.vqgan.write(folder, self.config.code_image_size)
        self.progress("writing the account")
        values = self.account(weights, settings, verification) | ({"vqgan": drawing} if drawing else {})
        write_json(folder / ACCOUNT_FILE, values)
        write_card(folder)
        return values

    def settings_of(self, prompt: str | None, image_size: int | None, generation: Mapping[str, Any]) -> TaskDefaults:
        """What belongs to this checkpoint, with the caller's own choices on top.

        Raises:
            UserError: a choice the model cannot work with.
        """
        chosen = {**self.defaults.generation, **generation}
        if chosen["num_beams"] < 1:
            raise UserError(f"A search with {chosen['num_beams']} beams finds nothing. Accepted: 1 or more.")
        if chosen["num_beams"] == 1:
            chosen.pop("early_stopping", None)
        if TASKS[self.defaults.task].answer == "image":
            return self.settings_of_drawing(prompt, image_size, chosen)
        largest = 16 * self.config.image_bucket_size
        size = min(self.defaults.image_size, largest) if image_size is None else image_size
        if not 16 <= size <= largest:
            raise UserError(f"Images of {size} pixels do not fit {self.source.name}. Accepted: 16 to {largest}.")
        limit = self.config.max_position_embeddings
        if generation.get("max_length", 0) > limit:
            raise UserError(
                f"A maximum length of {generation['max_length']} exceeds the {limit} positions of the model."
            )
        if "max_new_tokens" in chosen and "max_length" in generation:  # which counts start and end
            chosen["max_new_tokens"] = max(chosen.pop("max_length") - 2, 1)
        chosen |= fitting(chosen, limit)
        prompt = self.defaults.prompt if prompt is None else prompt
        return replace(self.defaults, prompt=prompt, image_size=size, generation=chosen)

    def settings_of_drawing(self, prompt: str | None, image_size: int | None, generation: dict) -> TaskDefaults:
        """Settings of a checkpoint that draws, whose images have the size that its network has places for."""
        side = self.defaults.image_size if image_size is None else image_size
        if not 8 <= side <= 8 * self.config.image_bucket_size or side % 8:
            raise UserError(
                f"Images of {side} pixels cannot be drawn by {self.source.name}. Accepted: multiples of 8 up to "
                f"{8 * self.config.image_bucket_size}; name the size with --image-size."
            )
        self.config.code_image_size = side  # a table of positions alone depends on it, which is computed anew
        generation |= {"max_length": (side // 8) ** 2 + 2, "do_sample": generation["num_beams"] == 1}
        if not generation["do_sample"]:
            generation = {name: value for name, value in generation.items() if name not in OF_SAMPLES}
        prompt = self.defaults.prompt if prompt is None else prompt
        if len(slots := set(SLOT.findall(prompt))) != 1:
            seen = f"{len(slots)} slots" if slots else "no slot"
            raise UserError(f"The prompt {prompt!r} has {seen}. To draw it needs one for the text, such as {{text}}.")
        changes = {} if side == TASKS[self.defaults.task].image["size"] else {"image": {"size": side}}
        return replace(self.defaults, prompt=prompt, image_size=side, generation=generation, changes=changes)

    def open_vqgan(self, settings: TaskDefaults) -> None:
        """Read the VQGAN of a checkpoint that draws.

        Raises:
            UserError: there is none, it does not fit, or the checkpoint does not draw.
        """
        if TASKS[settings.task].answer == "image":
            self.vqgan = with_vqgan(*self.vqgan_files, self.progress)
            first_code = self.config.vocab_size - self.num_codes - NUM_PLACES
            self.vqgan.check_codes(self.num_codes if first_code > 0 else 0)
        elif any(self.vqgan_files):
            raise UserError(
                f"{self.source.name} was trained for the task {settings.task}, which needs no VQGAN. Leave out "
                f"--vqgan, or name the task with --task image_generation."
            )

    def write_small_files(self, folder: Path, tokenizer, settings: TaskDefaults, dtype: torch.dtype) -> OFAProcessor:
        """Everything but the weights and the account; returns the processor, made from the source."""
        limit = self.config.max_position_embeddings
        image_processor = OFAImageProcessor(size=settings.image_size)
        tasks = offered_tasks(self.source, settings, limit)
        self.task_names = list(tasks)
        processor = OFAProcessor(
            image_processor,
            tokenizer,
            tasks=tasks,
            language=settings.language,
            max_prompt_tokens=limit,
            max_target_tokens=limit,
        )
        name_pipelines(self.config, processor)
        write_config(folder, self.config, dtype)
        write_generation_config(folder, settings.generation)
        processor.save_pretrained(folder)
        copy_hub_files(folder)
        return processor

    def make_tokenizer(self, vocab: str | Path | None) -> tuple[Any, str]:
        """The tokenizer the checkpoint was trained with, and its language, which the vocabulary decides.

        Raises:
            UserError: no vocabulary, or one of another size than the checkpoint's.
        """
        folder = self.source.folder if vocab is None else vocab
        if folder is not None and (has_english_vocabulary(folder) or Path(folder).is_dir() and vocab is not None):
            tokenizer, language = build_english_tokenizer(read_byte_pairs(folder)), "en"
        elif vocab is None and not self.source.has_tokenizer and self.config.vocab_size == ENGLISH_VOCABULARY:
            tokenizer, language = build_english_tokenizer(fetch_byte_pairs()), "en"
        else:
            tokenizer, language = self.make_chinese_tokenizer(vocab), "zh"
        if len(tokenizer) != self.config.vocab_size:
            name = VOCABULARY_LANGUAGES.get(self.config.vocab_size)
            hint = f" It is of the {name} checkpoints." if name else ""
            raise UserError(
                f"The vocabulary gives {len(tokenizer):,} symbols, but {self.source.name} has "
                f"{self.config.vocab_size:,}.{hint} Give the vocabulary of this checkpoint with --vocab: the "
                f"vocab.txt of 21,128 lines of the Chinese ones, or the folder with encoder.json, vocab.bpe and "
                f"dict.txt of the English ones."
            )
        return tokenizer, language

    def make_chinese_tokenizer(self, vocab: str | Path | None):
        """The official and the legacy project mark unknown text differently."""
        if vocab is None and self.source.has_tokenizer:
            return load_legacy_tokenizer(self.source.folder)
        unk_token = "[UNK]" if self.source.kind == OFFICIAL_KIND else "<unk>"
        return build_tokenizer(fetch_vocabulary() if vocab is None else vocab, unk_token, self.num_codes)

    @property
    def num_codes(self) -> int:
        """Symbols of image codes in the vocabulary: what the settings say, or as many as all published ones have."""
        said = self.source.settings.get("code_dict_size")
        return said if isinstance(said, int) and said > 0 else NUM_CODES

    def account(
        self, weights: WeightsToSave, settings: TaskDefaults, verification: Verification | None
    ) -> dict[str, Any]:
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
            "checkpoint": asdict(settings) | {"recognised_by": self.task_reason, "tasks": self.task_names},
            "weights": describe_weights(self.matched.account),
            "proof": asdict(verification) if verification else None,
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
    """Refuse to start what the disk cannot hold."""
    needed, free = weights_size + ROOM_FOR_OTHER_FILES, shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(f"The disk of {folder.parent} has {free:,} bytes left, {needed:,} are needed. Make room.")
