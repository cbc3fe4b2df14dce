"""The files of a run, whatever the backend: metrics after every epoch, a folder that can take a run, versions."""

from __future__ import annotations

import contextlib
import csv
import io
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from torch import Tensor

import recdenoise
from recdenoise import checkpoint
from recdenoise.denoisers.base import Clock, Stage
from recdenoise.errors import UserError
from recdenoise.observer import Observer


class RunFiles(Observer):
    """Keeps ``metrics.csv`` whole after every epoch and hands everything on to another observer."""

    def __init__(self, folder: Path, inner: Observer, history: list[dict[str, Any]]) -> None:
        self.path, self.inner = folder / "metrics.csv", inner
        self.rows = list(history)

    def on_stage(self, stage: Stage, epochs: int, steps_per_epoch: int, first_epoch: int) -> None:
        self.inner.on_stage(stage, epochs, steps_per_epoch, first_epoch)

    def on_step(self, clock: Clock, loss: Tensor) -> None:
        self.inner.on_step(clock, loss)

    def on_epoch(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        columns = list(dict.fromkeys(key for r in self.rows for key in r))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        checkpoint.write_text(self.path, text.getvalue())
        self.inner.on_epoch(row)


def check_out(out: Path, resume: bool) -> None:
    """Refuse a folder that cannot take a run, before any work is done for it.

    Raises:
        UserError: it holds a run and ``resume`` is off, or it cannot be written.
    """
    if not resume and any((out / name).exists() for name in ("checkpoint.pt", "result.json")):
        raise UserError(f"{out} holds a run already; add --resume to go on with it, or choose another --out.")
    is_new = not out.exists()
    checkpoint.write_text(out / ".writable", "")
    (out / ".writable").unlink(missing_ok=True)
    if is_new:
        with contextlib.suppress(OSError):  # somebody else uses it already
            out.rmdir()


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Of everything that can change a number: recdenoise, Python and ``packages``."""
    found = {"recdenoise": recdenoise.__version__, "python": platform.python_version()}
    for package in packages:
        try:
            found[package] = installed(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
