"""Products and convolutions on the fastest kernels at hand, equal to torch's own up to rounding.

On a CPU torch sends float32 matrix products to MKL, which holds back on AMD processors; oneDNN, which torch carries
too, is about twice as fast there and as fast as MKL on Intel. The operators that reach it are not part of torch's
public interface, so each is tried once on small numbers, and torch's own are used wherever that fails.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.amp import custom_bwd, custom_fwd
from torch.autograd.function import once_differentiable
from torch.nn import functional

from .modeling_ofa_int8 import dequantised, int8_linear, int8_works, is_int8


FAST_DTYPES = (torch.float32, torch.bfloat16)
REUSED_BYTES = 20 * 2**20  # of one tensor; the C library hands out memory again up to 32 MiB, less what it trims
MANY_ROWS = 16  # of a product in half precision, from which on bringing weights to float32 pays where that is fast
_plain = False
_folding: ContextVar[bool | None] = ContextVar("ofa_folding", default=None)  # whether to keep what is folded


@contextmanager
def folding(keep: bool = True) -> Iterator[None]:
    """Let trunks fold BatchNorm into their convolutions inside this block, as captioning does.

    Folding rounds differently, by some units in the last place. Outside of captioning a forward pass keeps to the
    very operations of the original.

    Args:
        keep: the folded copies for the next pass; else, on a CPU, each goes as soon as it was used, which training
            with its many images a pass hardly notices, but for its memory.
    """
    token = _folding.set(keep)
    try:
        yield
    finally:
        _folding.reset(token)


def is_folding() -> bool:
    """Whether this runs inside a `folding` block and nobody asked for plain kernels."""
    return _folding.get() is not None and not _plain


def keeps_folded() -> bool:
    """Whether the `folding` block that this runs inside keeps the copies."""
    return bool(_folding.get())


@lru_cache
def is_slow(dtype: torch.dtype | None) -> bool:
    """Whether this processor lacks instructions for products in half precision: they take several times float32's."""
    supported = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}.get(dtype)
    try:
        return supported is not None and not getattr(torch.ops.mkldnn, supported)()
    except (AttributeError, RuntimeError):  # a torch without oneDNN, which has kernels of its own
        return False


def fast_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which dtype a CPU is fastest with numbers of this one."""
    return torch.float32 if is_slow(dtype) else dtype


def can_pack(*weights: Tensor) -> bool:
    """Whether `pack` works for these matrices."""
    common = _common_dtype(*weights)
    return common is not None and fast_dtype(common) in FAST_DTYPES and onednn_works(fast_dtype(common))


def pack(weight: Tensor) -> Tensor:
    """Copy of a matrix in the dtype and the layout that oneDNN is fastest with; for `onednn_linear` alone.

    Products of few rows wait for the weights to arrive from memory. In their plain layout they arrive at about half
    of the speed that the memory has.
    """
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(fast_dtype(weight.dtype)), None)


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Use torch's own kernels alone inside this block, in every thread; for comparisons."""
    global _plain
    before, _plain = _plain, True
    try:
        yield
    finally:
        _plain = before


@lru_cache
def onednn_works(dtype: torch.dtype = torch.float32) -> bool:
    """Whether this torch has the oneDNN operators and they compute what torch computes."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((3, 5), (4, 5), (4,), (1, 3, 6, 6), (4, 3, 3, 3))
    x, weight, bias, image, kernel = (torch.randn(size, generator=generator).to(dtype) for size in sizes)
    image, kernel = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (image, kernel))
    try:
        with torch.inference_mode(False), torch.no_grad():
            product = functional.linear(x, weight, bias)
            features = functional.conv2d(image, kernel, bias, 2, 1).relu()
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
            pairs = [
                (onednn_linear(x, weight, bias), product),
                (onednn_linear(x, packed, bias), product),
                (onednn_linear(x, weight, bias, "gelu"), functional.gelu(product)),
                (_onednn_convolution(image, kernel, bias, 2, 1, None), features),
                (
                    _onednn_convolution(image, kernel, bias, 2, 1, features),
                    (functional.conv2d(image, kernel, bias, 2, 1) + features).relu(),
                ),
            ]
            tolerance = 8 * torch.finfo(dtype).eps * max(float(expected.abs().max()) for _, expected in pairs)
            return all(torch.allclose(found, expected, atol=tolerance) for found, expected in pairs)
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return False


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None, then: str = "none") -> Tensor:
    """`x @ weight.T + bias` without a look at what is passed; `then` may be "gelu"."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], "none")


