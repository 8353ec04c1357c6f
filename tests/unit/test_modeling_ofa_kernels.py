"""Products and convolutions: the same numbers whichever kernel computes them."""

import threading

import pytest
import torch
from torch import nn

from ofa_hf import modeling_ofa_kernels as kernels
from ofa_hf.modeling_ofa_resnet import OFAResNet


TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.mark.parametrize("shape", [(7, 12), (2, 7, 12), (0, 12), (12,)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_linear_gives_what_torch_gives(shape, has_bias):
    x, weight, bias = torch.randn(shape), torch.randn(5, 12), torch.randn(5) if has_bias else None
    expected = nn.functional.linear(x, weight, bias)
    torch.testing.assert_close(kernels.linear(x, weight, bias), expected, **TOLERANCE)


def test_linear_gives_the_gradients_torch_gives():
    layer, x = kernels.OFALinear(12, 5), torch.randn(3, 7, 12, requires_grad=True)
    (layer(x) ** 2).sum().backward()
    found = [x.grad.clone(), layer.weight.grad.clone(), layer.bias.grad.clone()]
    x.grad = None
    layer.zero_grad()
    with kernels.plain_kernels():
        (layer(x) ** 2).sum().backward()
    for mine, plain in zip(found, [x.grad, layer.weight.grad, layer.bias.grad], strict=True):
        torch.testing.assert_close(mine, plain, **TOLERANCE)


def test_linear_leaves_locked_weights_without_a_gradient():
    layer, x = kernels.OFALinear(4, 3).requires_grad_(False), torch.randn(2, 4, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert x.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_linear_follows_the_dtype(dtype):
    x, weight = torch.randn(3, 8, dtype=dtype), torch.randn(4, 8, dtype=dtype)
    assert kernels.linear(x, weight).dtype == dtype


def test_autocast_reaches_the_layer():
    with torch.autocast("cpu", torch.bfloat16):
        assert kernels.OFALinear(8, 4)(torch.randn(2, 8)).dtype == torch.bfloat16


def test_torch_without_the_operators_falls_back(monkeypatch):
    def missing(*_):
        raise AttributeError("no such operator")

    monkeypatch.setattr(kernels, "_onednn_linear", missing)
    kernels.onednn_works.cache_clear()
    try:
        x, weight = torch.randn(3, 8), torch.randn(4, 8)
        assert not kernels.onednn_works()
        assert not kernels.pack([weight])
        assert torch.equal(kernels.linear(x, weight), nn.functional.linear(x, weight))
    finally:
        kernels.onednn_works.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_packed_weights_give_the_product_of_the_weights(dtype, rows):
    torch.manual_seed(0)
    x, weights, bias = torch.randn(rows, 96).to(dtype), torch.randn(2, 64, 96).to(dtype), torch.randn(64).to(dtype)
    first, second = weights
    expected = nn.functional.linear(x, first, bias)
    with torch.no_grad(), kernels.packed_weights(kernels.pack([first])):
        torch.testing.assert_close(kernels.linear(x, first, bias), expected, rtol=0, atol=64 * torch.finfo(dtype).eps)
        assert torch.equal(kernels.linear(x, second), kernels.linear(x, second.clone())), "nobody packed this one"


def test_packed_weights_serve_the_thread_that_asked():
    weight, x, found = torch.randn(8, 8), torch.randn(2, 8), []
    wrong = kernels.pack([torch.zeros(8, 8)])
    if not wrong:
        pytest.skip("torch has no oneDNN operators here")
    with torch.no_grad(), kernels.packed_weights({id(weight): wrong.popitem()[1]}):
        assert not kernels.linear(x, weight).any()
        thread = threading.Thread(target=lambda: found.append(kernels.linear(x, weight)))
        thread.start()
        thread.join()
    torch.testing.assert_close(found[0], x @ weight.T, **TOLERANCE)


def test_weights_in_a_gradients_way_are_read_themselves():
    layer, x = kernels.OFALinear(8, 8), torch.randn(2, 8)
    packed = kernels.pack([torch.zeros(8, 8)])
    with kernels.packed_weights({id(layer.weight): value for value in packed.values()}):
        layer(x).sum().backward()
        assert layer(x).abs().sum() > 0
    assert layer.weight.grad.abs().sum() > 0


@pytest.fixture
def trunk() -> OFAResNet:
    torch.manual_seed(0)
    trunk = OFAResNet("resnet18").eval()
    for module in trunk.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return trunk


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
def test_a_folded_trunk_gives_the_same_features_and_keeps_its_weights(trunk, dtype, tolerance):
    trunk, pixel_values = trunk.to(dtype), torch.randn(2, 3, 48, 33, dtype=dtype)
    before = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
    with torch.no_grad():
        plain = trunk(pixel_values)
        with kernels.folding():
            folded = trunk(pixel_values)
            with kernels.plain_kernels():
                assert torch.equal(trunk(pixel_values), plain)
    assert not torch.equal(folded, plain), "nothing was folded"
    assert (folded - plain).abs().max() <= tolerance * plain.abs().max()
    assert all(torch.equal(tensor, before[name]) for name, tensor in trunk.state_dict().items())


def test_folding_notices_new_statistics(trunk):
    pixel_values = torch.randn(1, 3, 32, 32)
    with torch.no_grad(), kernels.folding():
        trunk(pixel_values)
        trunk.bn1.running_mean.data.add_(1.0)
        after = trunk(pixel_values)
    with torch.no_grad():
        torch.testing.assert_close(after, trunk(pixel_values), rtol=1e-3, atol=1e-4)


def test_folding_is_left_behind_with_its_block_and_does_not_reach_other_threads():
    seen = []
    with kernels.folding():
        thread = threading.Thread(target=lambda: seen.append(kernels.is_folding()))
        thread.start()
        thread.join()
        assert kernels.is_folding()
    assert seen == [False]
    assert not kernels.is_folding()
