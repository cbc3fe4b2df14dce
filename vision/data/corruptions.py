"""The twenty corruptions of Corrupted CIFAR-10 (Nam et al., 2020), after Hendrycks & Dietterich (ICLR 2019).

Severity 4 of 5 of CIFAR-10-C, the one that LfF's tables were made with: constants are those for images of 32 x 32.
Each takes a whole batch. Frost differs from the published set: it has a drawn texture in place of six photographs.
Glass blur does what the published program does: it says that it swaps pixels, and copies one over the other.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from recdenoise.errors import UserError, unknown_name
from recdenoise.noise import uniform_draws
from vision.data import image_filters as filters

SEVERITY = 4
SIDES = (24, 64)
"""Sides of images that the constants make sense for."""
_BLOCK = 1000


@dataclass(frozen=True)
class Chance:
    """Random numbers of one corruption; they follow from the seed on every machine."""

    draw: Callable[[int], np.ndarray]

    def uniform(self, *shape: int) -> Tensor:
        """Between 0 and 1, float64."""
        return torch.from_numpy(self.draw(int(np.prod(shape)))).view(shape)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal, float32."""
        return torch.from_numpy(ndtri(np.maximum(self.draw(int(np.prod(shape))), 1e-16))).float().view(shape)


Corruption = Callable[[Tensor, Chance], Tensor]
"""From ``(n, 3, H, W)`` floats of 0 to 1 to as many, which may leave 0 to 1."""


def gaussian_noise(images: Tensor, chance: Chance) -> Tensor:
    """Noise of standard deviation 0.09."""
    return images + 0.09 * chance.normal(*images.shape)


def shot_noise(images: Tensor, chance: Chance) -> Tensor:
    """A count of 75 photons at white, Poisson."""
    photons = 75
    counts = np.arange(2 * photons + 1)
    level = (images * 255).round().long().numpy()
    rates = np.maximum(np.arange(256) / 255 * photons, 1e-9)
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(counts[1:]))])
    mass = np.exp(counts * np.log(rates)[:, None] - rates[:, None] - log_factorials)
    # One growing table: row r holds P(count <= k at level r) + r, so that one search serves all levels.
    table = np.minimum(np.cumsum(mass, 1), 1.0) + np.arange(256)[:, None]
    wanted = chance.uniform(*images.shape).numpy().clip(max=1 - 1e-12) + level
    found = np.searchsorted(table.ravel(), wanted) - level * len(counts)
    return torch.from_numpy(found.clip(0, 2 * photons)).float() / photons


def impulse_noise(images: Tensor, chance: Chance) -> Tensor:
    """5% of the values become 0 or 1."""
    hit, white = chance.uniform(*images.shape) < 0.05, chance.uniform(*images.shape) < 0.5
    return torch.where(hit, white.float(), images)


def speckle_noise(images: Tensor, chance: Chance) -> Tensor:
    """Noise in proportion to the value, standard deviation 0.16."""
    return images * (1 + 0.16 * chance.normal(*images.shape))


def gaussian_blur(images: Tensor, chance: Chance) -> Tensor:
    """A Gaussian of 0.8 pixels."""
    return filters.gaussian(images, 0.8)


def defocus_blur(images: Tensor, chance: Chance) -> Tensor:
    """A disc of radius 1, softened by 0.2 pixels."""
    return filters.correlate(images, filters.disk(1.0, 0.2))


def glass_blur(images: Tensor, chance: Chance) -> Tensor:
    """A Gaussian of 0.25 pixels, twice every pixel from the third row and column on takes the value of itself or of one
    up, left or both, the Gaussian again."""
    n, channels, height, width = images.shape
    soft, first = 0.25, 2
    moved = filters.gaussian(images, soft)
    rows, columns = torch.arange(height), torch.arange(width)
    still = (rows.view(-1, 1) < first) | (columns < first)
    for _ in range(2):
        up, left = chance.uniform(2, n, height, width).lt(0.5).long().masked_fill_(still, 0)
        place = ((rows.view(-1, 1) - up) * width + columns - left).view(n, 1, -1)
        moved = moved.flatten(2).gather(2, place.expand(n, channels, -1)).view_as(images)
    return filters.gaussian(moved, soft)


