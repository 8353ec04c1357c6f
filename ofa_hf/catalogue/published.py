"""The published checkpoints and what belongs to each: task, language, prompt, image size, generation settings.

`catalogue.json` holds the facts; this module reads them.

Source: OFA `checkpoints.md`, `checkpoints_cn.md` and `transformers.md`, the evaluation scripts in `run_scripts/`, the
prompts in `data/mm_data/`; the article of OFA-Chinese for its legacy repositories.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ofa_hf.errors import UserError
from ofa_hf.files import read_json
from ofa_hf.tasks_ofa import TASKS, official_generation


CATALOGUE_FILE = Path(__file__).with_name("catalogue.json")


def checkpoint_generation(
    beam: int,
    min_tokens: int,
    max_tokens: int,
    no_repeat_ngram: int,
    length_penalty: float = 1.0,
    temperature: float = 1.0,
) -> dict[str, Any]:
    """Settings with which `generate` gives what fairseq's generator gives.

    Args:
        min_tokens, max_tokens: of the text, before `</s>` (fairseq's min_len and max_len_b).
        length_penalty: fairseq's lenpen; 0 for its unnormalized scores.
    """
    changed = {"length_penalty": length_penalty, "beam_temperature": temperature}
    return {
        **official_generation(beam, min_tokens, max_tokens, no_repeat_ngram),
        "suppress_tokens": [1],  # <pad> is never chosen
        "end_at_max_length": True,  # at the last position only </s>, with its true log-probability
        **{name: value for name, value in changed.items() if value != 1.0},
    }


@dataclass(frozen=True)
class TaskDefaults:
    """What a checkpoint of this task was trained and evaluated with."""

    task: str  # a name of `TASKS`, or one of the checkpoint's own
    language: str
    prompt: str  # with the task's slots
    image_size: int
    generation: Mapping[str, Any] = field(default_factory=dict)


def read_settings(entry: Mapping[str, Any]) -> TaskDefaults:
    """Defaults from an entry of the catalogue, which gives generation as fairseq's numbers or as transformers'.

    An entry without a prompt has that of `TASKS`, and an empty one as long as there is no such task.
    """
    values = {"prompt": "", **entry}
    if not values["prompt"] and entry["task"] in TASKS:
        values["prompt"] = TASKS[entry["task"]].prompts.get(entry["language"], "")
    fairseq = values.pop("fairseq_generation", None)
    return TaskDefaults(**values, **({"generation": checkpoint_generation(**fairseq)} if fairseq else {}))


_FACTS = read_json(CATALOGUE_FILE)
SETTINGS = {name: read_settings(entry) for name, entry in _FACTS["settings"].items()}
FAIRSEQ_TASKS = _FACTS["fairseq_tasks"]
LEGACY = {"zh": SETTINGS["legacy_zh"], "en": SETTINGS["legacy_480_en"]}  # of a folder that is not in the catalogue


@dataclass(frozen=True)
class PublishedCheckpoint:
    """One entry of the catalogue."""

    name: str
    defaults: TaskDefaults
    url: str | None = None  # of an official file
    hub_id: str | None = None  # of a legacy repository
    sha256: str | None = None  # none was ever published; checked where known
    size: str = "base"
    license: str | None = None  # None: the authors named none for the weights
    trained_on: str = ""
    scores: tuple[Mapping[str, Any], ...] = ()  # {"data", "values", "source" (a page), "note"}; published, not ours

    def facts(self) -> dict[str, Any]:
        """What a model card says about the checkpoint, in addition to what conversion finds out."""
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
        license=entry["license"],
        trained_on=entry["trained_on"],
        scores=tuple({**row, "source": _FACTS["sources"][row["source"]]} for row in entry["scores"]),
    )


CATALOGUE = {entry["name"]: read_model(entry) for entry in _FACTS["models"]}


def find_published(name: str) -> PublishedCheckpoint | None:
    """The catalogue entry of a file or folder name, a catalogue name or a Hub id; None if it is not published."""
    by_short_name = {entry.name.rpartition("/")[2]: entry for entry in CATALOGUE.values()}
    return CATALOGUE.get(name) or by_short_name.get(name.rpartition("/")[2].removesuffix(".pt"))


def recognise_task(settings: Mapping[str, Any], name: str, language: str = "zh") -> tuple[TaskDefaults, str]:
    """What an official checkpoint was trained for.

    Args:
        settings: fairseq's arguments, of which `task`, `arch` and `patch_image_size` are read.
        name: of the file, which decides if the settings name no task, or pretraining.
        language: of the checkpoint.

    Returns:
        its defaults (with the image size of the settings, if it was finetuned), and the reason for the choice.

    Raises:
        UserError: a checkpoint of a task that there is none for here.
    """
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
        raise UserError(explain_unknown_task(name, task))
    defaults, size = with_prompt(SETTINGS[entry], name, task), settings.get("patch_image_size")
    if known["finetuned"] and type(size) is int and 16 <= size <= 4096:
        defaults = replace(defaults, image_size=size)
    return defaults, f"setting task={task}"


def with_prompt(defaults: TaskDefaults, name: str, task: Any) -> TaskDefaults:
    """The defaults themselves, if there is a prompt for their task."""
    if not defaults.prompt:
        raise UserError(explain_unknown_task(name, task or defaults.task))
    return defaults


def explain_unknown_task(name: str, task: Any) -> str:
    return (
        f"{name} was trained for the task {str(task)[:100]!r}, which this version has no task for. "
        f"Accepted: {', '.join(TASKS)}. Use the official code for that checkpoint."
    )


def catalogue_facts() -> list[dict[str, Any]]:
    """Every fact about every entry; a license of None was never stated."""
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
