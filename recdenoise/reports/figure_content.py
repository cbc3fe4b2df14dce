"""What a figure shows, whatever file it is written to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from recdenoise.reports.charts import Panel
from recdenoise.reports.comparison import Finished

TableText = tuple[str, Sequence[str], list[list[str]], int]
"""Heading, column names, rows, number of text columns."""


@dataclass(frozen=True)
class Content:
    """What a figure shows.

    Attributes:
        rows: of the CSV file.
        panels: plots, drawn ``columns`` a row in the PNG.
        notes: what is drawn, how to read it.
        tables: numbers to read.
        lines: what it comes to, a sentence a line.
    """

    rows: list[dict[str, Any]]
    panels: list[Panel]
    notes: list[str]
    tables: list[TableText]
    lines: list[str]
    columns: int = 2


def by_place(runs: Sequence[Finished]) -> dict[tuple[str, ...], list[Finished]]:
    """Runs of each cell, one a seed."""
    groups: dict[tuple[str, ...], list[Finished]] = {}
    for run in runs:
        groups.setdefault(run.cell.group, []).append(run)
    return groups
