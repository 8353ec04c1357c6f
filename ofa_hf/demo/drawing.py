"""`ofa-hf demo --draw`: a small VQGAN and a small OFA learn to draw the shop's products from their captions.

The way is that of any checkpoint that draws: official files → convert → finetune on images and texts → draw. The OFA's
official file has random weights, and the 512 codes of the VQGAN (fairseq's `--code-dict-size`). What is
drawn are combinations of kind, colour and pattern that neither of the two was shown. Two judges look at the drawings:
a rule that reads the colour off the pixels, and the captioner that the demo finetuned.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import torch
from PIL import Image

from ofa_hf import OFAForConditionalGeneration
from ofa_hf.conversion.convert import convert
from ofa_hf.conversion.vocabulary import build_tokenizer
from ofa_hf.data import load_muge
from ofa_hf.data.codes import image_pixels
from ofa_hf.demo.image_codes import VQGANTraining, train_vqgan
from ofa_hf.demo.pretraining import small_config
from ofa_hf.files import write_json
from ofa_hf.image_loading_ofa import load_image
from ofa_hf.models import load_model
from ofa_hf.prediction.loop import predict
from ofa_hf.prediction.text_to_image import DrawRequest, draw_files, read_record
from ofa_hf.samples.official_file import write_official_checkpoint
from ofa_hf.samples.pixels import colour_of
from ofa_hf.samples.shop import DRAWING_PROMPT, Product, captions, draw, is_right, split_products, take, write_split
from ofa_hf.training import finetune, parse_arguments


TASK = "image_generation"
FIRST_IMAGE = 2 * 10**6  # number of the first image to learn from; the shop's own ones have others


@dataclass(frozen=True)
class DrawingSize:
    """How much of everything; see docs/drawing.md for how long it takes.

    Args:
        num_train: images to learn from, of products that are not drawn later.
        epochs: over all pairs of an image and one of its captions.
    """

    num_drawn: int = 100
    num_train: int = 8000
    pixels: int = 96
    vqgan: VQGANTraining = field(default_factory=VQGANTraining)
    epochs: float = 1.3
    batch_size: int = 32
    learning_rate: float = 2e-3
    temperature: float = 0.9
    num_images: int = 1


@dataclass(frozen=True)
class Drawn:
    """One caption as it was drawn, beside an image that the shop drew itself."""

    product: Product
    text: str
    image: Image.Image
    real: Image.Image
    colour: str  # by the pixels
    caption: str  # of the drawn image, by the captioner

    @property
    def has_right_colour(self) -> bool:
        return self.colour == self.product.colour

    @property
    def is_named_rightly(self) -> bool:
        return is_right(self.caption, self.product)


@dataclass(frozen=True)
class DrawingResult:
    """What was drawn, and what the judges say of it and of real images of the same products."""

    model: Path
    images: Path
    drawn: Sequence[Drawn] = field(repr=False)
    real_colour_right: int
    real_named_right: int

    @property
    def colour_right(self) -> int:
        return sum(one.has_right_colour for one in self.drawn)

    @property
    def named_right(self) -> int:
        return sum(one.is_named_rightly for one in self.drawn)

    def as_dict(self) -> dict[str, Any]:
        return {
            "drawn": len(self.drawn),
            "colour_right": self.colour_right,
            "named_right": self.named_right,
            "real_colour_right": self.real_colour_right,
            "real_named_right": self.real_named_right,
            "model": str(self.model),
            "images": str(self.images),
        }


def unseen_products(seed: int, count: int) -> list[Product]:
    """Different products to draw: those that the shop keeps for validation, and if these are too few some others."""
    train, valid = split_products(seed)
    rng = Random(f"to draw {seed}")
    chosen = [*valid, *rng.sample(train, max(0, count - len(valid)))]
    return rng.sample(chosen, len(chosen))[:count]


def write_pairs(unseen: Sequence[Product], size: DrawingSize, seed: int, folder: Path) -> tuple[Path, Path]:
    """Draw and describe the shop's other products, in MUGE's format; returns the captions' and the images' file."""
    hidden = set(unseen)
    shown = [product for product in split_products(seed)[0] if product not in hidden]
    entries = dict(enumerate(take(shown, size.num_train, seed), FIRST_IMAGE))
    write_split(folder / "train", entries, seed, size.pixels)
    return folder / "train.jsonl", folder / "train.tsv"


def make_vqgan_files(pairs: tuple[Path, Path], size: DrawingSize, seed: int, folder: Path) -> tuple[Path, Path]:
    """Train the VQGAN on as many images as it takes steps; returns its `last.ckpt` and `model.yaml`."""
    rows = islice(load_muge(*pairs), size.vqgan.steps)
    pixels = torch.stack([image_pixels(load_image(row["image"]), size.pixels) for row in rows])
    return train_vqgan(pixels, size.vqgan, seed, folder)


def convert_drawer(folder: Path, vocab_file: Path, vqgan: tuple[Path, Path], size: DrawingSize, seed: int):
    """Write a small official checkpoint with random weights beside `folder`, and convert it with the VQGAN."""
    torch.manual_seed(seed)
    codes, checkpoint = size.vqgan.codes, folder.with_name("official_small.pt")
    model = OFAForConditionalGeneration(small_config(len(build_tokenizer(vocab_file, num_codes=codes)))).eval()
    write_official_checkpoint(model, checkpoint, size.pixels, num_codes=codes)
    return convert(
        checkpoint,
        folder,
        vocab_file,
        task=TASK,
        prompt=DRAWING_PROMPT,
        image_size=size.pixels,
        vqgan=vqgan[0],
        vqgan_config=vqgan[1],
    )


def learn_to_draw(start: Path, folder: Path, pairs: tuple[Path, Path], size: DrawingSize, seed: int):
    """Finetune on images and captions; by hand it is `ofa-hf finetune FILE` with the file that this leaves."""
    arguments = {
        "model_name_or_path": str(start),
        "train_caption_file": str(pairs[0]),
        "train_image_file": str(pairs[1]),
        "output_dir": str(folder),
        "task": TASK,
        "num_train_epochs": size.epochs,
        "per_device_train_batch_size": size.batch_size,
        "learning_rate": size.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.1,
        "adam_beta2": 0.98,
        "weight_decay": 0.01,
        "dropout": 0.0,
        "save_strategy": "no",
        "logging_steps": 20,
        "bf16": True,
        "use_cpu": True,
        "seed": seed,
    }
    file = folder.with_name(f"finetune_{folder.name}.json")
    write_json(file, arguments)
    return finetune(*parse_arguments(file))


def draw_and_judge(
    model: Path, captioner: Path, unseen: Sequence[Product], size: DrawingSize, seed: int, out: Path
) -> DrawingResult:
    """Draw a caption of each product, and let both judges look at what was drawn and at real images."""
    texts = [caption_with_pattern(product, seed) for product in unseen]
    options = {"temperature": size.temperature}
    request = DrawRequest(texts, str(model), str(out), num_images=size.num_images, seed=seed, options=options)
    draw_files(request)
    images = best_images(out, len(texts))
    real = [draw(product, seed + number, 2 * size.pixels) for number, product in enumerate(unseen)]
    named = caption_images(captioner, [*images, *real])
    drawn = [
        Drawn(product, text, image, beside, colour_of(image), caption)
        for product, text, image, beside, caption in zip(unseen, texts, images, real, islice(named, len(images)))
    ]
    return DrawingResult(
        model,
        out,
        drawn,
        sum(colour_of(image) == product.colour for image, product in zip(real, unseen)),
        sum(map(is_right, named[len(images) :], unseen)),
    )


def best_images(folder: Path, texts: int) -> list[Image.Image]:
    """The best image of each text that `draw_files` drew into a folder."""
    best = {int(line["number"]): line["image"] for line in read_record(folder)}
    return [load_image(folder / best[number]) for number in range(1, texts + 1)]


def caption_with_pattern(product: Product, seed: int) -> str:
    """A caption that names kind, colour and pattern."""
    found = captions(product, seed)
    return next((text for text in found if product.pattern in text), found[0])


def caption_images(folder: Path, images: Sequence[Image.Image]) -> list[str]:
    model, processor = load_model(folder)
    rows = ({"id": number, "image": image} for number, image in enumerate(images))
    return [found.text for found in predict(model, processor, rows, batch_size=20, num_beams=5, max_length=24)]


def run_drawing(
    out: Path,
    vocab_file: Path,
    captioner: Path,
    size: DrawingSize,
    seed: int,
    step: Callable[[str], AbstractContextManager],
) -> DrawingResult:
    """Learn to draw in `out`, draw what was never shown, and judge it.

    Args:
        captioner: the folder of the model that names what was drawn.
        step: opens a step by its name.
    """
    out.mkdir()
    unseen = unseen_products(seed, size.num_drawn)
    with step("drawing more of the shop, to learn from"):
        pairs = write_pairs(unseen, size, seed, out)
    with step("training a small VQGAN and writing it as official files"):
        vqgan = make_vqgan_files(pairs, size, seed, out / "vqgan")
    with step("writing a small official checkpoint and converting both into one that draws"):
        convert_drawer(out / "converted", vocab_file, vqgan, size, seed)
    with step("finetuning it on images and their captions"):
        result = learn_to_draw(out / "converted", out / "model", pairs, size, seed)
    with step("drawing captions of products that it never saw, and judging them"):
        return draw_and_judge(result.folder, captioner, unseen, size, seed, out / "images")
