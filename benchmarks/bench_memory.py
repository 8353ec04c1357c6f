"""Time and peak memory of loading a folder and captioning a batch, compared to a baseline in the same run.

    .venv/bin/python benchmarks/bench_memory.py [--size tiny] [--repeats 3] [--json results.json]

The baseline ("plain") loads as transformers 4.20 did for OFA-Chinese: draw initial weights, read a whole
`pytorch_model.bin`, copy it over them. It captions with a copy of an image's encoder states for every beam and torch's
own kernels. Every figure comes from a process of its own. Time is that of the work without imports, memory the peak
above the imports (Linux).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from bench_speed import IMAGE, SIZES, caption, caption_plain, make_model
from bench_training import peak_above_now

from ofa_hf import OFAConfig, OFAForConditionalGeneration


WEIGHTS = "pytorch_model.bin"


def load(folder: str) -> OFAForConditionalGeneration:
    return OFAForConditionalGeneration.from_pretrained(folder)


def load_plain(folder: str) -> OFAForConditionalGeneration:
    model = OFAForConditionalGeneration(OFAConfig.from_pretrained(folder)).eval()
    model.load_state_dict(torch.load(Path(folder, WEIGHTS), weights_only=True))
    return model


def caption_eight(folder: str) -> None:
    caption(load(folder), torch.randn(8, 3, IMAGE, IMAGE))


def caption_eight_plain(folder: str) -> None:
    caption_plain(load(folder), torch.randn(8, 3, IMAGE, IMAGE))


def caption_eight_in_bfloat16(folder: str) -> None:
    model = OFAForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16)
    caption(model, torch.randn(8, 3, IMAGE, IMAGE, dtype=torch.bfloat16))


# Name → what it is compared with, and the work.
WORK: dict[str, tuple[str, Callable]] = {
    "loading a folder, plain": ("", load_plain),
    "loading a folder": ("loading a folder, plain", load),
    "loading and captioning a batch of 8, plain": ("", caption_eight_plain),
    "loading and captioning a batch of 8": ("loading and captioning a batch of 8, plain", caption_eight),
    "loading and captioning a batch of 8, bfloat16": (
        "loading and captioning a batch of 8, plain",
        caption_eight_in_bfloat16,
    ),
}


def measure_here(name: str, folder: str) -> tuple[float, float]:
    """Seconds and MiB of one piece of work, in a process that has only imported so far."""
    seconds = []

    def run() -> None:
        start = time.perf_counter()
        WORK[name][1](folder)
        seconds.append(time.perf_counter() - start)

    mebibytes = peak_above_now(run)
    return seconds[0], mebibytes


def measure(folder: str, repeats: int) -> list[dict]:
    found = {name: [] for name in WORK}
    for turn in range(repeats):
        for name, figures in found.items():
            if turn and "captioning" in name:  # bench_speed measures its time more often, and memory hardly varies
                continue
            command = [sys.executable, __file__, "--work", name, folder]
            ran = subprocess.run(command, capture_output=True, text=True, check=True)
            figures.append(json.loads(ran.stdout.splitlines()[-1]))
    rows = []
    for name, (reference, _) in WORK.items():
        seconds, mebibytes = zip(*found[name], strict=True)
        row = {"name": name, "seconds": statistics.median(seconds), "mebibytes": statistics.median(mebibytes)}
        if reference:
            plain = list(zip(*found[reference], strict=True))
            row["ratio"] = statistics.median(b / a for a, b in zip(seconds, plain[0], strict=True))
            row["memory_ratio"] = statistics.median(b / a for a, b in zip(mebibytes, plain[1], strict=True))
        rows.append(row)
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--work", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.work:
        print(json.dumps(measure_here(*args.work)))
        return
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(args.size)
        model.save_pretrained(folder)
        torch.save(model.state_dict(), Path(folder, WEIGHTS))
        del model
        rows = measure(folder, args.repeats)
    print(f"Loading and captioning, {args.size}, {os.cpu_count()} cores: time, and peak memory above the imports")
    for row in rows:
        ratios = f"{row['ratio']:6.1f} × {row['memory_ratio']:6.1f} × less" if "ratio" in row else ""
        print(f"{row['name']:46} {row['seconds']:7.2f} s {row['mebibytes']:7.0f} MiB {ratios}", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"size": args.size, "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
