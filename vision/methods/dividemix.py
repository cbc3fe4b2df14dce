"""DivideMix: two networks divide the rows for each other by their losses, and learn from both parts by MixMatch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from recdenoise import objectives
from recdenoise.denoisers.base import Clock, Optim, Stage, Update
from recdenoise.errors import UserError
from recdenoise.options import require
from recdenoise.task import Batch, Call, ClassTask, Pass, Task
from vision.methods import gaussian_mixture
from vision.methods import semi_supervised as semi
from vision.methods.class_balance import balance_loss
from vision.methods.joint_optim import entropy
from vision.methods.small_loss import TwoNetworks

NETWORKS = ("target", "second")
"""Each is trained in the pass of its place."""


@dataclass(frozen=True)
class DivideMixConfig(semi.MixMatchConfig):
    """Options of DivideMix. The paper: two PreAct ResNet-18, 300 epochs of SGD 0.02, times 0.1 at 150, batch 64, decay
    5e-4; lambda_u from 0 to 150 by data set and noise."""

    warm_epochs: float = 10.0
    """Epochs, or share of the run's where below 1, on all labels before the first division; 30 for CIFAR-100."""

    confidence_penalty: float = 0.0
    """Weight of the penalty on confident predictions (minus their entropy) in these epochs: 1 for asymmetric noise,
    which else is learned with small losses."""

    threshold: float = 0.5
    """Rows with a larger posterior of small losses are labelled, the others unlabelled; 0.6 at 90% noise."""

    loss_epochs: int = 1
    """Epochs, this one included, whose losses are averaged before they are divided; 5 at 90% noise."""

    balance: float = 1.0
    """Weight of the term that keeps the mean prediction at equal shares."""

    answer: Literal["mean", "first"] = "mean"
    """Which network validates and classifies: the mean of both softmaxes, or the first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.warm_epochs > 0, "warm_epochs", self.warm_epochs, "an epoch or share above 0")
        require(0 <= self.threshold < 1, "threshold", self.threshold, "at least 0 and below 1")
        require(self.loss_epochs >= 1, "loss_epochs", self.loss_epochs, "1 or more")
        for name in ("confidence_penalty", "balance"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "zero or more")


class DivideMix(TwoNetworks):
    """Algorithm 1: co-divide, co-refine, co-guess, MixMatch; an epoch has a pass for each network.

    As an epoch begins, a mixture of two Gaussians is fitted to each network's losses without augmentation. Its
    posterior of small losses says how far a label is to be trusted, and divides the rows for the other network.
    Pseudo-labels are those of the network that learns, in training mode, and, for unlabelled rows, of its peer in eval
    mode.

    Where a mixture trusts no row there is nothing to learn from: all labels are then taken as right for that epoch.
    Where it trusts every row, MixMatch goes on without unlabelled images.
    """

    name = "dividemix"
    title = "DivideMix"
    summary = "two networks divide labels by a Gaussian mixture on losses, and learn from both parts by MixMatch"
    distributed = True
    paper = "Li et al., DivideMix: Learning with Noisy Labels as Semi-supervised Learning, ICLR 2020"
    Config = DivideMixConfig
    neutral = None
    neutral_reason = "its networks replace labels by what they agree on, and mix images"
    brief: ClassVar[dict[str, Any]] = {"warm_epochs": 1.0, "ramp_epochs": 1.0, "lambda_u": 1.0}

    def build(self, task: Task) -> None:
        if not isinstance(task, ClassTask):
            raise UserError("DivideMix mixes images and their labels; it is for labels of classes.")
        super().build(task)
        self.trust: Tensor
        self.clean: Tensor
        self.past: Tensor
        self.scans: Tensor
        self.prior: Tensor
        self.register_buffer("trust", torch.ones(2, task.n_rows))
        self.register_buffer("clean", torch.ones(2, task.n_rows, dtype=torch.bool))
        self.register_buffer("past", torch.zeros(self.config.loss_epochs, 2, task.n_rows))
        self.register_buffer("scans", torch.zeros((), dtype=torch.int64))
        self.register_buffer("prior", torch.full((task.n_classes,), 1.0 / task.n_classes), persistent=False)

    def stages(self) -> list[Stage]:
        warm = Stage("warm", NETWORKS, selector="last", epochs=self.config.warm_epochs, begin=0)
        return [warm, Stage("train", NETWORKS, begin=self.config.warm_epochs)]

    def optimizers(self, stage: Stage) -> dict[str, Optim]:
        return {name: Optim({name: self.config.l2}) for name in NETWORKS}

    # Division

    def begin_epoch(self, stage: Stage, epoch: int) -> None:
        if stage.name == "warm":
            return
        loss = self.row_losses()
        self.past[int(self.scans) % self.config.loss_epochs] = torch.stack(
            [gaussian_mixture.normalised(each) for each in loss]
        )
        self.scans += 1
        seen = self.past[: min(int(self.scans), self.config.loss_epochs)].mean(0)
        for network in range(len(NETWORKS)):
            trust = gaussian_mixture.fit(seen[network]).small(seen[network])
            clean = trust > self.config.threshold
            if int(clean.sum()) < self.parallel.size:
                trust, clean = torch.ones_like(trust), torch.ones_like(clean)
            self.trust[network], self.clean[network] = trust, clean

    def row_losses(self) -> Tensor:
        """``(2, n_rows)`` cross-entropy of every row with its observed label in both networks, one look at each."""
        assert isinstance(self.task, ClassTask)
        logits = self.task.scan(lambda inputs: torch.stack(self.logits(inputs), dim=1))
        return torch.stack([objectives.classification_loss(each, self.task.labels) for each in logits.unbind(1)])

    def passes(self, stage: Stage, epoch: int) -> list[Pass]:
        if stage.name == "warm":
            return [Pass(), Pass()]
        return [self._divided(self.clean[1 - network]) for network in range(len(NETWORKS))]

    def _divided(self, clean: Tensor) -> Pass:
        rows, others = clean.nonzero().squeeze(1), (~clean).nonzero().squeeze(1)
        if len(others) < self.parallel.size:
            return Pass(rows=rows, views=2)
        return Pass(rows=rows, views=2, streams={"unlabelled": Pass(rows=others, views=2)})

    # Steps

    def step(self, stage: Stage, batch: Batch, clock: Clock) -> Iterator[Update]:
        if stage.name == "warm":
            yield self._warm(NETWORKS[clock.sweep], batch)
        else:
            yield self._mixmatch(clock.sweep, batch, self.config.lambda_u * self._ramp(clock))

    def _ramp(self, clock: Clock) -> float:
        return semi.ramp(clock.epoch + clock.within, 0.0, self.config.ramp_epochs)

    def _warm(self, name: str, batch: Batch) -> Update:
        logits = self.task.call(self.module(name), batch.inputs)
        loss = objectives.classification_loss(logits, batch.label)
        if self.config.confidence_penalty:
            loss = loss - self.config.confidence_penalty * entropy(logits)
        return Update(loss, batch.groups, optimizer=name)

    def _mixmatch(self, network: int, batch: Batch, unlabelled_weight: float) -> Update:
        config, name = self.config, NETWORKS[network]
        others = batch.streams["unlabelled"].views if "unlabelled" in batch.streams else ()
        label, guess = self._pseudo_labels(network, batch, others)
        mixed = semi.mix(batch.views, label, others, guess, config.mixup_alpha, self.parallel)
        logits = self.task.call(self.module(name), mixed.inputs)
        loss = semi.mixmatch_loss(logits, mixed.target, mixed.labelled, unlabelled_weight)
        logs = {"labelled": loss.detach()[: mixed.labelled].mean()}
        if config.balance:
            balance = config.balance * balance_loss(self.parallel.whole(logits), self.prior)
            loss = torch.cat([loss[: mixed.labelled] + balance, loss[mixed.labelled :]])
        return Update(loss, mixed.groups, optimizer=name, logs=logs)

    @torch.no_grad()
    def _pseudo_labels(self, network: int, batch: Batch, others: tuple[Any, ...]) -> tuple[Tensor, Tensor | None]:
        """Refined labels ``(b, C)`` of labelled rows, and guesses ``(u, C)`` for the others where there are some."""
        own, peer = (self.module(NETWORKS[k]) for k in (network, 1 - network))
        n, views = len(batch.label), len(batch.views)
        logits = self.task.call(own, torch.cat([*batch.views, *others]))
        observed = F.one_hot(batch.label, self.task.n_classes)
        trust = self.trust[1 - network][batch.index]
        label = semi.refined(observed, logits[: n * views].chunk(views), trust, self.config.temperature)
        if not others:
            return label, None
        with semi.at_rest(peer):
            second = self.task.call(peer, torch.cat(others))
        looks = [*logits[n * views :].chunk(len(others)), *second.chunk(len(others))]
        return label, semi.guessed(looks, self.config.temperature)

    def clean_probability(self) -> Tensor:
        """The mean of both networks' posteriors of small losses, fitted anew on the losses of the trained networks."""
        found = [gaussian_mixture.fit(each).small(each) for each in self.row_losses()]
        return torch.stack(found).mean(0).float()

    def held_out_probability(self, scan: Callable[[Call], Tensor], label: Tensor) -> Tensor:
        """The mixtures on the losses of the training rows, asked about the losses of others."""
        answers = scan(lambda inputs: torch.stack(self.logits(inputs), dim=1)).unbind(1)
        losses = [objectives.classification_loss(logits, label) for logits in answers]
        pairs = zip(self.row_losses(), losses, strict=True)
        return torch.stack([gaussian_mixture.fit(learned).small(loss) for learned, loss in pairs]).mean(0).float()
