"""AutoAugment, RandAugment and TrivialAugment with draws of their own for every image of a batch.

``torchvision.transforms.v2`` draws once for a whole batch. Here its tables of operations and strengths are drawn from
for every image; images that got the same operation are then transformed together, each by its own strength. Results are
those of the v2 functions on single images; where a value is cut to a whole level, rounding may shift it by one.

References: Cubuk et al., AutoAugment, CVPR 2019; Cubuk et al., RandAugment, NeurIPS 2020; Müller & Hutter,
TrivialAugment, ICCV 2021.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

POLICIES = ("autoaugment", "autoaugment-imagenet", "autoaugment-svhn", "randaugment", "trivialaugment")
"""Names of the policies."""
_GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
OPERATIONS = (
    "Identity",
    *_GEOMETRIC,
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
    "Invert",
)
"""Names of operations, by code. The geometric ones are neighbours: they run together."""
_STRENGTHS = 31
"""Levels of strength of RandAugment and TrivialAugment."""


@dataclass(frozen=True)
class Policy:
    """Operations in a row for n images.

    Attributes:
        code: ``(slots, n)`` place in :data:`OPERATIONS`.
        strength: ``(slots, n)`` float64, the signed magnitude on torchvision's scale.
    """

    code: Tensor
    strength: Tensor

    def geometric(self) -> Policy:
        """The operations that move pixels alone, for what moves with the images: masks."""
        return Policy(torch.where(self.code <= len(_GEOMETRIC), self.code, torch.zeros_like(self.code)), self.strength)


@dataclass(frozen=True)
class PolicyTable:
    """What a policy may draw for images of one size.

    Attributes:
        code, chance, strength, signed: ``(choices, slots)``: operation, probability to apply it, strength, and whether
            the strength's sign is drawn.
        together: one choice fills all slots, as in AutoAugment; otherwise each slot has a choice of its own.
        slots: operations in a row.
    """

    code: Tensor
    chance: Tensor
    strength: Tensor
    signed: Tensor
    together: bool
    slots: int

    def draw(self, n: int, generator: torch.Generator) -> Policy:
        """Draw for n images, on the generator's device."""
        device = generator.device
        shape = (1 if self.together else self.slots, n)
        choice = torch.randint(0, len(self.code), shape, generator=generator, device=device).expand(self.slots, n)
        applied = torch.rand((self.slots, n), generator=generator, device=device)
        negative = torch.randint(0, 2, (self.slots, n), generator=generator, device=device).bool()
        slot = torch.arange(self.slots, device=device).unsqueeze(1) % self.code.shape[1]
        code, chance, strength, signed = (
            each.to(device)[choice, slot] for each in (self.code, self.chance, self.strength, self.signed)
        )
        return Policy(
            torch.where(applied < chance, code, torch.zeros_like(code)),
            torch.where(signed & negative, -strength, strength),
        )

    def apply(self, images: Tensor, policy: Policy) -> Tensor:
        """Transform ``(n, C, H, W)`` uint8 images, slot after slot."""
        for code, strength in zip(policy.code, policy.strength, strict=True):
            images = transform(images, code, strength)
        return images


def transform(images: Tensor, code: Tensor, strength: Tensor) -> Tensor:
    """Apply one operation to each image.

    Args:
        images: ``(n, C, H, W)`` uint8.
        code: ``(n,)`` places in :data:`OPERATIONS`.
        strength: ``(n,)`` float64 magnitudes.
    """
    order = code.argsort(stable=True)
    counts = torch.bincount(code, minlength=len(OPERATIONS)).tolist()  # the one thing that has to leave the device
    order, strength, code = (each.to(images.device) for each in (order, strength[order], code[order]))
    batch = images.index_select(0, order)
    start = counts[0]
    moved = sum(counts[1 : 1 + len(_GEOMETRIC)])
    if moved:
        part = slice(start, start + moved)
        batch[part] = warp(batch[part], code[part], strength[part])
        start += moved
    for name, count in zip(OPERATIONS[1 + len(_GEOMETRIC) :], counts[1 + len(_GEOMETRIC) :], strict=True):
        if count:
            part = slice(start, start + count)
            batch[part] = _COLOURS[name](batch[part], strength[part].view(-1, 1, 1, 1))
            start += count
    return torch.empty_like(batch).index_copy_(0, order, batch)


