"""Long runs in one process: memory and open files stay as they are, and the last part is as fast as the first."""

import random
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice, pairwise
from pathlib import Path

import psutil
import tiny_shop
from PIL import Image
from stress import processes
from stress.pieces import Figures

from ofa_hf.models import load_model
from ofa_hf.prediction.inputs import ImageFile
from ofa_hf.prediction.loop import predict
from ofa_hf.prediction.outputs import AnswerFile, Format


MARKS = 40  # samples of a run
# Bytes that 1,000 captions or steps may add, in runs of this length: in shorter ones the allocator has not settled.
MAX_CAPTION_GROWTH, LONG_CAPTIONS = 50 * 2**10, 10_000
MAX_STEP_GROWTH, LONG_STEPS = 2**20, 1500
SLACK = 2**25  # bytes that a shorter run may add
MAX_SLOWDOWN = 1.5  # last tenth to first tenth, in processor time


@dataclass(frozen=True)
class Sample:
    """A running process at one of its marks."""

    done: int
    memory: int  # bytes resident
    files: int  # open
    seconds: float  # of processor time


def captions(seed: int, amount: int, folder: Path) -> Figures:
    """Caption so many images of many sizes into a file."""
    model, images = tiny_shop.write_model(folder / "model"), write_images(folder, random.Random(seed))
    job = partial(caption_many, str(model), images, amount, folder / "captions.jsonl")
    figures = figures_of(watch(job, folder / "log"), MAX_CAPTION_GROWTH, LONG_CAPTIONS)
    assert sum(1 for _ in (folder / "captions.jsonl").open(encoding="utf-8")) == amount
    return {"captions": amount, **figures}


def write_images(folder: Path, chance: random.Random, number: int = 100) -> list[str]:
    files = [folder / f"{index}.png" for index in range(number)]
    for file in files:
        width, height = chance.randint(8, 200), chance.randint(8, 200)
        Image.frombytes("RGB", (width, height), chance.randbytes(3 * width * height)).save(file)
    return list(map(str, files))


def caption_many(model: str, images: list[str], amount: int, output: Path) -> int:
    loaded, mark = load_model(model, device="cpu"), amount // MARKS
    rows = ({"id": file, "image": ImageFile(file)} for file in islice(cycle(images), amount))
    with AnswerFile(output, Format("caption", 1)) as written:
        answers = predict(*loaded, rows, batch_size=32, on_failure=refuse, return_scores=True)
        for done, answer in enumerate(answers, start=1):
            written.write(answer.id, answer.answers)
            if done % mark == 0:
                print(f"step {done}", flush=True)
    return 0


def refuse(file: str, error: Exception) -> None:
    raise error


def steps(seed: int, amount: int, folder: Path) -> Figures:
    """Train so many steps, with logs, evaluation and checkpoints on the way."""
    often = {"logging_steps": amount // MARKS, "save_steps": amount // 10, "save_total_limit": 2}
    arguments = {**tiny_shop.write_shop(folder / "shop"), **often, "max_steps": amount, "seed": seed % 2**32}
    arguments |= {"eval_strategy": "steps", "eval_steps": amount // 10, "disable_tqdm": True}
    file = tiny_shop.write_arguments(folder / "args.json", arguments)
    samples = watch(partial(finetune, file, folder / "out"), folder / "log")
    return {"steps": amount, **figures_of(samples, MAX_STEP_GROWTH, LONG_STEPS)}


def finetune(file: Path, out: Path) -> int:
    from ofa_hf.cli import main

    return main(["finetune", str(file), "--output_dir", str(out)])


def watch(job: Callable[[], int], log: Path) -> list[Sample]:
    """Run a job in a child process and look at it from outside whenever it prints `step <number>`."""
    child, samples, seen = processes.fork(job, log), [], 0
    looked_at = psutil.Process(child)
    last = time.monotonic()
    while (status := processes.ended(child, 0.01)) is None:
        told = re.findall(r"^step ([\d,]+)", processes.tail(log), re.MULTILINE)
        done = int(told[-1].replace(",", "")) if told else 0
        if done > seen:
            seen, last = done, time.monotonic()
            times = looked_at.cpu_times()
            samples.append(Sample(done, looked_at.memory_info().rss, looked_at.num_fds(), times.user + times.system))
        assert time.monotonic() - last < processes.PATIENCE, f"no step for long\n{processes.tail(log)}"
    assert status == 0, processes.tail(log)
    return samples


def figures_of(samples: list[Sample], max_growth: int, long: int) -> Figures:
    """Growth for 1,000 after the first third, open files, and the last tenth's time to the first's.

    Args:
        max_growth: bytes for 1,000, in a run of at least `long`.

    Raises:
        AssertionError: something grew, or the run became slower.
    """
    steady = samples[len(samples) // 3 : -1]  # by then all is loaded that is needed; the last batch is another size
    line = statistics.linear_regression([each.done for each in steady], [each.memory for each in steady])
    growth = 1000 * line.slope
    files = [each.files for each in steady]
    first, last = seconds_each(samples[: len(samples) // 10 + 1]), seconds_each(samples[-len(samples) // 10 - 1 :])
    allowed = max_growth if samples[-1].done >= long else SLACK * 1000 / (steady[-1].done - steady[0].done)
    assert growth < allowed, f"{growth:,.0f} bytes for 1,000"
    half = len(files) // 2
    assert max(files[half:]) <= max(files[:half]) + 1, f"open files: {files}"  # an image that is being read is one
    assert last < MAX_SLOWDOWN * first, f"{last / first:.2f} times as slow in the end"
    return {
        "KiB grown for 1,000": round(growth / 1024, 1),
        "MiB at most": round(max(each.memory for each in samples) / 2**20),
        "open files": max(files),
        "last tenth to first": round(last / first, 2),
    }


def seconds_each(samples: list[Sample]) -> float:
    """Processor time of one caption or step: the median between two marks, which leaves out evaluation and saving."""
    return statistics.median((b.seconds - a.seconds) / (b.done - a.done) for a, b in pairwise(samples))
