"""The tasks of a run: its processor, the answers to choose from, and the metric that picks the best checkpoint."""

import copy
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from datasets import Dataset
from transformers import Seq2SeqTrainingArguments
from transformers.utils import logging

from ofa_hf import OFAConfig, OFAProcessor
from ofa_hf.conversion.tasks import fitting
from ofa_hf.errors import UserError
from ofa_hf.evaluation.metrics import metric_of
from ofa_hf.image_processing_ofa import PIXELS_PER_CODE
from ofa_hf.models import load_processor, read_tasks
from ofa_hf.prediction.choices import choices_in, usable_choices
from ofa_hf.prediction.scoring import MEAN_SCORE
from ofa_hf.tasks_ofa import TASKS, Task, official_generation
from ofa_hf.training.arguments import TASK_METRIC, FinetuneArguments
from ofa_hf.training.columns import closed_list, column_task, column_tasks
from ofa_hf.training.sources import RunData


logger = logging.get_logger(__name__)

MAX_ANSWERS = 100_000  # maximum size of a list made from the data


def load_task_processor(args: FinetuneArguments) -> OFAProcessor:
    """The model's processor with the tasks of the run, the first of which becomes its default.

    Raises:
        UserError: there is no such model or task, or a metric needs a package that is not installed.
    """
    processor = load_processor(args.model_name_or_path)
    if args.columns:
        tasks = {column: column_task(column, processor.language) for column in args.columns}
    else:
        tasks = {name: {} for name in args.tasks or ([args.task] if args.task else [])}
    tasks = {name: {**own, **processor.tasks.get(name, {})} for name, own in tasks.items()}
    processor = with_tasks(processor, beside_drawing(processor, tasks, args))
    for name in args.tasks or [None]:
        own = args.of_task(name) if name else args
        if own.choices_file:
            processor = with_choices(processor, name, choices_of(processor, own.choices_file))
    if args.image_size is not None or drawing_tasks(tasks_of_run(args, processor)):
        processor = with_image_size(processor, args)
    for task in tasks_of_run(args, processor):
        if task.answer != "image":
            metric_of(task)
    return processor


# ------------------------------------------------------------------------------------------------- drawing


def drawing_tasks(tasks: Iterable[Task]) -> list[Task]:
    """The tasks that draw images, which have no metric."""
    return [task for task in tasks if task.answer == "image"]


def with_default_lock(args: FinetuneArguments) -> FinetuneArguments:
    """Arguments that say whether the encoder is locked: by default it is, unless the run learns to draw, for which
    the encoder has to understand texts."""
    if args.freeze_encoder is not None:
        return args
    known = read_tasks(args.model_name_or_path)
    names = args.tasks or ([args.task] if args.task else [] if args.columns else [known.default])
    tasks = [known.tasks.get(name) or TASKS.get(name) for name in names]
    return replace(args, freeze_encoder=not drawing_tasks(filter(None, tasks)))


def beside_drawing(
    processor: OFAProcessor, tasks: Mapping[str, Mapping[str, Any]], args: FinetuneArguments
) -> dict[str, Mapping[str, Any]]:
    """Settings of a run's tasks. Those that write texts and are new to a model that draws get settings of generation:
    the model's own are for codes."""
    if processor.find_task().answer != "image":
        return dict(tasks)
    limit = processor.max_prompt_tokens
    usual = {**official_generation(5, 1, args.max_seq_length, 3), "do_sample": False, "top_k": None}
    found = {}
    for name, own in tasks.items():
        row = TASKS[name].generation if name in TASKS else {}
        generation = {**usual, **row, **own.get("generation", {})}
        is_new = name not in processor.tasks and not drawing_tasks(filter(None, [TASKS.get(name)]))
        found[name] = {**own, "generation": {**generation, **fitting(generation, limit)}} if is_new else own
    return found


def with_image_size(processor: OFAProcessor, args: FinetuneArguments) -> OFAProcessor:
    """A processor whose drawing tasks have the size that the run asks for, which the model has places for.

    Raises:
        UserError: no task draws, or the model has no positions for images of this size.
    """
    drawing = drawing_tasks(tasks_of_run(args, processor))
    if not drawing:
        raise UserError("image_size is the size of images to draw, but no task of the run draws. Drop it.")
    sizes = {args.image_size or processor.model_size(task)[0] for task in drawing}
    side = PIXELS_PER_CODE * OFAConfig.from_pretrained(args.model_name_or_path).image_bucket_size
    wrong = [size for size in sizes if not PIXELS_PER_CODE <= size <= side or size % PIXELS_PER_CODE]
    if wrong or len(sizes) > 1:
        raise UserError(
            f"The run would draw images of {' and '.join(map(str, sorted(sizes)))} pixels. Accepted: one size, a "
            f"multiple of {PIXELS_PER_CODE} up to {side}, for which the model has places. Name it with image_size."
        )
    (size,) = sizes
    sized = {task.name: {**processor.tasks[task.name], "image": {**task.image, "size": size}} for task in drawing}
    default = processor.default_task
    tasks = {**processor.tasks, **sized}
    return with_tasks(processor, {default: tasks[default], **tasks})


