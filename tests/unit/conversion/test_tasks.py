"""A converted checkpoint offers the tasks it was trained for, and their pipelines."""

import json
from pathlib import Path

import pytest
import small_checkpoints
import torch
from PIL import Image

from ofa_hf import OFAConfig, OFAProcessor
from ofa_hf.conversion.convert import ConversionAccount, convert
from ofa_hf.conversion.sources import open_source
from ofa_hf.conversion.tasks import name_pipelines, recognize_task
from ofa_hf.errors import UserError
from ofa_hf.tasks_ofa import TASKS


@pytest.fixture
def convert_as(official_weights, arguments, vocab_file, tmp_path):
    """Convert a file whose settings name a task."""

    def run(task: str, name: str = "x.pt"):
        arguments.task = task
        file = small_checkpoints.write_official(tmp_path / name, official_weights, arguments)
        convert(file, tmp_path / "out", vocab_file, verify=False)
        config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
        return OFAProcessor.from_pretrained(tmp_path / "out"), config["custom_pipelines"]

    return run


def test_a_grounding_checkpoint_locates(convert_as):
    processor, pipelines = convert_as("refcoco")
    assert list(processor.tasks) == ["grounding"]
    assert processor.prompt_for(text="红色裙子") == '这段文字" 红色裙子 "描述的是哪个区域？'
    assert processor.find_task().answer == "boxes"
    assert list(pipelines) == ["zero-shot-object-detection"]
    # its own generation settings are in generation_config.json, so that options of the conversion count
    assert list(processor.generation_kwargs()) == ["logits_processor"]


@pytest.mark.parametrize(
    ("task", "name"), [("unify_task", "x.pt"), ("unify_cn_task", "x.pt"), ("other", "ofa_cn_base.pt")]
)
def test_a_pretrained_checkpoint_offers_all_tasks_of_its_language(convert_as, task, name, tmp_path):
    processor, pipelines = convert_as(task, name)
    folder = tmp_path / "out"
    assert processor.default_task == "caption"
    assert set(processor.tasks) == {name for name, task in TASKS.items() if "zh" in task.prompts}
    assert set(pipelines) == {processor.find_task(name).pipeline for name in processor.tasks}
    account = json.loads((folder / "conversion.json").read_text(encoding="utf-8"))
    assert set(account["checkpoint"]["tasks"]) == set(processor.tasks)
    assert "also trained for grounding, ocr" in "\n".join(ConversionAccount(folder, account).lines())
    for name in processor.tasks:  # this model has 40 positions
        assert processor.generation_kwargs(name).get("max_length", 0) <= 40


def test_arguments_of_finetuning_change_the_tasks_row(convert_as, arguments):
    arguments.prompt_type = "none"
    processor, pipelines = convert_as("vqa_gen")
    assert (list(processor.tasks), processor.find_task().starts_with) == (["vqa"], "")
    assert list(pipelines) == ["visual-question-answering"]


@pytest.mark.parametrize(("name", "number"), [("ofa-cn-base", 5), ("ofa-cn-base-muge", 1)])
def test_a_legacy_folder_offers_all_tasks_if_it_is_known_as_pretrained(
    legacy_folder, vocab_file, tmp_path, name, number
):
    folder = legacy_folder.rename(tmp_path / name)
    convert(folder, tmp_path / "out", vocab_file, verify=False, image_size=96)
    processor = OFAProcessor.from_pretrained(tmp_path / "out")
    assert (len(processor.tasks), processor.default_task) == (number, "caption")


def test_pipelines_are_those_of_the_processors_tasks(convert_as, tmp_path):
    processor, _ = convert_as("caption")
    tasks = {"caption": {}, "vqa": {}, "color": {"prompt": "颜色?", "answer": "choice", "choices": ["红", "蓝"]}}
    parts = processor.image_processor, processor.tokenizer
    config = OFAConfig.from_pretrained(tmp_path / "out")
    name_pipelines(config, OFAProcessor(*parts, tasks=tasks, default_task="vqa"))
    assert set(config.custom_pipelines) == {"visual-question-answering", "image-to-text"}


def test_the_task_can_be_named(convert_as, vocab_file, tmp_path):
    with pytest.raises(UserError, match="trained for the task 'mine'.*--task: caption, grounding"):
        convert_as("mine")
    convert(tmp_path / "x.pt", tmp_path / "out", vocab_file, task="ocr", verify=False)
    assert list(OFAProcessor.from_pretrained(tmp_path / "out").tasks) == ["ocr"]


REAL_VOCABULARY = Path(__file__).resolve().parents[4] / "shared" / "vocab_en"


@pytest.mark.skipif(not REAL_VOCABULARY.is_dir(), reason="shared/vocab_en is not next to this repository")
def test_an_english_checkpoint_of_each_task_asks_with_the_official_tokens(arguments, tmp_path):
    config = small_checkpoints.make_config(59457)
    weights = small_checkpoints.make_official_weights(config, small_checkpoints.make_weights(config))
    asked = {"vqa_gen": "What color is the dog?", "refcoco": "What color is the dog?", "image_classify": None}
    expected = {
        "vqa_gen": [0, 99, 3195, 16, 5, 2335, 116, 2],
        "refcoco": [0, 61, 976, 473, 5, 2788, 22, 99, 3195, 16, 5, 2335, 116, 22, 6190, 116, 2],
        "image_classify": [0, 99, 473, 5, 2274, 6190, 116, 2],
    }
    for task, text in asked.items():
        arguments.task = task
        file = small_checkpoints.write_official(tmp_path / f"{task}.pt", weights, arguments)
        convert(file, tmp_path / task, REAL_VOCABULARY, verify=False)
        processor = OFAProcessor.from_pretrained(tmp_path / task)
        image = Image.new("RGB", (40, 30))
        ids = processor(image, text=text, task=processor.default_task)["input_ids"][0].tolist()
        assert ids == expected[task]


def test_a_finetuned_checkpoint_offers_its_own_task(convert_as):
    processor, pipelines = convert_as("caption", "ofa_cn_base.pt")
    assert list(processor.tasks) == ["caption"]
    assert list(pipelines) == ["image-to-text"]


def test_an_ocr_checkpoint_reads_images_in_their_own_shape(convert_as):
    processor, pipelines = convert_as("ocr")
    assert list(processor.tasks) == ["ocr"]
    assert processor.prompt_for() == "图片上的文字是什么?"
    wide = Image.new("RGB", (40, 10), "red")
    wide.paste("blue", (0, 0, 40, 5))
    pixels = processor(wide)["pixel_values"][0]
    assert torch.equal(pixels, processor.image_processor(wide, fit="center", return_tensors="pt")["pixel_values"][0])
    assert not torch.equal(pixels, processor.image_processor(wide, return_tensors="pt")["pixel_values"][0])
    assert list(pipelines) == ["image-to-text"]


def test_a_task_of_another_language_needs_a_prompt(official_weights, arguments, tmp_path):
    source = open_source(small_checkpoints.write_official(tmp_path / "x.pt", official_weights, arguments))
    defaults, reason = recognize_task(source, "zh", "image_generation", "画出：{text}")
    assert (defaults.task, defaults.language, reason) == (
        "image_generation",
        "zh",
        "the task and its prompt were given",
    )
    with pytest.raises(UserError, match="There is no task 'image_generation' for a checkpoint whose language is 'zh'"):
        recognize_task(source, "zh", "image_generation")
    with pytest.raises(UserError, match="There is no task 'sculpture'"):
        recognize_task(source, "zh", "sculpture", "刻出：{text}")
