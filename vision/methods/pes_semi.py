"""PES (semi): late layers stop early; then MixMatch, with labels where the network agrees with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from recdenoise.denoisers.base import Clock, Stage, Update
from recdenoise.options import require
from recdenoise.schedules import moment
from recdenoise.task import Batch, ClassTask, Pass, Task
from vision.methods import semi_supervised as semi
from vision.methods.progressive import Progressive, ProgressiveConfig, class_weights

MOST = 3.0
"""Largest weight of a class, as in the authors' code: that of a class with hardly a row would be without measure."""


@dataclass(frozen=True)
class PESSemiConfig(semi.MixMatchConfig, ProgressiveConfig):
    """Options of PES with semi-supervision. The paper: PreAct ResNet-18, 300 epochs of SGD 0.02 that falls along a
    cosine to a hundredth, batch 128, decay 5e-4, all images; lambda_u from 5 to 150 by data set and noise."""

    warm_epochs: float = 0.0667
    """T_1: epochs, or share of the run's where below 1, in which the whole network learns from all labels: 20 of 300
    for CIFAR-10. For CIFAR-100 0.1167, 35 of 300."""

    refit_epochs: int = 0
    """Epochs in which the late layers and the last one, drawn anew, learn alone; 0 leaves them as they are."""

    lambda_u: float = 5.0
    """Weight of the loss of unlabelled images once it has grown; more of it for more noise."""

    late_alpha: float = 0.75
    """``mixup_alpha`` of the later epochs."""

    late_alpha_from: float = 0.5
    """The first of them: an epoch of the run, or a share of its epochs where below 1; 150 of 300."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.late_alpha >= 0, "late_alpha", self.late_alpha, "zero or more")
        require(self.late_alpha_from > 0, "late_alpha_from", self.late_alpha_from, "an epoch or share above 0")


class PESSemi(Progressive):
    """Progressive early stopping, then MixMatch: rows that the network agrees with are labelled, the others are not.

    ``warm``: everything, from all labels. ``head`` (T_2 of the paper): the last layer drawn anew, the rest frozen.
    ``refine``: MixMatch; rows are divided as each epoch begins. A batch has as many unlabelled images as their share
    of the rows, at most half, and an epoch as many steps as one over all rows. Classes with few kept rows count more
    in the loss of labelled images. Labels are taken as they are; guesses are the network's own, in training mode, over
    both views.

    Where the network agrees with no row, those kept before stay; where it agrees with all, nothing is unlabelled.
    """

    name = "pes_semi"
    title = "PES (semi)"
    summary = "stops late layers early, then learns by MixMatch with the labels it agrees with"
    distributed = True
    paper = "Bai et al., Understanding and Improving Early Stopping for Learning with Noisy Labels, NeurIPS 2021"
    Config = PESSemiConfig
    neutral = None
    neutral_reason = "it draws layers anew, replaces labels that it does not agree with, and mixes images"
    brief: ClassVar[dict[str, Any]] = {
        "warm_epochs": 1.0,
        "head_epochs": 1,
        "refit_lr": 0.02,
        "refit_rows": "all",
        "lambda_u": 1.0,
        "ramp_epochs": 1.0,
    }

    def build(self, task: Task) -> None:
        super().build(task)
        self.class_weight: torch.Tensor
        self.register_buffer("class_weight", torch.ones(task.n_classes))

    def select(self) -> None:
        super().select()
        if self.balanced:
            return
        assert isinstance(self.task, ClassTask)
        self.class_weight.copy_(class_weights(self.task.labels[self.kept], self.task.n_classes, MOST))

    def passes(self, stage: Stage, epoch: int) -> list[Pass]:
        if stage.name != "refine":
            return super().passes(stage, epoch)
        rows, others = self.kept.nonzero().squeeze(1), (~self.kept).nonzero().squeeze(1)
        if len(others) < self.parallel.size:
            return [Pass(rows=rows, views=2)]
        whole = int(self.task.batch_size)  # type: ignore[attr-defined]
        labelled, unlabelled = self.batch_sizes(len(rows), len(others), whole)
        streams = {"unlabelled": Pass(rows=others, views=2, batch_size=unlabelled)}
        images = min(getattr(self.task, "epoch_images", None) or self.task.n_rows, self.task.n_rows)
        steps = max(1, images // whole)
        return [Pass(rows=rows, views=2, batch_size=labelled, steps=steps, streams=streams)]

    def batch_sizes(self, labelled: int, unlabelled: int, whole: int) -> tuple[int, int]:
        """How a batch of ``whole`` is shared by so many labelled and unlabelled rows; processes get equal parts."""
        size = self.parallel.size
        share = min(0.5, unlabelled / (labelled + unlabelled))
        second = max(size, int(share * whole) // size * size)
        return max(size, whole - second), second

    def step(self, stage: Stage, batch: Batch, clock: Clock) -> Iterator[Update]:
        if stage.name == "refine":
            yield self._mixmatch(batch, clock)
        else:
            yield from super().step(stage, batch, clock)

    def _alpha(self, clock: Clock) -> float:
        run = clock.begun + clock.epochs
        late = clock.begun + clock.epoch >= moment(self.config.late_alpha_from, run)
        return self.config.late_alpha if late else self.config.mixup_alpha

    def _mixmatch(self, batch: Batch, clock: Clock) -> Update:
        config = self.config
        others = batch.streams["unlabelled"].views if "unlabelled" in batch.streams else ()
        guess = None
        if others:
            with torch.no_grad():
                logits = self.task.call(self.target, torch.cat(others))
            guess = semi.guessed(logits.chunk(len(others)), config.temperature)
        label = F.one_hot(batch.label, self.task.n_classes).to(batch.inputs.dtype)
        mixed = semi.mix(batch.views, label, others, guess, self._alpha(clock), self.parallel)
        weight = config.lambda_u * semi.ramp(clock.epoch + clock.within, 0.0, config.ramp_epochs)
        loss = self.over_heads(
            self.heads(self.target, mixed.inputs),
            lambda logits: semi.mixmatch_loss(logits, mixed.target, mixed.labelled, weight, self.class_weight),
        )
        return Update(loss, mixed.groups, logs={"kept": self.kept.float().mean()})
