"""What this machine allows: arithmetic as fast as its fastest large product, weights as fast as memory is read.

A percentage of this limit says how much is left to gain, on any machine. Whatever else costs time (norms, softmax, the
search, calling operations) counts as nothing here, so nothing reaches 100 %.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.utils.flop_counter import FlopCounterMode

from ofa_hf import OFAForConditionalGeneration, fast_ofa
from ofa_hf.fast_decoding_ofa import step_modules
from ofa_hf.fast_ofa import linear


def seconds(run: Callable[[], object], repeats: int, at_most: float = 10) -> list[float]:
    """Wall time of each run, after one that is not counted; fewer runs where they take more seconds than `at_most`."""
    run()
    times = []
    while len(times) < repeats and sum(times) < at_most:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


@contextmanager
def plain_torch() -> Iterator[None]:
    """Compute everything by plain torch inside this block."""
    fast_ofa.ENABLED = False
    try:
        yield
    finally:
        fast_ofa.ENABLED = True


def operations(run: Callable[[], object]) -> int:
    """Multiplications and additions of a run, as torch's own counter sees them."""
    with FlopCounterMode(display=False) as counter, plain_torch():  # it does not know oneDNN's products
        run()
    return counter.get_total_flops()


class Machine:
    """Peaks on this process's threads, the best of a few: operations a second by dtype, bytes read a second."""

    def __init__(self, repeats: int = 20):
        self.peaks = {dtype: self._product(dtype, repeats) for dtype in (torch.float32, torch.bfloat16)}
        block = torch.zeros(64 * 2**20)
        self.read = block.nbytes / min(seconds(block.sum, repeats))

    @staticmethod
    @torch.no_grad()
    def _product(dtype: torch.dtype, repeats: int) -> float:
        a, b = torch.randn(1024, 1024, dtype=dtype), torch.randn(1024, 1024, dtype=dtype)
        ways = (lambda: a @ b, lambda: linear(a, b))  # torch's own kernel, oneDNN
        return 2 * 1024**3 / min(min(seconds(way, repeats)) for way in ways)

    def show(self) -> dict[str, float]:
        facts = {f"product {str(dtype)[6:]}, GFLOP/s": peak / 1e9 for dtype, peak in self.peaks.items()}
        facts["memory read, GB/s"] = self.read / 1e9
        for name, value in facts.items():
            print(f"{name:58} {value:9.0f}")
        return facts

    def seconds_of(self, operations: int, dtype: torch.dtype = torch.float32) -> float:
        return operations / self.peaks[dtype]

    def seconds_to_caption(self, model: OFAForConditionalGeneration, inputs: dict, texts: int, tokens: int) -> float:
        """Encode images, then take `tokens` steps for `texts` captions of each, every step reading its weights once.

        Args:
            inputs: of the encoder: `input_ids` `(B, T)` and `pixel_values`, in the model's dtype.
        """
        one = {name: value[:1] for name, value in inputs.items()}
        images, dtype, layers = len(inputs["input_ids"]), model.dtype, model.decoder.layers
        keys = model.encode(**one).last_hidden_state.shape[1]
        cross = [module for layer in layers for module in (layer.cross_attn.k_proj, layer.cross_attn.v_proj)]
        encoding = operations(lambda: model.encode(**one)) + 2 * keys * numbers(cross)
        stepped = numbers([model.decoder.output_projection, *(m for layer in layers for m in step_modules(layer))])
        computing = self.seconds_of(2 * images * texts * stepped, dtype)
        reading = stepped * dtype.itemsize / self.read
        return self.seconds_of(images * encoding, dtype) + tokens * max(computing, reading)


def numbers(modules: list[torch.nn.Module]) -> int:
    """In the weights of modules."""
    return sum(module.weight.numel() for module in modules)
