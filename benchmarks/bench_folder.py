"""How close captioning a folder comes to the model's own speed, and whether its memory stays flat.

    python benchmarks/bench_folder.py [--photos FOLDER] [--images 120] [--size tiny] [--json folder.json]

The same number of images goes through the model twice, in turns: as batches that are already tensors (the model's own
speed), and from files that are read, decoded, resized, captioned and written to a file. At 100 %, all of that hides
behind the model. Then two processes share the same files, each with half of the threads, as
`torchrun --nproc_per_node 2 -m ofa_hf caption` does; 1.2 × means 20 % more captions per second. Weights are random and
every caption has exactly 20 tokens. Without --photos, 25 noisy images of 800 × 800 pixels are drawn.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import psutil
import torch
from bench_speed import BEAMS, IMAGE, SIZES, TOKENS, make_model
from PIL import Image

from ofa_hf import OFAImageProcessor, OFAImageToTextPipeline, OFAProcessor
from ofa_hf.conversion.vocabulary import build_tokenizer
from ofa_hf.prediction.inputs import find_images
from ofa_hf.prediction.loop import predict
from ofa_hf.prediction.outputs import AnswerFile, Format


MIB = 2**20
WORDS = ["[PAD]", "[UNK]", *dict.fromkeys("图片描述了什么内容?")]
SETTINGS = {"num_beams": BEAMS, "min_length": TOKENS + 1, "max_length": TOKENS + 1, "return_scores": True}


def draw_photos(folder: Path) -> Path:
    for seed in range(25):
        coarse = np.random.default_rng(seed).integers(0, 255, (80, 80, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((800, 800)).save(folder / f"{seed:02d}.jpg", quality=90)
    return folder


def make_captioner(size: str, folder: Path) -> OFAImageToTextPipeline:
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    processor = OFAProcessor(OFAImageProcessor(size=IMAGE), build_tokenizer(folder / "vocab.txt"))
    return OFAImageToTextPipeline(model=make_model(size), processor=processor, device="cpu")


def caption_tensors(captioner: OFAImageToTextPipeline, batch: dict, count: int) -> None:
    for _ in range(count):
        captioner.forward(dict(batch), **SETTINGS)


def caption_folder(captioner: OFAImageToTextPipeline, files: list[str], batch_size: int, output: Path) -> None:
    def refuse(file: str, error: Exception) -> None:
        raise SystemExit(f"{error} This benchmark needs images that can be read.")

    rows = ({"id": file, "image": Path(file)} for file in files)
    options = {"batch_size": batch_size, "on_failure": refuse, **SETTINGS}
    with AnswerFile(output, Format("caption", 1)) as answers:
        for prediction in predict(captioner.model, captioner.processor, rows, **options):
            answers.write(prediction.id, prediction.answers)


def caption_folder_in_processes(captioner, files: list[str], batch_size: int, folder: Path, number: int = 2) -> None:
    """Share files among forks of this process, each with its part of the threads."""
    context, threads = multiprocessing.get_context("fork"), max(1, torch.get_num_threads() // number)

    def work(rank: int) -> None:
        torch.set_num_threads(threads)
        caption_folder(captioner, files[rank::number], batch_size, folder / f"{rank}.jsonl")

    workers = [context.Process(target=work, args=(rank,)) for rank in range(number)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit("A process that captioned its share failed; its reason stands above.")


def timed(run, *args) -> tuple[float, float]:
    """Wall and processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    run(*args)
    return time.perf_counter() - wall, time.process_time() - cpu


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--photos", type=Path, help="folder of images; they are repeated")
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--turns", type=int, default=5, help="times that the two ways take turns")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(args, Path(folder))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


def measure(args: argparse.Namespace, folder: Path) -> dict:
    photos, captioner = find_images([args.photos or draw_photos(folder)]), make_captioner(args.size, folder)
    batches = max(1, args.images // args.turns // args.batch_size)
    per_turn = batches * args.batch_size
    supply = cycle(photos)
    first = [Image.open(path) for path in islice(supply, args.batch_size)]
    batch = captioner.processor(images=first, return_tensors="pt")
    caption_folder(captioner, list(islice(supply, 2 * args.batch_size)), args.batch_size, folder / "warm-up.jsonl")

    own, whole, shared, memory, process = [], [], [], [], psutil.Process()
    for turn in range(args.turns):
        files = list(islice(supply, per_turn))
        own.append(timed(caption_tensors, captioner, batch, batches))
        whole.append(timed(caption_folder, captioner, files, args.batch_size, folder / f"{turn}.jsonl"))
        memory.append(process.memory_info().rss)
        (folder / f"shared-{turn}").mkdir()
        shared.append(timed(caption_folder_in_processes, captioner, files, args.batch_size, folder / f"shared-{turn}"))
    faster = sorted(one[0] / two[0] for one, two in zip(whole, shared, strict=True))
    ratios = sorted(model[0] / all_[0] for model, all_ in zip(own, whole, strict=True))
    costs = sorted(all_[1] / model[1] for model, all_ in zip(own, whole, strict=True))
    figures = {
        "images": per_turn * args.turns,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "model_images_per_second": per_turn / statistics.median(model[0] for model in own),
        "folder_images_per_second": per_turn / statistics.median(all_[0] for all_ in whole),
        "speed_of_model": statistics.median(ratios),
        "speed_lowest_highest": [ratios[0], ratios[-1]],
        "processor_time_of_model": statistics.median(costs),
        "speed_of_two_processes": statistics.median(faster),
        "two_processes_lowest_highest": [faster[0], faster[-1]],
        "memory_after_first_turn_mib": memory[0] / MIB,
        "memory_after_last_turn_mib": memory[-1] / MIB,
    }
    print(f"{figures['images']} images from {len(photos)} files, {args.size}, batches of {args.batch_size}")
    print(f"{figures['threads']} torch threads on {figures['cores']} cores")
    print(f"model alone          {figures['model_images_per_second']:8.2f} images/s")
    print(f"folder to file       {figures['folder_images_per_second']:8.2f} images/s")
    print(f"speed of the model   {figures['speed_of_model']:8.0%}   ({ratios[0]:.0%}–{ratios[-1]:.0%} over the turns)")
    print(f"processor time       {figures['processor_time_of_model']:8.0%} of the model's")
    two = figures["speed_of_two_processes"]
    print(f"in two processes     {two:8.2f} ×   ({faster[0]:.2f}–{faster[-1]:.2f} over the turns)")
    print(f"memory               {memory[0] / MIB:8.0f} MiB after the first turn, {memory[-1] / MIB:.0f} in the end")
    return figures


if __name__ == "__main__":
    main()
