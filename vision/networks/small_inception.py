"""The small Inception of Zhang et al. (Understanding Deep Learning Requires Rethinking Generalization, ICLR 2017).

It stands for the InceptionNet of Figure 2 of the DeCA paper, which does not say how it fits 28 x 28 images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from vision.networks.layers import Conv, pooled


class Unit(nn.Sequential):
    """Convolution, norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(Conv(inputs, outputs, kernel, stride), nn.BatchNorm2d(outputs), nn.ReLU())


class Inception(nn.Module):
    """1x1 and 3x3 convolutions side by side."""

    def __init__(self, inputs: int, ones: int, threes: int) -> None:
        super().__init__()
        self.ones, self.threes = Unit(inputs, ones, 1), Unit(inputs, threes, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.ones(x), self.threes(x)], 1)


class Downsample(nn.Module):
    """A 3x3 convolution and a pool, both of stride 2, side by side."""

    def __init__(self, inputs: int, threes: int) -> None:
        super().__init__()
        self.threes = Unit(inputs, threes, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.threes(x), functional.max_pool2d(x, 3, stride=2, padding=1)], 1)


class SmallInception(nn.Module):
    """A convolution, eight Inception modules in three sizes, mean pooling, a Linear.

    Args:
        n_classes: outputs.
        in_channels: channels of the images.
    """

    STAGES = (((32, 32), (32, 48)), ((112, 48), (96, 64), (80, 80), (48, 96)), ((176, 160), (176, 160)))
    DOWN = (80, 96)

    def __init__(self, n_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [Unit(in_channels, 96, 3)]
        inputs = 96
        for place, stage in enumerate(self.STAGES):
            for ones, threes in stage:
                layers.append(Inception(inputs, ones, threes))
                inputs = ones + threes
            if place < len(self.DOWN):
                layers.append(Downsample(inputs, self.DOWN[place]))
                inputs += self.DOWN[place]
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(inputs, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n, n_classes)`` of ``(n, in_channels, H, W)``."""
        return self.fc(pooled(self.features(x)))