def motion_blur(images: Tensor, chance: Chance) -> Tensor:
    """Radius 8, deviation 2 pixels, within 45 degrees of the horizontal."""
    return filters.motion(images, 8, 2.0, 90 * chance.uniform(len(images)) - 45)


def zoom_blur(images: Tensor, chance: Chance) -> Tensor:
    """The mean of the image and its enlargements by 1 to 1.2, in steps of 0.01."""
    factors = [1 + step / 100 for step in range(21)]
    total = images.clone()
    for factor in factors:
        total += filters.zoom(images, factor)
    return total / (len(factors) + 1)


def original(images: Tensor, chance: Chance) -> Tensor:
    """The image itself."""
    return images


def snow(images: Tensor, chance: Chance) -> Tensor:
    """Flakes: noise of mean 0.25 and deviation 0.3, enlarged 2.25 times, kept above 0.6, blurred downwards."""
    n, _, height, width = images.shape
    flakes = filters.zoom(0.25 + 0.3 * chance.normal(n, 1, height, width), 2.25)
    flakes = torch.where(flakes < 0.6, 0.0, flakes).clamp_(0, 1)
    flakes = filters.motion(flakes, 12, 6.0, -45 - 90 * chance.uniform(n))
    grey = (images * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    pale = 0.85 * images + 0.15 * torch.maximum(images, grey * 1.5 + 0.5)
    return pale + flakes + flakes.flip(2, 3)


def frost(images: Tensor, chance: Chance) -> Tensor:
    """0.85 of the image and 0.4 of ice: bright bluish ridges of a plasma, on a dim ground.

    The published set mixes in crops of six photographs; this texture is drawn instead.
    """
    n, _, height, width = images.shape
    side = _power_of_two(height, width)
    coarse = filters.plasma(height, width, chance.uniform(n, side, side), 1.7)
    fine = filters.plasma(height, width, chance.uniform(n, side, side), 1.3)
    ridges = (1 - (2 * coarse - 1).abs()) ** 4
    ice = (0.25 + 0.5 * ridges + 0.35 * fine).unsqueeze(1) * torch.tensor([0.85, 0.95, 1.0]).view(1, 3, 1, 1)
    return 0.85 * images + 0.4 * ice.clamp(0, 1)


def fog(images: Tensor, chance: Chance) -> Tensor:
    """Plasma of full strength with decay 2, scaled back to the image's brightest value."""
    n, _, height, width = images.shape
    side = _power_of_two(height, width)
    cloud = filters.plasma(height, width, chance.uniform(n, side, side), 2.0).unsqueeze(1)
    brightest = images.amax((1, 2, 3), keepdim=True)
    return (images + cloud) * brightest / (brightest + 1)


def brightness(images: Tensor, chance: Chance) -> Tensor:
    """0.2 more of the value in HSV."""
    value = images.amax(1, keepdim=True)
    raised = (value + 0.2).clamp(max=1)
    return torch.where(value > 0, images * raised / value.clamp_min(1e-6), raised.expand_as(images))


def contrast(images: Tensor, chance: Chance) -> Tensor:
    """0.3 of the distance to each channel's mean."""
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean) * 0.3 + mean


def spatter(images: Tensor, chance: Chance) -> Tensor:
    """Mud: noise of mean 0.65 and deviation 0.1, blurred by 0.7 pixels, where it is above 0.69; softened by 0.6."""
    n, _, height, width = images.shape
    liquid = filters.gaussian(0.65 + 0.1 * chance.normal(n, 1, height, width), 0.7)
    mud = filters.gaussian((liquid > 0.69).float(), 0.6)
    mud = torch.where(mud < 0.8, 0.0, mud)
    brown = torch.tensor([63.0, 42.0, 20.0]).view(1, 3, 1, 1) / 255
    return images * (1 - mud) + brown * mud


