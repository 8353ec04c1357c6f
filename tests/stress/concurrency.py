"""Several at once: processes that want one file or folder, threads that share a pipeline, workers that die, forks."""

import os
import random
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import tiny_shop
import torch
from PIL import Image
from stress import processes
from stress.crash import Caption, Convert, Job, PrepareData, fresh, log_of
from stress.pieces import Figures

from ofa_hf import OFAImageToTextPipeline, OFAProcessor
from ofa_hf.models import load_pipeline


THREADS = 8
SIDES = (16, 32, 48, 64)  # pixels; the model of `tiny_shop` knows 64
Captions = tuple[list[str], list[float]]  # and their scores
WORDS = ("红", "好看的方块", "真不错的黑色")
PROMPTS = (None, "红", "图片描述了什么?", "一个很好看的方块是什么颜色")


# ------------------------------------------------------------------------------------------------ processes


def preparing(seed: int, amount: int, folder: Path) -> Figures:
    """Three processes build the same data; all get the same rows."""
    job = PrepareData(folder / "inputs", images=60)
    statuses = race(job, 3, seed, amount, folder)
    assert all(status == 0 for status, _ in statuses), statuses
    return {"races": amount, "processes": len(statuses)}


def converting(seed: int, amount: int, folder: Path) -> Figures:
    """Two processes convert into the same folder: one does, the other is told so."""
    statuses = race(Convert(folder / "inputs"), 2, seed, amount, folder)
    return {"races": amount, "told to wait": count_told(statuses, "Another process is writing")}


def captioning(seed: int, amount: int, folder: Path) -> Figures:
    """Two processes write captions into the same file: one does, the other is told so, or finds the work done."""
    statuses = race(Caption(folder / "inputs", images=8), 2, seed, amount, folder)
    return {"races": amount, "told to wait": count_told(statuses, "being written by another run")}


def race(job: Job, number: int, seed: int, amount: int, folder: Path) -> list[tuple[int, str]]:
    """Start a job several times at almost the same moment; returns each one's exit status and what it printed."""
    chance, outcomes = random.Random(seed), []
    for turn in range(amount):
        place = fresh(job, folder / f"race-{turn}")
        logs = [log_of(place).with_suffix(f".{each}") for each in range(number)]
        children = []
        for log in logs:
            children.append(processes.fork(partial(job.run, place), log))
            time.sleep(chance.random() * 0.03)
        statuses = [processes.ended(child, processes.PATIENCE) for child in children]
        assert 0 in statuses, "\n".join(map(processes.tail, logs))
        job.check(place)
        outcomes += [(status, processes.tail(log)) for status, log in zip(statuses, logs)]
    return outcomes


def count_told(outcomes: list[tuple[int, str]], words: str) -> int:
    """How many were refused; each in one clear line."""
    refused = [text for status, text in outcomes if status != 0]
    assert all(words in text.splitlines()[-1] and "Traceback" not in text for text in refused), refused
    return len(refused)


# --------------------------------------------------------------------------------------------------- threads


def threads(seed: int, amount: int, folder: Path) -> Figures:
    """Eight threads share a pipeline and its model; whatever the others ask, each hears what it would hear alone."""
    captioner = load_pipeline(tiny_shop.write_model(folder / "model"), device="cpu")
    chance = random.Random(seed)
    calls = [random_call(captioner, chance) for _ in range(amount)]
    alone = [call() for call in calls]
    order = chance.sample(range(amount), amount)
    with ThreadPoolExecutor(THREADS) as pool:
        together = dict(zip(order, pool.map(lambda index: calls[index](), order)))
    wrong = [index for index in range(amount) if together[index][0] != alone[index][0]]
    assert not wrong, f"{len(wrong)} of {amount} calls differ: {alone[wrong[0]]} alone, {together[wrong[0]]} not alone"
    largest = max(abs(a - b) for i in range(amount) for a, b in zip(alone[i][1], together[i][1]))
    return {"calls": amount, "threads": THREADS, "largest difference of a score": largest}


def random_call(captioner: OFAImageToTextPipeline, chance: random.Random) -> Callable[[], Captions]:
    """A call of the pipeline, or of its processor and model, with arguments of its own."""
    images = [random_image(chance) for _ in range(chance.randint(1, 4))]
    prompt, beams, side = chance.choice(PROMPTS), chance.randint(1, 4), chance.choice(SIDES)
    words = [chance.choice(WORDS) * chance.randint(1, 9) for _ in images]
    return chance.choice(
        (
            partial(call_pipeline, captioner, images, prompt, beams),
            partial(call_model, captioner, images, prompt, beams, side),
            partial(call_processor, captioner.processor, words, chance.randint(4, 20)),
        )
    )


