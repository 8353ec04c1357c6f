"""Finetuning as a recipe: task, data, model, locked parts, trainer, result."""

import copy
import dataclasses
import logging as standard_logging
import math
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    ProgressCallback,
    Seq2SeqTrainingArguments,
    set_seed,
)
from transformers.utils import logging

from ofa_hf.conversion.tasks import name_pipelines
from ofa_hf.data import GroupedTargets, OFACollator, count_targets
from ofa_hf.data.grouping import MixedTargets, StreamedTargets
from ofa_hf.errors import UserError
from ofa_hf.fast_ofa import is_slow
from ofa_hf.files import make_writable
from ofa_hf.models import load_model
from ofa_hf.publishing.push import Destination, connect, prepare_repository, publish_folder
from ofa_hf.training.arguments import CHECKPOINTING, FinetuneArguments
from ofa_hf.training.callbacks import KeepCurve, PrintLines, ShowProgress, StopOnSignal
from ofa_hf.training.encoder_cache import FlushCache, make_locked_encoder
from ofa_hf.training.locking import lock, share_parts
from ofa_hf.training.regularization import regularize
from ofa_hf.training.result import repository_name, save_result
from ofa_hf.training.resume import checkpoint_to_resume, refuse_old_run, saving_to
from ofa_hf.training.sources import RunData, load_data
from ofa_hf.training.summary import describe_run, describe_texts
from ofa_hf.training.task import (
    fit_window,
    load_task_processor,
    tasks_of_run,
    with_answers_of_data,
    with_default_lock,
    with_task_metric,
)
from ofa_hf.training.trainer import OFATrainer


logger = logging.get_logger(__name__)

LORA_TARGETS = r".*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"


