"""The tasks that a converted checkpoint offers, and their pipelines."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ofa_hf.catalogue.published import FAIRSEQ_TASKS, SETTINGS, TaskDefaults
from ofa_hf.configuration_ofa import OFAConfig, custom_pipelines
from ofa_hf.conversion.sources import OFFICIAL_KIND, Source
from ofa_hf.processing_ofa import OFAProcessor
from ofa_hf.tasks_ofa import TASKS, checkpoint_task


# Before finetuning, answers do not start with the question. Source: OFA `run_scripts/vqa/evaluate_vqa_zeroshot.sh`.
ZERO_SHOT = {"vqa": {"starts_with": ""}}


def is_pretrained(source: Source) -> bool:
    """Whether a checkpoint was trained for all tasks: an official file's settings say so, or else the name."""
    task = source.settings.get("task") if source.kind == OFFICIAL_KIND else None
    if isinstance(task, str) and task in FAIRSEQ_TASKS:
        return not FAIRSEQ_TASKS[task]["finetuned"]
    return source.published is not None and source.published.pretrained


def recognize_task(
    source: Source, language: str, task: str | None = None, prompt: str | None = None
) -> tuple[TaskDefaults, str]:
    """What a checkpoint was trained for, and the reason for the choice.

    Args:
        language: of its texts.
        task: a task given by the user.
        prompt: a prompt given by the user, which allows a task of another language.
    """
    english = SETTINGS.get(f"{task}_en")
    if prompt is not None and english and task in TASKS and language not in TASKS[task].prompts:
        return replace(english, language=language), "the task and its prompt were given"
    return source.recognize_task(language, task)


def offered_tasks(source: Source, chosen: TaskDefaults, max_positions: int) -> dict[str, dict[str, Any]]:
    """Name → settings for the processor: the checkpoint's own task, whose generation settings are those in
    `generation_config.json`, and after it all others that a pretrained checkpoint knows.

    Args:
        max_positions: longest answer of the model, start and end tokens included.
    """
    tasks = {chosen.task: {"prompt": chosen.prompt, "generation": {}, **chosen.changes}}
    if is_pretrained(source):
        for name, task in TASKS.items():
            if chosen.language in task.prompts and name not in tasks and task.answer != "image":  # without a VQGAN
                generation = {**task.generation, **fitting(task.generation, max_positions)}
                changed = {} if generation == task.generation else {"generation": generation}
                tasks[name] = {**ZERO_SHOT.get(name, {}), **changed}
    return tasks


def fitting(generation: Mapping[str, Any], max_positions: int) -> dict[str, int]:
    """Lengths of a task's settings as they fit the model."""
    limits = {"max_length": max_positions, "max_new_tokens": max_positions // 2}  # new tokens follow a question
    return {name: min(generation[name], limit) for name, limit in limits.items() if name in generation}


def pipelines_of(tasks: Mapping[str, Mapping[str, Any]], language: str) -> Iterable[str]:
    """Names of the pipelines that answer these tasks, each once."""
    return dict.fromkeys(checkpoint_task(name, settings, language).pipeline for name, settings in tasks.items())


def name_pipelines(config: OFAConfig, processor: OFAProcessor) -> None:
    """Write into a configuration which pipelines answer the tasks of its processor."""
    config.custom_pipelines = custom_pipelines(pipelines_of(processor.tasks, processor.language))
