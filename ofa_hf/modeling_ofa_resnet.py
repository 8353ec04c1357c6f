"""Image trunk of OFA: a ResNet that stops after its third stage, so one output cell covers 16 × 16 pixels.

Source: OFA `models/ofa/resnet.py` (ResNet v1.5, stride on the 3 × 3 convolution).
"""

import torch
from torch import Tensor, nn

from .configuration_ofa import RESNET_BLOCKS


EXPANSION = 4  # a Bottleneck has four times as many output channels as inner channels
OUTPUT_CHANNELS = 256 * EXPANSION


def drop_path(branch: Tensor, rate: float, training: bool) -> Tensor:
    """Stochastic depth: drop the whole residual branch of a sample with probability `rate`.

    Args:
        branch: `(batch, ...)`; one draw per sample.

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

    @staticmethod
    def _stage(in_channels: int, width: int, num_blocks: int, stride: int, drop_path_rate: float) -> nn.Sequential:
        rates = linear_rates(drop_path_rate, num_blocks)  # the first block of a stage is never dropped
        blocks = [OFABottleneck(in_channels, width, stride)]
        blocks += [OFABottleneck(width * EXPANSION, width, drop_path_rate=rate) for rate in rates[1:]]
        return nn.Sequential(*blocks)

    def forward(self, pixel_values: Tensor) -> Tensor:
        if self.training:  # the faster layout in training; inference keeps the original's order of summation
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        features = self.maxpool(self.bn1(self.conv1(pixel_values)).relu_())
        return self.layer3(self.layer2(self.layer1(features)))

    def blocks(self) -> list[OFABottleneck]:
        return [*self.layer1, *self.layer2, *self.layer3]

    def convolutions(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        """Every convolution with the BatchNorm that follows it, in the order of execution."""
        return [(self.conv1, self.bn1), *(pair for block in self.blocks() for pair in block.convolutions())]