def elastic(images: Tensor, chance: Chance) -> Tensor:
    """An affine map that moves three points by up to 0.05 of the side, then displacements of up to 0.1 of it, smoothed
    by 0.04 of it."""
    n, _, height, width = images.shape
    middle, third = torch.tensor([width // 2, height // 2]).double(), min(height, width) // 3
    corners = middle + third * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
    moved = corners + (2 * chance.uniform(n, 3, 2) - 1) * 0.05 * width
    ones = torch.ones(n, 3, 1, dtype=torch.float64)
    back = torch.linalg.solve(torch.cat([moved, ones], 2), corners.expand(n, 3, 2))  # (n, 3, 2): where to look
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    places = torch.stack([x, y, torch.ones_like(x)], 2).view(1, -1, 3) @ back
    looked = places.float().view(n, height, width, 2)
    warped = filters.resample(images, looked[..., 1], looked[..., 0], symmetric_border=False)
    field = (2 * chance.uniform(n, 2, height, width) - 1).float()
    field = filters.gaussian(field, 0.04 * width, "symmetric", truncate=3.0) * 0.1 * width
    return filters.resample(warped, y.float() + field[:, 1], x.float() + field[:, 0], symmetric_border=True)


def jpeg(images: Tensor, chance: Chance) -> Tensor:
    """Compressed by JPEG at quality 50. Encoders take one image at a time."""
    from PIL import Image

    out = torch.empty_like(images)
    for row, pixels in enumerate((images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=50)
        out[row] = torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1) / 255
    return out


def pixelate(images: Tensor, chance: Chance) -> Tensor:
    """Brought to 0.75 of the side and back, by boxes."""
    for side in (int(0.75 * images.shape[2]), images.shape[2]):
        images = (box := filters.box_matrix(images.shape[2], side)) @ images @ box.T
    return images


def saturate(images: Tensor, chance: Chance) -> Tensor:
    """Twice the saturation in HSV, plus 0.1; what is grey turns towards red, hue 0."""
    value = images.amax(1, keepdim=True)
    spread = value - images.amin(1, keepdim=True)
    raised = (2 * spread / value.clamp_min(1e-6) + 0.1).clamp(max=1)
    away = torch.where(
        spread > 0, (value - images) / spread.clamp_min(1e-6), torch.tensor([0.0, 1, 1]).view(1, 3, 1, 1)
    )
    return value * (1 - raised * away)


def _power_of_two(height: int, width: int) -> int:
    return 1 << (max(height, width) - 1).bit_length()


TYPES: dict[str, tuple[Corruption, ...]] = {
    "type1": (snow, frost, fog, brightness, contrast, spatter, elastic, jpeg, pixelate, saturate),
    "type2": (
        gaussian_noise,
        shot_noise,
        impulse_noise,
        speckle_noise,
        gaussian_blur,
        defocus_blur,
        glass_blur,
        motion_blur,
        zoom_blur,
        original,
    ),
}
"""Of each type the corruption of class 0, 1, ..., 9."""


def corrupt(images: Tensor, which: Tensor, kind: str, seed: int, key: str) -> Tensor:
    """Corrupt every image by one of a type's corruptions.

    Args:
        images: ``(N, 3, H, W)`` uint8 on the CPU.
        which: ``(N,)`` number of the corruption, 0 to 9.
        kind: ``type1`` or ``type2``.
        seed, key: everything random follows from them.

    Returns:
        ``(N, 3, H, W)`` uint8.

    Raises:
        UserError: an unknown type, or images that the constants are not for.
    """
    if kind not in TYPES:
        raise unknown_name("type of corruptions", kind, TYPES)
    _, channels, height, width = images.shape
    if channels != 3 or height != width or not SIDES[0] <= height <= SIDES[1]:
        raise UserError(
            f"Corruptions are for square colour images of {SIDES[0]} to {SIDES[1]} pixels; these are "
            f"{height} x {width} with {channels} channels."
        )
    out = torch.empty_like(images)
    for number, corruption in enumerate(TYPES[kind]):
        chance = Chance(uniform_draws(seed, key, corruption.__name__))
        for rows in (which == number).nonzero()[:, 0].split(_BLOCK):
            found = corruption(images[rows].float() / 255, chance)
            out[rows] = (found * 255).round_().clamp_(0, 255).to(torch.uint8)
    return out
