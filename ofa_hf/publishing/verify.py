"""Verify a bundle: a fresh process without this package loads it and asks its pipeline."""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from ofa_hf.conversion.convert import DTYPES, match_source
from ofa_hf.conversion.sources import open_source
from ofa_hf.conversion.verify import WITHOUT_PACKAGE
from ofa_hf.conversion.write import compare_weights
from ofa_hf.errors import UserError
from ofa_hf.files import read_json
from ofa_hf.fresh_process import run_fresh
from ofa_hf.model_card.facts import read_folder
from ofa_hf.model_card.snippets import call_for
from ofa_hf.publishing.bundle import weight_files


SHOWN = 60  # characters of an answer that are shown
AUTO_CLASSES = ("AutoConfig", "AutoModel")  # besides those that every verification uses


@dataclass(frozen=True)
class Report:
    """Results of one fresh process."""

    transformers: str
    huggingface_hub: str
    text: str  # the pipeline's answer for the default task and a test image; empty if it was not asked
    equal_tensors: int  # loaded tensors that equal the file bit by bit
    equal_to_source: int | None  # tensors of the file equal to the source's; None without a source
    not_asked: str = ""  # reason: a library that only the pipeline needs is missing

    def line(self) -> str:
        source = "" if self.equal_to_source is None else f", {self.equal_to_source} equal to the source"
        answer = f"not asked: {self.not_asked}" if self.not_asked else f"answer {self.text[:SHOWN]!r}"
        return (
            f"transformers {self.transformers}: Auto classes and pipeline load without the package, "
            f"{self.equal_tensors} tensors equal to the file{source}, {answer}"
        )


def verify_folder(
    folder: str | Path,
    source: str | Path | None = None,
    overlays: Sequence[Path] = (),
    report: Callable[[str], None] = lambda step: None,
) -> list[Report]:
    """Verify a folder with this environment's transformers, and with each overlay's.

    Args:
        source: what it was converted from; its weights are compared with the folder's, number by number.
        overlays: folders of packages put before this environment's, such as one with transformers 4.
        report: called with a line for each environment.

    Raises:
        UserError: anything does not load, differs, or two versions of transformers give different texts.
    """
    folder = Path(folder).resolve()
    equal_to_source = compare_with_source(folder, source) if source else None
    reports = []
    for overlay in (None, *overlays):
        if overlay is not None and not (overlay / "transformers").is_dir():
            raise UserError(f"{overlay} does not contain transformers. Pass a folder made by `pip install --target`.")
        reports.append(Report(**load_without_package(folder, overlay), equal_to_source=equal_to_source))
        report(reports[-1].line())
    if len({one.text for one in reports if not one.not_asked}) > 1:
        seen = "; ".join(f"{one.transformers} gives {one.text!r}" for one in reports)
        raise UserError(f"{folder}: the same image gets different answers: {seen}. Nothing should be published.")
    return reports


def compare_with_source(folder: Path, source: str | Path) -> int:
    """Number of tensors in a folder's weight files, all of them equal to the source's.

    Raises:
        UserError: one differs or is missing.
    """
    config = read_json(folder / "config.json")
    dtype = DTYPES.get(config.get("dtype") or config.get("torch_dtype"), torch.float32)
    files = [name for name in weight_files(folder) if name.endswith(".safetensors")]
    return compare_weights(folder, files, match_source(open_source(source)).weights_to_save(dtype))


def draw_image() -> Image.Image:
    """A red dress on a white ground."""
    image = Image.new("RGB", (240, 320), "white")
    canvas = ImageDraw.Draw(image)
    canvas.polygon([(95, 60), (145, 60), (150, 140), (200, 280), (40, 280), (90, 140)], fill="#c8202c")
    canvas.line([(95, 60), (95, 30)], fill="#c8202c", width=8)
    canvas.line([(145, 60), (145, 30)], fill="#c8202c", width=8)
    return image


def load_without_package(folder: Path, overlay: Path | None) -> dict:
    """Load a folder in a fresh process, compare its weights with the file, and ask its pipeline."""
    place = f" with the packages of {overlay}" if overlay else ""
    failure = (
        f"{folder} does not work without this package{place}: {{reason}}. Convert or finetune again with the newest "
        f"version, and verify again before publishing."
    )
    with tempfile.TemporaryDirectory() as scratch:
        image = Path(scratch) / "image.png"
        draw_image().save(image)
        request = {"folder": str(folder), "threads": torch.get_num_threads(), "exact": True}
        facts = read_folder(folder)
        call = call_for(facts.task, facts.language, str(image))
        asked = {**call.asked, "num_images": 1} if facts.task.answer == "image" else call.asked
        request |= {"auto_classes": AUTO_CLASSES}
        request |= {"call": {"name": facts.task.pipeline, "given": call.given, "asked": asked}}
        seen = run_fresh(WITHOUT_PACKAGE, request, scratch=scratch, failure=failure, overlay=overlay)
    names = ("transformers", "huggingface_hub", "equal_tensors")
    text, not_asked = text_of(seen["answers"]), seen.get("not_asked", "")
    return {"text": "" if not_asked else text, "not_asked": not_asked, **{name: seen[name] for name in names}}


def text_of(answers: list[dict]) -> str:
    """Answers of a pipeline as one text without their scores, which differ in the last digits between versions."""
    values = [value for answer in answers for name, value in answer.items() if name != "score"]
    return values[0] if len(values) == 1 and isinstance(values[0], str) else json.dumps(values, ensure_ascii=False)
