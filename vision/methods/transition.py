"""Transition matrices ``T[i, j] = P(observed label j | true class i)``: read, estimated, and losses through them.

Sources: Patrini et al., *Making Deep Neural Networks Robust to Label Noise: a Loss Correction Approach* (CVPR 2017);
Xia et al., *Are Anchor Points Really Indispensable in Label-Noise Learning?* (NeurIPS 2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from recdenoise import objectives
from recdenoise.denoisers.base import Clock, Denoiser, DenoiserConfig, Stage, Update
from recdenoise.errors import UserError
from recdenoise.options import require
from recdenoise.selection import check_class_selector
from recdenoise.task import Batch, Call, ClassTask, Task

FORMATS = "a .npy file, or a .csv or .txt file with a row of numbers for each class"


def read_transition(value: str | list) -> list[list[float]]:
    """A given transition matrix as rows of numbers, each a true class.

    Args:
        value: the rows, or the path of a file with them: ``.npy``, or text with commas or spaces.

    Raises:
        UserError: unreadable, not square, below zero, or a row that does not sum to 1.
    """
    where = f"The transition matrix {value}" if isinstance(value, str) else "The transition matrix"
    try:
        array = np.asarray(_read_file(Path(value)) if isinstance(value, str) else value, dtype=np.float64)
    except OSError as error:
        raise UserError(f"{where} cannot be read ({error.strerror or error}); it must be {FORMATS}.") from None
    except (ValueError, TypeError, EOFError):
        raise UserError(f"{where} is no table of numbers; it must be {FORMATS}, or a list of rows.") from None
    if array.ndim != 2 or array.shape[0] != array.shape[1]:
        raise UserError(f"{where} has shape {array.shape}; it must be square, a row and a column for each class.")
    if not (np.isfinite(array).all() and (array >= 0).all()):
        raise UserError(f"{where} has entries that are no probabilities; all must be zero or more.")
    sums = array.sum(1)
    if abs(sums - 1).max() > 1e-3:
        row = int(abs(sums - 1).argmax())
        raise UserError(f"Row {row} of {where[0].lower()}{where[1:]} sums to {sums[row]:.4g}; every row must sum to 1.")
    # Rows that sum to 1 but for rounding stay as they are, so that reading what was read changes no bit.
    return np.where(abs(sums - 1)[:, None] > 1e-9, array / sums[:, None], array).tolist()


def _read_file(path: Path) -> np.ndarray:
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    with path.open(encoding="utf-8") as file:
        return np.loadtxt((line.replace(",", " ") for line in file), ndmin=2)


def anchor_transition(probability: Tensor, percentile: float = 97.0) -> Tensor:
    """A transition matrix from anchors: row i is the prediction for an image that is surely of class i.

    The anchor of class i is the image with the largest probability of i among those below the ``percentile`` of it, so
    that a few overconfident ones do not decide; 100 takes the largest of all (Patrini et al.).

    Args:
        probability: ``(N, C)`` predictions of a network that was trained on the observed labels.
        percentile: above 0 and at most 100; its value is a data point, the higher one where it falls between two.

    Returns:
        ``(C, C)``; every row sums to 1.
    """
    n = len(probability)
    if percentile < 100:
        place = min(n - 1, math.ceil(percentile / 100 * (n - 1) - 1e-9))
        threshold = torch.sort(probability, dim=0).values[place]
        below = torch.where(probability < threshold, probability, -1.0)
        # Where all are equal, none is below: any of them is as good an anchor.
        candidates = torch.where((below < 0).all(0), probability, below)
    else:
        candidates = probability
    rows = probability[candidates.argmax(0)]
    return rows / rows.sum(1, keepdim=True)


def _nonnegative(transition: Tensor) -> Tensor:
    """Entries below zero as zero. An entry that is zero passes its gradient, which a clamp stops: it may be revised."""
    return torch.where(transition < 0.0, 0.0, transition)


def forward_loss(logits: Tensor, label: Tensor, transition: Tensor) -> Tensor:
    """``-log (T^t p)[y~]`` with p the softmax (Patrini et al., Theorem 2), in log space; ``(n,)``.

    Args:
        logits: ``(n, C)`` of the true class.
        label: ``(n,)`` int64 observed labels.
        transition: ``(C, C)``; entries below the smallest positive float count as that.
    """
    log_t = (_nonnegative(transition) + torch.finfo(transition.dtype).tiny).log()
    return -torch.logsumexp(torch.log_softmax(logits, dim=1) + log_t.t()[label], dim=1)


def importance(logits: Tensor, label: Tensor, transition: Tensor) -> Tensor:
    """``p[y~] / (T^t p)[y~]``: weights that turn a mean over observed labels into one over true ones; ``(n,)``.

    Entries of ``transition`` below zero count as zero, so that no weight passes ``1 / T[y~, y~]``, nor ``1e10``.
    """
    # Divided by p[y~] first: the gradient divides by (T^t p)[y~] squared, which would be zero for a sure network.
    relative = (logits - logits.gather(1, label.unsqueeze(1))).clamp_max(25.0).exp()
    return 1.0 / (relative * _nonnegative(transition).t()[label]).sum(1).clamp_min(1e-10)


def reweighted_loss(logits: Tensor, label: Tensor, transition: Tensor, through_weight: bool) -> Tensor:
    """Cross-entropy times :func:`importance` (Xia et al.); ``(n,)``.

    Args:
        logits: ``(n, C)`` of the true class.
        label: ``(n,)`` int64 observed labels.
        transition: ``(C, C)``.
        through_weight: whether the weight passes gradients: to a transition matrix that learns it must.
    """
    weight = importance(logits, label, transition)
    return (weight if through_weight else weight.detach()) * objectives.classification_loss(logits, label)


@dataclass(frozen=True)
class TransitionConfig(DenoiserConfig):
    """Options of methods that go through a transition matrix."""

    transition: str | list | None = None
    """The matrix T[i][j] = P(observed j | true i): a list of rows, or a .npy, .csv or .txt file; null estimates it."""

    percentile: float = 97.0
    """A class's anchor is the image with the largest probability of it below this percentile; 100 takes the largest of
    all, as the papers do for CIFAR-100."""

    warm_epochs: int | None = None
    """Epochs of the network whose predictions give the matrix; null takes the run's."""

    warm_selector: str = "accuracy"
    """How that network's epoch is chosen: one that has memorised its labels sees no noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.transition is not None:  # a file's numbers are kept: what was trained can then be loaded without it
            object.__setattr__(self, "transition", read_transition(self.transition))
        require(0 < self.percentile <= 100, "percentile", self.percentile, "above 0 and at most 100")
        if self.warm_epochs is not None:
            require(self.warm_epochs >= 1, "warm_epochs", self.warm_epochs, "1 or more")
        check_class_selector(self.warm_selector)


class ThroughTransition(Denoiser):
    """Holds the matrix: given, or estimated from anchors when the stage ``anchors`` is over.

    ``estimator`` is the dotted name of the network that this stage trains plainly on the observed labels.
    """

    estimator: ClassVar[str]
    loss_selector_note = (
        "it predicts the true class and the validation loss asks for the given one, so that being surely right about a "
        "wrong label costs most; choose by accuracy, or keep the last epoch"
    )

    def build(self, task: Task) -> None:
        if not isinstance(task, ClassTask):
            raise UserError(f"{self.title} goes through a transition between classes; it is for labels of classes.")
        self.target = task.new_target(0)
        given = self.config.transition
        self.transition: Tensor
        self.register_buffer("transition", torch.eye(task.n_classes))
        if given is not None:
            if len(given) != task.n_classes:
                rows, classes = len(given), task.n_classes
                raise UserError(f"The transition matrix has {rows} rows and columns; there are {classes} classes.")
            self.transition.copy_(torch.tensor(given))

    def estimating_stages(self) -> list[Stage]:
        """The stage that trains what the matrix is read from; none where it is given."""
        if self.config.transition is not None:
            return []
        options = self.config
        return [Stage("anchors", (self.estimator,), self.estimator, options.warm_selector, options.warm_epochs)]

    def begin_stage(self, stage: Stage) -> None:
        if stage.name != "train" or self.config.transition is not None:
            return
        module = self.module(self.estimator)
        probability = self.task.scan(lambda inputs: torch.softmax(self.task.call(module, inputs), dim=1))
        self.transition.copy_(anchor_transition(probability, self.config.percentile))

    def step(self, stage: Stage, batch: Batch, clock: Clock) -> Iterator[Update]:
        if stage.name == "anchors":
            out = self.plain_losses(self.module(self.estimator), batch)
            yield Update(out.loss, batch.groups, out.weight)
        else:
            yield from super().step(stage, batch, clock)

    def matrix(self) -> Tensor:
        """``(C, C)``, as the losses use it."""
        return self.transition

    def clean_probability(self) -> Tensor:
        """P(true = observed | image, observed label y~) = T[y~, y~] p[y~] / (T^t p)[y~], by Bayes' rule."""
        assert isinstance(self.task, ClassTask)
        return self.held_out_probability(self.task.scan, self.task.labels)

    def held_out_probability(self, scan: Callable[[Call], Tensor], label: Tensor) -> Tensor:
        matrix = self.matrix().detach().clamp_min(0.0)
        return (importance(scan(self.score), label, matrix) * matrix.diagonal()[label]).clamp(0.0, 1.0)
