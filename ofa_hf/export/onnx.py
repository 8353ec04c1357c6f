"""A folder for those who serve without torch: two ONNX graphs, settings, and a script that captions with them."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ofa_hf import __version__
from ofa_hf.conversion.verify import fixed_image
from ofa_hf.errors import UserError
from ofa_hf.export.caption_onnx import Captioner, Settings, Steps, read_image
from ofa_hf.export.folder import (
    Export,
    need_libraries,
    new_export,
    refuse_quantised,
    source_name,
    write_facts,
)
from ofa_hf.export.graphs import OPSET, write_graphs
from ofa_hf.files import refuse_existing, write_text
from ofa_hf.models import LoadedModel, load_model


SCRIPT = Path(__file__).with_name("caption_onnx.py")
TOLERANCE = 1e-3  # of the scores, which are about 10; float32 rounds differently in every engine
TIMEOUT = 1800  # seconds
README = Path(__file__).with_name("onnx_readme.md")


def export_onnx(model: str, out: str | Path, progress: Callable[[str], None] = lambda step: None) -> Export:
    """Write the ONNX graphs of a model, with everything captioning needs, and compare them with torch.

    Args:
        model: Hub-ready folder or Hub id.
        out: folder to write; it appears whole or not at all.
        progress: called with what happens now.

    Raises:
        UserError: libraries are missing, the model cannot be loaded or has settings the script does not know, or the
            graphs say something else than the model.
    """
    need_libraries("onnx", "onnx", "onnxscript", "onnxruntime", "tokenizers")
    refuse_existing(Path(out))
    progress("loading the model")
    captioner = load_model(model, device="cpu", dtype="float32")
    refuse_quantised(captioner, model)
    settings_of(captioner)
    captioner.model.set_attn_implementation("eager")
    with new_export(out) as (folder, scratch):
        progress("tracing both graphs (some minutes for a large model)")
        captioner.model.generation_config.save_pretrained(folder)
        captioner.processor.save_pretrained(folder)
        for code in folder.glob("*.py"):  # of the processor, for transformers
            code.unlink()
        write_graphs(captioner.model, folder)
        shutil.copyfile(SCRIPT, folder / "caption.py")
        progress("comparing onnxruntime with torch")
        proof = compare_with_torch(captioner, folder, scratch)
        values = {
            "format": "onnx",
            "model": source_name(model),
            "opset": OPSET,
            "proof": proof,
            "versions": versions(),
        }
        write_facts(folder, values)
        write_text(folder / "README.md", readme(captioner, Path(out).name, proof))
    lines = [
        f"{model} → {out}: encoder.onnx, decoder.onnx (opset {OPSET}), caption.py",
        f"verified: scores differ from torch's by at most {proof['max_difference']:.2g}; greedy tokens and those of "
        f"{proof['beams']} beams equal",
    ]
    return Export(Path(out), values, lines)


def settings_of(captioner: LoadedModel) -> Settings:
    """The model's generation settings as the script reads them.

    Raises:
        UserError: it does not know one of them.
    """
    try:
        return Settings.of(captioner.model.generation_config.to_diff_dict())
    except ValueError as error:
        raise UserError(f"The model cannot be exported as it is: {error}") from error


@torch.no_grad()
def compare_with_torch(captioner: LoadedModel, folder: Path, scratch: Path) -> dict[str, Any]:
    """Caption an image with the folder's own script in a process of its own, and compare with the model.

    Raises:
        UserError: tokens are not the same, or scores differ by more than `TOLERANCE`.
    """
    image = scratch / "image.png"
    fixed_image().save(image)
    inputs = captioner.processor(images=Image.open(image), return_tensors="pt")
    settings = settings_of(captioner)
    beams = settings.num_beams if settings.num_beams > 1 else 5
    for num_beams in (1, beams):  # transformers 4 takes a max_length of 20 in the settings for 20 new tokens
        expected = captioner.model.generate(**inputs, num_beams=num_beams, max_length=settings.max_length)[0].tolist()
        found = run_script(folder, image, num_beams)["tokens"]
        if found != expected:
            raise UserError(
                f"onnxruntime says {found}, torch {expected}, both with {num_beams} beams. Nothing was kept. "
                f"Report it with the versions {versions()}."
            )
    difference = largest_difference(captioner, inputs, expected, folder, image)
    if not difference <= TOLERANCE:  # also true of NaN
        raise UserError(
            f"The scores of onnxruntime differ from torch's by {difference:.3g}; accepted is {TOLERANCE:g}. "
            f"Nothing was kept. Report it with the versions {versions()}."
        )
    return {"max_difference": difference, "beams": beams, "tokens": expected}


def run_script(folder: Path, image: Path, num_beams: int) -> dict[str, Any]:
    """What the folder's script says of an image."""
    command = [sys.executable, "caption.py", str(image), "--json", "--num-beams", str(num_beams)]
    result = subprocess.run(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=TIMEOUT,
    )
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or [f"status {result.returncode}"])[-1]
        raise UserError(f"The written script does not caption: {reason[:500]}. Nothing was kept.")
    return json.loads(result.stdout)


def largest_difference(captioner, inputs: Mapping, tokens: list[int], folder: Path, image: Path) -> float:
    """Between the scores of both engines, over all steps of one text."""
    expected = captioner.model(**inputs, decoder_input_ids=torch.tensor([tokens[:-1]])).logits[0].numpy()
    written = Captioner(folder)
    steps: Steps = written.model.encode(read_image(image, written.image_settings), inputs["input_ids"][0].tolist())
    found = np.concatenate([steps(np.array([token], dtype=np.int64)) for token in tokens[:-1]])
    return float(np.abs(found - expected).max())


def versions() -> dict[str, str]:
    import onnx
    import onnxruntime
    import onnxscript

    libraries = (torch, onnx, onnxscript, onnxruntime)
    return {"ofa_hf": __version__, **{library.__name__: library.__version__ for library in libraries}}


def readme(captioner: LoadedModel, name: str, proof: Mapping[str, Any]) -> str:
    config = captioner.model.config
    return README.read_text(encoding="utf-8").format(
        name=name,
        opset=OPSET,
        version=__version__,
        head_dim=config.d_model // config.decoder_attention_heads,
        vocabulary=config.vocab_size,
        largest=16 * config.image_bucket_size,
        positions=config.max_position_embeddings,
        difference=proof["max_difference"],
        beams=proof["beams"],
    )
