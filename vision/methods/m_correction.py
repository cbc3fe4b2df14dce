"""M-correction: a beta mixture on the losses says how far each label is to be trusted; mixup on top."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from recdenoise import objectives
from recdenoise.denoisers.base import Clock, Denoiser, DenoiserConfig, Stage, Update
from recdenoise.errors import UserError
from recdenoise.options import require
from recdenoise.schedules import moment
from recdenoise.task import Batch, Call, ClassTask, Task
from vision.methods import beta_mixture
from vision.methods.class_balance import balance_loss
from vision.methods.mixup import draw_partners, draw_share, mixed


@dataclass(frozen=True)
class MCorrectionConfig(DenoiserConfig):
    """Options of M-correction. The paper: PreAct ResNet-18, 300 epochs of SGD 0.1, times 0.1 at 100 and 250, batch 128,
    decay 1e-4."""

    mixup_alpha: float = 32.0
    """Of the Beta(alpha, alpha) that mixing shares are drawn from, one a batch; 0 mixes nothing."""

    bootstrap: Literal["hard", "soft"] = "hard"
    """What stands in for a doubtful label: the predicted class, or the predicted probabilities."""

    warmup: float = 0.35
    """First epoch, or share of the epochs where below 1, that doubts labels: 105 of 300, after the first fall of the
    learning rate. Before it, mixup alone."""

    balance: float = 1.0
    """Weight of the term that keeps the mean prediction at equal shares, from then on."""

    rounds: int = 10
    """Rounds of EM for the mixture, each epoch anew."""

    both_tails: bool = True
    """Doubt never rises as a loss falls, nor falls as it rises, where the densities' tails cross twice; False mends the
    end of large losses alone, as the published code does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.mixup_alpha >= 0, "mixup_alpha", self.mixup_alpha, "zero or more")
        require(self.warmup > 0, "warmup", self.warmup, "an epoch or share above 0")
        require(self.balance >= 0, "balance", self.balance, "zero or more")
        require(self.rounds >= 1, "rounds", self.rounds, "1 or more")


class MCorrection(Denoiser):
    """Dynamic bootstrapping with mixup: ``(1 - w) y + w z`` stands for the label, z being the prediction.

    w is the posterior of the mixture's component of large losses, given a row's loss, without augmentation, at the
    beginning of the epoch.
    """

    name = "m_correction"
    title = "M-correction"
    summary = "trusts each label by a beta mixture on the losses"
    distributed = True
    paper = "Arazo et al., Unsupervised Label Noise Modeling and Loss Correction, ICML 2019"
    Config = MCorrectionConfig
    neutral: ClassVar[dict[str, Any] | None] = {"mixup_alpha": 0.0, "warmup": 1e9}
    brief: ClassVar[dict[str, Any]] = {"warmup": 1.0}

    def build(self, task: Task) -> None:
        if not isinstance(task, ClassTask):
            raise UserError("M-correction mixes images and their labels; it is for labels of classes.")
        self.target = task.new_target(0)
        self.doubt: Tensor
        self.planned: Tensor
        self.prior: Tensor
        self.register_buffer("doubt", torch.zeros(task.n_rows))
        self.register_buffer("planned", torch.zeros((), dtype=torch.int64))
        self.register_buffer("prior", torch.full((task.n_classes,), 1.0 / task.n_classes), persistent=False)

    def begin_epoch(self, stage: Stage, epoch: int) -> None:
        if epoch > 0 and epoch >= moment(self.config.warmup, int(self.planned)):
            self.doubt.copy_(self.doubts())

    def doubts(self) -> Tensor:
        """``(n_rows,)`` posterior probabilities that a label is wrong, from the losses now."""
        assert isinstance(self.task, ClassTask)
        loss = objectives.classification_loss(self.task.scan(self.score), self.task.labels)
        return beta_mixture.fit(loss, self.config.rounds, self.config.both_tails).large(loss)

    def corrected(self, batch: Batch) -> Tensor:
        """``(n, C)``: labels, each replaced by the prediction for its image as far as it is doubted."""
        with torch.no_grad():
            logits = self.task.call(self.target, batch.inputs)
        classes = logits.shape[1]
        observed = F.one_hot(batch.label, classes).to(logits.dtype)
        if self.config.bootstrap == "hard":
            predicted = F.one_hot(logits.argmax(1), classes).to(logits.dtype)
        else:
            predicted = torch.softmax(logits, dim=1)
        return torch.lerp(observed, predicted, self.doubt[batch.index].to(logits.dtype).unsqueeze(1))

    def step(self, stage: Stage, batch: Batch, clock: Clock) -> Iterator[Update]:
        self.planned.fill_(clock.epochs)
        doubting = clock.epoch >= moment(self.config.warmup, clock.epochs)
        label = self.corrected(batch) if doubting else F.one_hot(batch.label, self.task.n_classes).float()
        inputs = batch.inputs
        if self.config.mixup_alpha:
            share = draw_share(self.config.mixup_alpha)
            partners = draw_partners(len(label), self.parallel).to(label.device)
            inputs, label = (mixed(values, partners, share, self.parallel) for values in (inputs, label))
        logits = self.task.call(self.target, inputs)
        loss = objectives.classification_loss(logits, label.to(logits.dtype))
        if doubting:
            loss = loss + self.config.balance * balance_loss(self.parallel.whole(logits), self.prior)
        yield Update(loss, batch.groups, batch.weight, logs={"doubt": self.doubt[batch.index].mean()})

    def clean_probability(self) -> Tensor:
        """1 minus the mixture's posterior of a wrong label, fitted anew on the losses of the trained network."""
        return 1.0 - self.doubts().float()

    def held_out_probability(self, scan: Callable[[Call], Tensor], label: Tensor) -> Tensor:
        """The mixture on the losses of the training rows, asked about the losses of others."""
        assert isinstance(self.task, ClassTask)
        learned = objectives.classification_loss(self.task.scan(self.score), self.task.labels)
        loss = objectives.classification_loss(scan(self.score), label)
        mixture = beta_mixture.fit(learned, self.config.rounds, self.config.both_tails)
        return 1.0 - mixture.large(loss).float()
