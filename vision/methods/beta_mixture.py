"""A mixture of two beta distributions on the losses of a training set: one for right labels, one for wrong ones.

Source: Arazo et al., *Unsupervised Label Noise Modeling and Loss Correction* (ICML 2019). Neither SciPy nor
scikit-learn fits one, so the few lines of EM stand here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

EDGE = 1e-4
"""Losses are brought to [EDGE, 1 - EDGE]: the beta density is not finite at 0 and 1."""

GRID = 100
"""Places at which the posterior is looked at for where it stops rising."""


@dataclass(frozen=True)
class BetaMixture:
    """A fitted mixture; the second component is the one with the larger mean.

    Attributes:
        alpha, beta, weight: ``(2,)`` float64.
        low, high: losses that are mapped to 0 and 1.
        ends: between which places of [0, 1] the posterior rises; beyond them it stays as it is there.
    """

    alpha: Tensor
    beta: Tensor
    weight: Tensor
    low: float
    high: float
    ends: tuple[float, float] = (EDGE, 1.0 - EDGE)

    @property
    def mean(self) -> Tensor:
        """``(2,)`` means on [0, 1]."""
        return self.alpha / (self.alpha + self.beta)

    def large(self, loss: Tensor) -> Tensor:
        """``(n,)`` posterior probabilities that a loss is of the component of large losses."""
        return responsibilities(self.place(loss).clamp(*self.ends), self.alpha, self.beta, self.weight)[:, 1]

    def place(self, loss: Tensor) -> Tensor:
        """Losses on [EDGE, 1 - EDGE], in float64."""
        return ((loss.double() - self.low) / max(self.high - self.low, 1e-6)).clamp(EDGE, 1.0 - EDGE)


def log_density(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Logs of the beta densities: ``(n,)`` places and ``(2,)`` parameters give ``(n, 2)``."""
    x = x.unsqueeze(1)
    norm = torch.lgamma(alpha) + torch.lgamma(beta) - torch.lgamma(alpha + beta)
    return (alpha - 1.0) * x.log() + (beta - 1.0) * torch.log1p(-x) - norm


def responsibilities(x: Tensor, alpha: Tensor, beta: Tensor, weight: Tensor) -> Tensor:
    """Posterior probabilities of the components; ``(n, 2)``."""
    return torch.softmax(log_density(x, alpha, beta) + weight.log(), dim=1)


def by_moments(x: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The M step: parameters whose mean and variance are the weighted ones of the data.

    Args:
        x: ``(n,)`` in (0, 1).
        share: ``(n, 2)`` responsibilities.

    Returns:
        alpha, beta and weight of both components.
    """
    total = share.sum(0).clamp_min(1e-12)
    mean = (share * x.unsqueeze(1)).sum(0) / total
    variance = ((share * (x.unsqueeze(1) - mean) ** 2).sum(0) / total).clamp_min(1e-8)
    size = (mean * (1.0 - mean) / variance - 1.0).clamp_min(1e-3)
    alpha, beta = mean * size, (1.0 - mean) * size
    return alpha.clamp_min(1e-4), beta.clamp_min(1e-4), total / total.sum()


def fit(loss: Tensor, rounds: int = 10, both_tails: bool = True) -> BetaMixture:
    """Fit the mixture by EM.

    The middle 90% of the losses are mapped to [0, 1] and fitted: a few extreme ones would squeeze all others together.

    Args:
        loss: ``(n,)`` losses.
        rounds: of EM.
        both_tails: hold the posterior where it stops rising at either end; False leaves the end of small losses, as the
            published code does.
    """
    values = loss.double()
    ordered = values.sort().values  # not torch.quantile, which refuses more than 16 million values
    low, high = (_percentile(ordered, share) for share in (0.05, 0.95))
    alpha, beta, weight = (values.new_tensor(pair) for pair in ([1.0, 2.0], [2.0, 1.0], [0.5, 0.5]))
    x = BetaMixture(alpha, beta, weight, low, high).place(values[(values >= low) & (values <= high)])
    for _ in range(rounds):
        alpha, beta, weight = by_moments(x, responsibilities(x, alpha, beta, weight))
    order = torch.argsort(alpha / (alpha + beta))
    alpha, beta, weight = alpha[order], beta[order], weight[order]
    return BetaMixture(alpha, beta, weight, low, high, _rising(alpha, beta, weight, both_tails))


def _percentile(ordered: Tensor, share: float) -> float:
    """Between the two nearest values, as numpy's default."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return float(torch.lerp(ordered[below], ordered[above], place - below))


def _rising(alpha: Tensor, beta: Tensor, weight: Tensor, both_tails: bool) -> tuple[float, float]:
    """Where the posterior of large losses rises.

    Tails may cross twice: without this, the very largest losses could count as right labels (the published code mends
    this end) and the very smallest as wrong ones.
    """
    grid = torch.linspace(EDGE, 1.0 - EDGE, GRID, dtype=alpha.dtype, device=alpha.device)
    large = responsibilities(grid, alpha, beta, weight)[:, 1]
    lowest = int(large.argmin()) if both_tails else 0
    highest = lowest + int(large[lowest:].argmax())
    return float(grid[lowest]), float(grid[highest])
