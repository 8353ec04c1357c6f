"""A converted checkpoint offers the tasks it was trained for, and their pipelines."""

import json

import pytest
import small_checkpoints
import torch
from PIL import Image

from ofa_hf import OFAProcessor
from ofa_hf.conversion.convert import convert
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
def test_a_pretrained_checkpoint_offers_all_tasks_of_its_language(convert_as, task, name):
    processor, pipelines = convert_as(task, name)
    assert processor.default_task == "caption"
    assert set(processor.tasks) == {name for name, task in TASKS.items() if "zh" in task.prompts}
    assert set(pipelines) == {processor.find_task(name).pipeline for name in processor.tasks}
    for name in processor.tasks:  # this model has 40 positions
        assert processor.generation_kwargs(name).get("max_length", 0) <= 40


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
