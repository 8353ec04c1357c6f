"""What each task costs beside a caption: as ratios within one run, and as share of the machine's limit.

    python benchmarks/bench_tasks.py [--size tiny] [--repeats 3] [--json tasks.json]

One image, or one article, goes from pixels and text to its answer through the loop that all commands use. Each task
takes turns with a caption of 20 tokens, and the ratio is the median over the turns. A list of labels is scored, not
searched; five columns are five questions about one image, which passes the ResNet once. Weights are random, so answers
have the length that is set here. "Of the limit" says how much of the time the machine needs at least (`limits.py`).
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_speed import BEAMS, IMAGE, SIZES, TOKENS, make_model
from limits import Machine, numbers, operations
from PIL import Image

from ofa_hf import OFAImageProcessor, OFAProcessor
from ofa_hf.conversion.vocabulary import build_tokenizer
from ofa_hf.fast_decoding_ofa import step_modules
from ofa_hf.prediction.loop import predict


CHARACTERS = [chr(code) for code in range(0x4E00, 0x4E00 + 800)]  # that labels and articles are made of
PROMPTS = '<>?"请用一个句子简单总结上文：这段文字描述的是哪区域图片什么内容'
LABELS, COLUMNS, VALUES = 1000, 5, 8
QUESTION, ARTICLE = "".join(CHARACTERS[20:32]) + "?", "".join(CHARACTERS[100:300])


@dataclass(frozen=True)
class Work:
    """Rows to answer.

    Args:
        texts: searched at once per row, `tokens` long; 0 where answers are scored.
    """

    name: str
    rows: Sequence[dict[str, Any]]
    options: dict[str, Any] = field(default_factory=dict)
    texts: int = BEAMS
    tokens: int = TOKENS


def make_processor(folder: Path) -> OFAProcessor:
    """A processor of every task here, with a vocabulary of single characters."""
    words = ["[PAD]", "[UNK]", *dict.fromkeys([*CHARACTERS, *PROMPTS])]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    tasks: dict[str, dict[str, Any]] = {name: {} for name in ("caption", "grounding", "ocr", "vqa", "summarization")}
    tasks["label"] = {"prompt": "图片描述了什么内容?", "answer": "choice", "choices": make_labels(LABELS)}
    for number in range(COLUMNS):
        prompt, values = f"{CHARACTERS[number]}是什么?", make_labels(VALUES, seed=number)
        tasks[f"closed {number}"] = {"prompt": prompt, "answer": "choice", "choices": values}
        search = {"num_beams": BEAMS, "min_length": 5, "max_length": 5}
        tasks[f"free {number}"] = {"prompt": prompt, "generation": search}
    return OFAProcessor(OFAImageProcessor(size=IMAGE), build_tokenizer(folder / "vocab.txt"), tasks=tasks)


def make_labels(number: int, seed: int = 0) -> list[str]:
    """Different labels of one to six characters, of which the first are few, as in names of goods."""
    source, labels = random.Random(seed), {}
    while len(labels) < number:
        first = source.choice(CHARACTERS[:60])
        labels[first + "".join(source.choices(CHARACTERS[:200], k=source.randrange(6)))] = None
    return list(labels)


def make_work() -> dict[str, Work]:
    """Kind of work → its rows; captioning first."""
    pixels = np.random.default_rng(0).integers(0, 255, (400, 500, 3), dtype=np.uint8)
    row = {"id": 0, "image": Image.fromarray(pixels)}
    search = {"num_beams": BEAMS, "min_length": TOKENS + 1, "max_length": TOKENS + 1}
    columns = {kind: [{**row, "task": f"{kind} {n}"} for n in range(COLUMNS)] for kind in ("closed", "free")}
    summary = {**search, "num_beams": 6}
    short = {"max_length": 6, "min_new_tokens": 5}
    works = [
        Work("caption", [{**row, "task": "caption"}], search),
        Work("locate a phrase", [{**row, "task": "grounding", "text": QUESTION[:6]}], tokens=5),
        Work("read the text", [{**row, "task": "ocr"}], search),
        Work("answer a question", [{**row, "task": "vqa", "question": QUESTION}], short, tokens=5),
        Work("summarize an article", [{"id": 0, "task": "summarization", "article": ARTICLE}], summary, texts=6),
        Work(f"choose among {LABELS:,} labels", [{**row, "task": "label"}], texts=0),
        Work(f"fill {COLUMNS} columns with closed lists", columns["closed"], texts=0),
        Work(f"fill {COLUMNS} columns with free text", columns["free"], tokens=COLUMNS * 4),
    ]
    return {work.name: work for work in works}


def answer(model, processor, work: Work) -> list:
    return list(predict(model, processor, work.rows, return_scores=True, **work.options))


def least_seconds(machine: Machine, model, processor, work: Work) -> float:
    """What the machine needs at least: arithmetic at its peak, or, for a search, reading the weights at every step."""
    layers = model.decoder.layers
    stepped = numbers([model.decoder.output_projection, *(m for layer in layers for m in step_modules(layer))])
    arithmetic = machine.seconds_of(operations(lambda: answer(model, processor, work)))
    if not work.texts:
        return arithmetic
    per_step = machine.seconds_of(2 * work.texts * stepped)
    reading = stepped * model.dtype.itemsize / machine.read
    return arithmetic + work.tokens * max(0.0, reading - per_step)


def turns(one: Callable[[], object], other: Callable[[], object], repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of two runs that take turns, after one of each that is not counted."""
    one(), other()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for run, of_run in zip((one, other), times, strict=True):
            start = time.perf_counter()
            run()
            of_run.append(time.perf_counter() - start)
    return times


def measure(size: str, repeats: int, folder: Path) -> dict:
    """Print the table row by row; returns the machine's limits and the rows."""
    model, processor, works, machine = make_model(size), make_processor(folder), make_work(), Machine()
    limits, rows, caption = machine.show(), [], works["caption"]
    for work in works.values():
        own, reference = turns(
            lambda work=work: answer(model, processor, work), lambda: answer(model, processor, caption), repeats
        )
        ratios = sorted(mine / its for mine, its in zip(own, reference, strict=True))
        row = {"name": work.name, "milliseconds": 1000 * statistics.median(own), "captions": statistics.median(ratios)}
        row |= {"lowest": ratios[0], "highest": ratios[-1]}
        row["share_of_limit"] = 1000 * least_seconds(machine, model, processor, work) / row["milliseconds"]
        rows.append(row)
        spread = f"{row['captions']:6.2f} × a caption ({ratios[0]:.2f}–{ratios[-1]:.2f})"
        share = f"{row['share_of_limit']:6.0%} of the limit"
        print(f"{work.name:40} {row['milliseconds']:8.0f} ms {spread:36}{share}", flush=True)
    return {"limits": limits, "rows": rows}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args(arguments)
    print(f"Tasks, {args.size}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args.size, args.repeats, Path(folder))
    if args.json:
        facts = {"size": args.size, "threads": torch.get_num_threads(), "torch": torch.__version__}
        args.json.write_text(json.dumps({**facts, **found}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
