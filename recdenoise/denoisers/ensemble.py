"""Ensemble: several copies from different seeds, each trained plainly, averaged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from recdenoise import objectives
from recdenoise.denoisers.base import Clock, Denoiser, DenoiserConfig, Stage, Update
from recdenoise.options import require
from recdenoise.task import Batch, ClassTask, Task


@dataclass(frozen=True)
class EnsembleConfig(DenoiserConfig):
    """Options of the ensemble."""

    members: int = 2
    """Number of copies."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.members >= 1, "members", self.members, "1 or more")


class Ensemble(Denoiser):
    """Copies of the target, each a stage of its own with its own seed, shuffles and negatives.

    The score is the mean of the members' probabilities, handed on as the logit of that mean.
    """

    name = "ensemble"
    title = "Ensemble"
    summary = "the mean probability of copies trained from different seeds"
    distributed = True
    paper = "baseline of Wang et al., Label Denoising through Cross-Model Agreement, TORS 2023"
    Config = EnsembleConfig
    neutral: ClassVar[dict[str, Any] | None] = {"members": 1}

    def build(self, task: Task) -> None:
        self.members = nn.ModuleList(task.new_target(member) for member in range(self.config.members))

    def stages(self) -> list[Stage]:
        names = [f"members.{i}" for i in range(self.config.members)]
        return [Stage(f"member {i + 1}", train=(name,), watch=name, answers=True) for i, name in enumerate(names)]

    def step(self, stage: Stage, batch: Batch, clock: Clock) -> Iterator[Update]:
        out = self.plain_losses(self.module(stage.watch), batch)
        yield Update(out.loss, batch.groups, out.weight)

    def score(self, inputs: Any) -> Tensor:
        logits = torch.stack([self.task.call(m, inputs) for m in self.members])
        if isinstance(self.task, ClassTask):
            return objectives.mean_class_logits(logits)
        return objectives.mean_probability_logits(logits)
