"""DeCA(p) for labels of several classes: one conditional P(y~ | y = k) is learned at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from recdenoise import objectives
from recdenoise.denoisers.base import Clock, DenoiserConfig, Losses
from recdenoise.denoisers.deca import PAPER
from recdenoise.denoisers.deca_p import FrozenPrior
from recdenoise.errors import UserError
from recdenoise.options import require
from recdenoise.selection import check_class_selector
from recdenoise.task import Batch, ClassTask, Task


@dataclass(frozen=True)
class DeCAPClassesConfig(DenoiserConfig):
    """Options of DeCA(p) for classes."""

    c_1: float = 1.0
    """Stands for -log P(y~ = k | y != k): the cost of doubting a label k while class k is attended to."""

    c_2: float = 1.0
    """Stands for -log P(y~ is neither k nor y | y != k): the cost of doubting any other label."""

    alpha: float = 0.0
    """Weight of KL(prior || f) against KL(f || prior); 0 is Eq. 16, the printed objective for images."""

    kl_order: Literal["eq9", "eq13"] = "eq9"
    """``eq9``: alpha weighs KL(prior || f); ``eq13`` prints the other order."""

    t_2: int = 0
    """Last epochs, under all conditionals (Eq. 24). The paper reports no gain from them."""

    keep_label: bool = True
    """Keep the term of c = y~ in Eq. 24, which print leaves out: without it f fits the noise for free."""

    h_width: int = 128
    """Hidden units of h."""

    prior_epochs: int | None = None
    """Epochs of the prior; null takes the run's."""

    prior_selector: str = "accuracy"
    """How the prior's epoch is chosen: a prior that has memorised the noise teaches it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.c_1 >= 0, "c_1", self.c_1, "zero or more")
        require(self.c_2 >= 0, "c_2", self.c_2, "zero or more")
        require(0 <= self.alpha <= 1, "alpha", self.alpha, "from 0 to 1")
        require(self.t_2 >= 0, "t_2", self.t_2, "zero or more")
        require(self.h_width >= 1, "h_width", self.h_width, "1 or more")
        if self.prior_epochs is not None:
            require(self.prior_epochs >= 1, "prior_epochs", self.prior_epochs, "1 or more")
        check_class_selector(self.prior_selector)


class Conditionals(nn.Module):
    """h: logits of P(y~ | x, y = k), a two-layer MLP ``V relu(W_e e + W_k) + b`` on an image's embedding e.

    Args:
        width: of the embedding.
        hidden: units.
        n_classes: classes.
    """

    def __init__(self, width: int, hidden: int, n_classes: int) -> None:
        super().__init__()
        self.image = nn.Linear(width, hidden)
        self.given = nn.Embedding(n_classes, hidden)
        self.out = nn.Linear(hidden, n_classes)

    def forward(self, embedding: Tensor, k: Tensor | None = None) -> Tensor:
        """``(n, C)`` logits for class ``k`` (a tensor of no dimension), or ``(n, C, C)`` for all classes, by axis 1."""
        image = self.image(embedding)
        if k is not None:
            return self.out(torch.relu(image + self.given(k)))
        return self.out(torch.relu(image.unsqueeze(1) + self.given.weight))


class DeCAPClasses(FrozenPrior):
    """DeCA(p) for classes (Algorithm 3, Eq. 16 to 24): step by step, class k = step mod C is attended to."""

    name = "deca_p"
    title = "DeCA(p)"
    summary = "agreement with a frozen, plainly trained copy from another seed"
    distributed = True
    paper = PAPER
    Config = DeCAPClassesConfig
    neutral = None
    neutral_reason = "the loss has no cross-entropy with the observed label: h explains it"
    brief: ClassVar[dict[str, Any]] = {"t_2": 1, "alpha": 0.3}
    companions = ("h",)

    def build(self, task: Task) -> None:
        if not isinstance(task, ClassTask):
            raise UserError("This DeCA(p) is for labels of classes; for pairs take recdenoise.denoisers.get('deca_p').")
        self.classes: Tensor
        self.register_buffer("classes", torch.arange(task.n_classes), persistent=False)
        self.target = task.new_target(0)
        self.prior = task.new_target(1)
        width = task.embedding_width()
        self.h = task.new_module(lambda: Conditionals(width, self.config.h_width, task.n_classes), "h")

    def losses(self, batch: Batch, clock: Clock) -> Losses:
        assert isinstance(self.task, ClassTask)
        target, embedding = self.task.embed(self.target, batch.inputs)
        prior = self.prior_logits(batch.inputs)
        k = self.classes[clock.step % len(self.classes)]
        if clock.epoch < clock.epochs - self.config.t_2:
            h = self.h(embedding.detach(), k)
            fit = objectives.denoise_class(target, h, batch.label, k, self.config.c_1, self.config.c_2)
        else:
            h = self.h(embedding.detach())
            fit = objectives.denoise_every_class(target, h, batch.label, k, self.config.keep_label)
        alpha = self.config.alpha if self.config.kl_order == "eq9" else 1.0 - self.config.alpha
        return Losses(fit + objectives.class_agreement(target, prior, alpha), batch.weight)
