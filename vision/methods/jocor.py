"""JoCoR: two networks trained by one loss on the examples on which they agree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from recdenoise import objectives
from recdenoise.denoisers.base import Clock, Optim, Stage, Update
from recdenoise.options import require
from recdenoise.task import Batch
from vision.methods.small_loss import SmallLossConfig, TwoNetworks, kept_share, kept_update, smallest_rows


@dataclass(frozen=True)
class JoCoRConfig(SmallLossConfig):
    """Options of JoCoR. The paper: a 7-layer CNN (CIFAR), 200 epochs of Adam 1e-3, falling to 0 from epoch 80, batch
    128, ``gradual_epochs`` 10."""

    co_lambda: float = 0.1
    """lambda: weight of the divergence between the networks against both cross-entropies."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.co_lambda < 1, "co_lambda", self.co_lambda, "at least 0 and below 1")


def joint_loss(first: Tensor, second: Tensor, label: Tensor, co_lambda: float) -> Tensor:
    """``(1 - lambda) (CE_1 + CE_2) + lambda (KL(p_1 || p_2) + KL(p_2 || p_1))`` (Eq. 1 to 4).

    Args:
        first, second: ``(n, C)`` logits of the two networks.
        label: ``(n,)`` int64 observed labels.
        co_lambda: in [0, 1].

    Returns:
        ``(n,)`` losses.
    """
    fit = objectives.classification_loss(first, label) + objectives.classification_loss(second, label)
    apart = objectives.class_kl(first, second) + objectives.class_kl(second, first)
    return (1.0 - co_lambda) * fit + co_lambda * apart


class JoCoR(TwoNetworks):
    """Joint training with co-regularisation (Algorithm 1): one optimiser moves both networks on small joint losses."""

    name = "jocor"
    title = "JoCoR"
    summary = "two networks agree, and learn together from small joint losses"
    distributed = True
    paper = "Wei et al., Combating Noisy Labels by Agreement: A Joint Training Method with Co-Regularization, CVPR 2020"
    Config = JoCoRConfig
    neutral: ClassVar[dict[str, Any] | None] = {"noise_rate": 0.0, "co_lambda": 0.0}
    brief: ClassVar[dict[str, Any]] = {"noise_rate": 0.3, "gradual_epochs": 1}

    def optimizers(self, stage: Stage) -> dict[str, Optim]:
        return {"target": Optim(dict.fromkeys(stage.train, self.config.l2))}

    def step(self, stage: Stage, batch: Batch, clock: Clock) -> Iterator[Update]:
        loss = joint_loss(*self.logits(batch.inputs), batch.label, self.config.co_lambda)
        kept = smallest_rows(self.parallel.gather(loss), kept_share(clock.epoch, self.config))
        yield kept_update(loss, kept, self.parallel)
