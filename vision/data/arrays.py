"""Arrays of any common form as uint8 ``(N, C, H, W)`` images and int64 labels."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from recdenoise.errors import UserError

Layout = Literal["NHWC", "NCHW"]
_CHANNELS = (1, 3, 4)
_BLOCK = 4096


def as_tensor(values: Any, what: str) -> Tensor:
    """``values`` as a tensor, or a sentence why not. Raises ``UserError``."""
    if isinstance(values, Tensor):
        return values.detach()
    try:
        array = np.asarray(values)
    except ValueError:
        raise UserError(f"The {what} are not one array: their shapes differ. Bring all images to one size.") from None
    if array.dtype.kind not in "buif":
        kind = "text" if array.dtype.kind in "US" else f"{array.dtype} values"
        hint = "names, labels = numpy.unique(labels, return_inverse=True)" if what != "images" else "uint8 arrays"
        raise UserError(f"The {what} are {kind}; numbers are wanted, for example {hint}.")
    if array.dtype.kind == "u" and array.dtype != np.uint8:  # torch has few operations on these
        array = array.astype(np.int64)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    whole = np.ascontiguousarray(array)
    return torch.from_numpy(whole if whole.flags.writeable else whole.copy())


def channels_first(images: Tensor, layout: Layout | None) -> Tensor:
    """``(N, H, W)``, ``(N, H, W, C)`` or ``(N, C, H, W)`` as ``(N, C, H, W)``.

    Without ``layout``, the axis with 1, 3 or 4 entries is the channels'.

    Raises:
        UserError: another number of axes, or an axis that cannot be told.
    """
    shape = tuple(images.shape)
    if images.ndim == 3:
        return images.unsqueeze(1)
    if images.ndim != 4:
        raise UserError(
            f"The images have shape {shape}; it must be (N, H, W), (N, H, W, C) or (N, C, H, W), with the images "
            "along the first axis."
        )
    if layout is None:
        first, last = shape[1] in _CHANNELS, shape[3] in _CHANNELS
        if first == last:
            raise UserError(
                f"Images of shape {shape}: which axis holds the channels cannot be told. Read them by "
                "vision.data.load(..., layout='NHWC') or layout='NCHW'."
            )
        layout = "NCHW" if first else "NHWC"
    if layout not in ("NHWC", "NCHW"):
        raise UserError(f"The layout is {layout!r}; it must be NHWC or NCHW.")
    return images if layout == "NCHW" else images.permute(0, 3, 1, 2)


def as_images(values: Any, layout: Layout | None = None) -> tuple[Tensor, tuple[str, ...]]:
    """Images as uint8.

    Args:
        values: arrays, tensors or nested lists: whole numbers 0 to 255, or floats 0 to 1, which are rounded to 1/255.
        layout: see :func:`channels_first`.

    Returns:
        ``(N, C, H, W)`` uint8, contiguous; and notes.

    Raises:
        UserError: NaN or infinite pixels, values out of range, a shape that is none of images.
    """
    images = channels_first(as_tensor(values, "images"), layout)
    if 0 in images.shape:
        raise UserError(f"There are no images: the array has shape {tuple(images.shape)}.")
    if images.dtype == torch.uint8:
        return images.contiguous(), ()
    if images.dtype == torch.bool:
        return images.to(torch.uint8).mul_(255).contiguous(), ("Images of true and false became 255 and 0.",)
    out = torch.empty(images.shape, dtype=torch.uint8, device=images.device)
    worst = 0.0
    for start in range(0, len(images), _BLOCK):
        block = images[start : start + _BLOCK]
        if block.is_floating_point():
            worst = max(worst, _quantise(block, start, out[start : start + _BLOCK]))
        else:
            _check_range(block, start, 255, "whole numbers of 0 to 255")
            out[start : start + _BLOCK] = block
    if worst < 1e-6:
        return out, ()
    return out, (f"Float images were rounded to 256 levels; no pixel moved by more than {worst:.4f}.",)


def _quantise(block: Tensor, start: int, out: Tensor) -> float:
    bad = ~torch.isfinite(block)
    if bool(bad.any()):
        row = int(bad.flatten(1).any(1).nonzero()[0])
        raise UserError(
            f"Image {start + row} has {int(bad[row].sum())} pixels that are NaN or infinite; every pixel must be a "
            "number of 0 to 1."
        )
    _check_range(block, start, 1, "floats of 0 to 1 (not normalised: that comes later) or uint8 of 0 to 255")
    scaled = block.double() * 255
    out.copy_(scaled.round())
    return float((scaled - out).abs().max()) / 255


def _check_range(block: Tensor, start: int, highest: int, valid: str) -> None:
    wrong = (block < 0) | (block > highest)
    if bool(wrong.any()):
        row = int(wrong.flatten(1).any(1).nonzero()[0])
        value = block[row][wrong[row]][0].item()
        raise UserError(f"Image {start + row} has a pixel of {value:g}; images must be {valid}.")


def as_labels(values: Any, what: str = "labels") -> Tensor:
    """Labels as ``(N,)`` int64. Raises ``UserError`` for text, fractions, one-hot rows."""
    labels = as_tensor(values, what)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        hint = " One-hot rows become class numbers by argmax(1)." if labels.ndim == 2 else ""
        raise UserError(f"The {what} have shape {tuple(labels.shape)}; give one number for each image.{hint}")
    if labels.is_floating_point():
        wrong = ~torch.isfinite(labels) | (labels != labels.round())
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            raise UserError(f"The {what} must be whole numbers; row {row} is {labels[row].item():g}.")
    return labels.to(torch.int64)


def count_classes(labels: Tensor, n_classes: int | None) -> tuple[int, tuple[str, ...]]:
    """The number of classes, and notes on classes that never occur.

    Raises:
        UserError: fewer than two classes.
    """
    if len(labels) == 0:
        raise UserError("There are no labels.")
    found = labels.unique()
    if n_classes is None:
        if len(found) == 1:
            raise UserError(
                f"All {len(labels)} labels are {int(found[0])}; training needs images of at least two classes."
            )
        n_classes = int(found[-1]) + 1
    if isinstance(n_classes, bool) or not isinstance(n_classes, int) or not 2 <= n_classes < math.inf:
        raise UserError(f"The number of classes is {n_classes!r}; it must be a whole number, 2 or more.")
    if n_classes > 100_000:
        raise UserError(f"The highest label is {n_classes - 1:,}: labels must be class numbers from 0 on.")
    inside = found[(found >= 0) & (found < n_classes)]
    missing = n_classes - len(inside)
    if not missing:
        return n_classes, ()
    absent = torch.ones(n_classes, dtype=torch.bool)
    absent[inside.cpu()] = False
    names = ", ".join(str(int(each)) for each in absent.nonzero()[:5, 0]) + (", ..." if missing > 5 else "")
    return n_classes, (f"{missing} of {n_classes} classes have no image: {names}.",)


def without_labels(given: Any) -> Any:
    """The images of ``(images, labels)``; anything else as it is, two images in a list included."""
    if not isinstance(given, tuple | list) or len(given) != 2:
        return given
    try:
        return given[0] if np.ndim(given[1]) < 2 or np.ndim(given[1]) < np.ndim(given[0]) else given
    except ValueError:  # a nested list whose rows differ: what is wrong with it is said when it is read
        return given


def is_set(given: Any) -> bool:
    """Whether images come with labels: a path or a name, a mapping, a torch data set; not as an array of any kind."""
    if isinstance(given, str | os.PathLike | Mapping):
        return True
    arrays = isinstance(given, Tensor | tuple | list) or hasattr(given, "__array__")
    return not arrays and hasattr(given, "__getitem__") and hasattr(given, "__len__")
