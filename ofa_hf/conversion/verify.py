"""Prove a written folder: a fresh process that knows nothing but the folder gives the source's own logits.

The source side never touches the folder: its tensors go straight into the model class. Both sides compute in float32
on one fixed batch. Logits cannot show every weight (the biases of k projections cancel in the softmax), so the other
side also compares each tensor it loaded with the file.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ofa_hf.configuration_ofa import OFAConfig
from ofa_hf.conversion.renames import TIED_KEYS
from ofa_hf.conversion.write import WeightsToSave
from ofa_hf.errors import UserError
from ofa_hf.modeling_ofa import OFAForConditionalGeneration


IMAGE_SIDE = 128  # pixels of the batch's images, if the position tables know that many
TOLERANCE = 0.0  # same code, same numbers, same number of threads
TIMEOUT = 1800  # seconds


@dataclass
class Proof:
    """What the fresh process found."""

    max_difference: float  # of the logits, absolute
    logits_shape: list[int]
    equal_tensors: int  # loaded by the fresh process, equal to the written ones to the last bit
    load_seconds: float
    transformers: str


def empty_model(config: OFAConfig) -> OFAForConditionalGeneration:
    """The network without memory for its weights: names and shapes to match against."""
    with torch.device("meta"):
        return OFAForConditionalGeneration(config)


def proof_batch(config: OFAConfig) -> dict[str, torch.Tensor]:
    """Two rows, one shorter and without image, that reach every part of the network captioning uses."""
    side = min(IMAGE_SIDE, 16 * config.image_bucket_size)
    pixels = torch.arange(2 * 3 * side * side) * 7919 % 509 / 254 - 1
    length = min(12, config.max_position_embeddings)
    tokens = 4 + torch.arange(4 * length).view(2, 2, length) * 104729 % (config.vocab_size - 4)
    tokens[:, :, 0] = config.bos_token_id
    attention_mask = torch.ones(2, length, dtype=torch.int64)
    attention_mask[1, length // 2 :] = 0
    return {
        "pixel_values": pixels.view(2, 3, side, side),
        "patch_masks": torch.tensor([True, False]),
        "input_ids": tokens[0].masked_fill(attention_mask == 0, config.pad_token_id),
        "attention_mask": attention_mask,
        "decoder_input_ids": tokens[1].contiguous(),
    }


def proof_image() -> torch.Tensor:
    """A small image with structure, `(height, width, 3)` uint8, for the processors to agree on."""
    return (torch.arange(40 * 60 * 3) * 31 % 251).to(torch.uint8).view(40, 60, 3)


@torch.inference_mode()
def logits_of_source(config: OFAConfig, weights: WeightsToSave, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits of the source's tensors in the model class, in float32; float32 tensors stay in the mapped file."""
    model = empty_model(config)
    state = {name: weights.load(name) for name in weights.names}
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    state |= {name: state[target] for name, target in TIED_KEYS.items()}
    model.load_state_dict(state, assign=True)
    return model.eval()(**batch).logits


def prove(folder: Path, files: list[str], config: OFAConfig, weights: WeightsToSave, processor: Any, scratch: Path):
    """Compare the folder, loaded by a fresh process, with the source.

    Args:
        folder, files: the Hub-ready folder and its weight files.
        processor: made by the package's classes from the source; the folder's own must agree with it.
        scratch: an empty folder for questions and answers.

    Returns:
        a `Proof`.

    Raises:
        UserError: the fresh process fails, or differs in anything.
    """
    batch, image = proof_batch(config), proof_image()
    expected = processor(images=Image.fromarray(image.numpy()), return_tensors="pt")
    logits = logits_of_source(config, weights, batch)
    save_file({**batch, "image": image}, scratch / "inputs.safetensors")
    request = {
        "folder": str(folder),
        "files": files,
        "threads": torch.get_num_threads(),
        **{name: str(scratch / f"{name}.safetensors") for name in ("inputs", "answers")},
        "report": str(scratch / "report.json"),
    }
    report, answers = ask_fresh_process(request, scratch)
    difference = (answers["logits"] - logits).abs().max().item()
    problems = [f"{word} weights {report[word][:3]}" for word in ("missing", "unexpected") if report[word]]
    if report["equal"] != len(weights.names):
        problems.append(f"{len(weights.names) - report['equal']} weights differ after loading")
    if not difference <= TOLERANCE:  # also true of NaN
        problems.append(f"logits differ by {difference:.3g}")
    if not all(torch.equal(answers[name], expected[name]) for name in ("input_ids", "pixel_values")):
        problems.append("the processor prepares other inputs")
    if problems:
        raise UserError(f"The written folder is not what the source is: {'; '.join(problems)}. Nothing was kept.")
    return Proof(difference, list(logits.shape), report["equal"], report["load_seconds"], report["transformers"])


def ask_fresh_process(request: dict, scratch: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """Run `verify_child.py` in a process of its own and return its report and tensors."""
    (scratch / "request.json").write_text(json.dumps(request), encoding="utf-8")
    program = Path(__file__).with_name("verify_child.py").read_text(encoding="utf-8")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(scratch / "modules")}
    command = [sys.executable, "-c", program, str(scratch / "request.json"), str(os.getpid())]
    result = subprocess.run(
        command, cwd=scratch, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT
    )
    if result.returncode:
        output = result.stderr.decode("utf-8", "replace").strip().splitlines() or [f"status {result.returncode}"]
        raise UserError(f"The written folder does not load in a fresh process: {output[-1][:500]}. Nothing was kept.")
    report = json.loads(Path(request["report"]).read_text(encoding="utf-8"))
    return report, load_file(request["answers"])
