"""Noise adaptation layer: a second softmax layer learns the transition from the true class to the label."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from recdenoise.denoisers.base import Clock, Denoiser, DenoiserConfig, Stage, Update
from recdenoise.errors import UserError
from recdenoise.options import require
from recdenoise.selection import check_class_selector
from recdenoise.task import Batch, Call, ClassTask, Task

FLOOR = 1e-6
"""Entries of the confusion matrix are clamped to it before their log starts the layer."""


@dataclass(frozen=True)
class NoiseAdaptationConfig(DenoiserConfig):
    """Options of the noise adaptation layer. The paper: any network, trained by Adam with dropout."""

    layer: Literal["simple", "complex"] = "simple"
    """``simple``: one (C, C) matrix for all images; ``complex``: the image's embedding moves it."""

    warm_epochs: int | None = None
    """Epochs without the layer, which then starts from that network's confusion matrix; null takes the run's."""

    warm_selector: str = "accuracy"
    """How the epoch of the network without the layer is chosen: one that has memorised its labels confuses nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warm_epochs is not None:
            require(self.warm_epochs >= 1, "warm_epochs", self.warm_epochs, "1 or more")
        check_class_selector(self.warm_selector)


class Channel(nn.Module):
    """``log P(observed j | true i)``: the log-softmax over j of ``b[i, j]``, or of ``u[i, j] e + b[i, j]``.

    Args:
        n_classes: C.
        width: of the embedding e; 0 leaves it out.
    """

    def __init__(self, n_classes: int, width: int = 0) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(n_classes, n_classes))
        self.image = nn.Parameter(torch.zeros(width, n_classes * n_classes)) if width else None

    def forward(self, embedding: Tensor | None = None) -> Tensor:
        """``(C, C)``, or ``(n, C, C)`` by the embeddings ``(n, D)``."""
        if self.image is None or embedding is None:
            return torch.log_softmax(self.bias, dim=-1)
        moved = embedding.to(self.image.dtype) @ self.image
        return torch.log_softmax(moved.view(-1, *self.bias.shape) + self.bias, dim=-1)


def channel_loss(logits: Tensor, label: Tensor, channel: Tensor) -> Tensor:
    """``-log sum_i p_i P(y~ | i)`` with p the softmax; ``(n,)``.

    Args:
        logits: ``(n, C)`` of the true class.
        label: ``(n,)`` int64 observed labels.
        channel: ``(C, C)`` or ``(n, C, C)`` log-probabilities of the label given the true class.
    """
    classes = logits.shape[1]
    if channel.dim() == 2:
        of_label = channel.t()[label]
    else:
        of_label = channel.gather(2, label.view(-1, 1, 1).expand(-1, classes, 1)).squeeze(2)
    return -torch.logsumexp(torch.log_softmax(logits, dim=1) + of_label, dim=1)


def soft_confusion(probability: Tensor, label: Tensor) -> Tensor:
    """``sum_t p_t[i] 1[y~_t = j] / sum_t p_t[i]`` : ``(C, C)``, rows sum to 1.

    Args:
        probability: ``(N, C)`` predictions.
        label: ``(N,)`` int64 observed labels.
    """
    classes = probability.shape[1]
    joint = probability.t() @ torch.nn.functional.one_hot(label, classes).to(probability.dtype)
    return joint / joint.sum(1, keepdim=True).clamp_min(FLOOR)


class NoiseAdaptation(Denoiser):
    """A softmax layer after the classifier turns its classes into labels; at test time it is left out."""

    name = "noise_adaptation"
    title = "Noise adaptation"
    summary = "learns the transition matrix as a second softmax layer"
    distributed = True
    paper = "Goldberger and Ben-Reuven, Training Deep Neural-Networks Using a Noise Adaptation Layer, ICLR 2017"
    Config = NoiseAdaptationConfig
    neutral = None
    neutral_reason = "the layer between classifier and label is always there, and learns"
    loss_selector_note = (
        "it predicts the true class and the validation loss asks for the given one, so that being surely right about a "
        "wrong label costs most; choose by accuracy, or keep the last epoch"
    )
    brief: ClassVar[dict[str, Any]] = {"layer": "complex", "warm_epochs": 2}

    def build(self, task: Task) -> None:
        if not isinstance(task, ClassTask):
            raise UserError("The noise adaptation layer goes from classes to labels; it is for labels of classes.")
        self.target = task.new_target(0)
        width = task.embedding_width() if self.config.layer == "complex" else 0
        channel = task.new_module(lambda: Channel(task.n_classes, width), "channel")
        assert isinstance(channel, Channel)
        self.channel = channel

    def stages(self) -> list[Stage]:
        options = self.config
        baseline = Stage("baseline", selector=options.warm_selector, epochs=options.warm_epochs)
        return [baseline, Stage(train=("target", "channel"))]

    def begin_stage(self, stage: Stage) -> None:
        if stage.name == "train":
            assert isinstance(self.task, ClassTask)
            probability = torch.softmax(self.task.scan(self.score), dim=1)
            self.channel.bias.copy_(soft_confusion(probability, self.task.labels).clamp_min(FLOOR).log())

    def through(self, inputs: Any) -> tuple[Tensor, Tensor]:
        """Logits ``(n, C)`` of the true class, and the log-probabilities of the label given it."""
        assert isinstance(self.task, ClassTask)
        if self.config.layer == "simple":
            return self.task.call(self.target, inputs), self.channel()
        logits, embedding = self.task.embed(self.target, inputs)
        return logits, self.channel(embedding)

    def step(self, stage: Stage, batch: Batch, clock: Clock) -> Iterator[Update]:
        if stage.name == "baseline":
            yield from super().step(stage, batch, clock)
            return
        logits, channel = self.through(batch.inputs)
        yield Update(channel_loss(logits, batch.label, channel), batch.groups, batch.weight)

    def clean_probability(self) -> Tensor:
        """P(true = observed | image, observed label y~) = p[y~] P(y~ | y~) / sum_i p_i P(y~ | i), by Bayes' rule."""
        assert isinstance(self.task, ClassTask)
        return self.held_out_probability(self.task.scan, self.task.labels)

    def held_out_probability(self, scan: Callable[[Call], Tensor], label: Tensor) -> Tensor:
        def posterior(inputs: Any) -> Tensor:
            """The same for every label that might have been observed: ``(n, C)``."""
            logits, channel = self.through(inputs)
            joint = torch.log_softmax(logits, dim=1).unsqueeze(2) + channel
            return torch.softmax(joint, dim=1).diagonal(dim1=1, dim2=2)

        return scan(posterior).gather(1, label.unsqueeze(1)).squeeze(1)
