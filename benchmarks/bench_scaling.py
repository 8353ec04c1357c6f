"""How time and memory grow with batch, image size, beams, caption length, model, data and processes.

    python benchmarks/bench_scaling.py [--sizes tiny base large] [--pairs 1000 10000 1000000] [--json scaling.json]

Each table ends with the measured exponent e of `time ~ x ^ e` and the range it must be in, with the reason. Times are
CPU seconds of one thread, so a busy machine does not change them; captions per second are those of one free core.
Memory is the peak above what was there before the run. Weights are random, captions have exactly the given number of
tokens, and the defaults take about two minutes.
"""

import argparse
import ctypes
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import psutil
import torch
from bench_data import write_files
from bench_speed import PROMPT, SIZES, make_model

from ofa_hf.data import GroupedTargets, GroupedTargetSampler, count_targets, load_muge
from ofa_hf.data.images import why_broken


MIB = 2**20
LARGE = {"d_model": 1024, "layers": 12, "heads": 16, "resnet_type": "resnet152"}


@dataclass
class Growth:
    """What grows with what, as the documentation says."""

    name: str
    lowest: float  # exponent of time
    highest: float
    reason: str  # why that range
    rows: list[dict] = field(default_factory=list)

    def add(self, x: float, label: str, items: int, seconds: float, peak: int) -> None:
        row = {"x": x, "label": label, "seconds": seconds, "per_second": items / seconds, "peak_mib": peak / MIB}
        self.rows.append(row)

    @property
    def exponent(self) -> float | None:
        if len(self.rows) < 2:
            return None
        return slope([row["x"] for row in self.rows], [row["seconds"] for row in self.rows])

    @property
    def fits(self) -> bool:
        return self.exponent is None or self.lowest <= self.exponent <= self.highest

    def show(self) -> None:
        print(f"\n{self.name}: {self.reason}")
        for row in self.rows:
            print(f"  {row['label']:24} {row['per_second']:12,.2f}/s {row['seconds']:9.3f} s", end="")
            print(f" {row['peak_mib']:8.0f} MiB" if row["peak_mib"] else "")
        if self.exponent is not None:
            verdict = "as documented" if self.fits else "NOT AS DOCUMENTED"
            print(f"  time ~ x ^ {self.exponent:.2f}, {verdict}: {self.lowest} to {self.highest}", flush=True)


def slope(x: Iterable[float], y: Iterable[float]) -> float:
    return float(np.polyfit(np.log(list(x)), np.log(list(y)), 1)[0])


class Peak:
    """Highest resident memory above that at the beginning."""

    def __enter__(self) -> "Peak":
        with suppress(OSError, AttributeError):  # not glibc
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier runs freed must not hide what this one takes
        self._process, self._done = psutil.Process(), threading.Event()
        self._base = self._highest = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self._highest = max(self._highest, self._process.memory_info().rss)

    def __exit__(self, *_) -> None:
        self._done.set()
        self._thread.join()

    @property
    def bytes(self) -> int:
        return self._highest - self._base


def measure(run: Callable[[], object]) -> tuple[float, int]:
    """Processor seconds and peak memory of the better of two runs, after one that is not counted."""
    run()
    seconds, peaks = [], []
    for _ in range(2):
        with Peak() as peak:
            start = time.process_time()
            run()
            seconds.append(time.process_time() - start)
        peaks.append(peak.bytes)
    return min(seconds), max(peaks)


def caption(model, batch_size: int = 4, side: int = 256, beams: int = 5, tokens: int = 20) -> torch.Tensor:
    prompts, images = torch.tensor([PROMPT]).expand(batch_size, -1), torch.zeros(batch_size, 3, side, side)
    settings = {"num_beams": beams, "min_length": tokens + 1, "max_length": tokens + 1, "no_repeat_ngram_size": 3}
    return model.generate(input_ids=prompts, pixel_values=images, **settings)


