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
from torch.autograd.function import once_differentiable
from torch.nn import functional


_plain = False
_folding: ContextVar[bool] = ContextVar("ofa_folding", default=False)


@contextmanager
def folding() -> Iterator[None]:
    """Let trunks fold BatchNorm into their convolutions inside this block, as captioning does.

    Folding rounds differently, by some units in the last place. Outside of captioning a forward pass keeps to the
    very operations of the original.
    """
    token = _folding.set(True)
    try:
        yield
    finally:
        _folding.reset(token)


def is_folding() -> bool:
    """Whether this runs inside a `folding` block and nobody asked for plain kernels."""
    return _folding.get() and not _plain


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
def onednn_works() -> bool:
    """Whether this torch has the oneDNN operators and they compute what torch computes."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(size, generator=generator) for size in ((3, 5), (4, 5), (4,)))
    picture, kernel = torch.randn(1, 3, 6, 6, generator=generator), torch.randn(4, 3, 3, 3, generator=generator)
    try:
        with torch.inference_mode(False), torch.no_grad():
            product = _onednn_linear(x, weight, bias)
            features = _onednn_convolution(picture, kernel, bias, 2, 1, None)
            added = _onednn_convolution(picture, kernel, bias, 2, 1, features)
            plain = functional.conv2d(picture, kernel, bias, 2, 1).relu()
            return (
                torch.allclose(product, functional.linear(x, weight, bias), atol=1e-5)
                and torch.allclose(features, plain, atol=1e-5)
                and torch.allclose(added, (functional.conv2d(picture, kernel, bias, 2, 1) + plain).relu(), atol=1e-5)
            )
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return False


def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _onednn_convolution(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int, residual: Tensor | None):
    geometry = ([padding, padding], [stride, stride], [1, 1], 1)
    if residual is None:
        return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *geometry, "relu", [], "")
    convolution = torch.ops.mkldnn._convolution_pointwise.binary
    return convolution(x, residual, weight, bias, *geometry, "add", 1.0, "relu", [], "")


def _for_onednn(dtypes: tuple[torch.dtype, ...], *tensors: Tensor | None) -> bool:
    if _plain or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    present = [tensor for tensor in tensors if tensor is not None]
    plain = all(type(tensor) in (Tensor, nn.Parameter) and tensor.device.type == "cpu" for tensor in present)
    dtype = present[0].dtype
    return plain and dtype in dtypes and all(tensor.dtype == dtype for tensor in present) and onednn_works()


class _OneDNNLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn_linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        x, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            _onednn_linear(gradient, weight.T, None) if wants_x else None,
            _onednn_linear(rows.T, x.flatten(0, -2).T, None) if wants_weight else None,
            rows.sum(0) if wants_bias else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias`: `(..., C)`, `(D, C)`, `(D,)` → `(..., D)`."""
    if x.ndim < 2 or not _for_onednn((torch.float32,), x, weight, bias):
        return functional.linear(x, weight, bias)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _OneDNNLinear.apply(x, weight, bias)
    return _onednn_linear(x, weight, bias)


class OFALinear(nn.Linear):
    """`nn.Linear` on the fastest kernel."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def convolution_relu(
    x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int, residual: Tensor | None = None
) -> Tensor:
    """`relu(convolution(x) + residual)` without gradients: `(B, C, H, W)` → `(B, D, H', W')`."""
    if _for_onednn((torch.float32, torch.bfloat16), x, weight, bias, residual):
        return _onednn_convolution(x, weight, bias, stride, padding, residual)
    features = functional.conv2d(x, weight, bias, stride, padding)
    return (features if residual is None else features.add_(residual)).relu_()


def fold_batch_norm(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight, in channels-last layout, and bias of one convolution that does what both modules do in inference."""
    scale = norm.weight.float() * (norm.running_var.float() + norm.eps).rsqrt()
    weight = convolution.weight.float() * scale[:, None, None, None]
    bias = norm.bias.float() - norm.running_mean.float() * scale
    dtype = convolution.weight.dtype
    return weight.to(dtype).contiguous(memory_format=torch.channels_last), bias.to(dtype)
