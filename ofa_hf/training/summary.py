"""A short summary of a run before it starts."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset, IterableDataset

from ofa_hf.checking.text_check import (
    TextFaults,
    are_sentences,
    check_texts,
    drawn_field,
    texts_of,
    unknown_to,
    vocabulary_of,
)
from ofa_hf.data import count_targets, report_of
from ofa_hf.errors import UserError
from ofa_hf.training.arguments import FinetuneArguments
from ofa_hf.training.columns import describe_columns
from ofa_hf.training.locking import count_parameters
from ofa_hf.training.sources import RunData


def describe_run(args: FinetuneArguments, trainer, data: RunData) -> str:
    """Model, data, batch, steps and device of a run, one line each."""
    lines = {
        "model": f"{args.model_name_or_path}: {count_parameters(trainer.model)}",
        **describe_tasks(args, trainer.processor, data),
        "trained": describe_locks(args),
        "data": describe_data(data.train),
        "scored on": "no data" if data.test is None else describe_data(data.test),
        "batch": describe_batch(args, trainer.args),
        "steps": describe_steps(trainer),
        "device": describe_device(trainer.args),
        "output": str(Path(trainer.args.output_dir).resolve()),
        **describe_cache(trainer.encoder),
    }
    return "\n".join(f"{name:10} {text}" for name, text in lines.items())


def describe_texts(data: RunData, processor) -> str:
    """Summarize what is odd about the targets to train on, in one line."""
    rows = data.train if isinstance(data.train, dict) else {None: data.train}
    found, unknown = TextFaults(), unknown_to(processor.tokenizer)
    for name, part in rows.items():
        if isinstance(part, Dataset):
            task = processor.find_task(name)
            found += check_texts(texts_of(part, drawn_field(task)), vocabulary_of(task, unknown), are_sentences(task))
    return f"Data: {found.line() or 'the texts look fine'}. `ofa-hf check` also checks the images."


def describe_tasks(args: FinetuneArguments, processor, data: RunData) -> dict[str, str]:
    """The question of the task, or a line for each of several tasks or columns."""
    if args.columns:
        found = describe_columns({name: processor.tasks[name] for name in args.columns}, data.train)
        return {f"column {name}": text for name, text in found.items()}
    weights = args.weights()
    if not weights:
        return {"task": f"{processor.default_task}: {describe_question(processor)}"}
    return {f"task {name}": f"{describe_question(processor, name)}, weight {weights[name]:g}" for name in weights}


def describe_question(processor, name: str | None = None) -> str:
    task = processor.find_task(name)
    answers = f", one of {len(task.choices):,} answers" if task.answer == "choice" else ""
    return task.prompts[processor.language] + answers


def describe_locks(args: FinetuneArguments) -> str:
    if args.lora_rank:
        where = "decoder" if args.locks_encoder else "encoder and decoder"
        return f"LoRA adapters of rank {args.lora_rank} in the {where}"
    parts = ["decoder"] if args.locks_encoder else ["encoder", "decoder"]
    parts += [] if args.freeze_word_embed else ["word embedding"]
    locked = ["encoder (LiT)"] if args.locks_encoder else ["BatchNorm"] if args.freeze_resnet else []
    locked += ["word embedding"] if args.freeze_word_embed else []
    return _and(parts) + (f"; locked: {_and(locked)}" if locked else "")


def describe_data(rows: Dataset | IterableDataset | dict[str, Dataset]) -> str:
    if isinstance(rows, dict):
        return "; ".join(f"{task}: {describe_data(own)}" for task, own in rows.items())
    if isinstance(rows, IterableDataset):
        return "streamed, not counted"
    try:
        return report_of(rows).summary()
    except UserError:  # rows that ofa_hf.data did not build have no report
        return f"{len(rows):,} rows with {int(count_targets(rows).sum()):,} targets"


def describe_batch(args: FinetuneArguments, trainer_args) -> str:
    rows, targets = trainer_args.per_device_train_batch_size, args.targets_per_row
    steps, processes = trainer_args.gradient_accumulation_steps, trainer_args.world_size
    factors = f"{rows} rows × {targets} targets × {steps} accumulation steps × {processes} processes"
    return f"{rows * targets * steps * processes:,} targets = {factors}"


def describe_cache(encoder) -> dict[str, str]:
    """Content and size of the encoder cache, and how much of it exists already. Empty without a cache."""
    if encoder is None or not encoder.plans:
        return {}
    plans, parent = encoder.plans, encoder.plans[0].folder.parent
    total, free = sum(plan.num_bytes for plan in plans), shutil.disk_usage(parent).free
    kept = " + ".join(f"{plan.num_rows:,}" for plan in plans)
    present = sum(store.num_written for store in encoder.stores)
    return {
        "cache": f"{plans[0].describe()} × {kept} images = {total / 1e9:.2f} GB, {present:,} images present; "
        f"{free / 1e9:.1f} GB free in {parent}"
    }


def describe_steps(trainer) -> str:
    args = trainer.args
    if isinstance(trainer.train_dataset, torch.utils.data.IterableDataset):
        return f"{args.max_steps:,}, {args.warmup_steps:,} for warm-up"
    per_epoch = max(1, -(-len(trainer.get_train_dataloader()) // args.gradient_accumulation_steps))
    total = args.max_steps if args.max_steps > 0 else -(-per_epoch * args.num_train_epochs // 1)
    return f"{int(total):,}, {per_epoch:,} per epoch, {args.warmup_steps:,} for warm-up"


def describe_device(trainer_args) -> str:
    device = trainer_args.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{name}, {'bf16' if trainer_args.bf16 else 'fp16' if trainer_args.fp16 else 'float32'}"


def _and(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
