"""Int8 products by oneDNN: torchao's numbers, and torchao itself wherever they would not be the same."""

import copy
import gc

import pytest
import torch

from ofa_hf import fast_ofa
from ofa_hf.fast_ofa import int8_works, is_int8_product, linear


quantization = pytest.importorskip("torchao.quantization", reason="torchao (the extra int8) is not installed")
needs_instructions = pytest.mark.skipif(not int8_works(), reason="this processor has no 8-bit products")


def quantized(config=None) -> torch.nn.Linear:
    torch.manual_seed(0)
    layer = torch.nn.Linear(96, 40)
    quantization.quantize_(layer, config or quantization.Int8DynamicActivationInt8WeightConfig())
    return layer.requires_grad_(False)


def torchaos(x: torch.Tensor, layer: torch.nn.Linear) -> torch.Tensor:
    return torch.nn.functional.linear(x, layer.weight, layer.bias)


@needs_instructions
@pytest.mark.parametrize("shape", [(1, 96), (7, 96), (2, 3, 96)])
def test_products_are_torchaos(shape):
    layer, x = quantized(), 5 * torch.randn(shape)
    x[0] = 0  # a row of zeros has no scale of its own
    assert is_int8_product(x, layer.weight)
    torch.testing.assert_close(linear(x, layer.weight, layer.bias), torchaos(x, layer), rtol=0, atol=1e-5)
    torch.testing.assert_close(linear(x, layer.weight), torchaos(x, layer) - layer.bias, rtol=0, atol=1e-5)


@needs_instructions
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_and_is_as_near_to_the_exact_product(dtype):
    layer, x = quantized(), torch.randn(7, 96)
    found = linear(x.to(dtype), layer.weight, layer.bias)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), torchaos(x, layer), rtol=0, atol=0.05)


@needs_instructions
def test_a_weight_that_changes_is_packed_anew():
    layer, x = quantized(), torch.randn(3, 96)
    assert linear(x, layer.weight).any()
    layer.weight.qdata.zero_()
    assert not linear(x, layer.weight).any()


@needs_instructions
def test_packed_copies_go_with_their_weights_and_do_not_hinder_copying():
    layer = quantized()
    linear(torch.randn(3, 96), layer.weight)
    gc.collect()
    before = len(fast_ofa._packed_int8)
    copy.deepcopy(layer)
    del layer
    gc.collect()
    assert len(fast_ofa._packed_int8) == before - 1


def test_what_is_quantized_otherwise_is_left_to_torchao():
    x = torch.randn(3, 96)
    assert not is_int8_product(x, quantized(quantization.Int8WeightOnlyConfig()).weight)
    assert not is_int8_product(x.requires_grad_(), quantized().weight)
    assert not is_int8_product(x, torch.nn.Linear(96, 40).weight)


def test_a_processor_without_the_instructions_multiplies_in_float32(monkeypatch):
    layer, x = quantized(), torch.randn(3, 96)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    int8_works.cache_clear()
    try:
        found = linear(x, layer.weight, layer.bias)
    finally:
        int8_works.cache_clear()
    expected = torch.nn.functional.linear(x, layer.weight.dequantize(), layer.bias)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, torchaos(x, layer), rtol=0, atol=0.05)
