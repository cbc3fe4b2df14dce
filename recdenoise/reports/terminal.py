"""Progress bars and tables on a terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from torch import Tensor

from recdenoise.denoisers import Clock, Stage
from recdenoise.loop import Observer

REFRESH_SECONDS = 0.2
"""Least time between two looks at the loss: each look waits for the device."""


class ProgressObserver(Observer):
    """A bar for every stage, with epoch, loss and the last validation value. Use it as a context manager."""

    def __init__(self, console: Console, label: str) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[values]}"),
            console=console,
        )
        self.label = label
        self.bar: TaskID | None = None
        self.steps_per_epoch = 1
        self.valid = ""
        self.looked = 0.0

    def __enter__(self) -> ProgressObserver:
        self.progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.progress.stop()

    def on_note(self, text: str) -> None:
        self.progress.console.print(text, soft_wrap=True)

    def on_stage(self, stage: Stage, epochs: int, steps_per_epoch: int, first_epoch: int) -> None:
        self.steps_per_epoch, self.valid = steps_per_epoch, ""
        title = self.label if stage.name == "train" else f"{self.label}: {stage.name}"
        self.bar = self.progress.add_task(
            title, total=epochs * steps_per_epoch, completed=first_epoch * steps_per_epoch, values=""
        )

    def on_step(self, clock: Clock, loss: Tensor) -> None:
        now = time.monotonic()
        if self.bar is not None and now - self.looked > REFRESH_SECONDS:
            self.looked = now
            self._show(clock.step + 1, clock.epoch + 1, loss.item())

    def on_epoch(self, row: dict[str, Any]) -> None:
        values = [f"valid {k.removeprefix('valid_')} {v:.4f}" for k, v in row.items() if k.startswith("valid_")]
        self.valid = "  ".join(values)
        self._show(row["epoch"] * self.steps_per_epoch, row["epoch"], row["loss"])

    def _show(self, completed: int, epoch: int, loss: float) -> None:
        if self.bar is not None:
            text = f"epoch {epoch}  loss {loss:.4f}  {self.valid}"
            self.progress.update(self.bar, completed=completed, values=text)


def metric_table(title: str, rows: Mapping[str, Mapping[str, float]]) -> Table:
    """A table with a row per name and a column per metric, the best value of each column in bold.

    Args:
        title: above the table.
        rows: row name -> metric name -> value.
    """
    names = list(dict.fromkeys(metric for values in rows.values() for metric in values))
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(name.replace("recall", "R").replace("ndcg", "N"), justify="right")
    best = {n: max(values[n] for values in rows.values() if n in values) for n in names}
    for row, values in rows.items():
        cells = [f"{values[n]:.4f}" if n in values else "" for n in names]
        bold = [
            f"[bold]{c}[/]" if len(rows) > 1 and values.get(n) == best[n] else c
            for n, c in zip(names, cells, strict=True)
        ]
        table.add_row(row, *bold)
    return table


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> Table:
    """A table of text."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