def warp(images: Tensor, code: Tensor, strength: Tensor) -> Tensor:
    """Shear, translate or rotate, to the nearest pixel, black where nothing was."""
    height, width = images.shape[2:]
    one, zero = torch.ones_like(strength), torch.zeros_like(strength)
    turn = torch.deg2rad(strength) * (code == 5)
    shift = strength.trunc()
    # Source coordinates, from the centre: x' = a x + b y + c, y' = d x + e y + f. Shearing keeps the upper left corner.
    a = e = turn.cos()
    b = torch.where(code == 1, strength, -turn.sin())
    d = torch.where(code == 2, strength, turn.sin())
    c = torch.where(code == 1, strength * height / 2, torch.where(code == 3, -shift, zero))
    f = torch.where(code == 2, strength * width / 2, torch.where(code == 4, -shift, zero))
    rows = [torch.stack(row, 1) * (2 / side) for row, side in (((a, b, c), width), ((d, e, f), height))]
    theta = torch.stack(rows, 2).float()  # (n, 3, 2)
    x = torch.linspace((1 - width) / 2, (width - 1) / 2, width, device=images.device)
    y = torch.linspace((1 - height) / 2, (height - 1) / 2, height, device=images.device)
    base = torch.stack(
        [x.expand(height, width), y.unsqueeze(1).expand(height, width), one.new_ones(()).float().expand(height, width)],
        2,
    )
    grid = (base.view(-1, 3) @ theta).view(len(images), height, width, 2)
    moved = functional.grid_sample(images.float(), grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return moved.round_().to(torch.uint8)


def _blend(images: Tensor, other: Tensor | float, strength: Tensor) -> Tensor:
    """``factor * images + (1 - factor) * other`` with ``factor = 1 + strength``, cut to 0..255 and truncated."""
    factor, rest = (1 + strength).float(), (-strength).float()
    return (images * factor + other * rest).clamp_(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """Luminance in whole levels, ``(n, 1, H, W)`` float."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images[:, :3].float().unbind(1)
    return (red * 0.2989 + green * 0.587 + blue * 0.114).floor_().unsqueeze(1)


def _colour(images: Tensor, strength: Tensor) -> Tensor:
    return images if images.shape[1] == 1 else _blend(images, _grey(images), strength)


def _contrast(images: Tensor, strength: Tensor) -> Tensor:
    return _blend(images, _grey(images).mean((1, 2, 3), keepdim=True), strength)


def _sharpness(images: Tensor, strength: Tensor) -> Tensor:
    if min(images.shape[2:]) <= 2:
        return images
    channels = images.shape[1]
    kernel = torch.full((3, 3), 1 / 13, device=images.device)
    kernel[1, 1] = 5 / 13
    smooth = functional.conv2d(images.float(), kernel.expand(channels, 1, 3, 3), groups=channels).round_()
    out = images.clone()
    inner = images[..., 1:-1, 1:-1].float()
    out[..., 1:-1, 1:-1] = (inner + (smooth - inner) * -strength.float()).clamp_(0, 255).to(torch.uint8)
    return out


def _posterize(images: Tensor, strength: Tensor) -> Tensor:
    step = torch.exp2(8 - strength.trunc()).to(torch.int16)
    return (images - images % step).to(torch.uint8)


def _solarize(images: Tensor, strength: Tensor) -> Tensor:
    return torch.where(images >= (255 * strength).float(), 255 - images, images)


def _unscaled(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """An operation of torchvision without a strength: it treats every image of a batch by itself."""

    def run(images: Tensor, strength: Tensor) -> Tensor:
        from torchvision.transforms.v2 import functional as v2

        return getattr(v2, name)(images)

    return run


_COLOURS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Brightness": lambda images, strength: _blend(images, 0.0, strength),
    "Color": _colour,
    "Contrast": _contrast,
    "Sharpness": _sharpness,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "AutoContrast": _unscaled("autocontrast"),
    "Equalize": _unscaled("equalize"),
    "Invert": lambda images, strength: 255 - images,
}


@lru_cache(maxsize=32)
def policy_table(name: str, height: int, width: int, num_ops: int = 2, magnitude: int = 9) -> PolicyTable:
    """A policy's choices for images of one size, from torchvision's tables."""
    from torchvision.transforms import v2

    if name.startswith("autoaugment"):
        kind = v2.AutoAugmentPolicy(name.partition("-")[2] or "cifar10")
        chosen = v2.AutoAugment(kind)
        entries = [
            [_entry(chosen, op, chance, level, 10, height, width) for op, chance, level in each]
            for each in chosen._policies
        ]
        return _table(entries, together=True, slots=2)
    if name == "randaugment":
        space = v2.RandAugment
        entries = [[_entry(space, op, 1.0, magnitude, _STRENGTHS, height, width)] for op in space._AUGMENTATION_SPACE]
        return _table(entries, together=False, slots=num_ops)
    space = v2.TrivialAugmentWide
    entries = [
        [_entry(space, op, 1.0, level, _STRENGTHS, height, width)]
        for op in space._AUGMENTATION_SPACE
        for level in range(_STRENGTHS)
    ]
    return _table(entries, together=False, slots=1)


Entry = tuple[int, float, float, bool]


def _entry(space: Any, op: str, chance: float, level: int | None, levels: int, height: int, width: int) -> Entry:
    strengths, signed = space._AUGMENTATION_SPACE[op]
    values = strengths(levels, height, width)
    strength = 0.0 if values is None or level is None else float(values[level])
    return OPERATIONS.index(op), chance, strength, bool(signed)


def _table(entries: list[list[Entry]], together: bool, slots: int) -> PolicyTable:
    code, chance, strength, signed = (
        torch.tensor([[entry[place] for entry in row] for row in entries], dtype=kind)
        for place, kind in enumerate((torch.int64, torch.float32, torch.float64, torch.bool))
    )
    return PolicyTable(code, chance, strength, signed, together, slots)
