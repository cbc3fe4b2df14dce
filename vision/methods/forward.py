"""Forward correction: predictions of the true class go through the transition matrix before they meet the label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from recdenoise.denoisers.base import Clock, Losses, Stage
from recdenoise.task import Batch, Task
from vision.methods.transition import ThroughTransition, TransitionConfig, forward_loss


@dataclass(frozen=True)
class ForwardConfig(TransitionConfig):
    """Options of Forward. As in T-Revision's tables: ResNet-34 or ResNet-18."""


class Forward(ThroughTransition):
    """``-log (T^t softmax f)[y~]`` (Theorem 2); T is given or read from the anchors of a network trained beforehand.

    That network is a copy from another seed, so that the classifier itself never sees the uncorrected loss.
    """

    name = "forward"
    title = "Forward"
    summary = "corrects the loss by the transition matrix"
    distributed = True
    paper = "Patrini et al., Making Deep Neural Networks Robust to Label Noise: a Loss Correction Approach, CVPR 2017"
    Config = ForwardConfig
    neutral: ClassVar[dict[str, Any] | None] = {"transition": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}
    estimator = "plain"

    def build(self, task: Task) -> None:
        super().build(task)
        if self.config.transition is None:
            self.plain = task.new_target(1)

    def stages(self) -> list[Stage]:
        return [*self.estimating_stages(), Stage()]

    def losses(self, batch: Batch, clock: Clock) -> Losses:
        logits = self.task.call(self.target, batch.inputs)
        return Losses(forward_loss(logits, batch.label, self.transition), batch.weight)
