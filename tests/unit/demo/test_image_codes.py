"""The small VQGAN of the demo."""

import pytest
import torch

from ofa_hf.demo.image_codes import (
    VQGANTraining,
    encode,
    flat,
    k_means,
    logits_of,
    make_vqgan,
    nearest,
    quantized,
    set_decoder,
    set_encoder,
    train_vqgan,
)


SMALL = VQGANTraining(factors=(1, 1, 1, 1), width=8, codes=4, steps=2)


def smooth_images(count: int, side: int) -> torch.Tensor:
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=side, mode="bilinear")


def test_the_largest_logit_is_the_nearest_code():
    features = torch.randn(200, 5)
    vectors = k_means(features, codes=7)
    weight, bias = logits_of(vectors)
    expected = torch.cdist(features, vectors).argmin(1)
    assert torch.equal((features @ weight.T + bias).argmax(1), expected)
    assert torch.equal(nearest(features, vectors), expected)
    assert len(expected.unique()) > 3


def test_codes_are_found_where_the_features_are():
    centres = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    features = centres.repeat(40, 1) + 0.1 * torch.randn(120, 2)
    vectors = k_means(features, codes=12)
    assert torch.cdist(features, vectors).min(1).values.max() < 0.4


def test_a_vqgan_encodes_as_computed_and_gives_images_back_before_it_has_learned():
    pytest.importorskip("diffusers", reason="the VQGAN is one of diffusers, which is not installed")
    torch.manual_seed(0)
    images, recipe = smooth_images(40, 32), VQGANTraining(factors=(2, 2, 2, 2), width=16, codes=256)
    vqgan = make_vqgan(recipe, 32)
    features = set_encoder(vqgan, images, recipe.width)
    with torch.no_grad():
        assert torch.allclose(encode(vqgan, images), features[-1], atol=5e-3)
    vectors = k_means(flat(features[-1]), recipe.codes)
    set_decoder(vqgan, vectors, features)
    with torch.no_grad():
        decoded = vqgan.decoder(vqgan.post_quant_conv(quantized(features[-1], vectors)))
    assert (decoded - images).square().mean() < 0.1 * images.var()


def test_official_files_hold_what_was_trained_and_the_same_seed_trains_it_again(tmp_path):
    pytest.importorskip("diffusers", reason="the VQGAN is one of diffusers, which is not installed")
    from ofa_hf.conversion.vqgan import VQGANSource

    pixels = torch.rand(6, 3, 16, 16) * 2 - 1
    sources = [VQGANSource(*train_vqgan(pixels, SMALL, seed=1, folder=tmp_path / str(n))) for n in range(2)]
    first, second = (
        {name: tensor.load() for name, tensor in {**source.weights, **source.code_logits}.items()}
        for source in sources
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert sources[0].config["sample_size"] == 16
    assert sources[0].config["num_vq_embeddings"] == 4
    codes, weight = first["quantize.embedding.weight"], first["quantize.proj.weight"][:, :, 0, 0]
    assert torch.allclose(codes * (weight[0, 0] / codes[0, 0]), weight, rtol=1e-4)
