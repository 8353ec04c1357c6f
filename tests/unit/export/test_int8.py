"""Int8 weights by torchao: what is quantized, that the Auto classes load them, and what the export says."""

import pytest
import tiny_shop
import torch
import transformers
from PIL import Image
from transformers import AutoModelForImageTextToText

from ofa_hf import OFAForConditionalGeneration
from ofa_hf.errors import UserError
from ofa_hf.export import int8
from ofa_hf.export.int8 import compare, export_int8, int8_config, load_images
from ofa_hf.versions_ofa import CAN_SAVE_INT8


quantization = pytest.importorskip("torchao.quantization", reason="torchao (the extra int8) is not installed")
saves_int8 = pytest.mark.skipif(not CAN_SAVE_INT8, reason="transformers 4 cannot save int8 weights as safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_shop.write_model(tmp_path_factory.mktemp("int8") / "tiny")


@pytest.fixture(scope="module")
def inputs():
    ids = torch.tensor([[0, 9, 12, 2], [0, 9, 2, 1]])
    return {"input_ids": ids, "pixel_values": torch.randn(2, 3, 32, 32), "decoder_input_ids": ids}


@torch.no_grad()
def logits(model, inputs) -> torch.Tensor:
    return model.eval()(**inputs).logits


def is_quantized(module: torch.nn.Module) -> bool:
    return type(module.weight).__name__ == "Int8Tensor"


@pytest.mark.parametrize("kind", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
def test_any_folder_can_be_quantized_while_it_is_loaded(folder, inputs, kind):
    """By the Auto class of a stranger, with torchao's own settings."""
    config = transformers.TorchAoConfig(getattr(quantization, kind)())
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, quantization_config=config)
    plain = OFAForConditionalGeneration.from_pretrained(folder)
    assert is_quantized(model.decoder.layers[0].fc1)
    torch.testing.assert_close(logits(model, inputs), logits(plain, inputs), rtol=0, atol=0.1)
    assert model.generate(**{**inputs, "decoder_input_ids": None}, num_beams=3).shape[0] == 2


@pytest.mark.parametrize("parts", ["all", "decoder"])
def test_layers_are_quantized_and_shared_embedding_and_positions_are_not(folder, parts):
    model = OFAForConditionalGeneration.from_pretrained(folder, quantization_config=int8_config(parts))
    assert is_quantized(model.encoder.layers[0].fc1) == (parts == "all")
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    quantized = {name for name in linear if is_quantized(model.get_submodule(name))}
    assert {name for name in linear if name.startswith("decoder.layers.")} <= quantized
    assert all(".layers." in name for name in quantized)
    assert model.decoder.output_projection.weight is model.encoder.embed_tokens.weight


@saves_int8
def test_a_saved_folder_gives_the_same_logits_through_the_auto_class(folder, inputs, tmp_path):
    model = OFAForConditionalGeneration.from_pretrained(folder, quantization_config=int8_config())
    model.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    assert is_quantized(loaded.encoder.layers[0].fc1)
    assert loaded.decoder.output_projection.weight is loaded.encoder.embed_tokens.weight
    assert torch.equal(logits(loaded, inputs), logits(model, inputs))


@pytest.mark.skipif(CAN_SAVE_INT8, reason="transformers 5 can")
def test_transformers_4_is_told_what_to_do_instead(folder, tmp_path):
    with pytest.raises(UserError, match="quantization_config"):
        export_int8(str(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@saves_int8
def test_weights_that_are_quantized_are_not_quantized_again(folder, tmp_path):
    model = OFAForConditionalGeneration.from_pretrained(folder, quantization_config=int8_config())
    model.save_pretrained(tmp_path / "int8")
    for file in ("tokenizer.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json"):
        (tmp_path / "int8" / file).write_bytes((folder / file).read_bytes())
    with pytest.raises(UserError, match="quantized already"):
        export_int8(str(tmp_path / "int8"), tmp_path / "out")


@saves_int8
def test_a_folder_that_captions_otherwise_is_not_kept(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(int8, "run_fresh", lambda *_, **__: {"tokens": [[0, 5, 2]]})
    (tmp_path / "images").mkdir()
    Image.new("RGB", (9, 9), "red").save(tmp_path / "images" / "one.png")
    with pytest.raises(UserError, match="answers differently"):
        export_int8(str(folder), tmp_path / "out", images=tmp_path / "images")
    assert not list(tmp_path.glob("*out*"))


def test_the_effect_counts_captions_and_measures_scores():
    before = [{"tokens": [0, 5, 2], "scores": torch.tensor([0.0, 1.0])}, {"tokens": [0, 2], "scores": torch.ones(2)}]
    after = [{"tokens": [0, 5, 2], "scores": torch.tensor([0.0, 3.0])}, {"tokens": [0, 3], "scores": torch.ones(2)}]
    effect = compare(before, after)
    assert (effect["images"], effect["same_captions"], effect["same_first_tokens"]) == (2, 1, 2)
    assert (effect["mean_score_difference"], effect["max_score_difference"]) == (0.5, 2.0)


def test_without_images_some_are_drawn():
    assert len(load_images(None)) == int8.NUM_IMAGES
