"""Finetuning as a recipe: data, model, what is locked, trainer, result."""

import copy
import dataclasses
import logging as standard_logging
import math
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import datasets
import torch
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    ProgressCallback,
    Seq2SeqTrainingArguments,
    set_seed,
)
from transformers.utils import logging

from ofa_hf.data import (
    GroupedTargets,
    OFACollator,
    count_targets,
    load_muge,
    load_rows,
    load_table,
    stream_rows,
)
from ofa_hf.data.grouping import StreamedTargets
from ofa_hf.errors import UserError
from ofa_hf.models import load_model
from ofa_hf.publishing.push import Destination, connect, prepare_repository, publish_folder
from ofa_hf.training.arguments import CHECKPOINTING, FinetuneArguments
from ofa_hf.training.callbacks import KeepCurve, PrintLines, ShowProgress, StopOnSignal
from ofa_hf.training.encoder_cache import FlushCache, make_locked_encoder
from ofa_hf.training.locking import lock
from ofa_hf.training.regularization import regularize
from ofa_hf.training.result import repository_name, save_result
from ofa_hf.training.resume import checkpoint_to_resume, refuse_old_run, saving_to
from ofa_hf.training.summary import describe_run
from ofa_hf.training.trainer import OFATrainer


logger = logging.get_logger(__name__)

LORA_TARGETS = r".*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"
MUGE_SUFFIX = ".tsv"


