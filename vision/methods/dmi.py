"""DMI: the determinant of the joint matrix of predictions and labels, which noise can only scale."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from recdenoise.denoisers.base import Clock, Denoiser, DenoiserConfig, Optim, Stage, Update
from recdenoise.options import require
from recdenoise.schedules import Schedule
from recdenoise.selection import check_class_selector
from recdenoise.task import Batch


@dataclass(frozen=True)
class DMIConfig(DenoiserConfig):
    """Options of DMI. The paper starts from a network trained with cross-entropy."""

    dmi_lr: float = 1e-6
    """Learning rate of SGD on the determinant; it follows no schedule."""

    dmi_epochs: int | None = None
    """Epochs on the determinant; null takes the run's."""

    epsilon: float = 0.001
    """Added to the determinant before its log."""

    scaled: bool = False
    """Multiply the joint matrix by the number of classes, so that a perfect classifier has determinant 1 and not
    C^-C, which ``epsilon`` hides for many classes. Published: False."""

    warm_epochs: int | None = None
    """Epochs of cross-entropy beforehand; null takes the run's."""

    warm_selector: str = "accuracy"
    """How the epoch to start from is chosen."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.dmi_lr > 0, "dmi_lr", self.dmi_lr, "above 0")
        require(self.epsilon > 0, "epsilon", self.epsilon, "above 0")
        for name in ("dmi_epochs", "warm_epochs"):
            epochs = getattr(self, name)
            if epochs is not None:
                require(epochs >= 1, name, epochs, "1 or more")
        check_class_selector(self.warm_selector)


def determinant_loss(logits: Tensor, label: Tensor, epsilon: float = 0.001, scaled: bool = False) -> Tensor:
    """``-log(|det U| + epsilon)`` with ``U[c, j] = mean p_c 1[y~ = j]``, a scalar of the whole batch.

    Args:
        logits: ``(n, C)`` logits.
        label: ``(n,)`` int64 observed labels.
        epsilon: above 0.
        scaled: whether U is multiplied by C.
    """
    p = torch.softmax(logits.double(), dim=1)  # the determinant of ten classes is at most 1e-10
    classes = p.shape[1]
    joint = p.t() @ torch.nn.functional.one_hot(label, classes).to(p.dtype) / len(label)
    return -torch.log(torch.linalg.det(joint * classes if scaled else joint).abs() + epsilon).to(logits.dtype)


class DMI(Denoiser):
    """Determinant-based mutual information: a network from cross-entropy goes on with ``-log(|det U| + epsilon)``.

    A transition T of the labels turns U into ``U T``: the determinant is multiplied by a constant, so that the best
    classifier on noisy labels is the best on clean ones.
    """

    name = "dmi"
    title = "DMI"
    summary = "maximises the determinant of predictions and labels"
    distributed = True
    paper = (
        "Xu et al., L_DMI: A Novel Information-theoretic Loss Function for Training Deep Nets Robust to Label Noise, "
        "NeurIPS 2019"
    )
    Config = DMIConfig
    neutral = None
    neutral_reason = "the loss is one of whole batches, without cross-entropy"
    loss_selector_note = (
        "its loss tells classes apart but not how sure to be of them, so that the validation loss says little; choose "
        "by accuracy, or keep the last epoch"
    )
    brief: ClassVar[dict[str, Any]] = {"scaled": True}

    def stages(self) -> list[Stage]:
        options = self.config
        return [
            Stage("baseline", selector=options.warm_selector, epochs=options.warm_epochs),
            Stage(epochs=options.dmi_epochs, lr=options.dmi_lr),
        ]

    def optimizers(self, stage: Stage) -> dict[str, Optim]:
        if stage.name == "baseline":
            return super().optimizers(stage)
        return {"target": Optim({"target": self.config.l2}, algorithm="sgd", lr=stage.lr, schedule=Schedule())}

    def step(self, stage: Stage, batch: Batch, clock: Clock) -> Iterator[Update]:
        if stage.name == "baseline":
            yield from super().step(stage, batch, clock)
            return
        logits = self.task.call(self.target, batch.inputs)
        every, label = self.parallel.whole(logits), self.parallel.gather(batch.label)
        loss = determinant_loss(every, label, self.config.epsilon, self.config.scaled)
        yield Update(loss.expand(len(batch.label)), batch.groups)
