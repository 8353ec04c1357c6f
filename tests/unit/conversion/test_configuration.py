"""Sizes are read off the tensors; arguments that contradict them are refused with both values."""

import json
from pathlib import Path

import pytest

from ofa_hf.conversion.configuration import config_from_fairseq, config_from_legacy
from ofa_hf.conversion.renames import rename_key
from ofa_hf.errors import UserError


GOLDEN = Path(__file__).parents[3].parent / "shared" / "golden"
COMPARED = "vocab_size d_model encoder_layers decoder_layers encoder_attention_heads decoder_attention_heads".split()
COMPARED += "encoder_ffn_dim decoder_ffn_dim max_position_embeddings resnet_type token_bucket_size".split()
COMPARED += "image_bucket_size code_image_size attn_scale_factor".split()


@pytest.fixture
def shapes(model_weights):
    return {name: tuple(tensor.shape) for name, tensor in model_weights.items()}


def test_arguments_and_tensors_give_the_configuration(arguments, shapes, tiny_config):
    decisions = config_from_fairseq(vars(arguments), shapes, "model.pt")
    for name in COMPARED:
        assert getattr(decisions.config, name) == getattr(tiny_config, name), name
    assert "d_model" in decisions.confirmed
    assert "code_image_size" in decisions.from_settings
    assert "dropout" in decisions.defaults
    assert decisions.size == "custom"


def test_without_arguments_the_tensors_decide(shapes, tiny_config):
    decisions = config_from_fairseq({}, shapes, "model.pt")
    for name in set(COMPARED) - {"code_image_size", "attn_scale_factor"}:
        assert getattr(decisions.config, name) == getattr(tiny_config, name), name
        assert name in decisions.from_shapes


@pytest.mark.parametrize(
    ("name", "value", "seen"),
    [
        ("encoder_embed_dim", 64, "d_model=32"),
        ("encoder_layers", 6, "encoder_layers=2"),
        ("decoder_attention_heads", 4, "decoder_attention_heads=2"),
        ("decoder_ffn_embed_dim", 65, "decoder_ffn_dim=64"),
        ("max_target_positions", 1024, "max_position_embeddings=40"),
        ("resnet_type", "resnet101", "resnet_type=resnet18"),
        ("token_bucket_size", 256, "token_bucket_size=8"),
        ("image_bucket_size", 42, "image_bucket_size=8"),
        ("vocab_size", 30325, "vocab_size="),
    ],
)
def test_contradictions_are_refused_with_both_values(arguments, shapes, name, value, seen):
    settings = {**vars(arguments), name: value}
    with pytest.raises(UserError, match=f"{name}={value}.*{seen}"):
        config_from_fairseq(settings, shapes, "model.pt")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scale_resids", True),
        ("scale_heads", False),
        ("disable_entangle", False),
        ("entangle_position_embedding", True),
        ("interpolate_position", True),
        ("activation_fn", "relu"),
        ("no_scale_embedding", False),
    ],
)
def test_other_variants_are_refused_by_name(arguments, shapes, name, value):
    with pytest.raises(UserError, match=f"{name}={value}.*another variant"):
        config_from_fairseq({**vars(arguments), name: value}, shapes, "model.pt")


@pytest.mark.parametrize("value", ["six", 2.5, True, 10**40, -3, float("nan")])
def test_arguments_of_another_type_are_refused(arguments, shapes, value):
    with pytest.raises(UserError, match="encoder_layers"):
        config_from_fairseq({**vars(arguments), "encoder_layers": value}, shapes, "model.pt")


@pytest.mark.parametrize("value", [float("inf"), "2", 10**400, 0.5j])
def test_impossible_rates_are_refused(arguments, shapes, value):
    with pytest.raises(UserError, match="attn_scale_factor"):
        config_from_fairseq({**vars(arguments), "attn_scale_factor": value}, shapes, "model.pt")


def test_a_file_without_ofa_weights_is_no_ofa_checkpoint():
    with pytest.raises(UserError, match=r"not an OFA checkpoint: it has no weight encoder.embed_tokens.weight"):
        config_from_fairseq({}, {"bert.embeddings.weight": (10, 10)}, "bert.bin")


def test_a_missing_layer_is_named(shapes):
    broken = {name: shape for name, shape in shapes.items() if not name.startswith("decoder.layers.1.")}
    with pytest.raises(UserError, match=r"decoder.layers.1.\*"):
        config_from_fairseq({}, broken, "model.pt")


def test_an_unknown_trunk_is_refused_with_its_blocks(shapes):
    more = {**shapes, "encoder.embed_images.layer3.2.conv1.weight": (1, 1, 1, 1)}
    with pytest.raises(UserError, match=r"\[2, 2, 3\] blocks"):
        config_from_fairseq({}, more, "model.pt")


def test_legacy_fields_are_checked_and_unknown_ones_noted(shapes, tiny_config):
    values = {"model_type": "ofa", "d_model": 32, "normformer": True, "init_std": 0.02, "favourite_colour": "red"}
    decisions = config_from_legacy({**values, "code_image_size": 64}, shapes, "folder")
    assert decisions.config.code_image_size == tiny_config.code_image_size
    assert "favourite_colour" in decisions.notes[0]
    with pytest.raises(UserError, match="d_model=64.*d_model=32"):
        config_from_legacy({**values, "d_model": 64}, shapes, "folder")
    with pytest.raises(UserError, match="normformer=False"):
        config_from_legacy({**values, "normformer": False}, shapes, "folder")
    with pytest.raises(UserError, match="type bert"):
        config_from_legacy({"model_type": "bert"}, shapes, "folder")


@pytest.mark.parametrize("vocabulary", [("golden", "cn", 30325), ("golden_tasks", "en", 59457)])
@pytest.mark.parametrize("arch", ["tiny", "medium", "base", "large", "huge"])
def test_recorded_official_arguments_agree_with_recorded_shapes(arch, vocabulary):
    folder, language, vocab_size = vocabulary
    if not GOLDEN.is_dir():
        pytest.skip("needs ../shared/golden (names, shapes and arguments of the official checkpoints)")
    spec = json.loads((GOLDEN.parent / folder / "specs" / f"spec_{arch}_{language}.json").read_text(encoding="utf-8"))
    shapes = {rename_key(name): tuple(shape) for name, shape, _ in spec["params"]}
    decisions = config_from_fairseq(spec["args"], shapes, f"{arch}.pt")
    assert (decisions.size, decisions.config.vocab_size) == (arch, vocab_size)
    assert decisions.from_shapes == []


@pytest.mark.parametrize("arch", ["base", "large"])
def test_recorded_legacy_configurations_agree_with_recorded_shapes(arch):
    if not GOLDEN.is_dir():
        pytest.skip("needs ../shared/golden (config.json as OFA-Chinese wrote it)")
    spec = json.loads((GOLDEN / "specs" / f"spec_{arch}_cn.json").read_text(encoding="utf-8"))
    values = json.loads((GOLDEN / "legacy_config" / f"{arch}.json").read_text(encoding="utf-8"))
    shapes = {rename_key(name): tuple(shape) for name, shape, _ in spec["params"]}
    decisions = config_from_legacy(values, shapes, arch)
    assert decisions.size == arch
    assert decisions.notes == []
