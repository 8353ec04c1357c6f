"""A tiny network, with weights large enough that every part of it matters, and a batch that has padding in it.

The libraries are imported where they are used: tests of the command line's speed need none of them.
"""

import json

import pytest


@pytest.fixture(scope="session")
def tiny_config():
    """64-pixel images; encoder and decoder differ in layers and heads, so that no one is taken for the other."""
    from ofa_hf.configuration_ofa import OFAConfig

    return OFAConfig(
        vocab_size=120,
        d_model=32,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=48,
        max_position_embeddings=64,
        resnet_type="resnet18",
        token_bucket_size=16,
        image_bucket_size=8,
        code_image_size=32,
    )


@pytest.fixture(scope="session")
def tiny_model(tiny_config):
    """In inference mode. Tests that change it take a copy."""
    import torch

    from ofa_hf.modeling_ofa import OFAForConditionalGeneration

    torch.manual_seed(3)
    model = OFAForConditionalGeneration(tiny_config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif parameter.ndim == 2 and len(parameter) > 64:  # embeddings
                parameter.normal_(std=0.5)
            else:
                is_peaked = name.endswith(("q_proj.weight", "k_proj.weight"))
                parameter.normal_(std=(1.6 if is_peaked else 1.0) * parameter[0].numel() ** -0.5)
        norm = model.decoder.layer_norm
        norm.weight.mul_(torch.randn(32).sign())  # or else every token would be followed by itself
        model.encoder.embed_tokens.weight[2] += 1.5 * norm.bias / norm.bias.square().sum()  # so that some texts end
    return model.eval()


@pytest.fixture(scope="session")
def tiny_batch():
    """Three prompts of different length with images, and a text for each; arguments of `forward`."""
    import torch

    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(4, 120, (3, 5), generator=generator)
    labels[1, 3:] = -100
    labels[2, 4:] = -100
    return {
        "input_ids": torch.tensor([[0, 9, 14, 60, 77, 2], [0, 31, 2, 1, 1, 1], [0, 8, 8, 50, 2, 1]]),
        "pixel_values": torch.randn(3, 3, 64, 64, generator=generator),
        "labels": labels,
    }


@pytest.fixture(scope="session")
def drawer(tmp_path_factory):
    """A folder that draws. Tests that change it take a copy."""
    pytest.importorskip("diffusers", reason="drawing needs diffusers")
    from drawing_checkpoint import make_drawing_folder

    return make_drawing_folder(tmp_path_factory.mktemp("drawer"))


@pytest.fixture
def slow_halves(monkeypatch):
    """A processor without instructions for half precision, whatever this one has."""
    import torch

    from ofa_hf import fast_ofa

    monkeypatch.setattr(fast_ofa, "is_slow", {torch.bfloat16, torch.float16}.__contains__)


@pytest.fixture
def plain_torch(monkeypatch):
    """Everything is computed by plain torch."""
    from ofa_hf import fast_ofa

    monkeypatch.setattr(fast_ofa, "ENABLED", False)


@pytest.fixture(scope="session")
def recorded_vqgans(tmp_path_factory):
    """The two recorded VQGANs, converted: name → the folder that holds `vqgan/`."""
    pytest.importorskip("diffusers")
    from drawing_checkpoint import write_recorded_vqgan
    from fixtures.recorded import FIXTURES

    recorded = json.loads((FIXTURES / "recorded_vqgan.json").read_text(encoding="utf-8"))
    return {
        name: write_recorded_vqgan(tmp_path_factory.mktemp(name), recorded["seed"], config)
        for name, config in recorded["configs"].items()
    }
