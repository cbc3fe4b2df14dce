"""T-Revision: importance weights from a transition matrix, which is then revised together with the classifier."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from recdenoise.denoisers.base import Clock, Optim, Stage, Update
from recdenoise.options import require
from recdenoise.schedules import Schedule
from recdenoise.task import Batch, ClassTask, Task
from vision.methods.transition import ThroughTransition, TransitionConfig, forward_loss, reweighted_loss


@dataclass(frozen=True)
class TRevisionConfig(TransitionConfig):
    """Options of T-Revision. The paper: ResNet-18 or 34, SGD 0.01, times 0.1 at 40 and 80, batch 128, decay 1e-4."""

    loss: Literal["reweight", "forward"] = "reweight"
    """``reweight``: cross-entropy with importance weights; ``forward``: Forward's loss."""

    revision_epochs: int | None = None
    """Epochs in which classifier and slack learn together; null takes the run's, 0 leaves the matrix as it is."""

    revision_lr: float = 5e-7
    """Adam's learning rate in those epochs, of classifier and slack; it follows no schedule."""

    revision_weight_decay: float = 1e-4
    """Weight decay in those epochs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.revision_epochs is not None:
            require(self.revision_epochs >= 0, "revision_epochs", self.revision_epochs, "zero or more")
        require(self.revision_lr > 0, "revision_lr", self.revision_lr, "above 0")
        require(self.revision_weight_decay >= 0, "revision_weight_decay", self.revision_weight_decay, "zero or more")


class Slack(nn.Module):
    """What is added to the transition matrix: ``(C, C)``, zero at first."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.delta = nn.Parameter(torch.zeros(n_classes, n_classes))


class TRevision(ThroughTransition):
    """Three stages on one classifier (Algorithm 1): plainly, to estimate T; with T; and with ``T + slack``.

    The importance weights pass no gradient while T is fixed; in the last stage they do, as the slack learns through
    them alone.
    """

    name = "t_revision"
    title = "T-Revision"
    summary = "importance weights from a transition matrix that is revised"
    distributed = True
    paper = "Xia et al., Are Anchor Points Really Indispensable in Label-Noise Learning?, NeurIPS 2019"
    Config = TRevisionConfig
    neutral: ClassVar[dict[str, Any] | None] = {
        "transition": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        "revision_epochs": 0,
    }
    brief: ClassVar[dict[str, Any]] = {"warm_epochs": 2, "revision_epochs": 1}
    estimator = "target"

    def build(self, task: Task) -> None:
        super().build(task)
        assert isinstance(task, ClassTask)
        slack = task.new_module(lambda: Slack(task.n_classes), "slack")
        assert isinstance(slack, Slack)
        self.slack = slack

    def stages(self) -> list[Stage]:
        stages = [*self.estimating_stages(), Stage()]
        if self.config.revision_epochs != 0:
            stages.append(Stage("revise", ("target", "slack"), epochs=self.config.revision_epochs))
        return stages

    def optimizers(self, stage: Stage) -> dict[str, Optim]:
        if stage.name != "revise":
            return super().optimizers(stage)
        options = self.config
        modules = {"target": options.l2, "slack": 0.0}
        decay = options.revision_weight_decay
        optim = Optim(modules, algorithm="adam", lr=options.revision_lr, weight_decay=decay, schedule=Schedule())
        return {"target": optim}

    def matrix(self) -> Tensor:
        return self.transition + self.slack.delta

    def step(self, stage: Stage, batch: Batch, clock: Clock) -> Iterator[Update]:
        if stage.name == "anchors":
            yield from super().step(stage, batch, clock)
            return
        logits = self.task.call(self.target, batch.inputs)
        if self.config.loss == "forward":
            loss = forward_loss(logits, batch.label, self.matrix())
        else:
            loss = reweighted_loss(logits, batch.label, self.matrix(), through_weight=stage.name == "revise")
        yield Update(loss, batch.groups, batch.weight)
