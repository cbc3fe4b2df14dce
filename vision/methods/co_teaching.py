"""Co-teaching: each of two networks chooses what the other one learns from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from recdenoise import objectives
from recdenoise.denoisers.base import Clock, Optim, Stage, Update
from recdenoise.task import Batch
from vision.methods.small_loss import SmallLossConfig, TwoNetworks, kept_share, kept_update, smallest_rows


@dataclass(frozen=True)
class CoTeachingConfig(SmallLossConfig):
    """Options of Co-teaching. The paper: a 9-layer CNN, 200 epochs of Adam 1e-3, falling to 0 from epoch 80, batch
    128, ``gradual_epochs`` 10."""


class CoTeaching(TwoNetworks):
    """Algorithm 1: in every batch each network keeps its small losses, and its peer takes a step on those examples."""

    name = "co_teaching"
    title = "Co-teaching"
    summary = "two networks choose examples with small losses for each other"
    distributed = True
    paper = "Han et al., Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels, NeurIPS 2018"
    Config = CoTeachingConfig
    neutral: ClassVar[dict[str, Any] | None] = {"noise_rate": 0.0}
    brief: ClassVar[dict[str, Any]] = {"noise_rate": 0.3, "gradual_epochs": 1}

    def optimizers(self, stage: Stage) -> dict[str, Optim]:
        return {name: Optim({name: self.config.l2}) for name in stage.train}

    def step(self, stage: Stage, batch: Batch, clock: Clock) -> Iterator[Update]:
        share = kept_share(clock.epoch, self.config)
        first, second = (objectives.classification_loss(logits, batch.label) for logits in self.logits(batch.inputs))
        # Both choices are made before either network moves.
        gather = self.parallel.gather
        for_second, for_first = smallest_rows(gather(first), share), smallest_rows(gather(second), share)
        yield kept_update(first, for_first, self.parallel)
        yield kept_update(second, for_second, self.parallel, "second")
