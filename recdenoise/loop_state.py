"""Where a run stands and what its epoch in progress has summed up: parts of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Position:
    """Where the next step is: indices of stage, epoch and pass, steps done in the pass and in the stage."""

    stage: int = 0
    epoch: int = 0
    sweep: int = 0
    step: int = 0
    stage_step: int = 0

    def next_epoch(self) -> None:
        self.epoch, self.sweep, self.step = self.epoch + 1, 0, 0

    def next_stage(self) -> None:
        self.stage, self.epoch, self.sweep, self.step, self.stage_step = self.stage + 1, 0, 0, 0, 0


@dataclass
class EpochTotals:
    """Sums over the epoch in progress, part of a checkpoint so that a resumed epoch reports its whole mean."""

    loss: Tensor
    steps: int = 0
    seconds: float = 0.0
    values: dict[str, float] = field(default_factory=dict)
    examined: dict[str, float] = field(default_factory=dict)
    probed: dict[str, float] = field(default_factory=dict)
    logs: dict[str, Tensor] = field(default_factory=dict)
