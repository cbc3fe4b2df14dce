"""ELR+: two networks remember for each other what their averaged weights believed early, on mixed images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from recdenoise import objectives
from recdenoise.denoisers.base import Clock, Optim, Stage, Update
from recdenoise.errors import UserError
from recdenoise.options import require
from recdenoise.task import Batch, ClassTask, Pass, Task
from vision.methods.elr import ELRConfig, remembered
from vision.methods.mixup import draw_larger_share, draw_partners, mixed
from vision.methods.semi_supervised import at_rest, sigmoid_ramp
from vision.methods.small_loss import TwoNetworks

NETWORKS = ("target", "second")
"""The second one has a stream of batches of its own."""


@dataclass(frozen=True)
class ELRPlusConfig(ELRConfig):
    """Options of ELR+. The paper: two PreAct ResNet-18, batch 128, SGD 0.02, decay 5e-4; 200 epochs, times 0.1 at 150,
    for CIFAR-10, 250 and 200 for CIFAR-100."""

    mixup_alpha: float = 1.0
    """Of the Beta(alpha, alpha) that mixing shares are drawn from, one a batch; 0 mixes nothing."""

    weight_average: float = 0.997
    """Decay of the moving average of weights that gives the peer's targets, validates and is kept; 0 takes the
    weights themselves."""

    ramp_epochs: float = 0.0
    """Epochs over which ``strength`` grows, as ``exp(-5 (1 - t)^2)``; 0 for CIFAR-10. The authors' code takes 40,000
    steps for CIFAR-100, about 100 epochs."""

    weigh_labels: bool = False
    """Multiply labels by the memory and bring them back to sum 1, as the authors' code does for CIFAR-100."""

    answer: Literal["mean", "first"] = "mean"
    """Which network validates and classifies: the mean of both softmaxes, or the first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.mixup_alpha >= 0, "mixup_alpha", self.mixup_alpha, "zero or more")
        require(0 <= self.weight_average < 1, "weight_average", self.weight_average, "at least 0 and below 1")
        require(self.ramp_epochs >= 0, "ramp_epochs", self.ramp_epochs, "zero or more")


def weighed(label: Tensor, memory: Tensor) -> Tensor:
    """``y t`` brought back to sum 1, ``(n, C)``; a row whose labels the memory has never met keeps them."""
    product = label * memory
    total = product.sum(1, keepdim=True)
    return torch.where(total > 0, product / total.clamp_min(torch.finfo(total.dtype).tiny), label)


class ELRPlus(TwoNetworks):
    """ELR with two networks, weight averaging and mixup: the memory of one holds what the other's average predicts.

    In every step each network takes an update on a batch of its own. Memories are of unmixed images, and are mixed as
    images and labels are.
    """

    name = "elr_plus"
    title = "ELR+"
    summary = "two networks keep each other near earlier predictions of averaged weights, on mixed images"
    distributed = True
    paper = "Liu et al., Early-Learning Regularization Prevents Memorization of Noisy Labels, NeurIPS 2020"
    Config = ELRPlusConfig
    neutral: ClassVar[dict[str, Any] | None] = {
        "strength": 0.0,
        "mixup_alpha": 0.0,
        "weight_average": 0.0,
        "answer": "first",
    }

    def build(self, task: Task) -> None:
        if not isinstance(task, ClassTask):
            raise UserError("ELR+ mixes images and their labels; it is for labels of classes.")
        super().build(task)
        self.memory: Tensor
        self.register_buffer("memory", torch.zeros(2, task.n_rows, task.n_classes))

    def stages(self) -> list[Stage]:
        return [Stage(train=NETWORKS, average=self.config.weight_average)]

    def optimizers(self, stage: Stage) -> dict[str, Optim]:
        return {name: Optim({name: self.config.l2}) for name in NETWORKS}

    def passes(self, stage: Stage, epoch: int) -> list[Pass]:
        return [Pass(streams={"second": Pass()})]

    def step(self, stage: Stage, batch: Batch, clock: Clock) -> Iterator[Update]:
        yield self._update(0, batch, clock)
        yield self._update(1, batch.streams["second"], clock)

    def _update(self, network: int, batch: Batch, clock: Clock) -> Update:
        config, parallel = self.config, self.parallel
        memory = remembered(self.memory[network, batch.index], self._peer(1 - network, batch, clock), config.beta)
        self.memory[network, parallel.gather(batch.index)] = parallel.gather(memory).to(self.memory.dtype)
        inputs, label = batch.inputs, F.one_hot(batch.label, self.task.n_classes).to(memory.dtype)
        share = draw_larger_share(config.mixup_alpha)
        if share < 1.0:
            partners = draw_partners(len(label), parallel).to(label.device)
            inputs, label, memory = (mixed(v, partners, share, parallel) for v in (inputs, label, memory))
        if config.weigh_labels:
            label = weighed(label, memory)
        logits = self.task.call(self.module(NETWORKS[network]), inputs)
        strength = config.strength * sigmoid_ramp(clock.epoch + clock.within, config.ramp_epochs)
        held = objectives.early_learning(logits, memory)
        loss = objectives.classification_loss(logits, label.to(logits.dtype)) + strength * held
        logs = {"early_learning": held.detach().mean()}
        return Update(loss, batch.groups, batch.weight, NETWORKS[network], logs)

    def _peer(self, network: int, batch: Batch, clock: Clock) -> Tensor:
        """Logits ``(n, C)`` of a network's averaged weights for unmixed images, in eval mode."""
        name = NETWORKS[network]
        module = self.module(name)
        assert isinstance(self.task, ClassTask)
        with at_rest(module):
            if clock.averages is None:
                return self.task.call(module, batch.inputs)
            return self.task.call_with(module, clock.averages.of(name), batch.inputs)
