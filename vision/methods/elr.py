"""ELR: hold on to what the network believed early, row by row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from recdenoise import objectives
from recdenoise.denoisers.base import Clock, Denoiser, DenoiserConfig, Losses
from recdenoise.options import require
from recdenoise.task import Batch, Task

FLOOR = 1e-4
"""Probabilities are clamped to it, and to 1 minus it, before they enter the memory."""


@dataclass(frozen=True)
class ELRConfig(DenoiserConfig):
    """Options of ELR. The paper: ResNet-34, 120 or 150 epochs of SGD 0.02, batch 128, decay 1e-3."""

    beta: float = 0.7
    """Decay of each row's moving average of predictions; 0.9 for CIFAR-100."""

    strength: float = 3.0
    """lambda, the weight of the regulariser; 7 for CIFAR-100, 1 for CIFAR-10 with asymmetric noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.beta < 1, "beta", self.beta, "at least 0 and below 1")
        require(self.strength >= 0, "strength", self.strength, "zero or more")


def remembered(memory: Tensor, logits: Tensor, beta: float) -> Tensor:
    """The next memory ``beta t + (1 - beta) p``, p without gradient, clamped and brought back to sum 1.

    Args:
        memory: ``(n, C)`` memory of the batch's rows.
        logits: ``(n, C)`` logits of this step.
        beta: decay.
    """
    p = torch.softmax(logits.detach(), dim=1).clamp(FLOOR, 1.0 - FLOOR)
    return beta * memory + (1.0 - beta) * p / p.sum(1, keepdim=True)


class ELR(Denoiser):
    """Cross-entropy plus ``lambda log(1 - <p, t>)`` (Eq. 6): t is each row's moving average of predictions."""

    name = "elr"
    title = "ELR"
    summary = "keeps predictions near the average of earlier ones"
    distributed = True
    paper = "Liu et al., Early-Learning Regularization Prevents Memorization of Noisy Labels, NeurIPS 2020"
    Config = ELRConfig
    neutral: ClassVar[dict[str, Any] | None] = {"strength": 0.0}

    def build(self, task: Task) -> None:
        self.target = task.new_target(0)
        self.memory: Tensor
        self.register_buffer("memory", torch.zeros(task.n_rows, task.n_classes))

    def losses(self, batch: Batch, clock: Clock) -> Losses:
        logits = self.task.call(self.target, batch.inputs)
        memory = remembered(self.memory[batch.index], logits, self.config.beta)
        self.memory[self.parallel.gather(batch.index)] = self.parallel.gather(memory)
        loss = objectives.classification_loss(logits, batch.label)
        held = objectives.early_learning(logits, memory)
        return Losses(loss + self.config.strength * held, batch.weight, {"early_learning": held.mean()})
