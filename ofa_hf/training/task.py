"""The task of a run: its processor, and the metric that picks the best checkpoint."""

import copy

from transformers import Seq2SeqTrainingArguments

from ofa_hf import OFAProcessor
from ofa_hf.errors import UserError
from ofa_hf.evaluation import METRICS
from ofa_hf.models import load_processor
from ofa_hf.tasks_ofa import Task
from ofa_hf.training.arguments import TASK_METRIC, FinetuneArguments


def load_task_processor(args: FinetuneArguments) -> OFAProcessor:
    """The model's processor with the run's task as its default task. A task that the model lacks is added.

    Raises:
        UserError: there is no such model or task.
    """
    processor = load_processor(args.model_name_or_path)
    if args.task not in (None, processor.default_task):
        processor = _with_task(processor, args)
    refuse_untrainable(processor.find_task())
    return processor


def refuse_untrainable(task: Task) -> None:
    """Refuse a task whose targets training does not know how to write.

    Raises:
        UserError: its answer is no text, or begins with the question.
    """
    if task.answer != "text" or task.starts_with:
        kind = f"its answers are {task.answer}" if task.answer != "text" else "its answers begin with the question"
        raise UserError(
            f"The task {task.name} cannot be trained: {kind}, but training writes texts as targets. Accepted: tasks "
            f"whose answer is a text of its own, such as caption or ocr. Pass one of them as --task."
        )


def _with_task(processor: OFAProcessor, args: FinetuneArguments) -> OFAProcessor:
    try:
        return OFAProcessor(
            processor.image_processor,
            processor.tokenizer,
            tasks={**processor.tasks, args.task: processor.tasks.get(args.task, {})},
            default_task=args.task,
            language=processor.language,
            max_prompt_tokens=processor.max_prompt_tokens,
            max_target_tokens=processor.max_target_tokens,
            chat_template=processor.chat_template,
        )
    except ValueError as error:
        raise UserError(f"{args.model_name_or_path} cannot be trained for the task {args.task}: {error}") from error


def with_task_metric(trainer_args: Seq2SeqTrainingArguments, task: Task) -> Seq2SeqTrainingArguments:
    """A copy of the arguments with the task's metric where they leave the choice to the task."""
    trainer_args = copy.copy(trainer_args)
    if trainer_args.metric_for_best_model == TASK_METRIC:
        trainer_args.metric_for_best_model = METRICS[task.metric].best
    return trainer_args
