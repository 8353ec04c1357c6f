"""Padded texts without their padding: in training the decoder computes real tokens alone."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


MOST_REAL = 0.9  # share of real tokens from which on taking the padding out costs more than it saves


class _Pack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states: Tensor, index: Tensor) -> Tensor:
        ctx.index, ctx.size = index, states.shape[0]
        return states.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        return gradient.new_zeros(ctx.size, gradient.shape[1]).index_copy_(0, ctx.index, gradient), None


class _Unpack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states: Tensor, index: Tensor, size: int) -> Tensor:
        ctx.index = index
        return states.new_zeros(size, states.shape[1]).index_copy_(0, index, states)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        return gradient.index_select(0, ctx.index), None, None


class RealTokens:
    """Where in `(rows, T)` padded texts the tokens lie that a loss needs: all up to a row's last label.

    Args:
        kept: `(rows, T)`, True where a token is computed.
    """

    def __init__(self, kept: Tensor):
        self.shape = kept.shape
        self.index = kept.flatten().nonzero()[:, 0]

    @classmethod
    def of_labels(cls, labels: Tensor, ignored: int) -> "RealTokens | None":
        """Those of `(rows, T)` labels; None where there is little padding, or nothing else."""
        kept = (labels != ignored).flip(1).cumsum(1).flip(1) > 0  # a text's ignored prefix is read all the same
        tokens = cls(kept)
        return tokens if 0 < len(tokens.index) <= MOST_REAL * labels.numel() else None

    def pack(self, states: Tensor) -> Tensor:
        """`(rows, T, C)` → `(N, C)`, or `(rows, T)` → `(N,)`."""
        flat = states.flatten(0, 1)
        return _Pack.apply(flat, self.index) if flat.ndim == 2 else flat[self.index]

    def unpack(self, states: Tensor) -> Tensor:
        """`(N, C)` → `(rows, T, C)`, zeros in the place of padding."""
        return _Unpack.apply(states, self.index, self.shape.numel()).unflatten(0, self.shape)
