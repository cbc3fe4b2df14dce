"""Learning rates over training, as pure functions of the epoch: a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from recdenoise.options import require

KINDS = ("constant", "step", "cosine", "linear")


@dataclass(frozen=True, slots=True)
class Schedule:
    """What the learning rate is multiplied by in each epoch of a stage.

    Attributes:
        kind: ``constant``; ``step``: times ``gamma`` at each milestone; ``cosine``: half a cosine from 1 to ``floor``;
            ``linear``: 1 until ``start``, then straight to ``floor`` at the stage's end.
        milestones: zero-based epochs, or shares of the stage where they are below 1.
        gamma: factor at a milestone.
        start: epoch at which ``linear`` begins to fall, or a share of the stage where it is below 1.
        floor: share of the rate that ``cosine`` and ``linear`` would reach after the last epoch.
    """

    kind: Literal["constant", "step", "cosine", "linear"] = "constant"
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    start: float = 0.0
    floor: float = 0.0

    def __post_init__(self) -> None:
        require(self.kind in KINDS, "schedule", self.kind, f"one of {', '.join(KINDS)}")
        require(all(m > 0 for m in self.milestones), "milestones", self.milestones, "epochs or shares above 0")
        require(0 < self.gamma <= 1, "gamma", self.gamma, "above 0 and at most 1")
        require(self.start >= 0, "start", self.start, "zero or more")
        require(0 <= self.floor <= 1, "floor", self.floor, "from 0 to 1")

    def factor(self, epoch: int, epochs: int) -> float:
        """The factor in zero-based ``epoch`` of a stage of ``epochs``."""

        def place(value: float) -> float:
            return value * epochs if value < 1 else value

        if self.kind == "step":
            # Rounded: .55 of 100 epochs is 55.000000000000007 in floating point, and would fall an epoch late.
            return self.gamma ** sum(epoch >= moment(m, epochs) for m in self.milestones)
        if self.kind == "cosine":
            return self.floor + (1.0 - self.floor) * (1.0 + math.cos(math.pi * epoch / epochs)) / 2.0
        if self.kind == "linear":
            start = min(place(self.start), epochs - 1)
            return self.floor + (1.0 - self.floor) * min(1.0, (epochs - epoch) / (epochs - start))
        return 1.0


def moment(value: float, epochs: int) -> int:
    """A zero-based epoch of a stage of ``epochs``: ``value`` itself, or that share of them where it is below 1.

    At least 1, as nothing is known before the first epoch.
    """
    return max(1, round(value * epochs if value < 1 else value))
