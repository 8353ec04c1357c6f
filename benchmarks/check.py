"""Fail if a ratio of the performance table has dropped far: ratios within one run, about five minutes.

    .venv/bin/python benchmarks/check.py

The limits are well below what a quiet machine measures, so that other work on the machine does not decide.
"""

import sys

import bench_speed
import bench_training
import torch

from ofa_hf.fast_ofa import is_slow


LEAST = {  # × the baseline
    "captioning, one image": 1.3,
    "captioning, batch of 8": 1.3,
    "captioning, one image, bfloat16": 2.2,
    "captioning, batch of 8, bfloat16": 2.5,
    "embeddings locked, 10 captions per image": 3.5,
    "embeddings locked, outputs cached": 4.5,
    "loss of 128 × 30 tokens": 10,
    "an image decoded for its 10 captions": 7,
}


def main() -> int:
    torch.set_num_threads(1)
    model = bench_speed.make_model("base")
    rows = bench_speed.measure("base", repeats=1)["rows"]
    for found in (bench_training.measure_ways(model, 1), bench_training.measure_memory(model)):
        rows += found
    rows += bench_training.measure_data(1)
    ratios = {row["name"]: row.get("ratio") for row in rows}
    limits = dict(LEAST)
    if is_slow(torch.bfloat16):  # computed in float32, as fast as that
        limits |= {name: LEAST[name.removesuffix(", bfloat16")] for name in LEAST if name.endswith(", bfloat16")}
    fallen = {name for name, least in limits.items() if ratios[name] < least}
    for name, least in limits.items():
        print(f"{'FALLEN' if name in fallen else 'kept':8}{name:46}{ratios[name]:6.1f} ×, at least {least}")
    return int(bool(fallen))


if __name__ == "__main__":
    sys.exit(main())
