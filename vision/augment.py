"""Whole-batch augmentation where the images are: every image gets draws of its own, and no image is touched alone.

Order, as in the usual pipelines: padding and cropping, flipping, a policy (AutoAugment and its kin), normalisation,
cutout. All draws come from the generator that is handed in: the same generator state gives the same batch, and a second
view is a second call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional

from recdenoise.errors import UserError, unknown_name
from recdenoise.options import require
from vision.policies import POLICIES, Policy, PolicyTable, policy_table

if TYPE_CHECKING:
    from vision.data import ImageData

NO_FLIP = frozenset({"mnist", "framed-mnist", "colored-mnist"})
"""Data sets whose images mean something else in a mirror."""


@dataclass(frozen=True)
class Draws:
    """What was drawn for a batch of n images: ``(n,)`` each, or ``None`` where the option is off.

    Attributes:
        top, left: corner of the crop in the padded image.
        flip: mirrored or not.
        hole_y, hole_x: centre of the hole, anywhere in the image.
        policy: which operations of the policy, how strong.
    """

    top: Tensor | None = None
    left: Tensor | None = None
    flip: Tensor | None = None
    hole_y: Tensor | None = None
    hole_x: Tensor | None = None
    policy: Policy | None = None

    def of(self, share: slice) -> Draws:
        """The draws of some images of the batch."""

        def cut(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[share]

        policy = self.policy
        part = None if policy is None else Policy(policy.code[:, share], policy.strength[:, share])
        return Draws(cut(self.top), cut(self.left), cut(self.flip), cut(self.hole_y), cut(self.hole_x), part)


@dataclass(frozen=True)
class Augment:
    """From uint8 images to normalised floats, augmented while training.

    Raises:
        UserError: an option out of range.
    """

    mean: tuple[float, ...]
    """Of each channel, on the scale 0 to 1."""
    std: tuple[float, ...]
    """Of each channel, on the scale 0 to 1."""
    crop_pad: int = 4
    """Pixels added on every side before a crop of the first size; 0 leaves cropping out."""
    flip: bool = True
    """Mirror every second image, left to right."""
    cutout: int = 0
    """Side of a square that becomes the mean, its centre anywhere in the image (DeVries & Taylor, 2017); 0 is none."""
    policy: str | None = None
    """``autoaugment`` (the CIFAR-10 policy), ``autoaugment-imagenet``, ``autoaugment-svhn``, ``randaugment``,
    ``trivialaugment``."""
    pad_mode: Literal["zeros", "reflect"] = "zeros"
    """Black borders, as usual, or mirrored ones."""
    num_ops: int = 2
    """Operations in a row, for ``randaugment``."""
    magnitude: int = 9
    """Strength, 0 to 30, for ``randaugment``."""
    frame: int = 0
    """Pixels on every side that stay as they are: only what is inside is moved, cut out or otherwise augmented."""

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise UserError(f"mean has {len(self.mean)} values and std {len(self.std)}; give one for each channel.")
        require(all(value > 0 for value in self.std), "std", self.std, "above 0")
        require(self.crop_pad >= 0, "crop_pad", self.crop_pad, "0 or more")
        require(self.cutout >= 0, "cutout", self.cutout, "0 or more")
        require(self.frame >= 0, "frame", self.frame, "0 or more")
        require(self.pad_mode in ("zeros", "reflect"), "pad_mode", self.pad_mode, "zeros or reflect")
        require(self.num_ops >= 1, "num_ops", self.num_ops, "1 or more")
        require(0 <= self.magnitude <= 30, "magnitude", self.magnitude, "0 to 30")
        if self.policy is not None and self.policy not in POLICIES:
            raise unknown_name("augmentation policy", self.policy, POLICIES)
        if self.policy is not None and len(self.mean) not in (1, 3):
            raise UserError(f"Augmentation policies are for images of 1 or 3 channels; these have {len(self.mean)}.")

    @classmethod
    def for_data(
        cls,
        data: ImageData,
        *,
        crop_pad: int = 4,
        flip: bool | None = None,
        cutout: int = 0,
        policy: str | None = None,
        pad_mode: Literal["zeros", "reflect"] = "zeros",
    ) -> Augment:
        """With the mean and deviation of ``data``; ``flip=None`` mirrors unless the images are digits."""
        mean, std = data.statistics()
        mirrored = data.name.partition(":")[0] not in NO_FLIP if flip is None else flip
        return cls(
            mean,
            std,
            crop_pad=crop_pad,
            flip=mirrored,
            cutout=cutout,
            policy=policy,
            pad_mode=pad_mode,
            frame=data.frame,
        )

    def __call__(self, images: Tensor, generator: torch.Generator, train: bool = True) -> Tensor:
        """Augment a batch, or only normalise it.

        Args:
            images: ``(n, C, H, W)`` uint8.
            generator: source of all draws, on the CPU or on the images' device. Not touched unless ``train``.
            train: whether to augment.

        Returns:
            ``(n, C, H, W)`` float32 on the same device.
        """
        return self.part(images, generator, train, len(images), slice(0, len(images)))

    def part(self, images: Tensor, generator: torch.Generator, train: bool, n: int, share: slice) -> Tensor:
        """As the whole batch of ``n``, of which ``images`` are the ``share``: the draws are those of the whole."""
        self._check(images)
        draws = self.draw(n, images.shape[2], images.shape[3], generator) if train else Draws()
        return self.apply(images, draws if len(images) == n else draws.of(share))

    def masked(
        self, images: Tensor, masks: Tensor, generator: torch.Generator, train: bool, n: int, share: slice
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`part`, with masks that are cropped, mirrored and warped as their images are.

        Args:
            images: ``(m, C, H, W)`` uint8.
            masks: ``(m, 1, H, W)`` uint8; 255 becomes 1. What comes in from outside an image is 0.
            generator, train, n, share: as for :meth:`part`.

        Returns:
            ``(m, C, H, W)`` and ``(m, 1, H, W)`` float32.
        """
        self._check(images)
        draws = self.draw(n, images.shape[2], images.shape[3], generator) if train else Draws()
        mine, edge = draws if len(images) == n else draws.of(share), self.frame
        moved, height, width = masks.clone() if edge else masks, masks.shape[2], masks.shape[3]
        within = (..., slice(edge, height - edge), slice(edge, width - edge))
        inner = self._moved(masks[within], mine)
        if mine.policy is not None:
            inner = self._table(*inner.shape[2:]).apply(inner, mine.policy.geometric())
        if edge:
            moved[within] = inner
        else:
            moved = inner
        return self.apply(images, mine), moved.to(torch.float32).div_(255)

    def _check(self, images: Tensor) -> None:
        if images.ndim != 4 or images.dtype != torch.uint8 or images.shape[1] != len(self.mean):
            raise UserError(
                f"A batch to augment must be uint8 (n, {len(self.mean)}, H, W), as many channels as means; it is "
                f"{images.dtype} {tuple(images.shape)}."
            )

    def draw(self, n: int, height: int, width: int, generator: torch.Generator) -> Draws:
        """Draw for n images of one size; the same options take the same number of draws, whatever comes out."""
        device, height, width = generator.device, height - 2 * self.frame, width - 2 * self.frame

        def whole(below: int) -> Tensor:
            return torch.randint(0, below, (n,), generator=generator, device=device)

        crop, cut = self.crop_pad > 0, self.cutout > 0
        return Draws(
            top=whole(2 * self.crop_pad + 1) if crop else None,
            left=whole(2 * self.crop_pad + 1) if crop else None,
            flip=whole(2).bool() if self.flip else None,
            hole_y=whole(height) if cut else None,
            hole_x=whole(width) if cut else None,
            policy=self._table(height, width).draw(n, generator) if self.policy else None,
        )

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """Carry out ``draws`` on ``(n, C, H, W)`` uint8 images: float32, normalised."""
        if not self.frame:
            return self._apply(images, draws)
        floats, edge = self._apply(images, Draws()), self.frame
        if any(value is not None for value in vars(draws).values()):
            within = (..., slice(edge, images.shape[2] - edge), slice(edge, images.shape[3] - edge))
            floats[within] = self._apply(images[within], draws)
        return floats

    def _apply(self, images: Tensor, draws: Draws) -> Tensor:
        """As :meth:`apply`, for images of which everything is content."""
        images = self._moved(images, draws)
        if draws.policy is not None:
            images = self._table(images.shape[2], images.shape[3]).apply(images, draws.policy)
        shift, scale = _scale(self.mean, self.std, images.device)
        floats = images.to(torch.float32).sub_(shift).mul_(scale)
        if draws.hole_y is not None and draws.hole_x is not None:
            floats.masked_fill_(holes(floats, draws.hole_y, draws.hole_x, self.cutout), 0.0)
        return floats

    def _moved(self, images: Tensor, draws: Draws) -> Tensor:
        """Cropped and mirrored, still uint8."""
        if draws.top is not None and draws.left is not None:
            images = crop(images, draws.top, draws.left, self.crop_pad, self.pad_mode)
        if draws.flip is not None:
            images = torch.where(_column(draws.flip, images), images.flip(3), images)
        return images

    def _table(self, height: int, width: int) -> PolicyTable:
        return policy_table(self.policy or "", height, width, self.num_ops, self.magnitude)


