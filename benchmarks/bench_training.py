"""What LiT-tuning costs: captions per second, memory and data preparation, compared to a baseline in the same run.

    .venv/bin/python benchmarks/bench_training.py [--size tiny] [--repeats 2] [--json results.json]

The baseline ("plain") encodes the image again for every caption, uses torch's own kernels, computes all logits at once
and decodes the image for every caption. Weights and captions are random. Times are CPU time of one thread for forward
and backward, without the optimizer. After warm-up passes, each repeat measures every way once, so that a ratio
compares neighbors. The last column is the percentage of the speed of this thread's largest product in the same
precision. Memory is the peak above the imports, each in a process of its own.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from bench_speed import CAPTION_TOKENS, CAPTIONS, IMAGE, PROMPT, SIZES, make_model, prompts
from datasets import Dataset
from limits import Machine, operations, plain_torch
from PIL import Image

from ofa_hf import OFAForConditionalGeneration, OFAImageProcessor
from ofa_hf.data import GroupedTargets
from ofa_hf.data.collator import open_row_image
from ofa_hf.data.shards import row_features
from ofa_hf.training.losses import FusedCrossEntropy, smoothed_cross_entropy, without_logits


IMAGES, VOCABULARY = 2, 30_325
HELD = 8  # images of the steps whose memory is measured
SHORTEST = 10  # tokens of the shortest caption where lengths differ


def some_captions(number: int, same_length: bool = True) -> torch.Tensor:
    labels = torch.randint(10, 20_000, (number, CAPTION_TOKENS))
    if same_length:
        return labels
    lengths = torch.randint(SHORTEST, CAPTION_TOKENS + 1, (number,))
    return labels.masked_fill(torch.arange(CAPTION_TOKENS) >= lengths[:, None], -100)


# -------------------------------------------------------------------------------------------------- steps


def plain_step_loss(model, pixel_values, labels) -> torch.Tensor:
    """An image for every caption, torch's kernels, all logits."""
    with plain_torch():
        decoder_input_ids = model.prepare_decoder_input_ids_from_labels(labels)
        inputs = {"input_ids": prompts(len(labels)), "pixel_values": pixel_values}
        logits = model(**inputs, decoder_input_ids=decoder_input_ids).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


def step_loss(model, labels, **encoder_inputs) -> torch.Tensor:
    model.loss_function = smoothed_cross_entropy
    return model(**encoder_inputs, **without_logits(labels)).loss


def take_step(model, compute_loss: Callable[[], torch.Tensor], dtype: torch.dtype | None = torch.float32) -> None:
    """Forward in a precision, as the Trainer does it, and backward."""
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        computed = compute_loss()
    computed.backward()
    model.zero_grad()


class Way(NamedTuple):
    """A way of taking a step."""

    reference: str  # what it is compared with
    captions: int  # a step
    loss: Callable[[], torch.Tensor]
    dtype: torch.dtype | None = torch.float32  # None: two precisions, so that no one limit fits


def ways_to_train(model) -> dict[str, Way]:
    """Those without embeddings come first."""
    pixel_values, labels = torch.randn(IMAGES, 3, IMAGE, IMAGE), some_captions(IMAGES * CAPTIONS)
    uneven = some_captions(IMAGES * CAPTIONS, same_length=False)
    images = {"input_ids": prompts(IMAGES), "pixel_values": pixel_values}
    outputs = model.encode(**images)
    cells = model.embed_image_cells(pixel_values)

    def plain():
        return plain_step_loss(model, pixel_values, labels[:IMAGES])

    def shared():
        return step_loss(model, labels, **images)

    def cached():
        return step_loss(model, labels, encoder_outputs=outputs)

    def cached_uneven():
        return step_loss(model, uneven, encoder_outputs=outputs)

    def half_encoder():
        with torch.autocast("cpu", torch.bfloat16):
            encoded = model.encode(**images)
        return step_loss(
            model, labels, encoder_outputs=(encoded.last_hidden_state.float(), encoded.position_embeddings)
        )

    def cached_cells():
        return step_loss(model, labels, input_ids=prompts(IMAGES), image_embeds=cells)

    locked, trained, many, half = "embeddings locked", "embeddings trained", IMAGES * CAPTIONS, torch.bfloat16
    return {
        f"{locked}, plain": Way("", IMAGES, plain),
        f"{locked}, {CAPTIONS} captions per image": Way(f"{locked}, plain", many, shared),
        f"{locked}, encoder alone in bfloat16": Way(f"{locked}, plain", many, half_encoder, None),
        f"{locked}, bfloat16": Way(f"{locked}, plain", many, shared, half),
        f"{locked}, outputs cached": Way(f"{locked}, plain", many, cached),
        f"{locked}, outputs cached, bfloat16": Way(f"{locked}, plain", many, cached, half),
        f"{locked}, outputs cached, uneven lengths": Way(f"{locked}, plain", many, cached_uneven),
        f"{locked}, outputs cached, uneven lengths, bfloat16": Way(f"{locked}, plain", many, cached_uneven, half),
        f"{trained}, plain": Way("", IMAGES, plain),
        f"{trained}, {CAPTIONS} captions per image": Way(f"{trained}, plain", many, shared),
        f"{trained}, ResNet cached": Way(f"{trained}, plain", many, cached_cells),
        f"{trained}, ResNet cached, bfloat16": Way(f"{trained}, plain", many, cached_cells, half),
    }


