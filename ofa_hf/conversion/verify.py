"""Verify a written folder: a fresh process without this package must compute the logits of the source from it.

The source does not use the folder: its tensors are loaded directly into the model class. Both sides compute in float32
on one fixed batch. Logits do not depend on every weight (the biases of k projections cancel in the softmax), so the
fresh process also compares each loaded tensor with the file.
"""

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
from ofa_hf.fresh_process import run_fresh
from ofa_hf.modeling_ofa import OFAForConditionalGeneration


WITHOUT_PACKAGE = Path(__file__).with_name("without_package.py")
DOES_NOT_LOAD = "The written folder does not load in a fresh process: {reason}. Nothing was kept."
IMAGE_SIDE = 128  # pixels of the batch's images, if the position tables are large enough
TOLERANCE = 0.0  # for the same code, numbers and number of threads


@dataclass
class Verification:
    """Results of the fresh process."""

    max_difference: float  # largest difference of the logits
    logits_shape: list[int]
    equal_tensors: int  # loaded by the fresh process, equal to the written ones to the last bit
    load_seconds: float
    transformers: str


def empty_model(config: OFAConfig) -> OFAForConditionalGeneration:
    """The network without memory for its weights: names and shapes to match against."""
    with torch.device("meta"):
        return OFAForConditionalGeneration(config)


def fixed_batch(config: OFAConfig) -> dict[str, torch.Tensor]:
    """Two rows, one shorter and without image, that use every part of the network for captioning."""
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


def fixed_image() -> Image.Image:
    """A small structured image, always the same, to compare processors or engines on."""
    return Image.fromarray((torch.arange(40 * 60 * 3) * 31 % 251).to(torch.uint8).view(40, 60, 3).numpy())


@torch.inference_mode()
def logits_of_source(config: OFAConfig, weights: WeightsToSave, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits of the source's tensors in the model class, in float32; float32 tensors stay in the mapped file."""
    model = empty_model(config)
    state = {name: weights.load(name) for name in weights.names}
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    state |= {name: state[target] for name, target in TIED_KEYS.items()}
    model.load_state_dict(state, assign=True)
    return model.eval()(**batch).logits


def verify_written(
    folder: Path, config: OFAConfig, weights: WeightsToSave, processor: Any, scratch: Path
) -> Verification:
    """Compare a Hub-ready folder, loaded by a fresh process, with the source.

    Args:
        processor: made by the package's classes from the source; the folder's own must agree with it.
        scratch: an empty folder for temporary files.

    Raises:
        UserError: the fresh process fails, or anything differs.
    """
    batch, image = fixed_batch(config), scratch / "image.png"
    inputs, outputs = scratch / "inputs.safetensors", scratch / "outputs.safetensors"
    save_file(batch, inputs)
    fixed_image().save(image)
    request = {"folder": str(folder), "threads": torch.get_num_threads(), "exact": True, "images": [str(image)]}
    request |= {"inputs": str(inputs), "outputs": str(outputs)}
    task = processor.find_task()
    if task.fields:  # the prompt with unfilled slots
        request["text"] = task.prompts[processor.language]
    seen = run_fresh(WITHOUT_PACKAGE, request, scratch=scratch, failure=DOES_NOT_LOAD)
    found, logits = load_file(outputs), logits_of_source(config, weights, batch)
    expected = processor(images=fixed_image(), text=request.get("text"), return_tensors="pt")
    problems, difference = [], (found["logits"] - logits).abs().max().item()
    if seen["equal_tensors"] != len(weights.names):
        problems.append(f"it holds {seen['equal_tensors']} tensors instead of {len(weights.names)}")
    if not difference <= TOLERANCE:  # also true of NaN
        problems.append(f"its logits differ by {difference:.3g}")
    if not all(torch.equal(found[name], expected[name]) for name in ("input_ids", "pixel_values")):
        problems.append("its processor prepares other inputs")
    if problems:
        raise UserError(f"The written folder differs from its source: {'; '.join(problems)}. Nothing was kept.")
    names = ("equal_tensors", "load_seconds", "transformers")
    return Verification(difference, list(logits.shape), *(seen[name] for name in names))
