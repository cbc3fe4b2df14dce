"""Where the object is: a Gaussian mask found by a small network, and the two images that it cuts out of one."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from recdenoise.options import require

Mask = Literal["soft", "eq5", "box"]
"""How an image and its mask become a foreground and a background."""

SHARE = 0.75
"""Side of the box that stands for the object, as a share of the image's: 24 of 32 pixels, as in the ablation."""


class GaussianLocalization(nn.Module):
    """DeNLL's localisation module: from ``(n, C, H, W)`` images to masks ``(n, 1, H, W)``, float32, in (0, 1].

    Three convolutions of stride 2 with 16, 32 and 32 channels, the maximum of each quarter, and a Linear from 128 to
    three numbers t an image. With S a side, centre = (S - 1) / 2 + tanh(t) S / 2 on each axis, in pixels, and sigma^2 =
    s0^2 exp(t), t within -2 and 2, s0 = 0.75 S / sqrt(2 pi): at t = 0 the mask is in the middle and its mass that of a
    box of 0.75 S (S is sqrt(H W) there). The Linear starts at zero.

    Source: Eq. 5 of the paper gives the mask; its layers are not printed.

    Args:
        in_channels: C of the images.
    """

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 16, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, 2, 1),
            nn.ReLU(),
        )
        self.place = nn.Linear(128, 3)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the convolutions anew and put the mask back into the middle."""
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):
                layer.reset_parameters()
        nn.init.zeros_(self.place.weight)
        nn.init.zeros_(self.place.bias)

    def locate(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Centres ``(n, 2)`` as row and column, and variances ``(n,)``, in pixels; float32.

        Args:
            images: ``(n, C, H, W)`` floats.
        """
        height, width = images.shape[2:]
        t = self.place(quarter_maxima(self.features(images)).flatten(1)).float()
        sides = torch.tensor([height, width], dtype=torch.float32, device=images.device)
        centre = (sides - 1) / 2 + torch.tanh(t[:, :2]) * sides / 2
        start = SHARE**2 * height * width / (2 * math.pi)
        return centre, start * torch.exp(t[:, 2].clamp(-2.0, 2.0))

    def forward(self, images: Tensor) -> Tensor:
        """Masks ``(n, 1, H, W)`` of images ``(n, C, H, W)``."""
        centre, variance = self.locate(images)
        return gaussian_mask(centre, variance, images.shape[2], images.shape[3])


def gaussian_mask(centre: Tensor, variance: Tensor, height: int, width: int) -> Tensor:
    """``M(i, j) = exp(-((i - p_i)^2 + (j - p_j)^2) / (2 sigma^2))``, Eq. 5: ``(n, 1, height, width)`` float32.

    Args:
        centre: ``(n, 2)`` row and column, in pixels.
        variance: ``(n,)`` sigma^2, in square pixels.
        height, width: of the mask.
    """
    centre, scale = centre.float(), -0.5 / variance.float().unsqueeze(1)
    rows = torch.arange(height, dtype=torch.float32, device=centre.device)
    columns = torch.arange(width, dtype=torch.float32, device=centre.device)
    down = torch.exp((rows - centre[:, :1]).square() * scale)
    across = torch.exp((columns - centre[:, 1:]).square() * scale)
    return (down.unsqueeze(2) * across.unsqueeze(1)).unsqueeze(1)


def quarter_maxima(maps: Tensor) -> Tensor:
    """What ``AdaptiveMaxPool2d(2)`` gives, ``(n, D, H, W)`` to ``(n, D, 2, 2)``, deterministic on every device."""
    height, width = maps.shape[2:]
    rows = (slice(0, (height + 1) // 2), slice(height // 2, height))
    columns = (slice(0, (width + 1) // 2), slice(width // 2, width))
    quarters = [maps[:, :, row, column].amax((2, 3)) for row in rows for column in columns]
    return torch.stack(quarters, dim=2).unflatten(2, (2, 2))


def box_mask(images: Tensor) -> Tensor:
    """1 inside the middle box of 0.75 of each side, 0 outside: ``(1, 1, H, W)`` float32 for ``(n, C, H, W)``."""
    inside = []
    for side in images.shape[2:]:
        box = round(SHARE * side)
        place = torch.arange(side, device=images.device)
        first = (side - box) // 2
        inside.append(((place >= first) & (place < first + box)).float())
    return (inside[0].unsqueeze(1) * inside[1]).view(1, 1, *images.shape[2:])


def spatial_median(images: Tensor) -> Tensor:
    """The lower median over pixels, detached: ``(n, C, 1, 1)`` of ``(n, C, H, W)``; deterministic on every device."""
    values = images.detach().flatten(2).sort(dim=2).values
    return values[:, :, (values.shape[2] - 1) // 2].view(*images.shape[:2], 1, 1)


class Cut(nn.Module):
    """Foreground and background, ``(n, C, H, W)`` each, of images and their masks.

    ``soft`` and ``box``: f = M I and b = (1 - M) I. ``eq5``: f = relu(M I - m) and b = relu(m - M I) with m the spatial
    median of M I, by image and channel, without gradient, on images brought back to the scale 0 to 1.

    Args:
        mode: ``soft``, ``eq5`` or ``box``.
        mean, std: of each channel on the scale 0 to 1, by which the images were normalised; for ``eq5`` alone.
    """

    def __init__(self, mode: Mask = "soft", mean: tuple[float, ...] = (), std: tuple[float, ...] = ()) -> None:
        super().__init__()
        require(mode in get_args(Mask), "mask", mode, f"one of {', '.join(get_args(Mask))}")
        self.mode = mode
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Foreground and background of ``(n, C, H, W)`` normalised images under ``(n or 1, 1, H, W)`` masks."""
        if self.mode == "eq5":
            masked = mask * (images * self.std + self.mean)
            median = spatial_median(masked)
            return functional.relu(masked - median), functional.relu(median - masked)
        foreground = mask * images
        return foreground, images - foreground
