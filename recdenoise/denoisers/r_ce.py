"""R-CE: labels that the model finds unlikely weigh less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from recdenoise import objectives
from recdenoise.denoisers.base import Clock, Denoiser, DenoiserConfig, Losses
from recdenoise.options import require
from recdenoise.task import Batch


@dataclass(frozen=True)
class RCEConfig(DenoiserConfig):
    """Options of R-CE."""

    alpha: float = 0.25
    """Exponent on the probability of the observed label; 0 weighs all alike."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.alpha >= 0, "alpha", self.alpha, "zero or more")


class RCE(Denoiser):
    """Reweighted cross-entropy (Eq. 5): weights ``p ** alpha`` for positives, ``(1 - p) ** alpha`` for negatives."""

    name = "r_ce"
    title = "R-CE"
    summary = "weighs each label by the probability the model gives it"
    distributed = True
    paper = "Wang et al., Denoising Implicit Feedback for Recommendation, WSDM 2021"
    Config = RCEConfig
    neutral: ClassVar[dict[str, Any] | None] = {"alpha": 0.0}

    def losses(self, batch: Batch, clock: Clock) -> Losses:
        logits = self.task.call(self.target, batch.inputs)
        return Losses(self.cross_entropy(logits, batch), objectives.reweighting(logits, batch.label, self.config.alpha))