def captioning(model) -> Iterable[Growth]:
    """Growth with all that a user can choose when captioning."""
    batch = Growth("batch size", 0.7, 1.1, "linear, less what a batch shares.")
    for size in (1, 2, 4, 8, 16):
        batch.add(size, f"batch of {size}", size, *measure(lambda size=size: caption(model, size)))
    yield batch
    side = Growth("image size", 0.8, 3.0, "ResNet with the square of the side, attention with its fourth power.")
    for pixels in (256, 384, 480):
        side.add(pixels, f"{pixels} px", 2, *measure(lambda pixels=pixels: caption(model, 2, side=pixels)))
    yield side
    beam = Growth("beams", 0.1, 1.1, "the encoder runs once whatever the beams, decoding is linear.")
    for beams in (1, 3, 5, 8):
        beam.add(beams, f"{beams} beams", 4, *measure(lambda beams=beams: caption(model, beams=beams)))
    yield beam
    length = Growth("caption length", 0.3, 1.1, "the encoder runs once whatever the length, a step costs the same.")
    for tokens in (10, 20, 40):
        length.add(tokens, f"{tokens} tokens", 4, *measure(lambda tokens=tokens: caption(model, tokens=tokens)))
    yield length


def models(sizes: list[str]) -> Growth:
    growth = Growth("model size (weights)", 0.5, 1.2, "linear; small layers use a core less well.")
    for size in sizes:
        model = make_model(size)
        weights = sum(parameter.numel() for parameter in model.parameters())
        growth.add(weights, f"{size}, {weights / 1e6:.0f} M", 2, *measure(lambda model=model: caption(model, 2)))
    return growth


def data(counts: list[int]) -> tuple[Growth, Growth]:
    build = Growth("data, build (pairs)", 0.5, 1.15, "linear after a fixed start; memory does not grow.")
    epoch = Growth("data, order of an epoch (pairs)", 0.6, 1.15, "linear; memory: some bytes per image.")
    why_broken(b"")  # loads the decoder
    for pairs in counts:
        with tempfile.TemporaryDirectory() as folder:
            files = write_files(Path(folder), max(1, pairs // 10), 10, 128)
            with Peak() as peak:
                start = processor_seconds()
                rows = load_muge(*files, num_proc=0, cache_dir=Path(folder) / "cache")
                build.add(pairs, f"{pairs:,} pairs", pairs, processor_seconds() - start, peak.bytes)
            epoch.add(pairs, f"{pairs:,} pairs, one epoch", pairs, *measure(lambda rows=rows: read_epoch(rows)))
    return build, epoch


def read_epoch(rows) -> None:
    """Every pair of an epoch in shuffled groups of five, undecoded."""
    groups = GroupedTargets(rows)
    for index in GroupedTargetSampler(count_targets(rows), 5):
        groups[index]


def processor_seconds() -> float:
    mine = os.times()
    return mine.user + mine.system + mine.children_user + mine.children_system


def processes(model, numbers: tuple[int, ...] = (1, 2)) -> Growth:
    """Each process captions as many images as a single one would, at the same time as the others."""
    growth = Growth("processes", -0.2, 0.35, "flat: none waits for another, they share no more than the memory.")
    for number in numbers:
        barrier, times = multiprocessing.Barrier(number), multiprocessing.SimpleQueue()
        workers = [multiprocessing.Process(target=_work, args=(model, barrier, times)) for _ in range(number)]
        for worker in workers:
            worker.start()
        seconds = max(times.get() for _ in workers)  # of its own core
        for worker in workers:
            worker.join()
        growth.add(number, f"{number} processes", 16 * number, seconds, 0)
    return growth


def _work(model, barrier, times) -> None:
    torch.set_num_threads(1)
    caption(model)
    barrier.wait()
    start = time.process_time()
    for _ in range(4):
        caption(model)
    times.put(time.process_time() - start)


def all_growth(model, sizes: list[str], pairs: list[int]) -> Iterable[Growth]:
    """One after another, each as soon as it was measured."""
    yield from captioning(model)
    yield models(sizes)
    yield from data(pairs)
    yield processes(model)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", nargs="+", choices=[*SIZES, "large"], default=["tiny", "base"])
    parser.add_argument("--pairs", nargs="+", type=int, default=[1_000, 10_000, 100_000])
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args(arguments)
    SIZES.setdefault("large", LARGE)
    torch.set_num_threads(1)
    model = make_model(args.sizes[0])
    found = []
    for growth in all_growth(model, args.sizes, args.pairs):
        growth.show()
        found.append({**asdict(growth), "exponent": growth.exponent, "as_documented": growth.fits})
    if args.json:
        args.json.write_text(json.dumps({"cores": os.cpu_count(), "growth": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
