"""Export to ONNX: two graphs, settings, and scripts that run them without torch."""

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

from ofa_hf import OFAProcessor, __version__
from ofa_hf.conversion.verify import fixed_image
from ofa_hf.errors import UserError
from ofa_hf.export.caption_onnx import Captioner, Settings, Steps, read_image
from ofa_hf.export.folder import (
    Export,
    need_libraries,
    new_export,
    refuse_drawer,
    refuse_quantized,
    source_name,
    write_facts,
)
from ofa_hf.export.graphs import OPSET, write_graphs
from ofa_hf.files import refuse_existing, write_json, write_text
from ofa_hf.model_card.snippets import example_values
from ofa_hf.models import LoadedModel, load_model
from ofa_hf.tasks_ofa import BOX_SLOT, Task


SCRIPT = Path(__file__).with_name("caption_onnx.py")
ANSWER_SCRIPT = Path(__file__).with_name("answer_onnx.py")
TASKS_FILE = "tasks.json"
LABELS = ("a", "b")  # for the comparison of a task that brings no list of answers
BOX = (5, 5, 30, 30)  # in the compared image
TOLERANCE = 1e-3  # difference of scores, which are about 10; engines round float32 differently
TIMEOUT = 1800  # seconds
README = Path(__file__).with_name("onnx_readme.md")


def export_onnx(model: str, out: str | Path, progress: Callable[[str], None] = lambda step: None) -> Export:
    """Write the ONNX graphs of a model and everything needed to run them, and compare them with torch.

    Args:
        model: Hub-ready folder or Hub id.
        out: folder to write, atomically.
        progress: called with a description of each step.

    Raises:
        UserError: libraries are missing, the model cannot be loaded or has settings the script does not know, or the
            graphs and the model disagree.
    """
    need_libraries("onnx", "onnx", "onnxscript", "onnxruntime", "tokenizers")
    refuse_existing(Path(out))
    refuse_drawer(model, as_default_only=True)
    progress("loading the model")
    captioner = load_model(model, device="cpu", dtype="float32")
    refuse_quantized(captioner, model)
    settings_of(captioner)
    tasks, left_out = tasks_with_image(captioner.processor)
    captioner.model.set_attn_implementation("eager")
    with new_export(out) as (folder, scratch):
        progress("tracing both graphs (some minutes for a large model)")
        captioner.model.generation_config.save_pretrained(folder)
        captioner.processor.save_pretrained(folder)
        for code in folder.glob("*.py"):  # files of the processor, for transformers
            code.unlink()
        write_graphs(captioner.model, folder)
        write_scripts(folder)
        write_json(folder / TASKS_FILE, {"default": captioner.processor.default_task, "tasks": tasks})
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
        f"{model} → {out}: encoder.onnx, decoder.onnx (opset {OPSET}), caption.py, answer.py",
        f"tasks: {', '.join(tasks)}",
        f"verified: scores differ from torch's by at most {proof['max_difference']:.2g}; {proof['compared']} equal",
    ]
    if left_out:
        lines.insert(2, f"left out, since they read no image and the graphs take one: {', '.join(left_out)}")
    return Export(Path(out), values, lines)


def write_scripts(folder: Path) -> None:
    """`caption.py`, and `answer.py`, which imports it from where it is."""
    shutil.copyfile(SCRIPT, folder / "caption.py")
    text = ANSWER_SCRIPT.read_text(encoding="utf-8")
    write_text(folder / "answer.py", text.replace("from ofa_hf.export.caption_onnx import", "from caption import"))


def tasks_with_image(processor: OFAProcessor) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The tasks that the script supports, and those that it does not because they read no image.

    Raises:
        UserError: the default task is one of the latter.
    """
    tasks = {name: processor.find_task(name) for name in processor.tasks}
    left_out = [name for name, task in tasks.items() if not task.needs_image or len(task.fields) > 1]
    if processor.default_task in left_out:
        raise UserError(
            f"The task {processor.default_task} cannot be exported: it reads no image, or more than one text, and the "
            f"graphs take an image and the script one text. Use the model with transformers."
        )
    rows = {
        name: {
            "prompt": task.prompts[processor.language],
            "answer": task.answer,
            "choices": list(task.choices),
            "starts_with": task.starts_with,
            "cleaning": cleaning_of(task),
            "image": dict(task.image) | size_as_dict(task.image),
            "generation": dict(task.generation),
        }
        for name, task in tasks.items()
        if name not in left_out
    }
    return rows, left_out


def cleaning_of(task: Task) -> str:
    """How the text for the task's only slot is cleaned."""
    if isinstance(task.cleaning, Mapping):
        return task.cleaning.get(next(iter(task.fields), ""), "")
    return task.cleaning


