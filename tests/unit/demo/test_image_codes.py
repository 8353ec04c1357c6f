"""The small VQGAN of the demo."""

import pytest
import torch

from ofa_hf.conversion.vocabulary import NUM_CODES
from ofa_hf.demo.image_codes import Codebook, VQGANTraining, train_vqgan


SMALL = VQGANTraining(factors=(1, 1, 1, 1), width=8, codes=4, side=16, plain_steps=1, whole_steps=1, steps=3)


def test_the_largest_logit_is_the_nearest_code():
    features = torch.randn(200, 5)
    codebook = Codebook(features, codes=7, batch=200, memory=0.9)
    codebook.follow(features, codebook.nearest(features))
    weight, bias = codebook.logits()
    nearest = torch.cdist(features, codebook.vectors).argmin(1)
    assert weight.shape == (NUM_CODES, 5)
    assert torch.equal((features @ weight.T + bias).argmax(1), nearest)
    assert len(nearest.unique()) > 3


def test_codes_follow_the_features_and_unused_ones_begin_anew():
    features = torch.cat([torch.zeros(50, 2), torch.ones(50, 2)])
    codebook = Codebook(features, codes=3, batch=100, memory=0.5)
    for _ in range(40):
        codebook.follow(features + 5, codebook.nearest(features + 5))
    assert torch.cdist(features + 5, codebook.vectors).min(1).values.max() < 0.1


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
    assert sources[0].config["num_vq_embeddings"] == NUM_CODES
    codes, weight = first["quantize.embedding.weight"], first["quantize.proj.weight"][:, :, 0, 0]
    assert torch.allclose(codes[:4] * (weight[0, 0] / codes[0, 0]), weight[:4], rtol=1e-4)
    assert not codes[4:].any(), "codes that are not used"
