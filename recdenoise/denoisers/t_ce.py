"""T-CE: positives with a large loss are dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from recdenoise import objectives
from recdenoise.denoisers.base import Clock, Denoiser, DenoiserConfig, Losses
from recdenoise.options import require
from recdenoise.task import Batch, ClassTask


@dataclass(frozen=True)
class TCEConfig(DenoiserConfig):
    """Options of T-CE."""

    drop_rate: float = 0.2
    """Largest share of a batch (positives and negatives together) that is dropped."""

    growth: float = 0.2
    """Share of the planned steps over which the drop rate grows to ``drop_rate``."""

    growth_steps: int | None = None
    """Number of steps of that growth, in place of ``growth``; the published code uses 30000."""

    exponent: float = 1.0
    """The rate grows with ``step ** exponent``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.drop_rate < 1, "drop_rate", self.drop_rate, "at least 0 and below 1")
        require(0 <= self.growth <= 1, "growth", self.growth, "from 0 to 1")
        require(self.exponent > 0, "exponent", self.exponent, "above 0")
        if self.growth_steps is not None:
            require(self.growth_steps >= 0, "growth_steps", self.growth_steps, "zero or more")


class TCE(Denoiser):
    """Truncated cross-entropy: the mean over what is kept after dropping the largest positive losses (Eq. 3)."""

    name = "t_ce"
    title = "T-CE"
    summary = "drops a growing share of the positives with the largest loss"
    distributed = True
    paper = "Wang et al., Denoising Implicit Feedback for Recommendation, WSDM 2021"
    Config = TCEConfig
    neutral: ClassVar[dict[str, Any] | None] = {"drop_rate": 0.0}

    def losses(self, batch: Batch, clock: Clock) -> Losses:
        loss = self.plain_losses(self.target, batch).loss
        growth = self.config.growth * clock.steps if self.config.growth_steps is None else self.config.growth_steps
        rate = objectives.truncation_rate(clock.step, growth, self.config.drop_rate, self.config.exponent)
        # A label of classes has no negatives: any example may be dropped.
        droppable = torch.ones_like(loss) if isinstance(self.task, ClassTask) else batch.label
        n, gather = len(loss) * self.parallel.size, self.parallel.gather
        weight = objectives.truncation(gather(loss), gather(droppable), rate)  # of the whole batch
        return Losses(loss, weight[self.parallel.share(n)])
