"""DFA: features of the class and of the bias apart, and swapped between images to make rare combinations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from recdenoise import objectives
from recdenoise.denoisers.base import Clock, Denoiser, Stage, Update
from recdenoise.errors import UserError
from recdenoise.options import require
from recdenoise.task import Batch, ClassTask, Task
from vision.methods.mixup import draw_partners
from vision.methods.relative_difficulty import RelativeDifficulty, RelativeDifficultyConfig


@dataclass(frozen=True)
class DFAConfig(RelativeDifficultyConfig):
    """Options of DFA. The paper, for Colored MNIST: layers of 100, 100 and 16, Adam 0.01, times 0.5 every 10,000 of
    50,000 steps once swapping has begun, batch 256."""

    swap_from: float | None = 10_000.0
    """Step at which swapping begins, or share of the run's steps where below 1; 0 swaps from the start, null never."""

    lambda_dis: float = 10.0
    """Weight of the bias head's loss on features of the image's own; 10 for Colored MNIST, 1 or 5 for Corrupted
    CIFAR-10."""

    lambda_swap: float = 1.0
    """Weight of both losses on swapped features."""

    lambda_swap_align: float = 10.0
    """Weight of the bias head's loss among those; as ``lambda_dis``."""

    swap_label: Literal["source", "own"] = "source"
    """What the bias head learns on swapped features: the label of the row that the bias features are from, or, as one
    summary of the paper prints it, that of the row itself."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.swap_from is not None:
            require(self.swap_from >= 0, "swap_from", self.swap_from, "zero or more, or null")
        for name in ("lambda_dis", "lambda_swap", "lambda_swap_align"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "zero or more")


class Disentangled(nn.Module):
    """Two encoders, and two heads that read ``z = [z_target; z_bias]``. Called on images it answers by the target head.

    Args:
        target_encoder, bias_encoder: from images to ``(n, width)``.
        width: of each.
        n_classes: outputs of both heads.
    """

    def __init__(self, target_encoder: nn.Module, bias_encoder: nn.Module, width: int, n_classes: int) -> None:
        super().__init__()
        self.target_encoder, self.bias_encoder = target_encoder, bias_encoder
        self.bias_head = nn.Linear(2 * width, n_classes)
        self.target_head = nn.Linear(2 * width, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.target_head(torch.cat([self.target_encoder(images), self.bias_encoder(images)], 1))


def swap_begins(swap_from: float | None, steps: int) -> float:
    """Step of a stage of ``steps`` at which swapping begins; infinite for ``None``."""
    if swap_from is None:
        return float("inf")
    return swap_from * steps if swap_from < 1 else swap_from


class DFA(Denoiser):
    """Disentangled feature augmentation (Eq. 2 to 4).

    The target head learns by weighted cross-entropy and the bias head by GCE, both from ``[z_target; z_bias]``, and
    each passes gradients to its own encoder alone. Later each row also gets the bias features of another row of its
    batch: its class in another row's bias, which the data hardly have.
    """

    name = "dfa"
    title = "DFA"
    summary = "tells features of class and bias apart, and swaps the latter"
    distributed = True
    paper = "Lee et al., Learning Debiased Representation via Disentangled Feature Augmentation, NeurIPS 2021"
    Config = DFAConfig
    neutral: ClassVar[dict[str, Any] | None] = None
    neutral_reason = "its network has two encoders, and every row a weight below 1"
    brief: ClassVar[dict[str, Any]] = {"swap_from": 0.3}
    target: Disentangled

    def build(self, task: Task) -> None:
        if not isinstance(task, ClassTask):
            raise UserError("DFA swaps features of images; it is for labels of classes.")
        (first, width), (second, _) = task.new_backbone(0), task.new_backbone(1)
        built = task.new_module(lambda: Disentangled(first, second, width, task.n_classes), "disentangled")
        assert isinstance(built, Disentangled)
        self.target = built
        self.difficulty = RelativeDifficulty(task.labels, task.n_classes, self.config.decay)

    def heads(self, target: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the target and of the bias head on ``(n, width)`` features, each blind to the other's gradient."""
        target_logits = self.task.call(self.target.target_head, torch.cat([target, bias.detach()], 1))
        return target_logits, self.task.call(self.target.bias_head, torch.cat([target.detach(), bias], 1))

    def step(self, stage: Stage, batch: Batch, clock: Clock) -> Iterator[Update]:
        options, label, gather = self.config, batch.label, self.parallel.gather
        target, bias = (
            self.task.call(encoder, batch.inputs) for encoder in (self.target.target_encoder, self.target.bias_encoder)
        )
        debiased, biased = self.heads(target, bias)
        loss = objectives.classification_loss(debiased, label)
        hard = objectives.classification_loss(biased.detach(), label)
        self.difficulty.remember(gather(batch.index), gather(hard), gather(loss))
        weight = self.difficulty.weights(batch.index)
        amplified = objectives.generalized_cross_entropy(biased, label, options.q)
        logs = {"weight": weight.mean(), "biased_loss": amplified.mean()}
        total = weight * loss + options.lambda_dis * amplified
        if clock.step >= swap_begins(options.swap_from, clock.steps):
            partners = draw_partners(len(label), self.parallel).to(label.device)
            swapped = self.parallel.whole(bias).index_select(0, partners)
            source = gather(label).index_select(0, partners) if options.swap_label == "source" else label
            debiased, biased = self.heads(target, swapped)
            mixed = weight * objectives.classification_loss(debiased, label)
            aligned = objectives.generalized_cross_entropy(biased, source, options.q)
            total = total + options.lambda_swap * (mixed + options.lambda_swap_align * aligned)
        yield Update(total, batch.groups, batch.weight, logs=logs)

    def row_weights(self) -> Tensor:
        """Relative difficulty of every training row."""
        return self.difficulty.weights()
