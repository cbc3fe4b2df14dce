"""What LfF and DFA share: how hard a row is for a biased network beside a debiased one, and the weight that follows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recdenoise.denoisers.base import DenoiserConfig
from recdenoise.options import require

FLOOR = 1e-8
"""Added to the sum of both losses, so that a row without loss gets a weight."""


@dataclass(frozen=True)
class RelativeDifficultyConfig(DenoiserConfig):
    """Options of methods that weight by relative difficulty."""

    q: float = 0.7
    """Exponent of the biased network's generalised cross-entropy: 0 is cross-entropy, which amplifies no bias."""

    decay: float = 0.7
    """Of each row's moving averages of both losses; 0 takes the losses of the moment."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.q <= 1, "q", self.q, "from 0 to 1")
        require(0 <= self.decay < 1, "decay", self.decay, "at least 0 and below 1")


class RelativeDifficulty(nn.Module):
    """Moving averages of two losses by row, and ``W = l_B / (l_B + l_D)`` of them, each divided by its class's maximum.

    A row's first losses are taken as they are; a class's maximum is over its rows that have been seen.

    Args:
        labels: ``(n_rows,)`` int64 observed labels.
        n_classes: number of classes.
        decay: of the averages.

    Source: Nam et al., *Learning from Failure* (NeurIPS 2020), Algorithm 1, smoothed and normalised as in the authors'
    code.
    """

    def __init__(self, labels: Tensor, n_classes: int, decay: float) -> None:
        super().__init__()
        self.n_classes, self.decay = n_classes, decay
        self.losses: Tensor
        self.seen: Tensor
        self.labels: Tensor
        self.register_buffer("losses", torch.zeros(2, len(labels), device=labels.device))  # of the biased one first
        self.register_buffer("seen", torch.zeros(len(labels), dtype=torch.bool, device=labels.device))
        self.register_buffer("labels", labels, persistent=False)

    @torch.no_grad()
    def remember(self, rows: Tensor, biased: Tensor, debiased: Tensor) -> None:
        """Take in this step's ``(n,)`` cross-entropies of some rows, in place."""
        new = torch.stack([biased, debiased]).to(self.losses.dtype)
        kept = torch.where(self.seen[rows], self.decay, 0.0)
        self.losses[:, rows] = kept * self.losses[:, rows] + (1.0 - kept) * new
        self.seen.index_fill_(0, rows, True)

    def weights(self, rows: Tensor | None = None) -> Tensor:
        """W of some rows or of all, from 0 to 1: ``(n,)``. A row that has not been seen has 0."""
        most = self.losses.new_zeros(2, self.n_classes)
        most.scatter_reduce_(1, self.labels.expand(2, -1), self.losses, "amax")
        losses, labels = (self.losses, self.labels) if rows is None else (self.losses[:, rows], self.labels[rows])
        biased, debiased = losses / most[:, labels].clamp_min(FLOOR)
        return biased / (biased + debiased + FLOOR)
