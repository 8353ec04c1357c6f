"""Captioning and LiT-tuning on a GPU, compared to what the GPU can do: one table.

    python benchmarks/bench_gpu.py [--size base] [--compile] [--json gpu.json]

The last column is the percentage of the speed of a large matrix product, measured in the same run and precision, that
the arithmetic of a row reaches (multiplications and additions as torch's counter sees them). "Busy" is the share of
the time in which a kernel ran; the rest is spent launching kernels. For captioning the weights have that precision;
for LiT-tuning they are float32 under autocast, as with the Trainer's `bf16`. Weights are random, images have 256
pixels, captions exactly 20 tokens and five beams. Without a GPU it runs in small on the CPU, to show that it runs.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from bench_scaling import LARGE
from bench_speed import IMAGE, PROMPT, SIZES, TOKENS, make_model
from limits import operations
from torch.profiler import ProfilerActivity, profile
from transformers import CompileConfig

from ofa_hf import OFAForConditionalGeneration
from ofa_hf.training.losses import smoothed_cross_entropy, without_logits


MIB = 2**20
CAPTIONS, CAPTION_TOKENS = 10, 25  # an image in LiT-tuning
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Bench:
    """A device, its measured peak, and the rows of the table."""

    def __init__(self, device: str, dtype: torch.dtype, repeats: int):
        self.device, self.dtype, self.repeats = torch.device(device), dtype, repeats
        self.is_gpu, self.rows = self.device.type == "cuda", []
        self.name = torch.cuda.get_device_name(self.device) if self.is_gpu else "CPU"
        self.peak = self._peak_flops()

    def wait(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize(self.device)

    def seconds(self, run: Callable[[], object]) -> float:
        """Median time of a run, after two that are not counted."""
        times = []
        for _ in range(self.repeats + 2):
            self.wait()
            start = time.perf_counter()
            run()
            self.wait()
            times.append(time.perf_counter() - start)
        return statistics.median(times[2:])

    def _peak_flops(self) -> float:
        side = 8192 if self.is_gpu else 1024
        a, b = (torch.randn(side, side, device=self.device, dtype=self.dtype) for _ in range(2))
        return 2 * side**3 / self.seconds(lambda: a @ b)

    def row(self, name: str, items: int, run: Callable[[], object], tokens: int = 0) -> None:
        """Measure and print one piece of work on so many items."""
        if self.is_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        seconds = self.seconds(run)
        memory = torch.cuda.max_memory_allocated(self.device) / MIB if self.is_gpu else None
        share = operations(run) / seconds / self.peak
        row = {"name": name, "milliseconds": 1000 * seconds, "per_second": items / seconds, "memory_mib": memory}
        row |= {"tokens_per_second": tokens / seconds, "share_of_peak": share}
        self.rows.append(row)
        print(
            f"{name:46} {1000 * seconds:9.1f} ms {items / seconds:10.1f}/s {tokens / seconds:10,.0f} tokens/s "
            f"{memory or 0:8.0f} MiB {share:7.1%}",
            flush=True,
        )

    def profiled(self, name: str, run: Callable[[], object]) -> dict:
        """Where the time of a run goes: share with a kernel running, number of kernels, the costliest ones."""
        run()
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * self.is_gpu
        wall = self.seconds(run)  # the profiler itself costs time
        with profile(activities=activities) as found:
            run()
            self.wait()
        kind = "self_device_time_total" if self.is_gpu else "self_cpu_time_total"
        events = sorted(found.key_averages(), key=lambda event: -getattr(event, kind))
        kernels = [event for event in events if not self.is_gpu or event.device_type.name == "CUDA"]
        total, count = sum(getattr(event, kind) for event in kernels), sum(event.count for event in kernels)
        top = {event.key[:70]: getattr(event, kind) / total for event in kernels[:8]}
        busy = total / 1e6 / wall
        print(f"\n{name}: {'busy ' + format(busy, '.0%') + ', ' if self.is_gpu else ''}{count:,} kernels, mostly")
        for key, share in top.items():
            print(f"  {share:6.1%} {key}")
        return {"name": name, "busy": busy if self.is_gpu else None, "kernels": count, "top": top}


def captioning(bench: Bench, model: OFAForConditionalGeneration, batch_size: int, **options) -> Callable[[], object]:
    prompts = torch.tensor([PROMPT], device=bench.device).expand(batch_size, -1)
    images = torch.randn(batch_size, 3, IMAGE, IMAGE, device=bench.device, dtype=model.dtype)
    settings = {"num_beams": 5, "min_length": TOKENS + 1, "max_length": TOKENS + 1, "no_repeat_ngram_size": 3}
    return lambda: model.generate(input_ids=prompts, pixel_values=images, **settings, **options)


def encoding(bench: Bench, model: OFAForConditionalGeneration, batch_size: int) -> Callable[[], object]:
    prompts = torch.tensor([PROMPT], device=bench.device).expand(batch_size, -1)
    images = torch.randn(batch_size, 3, IMAGE, IMAGE, device=bench.device, dtype=model.dtype)
    return lambda: model.encode(input_ids=prompts, pixel_values=images)


def tuning(bench: Bench, model: OFAForConditionalGeneration, images: int, cached: bool) -> Callable[[], object]:
    """A LiT step, forward and backward: all captions of each image, its encoder output computed or given."""
    labels = torch.randint(10, 20_000, (images * CAPTIONS, CAPTION_TOKENS), device=bench.device)
    encode = encoding(bench, model, images)
    kept = encode() if cached else None

    def step() -> None:
        with torch.autocast(bench.device.type, bench.dtype, enabled=bench.dtype != torch.float32):
            encoded = kept or encode()
            model(encoder_outputs=encoded, **without_logits(labels)).loss.backward()
        model.zero_grad()

    return step


@contextmanager
def locked(model: OFAForConditionalGeneration) -> Iterator[None]:
    dtype = model.dtype
    model.float().train()
    model.lock_encoder()
    yield
    model.unlock_encoder()
    model.to(dtype).eval()


def measure(bench: Bench, model: OFAForConditionalGeneration, batch_size: int, compiles: bool) -> list[dict]:
    one, many = captioning(bench, model, 1), captioning(bench, model, batch_size)
    bench.row("captioning, one image", 1, one, TOKENS)
    bench.row(f"captioning, batch of {batch_size}", batch_size, many, batch_size * TOKENS)
    bench.row(f"encoder alone, batch of {batch_size}", batch_size, encoding(bench, model, batch_size))
    if compiles:
        settings = {"cache_implementation": "static", "compile_config": CompileConfig(mode="reduce-overhead")}
        for size in (1, batch_size):
            fixed = captioning(bench, model, size, **settings)
            bench.row(f"captioning, static cache, compiled, batch of {size}", size, fixed, size * TOKENS)
    profiles = [bench.profiled("captioning, one image", one), bench.profiled("captioning, a batch", many)]
    images = max(1, batch_size // 4)
    captions = images * CAPTIONS
    with locked(model):
        for name, cached in (("LiT step", False), ("LiT step, encoder outputs given", True)):
            step = tuning(bench, model, images, cached)
            bench.row(f"{name}, {images} × {CAPTIONS} captions", captions, step, captions * CAPTION_TOKENS)
        return [*profiles, bench.profiled("LiT step, encoder outputs given", step)]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    has_gpu = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if has_gpu else "cpu", help="default: a GPU if there is one")
    parser.add_argument("--size", choices=[*SIZES, "large"], default="base" if has_gpu else "tiny")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bfloat16 on a GPU, float32 on a CPU")
    parser.add_argument("--batch-size", type=int, default=128 if has_gpu else 4, help="images; in LiT a quarter")
    parser.add_argument("--repeats", type=int, default=5 if has_gpu else 1)
    parser.add_argument("--compile", action="store_true", help="also a compiled decoding step with a static cache")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args(arguments)
    SIZES.setdefault("large", LARGE)
    dtype = DTYPES[args.dtype or ("float32" if args.device == "cpu" else "bfloat16")]
    bench = Bench(args.device, dtype, args.repeats)
    print(f"{bench.name}, torch {torch.__version__}, {dtype}, {args.size}")
    print(f"{'a large matrix product':46} {bench.peak / 1e9:9,.0f} GFLOP/s")
    model = make_model(args.size).to(bench.device, dtype)
    model.loss_function = smoothed_cross_entropy
    profiles = measure(bench, model, args.batch_size, args.compile)
    if args.json:
        facts = {"device": bench.name, "torch": torch.__version__, "dtype": str(dtype), "size": args.size}
        facts |= {"peak_flops": bench.peak, "rows": bench.rows, "profiles": profiles}
        args.json.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
