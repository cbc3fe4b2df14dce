"""SOP: every row has a sparse noise of its own beside the network, and takes the wrong label's blame."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recdenoise.denoisers.base import Clock, DenoiserConfig, Stage, Update
from recdenoise.errors import UserError
from recdenoise.options import require
from recdenoise.task import Batch, ClassTask, Task
from vision.methods.hosting import Host

FLOOR = 1e-4
"""Least probability of a class, and least sum that probabilities are divided by."""

RATES = {"symmetric": (1.0, 10.0), "asymmetric": (0.1, 100.0)}
"""Learning rates of u and v by the kind of noise (Table A.1)."""


@dataclass(frozen=True)
class SOPConfig(DenoiserConfig):
    """Options of SOP. The paper: PreAct ResNet-18, 300 epochs of SGD 0.02 on a cosine down to 2e-4, batch 128, decay
    1e-3."""

    noise: Literal["symmetric", "asymmetric"] = "symmetric"
    """Kind of label noise, by which ``lr_u`` and ``lr_v`` are chosen: 1 and 10, or 0.1 and 100."""

    lr_u: float | None = None
    """Learning rate of u, without momentum, decay or schedule; null takes that of the kind of noise."""

    lr_v: float | None = None
    """Learning rate of v, likewise."""

    init_std: float = 1e-8
    """Standard deviation of u and v as training begins."""

    u_loss: Literal["ce", "both"] = "ce"
    """What moves u: cross-entropy, as printed, or the squared error as well, as in the authors' code."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lr_u", "lr_v"):
            value = getattr(self, name)
            require(value is None or value >= 0, name, value, "zero or more, or null")
        require(self.init_std >= 0, "init_std", self.init_std, "zero or more")

    @property
    def rates(self) -> tuple[float, float]:
        """Learning rates of u and v."""
        of_u, of_v = RATES[self.noise]
        return of_u if self.lr_u is None else self.lr_u, of_v if self.lr_v is None else self.lr_v


class SparseNoise(nn.Module):
    """``s = u^2 y - v^2 (1 - y)`` of every row, y its one-hot label: what its label says too much and too little.

    u and v are moved row by row and by rules of their own: they are buffers, which are saved like any.

    Args:
        n_rows: of the training set.
        n_classes: C.
        std: of the initial values.
    """

    def __init__(self, n_rows: int, n_classes: int, std: float) -> None:
        super().__init__()
        self.u: Tensor
        self.v: Tensor
        self.register_buffer("u", std * torch.randn(n_rows, 1))
        self.register_buffer("v", std * torch.randn(n_rows, n_classes))

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """u ``(n, 1)`` and v ``(n, C)`` of some rows, as leaves to differentiate by."""
        return self.u[index].requires_grad_(), self.v[index].requires_grad_()


