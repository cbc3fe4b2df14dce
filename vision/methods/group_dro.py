"""Group DRO: the worst group of class and bias counts most; the bias must be known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from recdenoise import objectives
from recdenoise.denoisers.base import Clock, Denoiser, DenoiserConfig, Losses, Stage
from recdenoise.errors import UserError
from recdenoise.options import require
from recdenoise.task import Batch, Pass, Task
from vision.task import ImageTask


@dataclass(frozen=True)
class GroupDROConfig(DenoiserConfig):
    """Options of Group DRO. The paper: strong L2 or early stopping, without which every group is learnt by heart."""

    step_size: float = 0.01
    """eta of the group weights ``q_g <- q_g exp(eta loss_g)``."""

    adjustment: float = 0.0
    """C of the generalisation adjustment ``C / sqrt(n_g)``, which is added to a group's loss where q is updated."""

    adjust_absent: bool = False
    """Add it also for groups that a batch holds nothing of, as the authors' code does."""

    sampling: Literal["groups", "rows"] = "groups"
    """``groups``: every group is drawn as often as any other, with repetition (Algorithm 1); ``rows``: every row once
    an epoch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.step_size >= 0, "step_size", self.step_size, "zero or more")
        require(self.adjustment >= 0, "adjustment", self.adjustment, "zero or more")


class GroupDRO(Denoiser):
    """Distributionally robust over groups (Algorithm 1): minimises ``sum_g q_g loss_g``, while q moves by exponentiated
    gradient towards the groups whose loss is high.

    A group is a pair of the observed label and the attribute ``bias``.
    """

    name = "group_dro"
    title = "Group DRO"
    summary = "weights groups of class and known bias by their loss"
    distributed = True
    paper = "Sagawa et al., Distributionally Robust Neural Networks for Group Shifts, ICLR 2020"
    Config = GroupDROConfig
    neutral: ClassVar[dict[str, Any] | None] = None
    neutral_reason = "a batch is a mean over groups, whatever the options"

    def build(self, task: Task) -> None:
        if not isinstance(task, ImageTask):
            raise UserError("Group DRO needs an attribute of every image; it is for labels of classes.")
        train = task.source("train")
        if "bias" not in train.attributes:
            raise UserError(
                "group_dro needs the bias of every training image: an attribute 'bias', one whole number an image."
            )
        self.target = task.new_target(0)
        bias = train.attributes["bias"].to(task.device)
        groups = task.labels * (int(bias.max()) + 1) + bias
        counts = torch.bincount(groups, minlength=task.n_classes * (int(bias.max()) + 1))
        self.groups: Tensor
        self.counts: Tensor
        self.group_weights: Tensor
        self.drawn: Tensor
        self.register_buffer("groups", groups, persistent=False)
        self.register_buffer("counts", counts, persistent=False)
        self.register_buffer("group_weights", (counts > 0) / (counts > 0).sum())
        self.register_buffer("drawn", torch.arange(task.n_rows, device=task.device))

    def begin_epoch(self, stage: Stage, epoch: int) -> None:
        if self.config.sampling == "groups":
            chance = 1.0 / self.counts[self.groups].double()
            self.drawn.copy_(torch.multinomial(chance.cpu(), len(chance), replacement=True))

    def passes(self, stage: Stage, epoch: int) -> list[Pass]:
        return [Pass(rows=self.drawn)]

    def moved(self, sums: Tensor, present: Tensor) -> Tensor:
        """The next group weights.

        Args:
            sums: ``(G,)`` sums of the losses of each group in a batch.
            present: ``(G,)`` how many examples each sum is of.
        """
        options, there = self.config, present > 0
        adjusted = sums / present.clamp_min(1)
        known = (self.counts > 0) if options.adjust_absent else there
        adjusted = adjusted + known * options.adjustment / self.counts.clamp_min(1).sqrt()
        q = self.group_weights * torch.exp(options.step_size * adjusted)
        return q / q.sum()

    def losses(self, batch: Batch, clock: Clock) -> Losses:
        loss = objectives.classification_loss(self.task.call(self.target, batch.inputs), batch.label)
        group = self.groups[batch.index]
        whole = self.parallel.gather(group)
        # A GPU would have to be asked how many groups there are for bincount.
        present = torch.zeros_like(self.counts).index_add_(0, whole, torch.ones_like(whole, dtype=self.counts.dtype))
        sums = torch.zeros_like(self.group_weights).index_add_(
            0, whole, self.parallel.gather(loss).to(self.group_weights)
        )
        self.group_weights.copy_(self.moved(sums, present))
        weight = self.group_weights[group] / present[group] * len(whole)
        logs = {
            "worst_group_loss": (sums / present.clamp_min(1)).max(),
            "largest_group_weight": self.group_weights.max(),
        }
        return Losses(loss, weight if batch.weight is None else weight * batch.weight, logs)

    def row_weights(self) -> Tensor:
        """The weight of every training row's group, shared out among its rows; 1 on average."""
        return (self.group_weights / self.counts.clamp_min(1))[self.groups] * len(self.groups)
