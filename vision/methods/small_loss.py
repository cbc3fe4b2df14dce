"""What Co-teaching and JoCoR share: two networks, and a growing share of large losses that is left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from recdenoise import objectives
from recdenoise.denoisers.base import Denoiser, DenoiserConfig, Stage, Update
from recdenoise.options import require
from recdenoise.parallel import Parallel
from recdenoise.task import Call, Task


@dataclass(frozen=True)
class SmallLossConfig(DenoiserConfig):
    """Options of methods that train two networks on small losses."""

    noise_rate: float = 0.2
    """tau: share of a batch that is left out in the end; the share of wrong labels, known or estimated."""

    gradual_epochs: int = 10
    """T_k: epochs over which the share grows from 0; 0 leaves tau out from the start."""

    exponent: float = 1.0
    """c: the share grows as ``(epoch / T_k) ** c``."""

    answer: Literal["first", "mean"] = "first"
    """Which network validates and classifies: the first, as in the paper, or the mean of both softmaxes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.noise_rate < 1, "noise_rate", self.noise_rate, "at least 0 and below 1")
        require(self.gradual_epochs >= 0, "gradual_epochs", self.gradual_epochs, "zero or more")
        require(self.exponent > 0, "exponent", self.exponent, "above 0")


def kept_share(epoch: int, config: SmallLossConfig) -> float:
    """``R(T) = 1 - tau min((T / T_k)^c, 1)`` with T the number of epochs already done."""
    if epoch >= config.gradual_epochs:
        return 1.0 - config.noise_rate
    return 1.0 - config.noise_rate * (epoch / config.gradual_epochs) ** config.exponent


def smallest_rows(loss: Tensor, share: float) -> Tensor:
    """Places of the ``round(share * n)`` smallest of ``(n,)`` losses, at least one: ``(k,)`` int64."""
    keep = min(len(loss), max(1, round(share * len(loss))))
    return torch.topk(loss.detach(), keep, largest=False, sorted=False).indices


def kept_update(loss: Tensor, kept: Tensor, parallel: Parallel, optimizer: str = "target") -> Update:
    """The mean of the losses that are kept.

    Args:
        loss: ``(n,)`` losses of this process's share of the batch.
        kept: ``(k,)`` places in the whole batch.
        parallel: the processes that share it.
        optimizer: which one steps.
    """
    here = parallel.mine(kept, len(loss) * parallel.size)
    # A process may hold more or fewer of the k than another: the sum counts k, not what is here.
    return Update(loss[here] * parallel.size, (len(kept),), optimizer=optimizer)


class TwoNetworks(Denoiser):
    """Base of methods that train two copies of the network from different seeds."""

    def build(self, task: Task) -> None:
        self.target = task.new_target(0)
        self.second = task.new_target(1)

    def stages(self) -> list[Stage]:
        return [Stage(train=("target", "second"))]

    def logits(self, inputs: Any) -> tuple[Tensor, Tensor]:
        """``(n, C)`` logits of both networks."""
        return self.task.call(self.target, inputs), self.task.call(self.second, inputs)

    def score(self, inputs: Any) -> Tensor:
        if self.config.answer == "first":
            return super().score(inputs)
        return objectives.mean_class_logits(torch.stack(self.logits(inputs)))

    def watched_score(self, stage: Stage) -> Call:
        return self.score