def size_as_dict(image: Mapping[str, Any]) -> dict[str, Any]:
    size = image.get("size")
    return {"size": {"width": size, "height": size}} if isinstance(size, int) else {}


def settings_of(captioner: LoadedModel) -> Settings:
    """The model's generation settings as the script reads them.

    Raises:
        UserError: the script does not support one of them.
    """
    try:
        return Settings.of(captioner.model.generation_config.to_diff_dict())
    except ValueError as error:
        raise UserError(f"The model cannot be exported as it is: {error}") from error


@torch.no_grad()
def compare_with_torch(captioner: LoadedModel, folder: Path, scratch: Path) -> dict[str, Any]:
    """Run the default task with the exported script in a separate process, and compare.

    Raises:
        UserError: tokens differ, or scores differ by more than `TOLERANCE`.
    """
    image, processor = scratch / "image.png", captioner.processor
    fixed_image().save(image)
    task = processor.find_task()
    values = example_values(task, processor.language, BOX)
    asked = [",".join(map(str, value)) if name == BOX_SLOT else value for name, value in values.items()]
    words = [str(image), *(word for text in asked for word in ("--text", text))]
    inputs = processor(images=Image.open(image), text=values or None, return_tensors="pt")
    if task.answer == "choice":
        return compare_choices(captioner, inputs, folder, [*words], list(task.choices) or list(LABELS))
    settings = settings_of(captioner)
    beams = settings.num_beams if settings.num_beams > 1 else 5
    length = {"max_length": settings.max_length}  # transformers 4 treats max_length=20 as 20 new tokens
    length = {"max_new_tokens": settings.max_length - 1} if task.starts_with else length
    for num_beams in (1, beams):
        given = {**processor.generation_kwargs(), "num_beams": num_beams, **length}
        expected = captioner.model.generate(**inputs, **given)[0].tolist()
        found = run_script(folder, [*words, "--num-beams", str(num_beams)])["tokens"]
        if found != expected:
            raise UserError(
                f"onnxruntime says {found}, torch {expected}, both with {num_beams} beams. Nothing was kept. "
                f"Report it with the versions {versions()}."
            )
    difference = largest_difference(captioner, inputs, expected, folder, image)
    refuse_difference(difference)
    compared = f"greedy tokens and those of {beams} beams"
    return {"task": task.name, "max_difference": difference, "compared": compared, "tokens": expected}


def compare_choices(
    captioner: LoadedModel, inputs: Mapping, folder: Path, words: list[str], choices: list[str]
) -> dict:
    """Compare the probabilities of a list of answers."""
    scores = captioner.model.score_choices(captioner.processor.encode_choices(choices), **inputs)[0].exp().tolist()
    found = run_script(folder, [*words, "--choices", *choices])["answers"]
    difference = max(abs(found[choice] - score) for choice, score in zip(choices, scores, strict=True))
    refuse_difference(difference)
    compared = f"the order of {len(choices)} answers"
    return {"task": captioner.processor.default_task, "max_difference": difference, "compared": compared}


def refuse_difference(difference: float) -> None:
    """Raises `UserError` if scores of both engines are too far apart."""
    if not difference <= TOLERANCE:  # also true of NaN
        raise UserError(
            f"The scores of onnxruntime differ from torch's by {difference:.3g}; accepted is {TOLERANCE:g}. "
            f"Nothing was kept. Report it with the versions {versions()}."
        )


def run_script(folder: Path, words: list[str]) -> dict[str, Any]:
    """The answers of the exported script."""
    result = subprocess.run(
        [sys.executable, "answer.py", *words],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=TIMEOUT,
    )
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or [f"status {result.returncode}"])[-1]
        raise UserError(f"The exported script failed: {reason[:500]}. Nothing was kept.")
    return json.loads(result.stdout)


def largest_difference(captioner, inputs: Mapping, tokens: list[int], folder: Path, image: Path) -> float:
    """Largest difference between the scores of both engines over all steps of one text."""
    of_encoder = {name: value for name, value in inputs.items() if not name.startswith("decoder_")}
    expected = captioner.model(**of_encoder, decoder_input_ids=torch.tensor([tokens[:-1]])).logits[0].numpy()
    written = Captioner(folder)
    settings = written.image_settings | captioner.processor.find_task().image
    steps: Steps = written.model.encode(read_image(image, settings), inputs["input_ids"][0].tolist())
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
        compared=proof["compared"],
    )