def processor_seconds(run: Callable[[], None]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def in_turn(model, ways: dict[str, Way]) -> Iterator[tuple[str, Way]]:
    """Name and way, one after the other, with the model locked as the way wants it."""
    for name, way in ways.items():
        if name.endswith(", plain"):
            model.lock_encoder(train_embeddings="trained" in name)
            model.train()
        yield name, way


def measure_ways(model, repeats: int) -> list[dict]:
    ways, machine = ways_to_train(model), Machine()
    kinds = {name: (name.partition(",")[0], way.loss) for name, way in ways.items()}  # the same in either precision
    counted, times = {}, {name: [] for name in ways}
    for name, way in in_turn(model, ways):
        if kinds[name] not in counted:
            counted[kinds[name]] = operations(lambda way=way: take_step(model, way.loss))
    for way in {way.dtype: way for way in ways.values()}.values():  # new memory and position scores, in each precision
        take_step(model, way.loss, way.dtype)
    for _ in range(repeats):
        for name, way in in_turn(model, ways):
            times[name].append(processor_seconds(lambda way=way: take_step(model, way.loss, way.dtype)))
    rows = [speed_row(name, ways, times) for name in ways]
    for row, (name, way) in zip(rows, ways.items(), strict=True):
        if way.dtype:
            least = machine.seconds_of(counted[kinds[name]], way.dtype)
            row["share_of_limit"] = least / statistics.median(times[name])
    return rows


def speed_row(name: str, ways: dict[str, Way], times: dict[str, list[float]]) -> dict:
    rates = {
        way: [ways[way].captions / seconds for seconds in times[way]] for way in (name, ways[name].reference) if way
    }
    row = {"name": name, "captions_per_second": statistics.median(rates[name])}
    if ways[name].reference:
        row |= with_spread([a / b for a, b in zip(rates[name], rates[ways[name].reference], strict=True)])
    return row


def with_spread(ratios: list[float]) -> dict[str, float]:
    return {"ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}


# ------------------------------------------------------------------------------------------------- memory


def peak_above_now(run: Callable[[], None]) -> float:
    """MiB of resident memory that a run takes at its peak above what the process holds already (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def resident(what: str) -> float:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(what)) / 1024


def loss_inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    features, weight = torch.randn(128 * 30, 768, requires_grad=True), torch.randn(VOCABULARY, 768)
    return features, weight, torch.randint(0, VOCABULARY, (128 * 30,))


def loss_plain(_) -> float:
    features, weight, labels = loss_inputs()
    return peak_above_now(lambda: torch.nn.functional.cross_entropy(features @ weight.T, labels).backward())


def loss_in_chunks(_) -> float:
    features, weight, labels = loss_inputs()
    return peak_above_now(lambda: FusedCrossEntropy.apply(features, weight, labels, 0.0).backward())


def load_locked(folder: str) -> OFAForConditionalGeneration:
    model = OFAForConditionalGeneration.from_pretrained(folder)
    model.lock_encoder()
    return model.train()


def some_images() -> torch.Tensor:
    return torch.randn(HELD, 3, IMAGE, IMAGE)


def memory_of_step(folder: str, compute_loss: Callable[[OFAForConditionalGeneration], torch.Tensor]) -> float:
    def run() -> None:
        model = load_locked(folder)
        take_step(model, lambda: compute_loss(model))

    return peak_above_now(run)


def loss_of_plain_step(model) -> torch.Tensor:
    return plain_step_loss(model, some_images(), some_captions(HELD))


def loss_of_step(model, captions: int = 1) -> torch.Tensor:
    return step_loss(model, some_captions(HELD * captions), input_ids=prompts(HELD), pixel_values=some_images())


def loss_of_cached_step(model) -> torch.Tensor:
    length = (IMAGE // 16) ** 2 + len(PROMPT)
    outputs = tuple(torch.randn(rows, length, model.config.d_model) for rows in (HELD, 1))
    return step_loss(model, some_captions(HELD), encoder_outputs=outputs)


# Name → what it is compared with, what a process of its own runs and returns.
MEMORY = {
    "loss of 128 × 30 tokens, plain": ("", loss_plain),
    "loss of 128 × 30 tokens": ("loss of 128 × 30 tokens, plain", loss_in_chunks),
    f"step, {HELD} captions, plain": ("", lambda folder: memory_of_step(folder, loss_of_plain_step)),
    f"step, {HELD} captions": (
        f"step, {HELD} captions, plain",
        lambda folder: memory_of_step(folder, loss_of_step),
    ),
    f"step, {HELD} captions, outputs cached": (
        f"step, {HELD} captions, plain",
        lambda folder: memory_of_step(folder, loss_of_cached_step),
    ),
    f"step, {HELD * CAPTIONS} captions": (
        "",
        lambda folder: memory_of_step(folder, lambda model: loss_of_step(model, CAPTIONS)),
    ),
}


def measure_memory(model) -> list[dict]:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        for name in MEMORY:
            command = [sys.executable, __file__, "--memory-of", name, folder]
            environment, peaks = {**os.environ, "OMP_NUM_THREADS": "1"}, []
            # now and then the heap of a process lies so that memory is not used again: 60 MiB of a step, and of a loss
            for _ in range(3 if name.startswith("loss") else 1):
                ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
                peaks.append(float(ran.stdout.splitlines()[-1]))
            found[name] = statistics.median(peaks)
    rows = []
    for name, (reference, _) in MEMORY.items():
        rows.append({"name": name, "mebibytes": found[name]})
        if reference:
            rows[-1]["ratio"] = found[reference] / max(found[name], 0.1)  # a cached step may need nothing new
    return rows


# --------------------------------------------------------------------------------------------------- data


def photo(number: int, side: int = 600) -> bytes:
    """A JPEG about as detailed, and so as slow to decode, as a shop's photo: some 75 kB."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 255, (side // 8, side // 8, 3), dtype=np.uint8)).resize((side, side))
    pixels = np.asarray(coarse, dtype=np.int16) + rng.integers(-10, 10, (side, side, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def measure_data(repeats: int, images: int = 20) -> list[dict]:
    """Processor time a caption from stored bytes to `pixel_values`, with and without sharing."""
    rows = [
        {"id": str(number), "image": {"bytes": photo(number), "path": None}, "targets": ["一件"] * CAPTIONS}
        for number in range(images)
    ]
    rows, processor = Dataset.from_list(rows, features=row_features()), OFAImageProcessor(size=IMAGE)

    items = GroupedTargets(rows)
    shared, pairs = range(images), [(row, (number,)) for row in range(images) for number in range(CAPTIONS)]

    def prepare(indices) -> None:
        for index in indices:
            processor([open_row_image(items[index])], return_tensors="pt")

    prepare(shared)
    times = [
        (processor_seconds(lambda: prepare(pairs)), processor_seconds(lambda: prepare(shared))) for _ in range(repeats)
    ]
    plain, fast = zip(*times, strict=True)
    captions = images * CAPTIONS
    return [
        {"name": "an image decoded for every caption", "milliseconds": 1000 * statistics.median(plain) / captions},
        {
            "name": f"an image decoded for its {CAPTIONS} captions",
            "milliseconds": 1000 * statistics.median(fast) / captions,
            **with_spread([slow / quick for slow, quick in times]),
        },
    ]


# --------------------------------------------------------------------------------------------------- main


def show(title: str, unit: str, key: str, rows: list[dict]) -> None:
    print(f"\n{title}")
    for row in rows:
        ratio = f"{row['ratio']:6.1f} ×" if "ratio" in row else ""
        spread = f" ({row['lowest']:.1f}–{row['highest']:.1f})" if "lowest" in row else ""
        share = f"  {row['share_of_limit']:4.0%} of the limit" if "share_of_limit" in row else ""
        print(f"{row['name']:52} {row[key]:9.2f} {unit} {ratio}{spread}{share}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--memory-of", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if args.memory_of:
        name, folder = args.memory_of
        print(MEMORY[name][1](folder))
        return
    model = make_model(args.size)
    results = {"size": args.size, "torch": torch.__version__, "speed": measure_ways(model, args.repeats)}
    show(
        f"LiT-tuning, {args.size}, {IMAGES} images of {IMAGE} px a step",
        "captions/s",
        "captions_per_second",
        results["speed"],
    )
    results["memory"] = measure_memory(model)
    show("Peak memory above the imports", "MiB", "mebibytes", results["memory"])
    results["data"] = measure_data(args.repeats)
    show("Data: processor time a caption", "ms", "milliseconds", results["data"])
    if args.json:
        args.json.write_text(json.dumps(results, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
