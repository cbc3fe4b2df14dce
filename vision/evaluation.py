"""Accuracy and loss of a scorer on held-out images."""

from __future__ import annotations

import torch
from torch import Tensor

from recdenoise import objectives
from recdenoise.errors import unknown_name
from recdenoise.task import Call
from vision.data.bias import BIAS, group_accuracies
from vision.task import Images, ImageTask

VALUES = ("accuracy", "loss")


def measure(logits: Tensor, labels: Tensor, bias: Tensor | None = None) -> dict[str, float]:
    """Accuracy (share, 0 to 1) and mean cross-entropy of ``(n, C)`` logits against ``(n,)`` labels.

    With the ``(n,)`` ``bias`` of the images also ``unbiased_accuracy``, the mean over all pairs of class and bias of
    the accuracy on a pair, and ``worst_group_accuracy``, the least of these.
    """
    correct = logits.argmax(1) == labels
    loss = objectives.classification_loss(logits.double(), labels).mean().item()
    found = {"accuracy": correct.double().mean().item(), "loss": loss}
    if bias is not None:
        groups = group_accuracies(correct, labels, bias)
        found |= {"unbiased_accuracy": groups.mean().item(), "worst_group_accuracy": groups.min().item()}
    return found


def bias_of(data: Images) -> Tensor | None:
    """The bias of every image, where it is known."""
    return data.attributes.get(BIAS)


class Held:
    """Measures scorers on held-out images.

    Args:
        task: knows how to feed images to networks.
        data: the held-out images with the labels to compare with.
    """

    def __init__(self, task: ImageTask, data: Images) -> None:
        self.task, self.data = task, data

    @torch.no_grad()
    def __call__(self, score: Call, wanted: set[str]) -> dict[str, float]:
        """Values for the names in ``wanted``: ``accuracy``, ``loss``, and of images whose bias is known
        ``unbiased_accuracy``, ``worst_group_accuracy``; all where it is empty."""
        logits = self.task.scan_data(self.data, score)
        values = measure(logits, self.data.labels.to(logits.device), bias_of(self.data))
        for name in wanted - values.keys():
            raise unknown_name("validation value", name, values)
        return {name: value for name, value in values.items() if not wanted or name in wanted}
