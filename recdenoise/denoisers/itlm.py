"""ITLM: train, keep the examples with the smallest loss, train again on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from recdenoise import objectives
from recdenoise.denoisers.base import Denoiser, DenoiserConfig, Stage
from recdenoise.errors import UserError
from recdenoise.options import require
from recdenoise.task import ClassTask, Pass, Task


@dataclass(frozen=True)
class ITLMConfig(DenoiserConfig):
    """Options of ITLM."""

    keep: float = 0.8
    """Share of the training set that is kept, those with the smallest loss."""

    rounds: int = 3
    """Trainings: the first on everything, each further one on what the one before it kept."""

    round_epochs: int | None = None
    """Epochs of every round but the last, which takes the run's; null gives all of them the run's."""

    restart: bool = True
    """Draw the weights anew in every round; False goes on from those of the round before."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.keep <= 1, "keep", self.keep, "above 0 and at most 1")
        require(self.rounds >= 1, "rounds", self.rounds, "1 or more")
        if self.round_epochs is not None:
            require(self.round_epochs >= 1, "round_epochs", self.round_epochs, "1 or more")


class ITLM(Denoiser):
    """Iterative trimmed loss minimisation (Algorithm 1): losses are ranked without augmentation."""

    name = "itlm"
    title = "ITLM"
    summary = "trains again on the examples whose loss was smallest"
    distributed = True
    paper = "Shen and Sanghavi, Learning with Bad Training Data via Iterative Trimmed Loss Minimization, ICML 2019"
    Config = ITLMConfig
    neutral: ClassVar[dict[str, Any] | None] = {"rounds": 1}
    brief: ClassVar[dict[str, Any]] = {"keep": 0.7, "round_epochs": 1}

    def build(self, task: Task) -> None:
        if not isinstance(task, ClassTask):
            raise UserError("ITLM ranks the losses of labelled examples; for pairs of users and items take t_ce.")
        self.target = task.new_target(0)
        self.kept: Tensor
        self.register_buffer("kept", torch.ones(task.n_rows, dtype=torch.bool))

    def stages(self) -> list[Stage]:
        last = self.config.rounds - 1
        return [
            Stage(
                f"round {i + 1}",
                epochs=self.config.round_epochs if i < last else None,
                reset=("target",) if i and self.config.restart else (),
            )
            for i in range(self.config.rounds)
        ]

    def begin_stage(self, stage: Stage) -> None:
        if stage.name == "round 1":
            return
        assert isinstance(self.task, ClassTask)
        loss = objectives.classification_loss(self.task.scan(self.score), self.task.labels)
        self.kept.copy_(objectives.smallest(loss, self.config.keep))

    def passes(self, stage: Stage, epoch: int) -> list[Pass]:
        return [Pass(rows=self.kept.nonzero().squeeze(1))]