def fit_window(model, processor: OFAProcessor, tasks: Iterable[Task]) -> None:
    """Set the positions of image codes in a model to the image size of its processor."""
    for task in drawing_tasks(tasks):
        model.config.code_image_size = processor.model_size(task)[0]


def with_tasks(processor: OFAProcessor, tasks: Mapping[str, Mapping[str, Any]]) -> OFAProcessor:
    """A processor with more tasks, or with other settings of its tasks; the first of them is its default.

    Raises:
        UserError: a task that is not defined, or not in the processor's language.
    """
    if not tasks:
        return processor
    try:
        return OFAProcessor(
            processor.image_processor,
            processor.tokenizer,
            tasks={**processor.tasks, **tasks},
            default_task=next(iter(tasks)),
            language=processor.language,
            max_prompt_tokens=processor.max_prompt_tokens,
            max_target_tokens=processor.max_target_tokens,
            chat_template=processor.chat_template,
        )
    except ValueError as error:
        raise UserError(f"The model cannot be trained for the task {', '.join(tasks)}: {error}") from error


def tasks_of_run(args: FinetuneArguments, processor: OFAProcessor) -> list[Task]:
    """The tasks that a run trains."""
    return [processor.find_task(name) for name in args.columns or args.tasks or [None]]


# --------------------------------------------------------------------------------------- answers to choose from


def choices_of(processor: OFAProcessor, file: str) -> list[str]:
    """The answers in a file, one per line, that the model can choose; the others are logged.

    Raises:
        UserError: the file cannot be read, or none of its answers can be chosen.
    """
    choices = usable_choices(processor, choices_in(file))
    for left_out in choices.left_out:
        logger.warning(f"Left out of {file}: {left_out}.")
    return choices.texts


def with_choices(
    processor: OFAProcessor, name: str | None, choices: Iterable[str], labels: Mapping[str, str] | None = None
) -> OFAProcessor:
    """A processor whose task chooses among these answers.

    Args:
        labels: other names of these answers.

    Raises:
        UserError: an answer is not in the vocabulary, or two are the same in it.
    """
    name, default = name or processor.default_task, processor.default_task
    choices = list(choices)
    try:
        processor.encode_choices(choices)
    except ValueError as error:
        raise UserError(f"The task {name} cannot choose among these answers. {error}") from error
    settings = {**processor.tasks[name], "answer": "choice", "choices": choices}
    settings |= {"labels": dict(labels)} if labels else {}
    tasks = {**processor.tasks, name: settings}
    return with_tasks(processor, {default: tasks[default], **tasks})


def with_answers_of_data(processor: OFAProcessor, args: FinetuneArguments, data: RunData) -> OFAProcessor:
    """A processor whose columns and empty lists get the answers in the data.

    Raises:
        UserError: a task needs a list, but the data is streamed or has no usable answers.
    """
    if args.columns:
        train_rows, *others = data.stored()
        return with_tasks(processor, column_tasks(processor, args.columns, args.closed_columns, train_rows, others))
    for task in tasks_of_run(args, processor):
        if task.answer == "choice" and not task.choices:
            sets = [rows[task.name] if isinstance(rows, dict) else rows for rows in (data.train, data.test) if rows]
            answers = sum((answers_in(rows) for rows in sets if isinstance(rows, Dataset)), Counter())
            processor = with_choices(processor, task.name, *list_of(processor, task, answers))
    return processor


def answers_in(rows: Dataset) -> Counter:
    """Counts of the targets. The images are not read."""
    return Counter(target for row in rows.select_columns("targets") for target in row["targets"])


def list_of(processor: OFAProcessor, task: Task, answers: Counter) -> tuple[list[str], dict[str, str]]:
    """The answers of a list, and other spellings of them."""
    if not 2 <= len(answers) <= MAX_ANSWERS:
        raise UserError(
            f"The task {task.name} chooses among answers, but the data has {len(answers):,} different ones. Pass "
            f"them as choices_file, with one answer per line."
        )
    try:
        usual = closed_list(processor, answers)
    except ValueError as error:
        raise UserError(f"The task {task.name} cannot choose among the answers of the data. {error}") from error
    return sorted(set(usual.values())), {text: main for text, main in usual.items() if text != main}


def with_task_metric(trainer_args: Seq2SeqTrainingArguments, *tasks: Task) -> Seq2SeqTrainingArguments:
    """A copy of the arguments in which `metric_for_best_model` is that of the tasks unless it was given."""
    trainer_args = copy.copy(trainer_args)
    if trainer_args.metric_for_best_model == TASK_METRIC:
        scored = [task for task in tasks if task.answer != "image"]
        best = MEAN_SCORE if len(tasks) > 1 else None
        trainer_args.metric_for_best_model = best or metric_of(tasks[0]).best if scored else "loss"
        if not scored:
            trainer_args.greater_is_better = False
    return trainer_args
