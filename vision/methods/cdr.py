"""CDR: only the weights that matter for fitting clean labels follow the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from recdenoise.denoisers.base import Clock, Denoiser, DenoiserConfig
from recdenoise.options import require


@dataclass(frozen=True)
class CDRConfig(DenoiserConfig):
    """Options of CDR. The paper: 100 epochs of SGD 0.01, batch 32, decay 1e-3, stopped early on validation; for CIFAR
    the authors' program takes 200 epochs in batches of 64, times 0.1 at 40 and 80."""

    noise_rate: float = 0.2
    """tau: the share of wrong labels, known or estimated; the share 1 - tau of the weights is critical."""

    decay_gradients: bool = True
    """Multiply the gradients of critical weights by 1 - tau, so that early steps are not over-confident."""

    gradual_epochs: int = 0
    """Epochs over which share and factor fall from 1 to 1 - tau in a straight line; 0 takes 1 - tau at once. The
    authors' code computes such a fall over 10 epochs (20 for CIFAR) and then overwrites it with 1 - tau."""

    l1: float = 0.0
    """lambda of the penalty ``lambda ||W||_1``. It is printed in the objective; the authors' code leaves it to the
    optimiser's L2 decay, and so does 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.noise_rate < 1, "noise_rate", self.noise_rate, "at least 0 and below 1")
        require(self.gradual_epochs >= 0, "gradual_epochs", self.gradual_epochs, "zero or more")
        require(self.l1 >= 0, "l1", self.l1, "zero or more")


def critical_share(epoch: int, config: CDRConfig) -> float:
    """The share of critical weights in a zero-based epoch: 1 in the first of the gradual ones, 1 - tau in the last."""
    if epoch >= config.gradual_epochs - 1:
        return 1.0 - config.noise_rate
    return 1.0 - config.noise_rate * epoch / (config.gradual_epochs - 1)


def critical(weights: Sequence[Tensor], gradients: Sequence[Tensor], share: float) -> list[Tensor]:
    """Which entries are among the ``share`` with the largest ``abs(gradient * weight)`` of all tensors together.

    Args:
        weights, gradients: tensors of equal shapes, one by one.
        share: above 0, at most 1; ties at the threshold are all critical.

    Returns:
        Booleans of the shapes of ``weights``.
    """
    values = [(weight * gradient).abs() for weight, gradient in zip(weights, gradients, strict=True)]
    every = torch.cat([value.reshape(-1) for value in values])
    keep = min(len(every), max(1, int(share * len(every))))
    # Not kthvalue: it has no deterministic form on a GPU.
    threshold = torch.topk(every, keep, sorted=False).values.min()
    return [value >= threshold for value in values]


class CDR(Denoiser):
    """Robust early learning: weights that are not critical get no gradient and only decay (Algorithm 1).

    Weights of linear and convolutional layers are divided so; biases and normalisations follow their gradient.
    """

    name = "cdr"
    title = "CDR"
    summary = "only weights that matter for clean labels follow the gradient"
    distributed = True
    paper = "Xia et al., Robust Early-Learning: Hindering the Memorization of Noisy Labels, ICLR 2021"
    Config = CDRConfig
    neutral: ClassVar[dict[str, Any] | None] = {"noise_rate": 0.0}
    target: nn.Module

    @torch.no_grad()
    def edit_gradients(self, optimizer: str, clock: Clock) -> None:
        learned = [p for p in self.target.parameters() if p.dim() >= 2 and p.grad is not None]
        gradients = [p.grad for p in learned if p.grad is not None]
        share = critical_share(clock.epoch, self.config)
        if share < 1.0:
            factor = share if self.config.decay_gradients else 1.0
            for gradient, matters in zip(gradients, critical(learned, gradients, share), strict=True):
                gradient.mul_(matters * factor)
        if self.config.l1:
            for weight, gradient in zip(learned, gradients, strict=True):
                gradient.add_(weight.sign(), alpha=self.config.l1)
