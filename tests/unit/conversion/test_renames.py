"""Every weight is accounted for; nothing unknown, missing, doubled or misshapen passes."""

import json
from pathlib import Path

import pytest
import torch

from ofa_hf.conversion.renames import match_weights, recomputed_tables, rename_key
from ofa_hf.errors import UserError


GOLDEN = Path(__file__).parents[3].parent / "shared" / "golden"


class InMemory:
    """A tensor with the interface of stored ones."""

    def __init__(self, tensor):
        self.tensor, self.dtype, self.shape = tensor, tensor.dtype, tensor.shape

    def load(self):
        return self.tensor

    def same_place(self, other):
        return self.tensor is other.tensor


@pytest.fixture
def expected(model_weights):
    return {name: tensor.shape for name, tensor in model_weights.items()}


def match(weights, expected, config):
    return match_weights({name: InMemory(tensor) for name, tensor in weights.items()}, expected, config, "model.pt")


def test_every_official_weight_gets_its_place_and_is_named_once(
    official_weights, model_weights, expected, tiny_config
):
    matched, account = match(official_weights, expected, tiny_config)
    assert matched.keys() | account.tied.keys() == model_weights.keys()
    for name, tensor in matched.items():
        assert tensor.load() is model_weights[name]
    named = [*account.renamed, *account.kept, *account.tied, *account.recomputed, *account.dropped]
    assert sorted(named) == sorted(official_weights)
    assert len(account.recomputed) == 5
    assert account.dropped == ["encoder.version", "decoder.version"]
    assert account.filled == []


def test_legacy_weights_keep_their_names(model_weights, expected, tiny_config):
    _, account = match(model_weights, expected, tiny_config)
    assert account.renamed == {}
    assert len(account.kept) + len(account.tied) == len(model_weights)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("encoder.layers.0.adapter.down_proj.weight", "merged first"),
        ("encoder.encoder_prompt_encoder.embd.weight", "prompt-tuned"),
        ("classification_heads.snli.dense.weight", "classification heads"),
        ("encoder.layers.0.w_resid", "scaled residuals"),
        ("something.else", "as published"),
    ],
)
def test_unknown_weights_are_refused_by_name_with_a_hint(official_weights, expected, tiny_config, key, hint):
    official_weights[key] = official_weights[f"{key}.2"] = torch.ones(1)
    with pytest.raises(UserError, match=rf"Unknown weights in model.pt: {key} \(\+1\).*{hint}"):
        match(official_weights, expected, tiny_config)


def test_missing_weights_are_refused_by_name(official_weights, expected, tiny_config):
    del official_weights["decoder.layers.1.encoder_attn.k_proj.bias"]
    with pytest.raises(UserError, match=r"Missing weights in model.pt: decoder.layers.1.cross_attn.k_proj.bias"):
        match(official_weights, expected, tiny_config)


def test_a_weight_under_two_names_is_refused(official_weights, expected, tiny_config):
    official_weights["encoder.layers.0.self_attn_mid_layer_norm.bias"] = torch.zeros(32)
    with pytest.raises(UserError, match="which are the same weight"):
        match(official_weights, expected, tiny_config)


@pytest.mark.parametrize("tensor", [torch.zeros(33), torch.zeros(32, dtype=torch.int64), torch.zeros(32).double()])
def test_weights_of_another_shape_or_type_are_refused(official_weights, expected, tiny_config, tensor):
    official_weights["encoder.layer_norm.bias"] = tensor
    with pytest.raises(UserError, match=r"encoder.layer_norm.bias of model.pt is .* expected float32"):
        match(official_weights, expected, tiny_config)


def test_tied_names_with_different_numbers_are_refused(official_weights, expected, tiny_config):
    official_weights["decoder.output_projection.weight"] = official_weights["encoder.embed_tokens.weight"] + 1
    with pytest.raises(UserError, match=r"decoder.output_projection.weight and encoder.embed_tokens.weight .* differ"):
        match(official_weights, expected, tiny_config)


def test_tied_names_may_be_absent(official_weights, expected, tiny_config):
    del official_weights["decoder.output_projection.weight"]
    matched, account = match(official_weights, expected, tiny_config)
    assert list(account.tied) == ["decoder.embed_tokens.weight"]
    assert "decoder.output_projection.weight" not in matched


@pytest.mark.parametrize("name", ["encoder.token_rp_bucket", "decoder.image_rp_bucket", "decoder.image_position_idx"])
def test_another_index_table_is_refused(official_weights, expected, tiny_config, name):
    official_weights[name] = official_weights[name].clone()
    official_weights[name].view(-1)[3] += 1
    with pytest.raises(UserError, match=name):
        match(official_weights, expected, tiny_config)


def test_counters_of_a_frozen_trunk_may_be_absent(official_weights, expected, tiny_config):
    counters = [name for name in official_weights if name.endswith("num_batches_tracked")]
    for name in counters:
        del official_weights[name]
    _, account = match(official_weights, expected, tiny_config)
    assert sorted(account.filled) == sorted(counters)


def test_recorded_names_of_real_checkpoints_are_renamed_as_recorded():
    if not GOLDEN.is_dir():
        pytest.skip("needs ../shared/golden (recorded names of the official checkpoints)")
    facts = json.loads((GOLDEN / "rename_facts.json").read_text(encoding="utf-8"))["arch"]["base"]["renamed"]
    assert {name: rename_key(name) for name in facts} == facts


@pytest.mark.parametrize("arch", ["base", "large"])
def test_recomputed_tables_are_the_recorded_ones(arch):
    import hashlib

    from ofa_hf import OFAConfig

    if not GOLDEN.is_dir():
        pytest.skip("needs ../shared/golden (digests of the official index tables)")
    spec = json.loads((GOLDEN / "specs" / f"spec_{arch}_cn.json").read_text(encoding="utf-8"))
    tables = recomputed_tables(OFAConfig())
    for name, shape, _, digest in spec["computed_buffers"]:
        if name in tables:
            table = tables[name](torch.Size(shape))
            assert list(table.shape) == shape
            assert hashlib.sha256(table.contiguous().numpy().tobytes()).hexdigest() == digest, name
