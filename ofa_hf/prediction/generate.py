"""Captions for rows of images, in batches."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import PIL.Image
import torch
from datasets.utils import tqdm
from transformers.utils import logging

from ofa_hf import OFAForConditionalGeneration, OFAProcessor
from ofa_hf.data.images import open_image
from ofa_hf.errors import UserError
from ofa_hf.evaluation.evaluate import EvaluationResult, evaluate_predictions
from ofa_hf.evaluation.metrics import some_of
from ofa_hf.image_processing_ofa import ImageError


logger = logging.get_logger(__name__)


@torch.inference_mode()
def generate_captions(
    model, processor, rows: Iterable[dict[str, Any]], batch_size: int = 8, **generate
) -> Iterator[tuple[str, str]]:
    """Caption images with the checkpoint's own prompt and generation settings.

    Args:
        model, processor: an OFA model and its processor.
        rows: `{"id", "image"}`; an image is anything `load_image` takes, or `{"bytes", "path"}`.
        generate: overrides of the generation settings, such as `num_beams=5`.

    Yields:
        Image id and caption, in the order of the rows. An image that cannot be read has the empty caption and a
        warning: it stays in the result and scores 0.
    """
    was_training = model.training
    model.eval()
    try:
        rows = iter(rows)
        while batch := list(islice(rows, batch_size)):
            yield from caption_batch(model, processor, batch, generate)
    finally:
        model.train(was_training)


def caption_batch(model, processor, rows: list[dict[str, Any]], generate: dict) -> list[tuple[str, str]]:
    images = [readable_image(row) for row in rows]
    readable = [image for image in images if image is not None]
    captions = iter(())
    if readable:
        inputs = processor(images=readable, return_tensors="pt").to(model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        captions = iter(processor.batch_decode(model.generate(**inputs, **generate), skip_special_tokens=True))
    return [(row["id"], "" if image is None else next(captions)) for row, image in zip(rows, images)]


def readable_image(row: dict[str, Any]) -> PIL.Image.Image | None:
    try:
        return open_image(row["image"])
    except ImageError as error:
        logger.warning(f"{row['id']} gets an empty caption: {error}")
        return None


def show_progress(captions: Iterable[tuple[str, str]], total: int) -> Iterator[tuple[str, str]]:
    """Pass captions through, with a bar on stderr."""
    yield from tqdm(captions, total=total, unit=" images", desc="captioning")


def load_model(folder_or_id: str, device: str | None = None) -> tuple[OFAForConditionalGeneration, OFAProcessor]:
    """Load model and processor for captioning, on the fastest device unless one is named.

    Raises:
        UserError: there is no such folder or repository, it holds no OFA model, or there is no such device.
    """
    device = device or default_device()
    try:
        processor = OFAProcessor.from_pretrained(folder_or_id)
        model = OFAForConditionalGeneration.from_pretrained(folder_or_id).eval()
    except (OSError, ValueError) as error:
        raise UserError(
            f"Cannot load a model from {folder_or_id}: {error} Give a folder that `ofa-hf convert` or `ofa-hf "
            "finetune` wrote, or a Hub id of one."
        ) from error
    try:
        return model.to(device), processor
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"Device {device} cannot be used: {error} Give cpu, cuda, cuda:1 or mps.") from error


def default_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def evaluate_model(
    model,
    processor,
    rows: Iterable[dict[str, Any]],
    references: Mapping[str, Sequence[str]],
    *,
    batch_size: int = 8,
    run: Mapping[str, object] | None = None,
    **generate,
) -> EvaluationResult:
    """Caption the images that have references, and score the captions.

    Images that are missing or cannot be read have the empty caption: they score 0 instead of vanishing.

    Args:
        rows, generate: as for `generate_captions`; rows without references are passed over.
        references: image id → captions.
        run: what was run, for the record.

    Raises:
        UserError: no image has references.
    """
    known = (row for row in rows if row["id"] in references)
    captions = generate_captions(model, processor, known, batch_size, **generate)
    predictions = dict(show_progress(captions, len(references)))
    if not predictions:
        raise UserError(
            "None of the images has reference captions: the two share no id. Give files of the same split."
        )
    missing = [image_id for image_id in references if image_id not in predictions]
    if missing:
        logger.warning(f"No image for {some_of(missing)}: they count with an empty caption.")
    ordered = {image_id: predictions.get(image_id, "") for image_id in references}
    settings = {"batch_size": batch_size, **generate, "images_missing": len(missing)}
    return evaluate_predictions(ordered, references, {**(run or {}), **settings})
