"""Who is told how training goes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from recdenoise.denoisers.base import Clock, Stage


class Observer:
    """Told how training goes; the base is silent. Progress bars, logs and result files subclass it."""

    def on_note(self, text: str) -> None:
        """Something about the run that its user should know, in one sentence."""

    def on_stage(self, stage: Stage, epochs: int, steps_per_epoch: int, first_epoch: int) -> None:
        """A stage begins (or goes on at ``first_epoch``)."""

    def on_step(self, clock: Clock, loss: Tensor) -> None:
        """A step is done. ``loss`` is detached and stays on its device: reading it waits for the device."""

    def on_epoch(self, row: dict[str, Any]) -> None:
        """An epoch is done; ``row`` holds stage, epoch, loss, seconds and validation values."""
