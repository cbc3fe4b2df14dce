"""Aligned and conflicting images of a set whose bias is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from recdenoise.errors import UserError
from vision.data.images import ImageData

BIAS = "bias"
"""The attribute that training may mistake for the class."""


class Attributed(Protocol):
    """Labels and attributes of images."""

    @property
    def labels(self) -> Tensor: ...
    @property
    def attributes(self) -> Mapping[str, Tensor]: ...


def aligned(data: Attributed) -> Tensor:
    """``(N,)`` true where the bias of an image is its class's own number.

    Raises:
        UserError: the images have no attribute ``bias``.
    """
    if BIAS not in data.attributes:
        raise UserError("These images have no attribute 'bias': give attributes={'bias': one whole number an image}.")
    return data.attributes[BIAS] == data.labels


def parts(data: ImageData) -> dict[str, ImageData]:
    """``aligned`` and ``conflicting`` images of a set with a bias; nothing where there is none, or only one kind."""
    if BIAS not in data.attributes:
        return {}
    same = aligned(data)
    if bool(same.all()) or not bool(same.any()):
        return {}
    rows = {"aligned": same, "conflicting": ~same}
    return {name: data.subset(chosen.nonzero()[:, 0].cpu()) for name, chosen in rows.items()}


def group_accuracies(correct: Tensor, labels: Tensor, bias: Tensor) -> Tensor:
    """Accuracy of every pair of class and bias that occurs: ``(number of pairs,)`` float64, on the CPU.

    Their mean is the accuracy on a test set with as many images of every pair, whatever the numbers here: the unbiased
    accuracy of LfF (Nam et al., 2020).

    Args:
        correct: ``(n,)`` whether the prediction is the label.
        labels, bias: ``(n,)`` int64.
    """
    pairs = torch.stack([labels.cpu(), bias.cpu()], 1)
    _, group = pairs.unique(dim=0, return_inverse=True)
    right = torch.bincount(group, weights=correct.cpu().double())  # on a GPU weights have no deterministic form
    return right / torch.bincount(group)
