"""GCE: between cross-entropy and MAE, with or without truncation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from recdenoise import objectives
from recdenoise.denoisers.base import Clock, Denoiser, DenoiserConfig, Losses, Stage
from recdenoise.options import require
from recdenoise.task import Batch, ClassTask, Pass, Task


@dataclass(frozen=True)
class GCEConfig(DenoiserConfig):
    """Options of GCE. The paper: ResNet-34, 120 epochs of SGD 0.01, times 0.1 at 40 and 80, batch 128, decay 1e-4."""

    q: float = 0.7
    """Exponent: 0 is cross-entropy, 1 is half of MAE."""

    truncation: Literal["none", "prune", "direct"] = "none"
    """``prune`` leaves out rows with p <= k, chosen every ``prune_every`` epochs (Algorithm 1); ``direct`` makes the
    loss of the batch constant where p <= k."""

    k: float = 0.5
    """Probability of the label at and below which truncation holds."""

    prune_from: int = 40
    """Epochs on all rows before the first pruning."""

    prune_every: int = 10
    """Epochs from one pruning to the next; pruned rows may come back."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.q <= 1, "q", self.q, "from 0 to 1")
        require(0 < self.k < 1, "k", self.k, "above 0 and below 1")
        require(self.prune_from >= 0, "prune_from", self.prune_from, "zero or more")
        require(self.prune_every >= 1, "prune_every", self.prune_every, "1 or more")


def loss_at(p: float, q: float) -> float:
    """GCE of one probability of the label."""
    return -math.log(p) if q == 0 else (1.0 - p**q) / q


class GCE(Denoiser):
    """Generalised cross-entropy ``(1 - p_y^q) / q`` (Eq. 6).

    With ``truncation: prune`` a step minimises ``mean v (L_q(p_y) - L_q(k))``: ``v`` is 1 where the network, looking
    at images without augmentation, gave the label more than ``k``.
    """

    name = "gce"
    title = "GCE"
    summary = "a loss between cross-entropy and MAE, truncated where asked"
    distributed = True
    paper = (
        "Zhang and Sabuncu, Generalized Cross Entropy Loss for Training Deep Networks with Noisy Labels, NeurIPS 2018"
    )
    Config = GCEConfig
    neutral: ClassVar[dict[str, Any] | None] = {"q": 0.0}
    brief: ClassVar[dict[str, Any]] = {"truncation": "prune", "k": 0.3, "prune_from": 1, "prune_every": 1}

    def build(self, task: Task) -> None:
        self.target = task.new_target(0)
        self.kept: Tensor
        if self.config.truncation == "prune":
            self.register_buffer("kept", torch.ones(task.n_rows))

    def begin_epoch(self, stage: Stage, epoch: int) -> None:
        since = epoch - self.config.prune_from
        if self.config.truncation == "prune" and since >= 0 and since % self.config.prune_every == 0:
            assert isinstance(self.task, ClassTask)
            probability = objectives.observed_probability(self.task.scan(self.score), self.task.labels)
            believed = probability > self.config.k
            if believed.any():  # without a row there would be no gradient, and so no row ever again
                self.kept.copy_(believed)

    def passes(self, stage: Stage, epoch: int) -> list[Pass]:
        return [Pass(weights=self.kept if self.config.truncation == "prune" else None)]

    def losses(self, batch: Batch, clock: Clock) -> Losses:
        logits, q, k = self.task.call(self.target, batch.inputs), self.config.q, self.config.k
        if self.config.truncation == "direct":
            return Losses(objectives.truncated_generalized_cross_entropy(logits, batch.label, q, k), batch.weight)
        loss = objectives.generalized_cross_entropy(logits, batch.label, q)
        if self.config.truncation == "none" or batch.weight is None:
            return Losses(loss, batch.weight)
        # A row that is left out costs L_q(k); without that constant pruning would read as progress.
        return Losses(loss - loss_at(k, q), batch.weight, {"kept": batch.weight.mean()})
