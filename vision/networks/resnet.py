"""ResNet-18, 34 and 50, and the pre-activation forms of the first two, with a stem for small images.

A 3x3 convolution of stride 1 and no pooling stand in place of the 7x7 convolution and the pooling that suit 224 x 224.

References: He et al., Deep Residual Learning, CVPR 2016; He et al., Identity Mappings, ECCV 2016.
"""

from __future__ import annotations

import torch.nn.functional as functional
from torch import Tensor, nn

from vision.networks.layers import Conv, pooled

WIDTHS = (64, 128, 256, 512)


class Basic(nn.Module):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = Conv(inputs, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = Conv(width, width, 3), nn.BatchNorm2d(width)
        self.shortcut = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride, 1x1 to four times the width."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = Conv(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = Conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = Conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
        self.shortcut = _shortcut(inputs, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        out = functional.relu(self.bn2(self.conv2(out)))
        return functional.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


class PreAct(nn.Module):
    """Two 3x3 convolutions, each behind its norm and ReLU; the shortcut, where there is one, behind the first norm."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), Conv(inputs, width, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), Conv(width, width, 3)
        self.shortcut = Conv(inputs, width, 1, stride) if stride != 1 or inputs != width else None

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(x))
        x = x if self.shortcut is None else self.shortcut(out)
        return self.conv2(functional.relu(self.bn2(self.conv1(out)))) + x


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(Conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """Stem, four stages, mean pooling, a Linear.

    Args:
        block: :class:`Basic`, :class:`Bottleneck` or :class:`PreAct`.
        depths: blocks of each stage.
        n_classes: outputs.
        in_channels: channels of the images.
        final_norm: pre-activation only: norm and ReLU before pooling, as in the paper. The public code behind the
            tables on label noise (PES, SOP, DivideMix) leaves them out, and so does the default.
    """

    def __init__(
        self,
        block: type[Basic] | type[Bottleneck] | type[PreAct],
        depths: tuple[int, int, int, int],
        n_classes: int,
        in_channels: int = 3,
        final_norm: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = Conv(in_channels, WIDTHS[0], 3)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0]) if block is not PreAct else None
        more = block.expansion

        def layer(inputs: int, stage: int) -> nn.Sequential:
            width = WIDTHS[stage]
            rest = [block(width * more, width, 1) for _ in range(depths[stage] - 1)]
            return nn.Sequential(block(inputs, width, 2 if stage else 1), *rest)

        self.layer1 = layer(WIDTHS[0], 0)
        self.layer2 = layer(WIDTHS[0] * more, 1)
        self.layer3 = layer(WIDTHS[1] * more, 2)
        self.layer4 = layer(WIDTHS[2] * more, 3)
        self.norm = nn.BatchNorm2d(WIDTHS[3] * more) if final_norm else None
        self.fc = nn.Linear(WIDTHS[3] * more, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n, n_classes)`` of ``(n, in_channels, H, W)``."""
        x = self.conv1(x)
        if self.bn1 is not None:
            x = functional.relu(self.bn1(x))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        if self.norm is not None:
            x = functional.relu(self.norm(x))
        return self.fc(pooled(x))
