"""All that this project is for, once, on the embedded shop: convert, finetune, score, load as a stranger, caption."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from ofa_hf import OFAImageProcessor, OFAProcessor
from ofa_hf.conversion.convert import convert
from ofa_hf.conversion.verify import WITHOUT_PACKAGE
from ofa_hf.conversion.vocabulary import build_tokenizer
from ofa_hf.conversion.vqgan import find_diffusers
from ofa_hf.data import load_muge
from ofa_hf.demo.drawing import DrawingResult, DrawingSize, run_drawing
from ofa_hf.demo.pretraining import Pretraining, pretrain
from ofa_hf.demo.report import write_demo_report
from ofa_hf.errors import UserError
from ofa_hf.evaluation import EvaluationResult
from ofa_hf.files import read_json, write_json
from ofa_hf.fresh_process import run_fresh
from ofa_hf.models import load_model
from ofa_hf.prediction.evaluating import evaluate_model
from ofa_hf.samples.official_file import write_official_checkpoint
from ofa_hf.samples.shop import Product, ShopFiles, caption_accuracy, read_products, write_shop
from ofa_hf.training import FinetuneResult, finetune, parse_arguments
from ofa_hf.training.callbacks import CURVE_FILE
from ofa_hf.training.curve import draw_curves


COMPARISON = "compare_freeze.png"
MARKER = "demo.json"  # the result; also says that a folder is a demo's, and may be replaced by another one


@dataclass(frozen=True)
class DemoSize:
    """How much of everything; the defaults take about five minutes on two cores."""

    num_train: int = 2500
    num_valid: int = 160
    image_pixels: int = 128
    model_pixels: int = 64
    pretraining: Pretraining = field(default_factory=Pretraining)
    finetune_epochs: int = 1
    targets_per_row: int = 10
    batch_captions: int = 50
    learning_rate: float = 1.5e-3
    drawing: DrawingSize = field(default_factory=DrawingSize)


@dataclass(frozen=True)
class FreezeRun:
    """One of the two runs that `compare_freeze` makes, each in a process of its own."""

    label: str
    losses: list[tuple[float, float]]  # (step, training loss)
    seconds: float  # of training only
    peak_mib: float  # of the whole process


@dataclass
class DemoResult:
    """What came out; `demo.json` holds it."""

    model: Path
    report: Path
    caption_accuracy: float  # share of unseen images whose kind and colour are named rightly, 0 to 1
    before: EvaluationResult = field(repr=False)
    after: EvaluationResult = field(repr=False)
    seconds: float
    steps: dict[str, float]  # seconds of each step
    freeze_runs: tuple[FreezeRun, ...] = ()
    drawing: DrawingResult | None = None

    def as_dict(self) -> dict:
        scores = self.after.scores
        return {
            "caption_accuracy": self.caption_accuracy,
            "cider_d": scores["cider_d"],
            "bleu_4": scores["bleu_4"],
            "rouge_l": scores["rouge_l"],
            "seconds": round(self.seconds, 1),
            "model": str(self.model),
            "report": str(self.report),
            "before": self.before.scores.as_dict(),
            "steps": {name: round(value, 1) for name, value in self.steps.items()},
            "compare_freeze": {
                run.label: {"loss": run.losses[-1][1], "seconds": run.seconds, "peak_mib": round(run.peak_mib)}
                for run in self.freeze_runs
            },
            **({"drawing": self.drawing.as_dict()} if self.drawing else {}),
        }


class Steps:
    """Tells what happens now, and how long each step took."""

    def __init__(self, tell: Callable[[str], None]):
        self.tell = tell
        self.started = time.monotonic()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str):
        self.tell(f"— {name}")
        before = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - before

    @property
    def total(self) -> float:
        return time.monotonic() - self.started


def run_demo(
    out: str | Path,
    *,
    seed: int = 0,
    size: DemoSize | None = None,
    with_comparison: bool = False,
    with_drawing: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> DemoResult:
    """Run the demo and leave data, model, scores and a report page in `out`.

    Args:
        with_comparison: see `compare_freeze`; adds two more finetuning runs.
        with_drawing: see `ofa_hf.demo.drawing`; a second model learns to draw the shop's products.
        tell: called with what happens now.

    Raises:
        UserError: `out` holds something other than a demo, or drawing was asked for without diffusers.
    """
    if with_drawing:
        find_diffusers()
    size, out = size or DemoSize(), Path(out).absolute()
    clear(out)
    steps = Steps(tell)
    with steps.step("drawing the shop"):
        files = write_shop(
            out / "shop", num_train=size.num_train, num_valid=size.num_valid, seed=seed, size=size.image_pixels
        )
        products = read_products(files.label_file)
    with steps.step("pretraining a small model and writing it as an official checkpoint"):
        checkpoint = out / "official_small.pt"
        recipe = replace(size.pretraining, softened_share=0.5) if with_drawing else size.pretraining
        make_checkpoint(files, products, size, recipe, seed, checkpoint)
    with steps.step("converting it"):
        account = convert(checkpoint, out / "converted", files.vocab_file, image_size=size.model_pixels)
        for line in account.lines():
            tell(f"  {line}")
    with steps.step("captioning unseen images before finetuning"):
        before = evaluate_folder(out / "converted", files)
    with steps.step("finetuning with a locked encoder"):
        result = finetune_on_shop(out / "converted", out / "model", files, size, seed)
    with steps.step("captioning them again"):
        after = evaluate_folder(out / "model", files)
        after.save(out / "evaluation.json")
    with steps.step("captioning in a fresh process without this package"):
        check_without_package(out, after, files)
    freeze_runs = ()
    if with_comparison:
        with steps.step("finetuning twice more: word embedding trained, and locked"):
            freeze_runs = compare_freeze(out, files, size, seed)
    drawing = None
    if with_drawing:
        drawing = run_drawing(out / "drawing", files.vocab_file, result.folder, size.drawing, seed, steps.step)
    with steps.step("writing the report"):
        unseen = list(after.predictions)
        accuracy = caption_accuracy([after.predictions[name] for name in unseen], [products[name] for name in unseen])
        report = out / "report.html"
        rows = {row["id"]: row["image"] for row in load_valid(files)}
        curves = [result.folder / CURVE_FILE, *([out / COMPARISON] if freeze_runs else [])]
        write_demo_report(report, before, after, products, rows, curves=curves, accuracy=accuracy, drawing=drawing)
    demo = DemoResult(result.folder, report, accuracy, before, after, steps.total, steps.seconds, freeze_runs, drawing)
    write_json(out / MARKER, demo.as_dict())
    return demo


def clear(out: Path) -> None:
    """Make room: an earlier demo is replaced, anything else is left alone."""
    if out.exists() and any(out.iterdir()):
        if not (out / MARKER).exists() and not (out / "shop").is_dir():
            raise UserError(f"{out} is not empty and holds no demo. Name an empty or a new folder.")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)


def make_checkpoint(
    files: ShopFiles, products: dict[str, Product], size: DemoSize, recipe: Pretraining, seed: int, path: Path
) -> None:
    side = {"height": size.model_pixels, "width": size.model_pixels}
    processor = OFAProcessor(OFAImageProcessor(size=side), build_tokenizer(files.vocab_file))
    rows = load_muge(files.train_caption_file, files.train_image_file)
    model = pretrain(rows, products, processor, recipe, seed)
    write_official_checkpoint(model, path, size.model_pixels)


def load_valid(files: ShopFiles):
    return load_muge(files.valid_caption_file, files.valid_image_file)


def evaluate_folder(folder: Path, files: ShopFiles) -> EvaluationResult:
    rows = load_valid(files)
    references = dict(zip(rows["id"], rows["targets"]))
    model, processor = load_model(folder)
    return evaluate_model(model, processor, rows, references, batch_size=20, num_beams=5, max_length=24)


def finetune_on_shop(start: Path, folder: Path, files: ShopFiles, size: DemoSize, seed: int) -> FinetuneResult:
    """LiT-tuning: the encoder is locked, the decoder learns to write selling copy."""
    return finetune(*parse_arguments(write_arguments(start, folder, files, size, seed)))


def write_arguments(start: Path, folder: Path, files: ShopFiles, size: DemoSize, seed: int, **others) -> Path:
    """The run as a file beside its output folder; by hand it is `ofa-hf finetune FILE`."""
    arguments = {
        "model_name_or_path": str(start),
        "train_caption_file": str(files.train_caption_file),
        "train_image_file": str(files.train_image_file),
        "test_caption_file": str(files.valid_caption_file),
        "test_image_file": str(files.valid_image_file),
        "output_dir": str(folder),
        "targets_per_row": size.targets_per_row,
        "max_seq_length": 24,
        "num_train_epochs": size.finetune_epochs,
        "per_device_train_batch_size": size.batch_captions,
        "per_device_eval_batch_size": 20,
        "learning_rate": size.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.1,
        "eval_strategy": "steps",
        "eval_steps": 100,
        "eval_rows": 40,
        "save_strategy": "no",
        "logging_steps": 10,
        "generation_num_beams": 1,
        "generation_max_length": 24,
        "use_cpu": True,
        "seed": seed,
        **others,
    }
    file = folder.with_name(f"finetune_{folder.name}.json")
    write_json(file, arguments)
    return file


# --------------------------------------------------------------------------------- the article's comparison


def compare_freeze(out: Path, files: ShopFiles, size: DemoSize, seed: int) -> tuple[FreezeRun, ...]:
    """The article's figure: the same run with the shared word embedding trained, and locked.

    Leaves `compare_freeze.png` in `out`.
    """
    runs = tuple(
        freeze_run(label, write_arguments(out / "converted", out / name, files, size, seed, freeze_word_embed=freeze))
        for label, name, freeze in (
            ("word embedding trained", "embedding_trained", False),
            ("word embedding locked", "embedding_locked", True),
        )
    )
    draw_curves({"Training loss a token by step": {run.label: run.losses for run in runs}}, out / COMPARISON)
    return runs


def freeze_run(label: str, arguments: Path) -> FreezeRun:
    command = [sys.executable, "-m", "ofa_hf", "finetune", str(arguments), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"The run with the {label} failed; its error is printed above. Fix that and run again.")
    folder = Path(read_json(arguments)["output_dir"])
    log = read_json(folder / "trainer_state.json")["log_history"]
    losses = [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]
    seconds = next(entry["train_runtime"] for entry in log if "train_runtime" in entry)
    return FreezeRun(label, losses, seconds, usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10))


# ---------------------------------------------------------------------------------------- as a stranger would


def check_without_package(out: Path, after: EvaluationResult, files: ShopFiles, count: int = 3) -> None:
    """Load the finetuned folder as a stranger would and compare a few captions.

    Raises:
        UserError: the captions are others.
    """
    images, expected = [], []
    for row in load_valid(files).select(range(count)):
        path = out / "samples" / f"{row['id']}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(row["image"]["bytes"])
        images.append(str(path))
        expected.append(after.predictions[row["id"]])
    failure = f"A process without ofa_hf cannot caption with {out / 'model'}: {{reason}}. Please report this."
    request = {"folder": str(out / "model"), "threads": torch.get_num_threads(), "images": images}
    request["pipeline"] = {"num_beams": 5, "max_length": 24}
    with tempfile.TemporaryDirectory() as scratch:
        found = run_fresh(WITHOUT_PACKAGE, request, scratch=scratch, failure=failure)["texts"]
    if found != expected:
        raise UserError(f"A process without ofa_hf says {found} where this one says {expected}. Please report this.")
