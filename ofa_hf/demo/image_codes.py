"""A small VQGAN that learns the shop's images: what the demo has in place of the published one.

It has the official form and the official number of codes, of which it uses a few. It learns as a VQ-VAE does (nearest
codes, whose vectors follow the images' features as moving averages), without a discriminator. The nearest code to a
feature is the one with the largest logit if the logits are linear with the codes' vectors as weights, so the official
convolution for the logits says the same.

Source: VQ-VAE, arXiv 1711.00937.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ofa_hf.conversion.vocabulary import NUM_CODES
from ofa_hf.conversion.vqgan import find_diffusers
from ofa_hf.samples.official_file import write_official_vqgan


NEVER = -1e4  # logit of a code that is not used
SHARPNESS = 8.0  # factor of the logits, which decides what an official sample of codes is; the largest stays
STARTS_AT_ZERO = ("conv2.weight", "conv2.bias", "to_out.0.weight", "to_out.0.bias")  # the ends of residual branches
FEATURE_BATCHES = 12  # of images, from whose features the first codes are made


@dataclass(frozen=True)
class VQGANTraining:
    """How the small VQGAN is built and trained.

    Args:
        factors: channels of each level, in multiples of 32.
        codes: that are used, of the official number.
        plain_steps: at first, without codes.
        memory: of the moving averages, from one step to the next.
        commitment: weight of the distance between features and codes.
    """

    factors: tuple[int, int, int, int] = (1, 1, 2, 2)
    width: int = 64
    codes: int = 256
    batch_size: int = 8
    plain_steps: int = 150
    steps: int = 600
    learning_rate: float = 1e-3
    warmup_share: float = 0.1
    memory: float = 0.97
    commitment: float = 0.25
    max_gradient: float = 1.0


class Codebook:
    """Vectors of codes, each a moving average of the features that are nearest to it."""

    def __init__(self, features: Tensor, codes: int, memory: float, rounds: int = 10):
        self.memory = memory
        self.vectors = features[torch.randperm(len(features))[:codes]].clone()
        if len(self.vectors) < codes:
            self.vectors = features[torch.randint(len(features), (codes,))].clone()
        for _ in range(rounds):  # k-means
            counts, sums = self._assigned(features, self.nearest(features))
            anew = features[torch.randint(len(features), (codes,))]
            self.vectors = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), anew)
        self.counts = torch.full((codes,), len(features) / codes / FEATURE_BATCHES)
        self.sums = self.vectors * self.counts[:, None]

    def nearest(self, features: Tensor) -> Tensor:
        """`(N, width)` → numbers of codes `(N,)`."""
        return (2 * features @ self.vectors.T - self.vectors.square().sum(1)).argmax(1)

    def _assigned(self, features: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        counts = torch.bincount(numbers, minlength=len(self.vectors)).to(features.dtype)
        return counts, torch.zeros_like(self.vectors).index_add_(0, numbers, features)

    def follow(self, features: Tensor, numbers: Tensor) -> None:
        """Move the codes towards the features of a batch; one that is hardly used begins anew at one of them."""
        counts, sums = self._assigned(features, numbers)
        self.counts = self.memory * self.counts + (1 - self.memory) * counts
        self.sums = self.memory * self.sums + (1 - self.memory) * sums
        unused = self.counts < 1 - self.memory
        anew = features[torch.randint(len(features), (int(unused.sum()),))]
        self.counts[unused], self.sums[unused] = 0.5, 0.5 * anew
        self.vectors = self.sums / self.counts[:, None]

    def logits(self) -> tuple[Tensor, Tensor]:
        """Weight `(NUM_CODES, width)` and bias of the logits whose largest is the nearest code."""
        weight = torch.zeros(NUM_CODES, self.vectors.shape[1])
        bias = torch.full((NUM_CODES,), NEVER)
        weight[: len(self.vectors)] = 2 * SHARPNESS * self.vectors
        bias[: len(self.vectors)] = -SHARPNESS * self.vectors.square().sum(1)
        return weight, bias


def make_vqgan(recipe: VQGANTraining, size: int) -> Any:
    """A `diffusers.VQModel` with random weights, all of whose blocks begin as the identity."""
    vqgan = find_diffusers()(
        block_out_channels=[32 * factor for factor in recipe.factors],
        down_block_types=["DownEncoderBlock2D"] * len(recipe.factors),
        up_block_types=["UpDecoderBlock2D"] * len(recipe.factors),
        layers_per_block=1,
        latent_channels=recipe.width,
        vq_embed_dim=recipe.width,
        num_vq_embeddings=NUM_CODES,
        norm_num_groups=32,
        sample_size=size,
        lookup_from_codebook=True,
    )
    for name, parameter in vqgan.named_parameters():
        if name.endswith(STARTS_AT_ZERO):
            nn.init.zeros_(parameter)
    return vqgan


def train_vqgan(pixels: Tensor, recipe: VQGANTraining, seed: int, folder: Path) -> tuple[Path, Path]:
    """Train a small VQGAN from random weights and write it as `last.ckpt` and `model.yaml`.

    Args:
        pixels: `(images, 3, size, size)` from −1 to 1.
    """
    torch.manual_seed(seed)
    vqgan, codebook = make_vqgan(recipe, pixels.shape[-1]), None
    parameters = [one for name, one in vqgan.named_parameters() if not name.startswith("quantize.")]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps, pct_start=recipe.warmup_share
    )
    for step in tqdm(range(recipe.steps), desc="training the VQGAN", unit=" steps", file=sys.stderr):
        if step == recipe.plain_steps:
            with torch.no_grad():
                batches = [encode(vqgan, some(pixels, recipe)) for _ in range(FEATURE_BATCHES)]
            codebook = Codebook(torch.cat([flat(one) for one in batches]), recipe.codes, recipe.memory)
        batch = some(pixels, recipe)
        loss = loss_of(vqgan, codebook, batch if torch.rand(()) < 0.5 else batch.flip(-1), recipe.commitment)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, recipe.max_gradient)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    with torch.no_grad():
        vqgan.quantize.embedding.weight.zero_()[: recipe.codes] = codebook.vectors
    return write_official_vqgan(vqgan, *codebook.logits(), folder)


def some(pixels: Tensor, recipe: VQGANTraining) -> Tensor:
    """A batch of images, chosen at random."""
    return pixels[torch.randint(len(pixels), (recipe.batch_size,))]


def encode(vqgan: Any, pixels: Tensor) -> Tensor:
    return vqgan.quant_conv(vqgan.encoder(pixels))


def flat(features: Tensor) -> Tensor:
    """`(images, width, rows, columns)` → `(images · rows · columns, width)`."""
    return features.permute(0, 2, 3, 1).flatten(0, 2)


def loss_of(vqgan: Any, codebook: Codebook | None, pixels: Tensor, commitment: float) -> Tensor:
    """Mean absolute difference of the decoded images, and with codes the distance of the features from these."""
    features, distance = encode(vqgan, pixels), 0.0
    if codebook is not None:
        tokens = flat(features)
        numbers = codebook.nearest(tokens.detach())
        codebook.follow(tokens.detach(), numbers)
        chosen = codebook.vectors[numbers]
        distance = (tokens - chosen).square().mean()
        grid = (features.shape[0], *features.shape[2:], -1)
        features = (tokens + (chosen - tokens).detach()).view(grid).permute(0, 3, 1, 2)
    decoded = vqgan.decoder(vqgan.post_quant_conv(features))
    return (decoded - pixels).abs().mean() + commitment * distance