class TrainingStopped(KeyboardInterrupt):
    """The user stopped the run; a checkpoint was written and the text says how to go on."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = int(signal_number)


@dataclass(frozen=True)
class FinetuneResult:
    """Where the finetuned model lies and how it did; the same as in `finetune_results.json`."""

    folder: Path
    metrics: dict[str, float]  # of the last evaluation, `eval_*`, and of training, `train_*`
    num_steps: int
    cut_targets: int  # how often a caption was longer than `max_seq_length`, by this process


def finetune(args: FinetuneArguments, trainer_args: Seq2SeqTrainingArguments) -> FinetuneResult:
    """Finetune a converted model on captions and leave a Hub-ready folder in `trainer_args.output_dir`.

    Raises:
        UserError: data, model or arguments that do not fit; a full disk; a loss that is no number.
        TrainingStopped: Ctrl-C; a checkpoint was written first.
    """
    wishes, trainer_args = trainer_args, adapt(args, trainer_args)
    refuse_old_run(trainer_args)
    publishes = wishes.push_to_hub and trainer_args.process_index == 0
    repository = open_repository(wishes) if publishes else None
    set_seed(trainer_args.seed)
    with quiet(trainer_args), saving_to(trainer_args.output_dir), dead_workers_told():
        train_rows, eval_rows = load_data(args)
        model, processor = load_model(args.model_name_or_path, device="cpu", dtype=torch.float32)
        regularize(model, args)
        lock(model, args)
        if args.lora_rank:
            model = add_lora(model, args)
        trainer = make_trainer(args, trainer_args, model, processor, train_rows, eval_rows)
        if trainer.is_world_process_zero():
            sys.stderr.write(describe_run(args, trainer, train_rows, eval_rows) + "\n")

        metrics = train(trainer)
        if eval_rows is not None:
            metrics.update(trainer.evaluate())
        save_result(trainer, metrics)
        if repository:
            push(wishes, repository)
    num_cut = trainer.data_collator.num_cut
    if num_cut:
        logger.warning(f"{num_cut:,} times a caption was longer than {args.max_seq_length} tokens and was cut.")
    return FinetuneResult(Path(trainer_args.output_dir), metrics, trainer.state.global_step, num_cut)


def adapt(args: FinetuneArguments, trainer_args: Seq2SeqTrainingArguments) -> Seq2SeqTrainingArguments:
    """A copy of the Trainer's arguments that says what this Trainer needs.

    Raises:
        UserError: a wish that the others make impossible.
    """
    refuse_impossible(args, trainer_args)
    Path(trainer_args.output_dir).mkdir(parents=True, exist_ok=True)  # fails now rather than after hours
    adapted = copy.copy(trainer_args)
    adapted.label_names = ["labels"]
    adapted.predict_with_generate = False  # evaluation has its own captioning
    adapted.push_to_hub, adapted.hub_token = False, None  # we push once, at the end; checkpoints hold no token
    adapted.remove_unused_columns = adapted.logging_nan_inf_filter = False
    if adapted.ddp_find_unused_parameters is None:
        adapted.ddp_find_unused_parameters = False  # parts without a gradient are locked; looking for them costs time
    if getattr(adapted, f"{CHECKPOINTING}_kwargs") is None:
        setattr(adapted, f"{CHECKPOINTING}_kwargs", {"use_reentrant": False})  # the other kind misses locked inputs
    if adapted.fp16 and adapted.device.type == "cpu":
        logger.warning("fp16 needs a GPU and this run has none: training in float32.")
        adapted.fp16 = False
    return adapted


def refuse_impossible(args: FinetuneArguments, trainer_args: Seq2SeqTrainingArguments) -> None:
    if args.targets_per_row > trainer_args.per_device_train_batch_size:
        raise UserError(
            f"targets_per_row is {args.targets_per_row} but a batch holds "
            f"{trainer_args.per_device_train_batch_size} captions. Raise per_device_train_batch_size or lower it."
        )
    if args.streaming and (not args.dataset_name or trainer_args.max_steps <= 0 or args.cache_encoder_outputs):
        raise UserError(
            "streaming reads dataset_name without counting it, so it needs dataset_name and max_steps, and keeps no "
            "encoder cache. Give both and leave cache_encoder_outputs out, or leave streaming out."
        )
    wish = "encoder_dtype" if args.encoder_dtype else "cache_encoder_outputs" if args.cache_encoder_outputs else None
    if wish and not args.freeze_encoder:
        raise UserError(
            f"{wish} is about a locked encoder, but freeze_encoder is false. Lock it, or leave {wish} out."
        )
    sharding = next((name for name in ("fsdp", "deepspeed") if getattr(trainer_args, name, None)), None)
    if wish and sharding:
        raise UserError(
            f"{wish} runs the encoder by itself, but {sharding} spreads the encoder's weights over processes. Train "
            f"with DDP (torchrun alone), or leave {wish} out."
        )
    if args.encoder_dtype and args.embed_gradient_through_encoder:
        raise UserError(
            "encoder_dtype is for an encoder without gradients, but embed_gradient_through_encoder sends them through "
            "it. Leave one of them out."
        )
    scored = (args.eval_split if args.dataset_name else args.test_caption_file) and not args.merge_test
    if not scored and (trainer_args.eval_strategy != "no" or args.early_stopping_patience):
        raise UserError(
            "Evaluation during training was asked for, but there is nothing to evaluate on. Give test_caption_file "
            "and test_image_file (or eval_split) without merge_test, or eval_strategy no and no early stopping."
        )
    if args.early_stopping_patience and not trainer_args.load_best_model_at_end:
        raise UserError(
            "early_stopping_patience stops when the best score stays behind, so it needs load_best_model_at_end true "
            "and the same eval_strategy and save_strategy (steps or epoch)."
        )


@contextmanager
def quiet(trainer_args: Seq2SeqTrainingArguments) -> Iterator[None]:
    """Without bars for every weight file, repeated words about file times, and what other processes say already."""
    had_bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    rotation = standard_logging.getLogger("transformers.trainer_utils")

    def about_content(record: standard_logging.LogRecord) -> bool:
        return "mtime" not in record.getMessage()  # checkpoints are sorted by number then, as they should

    logging.disable_progress_bar()
    rotation.addFilter(about_content)
    if trainer_args.process_index:
        logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)  # between the libraries
            warnings.filterwarnings("ignore", message="mtime may not be reliable")
            yield
    finally:
        rotation.removeFilter(about_content)
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()


@contextmanager
def dead_workers_told() -> Iterator[None]:
    """One line where torch raises a bare error: a process that loads data was killed."""
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        reason = str(error) if isinstance(error, RuntimeError) else why_a_worker_ended()
        if "DataLoader worker" not in reason:
            raise
        raise UserError(
            f"A data loader process ended ({reason.splitlines()[0].rstrip('. ')}), most likely because memory ran "
            "out. Use fewer dataloader_num_workers or a smaller per_device_train_batch_size, and go on with "
            "--resume_from_checkpoint true if there is a checkpoint."
        ) from error


def why_a_worker_ended(patience: float = 1.0) -> str:
    """What torch finds about data loader processes that ended, or nothing.

    A process that is killed while it hands over a batch shows as a broken connection first; torch notices its end a
    moment later, at any line of the program unless it is asked here.
    """
    end = time.monotonic() + patience
    while time.monotonic() < end:
        try:
            torch._C._error_if_any_worker_fails()
        except RuntimeError as error:
            return str(error)
        time.sleep(0.02)
    return ""


# --------------------------------------------------------------------------------------------------- data


def load_data(args: FinetuneArguments) -> tuple[datasets.Dataset | datasets.IterableDataset, datasets.Dataset | None]:
    """Rows to train on, streamed if asked for, and rows to evaluate on, one per image."""
    if args.dataset_name:
        train_rows = stream_named_rows(args) if args.streaming else load_named_rows(args, args.dataset_split)
        return train_rows, load_named_rows(args, args.eval_split) if args.eval_split else None
    train_rows = load_files(args, args.train_caption_file, args.train_image_file)
    if args.test_caption_file is None:
        return train_rows, None
    test_rows = load_files(args, args.test_caption_file, args.test_image_file)
    if args.merge_test:
        return datasets.concatenate_datasets([train_rows, test_rows]), None
    return train_rows, test_rows


def load_files(args: FinetuneArguments, captions: str, images: str) -> datasets.Dataset:
    """MUGE files if the images are a `.tsv`, else a folder of images with a table of captions."""
    options = {"num_proc": args.num_proc, "strict": args.strict}
    if Path(images).suffix == MUGE_SUFFIX:
        return load_muge(captions, images, **options)
    columns = {"image_column": args.image_column, "target_column": args.target_column}
    return load_table(captions, images, **columns, **options)


def load_named_rows(args: FinetuneArguments, split: str) -> datasets.Dataset:
    saved = Path(args.dataset_name)
    if (saved / "state.json").exists() or (saved / "dataset_dict.json").exists():  # by `save_to_disk`
        rows = datasets.load_from_disk(args.dataset_name)
    else:
        rows = datasets.load_dataset(args.dataset_name)
    if isinstance(rows, datasets.DatasetDict):
        if split not in rows:
            raise UserError(f"{args.dataset_name} has no split {split}; it has {', '.join(rows)}. Name one of them.")
        rows = rows[split]
    columns = {"image_column": args.image_column, "target_column": args.target_column}
    return load_rows(rows, **columns, num_proc=args.num_proc, strict=args.strict)


def stream_named_rows(args: FinetuneArguments) -> datasets.IterableDataset:
    saved = Path(args.dataset_name) / "dataset_dict.json"
    if saved.exists() or (Path(args.dataset_name) / "state.json").exists():  # by `save_to_disk`
        rows = datasets.load_from_disk(args.dataset_name)
        rows = (rows[args.dataset_split] if saved.exists() else rows).to_iterable_dataset()
    else:
        rows = datasets.load_dataset(args.dataset_name, split=args.dataset_split, streaming=True)
    return stream_rows(rows, image_column=args.image_column, target_column=args.target_column, strict=args.strict)


# -------------------------------------------------------------------------------------------------- model


def add_lora(model, args: FinetuneArguments):
    """Train low-rank adapters of the decoder (and of the encoder, unless it is locked) instead of the weights."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UserError("lora_rank needs the package peft. Install it with `pip install 'ofa-hf[lora]'`.") from error
    where = r"decoder" if args.freeze_encoder else r"(encoder|decoder)"
    return get_peft_model(
        model, LoraConfig(r=args.lora_rank, lora_alpha=args.lora_alpha, target_modules=where + LORA_TARGETS)
    )


