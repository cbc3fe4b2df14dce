"""mixup: train on convex combinations of pairs of images and of their labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from recdenoise import objectives
from recdenoise.denoisers.base import Clock, Denoiser, DenoiserConfig, Losses
from recdenoise.options import require
from recdenoise.parallel import ALONE, Parallel
from recdenoise.task import Batch


@dataclass(frozen=True)
class MixupConfig(DenoiserConfig):
    """Options of mixup. The paper: PreAct ResNet-18, 200 epochs of SGD 0.1, times 0.1 at 100 and 150, decay 1e-4."""

    alpha: float = 1.0
    """Of the Beta(alpha, alpha) that mixing shares are drawn from, one a batch; 0 mixes nothing. The paper takes
    8 and 32 where labels are noisy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.alpha >= 0, "alpha", self.alpha, "zero or more")


def draw_share(alpha: float) -> float:
    """One share from Beta(alpha, alpha) by torch's global generator; 1 where ``alpha`` is 0."""
    if alpha == 0:
        return 1.0
    return float(torch.distributions.Beta(alpha, alpha).sample())


def draw_larger_share(alpha: float) -> float:
    """The larger of a share from :func:`draw_share` and its rest: an image stays mostly itself."""
    share = draw_share(alpha)
    return max(share, 1.0 - share)


def draw_partners(n: int, parallel: Parallel = ALONE) -> Tensor:
    """``(n,)`` partners in the whole batch for this process's ``n`` examples, by torch's global generator."""
    whole = n * parallel.size
    return torch.randperm(whole)[parallel.share(whole)]


def mixed(values: Tensor, partners: Tensor, share: float, parallel: Parallel = ALONE) -> Tensor:
    """``share * values + (1 - share) * partner's values``, of the shape of ``values``.

    Args:
        values: ``(n, ...)``, of which no gradient is wanted where several processes share the batch.
        partners: ``(n,)`` places in the whole batch.
        share: of an example's own values.
        parallel: the processes that share the batch.
    """
    every = values if parallel.size == 1 else parallel.gather(values)
    return share * values + (1.0 - share) * every.index_select(0, partners)


class Mixup(Denoiser):
    """Cross-entropy of mixed images: the loss of either label counts with its image's share."""

    name = "mixup"
    title = "mixup"
    summary = "trains on mixtures of pairs of images and labels"
    distributed = True
    paper = "Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018"
    Config = MixupConfig
    neutral: ClassVar[dict[str, Any] | None] = {"alpha": 0.0}

    def losses(self, batch: Batch, clock: Clock) -> Losses:
        share = draw_share(self.config.alpha)
        partners = draw_partners(len(batch.label), self.parallel).to(batch.label.device)
        logits = self.task.call(self.target, mixed(batch.inputs, partners, share, self.parallel))
        own = objectives.classification_loss(logits, batch.label)
        other = objectives.classification_loss(logits, self.parallel.gather(batch.label).index_select(0, partners))
        return Losses(share * own + (1.0 - share) * other, batch.weight)