def _onednn_convolution(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int, residual: Tensor | None):
    geometry = ([padding, padding], [stride, stride], [1, 1], 1)
    if residual is None:
        return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *geometry, "relu", [], "")
    convolution = torch.ops.mkldnn._convolution_pointwise.binary
    return convolution(x, residual, weight, bias, *geometry, "add", 1.0, "relu", [], "")


def _common_dtype(*tensors: Tensor | None) -> torch.dtype | None:
    """The one dtype of tensors that kernels may be chosen for: plain ones on a CPU; else None."""
    if _plain or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return None
    present = [tensor for tensor in tensors if tensor is not None]
    if not all(type(tensor) in (Tensor, nn.Parameter) and tensor.device.type == "cpu" for tensor in present):
        return None
    dtype = present[0].dtype
    return dtype if all(tensor.dtype == dtype for tensor in present) else None


def _for_onednn(dtypes: tuple[torch.dtype, ...], *tensors: Tensor | None) -> bool:
    dtype = _common_dtype(*tensors)
    return dtype in dtypes and onednn_works(dtype)


def _onednn_weight_gradient(gradient: Tensor, x: Tensor, rows_at_once: int = 768) -> Tensor:
    """`gradient.T @ x`: `(N, D)`, `(N, C)` → `(D, C)`. oneDNN is a sixth slower where it adds up over more rows."""
    parts = zip(gradient.split(rows_at_once), x.split(rows_at_once), strict=True)
    total, *others = (onednn_linear(left.T, right.T, None) for left, right in parts)
    for other in others:
        total += other
    return total


