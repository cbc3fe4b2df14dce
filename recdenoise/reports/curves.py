"""Training curves from the files of runs, whatever their backend."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path

from recdenoise.reports import charts
from recdenoise.reports.report_text import damaged


def read_history(folder: Path) -> dict[str, dict[str, list[float]]]:
    """``metrics.csv`` of a run: stage -> column -> values by epoch; values that were not measured are left out.

    Raises:
        UserError: a file that was cut short.
    """
    history: dict[str, dict[str, list[float]]] = {}
    path = folder / "metrics.csv"
    if not path.is_file():
        return history
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                stage = history.setdefault(row["stage"], {})
                for column, value in row.items():
                    if value and (column == "loss" or column.startswith("valid_")):
                        stage.setdefault(column, []).append(float(value))
                        stage.setdefault(f"{column} epoch", []).append(float(row["epoch"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise damaged(path) from None
    return history


def band(label: str, curves: Sequence[tuple[Sequence[float], Sequence[float]]], colour: str) -> charts.Line:
    """Mean over seeds, and the range between the lowest and highest seed, as far as every seed was trained."""
    x = sorted(set.intersection(*(set(epochs) for epochs, _ in curves)))
    by_epoch = [dict(zip(epochs, values, strict=True)) for epochs, values in curves]
    columns = [[one[epoch] for one in by_epoch] for epoch in x]
    spread = len(curves) > 1
    return charts.Line(
        label,
        x,
        [statistics.fmean(c) for c in columns],
        [min(c) for c in columns] if spread else (),
        [max(c) for c in columns] if spread else (),
        colour,
    )
