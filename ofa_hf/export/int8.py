"""Export a Hub-ready folder with int8 weights, quantized by torchao, and measure the effect.

The weights of linear layers are quantized with one scale per row, and their inputs with one scale per token. The word
embedding (also the output projection), the image trunk (convolutions), and the projections of positions, which run
once per shape, are not quantized.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

from ofa_hf import OFAForConditionalGeneration, OFAProcessor, __version__
from ofa_hf.conversion.convert import as_dtype
from ofa_hf.conversion.verify import DOES_NOT_LOAD, WITHOUT_PACKAGE
from ofa_hf.errors import UserError
from ofa_hf.export.folder import (
    Export,
    need_libraries,
    new_export,
    refuse_drawer,
    refuse_quantized,
    source_name,
    write_facts,
)
from ofa_hf.files import refuse_existing
from ofa_hf.fresh_process import run_fresh
from ofa_hf.image_loading_ofa import load_image
from ofa_hf.model_card.card import write_card
from ofa_hf.model_card.snippets import example_values
from ofa_hf.models import LoadedModel, load_model
from ofa_hf.prediction.inputs import find_images
from ofa_hf.samples.shop import draw, split_products
from ofa_hf.versions_ofa import CAN_SAVE_INT8


NUM_IMAGES = 16
BOX = (5, 5, 30, 30)  # for tasks that are asked about a box
POSITION_PROJECTIONS = (
    *(f"encoder.pos_{what}_linear" for what in "qk"),
    *(f"decoder.{side}_pos_{what}_linear" for side in ("self", "cross") for what in "qk"),
)
LEFT_ALONE = {
    "all": ("decoder.output_projection", "encoder.image_proj", *POSITION_PROJECTIONS),
    "decoder": ("decoder.output_projection", "encoder", *POSITION_PROJECTIONS),
}


def int8_config(parts: str = "all") -> transformers.TorchAoConfig:
    """For `from_pretrained(…, quantization_config=…)`: what `ofa-hf export --format int8` quantizes.

    Args:
        parts: "all" (layers of encoder and decoder) or "decoder".
    """
    need_libraries("int8", "torchao")
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    kind = Int8DynamicActivationInt8WeightConfig()
    return transformers.TorchAoConfig(kind, modules_to_not_convert=list(LEFT_ALONE[parts]))


def export_int8(
    model: str,
    out: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    parts: str = "all",
    images: str | Path | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Export:
    """Write a model with int8 weights, check it in a fresh process, and report the effect of quantization.

    Args:
        model: Hub-ready folder or Hub id.
        out: folder to write, atomically.
        dtype: of everything that is not quantized; by default as stored.
        parts: "all" or "decoder".
        images: folder of images to compare captions on; by default `NUM_IMAGES` drawn products.
        progress: called with a description of each step.

    Raises:
        UserError: torchao or transformers 5 is missing, the model cannot be loaded or is quantized already, or the
            written folder answers differently from the model in memory.
    """
    need_libraries("int8", "torchao")
    if not CAN_SAVE_INT8:
        raise UserError(
            f"transformers {transformers.__version__} cannot save int8 weights as safetensors; 5 can. Export with "
            f"transformers 5, or quantize at every load: from_pretrained(…, quantization_config=int8_config())."
        )
    refuse_existing(Path(out))
    refuse_drawer(model)
    progress("loading the model")
    captioner = load_model(model, device="cpu", dtype="auto" if dtype is None else as_dtype(dtype))
    refuse_quantized(captioner, model)
    shown = load_images(images)
    with new_export(out) as (folder, scratch):
        progress(f"captioning {len(shown)} images before")
        before = answers_of(captioner, shown)
        progress("quantizing")
        quantized = quantize(captioner, model, parts)
        quantized.model.save_pretrained(folder)
        quantized.processor.save_pretrained(folder)
        progress("captioning after, and in a fresh process")
        after = answers_of(quantized, shown)
        check_in_fresh_process(folder, scratch, shown, text_for(quantized.processor), after)
        effect = compare(before, after) | {"megabytes": weights_size(folder) / 1e6}
        values = {"format": "int8", "model": source_name(model), "parts": parts, "dtype": str(captioner.model.dtype)}
        values |= {"images": "drawn" if images is None else "given", "effect": effect, "versions": versions()}
        write_facts(folder, values)
        write_card(folder)
    return Export(Path(out), values, describe(model, out, values))


def quantize(captioner: LoadedModel, model: str, parts: str) -> LoadedModel:
    """The same model with int8 weights."""
    network = OFAForConditionalGeneration.from_pretrained(
        model, dtype=captioner.model.dtype, quantization_config=int8_config(parts)
    )
    return LoadedModel(network.eval(), captioner.processor)


def load_images(folder: str | Path | None) -> list[Image.Image]:
    """The first images of a folder, or drawn ones."""
    if folder is not None:
        return [load_image(Path(file)) for file in find_images([folder])[:NUM_IMAGES]]
    _, products = split_products(0)
    return [draw(product, seed) for seed, product in enumerate(products[:NUM_IMAGES])]


@torch.no_grad()
def answers_of(captioner: LoadedModel, images: list[Image.Image]) -> list[dict[str, Any]]:
    """For each image the greedy tokens and the scores of the first token `(vocabulary,)`."""
    answers, text = [], text_for(captioner.processor)
    for image in images:
        inputs = captioner.processor(images=image, text=text, return_tensors="pt")
        inputs["pixel_values"] = inputs["pixel_values"].to(captioner.model.dtype)
        tokens = captioner.model.generate(**inputs, num_beams=1)
        start = inputs.pop("decoder_input_ids", tokens[:, :1])
        inputs.pop("decoder_attention_mask", None)
        scores = captioner.model(**inputs, decoder_input_ids=start).logits[0, -1]
        answers.append({"tokens": tokens[0].tolist(), "scores": scores.float()})
    return answers


def text_for(processor: OFAProcessor) -> dict[str, Any] | None:
    """The text that is asked about every image, for the default task."""
    return example_values(processor.find_task(), processor.language, BOX) or None


def compare(before: list[dict], after: list[dict]) -> dict[str, Any]:
    """The effect of quantization: scores of the first token, captions, and tokens up to the first difference."""
    differences = [(a["scores"] - b["scores"]).abs() for a, b in zip(before, after, strict=True)]
    same = sum(a["tokens"] == b["tokens"] for a, b in zip(before, after, strict=True))
    return {
        "images": len(before),
        "same_captions": same,
        "same_first_tokens": sum(int(a["scores"].argmax() == b["scores"].argmax()) for a, b in zip(before, after)),
        "mean_score_difference": float(torch.stack(differences).mean()),
        "max_score_difference": float(torch.stack(differences).max()),
    }


def check_in_fresh_process(
    folder: Path, scratch: Path, images: list[Image.Image], text: Any, expected: list[dict]
) -> None:
    """Check the answers of a process that loads the folder without this package.

    Raises:
        UserError: it cannot load the folder, or its answers differ.
    """
    files = [scratch / f"{number:04d}.png" for number in range(len(images))]
    for image, file in zip(images, files, strict=True):
        image.save(file)
    request = {"folder": str(folder), "threads": torch.get_num_threads(), "dtype": "auto", "text": text}
    request |= {"images": list(map(str, files)), "greedy": True}
    seen = run_fresh(WITHOUT_PACKAGE, request, scratch=scratch, failure=DOES_NOT_LOAD)
    if seen["tokens"] != [one["tokens"] for one in expected]:
        raise UserError("The written folder answers differently from the model it was saved from. Nothing was kept.")


def weights_size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def versions() -> dict[str, str]:
    import torchao

    libraries = (torch, torchao, transformers)
    return {"ofa_hf": __version__, **{library.__name__: library.__version__ for library in libraries}}


def describe(model: str, out: str | Path, values: dict) -> list[str]:
    effect = values["effect"]
    return [
        f"{model} → {out}: int8 weights in {values['parts']} layers, the rest {values['dtype']}, "
        f"{effect['megabytes']:,.0f} MB",
        f"effect on {effect['images']} {values['images']} images: {effect['same_captions']} greedy answers and "
        f"{effect['same_first_tokens']} first tokens are the same; scores of the first token differ by "
        f"{effect['mean_score_difference']:.2g} on average, {effect['max_score_difference']:.2g} at most",
        "a fresh process without this package loaded it through AutoModelForImageTextToText and gave the same answers",
        f"Score it on your own data: ofa-hf evaluate --model {out} --captions … --images …",
    ]