class _OneDNNLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return onednn_linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        x, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            onednn_linear(gradient, weight.T, None) if wants_x else None,
            _onednn_weight_gradient(rows, x.flatten(0, -2)) if wants_weight else None,
            rows.sum(0) if wants_bias else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias`: `(..., C)`, `(D, C)`, `(D,)` → `(..., D)`."""
    needs_gradient = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    dtype = _common_dtype(x, weight, bias) if x.ndim > 1 else None
    if dtype is not None and not needs_gradient and x.numel() >= MANY_ROWS * x.shape[-1] and is_slow(dtype):
        return _linear_in_float32(x, weight, bias)
    if dtype in ((torch.float32,) if needs_gradient else FAST_DTYPES) and onednn_works(dtype):
        return (_OneDNNLinear.apply if needs_gradient else onednn_linear)(x, weight, bias)
    if _plain or not is_int8(x, weight):
        return functional.linear(x, weight, bias)
    return int8_linear(x, weight, bias) if int8_works() else _linear_in_float32(x, dequantised(weight), bias)


def _linear_in_float32(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)


def gelu(x: Tensor) -> Tensor:
    """Exact (erf) gelu in float32, as in the original, whatever the dtype."""
    return functional.gelu(x.float()).to(x.dtype)


def is_observed(module: nn.Module) -> bool:
    """Whether somebody watches or replaced the `forward` of a module, so that it must be called."""
    replaced = getattr(module.forward, "__func__", None) is not type(module).forward
    return bool(replaced or module._forward_hooks or module._forward_pre_hooks)


def linear_gelu(module: nn.Linear, x: Tensor) -> Tensor:
    """`gelu(module(x))`, in one pass over the numbers where nobody could tell the difference."""
    special = type(module) is not OFALinear or is_observed(module)
    if special or torch.is_grad_enabled() or not _for_onednn(FAST_DTYPES, x, module.weight, module.bias):
        return gelu(module(x))
    return onednn_linear(x, module.weight, module.bias, "gelu")


class OFALinear(nn.Linear):
    """`nn.Linear` on the fastest kernel."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class _BiasedAttention(torch.autograd.Function):
    """Attention whose additive bias is trained. Unlike torch's own it keeps nothing but the weights to go back."""

    @staticmethod
    @custom_fwd(device_type="cpu")
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scaling: float) -> Tensor:
        shape = query.shape
        query, key, value = (query * scaling).flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)
        scores = torch.bmm(query, key.mT).unflatten(0, shape[:2])
        scores = scores.add_(bias) if bias.dtype == scores.dtype else scores + bias
        weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype).flatten(0, 1)
        ctx.save_for_backward(query, key, value, weights)
        ctx.scaling, ctx.bias_shape, ctx.bias_dtype = scaling, bias.shape, bias.dtype
        return torch.bmm(weights, value).view(shape)

    @staticmethod
    @custom_bwd(device_type="cpu")  # whatever autocast says by then
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        query, key, value, weights = ctx.saved_tensors
        batch_and_heads, gradient = gradient.shape[:2], gradient.flatten(0, 1)
        of_value = torch.bmm(weights.mT, gradient)
        of_weights = torch.bmm(gradient, value.mT)
        of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        of_query, of_key = torch.bmm(of_scores, key).mul_(ctx.scaling), torch.bmm(of_scores.mT, query)
        of_bias = None
        if ctx.needs_input_grad[3]:
            of_bias = of_scores.unflatten(0, batch_and_heads).sum_to_size(ctx.bias_shape).to(ctx.bias_dtype)
        return *(one.unflatten(0, batch_and_heads) for one in (of_query, of_key, of_value)), of_bias, None


def products_pay(query: Tensor) -> bool:
    """Whether attention of `(B, H, Q, D)` is fastest as two products: few queries in bfloat16 on a CPU."""
    if _plain or torch.compiler.is_compiling() or torch.is_grad_enabled():
        return False
    return query.device.type == "cpu" and query.dtype == torch.bfloat16 and query.shape[2] <= 64


def biased_attention_pays(query: Tensor, bias: Tensor) -> bool:
    """Whether `biased_attention` is the fastest there is: on a CPU, where torch's kernels train no bias."""
    if _plain or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return False
    return query.device.type == "cpu" and bias.requires_grad


def biased_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scaling: float) -> Tensor:
    """Attention of `(B, H, Q, D)` to `(B, H, K, D)` with `(1 or B, H, Q, K)` added to the scores → `(B, Q, H, D)`."""
    return _BiasedAttention.apply(query, key, value, bias, scaling).transpose(1, 2)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, rate: float) -> Tensor:
        dropped = round(rate * 2**16)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        ctx.kept = (bits[: x.numel()] >= dropped - 2**15).view(x.shape)
        ctx.scale = 2**16 / (2**16 - dropped)
        return torch.where(ctx.kept, x, 0).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        return torch.where(ctx.kept, gradient, 0).mul_(ctx.scale), None


class OFADropout(nn.Dropout):
    """`nn.Dropout` that draws 16 random bits a number on a CPU, where drawing is what it costs.

    The rate is the nearest multiple of 2⁻¹⁶, and kept numbers are scaled by exactly that.
    """

    def forward(self, x: Tensor) -> Tensor:
        is_slow = x.device.type == "cpu" and self.training and not (_plain or torch.compiler.is_compiling())
        return _Dropout.apply(x, self.p) if is_slow and 0 < self.p < 1 else super().forward(x)


def number_of_parts(batch: Tensor, largest: int) -> int:
    """In how many parts a CPU computes a batch fastest: in such whose intermediate tensors reuse one another's memory.

    New pages of memory cost a tenth of the work, and the parts' results are the same bit for bit.

    Args:
        largest: numbers in the largest intermediate tensor of one sample.
    """
    if batch.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return 1
    return -(-len(batch) // max(1, REUSED_BYTES // max(1, largest * batch.element_size())))


def convolution_relu(
    x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int, residual: Tensor | None = None
) -> Tensor:
    """`relu(convolution(x) + residual)` without gradients: `(B, C, H, W)` → `(B, D, H', W')`."""
    if _for_onednn(FAST_DTYPES, x, weight, bias, residual):
        return _onednn_convolution(x, weight, bias, stride, padding, residual)
    features = functional.conv2d(x, weight, bias, stride, padding)
    return (features if residual is None else features.add_(residual)).relu_()


def fold_batch_norm(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight, in channels-last layout, and bias of one convolution that does what both modules do in inference."""
    scale = norm.weight.float() * (norm.running_var.float() + norm.eps).rsqrt()
    weight = convolution.weight.float() * scale[:, None, None, None]
    bias = norm.bias.float() - norm.running_mean.float() * scale
    dtype = fast_dtype(convolution.weight.dtype) if weight.device.type == "cpu" else convolution.weight.dtype
    return weight.to(dtype).contiguous(memory_format=torch.channels_last), bias.to(dtype)
