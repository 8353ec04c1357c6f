"""The published checkpoints with their task, language, prompt, image size and generation settings.

The data is in `catalogue.json`.

Source: OFA `checkpoints.md`, `checkpoints_cn.md` and `transformers.md`, the evaluation scripts in `run_scripts/`, the
prompts in `data/mm_data/`; the article of OFA-Chinese for its legacy repositories.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ofa_hf.boxes_ofa import MAX_IMAGE_SIZE
from ofa_hf.errors import UserError
from ofa_hf.files import read_json
from ofa_hf.tasks_ofa import IMAGENET_COLORS, TASKS, Task, official_generation


CATALOGUE_FILE = Path(__file__).with_name("catalogue.json")
PROMPT_TYPES = {"none": "", "prev_output": "question", "src": "question and end"}  # fairseq's → `Task.starts_with`


def checkpoint_generation(
    beam: int,
    min_tokens: int,
    max_tokens: int,
    no_repeat_ngram: int,
    length_penalty: float = 1.0,
    temperature: float = 1.0,
) -> dict[str, Any]:
    """Settings with which `generate` matches fairseq's generator.

    Args:
        min_tokens, max_tokens: length of the text without `</s>` (fairseq's min_len and max_len_b).
        length_penalty: fairseq's lenpen; 0 for its unnormalized scores.
    """
    changed = {"length_penalty": length_penalty, "beam_temperature": temperature}
    return {
        **official_generation(beam, min_tokens, max_tokens, no_repeat_ngram),
        "suppress_tokens": [1],  # <pad> is never chosen
        "end_at_max_length": True,  # at the last position only </s> is allowed, with its true log-probability
        **{name: value for name, value in changed.items() if value != 1.0},
    }


@dataclass(frozen=True)
class TaskDefaults:
    """Settings with which a checkpoint of this task was trained and evaluated."""

    task: str  # a name of `TASKS`, or the checkpoint's own
    language: str
    prompt: str  # with the task's slots
    image_size: int
    generation: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)  # overrides of the task's row, `SETTINGS` of `tasks_ofa`


def read_settings(entry: Mapping[str, Any]) -> TaskDefaults:
    """Defaults from an entry of the catalogue, whose generation settings are those of fairseq or transformers.

    An entry without a prompt uses that of `TASKS`, or an empty one if there is no such task.
    """
    values = {"prompt": "", **entry}
    if not values["prompt"] and entry["task"] in TASKS:
        values["prompt"] = TASKS[entry["task"]].prompts.get(entry["language"], "")
    fairseq = values.pop("fairseq_generation", None)
    if fairseq:
        values["generation"] = checkpoint_generation(**fairseq)
        if entry["task"] in TASKS and TASKS[entry["task"]].starts_with:
            values["generation"] = without_the_question(values["generation"])
    return TaskDefaults(**values)


def without_the_question(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a task whose answers start with the question: lengths do not include the question.

    The original also counts the question, so a long one would leave no room for the answer.
    """
    limits = {"max_new_tokens": generation["max_length"] - 2, "min_new_tokens": generation["min_length"] - 1}
    return {name: value for name, value in generation.items() if name not in ("max_length", "min_length")} | limits


_FACTS = read_json(CATALOGUE_FILE)
SETTINGS = {name: read_settings(entry) for name, entry in _FACTS["settings"].items()}
FAIRSEQ_TASKS = _FACTS["fairseq_tasks"]
LEGACY = {"zh": SETTINGS["legacy_zh"], "en": SETTINGS["legacy_480_en"]}  # of folders that are not in the catalogue


@dataclass(frozen=True)
class PublishedCheckpoint:
    """One entry of the catalogue."""

    name: str
    defaults: TaskDefaults
    url: str | None = None  # only for official files
    hub_id: str | None = None  # only for legacy repositories
    sha256: str | None = None  # no digests were published; checked if known
    size: str = "base"
    pretrained: bool = False  # trained for every task of its language
    license: str | None = None  # None: the authors stated no license for the weights
    trained_on: str = ""
    scores: tuple[Mapping[str, Any], ...] = ()  # {"data", "values", "source" (a page), "note"}; published, not ours

    def facts(self) -> dict[str, Any]:
        """Facts about the checkpoint for the model card, besides those from the conversion."""
        return {"license": self.license, "trained_on": self.trained_on, "scores": [dict(row) for row in self.scores]}


def read_model(entry: Mapping[str, Any]) -> PublishedCheckpoint:
    """An entry of the catalogue's models."""
    place = "url" if entry["source"].startswith("https://") else "hub_id"
    return PublishedCheckpoint(
        entry["name"],
        SETTINGS[entry["settings"]],
        **{place: entry["source"]},
        sha256=entry.get("sha256"),
        size=entry["size"],
        pretrained=entry.get("pretrained", False),
        license=entry["license"],
        trained_on=entry["trained_on"],
        scores=tuple({**row, "source": _FACTS["sources"][row["source"]]} for row in entry["scores"]),
    )


CATALOGUE = {entry["name"]: read_model(entry) for entry in _FACTS["models"]}


def find_published(name: str) -> PublishedCheckpoint | None:
    """The catalogue entry of a file or folder name, a catalogue name or a Hub id; None if it is not published."""
    by_short_name = {entry.name.rpartition("/")[2]: entry for entry in CATALOGUE.values()}
    return CATALOGUE.get(name) or by_short_name.get(name.rpartition("/")[2].removesuffix(".pt").removesuffix(".zip"))


def nearest_names(name: str, number: int = 3) -> list[str]:
    """Names of the catalogue that look like this one, the most similar first."""
    short = name.rpartition("/")[2].removesuffix(".pt").lower()
    by_short_name = {entry.rpartition("/")[2].lower(): entry for entry in CATALOGUE}
    return [by_short_name[found] for found in get_close_matches(short, by_short_name, number, cutoff=0.5)]


def recognize_task(
    settings: Mapping[str, Any], name: str, language: str = "zh", wanted: str | None = None
) -> tuple[TaskDefaults, str]:
    """What an official checkpoint was trained for.

    Args:
        settings: fairseq's arguments, of which `task`, `arch`, `patch_image_size` and those of `changes_of` are read.
        name: name of the file, used if the settings name no task or pretraining.
        language: language of the checkpoint.
        wanted: a task given by the user, which takes precedence.

    Returns:
        its defaults (with the image size of the settings, if it was finetuned), and the reason for the choice.

    Raises:
        UserError: the checkpoint's task is not supported, or the user's task has no prompt in `language`.
    """
    if wanted is not None:
        return with_settings(settings_of_task(wanted, language), settings, name), "the task was given"
    published, task = find_published(name), settings.get("task")
    known = FAIRSEQ_TASKS.get(task) if isinstance(task, str) else None
    if published and published.url and published.defaults.language == language and not (known and known["finetuned"]):
        return with_prompt(published.defaults, name, task), f"name {name}"
    if task is None:
        return SETTINGS[f"caption_{language}"], "the file names no task"
    entry = f"{known['settings']}_{language}" if known else ""
    if entry == "caption_en" and settings.get("arch") == "ofa_huge":
        entry = "caption_huge_en"
    if entry not in SETTINGS:
        raise UserError(explain_unknown_task(name, task, language))
    defaults = with_prompt(SETTINGS[entry], name, task)
    return with_settings(defaults, settings, name) if known["finetuned"] else defaults, f"setting task={task}"


def settings_of_task(task: str, language: str) -> TaskDefaults:
    """Defaults of a task given by the user.

    Raises:
        UserError: there is no such task in that language.
    """
    if f"{task}_{language}" not in SETTINGS or task not in TASKS:
        raise UserError(
            f"There is no task {task!r} for a checkpoint whose language is {language!r}. Accepted: "
            f"{', '.join(tasks_of(language))}."
        )
    return SETTINGS[f"{task}_{language}"]


def tasks_of(language: str) -> list[str]:
    """Names of the tasks that have a prompt in a language."""
    return [name for name, task in TASKS.items() if language in task.prompts]


def with_settings(defaults: TaskDefaults, settings: Mapping[str, Any], name: str) -> TaskDefaults:
    """Defaults, updated from the arguments of finetuning: image size, and settings of the task."""
    size = settings.get("patch_image_size")
    if TASKS[defaults.task].answer == "image":  # drawn images have a size of their own
        size = settings.get("code_image_size")
    if type(size) is int and 16 <= size <= 4096:
        defaults = replace(defaults, image_size=size)
    return replace(defaults, changes=changes_of(TASKS[defaults.task], settings, name))


def changes_of(task: Task, settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Changes to a task's row from fairseq's arguments: start of answers, mean and deviation of colors.

    Raises:
        UserError: boxes were trained on another grid than the one here.
    """
    if task.answer == "boxes" and settings.get("max_image_size") not in (None, MAX_IMAGE_SIZE):
        raise UserError(
            f"{name} was trained with max_image_size={settings['max_image_size']}, so its boxes are on another grid. "
            f"Accepted: {MAX_IMAGE_SIZE}, as in every published checkpoint. Use the official code for that one."
        )
    changes: dict[str, Any] = {}
    start = PROMPT_TYPES.get(settings.get("prompt_type"), task.starts_with)
    if start != task.starts_with:
        changes["starts_with"] = start
    is_imagenet = settings.get("imagenet_default_mean_and_std")
    colors = {True: IMAGENET_COLORS, False: {}}.get(is_imagenet)
    own = {key: value for key, value in task.image.items() if key in IMAGENET_COLORS}
    if colors is not None and task.needs_image and own != colors:
        changes["image"] = {key: value for key, value in task.image.items() if key not in own} | colors
    return changes


def with_prompt(defaults: TaskDefaults, name: str, task: Any) -> TaskDefaults:
    """The defaults themselves, if there is a prompt for their task."""
    if not defaults.prompt:
        raise UserError(explain_unknown_task(name, task or defaults.task, defaults.language))
    return defaults


def explain_unknown_task(name: str, task: Any, language: str) -> str:
    return (
        f"{name} was trained for the task {str(task)[:100]!r}, which this version has no task for. If it answers one "
        f"of these all the same, or is a start for finetuning, name it with --task: {', '.join(tasks_of(language))}. "
        f"Else use the official code."
    )


def catalogue_facts() -> list[dict[str, Any]]:
    """The full catalogue; a license of None was never stated."""
    return [asdict(entry) for entry in CATALOGUE.values()]


def catalogue_lines() -> list[str]:
    """One line per model: name, size, task, pixels, license, published scores."""
    lines = [("name", "size", "task", "px", "license", "published scores (by their authors)")]
    for entry in CATALOGUE.values():
        scores = "; ".join(f"{row['data']} {scores_line(row['values'])}" for row in entry.scores) or "none"
        license_ = entry.license or "unknown"
        lines.append((entry.name, entry.size, entry.defaults.task, entry.defaults.image_size, license_, scores))
    return ["{:28} {:6} {:14} {:>5}  {:9} {}".format(*line).rstrip() for line in lines]


def scores_line(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in values.items())
