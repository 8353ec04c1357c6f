"""Products with torchao's int8 weights on a CPU: the same numbers by oneDNN, several times as fast as torchao's own.

torchao keeps such weights as plain int8 numbers with a scale a row, quantises each row of the input when it comes, and
multiplies integers. Its kernels are made for `torch.compile` and for GPUs; called one by one on a CPU they take longer
than float32. Here the weights are packed once in oneDNN's layout. torchao itself is not imported.
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary


LOWEST, LARGEST = -128, 127  # 8-bit numbers
ZERO = 128  # where 0 lies among the unsigned numbers that the processor's instructions want on the input's side
_packed_weights = WeakIdKeyDictionary()  # goes with the weight: a copy in another place or dtype is packed anew


def is_int8(x: Tensor, weight: Tensor) -> bool:
    """Whether this is such a product on a CPU: int8 weights made for quantised inputs, with one scale a row."""
    if type(weight).__name__ != "Int8Tensor" or weight.device.type != "cpu" or x.device.type != "cpu":
        return False
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and x.requires_grad):
        return False
    return _rows_alone(weight)


def int8_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x @ weight.T + bias`, rows of `x` rounded to 8 bits: `(..., C)`, `(D, C)`, `(D,)` → `(..., D)`."""
    packed, scale, zeros = _packed(weight)
    rows = x.reshape(-1, x.shape[-1]).float()
    row_scale = (rows.abs().amax(-1, keepdim=True) / ((LARGEST - LOWEST) / 2)).clamp_(
        min=torch.finfo(torch.float32).eps
    )
    rounded = (rows * row_scale.reciprocal()).round_().clamp_(LOWEST, LARGEST).add_(ZERO).to(torch.uint8)
    product = _multiply(rounded, packed, scale, zeros)
    product = product.mul_(row_scale) if bias is None else torch.addcmul(bias.float(), product, row_scale)
    return product.to(x.dtype).view(*x.shape[:-1], -1)


def dequantised(weight: Tensor) -> Tensor:
    """An int8 weight's numbers in float32, for processors where `int8_works` says no."""
    return weight.qdata.float().mul_(weight.scale.view(-1, 1))


def _rows_alone(weight: Tensor) -> bool:
    """Whether weight and input have one scale a row, found when the input comes, and nothing more."""
    settings = weight.act_quant_kwargs
    if settings is None or settings.mapping_type.name != "SYMMETRIC":
        return False
    fixed = (weight.act_quant_scale, weight.act_quant_zero_point, weight.act_pre_scale)
    a_row = type(settings.granularity).__name__ == "PerRow" and weight.block_size[-1] == weight.shape[-1]
    return a_row and weight.scale.numel() == len(weight) and all(value is None for value in fixed)


def _packed(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The weight in oneDNN's layout, its scales and its zero points, all 0."""
    source, found = _packed_weights.get(weight, (None, None))
    if source != (weight.qdata.data_ptr(), weight.qdata._version):
        source, found = (weight.qdata.data_ptr(), weight.qdata._version), _pack(weight.qdata, weight.scale)
        _packed_weights[weight] = source, found
    return found


def _pack(integers: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    packed = torch.ops.onednn.qlinear_prepack(integers.contiguous(), None)
    return packed, scale.flatten().float(), torch.zeros(len(integers), dtype=torch.int32, device="cpu")


def _multiply(rounded: Tensor, packed: Tensor, scale: Tensor, zeros: Tensor) -> Tensor:
    nothing_else = (None, 1.0, 0, torch.float32, "none", [], "")
    return torch.ops.onednn.qlinear_pointwise(rounded, 1.0, ZERO, packed, scale, zeros, *nothing_else)


@lru_cache
def int8_works() -> bool:
    """Whether this processor has instructions for 8-bit products and torch's operators compute them exactly.

    The largest numbers are among those tried: without these instructions, sums of two products overflow.
    """
    try:
        if not torch.cpu._is_vnni_supported():
            return False
        x, weight = (torch.arange(size, device="cpu").view(-1, 64) * 37 % 255 - LARGEST for size in (192, 320))
        x[0], weight[0] = LARGEST, LARGEST
        with torch.inference_mode(False), torch.no_grad():
            packed = _pack(weight.to(torch.int8), torch.ones(5, device="cpu"))
            return torch.equal(_multiply((x + ZERO).to(torch.uint8), *packed), (x @ weight.T).float())
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return False
