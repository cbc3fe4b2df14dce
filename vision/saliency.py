"""A detector of the salient object that needs no weights: how unlike the image's border every pixel is.

Photographs show their object away from most of the border (the boundary prior). For each of the four sides, the
colours of its strip give a mean and a covariance, and every pixel a Mahalanobis distance to them. The sum of the four
normalised distances without the largest forgives an object that touches one side. This is the backgroundness cue of
Zhang et al., Minimum Barrier Salient Object Detection at 80 FPS, ICCV 2015 (section 4), here smoothed over a few
pixels. The level above which a pixel counts as object is that of Otsu, A Threshold Selection Method from Gray-Level
Histograms, 1979: it parts an image's values into two groups that differ the most.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

BORDER = 0.1
"""Share of the height or width that a side's strip takes."""
SMOOTH = 1 / 32
"""Standard deviation of the smoothing, as a share of the shorter side."""
RIDGE = 1e-3
"""Added to every variance of a strip, on the scale 0 to 1: a border of one colour has none of its own."""
LEVELS = 64
"""Levels between 0 and an image's largest value that are tried as threshold."""


def boundary_contrast(images: Tensor) -> Tensor:
    """``(n, 1, H, W)`` saliency from 0 to 1 of ``(n, C, H, W)`` floats of 0 to 1; above 0.5 is object.

    An image of one colour has no object: its map is 0.
    """
    pixels = opponent(images) if images.shape[1] == 3 else images
    height, width = images.shape[2:]
    rows, columns = max(1, round(BORDER * height)), max(1, round(BORDER * width))
    strips = (pixels[:, :, :rows], pixels[:, :, -rows:], pixels[..., :columns], pixels[..., -columns:])
    distance = torch.stack([_distance(pixels, strip) for strip in strips], 1)
    distance = distance / distance.amax((2, 3), keepdim=True).clamp_min(1e-6)
    saliency = _smoothed((distance.sum(1) - distance.amax(1)).unsqueeze(1))
    return (saliency / (2 * threshold(saliency).clamp_min(1e-6))).clamp_max_(1.0)


def threshold(maps: Tensor) -> Tensor:
    """Otsu's level of each of ``(n, 1, H, W)`` maps of zero or more: ``(n, 1, 1, 1)``, above all of a constant map."""
    values = maps.flatten(1)
    top = values.amax(1, keepdim=True)
    place = (values / top.clamp_min(1e-12) * LEVELS).long().clamp_(0, LEVELS - 1)
    first = LEVELS * torch.arange(len(maps), device=maps.device).unsqueeze(1)
    shares = torch.bincount((first + place).flatten(), minlength=LEVELS * len(maps)).view(-1, LEVELS) / values.shape[1]
    below = shares.cumsum(1)
    middle = (torch.arange(LEVELS, device=maps.device) + 0.5) / LEVELS
    moment = (shares * middle).cumsum(1)
    between = (moment[:, -1:] * below - moment) ** 2 / (below * (1 - below)).clamp_min(1e-9)
    level = (between.argmax(1, keepdim=True) + 1) / LEVELS * top
    flat = values.amin(1, keepdim=True) >= top * (1 - 1e-6)
    return torch.where(flat, 2 * top, level).view(-1, 1, 1, 1)


def opponent(images: Tensor) -> Tensor:
    """Red, green and blue as lightness, red against green, and blue against yellow, each of 0 to 1."""
    red, green, blue = images.unbind(1)
    light, yellow = (red + green + blue) / 3, (red + green) / 2
    return torch.stack([light, (red - green + 1) / 2, (blue - yellow + 1) / 2], 1)


def _distance(pixels: Tensor, strip: Tensor) -> Tensor:
    """Mahalanobis distance of every pixel to the colours of a strip: ``(n, H, W)``."""
    colours = strip.flatten(2)
    mean = colours.mean(2, keepdim=True)
    centred = colours - mean
    covariance = centred @ centred.transpose(1, 2) / colours.shape[2]
    covariance = covariance + RIDGE * torch.eye(pixels.shape[1], device=pixels.device)
    apart = pixels.flatten(2) - mean
    squared = (apart * torch.linalg.solve(covariance, apart)).sum(1)
    return squared.clamp_min(0).sqrt().view(len(pixels), *pixels.shape[2:])


def _smoothed(maps: Tensor) -> Tensor:
    """A Gaussian over rows, then over columns; edges are repeated."""
    sigma = SMOOTH * min(maps.shape[2:])
    reach = max(1, round(2 * sigma))
    place = torch.arange(-reach, reach + 1, device=maps.device, dtype=maps.dtype)
    kernel = torch.exp(-0.5 * (place / sigma) ** 2)
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    padded = functional.pad(maps, (reach, reach, reach, reach), mode="replicate")
    return functional.conv2d(functional.conv2d(padded, kernel), kernel.transpose(2, 3))
