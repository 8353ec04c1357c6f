"""The facts of a Hub-ready folder, read from its files. Card and bundle use nothing else."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ofa_hf.errors import UserError
from ofa_hf.files import read_json
from ofa_hf.tasks_ofa import Task, checkpoint_task, upgrade_config


ACCOUNT_FILE = "conversion.json"  # how a checkpoint was converted and verified
RESULTS_FILE = "finetune_results.json"  # arguments and scores of a finetuning run
EVALUATION_FILE = "evaluation.json"  # `ofa-hf evaluate --output`: scores measured later
CURVE_FILE = "training_curve.png"
CARD_FILE = "README.md"

SAVE_AGAIN = "Save the folder again with `ofa-hf convert` or `ofa-hf finetune`."

# Files that every folder needs, and what to do if they are missing.
SETTINGS_FILES = ("config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json")

# Arguments of a run that the card shows, with the Trainer's names.
TRAINER_FACTS = (
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "world_size",
    "fp16",
    "bf16",
    "seed",
)

PATH_PATTERN = re.compile(r"^(?:[A-Za-z]:)?[\\/]|^~|^\.{1,2}[\\/]")  # starts like a local path


@dataclass(frozen=True)
class FolderFacts:
    """The settings and reports of a folder."""

    folder: Path
    config: dict[str, Any]
    generation: dict[str, Any]
    processor: dict[str, Any]
    image_processor: dict[str, Any]
    conversion: dict[str, Any] = field(default_factory=dict)  # empty if the folder was not converted
    finetuning: dict[str, Any] = field(default_factory=dict)  # empty if it was not finetuned
    evaluation: dict[str, Any] = field(default_factory=dict)  # empty if it was not evaluated later

    @property
    def language(self) -> str:
        return self.processor.get("language", "zh")

    @property
    def tasks(self) -> dict[str, dict[str, Any]]:
        """The checkpoint's tasks: name → settings."""
        return upgrade_config(self.processor)["tasks"]

    @property
    def task(self) -> Task:
        """The default task, with the checkpoint's own settings."""
        name = self.processor.get("default_task") or next(iter(self.tasks))
        return checkpoint_task(name, self.tasks[name], self.language)

    @property
    def has_curve(self) -> bool:
        return (self.folder / CURVE_FILE).is_file()

    @property
    def image_size(self) -> int:
        """Pixels a side."""
        size = self.image_processor.get("size", 0)
        return max(size.values()) if isinstance(size, dict) else size


def read_folder(folder: str | Path) -> FolderFacts:
    """Read the facts of a folder.

    Raises:
        UserError: no such folder, a file is missing or broken, or it holds another kind of model.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"There is no folder {folder}. Pass a folder written by `ofa-hf convert` or `ofa-hf finetune`."
        )
    config, generation, processor, image_processor = (read_settings(folder / name) for name in SETTINGS_FILES)
    if config.get("model_type") != "ofa":
        raise UserError(
            f"{folder / 'config.json'} is of a {config.get('model_type')} model; only OFA models are published here. "
            f"Pass a folder written by `ofa-hf convert` or `ofa-hf finetune`."
        )
    others = {
        "conversion": read_report(folder / ACCOUNT_FILE),
        "finetuning": read_report(folder / RESULTS_FILE),
        "evaluation": read_report(folder / EVALUATION_FILE),
    }
    return FolderFacts(folder, config, generation, processor, image_processor, **others)


def read_settings(path: Path) -> dict[str, Any]:
    """A settings file that every folder has.

    Raises:
        UserError: it is missing or broken.
    """
    if not path.is_file():
        seen = ", ".join(sorted(entry.name for entry in path.parent.iterdir())[:6]) or "nothing"
        raise UserError(
            f"{path.parent} has no {path.name}; it holds {seen}. A model folder has {', '.join(SETTINGS_FILES)}, "
            f"weights, tokenizer and code. {SAVE_AGAIN}"
        )
    return read_json(path, SAVE_AGAIN)


def read_report(path: Path) -> dict[str, Any]:
    """A report that a folder may have; empty if it is not there."""
    return read_json(path, SAVE_AGAIN) if path.is_file() else {}


def trainer_facts(trainer_args: Any) -> dict[str, Any]:
    """The Trainer's arguments that a card shows, as plain values for `finetune_results.json`."""
    values = {name: getattr(trainer_args, name, None) for name in TRAINER_FACTS}
    return {name: getattr(value, "value", value) for name, value in values.items() if value not in (None, -1)}


def without_paths(value: Any) -> Any:
    """The same values with paths of this machine reduced to their last part, so that they are not published."""
    if isinstance(value, dict):
        return {name: without_paths(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [without_paths(entry) for entry in value]
    return last_name(value) if isinstance(value, str) and is_path(value) else value


def is_path(text: str) -> bool:
    """Whether a text is a local path rather than a model on the Hub."""
    if "\n" in text or len(text) > 1000:
        return False
    return bool(PATH_PATTERN.match(text)) or ("/" in text or "\\" in text) and Path(text).exists()


def last_name(text: str) -> str:
    return re.split(r"[\\/]", text.rstrip("\\/"))[-1]
