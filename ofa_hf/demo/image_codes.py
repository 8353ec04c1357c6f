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
from ofa_hf.image_processing_ofa import PIXELS_PER_CODE
from ofa_hf.samples.official_file import write_official_vqgan


NEVER = -1e4  # logit of a code that is not used
SHARPNESS = 8.0  # factor of the logits, which decides what an official sample of codes is; the largest stays
STARTS_AT_ZERO = ("conv2.weight", "conv2.bias", "to_out.0.weight", "to_out.0.bias")  # the ends of residual branches
TINY = 2e-4  # size of the values between residual blocks; see `let_colours_pass`
SQUARE_WEIGHT = 2.0  # of squared differences beside the absolute ones, which hardly see colours at first
FEATURE_IMAGES = 256  # from which the first codes are made
HARDLY = 0.04  # of the usual share of the features


@dataclass(frozen=True)
class VQGANTraining:
    """How the small VQGAN is built and trained.

    Many small steps bring more than a few large ones, so most of them are of cut-out squares.

    Args:
        factors: channels of each level, in multiples of 32.
        codes: that are used, of the official number.
        side: pixels a side of the squares, a multiple of 8.
        squares: that a step is of, and before there are codes one.
        plain_steps: at first, without codes.
        whole_steps: at last, each of one whole image.
        memory: see `Codebook`.
        commitment: weight of the distance between features and codes.
    """

    factors: tuple[int, int, int, int] = (2, 2, 2, 4)
    width: int = 64
    codes: int = 512
    side: int = 32
    squares: int = 2
    plain_steps: int = 700
    whole_steps: int = 600
    steps: int = 3000
    learning_rate: float = 2e-4
    warmup_share: float = 0.04
    memory: float = 0.995
    commitment: float = 0.25


class Codebook:
    """Vectors of codes, each a moving average of the features that are nearest to it.

    Args:
        features: `(N, width)`, from which the first codes are made, with k-means.
        batch: features of a training step.
        memory: of the moving averages, from one step to the next.
    """

    def __init__(self, features: Tensor, codes: int, batch: int, memory: float, rounds: int = 10):
        self.memory, self.usual = memory, batch / codes
        self.vectors = features[torch.randint(len(features), (codes,))]
        for _ in range(rounds):
            counts, sums = self._assigned(features, self.nearest(features))
            anew = features[torch.randint(len(features), (codes,))]
            self.vectors = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), anew)
        self.counts = torch.full((codes,), self.usual)
        self.sums = self.vectors * self.usual

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
        unused = self.counts < HARDLY * self.usual
        anew = features[torch.randint(len(features), (int(unused.sum()),))]
        self.counts[unused], self.sums[unused] = self.usual / 2, self.usual / 2 * anew
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
    for part in (vqgan.encoder, vqgan.decoder):
        let_colours_pass(part)
    return vqgan


@torch.no_grad()
def let_colours_pass(part: nn.Module) -> None:
    """Begin an encoder or decoder so that its group norms neither scale values nor take means away.

    Groups are pairs of channels here, or few more. A norm would take mean and scale out of each, and colours with
    them. So values are much smaller than the root of its ε, by which it then divides all alike, and the second channel
    of a pair is the first one's negative, which makes their mean zero.
    """
    for module in part.modules():
        if isinstance(module, nn.GroupNorm):
            module.weight.fill_(module.eps**0.5 / TINY)
    for convolution in streams(part):
        nn.init.normal_(convolution.weight, std=convolution.weight[0].numel() ** -0.5)
        convolution.weight[1::2] = -convolution.weight[::2]
        convolution.bias.zero_()
    part.conv_in.weight.mul_(TINY)
    for block in residual_blocks(part):
        block.norm2.weight.fill_(1.0)  # inside of a block values have their usual size


def levels(part: nn.Module) -> nn.ModuleList:
    return part.down_blocks if hasattr(part, "down_blocks") else part.up_blocks


def residual_blocks(part: nn.Module) -> list[nn.Module]:
    return [*part.mid_block.resnets, *(block for level in levels(part) for block in level.resnets)]


def streams(part: nn.Module) -> list[nn.Conv2d]:
    """The convolutions that every value passes, those outside of residual branches but for the last one."""
    samplers = [
        one.conv
        for level in levels(part)
        for one in getattr(level, "downsamplers", None) or getattr(level, "upsamplers", None) or ()
    ]
    shortcuts = [block.conv_shortcut for block in residual_blocks(part) if block.conv_shortcut is not None]
    return [part.conv_in, *samplers, *shortcuts]


