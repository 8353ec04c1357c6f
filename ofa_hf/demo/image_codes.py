"""A small VQGAN that learns the shop's images: what the demo has in place of the published one.

It has the official form, and everything that can be computed is computed. The encoder is linear: each of its levels
takes the principal components of cells of 2 × 2 of the finer one. Codes are found by k-means among its features. The
decoder begins with the convolutions that undo the encoder best, by least squares, and learns the rest in a few
minutes, without a discriminator. The nearest code to a feature is the one with the largest logit if the logits are
linear with the codes' vectors as weights, so the official convolution for the logits says the same.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, pixel_unshuffle, unfold
from tqdm import tqdm

from ofa_hf.conversion.vqgan import find_diffusers
from ofa_hf.samples.official_file import write_official_vqgan


SHARPNESS = 8.0  # factor of the logits, which decides what an official sample of codes is; the largest stays
STARTS_AT_ZERO = ("conv2.weight", "conv2.bias", "to_out.0.weight", "to_out.0.bias")  # the ends of residual branches
TINY = 2e-5  # size of the values between residual blocks; see `let_values_pass`
CHROMA = 1.5  # weight of colours beside brightness, or codes would confuse black and dark green
SQUARE_WEIGHT = 2.0  # of squared differences beside the absolute ones
SAMPLE = 600  # images from which components and codes are computed
SAMPLE_OF_DECODER = 64  # images from which the decoder's first convolutions are computed
ROUNDS = 12  # of k-means
RIDGE = 1e-4  # of least squares, relative to the mean of the diagonal


@dataclass(frozen=True)
class VQGANTraining:
    """How the small VQGAN is built and trained.

    Args:
        factors: channels of each level, in multiples of 32; from 2, norms let values pass.
        width: numbers of a code's vector; at most half of the channels of any level.
        codes: how many there are.
        steps: of the decoder, each of one image.
    """

    factors: tuple[int, int, int, int] = (2, 2, 2, 4)
    width: int = 32
    codes: int = 512
    steps: int = 900
    learning_rate: float = 2e-4
    warmup_share: float = 0.04


def train_vqgan(pixels: Tensor, recipe: VQGANTraining, seed: int, folder: Path) -> tuple[Path, Path]:
    """Make a small VQGAN for some images and write it as `last.ckpt` and `model.yaml`.

    Args:
        pixels: `(images, 3, size, size)` from −1 to 1.
    """
    torch.manual_seed(seed)
    vqgan = make_vqgan(recipe, pixels.shape[-1])
    sample = pixels[torch.randperm(len(pixels))[:SAMPLE]]
    features = set_encoder(vqgan, sample, recipe.width)
    vectors = k_means(flat(features[-1]), recipe.codes)
    set_decoder(vqgan, vectors, [level[:SAMPLE_OF_DECODER] for level in features])
    train_decoder(vqgan.to(memory_format=torch.channels_last), vectors, pixels, recipe)
    with torch.no_grad():
        vqgan.quantize.embedding.weight.copy_(vectors)
    return write_official_vqgan(vqgan, *logits_of(vectors), folder)


# ------------------------------------------------------------------------------------------------- codes


def k_means(features: Tensor, codes: int) -> Tensor:
    """`(N, width)` → vectors of codes `(codes, width)`."""
    vectors = features[torch.randint(len(features), (codes,))]
    for _ in range(ROUNDS):
        numbers = nearest(features, vectors)
        counts = torch.bincount(numbers, minlength=codes)[:, None]
        sums = torch.zeros_like(vectors).index_add_(0, numbers, features)
        anew = features[torch.randint(len(features), (codes,))]
        vectors = torch.where(counts > 0, sums / counts.clamp(min=1), anew)
    return vectors


def nearest(features: Tensor, vectors: Tensor) -> Tensor:
    """`(N, width)` → numbers of the nearest codes `(N,)`."""
    weight, bias = logits_of(vectors)
    return (features @ weight.T + bias).argmax(1)


def logits_of(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Weight `(codes, width)` and bias of the logits whose largest is the nearest code."""
    return 2 * SHARPNESS * vectors, -SHARPNESS * vectors.square().sum(1)


