"""Stochastic depth with the official draws put in: which samples lose which part, and what comes out."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.recorded import PAD, digest, name_here, official_weights, pixel_values, state_dict_here
from fixtures.stages import GRADIENTS, STATES

from ofa_hf.configuration_ofa import OFAConfig
from ofa_hf.modeling_ofa import OFAForConditionalGeneration


FOLDER = Path(__file__).parents[2].parent / "shared" / "golden_train"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs the recordings in ../shared/golden_train, not here")

RATES = ("encoder_drop_path_rate", "decoder_drop_path_rate", "resnet_drop_path_rate")


@pytest.fixture(scope="module")
def recorded():
    return json.loads((FOLDER / "train_droppath.json").read_text(encoding="utf-8"))


def build(recorded: dict, case: dict) -> OFAForConditionalGeneration:
    """The recorded network in training mode, with the case's rates; BatchNorm as the case has it."""
    name = "mini" if case["layers"] == [2, 2] else "mini43"
    spec = json.loads((FOLDER / "specs" / f"spec_{name}_cn.json").read_text(encoding="utf-8"))
    weights = official_weights(recorded["meta"]["seed"], {key: tuple(shape) for key, shape, _ in spec["params"]})
    assert digest(weights) == case["weights_sha256"]
    flags = dict(flag.removeprefix("--").replace("-", "_").split("=") for flag in case["model_flags"])
    config = OFAConfig(
        d_model=64,
        encoder_layers=case["layers"][0],
        decoder_layers=case["layers"][1],
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        resnet_type="resnet18",
        dropout=0.0,
        **{rate: float(flags[rate]) for rate in RATES},
    )
    model = OFAForConditionalGeneration(config)
    model.load_state_dict(state_dict_here(weights))
    model.train()
    if case["batchnorm"] != "train mode":
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval().requires_grad_(False)
    return model


@pytest.mark.parametrize("name", ["none", "enc_dec", "enc4_dec3", "resnet", "resnet_bn_train"])
def test_official_draws_give_the_official_outputs_and_gradients(recorded, name, monkeypatch):
    case, inputs = recorded["cases"][name], recorded["inputs"]
    calls = iter(case["calls_in_order"])

    def recorded_draw(size, dtype=None, device=None):
        call = next(calls)
        draw = torch.tensor(call["rand"], dtype=dtype)
        assert torch.floor(1 - call["drop_prob"] + draw).tolist() == call["mask"]
        assert draw.numel() == torch.Size(size).numel() == size[0], "one draw a sample"
        return draw.reshape(size)

    rounding = 10 if case["batchnorm"] == "train mode" else 1  # dividing by a batch's deviation makes it larger
    model = build(recorded, case)
    model.encoder.embed_tokens.requires_grad_(False)
    monkeypatch.setattr(torch, "rand", recorded_draw)
    labels = torch.tensor(inputs["target"])
    images = [pixel_values(recorded["meta"]["seed"], one["name"], one["h"], one["w"]) for one in inputs["images"]]
    output = model(
        torch.tensor(inputs["src_tokens"]),
        pixel_values=torch.stack(images),
        labels=labels.masked_fill(labels == PAD, -100),
        output_hidden_states=True,
    )
    assert next(calls, None) is None, "the official code draws more often"
    with np.load(FOLDER / "train_droppath.npz") as arrays:
        for part, found, valid in (
            ("enc", output.encoder_last_hidden_state, ~arrays[f"{name}/enc_padding_mask"].astype(bool)),
            ("feat", output.decoder_hidden_states[-1], np.asarray(inputs["prev_output_tokens"]) != PAD),
        ):
            error = np.abs(found.detach().numpy() - arrays[f"{name}/{part}"])[valid].max()
            assert error < rounding * STATES, f"{part}: {error}"
    assert output.loss.item() == pytest.approx(case["loss_mean_ls0"], rel=rounding * 2e-6)
    output.loss.backward()
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    for official, norm in case["grad_norms"].items():
        if norm is not None and not official.startswith("__"):
            found = gradients[name_here(official)].double().norm().item()
            assert found == pytest.approx(norm, rel=rounding * GRADIENTS, abs=1e-7), official
