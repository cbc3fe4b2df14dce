"""Progress bars of image runs: loss, validation accuracy, images a second, memory."""

from __future__ import annotations

import time
from typing import Any

import torch
from rich.console import Console

from recdenoise.denoisers import Stage
from recdenoise.reports.terminal import ProgressObserver

AVERAGED_SECONDS = 2.0
"""Time over which images a second are averaged."""


class Progress(ProgressObserver):
    """A bar for every stage. Use it as a context manager.

    Args:
        console: where to draw.
        label: in front of the bar.
        batch_size: images in a step.
        device: whose memory is shown: a GPU's, or the process's peak.
    """

    def __init__(self, console: Console, label: str, batch_size: int, device: torch.device) -> None:
        super().__init__(console, label)
        self.batch_size, self.device = batch_size, device
        self.marks: list[tuple[float, int]] = [(0.0, 0)]

    def on_stage(self, stage: Stage, epochs: int, steps_per_epoch: int, first_epoch: int) -> None:
        super().on_stage(stage, epochs, steps_per_epoch, first_epoch)
        self.marks = [(time.monotonic(), first_epoch * steps_per_epoch)]

    def on_epoch(self, row: dict[str, Any]) -> None:
        accuracies = {"valid": row.get("valid_accuracy"), "test": row.get("test_accuracy")}
        self.valid = "  ".join(
            f"{name} accuracy {value:.4f}" for name, value in accuracies.items() if value is not None
        )
        self._show(row["epoch"] * self.steps_per_epoch, row["epoch"], row["loss"])

    def _show(self, completed: int, epoch: int, loss: float) -> None:
        now = time.monotonic()
        if completed > self.marks[-1][1]:  # validation takes time and trains no image
            self.marks.append((now, completed))
        while len(self.marks) > 2 and self.marks[-1][0] - self.marks[1][0] > AVERAGED_SECONDS:
            self.marks.pop(0)
        then, before = self.marks[0]
        at, done = self.marks[-1]
        rate = (done - before) * self.batch_size / (at - then) if at > then else None
        parts = [f"epoch {epoch}", f"loss {loss:.4f}", self.valid]
        parts += [] if rate is None else [f"{rate:,.0f} images/s"]
        parts += [f"{memory(self.device) / 2**30:.1f} GiB"]
        if self.bar is not None:
            self.progress.update(self.bar, completed=completed, values="  ".join(part for part in parts if part))


def memory(device: torch.device) -> int:
    """Bytes: what torch holds on a GPU, else the process's peak resident memory."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
