"""The two views of dataset bias as a plot: what runs recorded of bias-aligned and bias-conflicting rows."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from recdenoise.errors import UserError
from recdenoise.reports import charts
from vision.bias_views import KINDS

VIEWS = {
    "loss": ("Training order", "cross-entropy"),
    "accuracy": ("What has been learnt", "accuracy on training rows"),
    "weight": ("Relative difficulty", "mean weight"),
}
"""What is drawn: the ending of the columns, a title, and the name of the axis."""

STYLES = {"aligned": "-", "conflicting": "--"}

Rows = list[dict[str, float]]


def read_views(run: Path, stage: str | None = None) -> Rows:
    """What a run recorded of one stage, an epoch a row.

    Args:
        run: its folder.
        stage: its name; ``None`` takes the last one that the run has.

    Raises:
        UserError: no metrics, no such stage, or a run on images whose bias is not known.
    """
    path = run / "metrics.csv"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise UserError(f"{run} is no run with a metrics.csv: {error.strerror or error}.") from error
    stages = list(dict.fromkeys(row.get("stage") or "" for row in rows))
    if stage is not None and stage not in stages:
        raise UserError(f"{path} has no stage {stage!r}; it has {', '.join(stages) or 'none'}.")
    chosen = [row for row in rows if (row.get("stage") or "") == (stage or (stages[-1] if stages else ""))]
    columns = [f"{kind}_{view}" for view in VIEWS for kind in KINDS]
    try:
        found = [{c: float(row[c]) for c in ("epoch", *columns) if row.get(c)} for row in chosen]
    except ValueError as error:
        raise UserError(f"{path} holds something else than numbers: {error}.") from error
    found = [row for row in found if len(row) > 1]
    if not found:
        raise UserError(
            f"{path} says nothing of aligned and conflicting rows: the bias of the run's training images is not known."
        )
    return found


def panels(runs: Sequence[tuple[str, Rows]]) -> list[charts.Panel]:
    """A panel for each view that some run has; a colour for each run, dashes for conflicting rows.

    Args:
        runs: names and rows.
    """
    drawn = []
    for view, (title, axis) in VIEWS.items():
        lines = []
        for place, (name, rows) in enumerate(runs):
            for kind in KINDS:
                points = [(row["epoch"], row[f"{kind}_{view}"]) for row in rows if f"{kind}_{view}" in row]
                if points:
                    x, y = zip(*points, strict=True)
                    label = f"{name}, {kind}" if len(runs) > 1 else kind
                    colour = charts.PALETTE[(4 + place) % len(charts.PALETTE)]
                    lines.append(charts.Line(label, x, y, colour=colour, style=STYLES[kind]))
        if lines:
            panel = charts.lines(title, "epoch", axis, lines, bottom=0.0)
            longest = max(len(line.label) for line in lines)  # the legend has three columns
            drawn.append(dataclasses.replace(panel, width=max(panel.width, 0.6 + 3 * (0.5 + 0.07 * longest))))
    return drawn


def write_plot(runs: Sequence[Path], out: Path, stage: str | None = None) -> list[tuple[str, Rows]]:
    """Read runs, draw them to a PNG, and return what was drawn. Raises ``UserError``."""
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run) for run in runs]
    found = [(name, read_views(run, stage)) for name, run in zip(names, runs, strict=True)]
    charts.write_png(panels(found), out, columns=3)
    return found
