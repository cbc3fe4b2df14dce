"""Data sets whose bias follows the class (Nam et al., 2020): Colored MNIST, Corrupted CIFAR-10.

Of every class, a share of the training images (0.95, 0.98, 0.99, 0.995 in the paper) has the class's own bias, its
colour or corruption; the others have every other value equally often. In a test all values are equally frequent.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from recdenoise.errors import UserError
from recdenoise.noise import uniform_draws
from vision.data.corruptions import corrupt
from vision.data.images import ImageData

COLOURS = (
    (1.0, 0.0, 0.0),
    (0.0, 1.0, 0.0),
    (0.0, 0.0, 1.0),
    (0.9, 0.9, 0.0),
    (0.9, 0.0, 0.9),
    (0.0, 0.9, 0.9),
    (1.0, 0.5, 0.0),
    (0.5, 0.0, 1.0),
    (0.0, 0.5, 0.25),
    (0.6, 0.6, 0.6),
)
"""RGB of class 0 to 9: red, green, blue, yellow, magenta, cyan, orange, violet, dark green, grey. LfF publishes its ten
colours as numbers in a binary file, not in the paper; these are other ones."""
JITTER = (0.05, 0.02, 0.01, 0.005, 0.002)
"""Standard deviation of an image's colour at severity 1 to 5, in every channel; the tables were made with 4."""
_BLOCK = 4096


def ratio(text: str) -> float:
    """The share of bias-aligned images from its text. Raises ``UserError`` unless it is above 0 and at most 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise UserError(
            f"The share of bias-aligned images is {text!r}; it must be above 0 and at most 1, such as 0.99."
        )
    return value


def assign(labels: Tensor, n_classes: int, share: float, seed: int, key: str) -> Tensor:
    """A value of the bias for every image.

    Args:
        labels: ``(N,)`` int64.
        n_classes: number of classes, and of values of the bias.
        share: of each class's images with the class's own number, to the nearest whole image. The others get the other
            numbers equally often, to within one.
        seed, key: which images these are follows from them.

    Returns:
        ``(N,)`` int64, 0 to ``n_classes - 1``, on the CPU.
    """
    known = labels.cpu().numpy()
    order = np.argsort(uniform_draws(seed, "bias", key)(len(known)), kind="stable")
    bias = np.empty(len(known), dtype=np.int64)
    for label in range(n_classes):
        rows = order[known[order] == label]
        own = int(share * len(rows) + 0.5)
        bias[rows[:own]] = label
        # Each class begins with the number after its own, so that what is left over is not always the same value's.
        bias[rows[own:]] = (label + 1 + np.arange(len(rows) - own) % (n_classes - 1)) % n_classes
    return torch.from_numpy(bias)


def _labels(data: ImageData) -> Tensor:
    return data.labels if data.true_labels is None else data.true_labels


def _share(data: ImageData, share: float, split: str) -> float:
    return share if split == "train" else 1 / data.n_classes


def _in_memory(data: ImageData, what: str, channels: int, most: int) -> Tensor:
    if not isinstance(data.images, Tensor) or data.shape[0] != channels or data.n_classes > most:
        colour = "grey" if channels == 1 else "colour"
        raise UserError(
            f"{what} are made from {colour} images in memory, of up to {most} classes; {data.name or 'these'} have "
            f"{data.shape[0]} channels and {data.n_classes} classes."
        )
    return data.images.cpu()


def colored(data: ImageData, share: float, split: str = "train", *, seed: int = 0, severity: int = 4) -> ImageData:
    """Grey images, white on black, each in a colour that follows its class.

    Args:
        data: ``(N, 1, H, W)`` images of up to ten classes.
        share: of bias-aligned images in ``train``; all other parts have every colour equally often.
        split: the part's name.
        seed: which images conflict, and their colours' jitter.
        severity: 1 to 5, the strength of the bias: an image's colour is its value of :data:`COLOURS` plus normal
            noise of :data:`JITTER`, the smaller the higher, clipped to 0 to 1.

    Returns:
        ``(N, 3, H, W)`` images with the attribute ``bias``: the colour's number.

    Raises:
        UserError: images that are not so, or a severity out of range.
    """
    if not 1 <= severity <= len(JITTER):
        raise UserError(f"The severity is {severity}; it must be 1 to {len(JITTER)}.")
    images = _in_memory(data, "Colored images", 1, len(COLOURS))
    bias = assign(_labels(data), data.n_classes, _share(data, share, split), seed, split)
    noise = ndtri(np.maximum(uniform_draws(seed, "colours", split)(3 * len(data)), 1e-16)).reshape(-1, 3)
    colour = torch.tensor(COLOURS, dtype=torch.float64)[bias] + JITTER[severity - 1] * torch.from_numpy(noise)
    colour = colour.clamp_(0, 1).float().view(-1, 3, 1, 1)
    out = torch.empty((len(data), 3, *data.shape[1:]), dtype=torch.uint8)
    for start in range(0, len(data), _BLOCK):
        rows = slice(start, start + _BLOCK)
        out[rows] = (images[rows] * colour[rows]).round_().to(torch.uint8)
    return _with_bias(data, out, bias)


def corrupted(data: ImageData, kind: str, share: float, split: str = "train", *, seed: int = 0) -> ImageData:
    """Colour images, each with a corruption that follows its class; see :mod:`vision.data.corruptions`.

    Args:
        data: ``(N, 3, H, W)`` images of up to ten classes.
        kind: ``type1`` or ``type2``.
        share: of bias-aligned images in ``train``; all other parts have every corruption equally often.
        split: the part's name.
        seed: which images conflict, and everything random in the corruptions.

    Returns:
        As many images with the attribute ``bias``: the corruption's number.

    Raises:
        UserError: images that are not so, or an unknown type.
    """
    images = _in_memory(data, "Corrupted images", 3, 10)
    bias = assign(_labels(data), data.n_classes, _share(data, share, split), seed, split)
    return _with_bias(data, corrupt(images, bias, kind, seed, f"corruptions of {split}"), bias)


def _with_bias(data: ImageData, images: Tensor, bias: Tensor) -> ImageData:
    attributes = {**data.attributes, "bias": bias.to(data.labels.device)}
    return dataclasses.replace(data, images=images.to(data.device), attributes=attributes)
