"""Things computed from weights alone, remembered for as long as the weights stay as they are."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .modeling_ofa_kernels import OFALinear


class ShapeMemory:
    """Remembers by shape what was computed from the weights of some modules: position scores, folded convolutions.

    Results are kept only while gradients are off; with gradients on they must be part of the graph. Weights may change
    without a trace (fused optimizers and writes to `.data` leave version counters alone), so `check` compares values.
    """

    max_bytes = 512 * 1024**2  # of one shape and of all shapes together; larger ones are computed when asked for
    plain_modules = (
        nn.Linear,
        OFALinear,
        nn.LayerNorm,
        nn.Embedding,
        nn.Conv2d,
        nn.BatchNorm2d,
    )  # all else may hide an adapter

    def __init__(self):
        self.entries: OrderedDict[tuple, tuple] = OrderedDict()
        self.weights: tuple | None = None  # None: nothing may be kept
        self.lock = threading.Lock()

    def check(self, modules: list[nn.Module]) -> None:
        """Forget everything unless the weights of `modules` are those of the last time. To be called once a pass."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return
        weights = self._checksum(modules)
        with self.lock:
            if weights is None or weights != self.weights:
                self.entries.clear()
            self.weights = weights

    def forget(self) -> None:
        with self.lock:
            self.entries.clear()

    def get(self, shape: tuple, num_bytes: int, compute: Callable[[], tuple], source: Tensor | None = None) -> tuple:
        """`compute()` or what it gave before for this shape, these weights and this very `source` tensor."""
        off = self.weights is None or num_bytes > self.max_bytes
        if off or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return compute()
        device = self.weights[1].type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        key = (shape, num_bytes, dtype, None if source is None else self._identity(source))
        found = self.entries.get(key)
        if found is None:
            with torch.inference_mode(False), torch.no_grad():  # usable later outside inference mode too
                found = compute(), source  # the source is held: no other tensor can come to lie at its address
            with self.lock:
                self.entries[key] = found
                while sum(old[1] for old in self.entries) > self.max_bytes:
                    self.entries.popitem(last=False)
        return found[0]

    @classmethod
    def _checksum(cls, modules: list[nn.Module]) -> tuple | None:
        """Sums over the bits of all weights; None where they are out of reach or do not tell all."""
        tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        if any(type(module) not in cls.plain_modules for module in modules):
            return None
        if any(type(tensor) not in (nn.Parameter, Tensor) or tensor.is_meta for tensor in tensors):
            return None
        device = tensors[0].device
        sums = torch.stack([cls._sum_of_bits(tensor.detach()).to(device) for tensor in tensors])
        return tuple(sums.tolist()), device, tensors[0].dtype

    @staticmethod
    def _sum_of_bits(tensor: Tensor) -> Tensor:
        bits = tensor.reshape(-1)
        begin, length = bits.storage_offset() * bits.element_size(), bits.numel() * bits.element_size()
        whole_words = begin % 8 == length % 8 == 0
        return bits.view(torch.int64 if whole_words else torch.uint8).sum()

    @staticmethod
    def _identity(tensor: Tensor) -> tuple:
        return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version

    def __deepcopy__(self, memo):
        return type(self)()

    def __reduce__(self):
        return type(self), ()


class PackedMemory(ShapeMemory):
    """Remembers copies of weights in a layout that is faster to read."""

    max_bytes = 2 * 1024**3  # a large decoder's 830 MB in float32, and room beyond

    def packed(self, modules: list[nn.Module], pack: Callable[[], Any]) -> Any | None:
        """`pack()`, made of the weights of linear modules, or what it gave before; None where it may not be kept."""
        weights = [module.weight for module in modules]
        num_bytes = sum(weight.numel() * weight.element_size() for weight in weights)
        if num_bytes > self.max_bytes or torch.is_grad_enabled():
            return None
        self.check(modules)
        return None if self.weights is None else self.get((), num_bytes, pack)
