"""DeCA(p): the model it must agree with is a frozen copy of its own class, trained plainly beforehand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from recdenoise.denoisers.base import Clock, Denoiser, Stage, Update
from recdenoise.denoisers.deca import PAPER, CrossModel, CrossModelConfig
from recdenoise.options import require
from recdenoise.selection import check_selector
from recdenoise.task import Batch, Task


@dataclass(frozen=True)
class DeCAPConfig(CrossModelConfig):
    """Options of DeCA(p)."""

    prior_epochs: int | None = None
    """Epochs of the prior; null takes the run's."""

    prior_selector: str | None = None
    """How the prior's epoch is chosen; null takes the run's way, so that the prior is what Normal would be."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prior_epochs is not None:
            require(self.prior_epochs >= 1, "prior_epochs", self.prior_epochs, "1 or more")
        if self.prior_selector is not None:
            check_selector(self.prior_selector)


class FrozenPrior(Denoiser):
    """Two stages: a prior is trained plainly and frozen, then the target with what :meth:`companions` names.

    ``prior`` is built by the method; its options have ``prior_selector`` and ``prior_epochs``.
    """

    companions: ClassVar[tuple[str, ...]]

    def stages(self) -> list[Stage]:
        prior = Stage("prior", ("prior",), "prior", self.config.prior_selector, self.config.prior_epochs)
        return [prior, Stage(train=("target", *self.companions))]

    def prior_logits(self, inputs: Any) -> Tensor:
        """The frozen prior's logits, in eval mode and without gradient."""
        with torch.no_grad():
            return self.task.call(self.module("prior"), inputs)

    def step(self, stage: Stage, batch: Batch, clock: Clock) -> Iterator[Update]:
        if stage.name == "prior":
            out = self.plain_losses(self.module("prior"), batch)
            yield Update(out.loss, batch.groups, out.weight)
        else:
            yield from super().step(stage, batch, clock)


class DeCAP(FrozenPrior, CrossModel):
    """DeCA with fixed pre-training (Eq. 13, 22, Algorithm 2)."""

    name = "deca_p"
    title = "DeCA(p)"
    summary = "agreement with a frozen, plainly trained copy from another seed"
    paper = PAPER
    Config = DeCAPConfig
    companions = ("h", "h_prime")

    def build(self, task: Task) -> None:
        super().build(task)
        # The published code deep-copies the target: the same initial weights, not another seed.
        self.prior = task.new_target(0 if self.config.compat == "paper_code" else 1)

    def other_logits(self, inputs: Any) -> Tensor:
        return self.prior_logits(inputs)
