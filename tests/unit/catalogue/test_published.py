"""The catalogue names what was published, and each checkpoint brings its own settings."""

from ofa_hf.catalogue.published import (
    CATALOGUE,
    FAIRSEQ_TASKS,
    SETTINGS,
    find_published,
    official_generation,
    recognise_task,
)
from ofa_hf.tasks_ofa import TASKS


def test_the_catalogue_has_twelve_official_files_and_five_legacy_repositories():
    assert sum(entry.url is not None for entry in CATALOGUE.values()) == 12
    assert sum(entry.hub_id is not None for entry in CATALOGUE.values()) == 5
    assert all(entry.url.startswith("https://") for entry in CATALOGUE.values() if entry.url)


def test_entries_are_found_by_name_file_name_and_hub_id():
    assert find_published("caption_cn_base.pt").name == "caption_cn_base"
    assert find_published("YeungNLP/ofa-cn-base-muge-v2").defaults.prompt == "图片描述了什么?"
    assert find_published("ofa-cn-base-muge").defaults.prompt == "图片描述了什么内容?"
    assert find_published("my_model.pt") is None


def test_official_settings_count_the_start_token_and_the_end():
    settings = official_generation(8, 1, 128, 3)
    assert settings["max_length"] == 130
    assert settings["min_length"] == 2
    assert settings["end_at_max_length"] is True


def test_the_task_is_recognised_from_the_settings_then_the_name():
    defaults, _ = recognise_task({"task": "refcoco", "patch_image_size": 512}, "x.pt")
    assert (defaults.task, defaults.image_size, defaults.generation["max_length"]) == ("grounding", 512, 6)
    assert "{text}" in defaults.prompt
    defaults, reason = recognise_task({"task": "caption", "patch_image_size": 384}, "x.pt")
    assert (defaults.image_size, defaults.generation["num_beams"]) == (384, 8)
    assert reason == "setting task=caption"
    defaults, _ = recognise_task({"task": "unify_task", "patch_image_size": 384}, "x.pt")
    assert defaults.image_size == 480  # 384 is the size of pretraining
    assert recognise_task({}, "ofa_cn_ocr_large.pt")[0].task == "ocr"
    assert recognise_task({}, "mine.pt")[0].task == "caption"


def test_prompts_are_those_of_the_tasks_where_a_task_has_them():
    for name, settings in SETTINGS.items():
        if settings.task in TASKS and name != "legacy_v2_zh":  # that one was trained with another prompt
            assert settings.prompt == TASKS[settings.task].prompts[settings.language]
        assert all(f"{entry['settings']}_zh" in SETTINGS for entry in FAIRSEQ_TASKS.values())
