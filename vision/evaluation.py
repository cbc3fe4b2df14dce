"""Accuracy and loss of a scorer on held-out images."""

from __future__ import annotations

import torch
from torch import Tensor

from recdenoise import objectives
from recdenoise.errors import unknown_name
from recdenoise.task import Call
from vision.task import Images, ImageTask

VALUES = ("accuracy", "loss")


def measure(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy (share, 0 to 1) and mean cross-entropy of ``(n, C)`` logits against ``(n,)`` labels."""
    correct = (logits.argmax(1) == labels).double().mean()
    return {"accuracy": correct.item(), "loss": objectives.classification_loss(logits.double(), labels).mean().item()}


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
        """Values for the names in ``wanted``: ``accuracy``, ``loss``; both where it is empty."""
        logits = self.task.scan_data(self.data, score)
        values = measure(logits, self.data.labels.to(logits.device))
        for name in wanted - values.keys():
            raise unknown_name("validation value", name, values)
        return {name: value for name, value in values.items() if not wanted or name in wanted}
