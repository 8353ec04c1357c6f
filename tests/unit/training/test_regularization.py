"""Rates of a run are on the modules; the config keeps the checkpoint's."""

import pytest

from ofa_hf.models import load_model
from ofa_hf.training.regularization import regularize


def test_dropout_and_stochastic_depth_reach_the_network_and_not_its_config(parse, shop):
    args, _ = parse(dropout=0.4, decoder_drop_path_rate=0.2, encoder_drop_path_rate=0.3, resnet_drop_path_rate=0.1)
    model, _ = load_model(shop["model_name_or_path"], device="cpu")
    before = model.config.to_dict()
    regularize(model, args)
    assert {layer.dropout.p for layer in model.decoder.layers} == {0.4}
    assert (model.encoder.dropout.p, model.decoder.dropout.p) == (0.4, 0.4)
    assert {layer.activation_dropout.p for layer in model.decoder.layers} == {before["activation_dropout"]}
    assert [layer.drop_path_rate for layer in model.decoder.layers] == pytest.approx([0.0, 0.2])
    assert [layer.drop_path_rate for layer in model.encoder.layers] == pytest.approx([0.0])
    assert [block.drop_path_rate for block in model.encoder.embed_images.layer2] == pytest.approx([0.0, 0.1])
    assert model.config.to_dict() == before


def test_a_checkpoint_keeps_its_dropout_unless_the_run_names_one(parse, shop):
    model, _ = load_model(shop["model_name_or_path"], device="cpu")
    regularize(model, parse()[0])
    assert {layer.dropout.p for layer in model.encoder.layers} == {model.config.dropout}


def test_stochastic_depth_that_a_checkpoint_was_trained_with_ends_with_its_run(parse, shop):
    """Folders that earlier versions finetuned carry the rates in their config."""
    model, _ = load_model(shop["model_name_or_path"], device="cpu", decoder_drop_path_rate=0.5)
    assert model.decoder.layers[1].drop_path_rate == 0.5
    regularize(model, parse()[0])
    assert model.decoder.layers[1].drop_path_rate == 0.0
