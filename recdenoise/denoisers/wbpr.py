"""WBPR: popular items that a user left alone are likely to be true negatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from recdenoise.denoisers.base import Denoiser, DenoiserConfig, Stage
from recdenoise.options import require
from recdenoise.task import Pass


@dataclass(frozen=True)
class WBPRConfig(DenoiserConfig):
    """Options of WBPR."""

    beta: float = 1.0
    """Exponent on the item's count in train; 0 draws negatives uniformly."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.beta >= 0, "beta", self.beta, "zero or more")


class WBPR(Denoiser):
    """Normal, with negatives drawn in proportion to popularity ** beta among the items the user has not touched.

    Popularity counts the training set alone: counting held-out interactions would leak them.
    """

    name = "wbpr"
    title = "WBPR"
    summary = "negatives drawn in proportion to item popularity"
    paper = "Gantner et al., Personalized Ranking for Non-Uniformly Sampled Items, KDD Cup 2011 workshop"
    Config = WBPRConfig
    neutral: ClassVar[dict[str, Any] | None] = {"beta": 0.0}

    def passes(self, stage: Stage, epoch: int) -> list[Pass]:
        reject = self.config.compat == "none"
        if self.config.beta == 0:
            return [Pass("uniform", reject=reject)]
        return [Pass("popularity", beta=self.config.beta, reject=reject)]
