"""A small model that has already seen the shop: what the demo has in place of a published checkpoint.

LiT-tuning locks the encoder, so it needs one worth locking. The trunk learns to tell kinds, colours and patterns
apart, as OFA's own trunk came from ImageNet; at the same time the whole model learns one plain sentence an image.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, interpolate
from tqdm import tqdm

from ofa_hf import OFAConfig, OFAForConditionalGeneration, OFAProcessor
from ofa_hf.fast_ofa import is_slow
from ofa_hf.modeling_ofa_resnet import OUTPUT_CHANNELS
from ofa_hf.samples.shop import COLOURS, KINDS, PATTERNS, Product
from ofa_hf.training.losses import smoothed_cross_entropy, without_logits


@dataclass(frozen=True)
class Pretraining:
    """How the small model is trained; as much as it takes for an encoder worth locking, and no more."""

    epochs: int = 8
    batch_size: int = 32
    learning_rate: float = 1.4e-3
    weight_decay: float = 0.05
    warmup_share: float = 0.2
    largest_shift: int = 4  # pixels that an image is moved by, at random, in both directions
    softened_share: float = 0.0  # of the batches; costs a little accuracy, but drawings, which are soft, are named
    max_gradient: float = 2.0


class Labels:
    """Kind, colour and pattern as class numbers; and a linear head that reads all three off the trunk."""

    def __init__(self, products: Sequence[Product]):
        names = (list(KINDS), list(COLOURS), list(PATTERNS))
        fields = [(product.kind, product.colour, product.pattern) for product in products]
        self.numbers = torch.tensor([[all_.index(name) for all_, name in zip(names, field)] for field in fields])
        self.sizes = [len(all_) for all_ in names]

    def head(self) -> nn.Linear:
        return nn.Linear(OUTPUT_CHANNELS, sum(self.sizes))

    def loss(self, logits: Tensor, rows: Tensor) -> Tensor:
        parts = logits.split(self.sizes, dim=-1)
        return sum(cross_entropy(part, self.numbers[rows, column]) for column, part in enumerate(parts))


def plain_caption(product: Product) -> str:
    """The one sentence the small model can say before it is finetuned."""
    return f"{product.colour}的{product.pattern}{product.kind}"


def small_config(vocab_size: int) -> OFAConfig:
    """A network that trains in a minute or two on two cores; every part of the large ones is there."""
    return OFAConfig(
        vocab_size=vocab_size,
        d_model=128,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=512,
        decoder_ffn_dim=512,
        max_position_embeddings=256,
        resnet_type="resnet18",
    )


def pretrain(
    rows: Dataset, products: Mapping[str, Product], processor: OFAProcessor, recipe: Pretraining, seed: int
) -> OFAForConditionalGeneration:
    """Train a small model from random weights.

    Args:
        rows: images `{"id", "image"}`.
        products: image id → what the image shows.
    """
    torch.manual_seed(seed)
    shown = [products[image_id] for image_id in rows["id"]]
    labels = Labels(shown)
    pixel_values = torch.cat([processor(images=[row["image"]])["pixel_values"] for row in rows])
    pixel_values = pixel_values.to(memory_format=torch.channels_last)  # a tenth faster on a CPU
    prompt = processor(text=[processor.prompt_for()])["input_ids"]
    targets = processor.encode_labels([plain_caption(product) for product in shown])
    model, head = OFAForConditionalGeneration(small_config(len(processor.tokenizer))).train(), labels.head()
    start_blocks_as_identity(model.encoder.embed_images.to(memory_format=torch.channels_last))
    trunk_output: dict[str, Tensor] = {}
    model.encoder.embed_images.register_forward_hook(lambda module, args, output: trunk_output.update(last=output))

    parameters = [*model.parameters(), *head.parameters()]
    num_steps = recipe.epochs * math.ceil(len(rows) / recipe.batch_size)
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=num_steps, pct_start=recipe.warmup_share
    )
    rng, progress = Random(seed), tqdm(total=num_steps, desc="pretraining", unit=" steps", file=sys.stderr)
    model.loss_function = smoothed_cross_entropy
    for _ in range(recipe.epochs):
        for batch in torch.randperm(len(rows)).split(recipe.batch_size):
            inputs = soften(vary(pixel_values[batch], recipe.largest_shift, rng), recipe.softened_share, rng)
            with torch.autocast("cpu", torch.bfloat16, enabled=not is_slow(torch.bfloat16)):
                loss = model(
                    input_ids=prompt.expand(len(batch), -1),
                    pixel_values=inputs,
                    **without_logits(targets[batch]),
                ).loss
                loss = loss + labels.loss(head(trunk_output["last"].mean((2, 3))).float(), batch)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, recipe.max_gradient)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            progress.update()
    progress.close()
    model.encoder.embed_images._forward_hooks.clear()
    return model.eval()


def start_blocks_as_identity(trunk: nn.Module) -> None:
    """Begin every residual branch at zero, which lets a trunk learn from few images."""
    for name, module in trunk.named_modules():
        if name.endswith("bn3"):
            nn.init.zeros_(module.weight)


def vary(pixel_values: Tensor, largest_shift: int, rng: Random) -> Tensor:
    """Mirror a batch half of the time and move it a little."""
    if rng.random() < 0.5:
        pixel_values = pixel_values.flip(-1)
    shifts = tuple(rng.randint(-largest_shift, largest_shift) for _ in range(2))
    return torch.roll(pixel_values, shifts, dims=(2, 3))


def soften(pixel_values: Tensor, share: float, rng: Random) -> Tensor:
    """Take fine detail away from a share of the batches."""
    if rng.random() < share:
        return interpolate(avg_pool2d(pixel_values, 2), size=pixel_values.shape[-2:], mode="bilinear")
    return pixel_values
