"""Networks without shortcuts: the 9-layer CNN of Co-teaching, and the small nets of Figure 2 of the DeCA paper."""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as functional
from torch import Tensor, nn

from recdenoise.errors import UserError
from vision.networks.layers import pooled


class CNN9(nn.Module):
    """Nine 3x3 convolutions with norms and leaky ReLUs (Han et al., Co-teaching, NeurIPS 2018, Table 2).

    Args:
        n_classes: outputs.
        in_channels: channels of the images, which must be 28 x 28 or larger.
        dropout: after the first two pools.
        slope: of the leaky ReLUs.
    """

    WIDTHS = (128, 128, 128, 256, 256, 256, 512, 256, 128)
    SMALLEST = 28

    def __init__(self, n_classes: int, in_channels: int = 3, dropout: float = 0.25, slope: float = 0.01) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        inputs = in_channels
        for place, width in enumerate(self.WIDTHS, 1):
            layers[f"conv{place}"] = nn.Conv2d(inputs, width, 3, padding=1 if place <= 6 else 0)
            layers[f"bn{place}"], layers[f"act{place}"] = nn.BatchNorm2d(width), nn.LeakyReLU(slope)
            if place in (3, 6):
                layers[f"pool{place}"], layers[f"drop{place}"] = nn.MaxPool2d(2), nn.Dropout2d(dropout)
            inputs = width
        self.features = nn.Sequential(layers)
        self.fc = nn.Linear(inputs, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n, n_classes)`` of ``(n, in_channels, H, W)``."""
        if min(x.shape[2:]) < self.SMALLEST:
            raise UserError(
                f"cnn9 needs images of {self.SMALLEST} x {self.SMALLEST} or larger and got "
                f"{' x '.join(str(side) for side in x.shape[2:])}."
            )
        return self.fc(pooled(self.features(x)))


class ConvNet2(nn.Module):
    """Two 5x5 convolutions, each with a ReLU and a pool, and two Linears; no norm.

    Args:
        n_classes: outputs.
        in_channels: channels of the images.
        image_size: their height and width.
        hidden: width of the embedding.
    """

    def __init__(self, n_classes: int, in_channels: int, image_size: tuple[int, int], hidden: int = 128) -> None:
        super().__init__()
        self.image_size = image_size
        self.conv1 = nn.Conv2d(in_channels, 32, 5, padding=2)
        self.conv2 = nn.Conv2d(32, 64, 5, padding=2)
        self.hidden = nn.Linear(64 * (image_size[0] // 4) * (image_size[1] // 4), hidden)
        self.fc = nn.Linear(hidden, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n, n_classes)`` of ``(n, in_channels, H, W)``."""
        check_size(self, x, self.image_size)
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        return self.fc(functional.relu(self.hidden(x.flatten(1))))


class MLP(nn.Module):
    """Four Linears on the pixels: those of ``WIDTHS`` and the classes; no norm.

    Args:
        n_classes: outputs.
        in_channels: channels of the images.
        image_size: their height and width.
    """

    WIDTHS = (512, 256, 128)

    def __init__(self, n_classes: int, in_channels: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.image_size = image_size
        inputs, layers = in_channels * image_size[0] * image_size[1], []
        for width in self.WIDTHS:
            layers += [nn.Linear(inputs, width), nn.ReLU()]
            inputs = width
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(inputs, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n, n_classes)`` of ``(n, in_channels, H, W)``."""
        check_size(self, x, self.image_size)
        return self.fc(self.layers(x.flatten(1)))


class MLP100(MLP):
    """Three hidden layers of 100, the network of Colored MNIST in LfF (Nam et al., NeurIPS 2020).

    Args:
        n_classes, in_channels, image_size: as of :class:`MLP`.
        divisor: of the images, before the first layer. The authors of LfF and of DFA divide images of 0 to 1 by 255
            once more, which makes whatever is large and simple, such as a colour, far easier than a shape.
    """

    WIDTHS = (100, 100, 100)

    def __init__(self, n_classes: int, in_channels: int, image_size: tuple[int, int], divisor: float = 1.0) -> None:
        super().__init__(n_classes, in_channels, image_size)
        self.divisor = divisor

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n, n_classes)`` of ``(n, in_channels, H, W)``."""
        return super().forward(x / self.divisor)


class MLP16(MLP100):
    """Hidden layers of 100, 100 and 16, the network of Colored MNIST in DFA (Lee et al., NeurIPS 2021)."""

    WIDTHS = (100, 100, 16)


def check_size(module: nn.Module, x: Tensor, size: tuple[int, int]) -> None:
    """Refuse images of another size than the network was built for. Raises ``UserError``."""
    if tuple(x.shape[2:]) != size:
        raise UserError(
            f"{type(module).__name__} was built for images of {size[0]} x {size[1]} and got "
            f"{' x '.join(str(side) for side in x.shape[2:])}; build it with that image_size."
        )
