"""The published Chinese checkpoints and what belongs to each: task, prompt, picture size, generation settings.

Source: OFA `checkpoints_cn.md`, the evaluation scripts in `run_scripts/`, the prompts in `data/mm_data/`; the article
of OFA-Chinese for the legacy repositories.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


OFFICIAL_FOLDER = "https://ofa-beijing.oss-cn-beijing.aliyuncs.com/checkpoints"
OFFICIAL_REPOSITORY = "https://github.com/OFA-Sys/OFA"
LEGACY_REPOSITORY = "https://github.com/yangjianxin1/OFA-Chinese"

CAPTION_PROMPT = "图片描述了什么内容?"
LEGACY_CAPTION_PROMPT = "图片描述了什么?"  # of the second MUGE weight alone
OCR_PROMPT = "图片上的文字是什么?"
REFCOCO_PROMPT = '这段文字" {} "描述的是哪个区域？'  # {}: the text to look for

OFFICIAL_IMAGE_SIZE, REFCOCO_IMAGE_SIZE, LEGACY_IMAGE_SIZE = 480, 512, 256  # pixels a side


def official_generation(beam: int, min_tokens: int, max_tokens: int, no_repeat_ngram: int) -> dict[str, Any]:
    """Settings with which `generate` gives what fairseq's generator gives.

    Args:
        min_tokens, max_tokens: of the text, before `</s>` (fairseq's min_len and max_len_b).
    """
    return {
        "num_beams": beam,
        "max_length": max_tokens + 2,  # the start token and </s> count here
        "min_length": min_tokens + 1,
        "no_repeat_ngram_size": no_repeat_ngram,
        "early_stopping": True,
        "suppress_tokens": [1],  # <pad> is never chosen
        "end_at_max_length": True,  # at the last position only </s>, with its true log-probability
    }


LEGACY_GENERATION = {
    "num_beams": 5,
    "max_length": 20,
    "no_repeat_ngram_size": 3,
    "early_stopping": False,
    "forced_eos_token_id": 2,
}


@dataclass(frozen=True)
class TaskDefaults:
    """What a checkpoint of this task was trained and evaluated with."""

    prompt: str
    image_size: int
    generation: Mapping[str, Any] = field(default_factory=dict)


CAPTION = TaskDefaults(CAPTION_PROMPT, OFFICIAL_IMAGE_SIZE, official_generation(8, 1, 128, 3))
OCR = TaskDefaults(OCR_PROMPT, OFFICIAL_IMAGE_SIZE, official_generation(5, 1, 64, 0))
REFCOCO = TaskDefaults(REFCOCO_PROMPT, REFCOCO_IMAGE_SIZE, official_generation(5, 4, 4, 3))
LEGACY = TaskDefaults(CAPTION_PROMPT, LEGACY_IMAGE_SIZE, LEGACY_GENERATION)
LEGACY_V2 = TaskDefaults(LEGACY_CAPTION_PROMPT, LEGACY_IMAGE_SIZE, LEGACY_GENERATION)

TASKS = {  # fairseq's task → its defaults; pretrained checkpoints caption too
    "caption": CAPTION,
    "unify_task": CAPTION,
    "unify_cn_task": CAPTION,
    "refcoco": REFCOCO,
    "ocr": OCR,
}
FINETUNED_TASKS = frozenset({"caption", "refcoco", "ocr"})  # their `patch_image_size` is the evaluation size too


@dataclass(frozen=True)
class PublishedCheckpoint:
    """One entry of the catalogue."""

    name: str
    defaults: TaskDefaults
    url: str | None = None  # of an official file
    hub_id: str | None = None  # of a legacy repository
    sha256: str | None = None  # none was ever published; checked where known


def official(name: str, defaults: TaskDefaults) -> PublishedCheckpoint:
    return PublishedCheckpoint(name, defaults, url=f"{OFFICIAL_FOLDER}/{name}.pt")


def legacy(hub_id: str, defaults: TaskDefaults = LEGACY) -> PublishedCheckpoint:
    return PublishedCheckpoint(hub_id, defaults, hub_id=hub_id)


OFFICIAL_FAMILIES = {
    "ofa_cn": CAPTION,
    "caption_cn": CAPTION,
    "refcoco_cn": REFCOCO,
    "refcocoplus_cn": REFCOCO,
    "refcocog_cn": REFCOCO,
    "ofa_cn_ocr": OCR,
}
CATALOGUE = {
    entry.name: entry
    for entry in (
        *(
            official(f"{family}_{size}", task)
            for family, task in OFFICIAL_FAMILIES.items()
            for size in ("base", "large")
        ),
        legacy("YeungNLP/ofa-cn-base"),
        legacy("YeungNLP/ofa-cn-large"),
        legacy("YeungNLP/ofa-cn-base-muge"),
        legacy("YeungNLP/ofa-cn-large-muge"),
        legacy("YeungNLP/ofa-cn-base-muge-v2", LEGACY_V2),
    )
}


def find_published(name: str) -> PublishedCheckpoint | None:
    """The catalogue entry of a file or folder name, a catalogue name or a Hub id; None if it is not published."""
    by_short_name = {entry.name.rpartition("/")[2]: entry for entry in CATALOGUE.values()}
    return CATALOGUE.get(name) or by_short_name.get(name.rpartition("/")[2].removesuffix(".pt"))


def recognise_task(settings: Mapping[str, Any], name: str) -> tuple[str, TaskDefaults, str]:
    """Task of an official checkpoint.

    Args:
        settings: fairseq's arguments; `task` and `patch_image_size` are looked at.
        name: of the file, which decides where the settings do not.

    Returns:
        task name, its defaults (with the picture size of the settings, where finetuning used one), and the reason.
    """
    published = find_published(name)
    task = settings.get("task")
    if task not in TASKS:
        by_name = [known for known in FINETUNED_TASKS if published and published.defaults is TASKS[known]]
        task = by_name[0] if by_name else "caption"
        return task, TASKS[task], f"name {name}" if by_name else "nothing in the file says a task"
    defaults, size = TASKS[task], settings.get("patch_image_size")
    if task in FINETUNED_TASKS and type(size) is int and 16 <= size <= 4096:
        defaults = TaskDefaults(defaults.prompt, size, defaults.generation)
    return task, defaults, f"setting task={task}"