def crop(images: Tensor, top: Tensor, left: Tensor, pad: int, mode: str = "zeros") -> Tensor:
    """Pad every side by ``pad`` and cut the first size out again, from corner ``(top, left)`` of ``(n,)`` each."""
    height, width = images.shape[2:]
    if mode == "zeros":
        padded = functional.pad(images, (pad, pad, pad, pad))
    else:
        rows, columns = (_mirrored(side, pad, images.device) for side in (height, width))
        padded = images.index_select(2, rows).index_select(3, columns)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (n, C, 2 pad + 1, 2 pad + 1, H, W), not copied
    each = torch.arange(len(images), device=images.device)
    return windows[each, :, top.to(images.device), left.to(images.device)]


def holes(images: Tensor, y: Tensor, x: Tensor, side: int) -> Tensor:
    """``(n, 1, H, W)`` true inside the square of ``side`` pixels around ``(y, x)``, as far as it is in the image."""

    def near(centre: Tensor, size: int) -> Tensor:
        first = centre.to(images.device).unsqueeze(1) - side // 2
        place = torch.arange(size, device=images.device)
        return (place >= first) & (place < first + side)

    rows, columns = near(y, images.shape[2]), near(x, images.shape[3])
    return (rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1)


def _mirrored(side: int, pad: int, device: torch.device) -> Tensor:
    """Row numbers of a padded image; the border itself is not repeated."""
    if pad >= side:
        raise UserError(f"Images of side {side} cannot be mirrored {pad} pixels outwards; lower crop_pad.")
    place = torch.arange(-pad, side + pad, device=device).abs()
    return torch.where(place < side, place, 2 * (side - 1) - place)


def _column(values: Tensor, images: Tensor) -> Tensor:
    return values.to(images.device).view(-1, 1, 1, 1)


@lru_cache(maxsize=32)
def _scale(mean: Sequence[float], std: Sequence[float], device: torch.device) -> tuple[Tensor, Tensor]:
    """What to subtract from, then multiply values of 0 to 255 by: ``(1, C, 1, 1)`` each."""
    shift = torch.tensor(mean, dtype=torch.float64).mul(255)
    scale = 1 / torch.tensor(std, dtype=torch.float64).mul(255)
    shape = (1, -1, 1, 1)
    return shift.float().view(shape).to(device), scale.float().view(shape).to(device)