class TrainingStopped(KeyboardInterrupt):
    """The user stopped the run after a checkpoint was saved; the message says how to resume."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = int(signal_number)


@dataclass(frozen=True)
class FinetuneResult:
    """The finetuned model and its results, which are also in `finetune_results.json`."""

    folder: Path
    metrics: dict[str, float]  # `eval_*` of the last evaluation, and `train_*` of training
    num_steps: int
    cut_targets: int  # number of targets that this process cut to `max_seq_length` tokens


def finetune(args: FinetuneArguments, trainer_args: Seq2SeqTrainingArguments) -> FinetuneResult:
    """Finetune a model on the rows of a task and save a Hub-ready folder in `trainer_args.output_dir`.

    Raises:
        UserError: data, model and arguments do not fit together; the disk is full; the loss is NaN or inf.
        TrainingStopped: Ctrl-C or SIGTERM; a checkpoint was saved first.
    """
    args = sharing_images(with_default_lock(args), trainer_args)
    given_args, trainer_args = trainer_args, adapt(args, trainer_args)
    refuse_old_run(trainer_args)
    publishes = given_args.push_to_hub and trainer_args.process_index == 0
    repository = open_repository(given_args) if publishes else None
    set_seed(trainer_args.seed)
    with quiet(trainer_args), saving_to(trainer_args.output_dir), explain_dead_workers():
        processor = load_task_processor(args)
        data = load_data(args, processor, trainer_args)
        processor = with_answers_of_data(processor, args, data)
        model, _ = load_model(args.model_name_or_path, device="cpu", dtype=torch.float32)
        name_pipelines(model.config, processor)
        regularize(model, args)
        lock(model, args, tasks_of_run(args, processor))
        fit_window(model, processor, tasks_of_run(args, processor))
        if args.lora_rank:
            model = add_lora(model, args)
        trainer = make_trainer(args, trainer_args, model, processor, data)
        if trainer.is_world_process_zero():
            sys.stderr.write(describe_run(args, trainer, data) + "\n")
            sys.stderr.write(describe_texts(data, processor) + "\n")

        metrics = train(trainer)
        if data.test is not None:
            metrics.update(trainer.evaluate())
        save_result(trainer, metrics)
        if repository:
            push(given_args, repository)
    num_cut = trainer.data_collator.num_cut
    if num_cut:
        longest = trainer.data_collator.max_target_tokens
        logger.warning(f"{num_cut:,} targets were cut to {longest} tokens (max_seq_length).")
    return FinetuneResult(Path(trainer_args.output_dir), metrics, trainer.state.global_step, num_cut)


def sharing_images(args: FinetuneArguments, trainer_args: Seq2SeqTrainingArguments) -> FinetuneArguments:
    """Arguments with which the columns of a row are in one batch, so that they share its image."""
    if not args.columns or args.targets_per_row > 1:
        return args
    together = min(len(args.columns), trainer_args.per_device_train_batch_size)
    return dataclasses.replace(args, targets_per_row=together)


def adapt(args: FinetuneArguments, trainer_args: Seq2SeqTrainingArguments) -> Seq2SeqTrainingArguments:
    """A copy of the Trainer's arguments with the settings that `OFATrainer` needs.

    Raises:
        UserError: arguments that do not fit together.
    """
    refuse_impossible(args, trainer_args)
    make_writable(trainer_args.output_dir)  # fail now rather than after hours
    adapted = copy.copy(trainer_args)
    adapted.label_names = ["labels"]
    adapted.predict_with_generate = False  # evaluation uses its own prediction loop
    adapted.push_to_hub, adapted.hub_token = False, None  # pushed once, at the end; checkpoints contain no token
    adapted.remove_unused_columns = adapted.logging_nan_inf_filter = False
    if adapted.ddp_find_unused_parameters is None:
        adapted.ddp_find_unused_parameters = False  # parts without gradients are locked; searching for them takes time
    if getattr(adapted, f"{CHECKPOINTING}_kwargs") is None:
        setattr(adapted, f"{CHECKPOINTING}_kwargs", {"use_reentrant": False})  # the other kind misses locked inputs
    if adapted.device.type == "cpu":
        switch_slow_precision_off(adapted)
    return adapted


def switch_slow_precision_off(trainer_args: Seq2SeqTrainingArguments) -> None:
    """Train in float32 on a CPU without instructions for the requested half precision."""
    if trainer_args.fp16:
        logger.warning("fp16 needs a GPU, and this run uses the CPU: training in float32.")
    elif trainer_args.bf16 and is_slow(torch.bfloat16):
        logger.warning("This CPU has no bf16 instructions, so bf16 would be slower than float32: training in float32.")
    else:
        return
    trainer_args.fp16 = trainer_args.bf16 = False
    trainer_args.mixed_precision = "no"  # where transformers 5 keeps the request for accelerate
    os.environ["ACCELERATE_MIXED_PRECISION"] = "no"  # … and transformers 4


def refuse_impossible(args: FinetuneArguments, trainer_args: Seq2SeqTrainingArguments) -> None:
    if args.targets_per_row > trainer_args.per_device_train_batch_size:
        raise UserError(
            f"targets_per_row is {args.targets_per_row} but a batch holds "
            f"{trainer_args.per_device_train_batch_size} targets. Raise per_device_train_batch_size, or lower it."
        )
    if args.streaming and (not args.dataset_name or trainer_args.max_steps <= 0 or args.cache_encoder_outputs):
        raise UserError(
            "streaming reads dataset_name without counting it, so it needs dataset_name and max_steps, and keeps no "
            "encoder cache. Set both and drop cache_encoder_outputs, or drop streaming."
        )
    option = "encoder_dtype" if args.encoder_dtype else "cache_encoder_outputs" if args.cache_encoder_outputs else None
    if option and not args.locks_encoder:
        raise UserError(
            f"{option} needs a locked encoder, but freeze_encoder is false. Set it to true, or drop {option}."
        )
    sharding = next((name for name in ("fsdp", "deepspeed") if getattr(trainer_args, name, None)), None)
    if option and sharding:
        raise UserError(
            f"{option} runs the encoder on its own, but {sharding} spreads its weights over processes. Train with DDP "
            f"(only torchrun), or drop {option}."
        )
    if args.encoder_dtype and args.embed_gradient_through_encoder:
        raise UserError(
            "encoder_dtype is for an encoder without gradients, but embed_gradient_through_encoder sends them through "
            "it. Drop one of them."
        )
    refuse_mixtures(args)
    parts = [args.of_task(task) for task in args.tasks] if args.tasks else [args]
    scored = any(part.eval_split if part.dataset_name else part.test_caption_file for part in parts)
    scored = scored and not args.merge_test
    if not scored and (trainer_args.eval_strategy != "no" or args.early_stopping_patience):
        raise UserError(
            "The run should evaluate during training, but there is nothing to evaluate on. Pass test_caption_file and "
            "test_image_file (or eval_split) without merge_test, or set eval_strategy to no without early stopping."
        )
    if args.early_stopping_patience and not trainer_args.load_best_model_at_end:
        raise UserError(
            "early_stopping_patience compares scores with the best checkpoint, so it needs load_best_model_at_end "
            "true and the same eval_strategy and save_strategy (steps or epoch)."
        )


def refuse_mixtures(args: FinetuneArguments) -> None:
    option = next((name for name in ("streaming", "cache_encoder_outputs") if getattr(args, name)), None)
    if args.tasks and option:
        raise UserError(f"{option} is for a run of one task or of columns, but tasks has several. Drop {option}.")
    if args.columns and args.dataset_name:
        raise UserError(
            "columns are those of a table with a folder of images, but dataset_name was given. Save the data set as a "
            "table, and pass it as train_caption_file with train_image_file."
        )


@contextmanager
def quiet(trainer_args: Seq2SeqTrainingArguments) -> Iterator[None]:
    """Silence progress bars of weight files, warnings about file times, and repeated messages of other processes."""
    had_bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    rotation = standard_logging.getLogger("transformers.trainer_utils")

    def is_useful(record: standard_logging.LogRecord) -> bool:
        return "mtime" not in record.getMessage()  # checkpoints are then sorted by number, which is right

    logging.disable_progress_bar()
    rotation.addFilter(is_useful)
    if trainer_args.process_index:
        logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)  # among the libraries
            warnings.filterwarnings("ignore", message="mtime may not be reliable")
            yield
    finally:
        rotation.removeFilter(is_useful)
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()


@contextmanager
def explain_dead_workers() -> Iterator[None]:
    """Turn torch's bare error about a killed data loader process into a `UserError`."""
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        reason = str(error) if isinstance(error, RuntimeError) else why_a_worker_ended()
        if "DataLoader worker" not in reason:
            raise
        raise UserError(
            f"A data loader process ended ({reason.splitlines()[0].rstrip('. ')}), most likely because memory ran "
            "out. Use fewer dataloader_num_workers or a smaller per_device_train_batch_size, and resume with "
            "--resume_from_checkpoint true if there is a checkpoint."
        ) from error


