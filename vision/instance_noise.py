"""Noise that depends on the image: some images are mislabelled more than others, and towards classes of their own.

Source: Xia et al., Part-dependent Label Noise, NeurIPS 2020, Algorithm 2, in the form that PES and its successors use.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import special
from torch import Tensor

from recdenoise.errors import UserError
from recdenoise.noise import uniform_draws
from vision.data.images import ImageData, LazyImages

SPREAD = 0.1
"""Standard deviation of the rates of single images."""
_BLOCK = 2048


def flip_rates(n: int, rate: float, seed: int) -> np.ndarray:
    """``(n,)`` rates from a normal distribution around ``rate``, cut off at 0 and 1.

    Where the cut takes much away, at rates below .2, their mean lies above ``rate``.
    """
    low, high = special.ndtr((0 - rate) / SPREAD), special.ndtr((1 - rate) / SPREAD)
    uniform = uniform_draws(seed, "labels", "instance", "rates")(n)
    return np.clip(rate + SPREAD * special.ndtri(low + uniform * (high - low)), 0, 1)


def instance_noise(
    images: Tensor | LazyImages, labels: Tensor, n_classes: int, rate: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Draw a label for every image.

    An image x of class i with rate q keeps its label with probability 1 - q; the others share q by a softmax of x W_i,
    W_i a random normal ``(pixels, C)`` matrix, the own class left out. Pixels are normalised by channel, as in PES.

    Args:
        images: ``(N, C, H, W)`` uint8.
        labels: ``(N,)`` int64 on the CPU.
        n_classes: number of classes.
        rate: mean of the images' rates, before the cut.
        seed: everything follows from it.

    Returns:
        ``(N,)`` labels, and the ``(C, C)`` float64 mean probabilities of each class.

    Raises:
        UserError: no image for some label.
    """
    if len(images) != len(labels):
        raise UserError(f"There are {len(images)} images for {len(labels)} labels.")
    data = ImageData(images, labels.to(images.device), n_classes)
    mean, deviation = (torch.tensor(each).view(1, -1, 1, 1) for each in data.statistics())
    rates = flip_rates(len(labels), rate, seed)
    uniform = uniform_draws(seed, "labels", "instance", "classes")(len(labels))
    noisy, transition = labels.numpy().copy(), np.eye(n_classes)
    pixels = int(np.prod(images.shape[1:]))
    for own in range(n_classes):
        rows = np.flatnonzero(labels.numpy() == own)
        if not len(rows):
            continue
        normal = special.ndtri(
            np.maximum(uniform_draws(seed, "labels", "instance", "matrix", own)(pixels * n_classes), 2.0**-54)
        )
        weights = torch.from_numpy(normal.astype(np.float32)).view(pixels, n_classes)
        total = np.zeros(n_classes)
        for start in range(0, len(rows), _BLOCK):
            part = rows[start : start + _BLOCK]
            batch = next(data.batches([torch.from_numpy(part)])).cpu()
            scores = ((batch.float() / 255 - mean) / deviation).flatten(1) @ weights
            chances = _probabilities(scores, own, rates[part])
            drawn = (chances.cumsum(1) <= uniform[part][:, None]).sum(1)
            noisy[part] = np.minimum(drawn, n_classes - 1)
            total += chances.sum(0)
        transition[own] = total / len(rows)
    return torch.from_numpy(noisy), torch.from_numpy(transition)


def _probabilities(scores: Tensor, own: int, rates: np.ndarray) -> np.ndarray:
    """``(b, C)`` chances of every label, from ``(b, C)`` scores and ``(b,)`` rates."""
    scores[:, own] = -torch.inf
    chances = scores.double().softmax(1).numpy() * rates[:, None]
    chances[:, own] = 1 - rates
    return chances
