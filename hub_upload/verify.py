"""Look at a bundle as a stranger would: a fresh process without this package loads it and captions per image."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from ofa_hf.conversion.convert import DTYPES, Conversion
from ofa_hf.conversion.sources import open_source
from ofa_hf.conversion.write import WeightsToSave, compare_weights
from ofa_hf.errors import UserError
from ofa_hf.publishing.bundle import weight_files
from ofa_hf.publishing.facts import read_json


SHOWN = 60  # characters of a caption
SHOWN = 60  # characters of a caption
TIMEOUT = 1800  # seconds; a large model on one core takes minutes


@dataclass(frozen=True)
class Report:
    """What one fresh process saw."""

    transformers: str
    huggingface_hub: str
    caption: str  # of the image drawn here
    equal_tensors: int  # loaded, equal to the file to the last bit
    equal_to_source: int | None  # tensors of the file equal to the source's; None without a source

    def line(self) -> str:
        source = "" if self.equal_to_source is None else f", {self.equal_to_source} equal to the source"
        return (
            f"transformers {self.transformers}: Auto classes and pipeline load without the package, "
            f"{self.equal_tensors} tensors equal to the file{source}, caption {self.caption[:SHOWN]!r}"
        )


def verify_folder(
    folder: str | Path,
    source: str | Path | None = None,
    overlays: Sequence[Path] = (),
    tell: Callable[[str], None] = lambda step: None,
) -> list[Report]:
    """Verify a folder with this environment's transformers, and with each overlay's.

    Args:
        source: what it was converted from; its weights are compared with the folder's, number by number.
        overlays: folders of packages put before this environment's, such as one with transformers 4.

    Raises:
        UserError: anything does not load, differs, or the versions do not agree about the caption.
    """
    folder = Path(folder).resolve()
    equal_to_source = compare_with_source(folder, source) if source else None
    reports = []
    for overlay in (None, *overlays):
        if overlay is not None and not (overlay / "transformers").is_dir():
            raise UserError(f"{overlay} holds no transformers. Give a folder made by `pip install --target`.")
        seen = ask_stranger(folder, overlay)
        reports.append(Report(**seen, equal_to_source=equal_to_source))
        tell(reports[-1].line())
    captions = {report.caption for report in reports}
    if len(captions) > 1:
        told = "; ".join(f"{report.transformers} says {report.caption!r}" for report in reports)
        raise UserError(f"{folder}: the same image gets different captions: {told}. Nothing should be published.")
    return reports


def compare_with_source(folder: Path, source: str | Path) -> int:
    """Number of tensors in a folder's weight files, all of them equal to the source's.

    Raises:
        UserError: one differs or is missing.
    """
    conversion = Conversion(open_source(source), lambda step: None)
    config = read_json(folder / "config.json")
    dtype = DTYPES.get(config.get("dtype") or config.get("torch_dtype"), torch.float32)
    weights = WeightsToSave(conversion.matched, conversion.weight_account.filled, dtype)
    files = [name for name in weight_files(folder) if name.endswith(".safetensors")]
    return compare_weights(folder, files, weights)


def draw_image() -> Image.Image:
    """A red dress on a white ground."""
    image = Image.new("RGB", (240, 320), "white")
    canvas = ImageDraw.Draw(image)
    canvas.polygon([(95, 60), (145, 60), (150, 140), (200, 280), (40, 280), (90, 140)], fill="#c8202c")
    canvas.line([(95, 60), (95, 30)], fill="#c8202c", width=8)
    canvas.line([(145, 60), (145, 30)], fill="#c8202c", width=8)
    return image


def ask_stranger(folder: Path, overlay: Path | None) -> dict:
    """Run `verify_child.py` in a process of its own and return what it saw."""
    program = Path(__file__).with_name("verify_child.py").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as scratch:
        image, answer = Path(scratch) / "image.png", Path(scratch) / "answer.json"
        draw_image().save(image)
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(Path(scratch) / "modules")}
        if overlay is not None:
            paths = [str(overlay.resolve()), os.environ.get("PYTHONPATH", "")]
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        command = [sys.executable, "-c", program, str(folder), str(image), str(answer)]
        try:
            result = subprocess.run(
                command, cwd=scratch, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT
            )
        except subprocess.TimeoutExpired:
            raise UserError(f"{folder} did not load within {TIMEOUT} s. Free some memory and run again.") from None
        if result.returncode:
            told = result.stderr.decode("utf-8", "replace").strip().splitlines() or [f"status {result.returncode}"]
            where = f" with the packages of {overlay}" if overlay else ""
            raise UserError(
                f"{folder} does not work for somebody without this package{where}: {told[-1][:400]} Convert or "
                f"finetune again with the newest version, and verify again before publishing."
            )
        return json.loads(answer.read_text(encoding="utf-8"))