def why_a_worker_ended(patience: float = 1.0) -> str:
    """torch's message about data loader processes that ended; empty if there is none.

    A process that is killed while it hands over a batch first causes a connection error. torch reports its end a
    moment later, at any line of the program, unless it is checked here.
    """
    end = time.monotonic() + patience
    while time.monotonic() < end:
        try:
            torch._C._error_if_any_worker_fails()
            time.sleep(0.02)
        except RuntimeError as error:
            return str(error)
    return ""


# -------------------------------------------------------------------------------------------------- model


def add_lora(model, args: FinetuneArguments):
    """Train low-rank adapters of the decoder, and of the encoder unless it is locked, instead of the weights."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UserError("lora_rank needs the package peft. Install it with `pip install 'ofa-hf[lora]'`.") from error
    where = r"decoder" if args.locks_encoder else r"(encoder|decoder)"
    return get_peft_model(
        model, LoraConfig(r=args.lora_rank, lora_alpha=args.lora_alpha, target_modules=where + LORA_TARGETS)
    )


# ------------------------------------------------------------------------------------------------ trainer


def make_trainer(
    args: FinetuneArguments, trainer_args: Seq2SeqTrainingArguments, model, processor, data: RunData
) -> OFATrainer:
    """A Trainer whose data loader counts rows; in the arguments, batch sizes count targets."""
    tasks = tasks_of_run(args, processor)
    trainer_args = with_task_metric(trainer_args, *tasks)
    if trainer_args.world_size > 1 and not share_parts(tasks):
        trainer_args.ddp_find_unused_parameters = True  # batches without images do not use the ResNet, for example
    trainer_args.per_device_train_batch_size //= args.targets_per_row
    trainer_args.warmup_steps = warmup_steps(args, trainer_args, data.train)
    trainer_args.warmup_ratio = 0.0  # transformers 4 would round it up
    encoder = make_locked_encoder(args, trainer_args, model, processor, data.train, data.test)
    stores = [*(encoder.stores if encoder else ()), None, None]
    if args.streaming:
        train_dataset = StreamedTargets(data.train, args.targets_per_row, trainer_args.seed)
        # Each process reads its own batches: accelerate would split a batch without regard to which labels belong to
        # which row.
        trainer_args.accelerator_config = dataclasses.replace(trainer_args.accelerator_config, dispatch_batches=False)
    else:
        train_dataset = grouped(data.train, stores[0])
    callbacks = [KeepCurve(), StopOnSignal(), PrintLines() if trainer_args.disable_tqdm else ShowProgress()]
    callbacks += [FlushCache(encoder)] if encoder else []
    if args.early_stopping_patience:
        callbacks.append(EarlyStoppingCallback(args.early_stopping_patience))
    try:
        trainer = OFATrainer(
            model=model,
            args=trainer_args,
            train_dataset=train_dataset,
            eval_dataset=None if data.test is None else grouped(data.test, stores[1]),
            data_collator=OFACollator(
                processor, max_target_tokens=min(args.max_seq_length, model.config.max_position_embeddings)
            ),
            finetune_args=args,
            processor=processor,
            encoder=encoder,
            callbacks=callbacks,
        )
    except (RuntimeError, ImportError, ValueError) as error:  # such as a tracker in report_to that is not installed
        raise UserError(f"Training cannot be set up: {' '.join(str(error).split())}") from error
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback) in (ProgressCallback, PrinterCallback):  # replaced by our callback
            trainer.remove_callback(callback)
    return trainer


def grouped(rows, store) -> GroupedTargets | MixedTargets:
    """Rows as items of batches, by task if there are several."""
    if isinstance(rows, dict):
        return MixedTargets({task: GroupedTargets(own) for task, own in rows.items()})
    return GroupedTargets(rows, store)


def num_batches(args: FinetuneArguments, trainer_args: Seq2SeqTrainingArguments, rows) -> int:
    """Batches of an epoch, over all processes."""
    if isinstance(rows, dict):
        weights = args.weights()
        return sum(max(1, round(num_batches(args, trainer_args, own) * weights[name])) for name, own in rows.items())
    groups = int((-(-count_targets(rows) // args.targets_per_row)).sum())
    return math.ceil(groups / (trainer_args.train_batch_size * trainer_args.world_size))


def warmup_steps(args: FinetuneArguments, trainer_args: Seq2SeqTrainingArguments, train_rows) -> int:
    """Warm-up steps as an integer, for transformers 4 and 5. A ratio is rounded down, as in fairseq."""
    given = trainer_args.warmup_steps or getattr(trainer_args, "warmup_ratio", 0)
    if given >= 1 or not given:
        return int(given)
    total = trainer_args.max_steps
    if total <= 0:
        batches = num_batches(args, trainer_args, train_rows)
        updates = max(1, math.ceil(batches / trainer_args.gradient_accumulation_steps))
        total = math.ceil(updates * trainer_args.num_train_epochs)
    return int(total * given)


def train(trainer: OFATrainer) -> dict[str, float]:
    """Train to the end and return the Trainer's metrics.

    Raises:
        TrainingStopped: a signal arrived; a checkpoint was saved first.
        UserError: the loss or a weight is NaN or inf.
    """
    stop = next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, StopOnSignal))
    try:
        outcome = trainer.train(resume_from_checkpoint=checkpoint_to_resume(trainer.args))
    finally:
        stop.restore()
    if stop.received:
        raise TrainingStopped(
            f"stopped after step {trainer.state.global_step:,} of {trainer.state.max_steps:,}; a checkpoint is in "
            f"{trainer.args.output_dir}. To resume, run the same command with --resume_from_checkpoint true.",
            stop.received,
        )
    trainer.refuse_broken_model()
    return dict(outcome.metrics)


# ------------------------------------------------------------------------------------------------- result


def open_repository(trainer_args: Seq2SeqTrainingArguments) -> str:
    """Create `hub_model_id` (default: the folder's name) unless it exists, so that errors occur before training.

    Raises:
        UserError: the Hub cannot be reached or refuses.
    """
    name = repository_name(trainer_args)
    destination = Destination(name, trainer_args.hub_private_repo)
    return prepare_repository(connect(name, trainer_args.hub_token), destination)


def push(trainer_args: Seq2SeqTrainingArguments, repository: str) -> None:
    """Publish the finished folder, once, with its card and without checkpoints.

    Raises:
        UserError: the upload failed. The folder is complete.
    """
    address = publish_folder(
        trainer_args.output_dir,
        repository,
        private=trainer_args.hub_private_repo,
        token=trainer_args.hub_token,
        message="Finetuned model",
    )
    logger.warning(f"Published {trainer_args.output_dir} at {address}.")
