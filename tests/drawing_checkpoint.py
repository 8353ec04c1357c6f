"""Small checkpoints that draw, converted from files of exactly the official form."""

from pathlib import Path

import small_checkpoints
import torch
from fixtures.recorded import official_tensor

from ofa_hf.conversion.convert import convert
from ofa_hf.conversion.vqgan import VQGANSource


def write_drawing_files(work: Path) -> tuple[Path, Path, Path, Path]:
    """Checkpoint, vocabulary, VQGAN and description."""
    config = small_checkpoints.make_config(small_checkpoints.ENGLISH_VOCAB_SIZE)
    arguments = small_checkpoints.make_arguments()
    arguments.task = "image_gen"
    config.max_position_embeddings = arguments.max_source_positions = arguments.max_target_positions = 60
    weights = small_checkpoints.make_official_weights(config, small_checkpoints.make_weights(config))
    checkpoint = small_checkpoints.write_official(work / "image_gen_base_best.pt", weights, arguments)
    vocabulary = small_checkpoints.write_english_vocabulary(work / "BPE")
    return checkpoint, vocabulary, *small_checkpoints.write_vqgan(work)


def make_drawing_folder(work: Path) -> Path:
    checkpoint, vocabulary, vqgan, settings = write_drawing_files(work)
    convert(checkpoint, work / "drawer", vocabulary, vqgan=vqgan, vqgan_config=settings, verify=False)
    return work / "drawer"


def write_recorded_vqgan(folder: Path, seed: str, config: dict) -> Path:
    """A folder with nothing but `vqgan/`, whose weights are those that the official outputs were recorded with."""
    shapes = small_checkpoints.vqgan_shapes(config)
    state = {name: torch.from_numpy(official_tensor(seed, name, shape)) for name, shape in shapes.items()}
    account = VQGANSource(*small_checkpoints.write_vqgan(folder, config, state)).write(folder, 64)
    assert account["weights"] == {"renamed": len(shapes) - 2, "code logits": 2}
    return folder