def noise_of(u: Tensor, v: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
    """``u^2 y`` and ``v^2 (1 - y)``, at most 1; ``(n, C)`` each.

    Args:
        u: ``(n, 1)``.
        v: ``(n, C)``.
        observed: ``(n, C)`` one-hot labels y.
    """
    return (u.square() * observed).clamp(0.0, 1.0), (v.square() * (1.0 - observed)).clamp(0.0, 1.0)


def with_noise(logits: Tensor, more: Tensor, less: Tensor) -> Tensor:
    """``phi(softmax + u^2 y - v^2 (1 - y))``: what network and noise say together, ``(n, C)`` probabilities.

    phi raises what is below :data:`FLOOR` to it and divides by the sum. No gradient reaches v.

    Args:
        logits: ``(n, C)``.
        more, less: of :func:`noise_of`.
    """
    raised = (torch.softmax(logits, dim=1) + more - less.detach()).clamp_min(FLOOR)
    return (raised / raised.sum(1, keepdim=True).clamp_min(FLOOR)).clamp(FLOOR, 1.0)


def squared_error(logits: Tensor, more: Tensor, less: Tensor, observed: Tensor) -> Tensor:
    """``||h + u^2 y - v^2 (1 - y) - y||^2`` with h the predicted class, one-hot and without gradient; ``(n,)``."""
    predicted = F.one_hot(logits.detach().argmax(1), logits.shape[1]).to(less.dtype)
    return (predicted + more - less - observed).square().sum(1)


class SOP(Host):
    """Sparse over-parameterisation (Algorithm 1): cross-entropy of ``phi(f + s)`` moves network and u, an error v.

    Gradient steps on the squares u^2 and v^2 leave small values where they are and let those grow that keep explaining
    a label which the network does not: they favour a sparse s. Networks of several heads have one loss on the mean of
    their logits.
    """

    name = "sop"
    title = "SOP"
    summary = "learns a sparse noise of every label beside the network"
    distributed = True
    paper = "Liu et al., Robust Training under Label Noise by Over-parameterization, ICML 2022"
    Config = SOPConfig
    neutral = None
    neutral_reason = "a class counts with a probability of 1e-4 at least, also where there is no noise"
    loss_selector_note = (
        "it predicts the true class and the validation loss asks for the given one, so that being surely right about a "
        "wrong label costs most; choose by accuracy, or keep the last epoch"
    )
    brief: ClassVar[dict[str, Any]] = {"init_std": 0.1}
    one_loss = True

    def build(self, task: Task) -> None:
        if not isinstance(task, ClassTask):
            raise UserError(f"{self.title} learns which class a label says too much of; it is for labels of classes.")
        self.target = task.new_target(0)
        size, std = (task.n_rows, task.n_classes), self.config.init_std
        noise = task.new_module(lambda: SparseNoise(*size, std), "noise")
        assert isinstance(noise, SparseNoise)
        self.noise = noise

    def step(self, stage: Stage, batch: Batch, clock: Clock) -> Iterator[Update]:
        logits = self.over_heads(self.heads(self.target, batch.inputs, batch.label), lambda each: each)
        yield self.update(batch, logits, None)

    def update(self, batch: Batch, logits: Tensor, second: Tensor | None) -> Update:
        """Move the batch's rows of u and v, and return the network's update.

        Args:
            batch: whose rows they are.
            logits: ``(n, C)`` of the inputs.
            second: the same of another view, where there is one.
        """
        observed = F.one_hot(batch.label, logits.shape[1]).to(logits.dtype)
        u, v = self.noise.rows(batch.index)
        more, less = noise_of(u, v, observed)
        together = with_noise(logits, more, less)
        loss = -together.gather(1, batch.label.unsqueeze(1)).squeeze(1).log()
        loss = loss + self.regularizers(logits, second, together)
        both = self.config.u_loss == "both"
        error = squared_error(logits, more if both else more.detach(), less, observed)
        whole = len(loss) * self.parallel.size
        (of_u,) = torch.autograd.grad((loss + error if both else loss).sum() / whole, u, retain_graph=True)
        (of_v,) = torch.autograd.grad(error.sum() / whole, v)
        self._move(batch.index, (u, of_u), (v, of_v))
        logs = {"squared_error": error.detach().mean(), "noise": (more + less).detach().sum(1).mean()}
        return Update(loss, batch.groups, batch.weight, logs=logs)

    def regularizers(self, logits: Tensor, second: Tensor | None, together: Tensor) -> Tensor:
        """What is added to the cross-entropy: nothing here. ``(n,)`` or a scalar."""
        return logits.new_zeros(())

    @torch.no_grad()
    def _move(self, index: Tensor, *moves: tuple[Tensor, Tensor]) -> None:
        """Gradient steps on the batch's rows, each projected to [-1, 1]; all other rows stay."""
        gather = self.parallel.gather
        rows = gather(index)
        for table, (values, gradient), rate in zip((self.noise.u, self.noise.v), moves, self.config.rates, strict=True):
            table.index_copy_(0, rows, gather((values - rate * gradient).clamp(-1.0, 1.0)))
