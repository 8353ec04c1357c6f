"""The package's public names and its registration with the Auto classes."""

import json

import pytest
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForSeq2SeqLM, AutoProcessor
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

import ofa_hf


@pytest.fixture(scope="module")
def config():
    return ofa_hf.OFAConfig(
        vocab_size=120,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=32,
        resnet_type="resnet18",
    )


@pytest.mark.parametrize("name", ofa_hf.__all__)
def test_public_name_is_there_and_listed(name):
    assert isinstance(getattr(ofa_hf, name), type)
    assert name in dir(ofa_hf)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="NoSuchName"):
        _ = ofa_hf.NoSuchName


def test_name_of_the_old_article_is_the_captioning_class():
    assert ofa_hf.OFAModelForCaption is ofa_hf.OFAForConditionalGeneration


def test_auto_classes_build_the_packages_classes_without_remote_code(config):
    assert type(AutoConfig.for_model("ofa")) is ofa_hf.OFAConfig
    assert type(AutoModel.from_config(config)) is ofa_hf.OFAModel
    assert type(AutoModelForSeq2SeqLM.from_config(config)) is ofa_hf.OFAForConditionalGeneration
    assert type(AutoModelForImageTextToText.from_config(config)) is ofa_hf.OFAForConditionalGeneration
    if hasattr(transformers, "AutoModelForVision2Seq"):
        assert type(transformers.AutoModelForVision2Seq.from_config(config)) is ofa_hf.OFAForConditionalGeneration


def test_auto_processors_know_the_packages_classes():
    assert PROCESSOR_MAPPING[ofa_hf.OFAConfig] is ofa_hf.OFAProcessor
    found = IMAGE_PROCESSOR_MAPPING[ofa_hf.OFAConfig]  # a dict in transformers 5, a pair in 4
    assert ofa_hf.OFAImageProcessor in (found.values() if isinstance(found, dict) else found)
    assert ofa_hf.OFAProcessor._auto_class == AutoProcessor.__name__


@pytest.mark.parametrize("name", ["OFAForConditionalGeneration", "OFAModel"])
def test_save_pretrained_carries_every_code_file_its_config_points_to(name, config, tmp_path):
    getattr(ofa_hf, name)(config).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    targets = [*saved["auto_map"].values(), *(entry["impl"] for entry in saved["custom_pipelines"].values())]
    assert {"AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoProcessor"} <= saved["auto_map"].keys()
    for target in targets:
        module, class_name = target.split(".")
        assert f"class {class_name}(" in (tmp_path / f"{module}.py").read_text(encoding="utf-8"), target
