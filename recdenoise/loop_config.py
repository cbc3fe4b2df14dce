"""How to train, whatever the method and the backend."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from recdenoise.options import require
from recdenoise.schedules import Schedule
from recdenoise.selection import check_selector


@dataclass(frozen=True)
class LoopConfig:
    """How to train, whatever the method."""

    epochs: int = 20
    """Sweeps over the training set in each stage."""

    lr: float = 1e-3
    """Learning rate."""

    seed: int = 2020
    """Everything random follows from it."""

    selector: str = "loss"
    """Which epoch is kept: last, loss, trimmed, accuracy or a metric such as ndcg@20."""

    patience: int | None = 10
    """Stop after so many evaluations without a new best; null trains all epochs."""

    eval_every: int = 1
    """Epochs between evaluations."""

    eval_steps: int | None = None
    """Evaluate every so many steps in place of epochs (the published code's rhythm)."""

    paper_code_stopping: bool = False
    """Stop as the published code does: at ``patience`` rises over the previous loss; keep the last weights."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 runs a whole step under autocast; a task that casts by itself leaves this at fp32."""

    clip_grad_norm: float | None = None
    """Largest gradient norm over all parameters of an optimiser."""

    weight_decay: float = 0.0
    """Decay of every trained parameter by the optimiser, on top of the method's own L2."""

    checkpoint_seconds: float = 20.0
    """Least time between two checkpoints within a stage."""

    algorithm: Literal["adam", "sgd"] = "adam"
    """Optimiser where a method declares none."""

    momentum: float = 0.0
    """Of sgd."""

    nesterov: bool = False
    """Nesterov's momentum for sgd."""

    schedule: Schedule = field(default_factory=Schedule)
    """Learning rate over the epochs of a stage, where a method declares none."""

    average: float = 0.0
    """Decay of a moving average of the weights that is validated and kept in their place; 0 keeps the weights."""

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "epochs", self.epochs, "1 or more")
        require(math.isfinite(self.lr) and self.lr > 0, "lr", self.lr, "above 0")
        require(self.eval_every >= 1, "eval_every", self.eval_every, "1 or more")
        require(self.eval_steps is None or self.eval_steps >= 1, "eval_steps", self.eval_steps, "1 or more, or null")
        require(self.patience is None or self.patience >= 1, "patience", self.patience, "1 or more, or null")
        clip = self.clip_grad_norm
        require(clip is None or clip > 0, "clip_grad_norm", clip, "above 0, or null")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "zero or more")
        require(0 <= self.momentum < 1, "momentum", self.momentum, "at least 0 and below 1")
        require(not self.nesterov or self.momentum > 0, "nesterov", self.nesterov, "false unless momentum is above 0")
        require(0 <= self.average < 1, "average", self.average, "at least 0 and below 1")
        check_selector(self.selector, accuracy=True)
