"""Products and convolutions: the same numbers whichever kernel computes them."""

import copy

import pytest
import torch
from torch import nn
from transformers import GenerationConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ofa_hf import fast_ofa as kernels
from ofa_hf.modeling_ofa_resnet import OFAResNet


TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.mark.parametrize("shape", [(7, 12), (2, 7, 12), (0, 12), (12,)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_linear_gives_what_torch_gives(shape, has_bias):
    x, weight, bias = torch.randn(shape), torch.randn(5, 12), torch.randn(5) if has_bias else None
    expected = nn.functional.linear(x, weight, bias)
    torch.testing.assert_close(kernels.linear(x, weight, bias), expected, **TOLERANCE)


def test_linear_gives_the_gradients_torch_gives(monkeypatch):
    layer, x = kernels.OFALinear(12, 5), torch.randn(3, 7, 12, requires_grad=True)
    (layer(x) ** 2).sum().backward()
    found = [x.grad.clone(), layer.weight.grad.clone(), layer.bias.grad.clone()]
    x.grad = None
    layer.zero_grad()
    monkeypatch.setattr(kernels, "ENABLED", False)
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

    monkeypatch.setattr(kernels, "onednn_linear", missing)
    kernels.onednn_works.cache_clear()
    try:
        x, weight = torch.randn(3, 8), torch.randn(4, 8)
        assert not kernels.onednn_works()
        assert not kernels.can_reorder(weight)
        assert torch.equal(kernels.linear(x, weight), nn.functional.linear(x, weight))
    finally:
        kernels.onednn_works.cache_clear()


def test_bfloat16_runs_on_the_fast_kernels_where_the_processor_has_them():
    if not (kernels.onednn_works() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        pytest.skip("this processor has no products of bfloat16")
    assert kernels.onednn_works(torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [3, 3 * kernels.MANY_ROWS])
def test_a_processor_without_half_precision_computes_in_float32(slow_halves, dtype, rows):
    x, weight, bias = (torch.randn(size).to(dtype) for size in ((rows, 256), (64, 256), (64,)))
    exact = nn.functional.linear(x.float(), weight.float(), bias.float())
    found = kernels.linear(x, weight, bias)
    assert found.dtype == dtype
    if rows > kernels.MANY_ROWS:
        assert torch.equal(found, kernels.linear(x.float(), weight.float(), bias.float()).to(dtype))
    torch.testing.assert_close(found.float(), exact, rtol=0, atol=8 * torch.finfo(dtype).eps * exact.abs().max())
    if kernels.can_reorder(weight):
        assert kernels.reorder_weight(weight).dtype == torch.float32


def test_what_the_processor_has_is_asked_of_torch():
    assert not kernels.is_slow(torch.float32)
    assert not kernels.is_slow(None)
    assert kernels.is_slow(torch.bfloat16) != torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert kernels.is_slow(torch.float16) != torch.ops.mkldnn._is_mkldnn_fp16_supported()


def test_gelu_inside_a_product_gives_what_gelu_after_it_gives():
    layer, x = kernels.OFALinear(12, 5), torch.randn(3, 7, 12)
    with torch.no_grad():
        found = kernels.linear_gelu(layer, x)
    torch.testing.assert_close(found, nn.functional.gelu(layer(x)), **TOLERANCE)
    assert kernels.linear_gelu(layer, x).requires_grad


def test_a_hook_sees_the_product_without_gelu():
    layer, x, seen = kernels.OFALinear(12, 5), torch.randn(7, 12), []
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        found = kernels.linear_gelu(layer, x)
    assert torch.equal(nn.functional.gelu(seen[0]), found)


@pytest.mark.parametrize("padded", [True, False])
def test_a_batch_computed_in_parts_gives_the_same_bits(tiny_model, monkeypatch, padded):
    pixels, prompts = torch.randn(5, 3, 64, 48), torch.randint(5, 30, (5, 6))
    if padded:
        prompts[1, 4:] = tiny_model.config.pad_token_id

    def encode():
        return tiny_model.encode(input_ids=prompts, pixel_values=pixels, output_hidden_states=True)

    whole = encode()
    counted = []
    split = torch.Tensor.tensor_split
    monkeypatch.setattr(torch.Tensor, "tensor_split", lambda *args: counted.append(args[1]) or split(*args))
    monkeypatch.setattr(kernels, "REUSED_BYTES", 2 * 64 * 32 * 24 * 4)
    parts = encode()
    assert max(counted) > 1
    assert torch.equal(parts.last_hidden_state, whole.last_hidden_state)
    assert all(map(torch.equal, parts.hidden_states, whole.hidden_states))
    assert (parts.attention_mask is None) == (whole.attention_mask is None)
    assert not padded or torch.equal(parts.attention_mask, whole.attention_mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_reordered_weights_give_the_product_of_the_weights(dtype, rows):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(rows, 96).to(dtype), torch.randn(64, 96).to(dtype), torch.randn(64).to(dtype)
    if not kernels.can_reorder(weight):
        pytest.skip("torch has no oneDNN operators here")
    packed = kernels.reorder_weight(weight)
    found = kernels.onednn_linear(x.to(packed.dtype), packed, bias.to(packed.dtype)).to(dtype)
    expected = nn.functional.linear(x, weight, bias)
    torch.testing.assert_close(found, expected, rtol=0, atol=64 * torch.finfo(dtype).eps)


def test_weights_of_other_kinds_are_not_reordered(monkeypatch):
    monkeypatch.setattr(kernels, "is_slow", lambda dtype: False)
    weight = torch.randn(8, 8)
    assert not kernels.can_reorder(weight.half())
    assert not kernels.can_reorder(weight.double())
    assert not kernels.can_reorder(weight, weight.bfloat16())
    monkeypatch.setattr(kernels, "ENABLED", False)
    assert not kernels.can_reorder(weight)


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
        folded = kernels.trunk_features(trunk, pixel_values, kernels.WeightMemo())
    assert not torch.equal(folded, plain), "nothing was folded"
    assert (folded - plain).abs().max() <= tolerance * plain.abs().max()
    assert all(torch.equal(tensor, before[name]) for name, tensor in trunk.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_processor_without_half_precision_folds_into_float32(slow_halves, trunk, dtype):
    pixel_values = torch.randn(2, 3, 48, 33).to(dtype)
    with torch.no_grad():
        found = kernels.trunk_features(trunk.to(dtype), pixel_values, kernels.WeightMemo())
        expected = kernels.trunk_features(trunk.float(), pixel_values.float(), kernels.WeightMemo())
    assert found.dtype == dtype
    assert torch.equal(found, expected.to(dtype))


def test_copies_of_a_trunk_that_are_not_kept_give_the_same_bits(trunk):
    pixel_values, memo = torch.randn(5, 3, 32, 32), kernels.WeightMemo()
    with torch.no_grad():
        kept = kernels.trunk_features(trunk, pixel_values, memo)
        assert memo.entries
        assert torch.equal(kernels.trunk_features(trunk, pixel_values, None), kept)


def test_folding_notices_new_statistics(trunk):
    pixel_values, memo = torch.randn(1, 3, 32, 32), kernels.WeightMemo()
    with torch.no_grad():
        kernels.trunk_features(trunk, pixel_values, memo)
        trunk.bn1.running_mean.data.add_(1.0)
        after = kernels.trunk_features(trunk, pixel_values, memo)
        torch.testing.assert_close(after, trunk(pixel_values), rtol=1e-3, atol=1e-4)


def test_nothing_is_folded_with_gradients_in_training_or_without_fast_code(trunk, monkeypatch):
    pixel_values, memo = torch.randn(1, 3, 32, 32), kernels.WeightMemo()
    assert torch.equal(kernels.trunk_features(trunk, pixel_values, memo), trunk(pixel_values))
    with torch.no_grad():
        assert not torch.equal(kernels.trunk_features(trunk, pixel_values, memo), trunk(pixel_values))
        monkeypatch.setattr(kernels, "ENABLED", False)
        assert torch.equal(kernels.trunk_features(trunk, pixel_values, memo), trunk(pixel_values))


def test_gradients_of_a_weight_are_summed_over_all_rows_however_many():
    gradient, x = torch.randn(1700, 3), torch.randn(1700, 4)
    torch.testing.assert_close(kernels._weight_gradient(gradient, x), gradient.T @ x, rtol=1e-4, atol=1e-3)


# ------------------------------------------------------------------------------- attention with a trained bias


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias_batch", [1, 2])
def test_attention_with_a_trained_bias_gives_the_values_and_gradients_of_torchs(dtype, bias_batch):
    shapes = ((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 4), (bias_batch, 3, 5, 7))
    tensors = [torch.randn(shape).to(dtype) for shape in shapes]
    ours = [tensor.clone().requires_grad_() for tensor in tensors]
    theirs = [tensor.double().requires_grad_() for tensor in tensors]
    attend = kernels.attention_function("sdpa", ours[0], ours[3], dropout=0.0)
    assert attend is kernels.trained_bias_attention
    result, goal = attend(None, *ours, scaling=0.4)[0], torch.randn(2, 5, 3, 4)
    query, key, value, bias = theirs
    expected = nn.functional.scaled_dot_product_attention(query, key, value, bias, scale=0.4).transpose(1, 2)
    (result * goal).sum().backward()
    (expected * goal).sum().backward()
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    for mine, other in ((result, expected), *((one.grad, two.grad) for one, two in zip(ours, theirs, strict=True))):
        assert (mine - other).norm() <= tolerance * other.norm()
    assert ours[3].grad.dtype == dtype


def test_attention_with_a_trained_bias_may_go_back_inside_of_autocast():
    shapes = ((1, 2, 5, 4), (1, 2, 7, 4), (1, 2, 7, 4), (1, 2, 5, 7))
    tensors = [torch.randn(shape, requires_grad=True) for shape in shapes]
    kernels.trained_bias_attention(None, *tensors, 0.5)[0].square().sum().backward()
    expected = [tensor.grad.clone() for tensor in tensors]
    for tensor in tensors:
        tensor.grad = None
    result = kernels.trained_bias_attention(None, *tensors, 0.5)[0]
    with torch.autocast("cpu", torch.bfloat16):
        result.square().sum().backward()
    assert all(torch.equal(tensor.grad, before) for tensor, before in zip(tensors, expected, strict=True))


def test_torchs_attention_is_used_where_no_bias_is_trained(monkeypatch):
    query, bias = torch.randn(1, 1, 2, 2), torch.randn(1, 1, 2, 2, requires_grad=True)
    torchs = ALL_ATTENTION_FUNCTIONS["sdpa"]
    assert kernels.attention_function("sdpa", query, bias.detach(), dropout=0.0) is torchs
    assert kernels.attention_function("sdpa", query, bias, dropout=0.1) is torchs
    with torch.no_grad():
        assert kernels.attention_function("sdpa", query, bias, dropout=0.0) is torchs
        assert kernels.attention_function("sdpa", query.bfloat16(), bias, 0.0) is kernels.product_attention
    monkeypatch.setattr(kernels, "ENABLED", False)
    assert kernels.attention_function("sdpa", query, bias, dropout=0.0) is torchs


# ------------------------------------------------------------------------------------------------ all fast code

SEARCHES = (
    {},
    {"num_beams": 3, "no_repeat_ngram_size": 2, "end_at_max_length": True, "suppress_tokens": [1]},
    {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5, "early_stopping": True},
    {"num_beams": 2, "temperature": 1.3, "output_scores": True},
    {"do_sample": True, "num_return_sequences": 2, "top_k": 20, "repetition_penalty": 1.4},
    {"do_sample": True, "num_beams": 3, "output_logits": True},
    {"cache_implementation": "static", "num_beams": 2},
    {"use_cache": False},
    {"output_attentions": True, "output_hidden_states": True, "min_length": 6},
    {"prompt_lookup_num_tokens": 2},
)
STARTS = (
    {},
    {"decoder_input_ids": [[0, 5, 9], [0, 6, 9]]},
    {"decoder_input_ids": [[1, 0, 9], [0, 7, 8]], "decoder_attention_mask": [[0, 1, 1], [1, 1, 1]]},
    {"code_masks": [True, False]},
    {"patch_masks": [False, True]},
)


@pytest.mark.parametrize("search", SEARCHES, ids=str)
@pytest.mark.parametrize("start", STARTS, ids=str)
def test_texts_are_the_same_without_fast_code(tiny_model, tiny_batch, monkeypatch, search, start):
    rows = 1 if "prompt_lookup_num_tokens" in search else 2
    inputs = {name: tiny_batch[name][:rows] for name in ("input_ids", "pixel_values")}
    inputs |= {name: torch.tensor(value[:rows]) for name, value in start.items()}
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}
    settings = GenerationConfig(**ids, **search, max_length=10, return_dict_in_generate=True)
    outputs = []
    for is_open in (True, False):
        monkeypatch.setattr(kernels, "ENABLED", is_open)
        torch.manual_seed(0)
        outputs.append(tiny_model.generate(**inputs, generation_config=settings))
    opened, closed = outputs
    assert torch.equal(opened.sequences, closed.sequences)
    for name in ("scores", "logits", "sequences_scores"):
        if name in opened and name in closed:
            torch.testing.assert_close(opened[name], closed[name], rtol=1e-3, atol=1e-3)


def test_half_precision_is_as_exact_with_fast_code(tiny_model, tiny_batch, monkeypatch):
    half = copy.deepcopy(tiny_model).bfloat16()
    halved = {**tiny_batch, "pixel_values": tiny_batch["pixel_values"].bfloat16()}
    with torch.no_grad():
        exact, opened = tiny_model(**tiny_batch).logits, half(**halved).logits
        monkeypatch.setattr(kernels, "ENABLED", False)
        closed = half(**halved).logits
    assert (opened - exact).norm() < 1.5 * (closed - exact).norm()
