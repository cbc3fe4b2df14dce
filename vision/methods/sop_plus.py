"""SOP+: SOP with two views that must agree and predictions that are kept in balance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from recdenoise import objectives
from recdenoise.denoisers.base import Clock, Stage, Update
from recdenoise.options import require
from recdenoise.task import Batch, Pass, Task
from vision.methods.class_balance import balance_loss, balance_of_mean
from vision.methods.sop import SOP, SOPConfig


@dataclass(frozen=True)
class SOPPlusConfig(SOPConfig):
    """Options of SOP+. Network and training as for SOP."""

    consistency: float = 0.9
    """Weight of KL(p(view 1) || p(view 2)), without gradient through view 1; 0 takes one view."""

    balance: float = 0.1
    """Weight of KL(equal shares || the batch's mean prediction)."""

    balance_of: Literal["network", "together"] = "network"
    """Predictions that are kept in balance: the network's, as printed, or those of network and noise together, as in
    the authors' code."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("consistency", "balance"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "zero or more")


class SOPPlus(SOP):
    """SOP with a consistency term between two views, from one forward, and a class-balance term."""

    name = "sop_plus"
    title = "SOP+"
    summary = "SOP with two views that must agree and predictions in balance"
    Config = SOPPlusConfig

    def build(self, task: Task) -> None:
        super().build(task)
        self.prior: Tensor
        shares = torch.full((task.n_classes,), 1.0 / task.n_classes)
        self.register_buffer("prior", shares, persistent=False)

    def passes(self, stage: Stage, epoch: int) -> list[Pass]:
        return [Pass(views=2 if self.config.consistency else 1)]

    def step(self, stage: Stage, batch: Batch, clock: Clock) -> Iterator[Update]:
        if not batch.views:
            yield from super().step(stage, batch, clock)
            return
        inputs, observed = torch.cat(batch.views), torch.cat([batch.label] * len(batch.views))
        first, second = self.over_heads(self.heads(self.target, inputs, observed), lambda each: each).chunk(2)
        yield self.update(batch, first, second)

    def regularizers(self, logits: Tensor, second: Tensor | None, together: Tensor) -> Tensor:
        total = logits.new_zeros(())
        if second is not None:
            total = total + self.config.consistency * objectives.class_kl(logits.detach(), second)
        if self.config.balance and self.config.balance_of == "network":
            total = total + self.config.balance * balance_loss(self.parallel.whole(logits), self.prior)
        elif self.config.balance:
            mean = self.parallel.whole(together).mean(0)
            total = total + self.config.balance * balance_of_mean(mean, self.prior)
        return total
