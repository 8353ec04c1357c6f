"""The catalogue names what was published, and each checkpoint brings its own settings."""

from dataclasses import replace

import pytest

from ofa_hf.catalogue.published import (
    CATALOGUE,
    FAIRSEQ_TASKS,
    SETTINGS,
    checkpoint_generation,
    find_published,
    nearest_names,
    recognize_task,
)
from ofa_hf.errors import UserError
from ofa_hf.tasks_ofa import TASKS


def test_the_catalogue_has_every_official_file_and_legacy_repository():
    for language, files in (("zh", 12), ("en", 27)):
        entries = [entry for entry in CATALOGUE.values() if entry.defaults.language == language]
        assert sum(entry.url is not None for entry in entries) == files
        assert sum(entry.hub_id is not None for entry in entries) == 5
    assert all(entry.url.startswith("https://") for entry in CATALOGUE.values() if entry.url)


def test_entries_are_found_by_name_file_name_and_hub_id():
    assert find_published("caption_cn_base.pt").name == "caption_cn_base"
    assert find_published("YeungNLP/ofa-cn-base-muge-v2").defaults.prompt == "图片描述了什么?"
    assert find_published("ofa-cn-base-muge").defaults.prompt == "图片描述了什么内容?"
    assert find_published("my_model.pt") is None


def test_official_settings_count_the_start_token_and_the_end():
    settings = checkpoint_generation(8, 1, 128, 3)
    assert settings["max_length"] == 130
    assert settings["min_length"] == 2
    assert settings["end_at_max_length"] is True


def test_the_task_is_recognized_from_the_settings_then_the_name():
    defaults, _ = recognize_task({"task": "refcoco", "patch_image_size": 512}, "x.pt")
    assert (defaults.task, defaults.image_size, defaults.generation["max_length"]) == ("grounding", 512, 6)
    assert "{text}" in defaults.prompt
    defaults, reason = recognize_task({"task": "caption", "patch_image_size": 384}, "x.pt")
    assert (defaults.image_size, defaults.generation["num_beams"]) == (384, 8)
    assert reason == "setting task=caption"
    defaults, _ = recognize_task({"task": "unify_task", "patch_image_size": 384}, "x.pt")
    assert defaults.image_size == 480  # 384 is the size of pretraining
    assert recognize_task({}, "ofa_cn_ocr_large.pt")[0].task == "ocr"
    assert recognize_task({}, "mine.pt")[0].task == "caption"


def test_english_checkpoints_are_recognized_too():
    defaults, _ = recognize_task({"task": "caption", "arch": "ofa_huge"}, "x.pt", "en")
    assert (defaults.prompt, defaults.generation["num_beams"]) == (" what does the image describe?", 10)
    assert (defaults.generation["length_penalty"], defaults.generation["beam_temperature"]) == (0.98, 0.98)
    defaults, _ = recognize_task({"task": "caption", "arch": "ofa_base"}, "x.pt", "en")
    assert (defaults.generation["num_beams"], "length_penalty" in defaults.generation) == (5, False)
    assert recognize_task({"task": "unify_task"}, "ofa_base.pt", "en")[1] == "name ofa_base.pt"
    assert recognize_task({}, "ofa_base.pt", "zh")[0].language == "zh"  # the vocabulary decides


@pytest.mark.parametrize("task", ["speech", 3])
def test_a_task_that_nobody_has_here_is_refused(task):
    with pytest.raises(UserError, match=f"x.pt was trained for the task '{task}'.*--task: caption, grounding"):
        recognize_task({"task": task}, "x.pt", "en")


def test_a_setting_whose_task_has_no_row_is_refused(monkeypatch):
    monkeypatch.setitem(SETTINGS, "vqa_en", replace(SETTINGS["vqa_en"], prompt=""))
    with pytest.raises(UserError, match="vqa_gen"):
        recognize_task({"task": "vqa_gen"}, "vqa_base_best.pt", "en")


def test_a_language_model_without_a_task_is_refused_unless_one_is_given():
    with pytest.raises(UserError, match="trained for the task 'language model'"):
        recognize_task({}, "ofa_tiny_plaintext.pt", "en")
    assert recognize_task({}, "ofa_tiny_plaintext.pt", "en", "summarization")[0].task == "summarization"


def test_the_users_task_wins_and_must_have_a_prompt_in_the_language():
    defaults, reason = recognize_task({"task": "my_task", "patch_image_size": 256}, "x.pt", "en", "vqa")
    assert (defaults.task, defaults.image_size, reason) == ("vqa", 256, "the task was given")
    with pytest.raises(UserError, match="no task 'entailment' for a checkpoint whose language is 'zh'.*caption"):
        recognize_task({}, "x.pt", "zh", "entailment")


def test_arguments_say_how_answers_start_and_how_colors_are_scaled():
    def changes(**arguments):
        return recognize_task(arguments, "x.pt", "en")[0].changes

    assert changes(task="vqa_gen", prompt_type="prev_output") == {}
    assert changes(task="vqa_gen", prompt_type="none") == {"starts_with": ""}
    assert changes(task="rte", prompt_type="prev_output") == {"starts_with": "question"}
    assert changes(task="image_classify", imagenet_default_mean_and_std=True) == {}
    assert changes(task="image_classify", imagenet_default_mean_and_std=False) == {"image": {}}
    ocr = changes(task="ocr", imagenet_default_mean_and_std=True)["image"]
    assert (ocr["fit"], ocr["image_mean"]) == ("center", [0.485, 0.456, 0.406])
    with pytest.raises(UserError, match="max_image_size=640, so its boxes are on another grid"):
        changes(task="refcoco", max_image_size=640)


def test_every_task_has_settings_in_each_of_its_languages():
    for name, task in TASKS.items():
        for language in task.prompts:
            assert SETTINGS[f"{name}_{language}"].task == name


def test_a_name_that_is_almost_right_is_recognized_as_such():
    assert nearest_names("caption_cn_bas.pt")[0] == "caption_cn_base"
    assert "YeungNLP/ofa-cn-base-muge-v2" in nearest_names("YeungNLP/ofa-cn-base-muge-v3")
    assert nearest_names("weights.bin") == []


def test_prompts_are_those_of_the_tasks_where_a_task_has_them():
    for name, settings in SETTINGS.items():
        if settings.task in TASKS and name != "legacy_v2_zh":  # that one was trained with another prompt
            assert settings.prompt == TASKS[settings.task].prompts[settings.language]
    for entry in FAIRSEQ_TASKS.values():
        assert any(f"{entry['settings']}_{language}" in SETTINGS for language in ("zh", "en"))
