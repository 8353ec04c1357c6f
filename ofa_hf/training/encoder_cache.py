"""The locked encoder of a run: its precision, and a cache of its results on disk.

A locked encoder turns the same image and prompt into the same numbers in every epoch, so they are computed once. What
can be cached depends on the word embedding, which the encoder shares with the decoder, and on the prompt:

- embedding locked, one prompt for all rows: the encoder's outputs;
- embedding trained, or a prompt with fields: the image's cells before the first layer (the output of the ResNet). The
  layers mix cells with the words of the prompt, so all later results depend on the words.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback

import ofa_hf
from ofa_hf.data.collator import ENCODED, IMAGE_ROWS, IS_ENCODED, ROW_NUMBERS
from ofa_hf.errors import UserError, is_full_disk
from ofa_hf.fast_ofa import is_slow
from ofa_hf.files import write_json
from ofa_hf.tasks_ofa import BOX_SLOT
from ofa_hf.training.row_store import RowStore, bytes_on_disk


FORMAT_VERSION = 1  # part of every digest: increase it when the same inputs give other rows
ABOUT_FILE = "about.json"
OUTPUTS, CELLS = "encoder outputs", "image cells"
# Config fields that affect the encoder's results and are not visible in the weights.
CONFIG_NAMES = ("encoder_attention_heads", "attn_scale_factor", "token_bucket_size", "image_bucket_size")
WORD_EMBEDDING = "embed_tokens.weight"
CELL_PARTS = ("embed_images.", "image_proj.", "patch_layernorm_embedding.", "type_embedding.")
IMAGE_INPUTS = ("pixel_values", "input_ids", "attention_mask")


@dataclass(frozen=True)
class CachePlan:
    """A cache to open: its location, content and size."""

    kind: str
    folder: Path
    num_rows: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    identity: Mapping[str, Any]
    positions: Tensor | None  # `(1, S, d_model)` position embeddings of encoder outputs

    @property
    def num_bytes(self) -> int:
        return self.num_rows * torch.Size(self.shape).numel() * self.dtype.itemsize

    @property
    def missing_bytes(self) -> int:
        return max(0, self.num_bytes - bytes_on_disk(self.folder))

    def open(self) -> RowStore:
        store = RowStore(self.folder, self.num_rows, self.shape, self.dtype)
        about = self.folder / ABOUT_FILE
        if not about.exists():
            write_json(about, dict(self.identity))
        return store

    def describe(self) -> str:
        size = " × ".join(map(str, self.shape))
        dtype = str(self.dtype).removeprefix("torch.")
        each = self.num_bytes / self.num_rows / 1e6
        return f"{self.kind}, {size} {dtype}, {each:.2f} MB"


def plan_caches(
    model,
    processor,
    data_sets: Iterable[Dataset],
    parent: str | Path,
    dtype: torch.dtype,
    has_several_tasks: bool = False,
) -> list[CachePlan]:
    """Plan a cache of a locked encoder's results for each data set.

    Args:
        parent: parent folder of the caches. The name of a cache contains a digest of everything its numbers depend on.
        has_several_tasks: rows have several prompts.

    Raises:
        UserError: the encoder is not locked, the task has no images, or images have no common size.
    """
    kind = what_can_be_kept(model, processor, has_several_tasks)
    identity = {
        "format": FORMAT_VERSION,
        "package": ofa_hf.__version__,
        "kind": kind,
        "dtype": str(dtype),
        "weights": weights_digest(model, kind),
        "config": {name: getattr(model.config, name) for name in CONFIG_NAMES},
        "processor": {**processor.image_processor.to_dict(), **processor.find_task().image},
        "prompt": processor(text=[processor.prompt_for()])["input_ids"].tolist() if kind == OUTPUTS else None,
    }
    shape, positions = row_shape(model, processor, kind)
    plans = []
    for rows in data_sets:
        own = {**identity, "images": images_fingerprint(rows)}
        digest = hashlib.sha256(json.dumps(own, sort_keys=True, default=str).encode()).hexdigest()[:16]
        folder = Path(parent) / f"{kind.replace(' ', '-')}-{digest}"
        plans.append(CachePlan(kind, folder, len(rows), shape, dtype, own, positions))
    return plans


def what_can_be_kept(model, processor, has_several_tasks: bool = False) -> str:
    trained = [name for name, parameter in model.get_encoder().named_parameters() if parameter.requires_grad]
    if trained and trained != [WORD_EMBEDDING]:
        raise UserError(
            f"cache_encoder_outputs keeps the results of a locked encoder, but {trained[0]} (+{len(trained) - 1} "
            "more) is trained. Lock it with freeze_encoder true, or drop cache_encoder_outputs."
        )
    task = processor.find_task()
    if not task.needs_image:
        raise UserError(
            f"cache_encoder_outputs keeps the results of images, but the task {task.name} has none. Drop it."
        )
    if task.answer == "boxes" or BOX_SLOT in task.fields:
        raise UserError(
            f"cache_encoder_outputs replaces images, but boxes of the task {task.name} need their sizes. Drop it."
        )
    if not processor.image_processor.do_resize:
        raise UserError(
            "cache_encoder_outputs needs images of one size, but the processor has do_resize off. Set do_resize to "
            "true in preprocessor_config.json, or drop cache_encoder_outputs."
        )
    return CELLS if trained or task.fields or has_several_tasks else OUTPUTS


@torch.no_grad()
def row_shape(model, processor, kind: str) -> tuple[tuple[int, ...], Tensor | None]:
    """Shape of the cached result per image, and its position embeddings, computed with the encoder."""
    options = {"return_tensors": "pt", **processor.find_task().image}
    images = processor.image_processor([PIL.Image.new("RGB", (32, 32))], **options).to(model.device)
    if kind == CELLS:
        return tuple(model.get_encoder().embed_image_cells(images["pixel_values"]).shape[1:]), None
    prompt = processor(text=[processor.prompt_for()]).to(model.device)
    output = model.encode(**images, **prompt)
    return tuple(output.last_hidden_state.shape[1:]), output.position_embeddings


def weights_digest(model, kind: str) -> str:
    """Digest of all weights that the cached numbers depend on."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.get_encoder().state_dict().items()):
        if kind == OUTPUTS or name.startswith(CELL_PARTS):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def images_fingerprint(rows: Dataset) -> str:
    """Fingerprint of the images and their order; for images in files, with their sizes and modification times."""
    images = rows.select_columns("image")
    digest = hashlib.sha256(images._fingerprint.encode())
    for batch in images.with_format("arrow").iter(batch_size=10_000):
        for path in pc.struct_field(batch["image"], "path").to_pylist():
            if path and Path(path).is_file():
                status = Path(path).stat()
                digest.update(f"{path} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()


def require_room(plans: Sequence[CachePlan], parent: str | Path) -> None:
    """Refuse caches that do not fit on the disk.

    Raises:
        UserError: there is not enough space; the message says how much is needed and free.
    """
    needed = sum(plan.missing_bytes for plan in plans)
    parent = Path(parent).resolve()
    existing = next(folder for folder in (parent, *parent.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        halve = ", halve it with encoder_dtype bfloat16" if plans[0].dtype == torch.float32 else ""
        raise UserError(
            f"The encoder cache needs {needed / 1e9:.1f} GB more, but the disk of {parent} has {free / 1e9:.1f} GB "
            f"free. Free some space (older caches can be deleted), pass another disk as encoder_cache_dir{halve}, or "
            "drop cache_encoder_outputs."
        )


class LockedEncoder:
    """Runs the locked encoder for a Trainer, or reads its cached results.

    Args:
        dtype: precision of the encoder and of its cache. The decoder keeps the precision of the run.
        plans: caches to open, see `plan_caches`. Without caches, images are encoded every time.
        passes_gradients: the word embedding is also trained through the encoder, so only cells can be cached.
    """

    def __init__(self, dtype: torch.dtype, plans: Sequence[CachePlan] = (), passes_gradients: bool = False):
        self.dtype, self.plans, self.passes_gradients = dtype, list(plans), passes_gradients
        self.stores = [plan.open() for plan in self.plans]

    def __call__(self, model, batch: Mapping[str, Any], store: RowStore | None = None) -> dict[str, Any]:
        """A batch of the collator → arguments of `forward`, with `encoder_outputs` instead of images.

        Args:
            store: cache of the data set of the batch. Missing rows are computed and written.
        """
        batch = dict(batch)
        shared = batch.pop(IMAGE_ROWS, None)
        inputs = {name: batch.pop(name) for name in IMAGE_INPUTS if name in batch}
        if store is None:
            if shared is not None:
                with self._precision(shared.device):
                    inputs["image_embeds"] = model.embed_image_cells(inputs.pop("pixel_values"))[shared]
            return {**batch, "encoder_outputs": self._encode(model, **inputs)}
        rows, is_encoded, encoded = batch.pop(ROW_NUMBERS), batch.pop(IS_ENCODED), batch.pop(ENCODED, None)
        pixel_values = inputs.pop("pixel_values", None)
        states = encoded
        if pixel_values is not None:
            states = torch.empty(len(rows), *store.shape, dtype=store.dtype, device=pixel_values.device)
            if encoded is not None:
                states[is_encoded] = encoded
            states[~is_encoded] = self._compute(model, pixel_values, inputs, store.shape).to(store.dtype)
            self._write(store, rows[~is_encoded].tolist(), states[~is_encoded])
        if not torch.is_autocast_enabled(states.device.type):
            states = states.float()
        states = states if shared is None else states[shared]
        if is_outputs(store.shape):
            return {**batch, "encoder_outputs": (states, self.plans[0].positions.to(states.device))}
        if self.passes_gradients:
            return {**batch, **inputs, "image_embeds": states}
        return {**batch, "encoder_outputs": self._encode(model, **inputs, image_embeds=states)}

    def _precision(self, device: torch.device) -> AbstractContextManager:
        is_reduced = self.dtype != torch.float32 and not (device.type == "cpu" and is_slow(self.dtype))
        return torch.autocast(device.type, dtype=self.dtype, enabled=is_reduced)

    def _encode(self, model, **inputs: Tensor) -> tuple[Tensor, Tensor]:
        with self._precision(inputs["input_ids"].device):
            output = model.encode(**inputs)
        is_half = torch.is_autocast_enabled(output.last_hidden_state.device.type)
        states = output.last_hidden_state if is_half else output.last_hidden_state.float()
        found = (states, output.position_embeddings, output.attention_mask)
        return tuple(item for item in found if item is not None)

    def _compute(self, model, pixel_values: Tensor, prompts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
        if is_outputs(shape):
            prompts = {name: tensor[: len(pixel_values)] for name, tensor in prompts.items()}
            return self._encode(model, pixel_values=pixel_values, **prompts)[0]
        with self._precision(pixel_values.device):
            return model.embed_image_cells(pixel_values)

    @staticmethod
    def _write(store: RowStore, rows: list[int], states: Tensor) -> None:
        new = [place for place, row in enumerate(rows) if row not in store]  # another process may have written some
        try:
            store.write([rows[place] for place in new], states[new])
        except OSError as error:
            why = "its disk is full" if is_full_disk(error) else error.strerror
            raise UserError(
                f"The encoder cache in {store.folder} cannot be written: {why}. Its content stays valid. "
                "Free some space, or drop cache_encoder_outputs, and resume with --resume_from_checkpoint true."
            ) from error

    def flush(self) -> None:
        """Sync the results so far to disk."""
        for store in self.stores:
            store.flush()

    def refuse_other_weights(self, model) -> None:
        """Refuse a model whose locked encoder differs from that of the caches.

        Raises:
            UserError: a checkpoint of another base model was loaded.
        """
        for plan in self.plans[:1]:
            if weights_digest(model, plan.kind) != plan.identity["weights"]:
                raise UserError(
                    "The checkpoint has another encoder than model_name_or_path, so the encoder cache does not fit. "
                    "Pass the model that the checkpoint's run started from, or drop cache_encoder_outputs."
                )


class FlushCache(TrainerCallback):
    """Syncs the cache to disk whenever a checkpoint is saved, after an evaluation and at the end."""

    def __init__(self, encoder: LockedEncoder):
        self.encoder = encoder

    def on_save(self, args, state, control, **kwargs) -> None:
        self.encoder.flush()

    def on_evaluate(self, args, state, control, **kwargs) -> None:
        self.encoder.flush()

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.encoder.flush()


def make_locked_encoder(args, trainer_args, model, processor, train_rows, eval_rows) -> LockedEncoder | None:
    """The locked encoder for these arguments; None if the encoder runs as a part of the model.

    Evaluation images are also cached if they are evaluated more than once.

    Raises:
        UserError: see `plan_caches` and `require_room`.
    """
    if not (args.cache_encoder_outputs or args.encoder_dtype):
        return None
    dtype = getattr(torch, args.encoder_dtype) if args.encoder_dtype else dtype_of_run(trainer_args)
    if not args.cache_encoder_outputs:
        return LockedEncoder(dtype)
    parent = Path(args.encoder_cache_dir or Path(trainer_args.output_dir) / "encoder_cache")
    data_sets = [train_rows] + ([eval_rows] if eval_rows is not None and trainer_args.eval_strategy != "no" else [])
    has_several_tasks = len(args.columns or ()) > 1
    plans = plan_caches(model, processor, data_sets, parent, dtype, has_several_tasks)
    require_room(plans, parent)
    return LockedEncoder(dtype, plans, args.embed_gradient_through_encoder and plans[0].kind == CELLS)


def dtype_of_run(trainer_args) -> torch.dtype:
    return torch.bfloat16 if trainer_args.bf16 else torch.float16 if trainer_args.fp16 else torch.float32


def is_outputs(shape: Sequence[int]) -> bool:
    """Rows of encoder outputs are `(S, d_model)`, of cells `(rows, columns, d_model)`."""
    return len(shape) == 2