# ------------------------------------------------------------------------------------------------ trainer


def make_trainer(
    args: FinetuneArguments, trainer_args: Seq2SeqTrainingArguments, model, processor, train_rows, eval_rows
) -> OFATrainer:
    """A Trainer whose batch sizes count captions, as the argument files do, while its data loader counts images."""
    trainer_args = copy.copy(trainer_args)
    trainer_args.per_device_train_batch_size //= args.targets_per_row
    trainer_args.warmup_steps = warmup_steps(args, trainer_args, train_rows)
    trainer_args.warmup_ratio = 0.0  # transformers 4 rounds it up
    encoder = make_locked_encoder(args, trainer_args, model, processor, train_rows, eval_rows)
    stores = [*(encoder.stores if encoder else ()), None, None]
    if args.streaming:
        train_dataset = StreamedTargets(train_rows, args.targets_per_row, trainer_args.seed)
        # Each process takes its batches off the stream: cut up by accelerate, labels would part from their images.
        trainer_args.accelerator_config = dataclasses.replace(trainer_args.accelerator_config, dispatch_batches=False)
    else:
        train_dataset = GroupedTargets(train_rows, stores[0])
    callbacks = [KeepCurve(), StopOnSignal(), PrintLines() if trainer_args.disable_tqdm else ShowProgress()]
    callbacks += [FlushCache(encoder)] if encoder else []
    if args.early_stopping_patience:
        callbacks.append(EarlyStoppingCallback(args.early_stopping_patience))
    try:
        trainer = OFATrainer(
            model=model,
            args=trainer_args,
            train_dataset=train_dataset,
            eval_dataset=None if eval_rows is None else GroupedTargets(eval_rows, stores[1]),
            data_collator=OFACollator(processor, max_target_tokens=args.max_seq_length),
            finetune_args=args,
            processor=processor,
            encoder=encoder,
            callbacks=callbacks,
        )
    except (RuntimeError, ImportError, ValueError) as error:  # such as a tracker of report_to that is not installed
        raise UserError(f"Training cannot be set up: {' '.join(str(error).split())}") from error
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback) in (ProgressCallback, PrinterCallback):  # ours takes their place
            trainer.remove_callback(callback)
    return trainer


