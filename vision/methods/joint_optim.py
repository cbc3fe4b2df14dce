"""Joint-Optim: labels are trained as the network is, from its own predictions; a new network then learns from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from recdenoise import objectives
from recdenoise.denoisers.base import Clock, Denoiser, DenoiserConfig, Optim, Stage, Update
from recdenoise.errors import UserError
from recdenoise.options import require
from recdenoise.schedules import Schedule, moment
from recdenoise.task import Batch, Call, ClassTask, Pass, Task
from vision.methods.class_balance import balance_loss


@dataclass(frozen=True)
class JointOptimConfig(DenoiserConfig):
    """Options of Joint-Optim. The paper: PreAct ResNet-32, batch 128, decay 1e-4; 200 epochs at one high learning rate
    for the labels, then 120 of SGD 0.2, times 0.1 at 40 and 80, on them."""

    alpha: float = 1.2
    """Weight of the term that keeps the mean prediction at the prior."""

    beta: float = 0.8
    """Weight of the entropy of each prediction."""

    relabel_from: float = 0.35
    """First epoch, or share of the epochs where below 1, that is on the network's labels: 70 of 200."""

    memory: int = 10
    """Epochs whose predictions are averaged into a label."""

    labels: Literal["soft", "hard"] = "soft"
    """``soft``: the averages themselves; ``hard``: their largest class."""

    prior: Literal["uniform", "observed"] = "uniform"
    """Class shares that predictions are kept at: equal ones, or those of the observed labels."""

    label_epochs: int | None = None
    """Epochs in which labels are found; null takes the run's."""

    label_schedule: Literal["run", "constant"] = "run"
    """Learning rate while labels are found: the run's schedule, or constant, as in the paper."""

    label_lr: float | None = None
    """Learning rate while labels are found, before its schedule; null takes the run's. The authors' code: 0.1, and 0.2
    for the second network."""

    retrain: bool = True
    """Train a network from new weights on the labels found; False keeps the one that found them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.alpha >= 0, "alpha", self.alpha, "zero or more")
        require(self.beta >= 0, "beta", self.beta, "zero or more")
        require(self.relabel_from > 0, "relabel_from", self.relabel_from, "an epoch or share above 0")
        require(self.memory >= 1, "memory", self.memory, "1 or more")
        if self.label_epochs is not None:
            require(self.label_epochs >= 1, "label_epochs", self.label_epochs, "1 or more")
        require(self.label_lr is None or self.label_lr > 0, "label_lr", self.label_lr, "above 0, or null")


def divergence_from_labels(logits: Tensor, label: Tensor) -> Tensor:
    """``KL(y || softmax)`` of ``(n, C)`` soft labels, L_c: ``(n,)``, cross-entropy where labels are certain."""
    label = label.to(logits.dtype)
    return torch.xlogy(label, label).sum(1) + F.cross_entropy(logits, label, reduction="none")


def entropy(logits: Tensor) -> Tensor:
    """``-sum_c s_c log s_c`` of each softmax, L_e; ``(n,)``."""
    log_s = torch.log_softmax(logits, dim=1)
    return -(log_s.exp() * log_s).sum(1)


class JointOptim(Denoiser):
    """Alternating optimisation of labels and network (Algorithm 1), with ``L_c + alpha L_p + beta L_e``.

    Predictions are those of the training steps, so they cost nothing. A row that an epoch left out keeps older ones.
    """

    name = "joint_optim"
    title = "Joint-Optim"
    summary = "replaces labels by the mean of its last predictions"
    distributed = True
    paper = "Tanaka et al., Joint Optimization Framework for Learning with Noisy Labels, CVPR 2018"
    Config = JointOptimConfig
    neutral: ClassVar[dict[str, Any] | None] = {"alpha": 0.0, "beta": 0.0, "relabel_from": 1e9, "retrain": False}
    brief: ClassVar[dict[str, Any]] = {"relabel_from": 1.0, "memory": 2}

    def build(self, task: Task) -> None:
        if not isinstance(task, ClassTask):
            raise UserError("Joint-Optim finds new labels among classes; it is for labels of classes.")
        self.target = task.new_target(0)
        self.predictions: Tensor
        self.found: Tensor
        self.planned: Tensor
        self.prior: Tensor
        observed = F.one_hot(task.labels, task.n_classes).float()
        uniform = torch.full((task.n_classes,), 1.0 / task.n_classes, device=observed.device)
        self.register_buffer("predictions", torch.zeros(task.n_rows, self.config.memory, task.n_classes))
        self.register_buffer("found", observed)
        self.register_buffer("planned", torch.zeros((), dtype=torch.int64))
        self.register_buffer("prior", uniform if self.config.prior == "uniform" else observed.mean(0), persistent=False)

    def stages(self) -> list[Stage]:
        options = self.config
        # With a second network the labels are those of the last epochs: an earlier epoch's would not belong to them.
        selector = "last" if options.retrain else None
        labels = Stage("labels", selector=selector, epochs=options.label_epochs, lr=options.label_lr)
        return [labels, Stage(reset=("target",))] if options.retrain else [labels]

    def optimizers(self, stage: Stage) -> dict[str, Optim]:
        declared = super().optimizers(stage)
        if stage.name == "labels" and self.config.label_schedule == "constant":
            return {name: replace(optim, schedule=Schedule()) for name, optim in declared.items()}
        return declared

    def begin_stage(self, stage: Stage) -> None:
        if stage.name == "train":
            self.relabel(int(self.planned))

    def begin_epoch(self, stage: Stage, epoch: int) -> None:
        if stage.name == "labels" and epoch > 0:
            self.relabel(epoch)

    def relabel(self, epoch: int) -> None:
        """Average the predictions into labels, once that is due; a row without predictions keeps its label."""
        if epoch < moment(self.config.relabel_from, int(self.planned)):
            return
        total = self.predictions.sum(1)  # a prediction sums to 1, a missing one to 0
        seen = total.sum(1, keepdim=True)
        mean = total / seen.clamp_min(1e-6)
        if self.config.labels == "hard":
            mean = F.one_hot(mean.argmax(1), mean.shape[1]).to(mean.dtype)
        self.found.copy_(torch.where(seen > 0.5, mean, self.found))

    def passes(self, stage: Stage, epoch: int) -> list[Pass]:
        return [Pass(labels=self.found)]

    def step(self, stage: Stage, batch: Batch, clock: Clock) -> Iterator[Update]:
        logits = self.task.call(self.target, batch.inputs)
        loss = divergence_from_labels(logits, batch.label)
        if stage.name == "labels":
            self.planned.fill_(clock.epochs)
            rows, predicted = self.parallel.gather(batch.index), torch.softmax(logits.detach(), dim=1)
            self.predictions[rows, clock.epoch % self.config.memory] = self.parallel.gather(predicted)
            balance = balance_loss(self.parallel.whole(logits), self.prior)
            loss = loss + self.config.alpha * balance + self.config.beta * entropy(logits)
        yield Update(loss, batch.groups, batch.weight)

    def clean_probability(self) -> Tensor:
        """What the label found gives to the observed class; before any was found, what the network gives."""
        assert isinstance(self.task, ClassTask)
        kept = self.found.gather(1, self.task.labels.unsqueeze(1)).squeeze(1)
        return super().clean_probability() if bool((kept == 1).all()) else kept

    def held_out_probability(self, scan: Callable[[Call], Tensor], label: Tensor) -> Tensor:
        """What a label found from the network's answer would give to the observed class."""
        logits = scan(self.score)
        if self.config.labels == "hard":
            return (logits.argmax(1) == label).float()
        return objectives.observed_probability(logits, label)
