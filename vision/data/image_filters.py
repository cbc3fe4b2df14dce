"""Filters of whole batches of ``(n, C, H, W)`` float images, for corruptions: blurs, zooms, warps, plasma."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def gaussian_kernel(sigma: float, truncate: float = 4.0) -> Tensor:
    """``(2 r + 1,)`` float32 weights that sum to 1, up to ``truncate`` standard deviations."""
    radius = int(truncate * sigma + 0.5)
    away = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-(away**2) / (2 * sigma**2))
    return (weights / weights.sum()).float()


def gaussian(images: Tensor, sigma: float, border: str = "replicate", truncate: float = 4.0) -> Tensor:
    """Blurred by a Gaussian of ``sigma`` pixels.

    Args:
        images: ``(n, C, H, W)``.
        sigma: in pixels.
        border: ``replicate`` repeats the outermost pixels, ``symmetric`` mirrors them, themselves included.
        truncate: where the Gaussian ends, in standard deviations.
    """
    kernel = gaussian_kernel(sigma, truncate)
    radius, channels = len(kernel) // 2, images.shape[1]
    if border == "symmetric":
        rows, columns = (symmetric(torch.arange(-radius, side + radius), side) for side in images.shape[2:])
        padded = images.index_select(2, rows).index_select(3, columns)
    else:
        padded = functional.pad(images, (radius,) * 4, mode="replicate")
    down = functional.conv2d(padded, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return functional.conv2d(down, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)


def symmetric(places: Tensor, side: int) -> Tensor:
    """Places outside 0 to ``side - 1`` mirrored at the edges, the outermost pixel twice: 2 1 0 | 0 1 2."""
    turned = places % (2 * side)
    return torch.where(turned < side, turned, 2 * side - 1 - turned)


def disk(radius: float, alias: float) -> Tensor:
    """``(k, k)`` float32: a disc of ``radius`` pixels, its edge softened by a 3 x 3 Gaussian of ``alias`` pixels."""
    reach = math.ceil(radius) + 1
    away = torch.arange(-reach, reach + 1, dtype=torch.float64)
    inside = (away.view(-1, 1) ** 2 + away**2 <= radius**2).double()
    soft = torch.exp(-(torch.arange(-1, 2, dtype=torch.float64) ** 2) / (2 * alias**2))
    soft = soft / soft.sum()
    kernel = functional.conv2d((inside / inside.sum())[None, None], torch.outer(soft, soft)[None, None], padding=1)
    return kernel[0, 0].float()


def correlate(images: Tensor, kernel: Tensor) -> Tensor:
    """Every channel correlated with one ``(k, k)`` kernel; edges are mirrored, the outermost pixel not repeated."""
    channels, radius = images.shape[1], len(kernel) // 2
    padded = functional.pad(images, (radius,) * 4, mode="reflect")
    return functional.conv2d(padded, kernel.expand(channels, 1, -1, -1), groups=channels)


def motion(images: Tensor, radius: int, sigma: float, degrees: Tensor) -> Tensor:
    """A blur along one direction an image: half a Gaussian over ``2 radius + 1`` pixels.

    Args:
        images: ``(n, C, H, W)``; outside, the outermost pixels go on.
        radius, sigma: in pixels.
        degrees: ``(n,)``; 0 is to the right, 90 down.
    """
    n, channels, height, width = images.shape
    weights = torch.exp(-(torch.arange(2 * radius + 1, dtype=torch.float64) ** 2) / (2 * sigma**2))
    weights = (weights / weights.sum()).float()
    angle = torch.deg2rad(degrees.double())
    rows, columns = torch.arange(height), torch.arange(width)
    flat, out = images.flatten(2), torch.zeros_like(images)
    for step, weight in enumerate(weights.tolist()):
        down, right = ((step * turn - 0.5).ceil().long() for turn in (angle.sin(), angle.cos()))
        y = (rows + down.unsqueeze(1)).clamp_(0, height - 1)
        x = (columns + right.unsqueeze(1)).clamp_(0, width - 1)
        place = (y.unsqueeze(2) * width + x.unsqueeze(1)).view(n, 1, -1).expand(n, channels, -1)
        out += weight * flat.gather(2, place).view_as(images)
    return out


def zoom(images: Tensor, factor: float) -> Tensor:
    """The middle of square images enlarged by ``factor`` of 1 or more, and cut to the first size."""
    side = images.shape[2]
    kept = math.ceil(side / factor - 1e-9)
    first = (side - kept) // 2
    middle = images[:, :, first : first + kept, first : first + kept]
    size = round(kept * factor)
    large = functional.interpolate(middle, size=(size, size), mode="bilinear", align_corners=True)
    cut = (size - side) // 2
    return large[:, :, cut : cut + side, cut : cut + side]


def box_matrix(size: int, to: int) -> Tensor:
    """``(to, size)`` float32: each new pixel is the mean of the old ones whose centres lie in it."""
    scale = size / to
    centre, reach = (torch.arange(to, dtype=torch.float64) + 0.5) * scale, 0.5 * max(scale, 1.0)
    away = torch.arange(size, dtype=torch.float64) + 0.5 - centre.unsqueeze(1)
    inside = ((away > -reach) & (away <= reach)).double()
    return (inside / inside.sum(1, keepdim=True)).float()


def resample(images: Tensor, y: Tensor, x: Tensor, symmetric_border: bool) -> Tensor:
    """Bilinear values of images at ``(n, H, W)`` coordinates in pixels.

    Outside, images are mirrored, with the outermost pixel repeated where ``symmetric_border``.
    """
    sides = images.shape[3], images.shape[2]
    if symmetric_border:
        scaled = [(2 * place + 1) / side - 1 for place, side in zip((x, y), sides, strict=True)]
    else:
        scaled = [2 * place / (side - 1) - 1 for place, side in zip((x, y), sides, strict=True)]
    return functional.grid_sample(
        images, torch.stack(scaled, 3), mode="bilinear", padding_mode="reflection", align_corners=not symmetric_border
    )


def plasma(height: int, width: int, uniform: Tensor, decay: float) -> Tensor:
    """Clouds by the diamond-square algorithm on a torus (Fournier et al., 1982), each from 0 to 1.

    Args:
        height, width: of what is cut out.
        uniform: ``(n, s, s)`` numbers of 0 to 1, one for every point; s is a power of two.
        decay: what the disturbance is divided by from one scale to the next finer one.

    Returns:
        ``(n, height, width)`` float32.
    """
    side = uniform.shape[1]
    field, away = torch.zeros_like(uniform), 2 * uniform - 1
    step, wibble = side, 100.0

    def disturbed(mean: Tensor, rows: slice, columns: slice) -> Tensor:
        return mean + wibble * away[:, rows, columns]

    while step >= 2:
        half = step // 2
        corner, middle = slice(0, side, step), slice(half, side, step)
        square = field[:, corner, corner]
        pairs = square + square.roll(-1, 1)
        field[:, middle, middle] = disturbed((pairs + pairs.roll(-1, 2)) / 4, middle, middle)
        centre = field[:, middle, middle]
        across = square + square.roll(-1, 2) + centre + centre.roll(1, 1)
        field[:, corner, middle] = disturbed(across / 4, corner, middle)
        down = square + square.roll(-1, 1) + centre + centre.roll(1, 2)
        field[:, middle, corner] = disturbed(down / 4, middle, corner)
        step, wibble = half, wibble / decay
    low = field.amin((1, 2), keepdim=True)
    high = field.amax((1, 2), keepdim=True)
    return ((field - low) / (high - low).clamp_min(1e-12))[:, :height, :width].float()
