"""A model written as an official file converts back to itself."""

import torch

from ofa_hf import OFAForConditionalGeneration
from ofa_hf.conversion.configuration import config_from_fairseq
from ofa_hf.conversion.fairseq_reader import read_checkpoint
from ofa_hf.conversion.renames import match_weights
from ofa_hf.demo.pretraining import small_config
from ofa_hf.samples.official_file import official_name, write_official_checkpoint


def test_renames_are_undone_on_the_right_side():
    assert official_name("encoder.layers.0.self_attn_mid_layer_norm.weight") == "encoder.layers.0.attn_ln.weight"
    assert official_name("decoder.layers.0.self_attn_mid_layer_norm.weight") == "decoder.layers.0.self_attn_ln.weight"
    assert official_name("decoder.layers.1.cross_attn.q_proj.bias") == "decoder.layers.1.encoder_attn.q_proj.bias"
    assert official_name("encoder.layers.1.ffn_layer_norm.bias") == "encoder.layers.1.ffn_layernorm.bias"


def test_a_written_checkpoint_gives_the_model_back(tmp_path):
    torch.manual_seed(0)
    model = OFAForConditionalGeneration(small_config(9300))
    path = tmp_path / "small.pt"
    write_official_checkpoint(model, path, 64, task="vqa_gen")
    source = read_checkpoint(path)
    assert (source.settings["task"], source.settings["patch_image_size"]) == ("vqa_gen", 64)
    shapes = {name: tensor.shape for name, tensor in source.weights.items()}
    decisions = config_from_fairseq(source.settings, shapes, path.name)
    assert decisions.config.to_diff_dict() == model.config.to_diff_dict()
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    matched, account = match_weights(source.weights, expected, decisions.config, path.name)
    assert account.renamed
    assert account.recomputed
    assert account.dropped
    for name, tensor in matched.items():
        assert torch.equal(tensor.load(), model.state_dict()[name]), name