def warmup_steps(args: FinetuneArguments, trainer_args: Seq2SeqTrainingArguments, train_rows) -> int:
    """Steps of warm-up as a whole number, which both transformers 4 and 5 take; a ratio rounds down, as in fairseq."""
    given = trainer_args.warmup_steps or getattr(trainer_args, "warmup_ratio", 0)
    if given >= 1 or not given:
        return int(given)
    total = trainer_args.max_steps
    if total <= 0:
        groups = int((-(-count_targets(train_rows) // args.targets_per_row)).sum())
        batches = math.ceil(groups / (trainer_args.train_batch_size * trainer_args.world_size))
        updates = max(1, math.ceil(batches / trainer_args.gradient_accumulation_steps))
        total = math.ceil(updates * trainer_args.num_train_epochs)
    return int(total * given)


def train(trainer: OFATrainer) -> dict[str, float]:
    """Train to the end and return the Trainer's metrics.

    Raises:
        TrainingStopped: a signal came; a checkpoint was written first.
        UserError: the loss or a weight is no number any more.
    """
    stop = next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, StopOnSignal))
    try:
        outcome = trainer.train(resume_from_checkpoint=checkpoint_to_resume(trainer.args))
    finally:
        stop.restore()
    if stop.received:
        raise TrainingStopped(
            f"stopped after step {trainer.state.global_step:,} of {trainer.state.max_steps:,}; a checkpoint is in "
            f"{trainer.args.output_dir}. Run the same command with --resume_from_checkpoint true to go on.",
            stop.received,
        )
    trainer.refuse_broken_model()
    return dict(outcome.metrics)


# ------------------------------------------------------------------------------------------------- result


def open_repository(trainer_args: Seq2SeqTrainingArguments) -> str:
    """Create `hub_model_id` (default: the folder's name) unless it exists: now, not after hours of training.

    Raises:
        UserError: the Hub cannot be reached or refuses.
    """
    name = repository_name(trainer_args)
    destination = Destination(name, trainer_args.hub_private_repo)
    return prepare_repository(connect(name, trainer_args.hub_token), destination)


def push(trainer_args: Seq2SeqTrainingArguments, repository: str) -> None:
    """Publish the finished folder, once, with its card and without checkpoints.

    Raises:
        UserError: the upload failed; the folder is complete all the same.
    """
    address = publish_folder(
        trainer_args.output_dir,
        repository,
        private=trainer_args.hub_private_repo,
        token=trainer_args.hub_token,
        message="Finetuned model",
    )
    logger.warning(f"Published {trainer_args.output_dir} at {address}.")