def call_pipeline(captioner, images, prompt, beams) -> Captions:
    options = {"prompt": prompt, "num_beams": beams, "return_scores": True, "batch_size": 2}
    rows = [row for rows in captioner(images, **options) for row in rows]
    return [row["generated_text"] for row in rows], [row["score"] for row in rows]


def call_model(captioner, images, prompt, beams, side) -> Captions:
    inputs = captioner.processor(images=images, text=prompt, size=side, return_tensors="pt")
    sequences = captioner.model.generate(**inputs, num_beams=beams)
    scores = captioner.model.sequence_scores(sequences, **inputs)
    return captioner.processor.batch_decode(sequences), scores.tolist()


def call_processor(processor: OFAProcessor, words: list[str], length: int) -> Captions:
    """What the tokenizer, whose settings each of these calls changes, makes of a text and back."""
    found = [processor(text=words, text_target=words, max_length=length) for _ in range(50)]
    return [f"{one['input_ids'].tolist()} {one['labels'].tolist()}" for one in found], []


def random_image(chance: random.Random) -> Image.Image:
    width, height = chance.randint(8, 40), chance.randint(8, 40)
    return Image.frombytes("RGB", (width, height), chance.randbytes(3 * width * height))


# ----------------------------------------------------------------------------------------------------- forks


def forks(seed: int, amount: int, folder: Path) -> Figures:
    """A process captions, with two threads at work inside torch, then forks: its children caption the same."""
    model = tiny_shop.write_model(folder / "model")

    def parent() -> int:
        torch.set_num_threads(2)
        captioner, chance = load_pipeline(model, device="cpu"), random.Random(seed)
        for turn in range(amount):
            call = partial(call_pipeline, captioner, [random_image(chance)], None, chance.randint(1, 4))
            expected = call()
            log = folder / f"child-{turn}.log"
            status = processes.run(partial(compare, call, expected), log)
            assert status == 0, f"the child ended with {status}\n{processes.tail(log)}"
        return 0

    assert processes.run(parent, folder / "parent.log") == 0, processes.tail(folder / "parent.log")
    return {"forks": amount}


def compare(call: Callable[[], Captions], expected: Captions) -> int:
    return 0 if are_close(call(), expected) else 3


def are_close(one: Captions, other: Captions) -> bool:
    """Whether captions are the same and scores equal up to rounding, which depends on the number of threads."""
    return one[0] == other[0] and all(abs(a - b) < 1e-5 for a, b in zip(one[1], other[1], strict=True))


# --------------------------------------------------------------------------------------------------- workers


def workers(seed: int, amount: int, folder: Path) -> Figures:
    """A data-loader worker is killed while training: the run ends with one clear line, it does not hang."""
    chance, shop = random.Random(seed), tiny_shop.write_shop(folder / "shop")
    several = {"dataloader_num_workers": 2, "dataloader_persistent_workers": True, "disable_tqdm": True}
    arguments = {**shop, **several, "num_train_epochs": 1000, "save_strategy": "no"}
    file = tiny_shop.write_arguments(folder / "args.json", arguments)
    for turn in range(amount):
        log = folder / f"run-{turn}.log"
        child = processes.fork(partial(finetune, file, folder / f"out-{turn}"), log)
        victim = wait_for_worker(child, log)
        time.sleep(chance.random() * 0.5)
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        status = processes.ended(child, processes.PATIENCE)
        processes.clear_away(child)
        assert status == 1, f"{status}\n{processes.tail(log)}"
        before, told, _ = log.read_text(encoding="utf-8").partition("A data loader process ended")
        assert told, before
        assert "Traceback" not in before, before  # after it the other workers may say that nobody listens any more
    return {"workers killed": amount}


def finetune(file: Path, out: Path) -> int:
    from ofa_hf.cli import main

    return main(["finetune", str(file), "--output_dir", str(out)])


def wait_for_worker(child: int, log: Path) -> int:
    """The number of a data-loader worker, once training has begun."""
    end = time.monotonic() + processes.PATIENCE
    while time.monotonic() < end:
        if "step 1 " in processes.tail(log, 1000):
            found = [process.pid for process in psutil.Process(child).children() if is_worker(process)]
            if found:
                return found[0]
        time.sleep(0.02)
    raise AssertionError(f"training did not begin\n{processes.tail(log)}")


def is_worker(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE
    return False
