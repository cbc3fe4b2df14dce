"""The two views of dataset bias along training: when each kind of row is learnt, and what weight it gets."""

from __future__ import annotations

import torch
from torch import Tensor

from recdenoise import objectives, seeds
from recdenoise.denoisers.base import Denoiser, Stage
from vision.data.bias import BIAS, aligned
from vision.task import ImageTask

MOST_ROWS = 5000
"""Rows of either kind that are looked at after every epoch; drawn by the seed where there are more."""

KINDS = ("aligned", "conflicting")


class BiasViews:
    """Loss, accuracy and weight of bias-aligned and of bias-conflicting training rows, measured apart.

    The loss shows the order in which rows are learnt, the weight what a method makes of their relative difficulty.
    Images are not augmented; nothing that trains depends on what is measured.

    Args:
        task: whose training images have the attribute ``bias``.
        denoiser: what trains.
    """

    def __init__(self, task: ImageTask, denoiser: Denoiser) -> None:
        self.task, self.denoiser = task, denoiser
        same = aligned(task.source("train")).to(task.device)
        self.rows = {}
        for kind, chosen in zip(KINDS, (same, ~same), strict=True):
            rows = chosen.nonzero().squeeze(1)
            if len(rows) > MOST_ROWS:
                generator = seeds.generator("cpu", task.seed, "bias views", kind)
                drawn = torch.randperm(len(rows), generator=generator)[:MOST_ROWS].sort().values
                rows = rows[drawn.to(rows.device)]
            if len(rows):
                self.rows[kind] = rows

    def __call__(self, stage: Stage) -> dict[str, float]:
        """``aligned_loss``, ``conflicting_weight`` and so on, of what ``stage`` trains."""
        found: dict[str, float] = {}
        score, weights = self.denoiser.watched_score(stage), self.denoiser.row_weights()
        for kind, rows in self.rows.items():
            logits, label = self.task.scan(score, rows), self.task.labels[rows]
            found[f"{kind}_loss"] = objectives.classification_loss(logits, label).mean().item()
            found[f"{kind}_accuracy"] = (logits.argmax(1) == label).double().mean().item()
            if weights is not None:
                found[f"{kind}_weight"] = weights[rows].mean().item()
        return found


def split_quality(conflicting: Tensor, known: Tensor) -> dict[str, float]:
    """How well a split finds the bias-conflicting rows: ``precision``, ``recall`` and ``f1``, shares from 0 to 1.

    Args:
        conflicting: ``(n,)`` booleans, what the split says.
        known: ``(n,)`` booleans, what is known.
    """
    hits = float((conflicting & known).sum())
    precision, recall = hits / max(float(conflicting.sum()), 1.0), hits / max(float(known.sum()), 1.0)
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    return {"precision": precision, "recall": recall, "f1": f1}


__all__ = ["BIAS", "KINDS", "BiasViews", "split_quality"]
