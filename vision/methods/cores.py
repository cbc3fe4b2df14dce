"""CORES: confident predictions are rewarded, and rows whose label the network then doubts are sieved out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from recdenoise import objectives
from recdenoise.denoisers.base import Clock, Denoiser, DenoiserConfig, Stage, Update
from recdenoise.errors import UserError
from recdenoise.options import require
from recdenoise.task import Batch, ClassTask, Pass, Task
from vision.methods.semi_supervised import consistency

FLOOR = 1e-8
"""Probability below which a class adds no more to the confidence regulariser, which else has no lower bound."""


@dataclass(frozen=True)
class CORESConfig(DenoiserConfig):
    """Options of CORES and CORES*. The authors: ResNet-34, 100 epochs of SGD 0.1, times 0.1 at 50, batch 64."""

    beta: float = 2.0
    """Weight of the confidence regulariser once it has grown."""

    warmup_epochs: int = 10
    """Epochs without it."""

    ramp_epochs: int = 30
    """Epochs over which it then grows in a straight line."""

    sieve_from: int | None = 31
    """Epochs on all rows before the first sieve, which is then made anew for every epoch; null never sieves."""

    prior: Literal["observed", "kept"] = "observed"
    """Shares of the labels in the regulariser: of all observed labels, or, as in the authors' code, of those that the
    last sieve kept."""

    scale_rate: bool = False
    """Divide the step by 1 + beta, as the authors' code does with its learning rate."""

    star: bool = False
    """CORES*: draw the weights anew and train on kept rows with their labels, and on the others for consistency."""

    sieve_epochs: int | None = None
    """With ``star``: epochs of the first phase, at the end of which the sieve decides; null takes the run's. The
    authors take the sieve of epoch 40."""

    consistency: float = 0.4
    """With ``star``: weight of KL(p(view 1) || p(view 2)) on the rows that were sieved out."""

    unlabelled_batch: int | None = None
    """With ``star``: how many of these rows join each batch; null takes the run's batch size, the authors half."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beta", "warmup_epochs", "ramp_epochs", "consistency"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "zero or more")
        require(self.sieve_from is None or self.sieve_from >= 0, "sieve_from", self.sieve_from, "zero or more, or null")
        for name in ("sieve_epochs", "unlabelled_batch"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "1 or more, or null")


def grown(epoch: int, config: CORESConfig) -> float:
    """beta of a zero-based epoch: 0 in the warm-up, then a straight line up to ``config.beta``."""
    since = epoch - config.warmup_epochs
    if since < 0:
        return 0.0
    return config.beta * (min(1.0, since / config.ramp_epochs) if config.ramp_epochs else 1.0)


def every_loss(logits: Tensor) -> Tensor:
    """Cross-entropy with each class in turn, ``(n, C)``, at most ``-log 1e-8``."""
    return -torch.log_softmax(logits, dim=1).clamp_min(math.log(FLOOR))


def confidence_regularized(logits: Tensor, label: Tensor, prior: Tensor, beta: float) -> Tensor:
    """``CE(y~) - beta sum_c prior_c CE(c)``: the cross-entropy and the confidence regulariser, ``(n,)``."""
    return objectives.classification_loss(logits, label) - beta * (every_loss(logits) * prior).sum(1)


def passes_sieve(logits: Tensor, label: Tensor) -> Tensor:
    """Whether a label's cross-entropy is at most the mean over all classes (Algorithm 1), ``(n,)`` booleans.

    The regulariser stands on both sides of the printed threshold and cancels.
    """
    losses = every_loss(logits)
    return losses.gather(1, label.unsqueeze(1)).squeeze(1) <= losses.mean(1)


class CORES(Denoiser):
    """Confidence-regularised sample sieve; with ``star`` its second phase, consistency training on what is sieved out.

    The sieve looks at images without augmentation as an epoch begins. The two views of consistency training are
    augmented as the run augments; the authors make the second one by AutoAugment.
    """

    name = "cores"
    title = "CORES"
    summary = "rewards confidence and sieves out doubted labels; CORES* trains on both parts"
    distributed = True
    paper = "Cheng et al., Learning with Instance-Dependent Label Noise: A Sample Sieve Approach, ICLR 2021"
    Config = CORESConfig
    neutral: ClassVar[dict[str, Any] | None] = {"beta": 0.0, "sieve_from": None}
    brief: ClassVar[dict[str, Any]] = {"warmup_epochs": 1, "ramp_epochs": 1, "sieve_from": 2, "star": True}

    def build(self, task: Task) -> None:
        if not isinstance(task, ClassTask):
            raise UserError("CORES is for labels of classes, not for pairs of users and items.")
        self.target = task.new_target(0)
        self.kept: Tensor
        self.prior: Tensor
        self.register_buffer("kept", torch.ones(task.n_rows, dtype=torch.bool))
        self.register_buffer("prior", self._shares(task, self.kept.to(task.labels.device)))

    def stages(self) -> list[Stage]:
        if not self.config.star:
            return [Stage("sieve")]
        return [Stage("sieve", epochs=self.config.sieve_epochs), Stage("consistency", reset=("target",))]

    def begin_stage(self, stage: Stage) -> None:
        if stage.name == "consistency":
            self._sieve()

    def begin_epoch(self, stage: Stage, epoch: int) -> None:
        first = self.config.sieve_from
        if stage.name == "sieve" and first is not None and epoch >= first:
            self._sieve()

    def _sieve(self) -> None:
        assert isinstance(self.task, ClassTask)
        kept = passes_sieve(self.task.scan(self.score), self.task.labels)
        if kept.any():  # one that lets nothing through has nothing to say
            self.kept.copy_(kept)
        if self.config.prior == "kept":
            self.prior.copy_(self._shares(self.task, self.kept))

    @staticmethod
    def _shares(task: ClassTask, kept: Tensor) -> Tensor:
        return torch.bincount(task.labels[kept], minlength=task.n_classes) / kept.sum()

    def passes(self, stage: Stage, epoch: int) -> list[Pass]:
        rows, others = self.kept.nonzero().squeeze(1), (~self.kept).nonzero().squeeze(1)
        if stage.name == "sieve" or len(others) == 0:
            return [Pass(rows=rows)]
        return [
            Pass(rows=rows, streams={"others": Pass(rows=others, views=2, batch_size=self.config.unlabelled_batch)})
        ]

    def step(self, stage: Stage, batch: Batch, clock: Clock) -> Iterator[Update]:
        yield self._regularized(batch, clock) if stage.name == "sieve" else self._consistent(batch)

    def _regularized(self, batch: Batch, clock: Clock) -> Update:
        beta = grown(clock.epoch, self.config)
        logits = self.task.call(self.target, batch.inputs)
        loss = confidence_regularized(logits, batch.label, self.prior, beta)
        return Update(loss / (1.0 + beta) if self.config.scale_rate else loss, batch.groups)

    def _consistent(self, batch: Batch) -> Update:
        if "others" not in batch.streams:
            return Update(self.plain_losses(self.target, batch).loss, batch.groups)
        n, views = len(batch.label), batch.streams["others"].views
        logits = self.task.call(self.target, torch.cat([batch.inputs, *views]))
        first, second = logits[n:].chunk(2)
        fit = objectives.classification_loss(logits[:n], batch.label)
        apart = consistency(first, second)
        groups = (n, len(apart))
        return Update(torch.cat([fit, self.config.consistency * apart]), groups, logs={"consistency": apart.mean()})
