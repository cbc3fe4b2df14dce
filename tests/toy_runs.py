"""Loops over the toy task, and observers that watch or stop them."""

from __future__ import annotations

import os
import signal
from typing import Any

import torch

from recdenoise import denoisers
from recdenoise.denoisers import Clock, Stage
from recdenoise.loop import Loop, LoopConfig, Observer
from tests.toy import ToyTask


def trainer(
    name: str = "normal", task: ToyTask | None = None, options: dict[str, Any] | None = None, **config: Any
) -> Loop:
    """A loop over the toy task; keywords of :class:`Loop` are told from those of :class:`LoopConfig`."""
    keywords = {k: config.pop(k) for k in ("checkpoint_path", "observer", "log_values", "identity") if k in config}
    task = task or ToyTask()
    validate = config.pop("validate", task.validate)
    denoiser = denoisers.get(name)(task, options)
    settings = LoopConfig(**{"epochs": 3, "lr": 0.05, "selector": "last", **config})
    return Loop(denoiser, task, settings, validate=validate, **keywords)


def weights(loop: Loop) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in loop.denoiser.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


class Recorder(Observer):
    def __init__(self) -> None:
        self.stages: list[tuple[str, int, int, int]] = []
        self.clocks: list[Clock] = []
        self.losses: list[float] = []
        self.rows: list[dict[str, Any]] = []

    def on_stage(self, stage: Stage, epochs: int, steps_per_epoch: int, first_epoch: int) -> None:
        self.stages.append((stage.name, epochs, steps_per_epoch, first_epoch))

    def on_step(self, clock: Clock, loss: torch.Tensor) -> None:
        self.clocks.append(clock)
        self.losses.append(loss.item())

    def on_epoch(self, row: dict[str, Any]) -> None:
        self.rows.append(row)


class Stop(Observer):
    """Sends this process a signal after some steps, as a terminal does."""

    def __init__(self, after: int, number: int = signal.SIGINT, times: int = 1) -> None:
        self.after, self.number, self.times = after, number, times

    def on_step(self, clock: Clock, loss: torch.Tensor) -> None:
        self.after -= 1
        if self.after == 0:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)