def flat(features: Tensor) -> Tensor:
    """`(images, width, rows, columns)` → `(images · rows · columns, width)`."""
    return features.permute(0, 2, 3, 1).flatten(0, 2)


def quantized(features: Tensor, vectors: Tensor) -> Tensor:
    """Each feature's nearest code, in the shape of the features."""
    grid = (features.shape[0], *features.shape[2:], -1)
    return vectors[nearest(flat(features), vectors)].view(grid).permute(0, 3, 1, 2)


# ----------------------------------------------------------------------------------- the untrained network


def make_vqgan(recipe: VQGANTraining, size: int) -> Any:
    """A `diffusers.VQModel` with random weights, all of whose blocks begin as the identity."""
    vqgan = find_diffusers()(
        block_out_channels=[32 * factor for factor in recipe.factors],
        down_block_types=["DownEncoderBlock2D"] * len(recipe.factors),
        up_block_types=["UpDecoderBlock2D"] * len(recipe.factors),
        layers_per_block=1,
        latent_channels=recipe.width,
        vq_embed_dim=recipe.width,
        num_vq_embeddings=recipe.codes,
        norm_num_groups=32,
        sample_size=size,
        lookup_from_codebook=True,
    )
    for name, parameter in vqgan.named_parameters():
        if name.endswith(STARTS_AT_ZERO):
            nn.init.zeros_(parameter)
    for part in (vqgan.encoder, vqgan.decoder):
        let_values_pass(part)
    return vqgan