def tiny_parameters(vqgan: Any) -> list[nn.Parameter]:
    """Those that write tiny values, so that they must change in tiny steps."""
    found = []
    for part in (vqgan.encoder, vqgan.decoder):
        found += [part.conv_in.weight, *(convolution.bias for convolution in streams(part))]
        found += [one for block in residual_blocks(part) for one in block.conv2.parameters()]
        found += [one for attention in part.mid_block.attentions for one in attention.to_out.parameters()]
    return found


def train_vqgan(pixels: Tensor, recipe: VQGANTraining, seed: int, folder: Path) -> tuple[Path, Path]:
    """Train a small VQGAN from random weights and write it as `last.ckpt` and `model.yaml`.

    Args:
        pixels: `(images, 3, size, size)` from −1 to 1.
    """
    torch.manual_seed(seed)
    vqgan, codebook = make_vqgan(recipe, pixels.shape[-1]).to(memory_format=torch.channels_last), None
    optimizer, schedule = make_optimizer(vqgan, recipe)
    for step in tqdm(range(recipe.steps), desc="training the VQGAN", unit=" steps", file=sys.stderr):
        if step == recipe.plain_steps:
            codebook = first_codes(vqgan, pixels, recipe)
        is_whole = step >= recipe.steps - recipe.whole_steps
        side = pixels.shape[-1] if is_whole else min(recipe.side, pixels.shape[-1])
        batch = squares(pixels, side, 1 if codebook is None or is_whole else recipe.squares)
        loss_of(vqgan, codebook, batch, recipe.commitment).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    with torch.no_grad():
        vqgan.quantize.embedding.weight.zero_()[: recipe.codes] = codebook.vectors
    return write_official_vqgan(vqgan, *codebook.logits(), folder)


def make_optimizer(vqgan: Any, recipe: VQGANTraining) -> tuple[Any, Any]:
    """Adam and its learning rates; the codes are not trained by it."""
    tiny = tiny_parameters(vqgan)
    numbers = set(map(id, tiny))
    usual = [
        one for name, one in vqgan.named_parameters() if not name.startswith("quantize.") and id(one) not in numbers
    ]
    rates = [recipe.learning_rate, recipe.learning_rate * TINY]
    groups = [{"params": usual, "lr": rates[0]}, {"params": tiny, "lr": rates[1]}]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rates, total_steps=recipe.steps, pct_start=recipe.warmup_share
    )
    return optimizer, schedule


def squares(pixels: Tensor, side: int, count: int) -> Tensor:
    """Squares cut out of images at random along the grid of codes, mirrored half of the time."""
    places = (pixels.shape[-1] - side) // PIXELS_PER_CODE + 1
    cut = []
    for image in pixels[torch.randint(len(pixels), (count,))]:
        top, left = (PIXELS_PER_CODE * torch.randint(places, (2,))).tolist()
        cut.append(image[:, top : top + side, left : left + side])
    batch = torch.stack(cut).contiguous(memory_format=torch.channels_last)
    return batch if torch.rand(()) < 0.5 else batch.flip(-1)


@torch.no_grad()
def first_codes(vqgan: Any, pixels: Tensor, recipe: VQGANTraining) -> Codebook:
    chosen = pixels[torch.randperm(len(pixels))[:FEATURE_IMAGES]]
    features = torch.cat([flat(encode(vqgan, part)) for part in chosen.split(1)])
    batch = recipe.squares * (recipe.side // PIXELS_PER_CODE) ** 2
    return Codebook(features, recipe.codes, batch, recipe.memory)


def encode(vqgan: Any, pixels: Tensor) -> Tensor:
    return vqgan.quant_conv(vqgan.encoder(pixels))


def flat(features: Tensor) -> Tensor:
    """`(images, width, rows, columns)` → `(images · rows · columns, width)`."""
    return features.permute(0, 2, 3, 1).flatten(0, 2)


def loss_of(vqgan: Any, codebook: Codebook | None, pixels: Tensor, commitment: float) -> Tensor:
    """Differences of the decoded images from the real ones, and with codes those of the features from their codes."""
    features, distance = encode(vqgan, pixels), 0.0
    if codebook is not None:
        tokens = flat(features)
        numbers = codebook.nearest(tokens.detach())
        codebook.follow(tokens.detach(), numbers)
        chosen = codebook.vectors[numbers]
        distance = (tokens - chosen).square().mean()
        grid = (features.shape[0], *features.shape[2:], -1)
        features = (tokens + (chosen - tokens).detach()).view(grid).permute(0, 3, 1, 2)
    wrong = vqgan.decoder(vqgan.post_quant_conv(features)) - pixels
    return wrong.abs().mean() + SQUARE_WEIGHT * wrong.square().mean() + commitment * distance
