"""Masks of contents on disk: an image file of masks for every image file, or arrays beside the images' arrays."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recdenoise.errors import UserError
from vision.data.arrays import as_tensor

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm")
"""Endings that a mask's file may have, in the order in which they are tried."""


def mask_files(folder: Path, base: Path, split: str, paths: Sequence[Path]) -> list[Path]:
    """The mask of every image file: at the same place below ``folder``, or below ``folder/split``, whatever its ending.

    Args:
        folder: of masks.
        base: folder that the image files are below.
        split: ``train``, ``test`` or another part.
        paths: of the image files.

    Raises:
        UserError: an image without a mask; both files are named.
    """
    below = folder / split if (folder / split).is_dir() else folder
    listed: dict[Path, set[str]] = {}

    def found(path: Path) -> Path:
        place = below / path.relative_to(base)
        if place.parent not in listed:
            names = os.listdir(place.parent) if place.parent.is_dir() else []
            listed[place.parent] = set(names)
        for ending in ENDINGS:
            if place.stem + ending in listed[place.parent]:
                return place.with_name(place.stem + ending)
        raise UserError(f"There is no mask {place.with_suffix('.png')} for the image {path}.")

    return [found(path) for path in paths]


def check_sizes(masks: Sequence[Path], sizes: Sequence[Any], images: Sequence[Path], wanted: Sequence[Any]) -> None:
    """Refuse a mask of another size than its image; sizes are ``(height, width)``. Raises ``UserError``."""
    for mask, size, image, of_image in zip(masks, sizes, images, wanted, strict=True):
        if size != of_image:
            raise UserError(
                f"The mask {mask} is {size[0]} x {size[1]} and its image {image} {of_image[0]} x {of_image[1]}; they "
                "must be of one size."
            )


def as_masks(given: Any, shape: torch.Size | tuple[int, ...], split: str = "train") -> Tensor:
    """Masks in any form as ``(N, 1, H, W)`` uint8, 255 on the content.

    Args:
        given: ``(N, H, W)`` or ``(N, 1, H, W)``: booleans, shares of 0 to 1, 0 and 1, or 0 to 255; or the path of an
            ``.npz`` that holds them as ``masks_train``, ``masks_test`` and so on, ``masks`` standing for ``train``.
        shape: ``(N, C, H, W)`` of the images.
        split: which part of an ``.npz``.

    Raises:
        UserError: a file without them, another shape, or other numbers.
    """
    what = "The masks"
    if isinstance(given, str | os.PathLike):
        path = Path(given)
        given, what = _array(path, split), f"The masks of {path}"
    masks = as_tensor(given, "masks")
    n, _, height, width = shape
    if tuple(masks.shape) not in ((n, height, width), (n, 1, height, width)):
        raise UserError(
            f"{what} have shape {tuple(masks.shape)}; {n} images of {height} x {width} need ({n}, {height}, {width})."
        )
    low, high = (float(masks.min()), float(masks.max())) if masks.numel() else (0.0, 0.0)
    whole = not masks.is_floating_point()
    if low < 0 or high > (255 if whole else 1):
        raise UserError(f"{what} hold numbers from {low:g} to {high:g}; they must be 0 to 1, or whole numbers to 255.")
    scaled = masks.to(torch.float32) * 255 if high <= 1 else masks
    return scaled.round().to(torch.uint8).view(n, 1, height, width)


def _array(path: Path, split: str) -> np.ndarray:
    keys = (f"masks_{split}", f"{split}_masks", *(("masks",) if split == "train" else ()))
    if not path.is_file():
        raise UserError(f"There is no file or folder {path} with masks.")
    try:
        with np.load(path, allow_pickle=False) as found:
            names = list(found)
            for key in keys:
                if key in found:
                    return np.asarray(found[key])
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is no readable .npz of masks: {error}.") from error
    raise UserError(f"{path} has no array {keys[0]}; it has {', '.join(names) or 'none'}.")