@torch.no_grad()
def let_values_pass(part: nn.Module) -> None:
    """Begin an encoder or decoder so that its group norms neither scale values nor take means away.

    Groups are pairs of channels here, or few more. A norm would take mean and scale out of each, and colours with
    them. So values are much smaller than the root of its ε, by which it then divides all alike, and the second channel
    of a pair is the first one's negative, which makes their mean zero. A pair of channels is one value, and passes the
    activation at the end unchanged: `silu(x) - silu(-x) = x`.
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


def tiny_parameters(part: nn.Module) -> list[nn.Parameter]:
    """Those of an encoder or decoder that write tiny values, so that they must change in tiny steps."""
    found = [part.conv_in.weight, *(convolution.bias for convolution in streams(part))]
    found += [one for block in residual_blocks(part) for one in block.conv2.parameters()]
    return found + [one for attention in part.mid_block.attentions for one in attention.to_out.parameters()]


# ------------------------------------------------------------------------------------------ what is computed


@torch.no_grad()
def set_encoder(vqgan: Any, pixels: Tensor, width: int) -> list[Tensor]:
    """Make the encoder linear; returns the images and their features at each coarser level."""
    encoder = vqgan.encoder
    colours = CHROMA * torch.eye(3) + (1 - CHROMA) / 3
    set_first(encoder, colours)
    values, found = conv2d(pixels, colours[:, :, None, None]), [pixels]
    for level in encoder.down_blocks[:-1]:
        cells = pixel_unshuffle(values, 2)
        parts = components(flat(cells), width) / 2  # values keep their size
        kernel = torch.zeros(len(parts), values.shape[1], 3, 3)
        kernel[:, :, :2, :2] = parts.view(len(parts), -1, 2, 2)
        set_pairs(level.downsamplers[0].conv, kernel)
        values = conv2d(cells, parts[:, :, None, None])
        found.append(values)
    pass_through(encoder, width)
    set_last(encoder, width)
    set_identity(vqgan.quant_conv)
    set_identity(vqgan.post_quant_conv)
    return found


def components(cells: Tensor, count: int) -> Tensor:
    """`(N, D)` → their first principal components `(count, D)`, of which there are at most D."""
    return torch.linalg.eigh(cells.T @ cells).eigenvectors.flip(1)[:, :count].T


@torch.no_grad()
def set_decoder(vqgan: Any, vectors: Tensor, features: Sequence[Tensor]) -> None:
    """Begin the decoder with the convolutions that best give each level's features from those of the coarser one.

    Args:
        features: what `set_encoder` returned.
    """
    decoder, values = vqgan.decoder, quantized(features[-1], vectors)
    set_first(decoder, torch.eye(vectors.shape[1]))
    for level, wanted in zip(decoder.up_blocks, features[-2::-1]):
        values = interpolate(values, scale_factor=2.0)
        kernel = best_kernel(values, wanted)
        set_pairs(level.upsamplers[0].conv, kernel)
        values = conv2d(values, kernel, padding=1)
    pass_through(decoder, vectors.shape[1])
    set_last(decoder, 3)


def best_kernel(values: Tensor, wanted: Tensor) -> Tensor:
    """The 3 × 3 convolution of `values` that is nearest to `wanted`, by least squares."""
    size = 9 * values.shape[1]
    squares, products = values.new_zeros(size, size), values.new_zeros(size, wanted.shape[1])
    for part, target in zip(values.split(8), wanted.split(8)):
        rows = unfold(part, 3, padding=1).transpose(1, 2).flatten(0, 1)
        squares += rows.T @ rows
        products += rows.T @ flat(target)
    squares += RIDGE * squares.diagonal().mean() * torch.eye(size)
    return torch.linalg.solve(squares, products).T.reshape(wanted.shape[1], values.shape[1], 3, 3).contiguous()


def set_pairs(convolution: nn.Conv2d, kernel: Tensor) -> None:
    """Write a kernel `(out, in, …)` for values into a convolution of pairs of channels; other outputs stay."""
    outputs, inputs = 2 * kernel.shape[0], 2 * kernel.shape[1]
    convolution.weight[:outputs] = 0
    convolution.weight[:outputs:2, :inputs:2] = kernel / 2
    convolution.weight[:outputs:2, 1:inputs:2] = -kernel / 2
    convolution.weight[1:outputs:2] = -convolution.weight[:outputs:2]


def set_first(part: nn.Module, matrix: Tensor) -> None:
    """Let the first convolution turn its inputs into tiny pairs."""
    weight, outputs = part.conv_in.weight, 2 * len(matrix)
    weight[:outputs] = 0
    weight[:outputs:2, :, 1, 1] = TINY * matrix
    weight[1:outputs:2] = -weight[:outputs:2]


def pass_through(part: nn.Module, width: int) -> None:
    """Let values pass where the number of channels changes."""
    for block in residual_blocks(part):
        if block.conv_shortcut is not None:
            set_pairs(block.conv_shortcut, torch.eye(width)[:, :, None, None])


def set_last(part: nn.Module, count: int) -> None:
    """Let the last convolution turn the first pairs into values again."""
    nn.init.zeros_(part.conv_out.weight)
    nn.init.zeros_(part.conv_out.bias)
    numbers = torch.arange(count)
    part.conv_out.weight[numbers, 2 * numbers, 1, 1] = 1
    part.conv_out.weight[numbers, 2 * numbers + 1, 1, 1] = -1


def set_identity(convolution: nn.Conv2d) -> None:
    nn.init.dirac_(convolution.weight)
    nn.init.zeros_(convolution.bias)


# -------------------------------------------------------------------------------------------- what is learned


def train_decoder(vqgan: Any, vectors: Tensor, pixels: Tensor, recipe: VQGANTraining) -> None:
    """Learn to give images back from their codes, one image a step."""
    optimizer, schedule = make_optimizer(vqgan, recipe)
    for _ in tqdm(range(recipe.steps), desc="training the VQGAN", unit=" steps", file=sys.stderr):
        image = pixels[torch.randint(len(pixels), (1,))].contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            codes = quantized(encode(vqgan, image), vectors)
        wrong = vqgan.decoder(vqgan.post_quant_conv(codes)) - image
        (wrong.abs().mean() + SQUARE_WEIGHT * wrong.square().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def encode(vqgan: Any, pixels: Tensor) -> Tensor:
    return vqgan.quant_conv(vqgan.encoder(pixels))


def make_optimizer(vqgan: Any, recipe: VQGANTraining) -> tuple[Any, Any]:
    """Adam for the decoder, and its learning rates."""
    tiny = tiny_parameters(vqgan.decoder)
    numbers = set(map(id, tiny))
    usual = [one for one in vqgan.decoder.parameters() if id(one) not in numbers]
    rates = [recipe.learning_rate, recipe.learning_rate * TINY]
    groups = [{"params": usual, "lr": rates[0]}, {"params": tiny, "lr": rates[1]}]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rates, total_steps=recipe.steps, pct_start=recipe.warmup_share
    )
    return optimizer, schedule
