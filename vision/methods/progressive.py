"""What PES and PES (semi) share: layers that are stopped one part after the other, and labels that are agreed with.

Source: Bai et al., *Understanding and Improving Early Stopping for Learning with Noisy Labels* (NeurIPS 2021).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from recdenoise import objectives
from recdenoise.denoisers.base import Clock, DenoiserConfig, Losses, Optim, Stage
from recdenoise.errors import UserError
from recdenoise.options import require
from recdenoise.schedules import Schedule
from recdenoise.task import Batch, ClassTask, Pass, Task
from vision.late_layers import split_layers
from vision.methods.hosting import Host

REFITS = ("refit", "head")
"""Stages in which layers that were drawn anew learn alone."""


@dataclass(frozen=True)
class ProgressiveConfig(DenoiserConfig):
    """Options of progressive early stopping."""

    warm_epochs: float = 0.125
    """T_1: epochs, or share of the run's where below 1, in which the whole network learns from all labels: 25 of 200
    for CIFAR-10. For CIFAR-100 0.15, 30 of 200."""

    refit_epochs: int = 7
    """T_2: epochs in which the late layers and the last one, drawn anew, learn alone; 0 leaves them as they are."""

    head_epochs: int = 5
    """T_3: epochs in which the last layer, drawn anew once more, learns alone; 0 leaves it as it is."""

    refit_lr: float = 1e-4
    """Adam's learning rate in these epochs, without decay of the weights."""

    refit_rows: Literal["agreed", "all"] = "agreed"
    """Rows that these epochs learn from: those whose label the network agrees with, or all, as in the authors' code,
    which chooses rows and then does not use them."""

    refine_late: bool = True
    """Whether the layers that were drawn anew go on learning in ``refine``. False leaves them as the refits left them,
    as in the authors' code, whose optimiser does not know them."""

    late: list | None = None
    """Dotted names of the late layers; null takes the last stage of a ResNet (layer4 of ResNet-18), or the last layer
    with weights before the last one of a plain network."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.warm_epochs > 0, "warm_epochs", self.warm_epochs, "epochs or a share above 0")
        for name in ("refit_epochs", "head_epochs"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "zero or more")
        require(self.refit_lr > 0, "refit_lr", self.refit_lr, "above 0")
        named = self.late is None or all(isinstance(layer, str) and layer for layer in self.late)
        require(named, "late", self.late, "a list of layers by their names, or null")
        if self.late and not self.refit_epochs:
            raise UserError(
                "Option 'late' names layers that refit_epochs: 0 leaves as they are; set refit_epochs to 1 or more."
            )


def class_weights(label: Tensor, n_classes: int, most: float | None = None) -> Tensor:
    """``mean(n) / n_c``: classes with few labels count more, ``(C,)``; 0 for a class without any.

    Args:
        label: ``(m,)`` int64 labels.
        n_classes: number of classes C. The mean is over those that occur.
        most: largest weight; ``None`` sets no bound.
    """
    count = torch.bincount(label, minlength=n_classes).double()
    occurs = count > 0
    weight = torch.where(occurs, count[occurs].mean() / count.clamp_min(1.0), 0.0)
    return (weight if most is None else weight.clamp_max(most)).float()


class Progressive(Host):
    """Stages ``warm``, ``refit``, ``head`` and ``refine`` on one network, and rows that are kept.

    A row is kept where the mean of two augmented views' softmaxes is largest at its label. ``warm`` and ``refine``
    together are the run's epochs; the refits come between them and go on no schedule.
    """

    def build(self, task: Task) -> None:
        if not isinstance(task, ClassTask):
            raise UserError(f"{self.title} draws layers of image classifiers anew; it is for labels of classes.")
        self.target = task.new_target(0)
        late = self.config.late if self.config.refit_epochs else []  # none is asked for where none is drawn anew
        self.layers = split_layers(self.target, task.n_classes, late)
        self.kept: Tensor
        self.register_buffer("kept", torch.ones(task.n_rows, dtype=torch.bool))

    def stages(self) -> list[Stage]:
        options = self.config
        late, head = (tuple(f"target.{name}" for name in part) for part in (self.layers.late, self.layers.head))
        stages = [Stage("warm", selector="last", epochs=options.warm_epochs, begin=0)]
        if options.refit_epochs and late:
            both = late + head
            stages.append(Stage("refit", both, selector="last", epochs=options.refit_epochs, reset=both))
        if options.head_epochs:
            stages.append(Stage("head", head, selector="last", epochs=options.head_epochs, reset=head))
        return [*stages, Stage("refine", begin=options.warm_epochs)]

    def optimizers(self, stage: Stage) -> dict[str, Optim]:
        if stage.name not in REFITS:
            declared = super().optimizers(stage)
            if stage.name != "refine" or self.config.refine_late:
                return declared
            early = {f"target.{name}": self.config.l2 for name in self.layers.early}
            return {"target": replace(declared["target"], modules=early)}
        modules = dict.fromkeys(stage.train, self.config.l2)
        rate = self.config.refit_lr
        return {"target": Optim(modules, algorithm="adam", lr=rate, weight_decay=0.0, schedule=Schedule())}

    def begin_stage(self, stage: Stage) -> None:
        if stage.name in REFITS and self.config.refit_rows == "agreed":
            self.select()

    def begin_epoch(self, stage: Stage, epoch: int) -> None:
        if stage.name == "refine":
            self.select()

    def select(self) -> None:
        """Keep the rows whose label is the class that :meth:`believed` gives most to."""
        assert isinstance(self.task, ClassTask)
        agreed = self.believed().argmax(1) == self.task.labels
        if agreed.any():  # a network that agrees with nobody has nothing to say
            self.kept.copy_(agreed)

    def believed(self) -> Tensor:
        """``(n_rows, C)``: the mean of the softmaxes of two augmented views of each row."""
        assert isinstance(self.task, ClassTask)
        first, second = (torch.softmax(self.task.scan(self.score, augment=True), dim=1) for _ in range(2))
        return (first + second) / 2

    def kept_rows(self, stage: Stage) -> Tensor | None:
        """``(m,)`` int64 rows that a stage learns from; ``None`` for all."""
        everything = stage.name == "warm" or (stage.name in REFITS and self.config.refit_rows == "all")
        return None if everything else self.kept.nonzero().squeeze(1)

    def passes(self, stage: Stage, epoch: int) -> list[Pass]:
        rows = self.kept_rows(stage)
        if rows is None:
            return [Pass()]
        if self.balanced:  # the rows that are drawn have equal shares already
            return [Pass(rows=rows)]
        assert isinstance(self.task, ClassTask)
        labels = self.task.labels
        return [Pass(rows=rows, weights=class_weights(labels[rows], self.task.n_classes)[labels])]

    @property
    def balanced(self) -> bool:
        """Whether a sweep draws a sample with as many rows of a class as of another (``epoch_images``)."""
        return getattr(self.task, "epoch_images", None) is not None

    def losses(self, batch: Batch, clock: Clock) -> Losses:
        """Cross-entropy, weighted by class where rows are kept: a mean by weight over the whole batch."""
        heads = self.heads(self.target, batch.inputs, batch.label)
        loss = self.over_heads(heads, lambda logits: objectives.classification_loss(logits, batch.label))
        if batch.weight is None:
            return Losses(loss)
        weight = batch.weight / self.parallel.gather(batch.weight).mean()
        return Losses(loss, weight, {"kept": self.kept.float().mean()})
