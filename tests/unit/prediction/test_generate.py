"""Promises of `ofa_hf.prediction.generate`: no image vanishes, the model is left as it was."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from ofa_hf.errors import UserError
from ofa_hf.prediction.generate import evaluate_model, generate_captions, load_model


class Namer:
    """A model and processor in one that captions per image by its colour, and notes its batches."""

    def __init__(self):
        self.model = self
        self.training = True
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.batches: list[int] = []
        self.settings: dict = {}

    def eval(self):
        self.training = False

    def train(self, mode: bool):
        self.training = mode

    def __call__(self, images, return_tensors):
        pixels = torch.tensor([image.getpixel((0, 0)) for image in images], dtype=torch.float64)
        return Batch(pixel_values=pixels)

    def generate(self, pixel_values, **settings):
        assert not self.training
        assert pixel_values.dtype == self.dtype
        self.settings = settings
        self.batches.append(len(pixel_values))
        return pixel_values.argmax(-1)

    def batch_decode(self, ids, skip_special_tokens):
        return ["红绿蓝"[index] + "色" for index in ids]


class Batch(dict):
    def to(self, device):
        return self


def row(image_id: str, colour) -> dict:
    return {"id": image_id, "image": Image.new("RGB", (4, 4), colour) if isinstance(colour, str) else colour}


ROWS = [row("a", "red"), row("b", "lime"), row("c", b"no image"), row("d", "blue"), row("e", "red")]


def test_captions_come_in_order_in_batches_and_broken_images_get_empty_ones():
    model = Namer()
    captions = list(generate_captions(model, model, ROWS, batch_size=2, num_beams=5))
    assert captions == [("a", "红色"), ("b", "绿色"), ("c", ""), ("d", "蓝色"), ("e", "红色")]
    assert model.batches == [2, 1, 1]
    assert model.settings == {"num_beams": 5}
    assert model.training  # as before


def test_a_batch_of_broken_images_asks_the_model_nothing():
    model = Namer()
    assert list(generate_captions(model, model, [row("x", b"")] * 3, batch_size=3)) == [("x", "")] * 3
    assert model.batches == []


def test_evaluation_counts_missing_images_and_passes_over_unknown_ones():
    references = {"a": ["红色"], "c": ["白色"], "d": ["蓝色"], "gone": ["绿色"]}
    model = Namer()
    result = evaluate_model(model, model, ROWS, references, batch_size=4, run={"model": "namer"}, num_beams=2)
    assert result.predictions == {"a": "红色", "c": "", "d": "蓝色", "gone": ""}
    assert result.run == {"model": "namer", "batch_size": 4, "num_beams": 2, "images_missing": 1}
    assert result.scores.rouge_l == pytest.approx(50)


def test_images_and_captions_that_share_no_id_are_told():
    model = SimpleNamespace(training=False, eval=lambda: None, train=lambda mode: None)
    with pytest.raises(UserError, match="share no id"):
        evaluate_model(model, None, ROWS, {"other": ["红色"]})


def test_a_folder_without_a_model_is_said(tmp_path):
    with pytest.raises(UserError, match="Cannot load a model"):
        load_model(str(tmp_path))
