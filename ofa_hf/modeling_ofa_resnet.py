"""Image trunk of OFA: a ResNet that stops after its third stage, so one output cell covers 16 × 16 pixels.

Source: OFA `models/ofa/resnet.py` (ResNet v1.5, stride on the 3 × 3 convolution).
"""

from collections.abc import Iterator
from itertools import starmap

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from .configuration_ofa import RESNET_BLOCKS
from .modeling_ofa_kernels import convolution_relu, fold_batch_norm, is_folding, keeps_folded, number_of_parts
from .modeling_ofa_memory import ShapeMemory


EXPANSION = 4  # a Bottleneck gives four times as many channels as it works on inside
OUTPUT_CHANNELS = 256 * EXPANSION


def drop_path(branch: Tensor, rate: float, training: bool) -> Tensor:
    """Stochastic depth: drop the whole residual branch of a sample with probability `rate`.

    Args:
        branch: `(batch, ...)`; one draw a sample, whatever the other dimensions.

    Returns:
        The same shape; kept samples are scaled by `1 / (1 - rate)`.
    """
    if rate == 0.0 or not training:
        return branch
    keep = 1.0 - rate
    draw = torch.rand((branch.shape[0],) + (1,) * (branch.ndim - 1), dtype=branch.dtype, device=branch.device)
    return branch / keep * torch.floor(keep + draw)


def linear_rates(last: float, count: int) -> list[float]:
    """Stochastic-depth rates of `count` layers, rising linearly from 0 to `last`."""
    return torch.linspace(0, last, count, device="cpu").tolist()


class OFABottleneck(nn.Module):
    """1 × 1 down, 3 × 3, 1 × 1 up, each with BatchNorm, added to its input."""

    def __init__(self, in_channels: int, width: int, stride: int = 1, drop_path_rate: float = 0.0):
        super().__init__()
        out_channels = width * EXPANSION
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            shortcut = nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(out_channels))
        self.drop_path_rate = drop_path_rate

    def forward(self, features: Tensor) -> Tensor:
        residual = features if self.downsample is None else self.downsample(features)
        features = self.bn1(self.conv1(features)).relu_()
        features = self.bn2(self.conv2(features)).relu_()
        features = self.bn3(self.conv3(features))
        return (residual + drop_path(features, self.drop_path_rate, self.training)).relu_()

    def convolutions(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        """Convolutions with the BatchNorm that follows each, in the order of execution."""
        pairs = [(self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)]
        return pairs if self.downsample is None else [tuple(self.downsample), *pairs]

    def forward_folded(self, features: Tensor, folded: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
        """What `forward` gives in inference mode; takes its weights and biases from `folded`."""
        stride = self.conv2.stride[0]
        residual = features if self.downsample is None else conv2d(features, *next(folded), stride)
        features = convolution_relu(features, *next(folded), stride=1, padding=0)
        features = convolution_relu(features, *next(folded), stride=stride, padding=1)
        return convolution_relu(features, *next(folded), stride=1, padding=0, residual=residual)


class OFAResNet(nn.Module):
    """Image → feature map: `(batch, 3, height, width)` → `(batch, 1024, ⌈height / 16⌉, ⌈width / 16⌉)`."""

    def __init__(self, resnet_type: str, drop_path_rate: float = 0.0):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        first, second, third = RESNET_BLOCKS[resnet_type]
        self.layer1 = self._stage(64, 64, first, 1, drop_path_rate)
        self.layer2 = self._stage(256, 128, second, 2, drop_path_rate)
        self.layer3 = self._stage(512, 256, third, 2, drop_path_rate)
        self._folded = ShapeMemory()

    @staticmethod
    def _stage(in_channels: int, width: int, num_blocks: int, stride: int, drop_path_rate: float) -> nn.Sequential:
        rates = linear_rates(drop_path_rate, num_blocks)  # the first block of a stage never drops
        blocks = [OFABottleneck(in_channels, width, stride)]
        blocks += [OFABottleneck(width * EXPANSION, width, drop_path_rate=rate) for rate in rates[1:]]
        return nn.Sequential(*blocks)

    def forward(self, pixel_values: Tensor) -> Tensor:
        if self._can_fold(pixel_values):
            return self._forward_folded(pixel_values.contiguous(memory_format=torch.channels_last))
        if self.training:  # the faster layout; in inference the original's, which sums in the original's order
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        features = self.maxpool(self.bn1(self.conv1(pixel_values)).relu_())
        return self.layer3(self.layer2(self.layer1(features)))

    def _can_fold(self, pixel_values: Tensor) -> bool:
        """In captioning BatchNorm is folded into copies of the weights; the weights themselves stay as they are."""
        if torch.compiler.is_compiling() or not is_folding() or self.training or torch.is_grad_enabled():
            return False
        return self.conv1.weight.device == pixel_values.device  # not so where accelerate keeps weights elsewhere

    def _blocks(self) -> list[OFABottleneck]:
        return [*self.layer1, *self.layer2, *self.layer3]

    def _forward_folded(self, pixel_values: Tensor) -> Tensor:
        pairs = [(self.conv1, self.bn1), *(pair for block in self._blocks() for pair in block.convolutions())]
        kept = self._kept_folds(pairs)
        height, width = pixel_values.shape[-2:]
        largest_map = 64 * (height // 2) * (width // 2)  # numbers per image; as many after the first stage
        features = [
            self._forward_folded_part(part, iter(kept or starmap(fold_batch_norm, pairs)))
            for part in pixel_values.tensor_split(number_of_parts(pixel_values, largest_map))
        ]
        return (torch.cat(features) if len(features) > 1 else features[0]).to(pixel_values.dtype)

    def _kept_folds(self, pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]]) -> tuple[tuple[Tensor, Tensor], ...] | None:
        """Weight and bias of each convolution, kept from pass to pass; None where a CPU shall not keep them.

        Folding each when it is used, even once for every part of a batch, takes a CPU less than new memory for all.
        """
        if not keeps_folded() and self.conv1.weight.device.type == "cpu":
            self._folded.forget()
            return None
        self._folded.check([module for pair in pairs for module in pair])
        num_bytes = sum(convolution.weight.numel() * convolution.weight.element_size() for convolution, _ in pairs)
        return self._folded.get((), num_bytes, lambda: tuple(starmap(fold_batch_norm, pairs)))

    def _forward_folded_part(self, pixel_values: Tensor, folded: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
        weight, bias = next(folded)
        features = self.maxpool(convolution_relu(pixel_values.to(weight.dtype), weight, bias, stride=2, padding=3))
        for block in self._blocks():
            features = block.forward_folded(features, folded)
        return features
