"""ResNet-20, 32, 44 and 56 for images of about 32 x 32 (He et al., Deep Residual Learning, CVPR 2016, section 4.2)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as functional
from torch import Tensor, nn

from vision.networks.layers import Conv, pooled

Shortcut = Literal["A", "B"]
WIDTHS = (16, 32, 64)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    Args:
        inputs, outputs: channels.
        stride: of the first convolution.
        shortcut: where the shape changes: ``A`` takes every second pixel and fills up with zero channels, without
            parameters; ``B`` is a 1x1 convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1, self.bn1 = Conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = Conv(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        self.stride, self.more = stride, outputs - inputs
        self.shortcut: nn.Module | None = None
        if shortcut == "B" and (stride != 1 or self.more):
            self.shortcut = nn.Sequential(Conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.shortcut is not None:
            x = self.shortcut(x)
        elif self.stride != 1 or self.more:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        return functional.relu(out + x)


class CifarResNet(nn.Module):
    """6n + 2 layers: a convolution, three stages of n blocks with 16, 32 and 64 channels, a Linear.

    Args:
        depth: 20, 32, 44, 56 or any other 6n + 2.
        n_classes: outputs.
        in_channels: channels of the images.
        shortcut: see :class:`Block`; the paper's networks for CIFAR-10 are ``A``.
    """

    def __init__(self, depth: int, n_classes: int, in_channels: int = 3, shortcut: Shortcut = "A") -> None:
        super().__init__()
        self.conv1, self.bn1 = Conv(in_channels, WIDTHS[0], 3), nn.BatchNorm2d(WIDTHS[0])
        blocks = (depth - 2) // 6

        def layer(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            rest = [Block(outputs, outputs, 1, shortcut) for _ in range(blocks - 1)]
            return nn.Sequential(Block(inputs, outputs, stride, shortcut), *rest)

        self.layer1 = layer(WIDTHS[0], WIDTHS[0], 1)
        self.layer2 = layer(WIDTHS[0], WIDTHS[1], 2)
        self.layer3 = layer(WIDTHS[1], WIDTHS[2], 2)
        self.fc = nn.Linear(WIDTHS[2], n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n, n_classes)`` of ``(n, in_channels, H, W)``."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(pooled(x))
