"""LfF: a second network learns what the biased one fails at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from recdenoise import objectives
from recdenoise.denoisers.base import Clock, Denoiser, Optim, Stage, Update
from recdenoise.errors import UserError
from recdenoise.task import Batch, ClassTask, Task
from vision.methods.relative_difficulty import RelativeDifficulty, RelativeDifficultyConfig


@dataclass(frozen=True)
class LfFConfig(RelativeDifficultyConfig):
    """Options of LfF. The paper: Adam 1e-3 at a constant rate, batch 256, no decay; Colored MNIST with three layers of
    100 for 100 epochs, Corrupted CIFAR-10 with ResNet-20 for 200."""


class LfF(Denoiser):
    """Learning from Failure (Algorithm 1): two networks at once, from different seeds.

    The biased one learns by GCE, which follows what it finds easy. The debiased one, which answers, learns by
    cross-entropy with the weight ``W(x) = CE_B / (CE_B + CE_D)``.
    """

    name = "lff"
    title = "LfF"
    summary = "a second network learns what a biased one fails at"
    distributed = True
    paper = "Nam et al., Learning from Failure: Training Debiased Classifier from Biased Classifier, NeurIPS 2020"
    Config = LfFConfig
    neutral: ClassVar[dict[str, Any] | None] = None
    neutral_reason = "every row has a weight below 1 that depends on two networks"

    def build(self, task: Task) -> None:
        if not isinstance(task, ClassTask):
            raise UserError("LfF compares losses within a class; it is for labels of classes.")
        self.target = task.new_target(0)
        self.biased = task.new_target(1)
        self.difficulty = RelativeDifficulty(task.labels, task.n_classes, self.config.decay)

    def stages(self) -> list[Stage]:
        return [Stage(train=("target", "biased"))]

    def optimizers(self, stage: Stage) -> dict[str, Optim]:
        return {"target": Optim({"target": self.config.l2}), "biased": Optim({"biased": 0.0})}

    def step(self, stage: Stage, batch: Batch, clock: Clock) -> Iterator[Update]:
        # Both look at the batch before either moves.
        biased, debiased = (self.task.call(module, batch.inputs) for module in (self.biased, self.target))
        loss = objectives.classification_loss(debiased, batch.label)
        rows, gather = batch.index, self.parallel.gather
        hard = objectives.classification_loss(biased.detach(), batch.label)
        self.difficulty.remember(gather(rows), gather(hard), gather(loss))
        weight = self.difficulty.weights(rows)
        amplified = objectives.generalized_cross_entropy(biased, batch.label, self.config.q)
        yield Update(amplified, batch.groups, batch.weight, "biased", {"biased_loss": amplified.mean()})
        weighted = weight if batch.weight is None else weight * batch.weight
        yield Update(loss, batch.groups, weighted, logs={"weight": weight.mean()})

    def row_weights(self) -> Tensor:
        """Relative difficulty of every training row."""
        return self.difficulty.weights()
