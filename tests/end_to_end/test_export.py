"""The real command: ONNX graphs that onnxruntime runs without torch, int8 weights that a stranger loads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_shop
import torch
from PIL import Image

from ofa_hf import OFAConfig, OFAForConditionalGeneration, OFAImageProcessor, OFAProcessor
from ofa_hf.cli import main
from ofa_hf.versions_ofa import CAN_SAVE_INT8


LARGEST = 480
TOLERANCE = 1e-4


def export(*words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "ofa_hf", "export", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model that knows positions for 480 pixels."""
    folder = tiny_shop.write_model(tmp_path_factory.mktemp("export") / "tiny")
    config = OFAConfig.from_pretrained(folder)
    config.image_bucket_size, config.init_range = LARGEST // 16, 0.3
    torch.manual_seed(0)
    model = OFAForConditionalGeneration(config)
    model.generation_config.update(num_beams=3, max_length=12, no_repeat_ngram_size=3, early_stopping=True)
    model.save_pretrained(folder)
    processor = OFAProcessor.from_pretrained(folder)
    OFAProcessor(OFAImageProcessor(size=256), processor.tokenizer).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_the_command_writes_graphs_that_say_what_the_model_says(folder, tmp_path):
    """One test, since tracing takes half a minute and workers share no fixture."""
    for library in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(library, reason=f"{library} (the extra onnx) is not installed")
    result = export(folder, tmp_path / "onnx", "--format", "onnx", "--json")
    assert result.returncode == 0, result.stderr
    check_that_the_folder_is_whole(tmp_path / "onnx", json.loads(result.stdout))
    model = OFAForConditionalGeneration.from_pretrained(folder).eval()
    for size in ((256, 256), (LARGEST, LARGEST), (100, 333)):
        check_a_batch_with_padded_prompts(tmp_path / "onnx", model, size)
    for size in (256, LARGEST):
        check_captions(tmp_path / "onnx", model, folder, size, tmp_path)


def check_that_the_folder_is_whole(out: Path, values: dict) -> None:
    assert values["proof"]["max_difference"] < TOLERANCE
    assert values == json.loads((out / "export.json").read_text())
    assert "exported by ofa-hf" in (out / "README.md").read_text()
    names = {file.name for file in out.iterdir()}
    assert {"encoder.onnx", "decoder.onnx", "caption.py", "generation_config.json", "tokenizer.json"} <= names
    assert names.isdisjoint({"modeling_ofa.py", "model.safetensors"})
    assert [entry.name for entry in out.parent.iterdir()] == ["onnx"]


def check_a_batch_with_padded_prompts(out: Path, model, size: tuple[int, int]) -> None:
    from ofa_hf.export.caption_onnx import Model, Steps

    input_ids = torch.tensor([[0, 9, 14, 20, 16, 2], [0, 31, 2, 1, 1, 1]])
    inputs = {"pixel_values": torch.randn(2, 3, *size), "input_ids": input_ids}
    inputs["attention_mask"] = (input_ids != 1).long()
    rows = torch.randint(4, 40, (6, 5))  # three beams per image
    with torch.no_grad():
        expected = model(**inputs, decoder_input_ids=rows).logits.numpy()
    runner = Model.load(out)
    steps = Steps(runner, runner.encoder({name: value.numpy() for name, value in inputs.items()}))
    for step in range(rows.shape[1]):
        assert np.abs(steps(rows[:, step].numpy()) - expected[:, step]).max() < TOLERANCE


def check_captions(out: Path, model, folder: Path, size: int, tmp_path: Path) -> None:
    """Greedy and beam search, on images read from files."""
    from ofa_hf.export.caption_onnx import Captioner

    processor = OFAProcessor.from_pretrained(folder)
    for num_beams in (1, 3):
        captioner = Captioner(out, num_beams=num_beams)
        captioner.image_settings["size"] = {"height": size, "width": size}
        for number in range(2):
            path = tmp_path / f"{number}.png"
            pixels = np.random.default_rng(number).integers(0, 256, (40, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
            inputs = processor(images=str(path), size=size, return_tensors="pt")
            expected, found = model.generate(**inputs, num_beams=num_beams)[0], captioner(path)
            assert found["tokens"] == expected.tolist()
            assert found["caption"] == processor.decode(expected)


@pytest.mark.slow
@pytest.mark.skipif(not CAN_SAVE_INT8, reason="transformers 4 cannot save int8 weights")
def test_the_command_writes_int8_weights_and_tells_the_effect(folder, tmp_path):
    pytest.importorskip("torchao", reason="torchao (the extra int8) is not installed")
    (tmp_path / "images").mkdir()
    for colour in ("red", "blue"):
        Image.new("RGB", (20, 30), colour).save(tmp_path / "images" / f"{colour}.png")
    images = ("--images", tmp_path / "images")
    result = export(folder, tmp_path / "int8", "--format", "int8", "--dtype", "bfloat16", *images, "--json")
    assert result.returncode == 0, result.stderr
    values = json.loads(result.stdout)
    assert values["dtype"] == "torch.bfloat16"
    assert values["effect"]["images"] == 2
    assert values["effect"]["mean_score_difference"] < 0.2
    assert (tmp_path / "int8" / "README.md").is_file()


def test_wrong_usage_is_status_2():
    with pytest.raises(SystemExit, match="2"):
        main(["export", "model", "out", "--format", "onnx", "--dtype", "bfloat16"])
