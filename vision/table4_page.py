"""The report of Table 4 as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from recdenoise.reports import charts
from recdenoise.reports.curves import band, read_history
from recdenoise.reports.html import Entry, Page
from recdenoise.reports.report_text import circumstances

if TYPE_CHECKING:
    from vision.table4 import Cell, Table
    from vision.table4_report import Finished, Row

OTHERS = (2, 3, 6, 7, 1)
"""Places in the palette of methods without a colour of their own."""


def colours_of(methods: Sequence[str]) -> dict[str, str]:
    """A colour for each method, the same on the whole page."""
    plain = [m for m in methods if m not in charts.COLOURS]
    own = {m: charts.PALETTE[OTHERS[i % len(OTHERS)]] for i, m in enumerate(plain)}
    return {m: charts.COLOURS.get(m) or own[m] for m in methods}


def entry(row: Row, points: float) -> Entry:
    """Ours less print, coloured."""
    if row.difference is None:
        return Entry("–")
    strong = abs(row.difference) > points
    kind = ("up" if strong else "up-some") if row.difference >= 0 else ("down" if strong else "down-some")
    return Entry(f"{row.difference:+.2f}", kind)


def by_ratio(rows: Sequence[Row], end: str, colours: dict[str, str]) -> charts.Panel:
    """Accuracy over the noise's ratio: ours as lines, print as hollow marks on dotted ones."""
    curves = []
    for method in dict.fromkeys(row.method for row in rows):
        mine = [row for row in rows if row.method == method]
        ours = [(row.best_val if end == "best_val" else row.last) for row in mine]
        spread = [n.std or 0.0 for n in ours]
        wide = any(spread)
        x, y = [100 * row.ratio for row in mine], [n.mean for n in ours]
        low = [m - s for m, s in zip(y, spread, strict=True)] if wide else ()
        high = [m + s for m, s in zip(y, spread, strict=True)] if wide else ()
        curves.append(charts.Line(mine[0].title, x, y, low, high, colours[method], marker="o"))
        known = [(100 * row.ratio, row.printed.mean) for row in mine if row.printed is not None]
        if known and end == "best_val":
            px, py = zip(*known, strict=True)
            curves.append(charts.Line(f"{mine[0].title}, paper", px, py, (), (), colours[method], ":", "D"))
    ticks = sorted({100 * row.ratio for row in rows})
    return charts.lines(f"{rows[0].dataset}, {end}", "labels drawn anew, %", "test accuracy, %", curves, ticks=ticks)


def training(runs: Sequence[Finished], rows: Sequence[Row], colours: dict[str, str]) -> list[charts.Panel]:
    """For every ratio the accuracy on noisy validation labels along the last stage, mean and range over seeds."""
    panels = []
    rates = {(row.dataset, row.ratio, row.method): row.rate for row in rows}
    for dataset, ratio in dict.fromkeys((row.dataset, row.ratio) for row in rows):
        curves = []
        for row in rows:
            if (row.dataset, row.ratio) != (dataset, ratio):
                continue
            group = (dataset, ratio, row.method)
            members = [r for r in runs if r.cell.group == group and r.cell.rate == rates[group]]
            last = [stages[-1] for r in members if (stages := list(read_history(r.folder).values()))]
            found = [(s["valid_accuracy epoch"], s["valid_accuracy"]) for s in last if "valid_accuracy" in s]
            if found and len(found[0][0]) > 1:
                curves.append(band(row.title, found, colours[row.method]))
        if curves:
            panels.append(
                charts.lines(f"{dataset}, {ratio:.0%}", "epoch", "accuracy on noisy validation labels", curves)
            )
    return panels


def page(
    table: Table, cells: Sequence[Cell], runs: Sequence[Finished], rows: Sequence[Row], command: Sequence[str]
) -> str:
    """The whole report."""
    from vision import table4_report as words

    headline, lacking = words.summary(rows, cells, runs)
    made = Page(table.title)
    made.heading(table.title, 1)
    made.paragraph(f"Beside print: {table.source}.", quiet=True)
    required = [row for row in rows if row.required]
    hours = sum(r.job["seconds"] for r in runs if r.job) / 3600
    told = f"{hours:.1f} h" if hours >= 0.5 else f"{hours * 60:.0f} min"
    tiles = [(f"{sum(not r.missed for r in required)} / {len(required)}", "cells reach what is required")]
    tiles += [(f"{len(runs)} / {len(cells)}", "runs finished")]
    tiles += [(", ".join(dict.fromkeys(r.record["device"] for r in runs)), "device")]
    made.tiles([*tiles, *([(told, "of processes")] if hours else [])])
    for rule in words.rules(table, cells):
        made.paragraph(rule)
    made.key(
        (
            ("up", f"more than {table.points:g} point above print"),
            ("up-some", "above print"),
            ("down-some", f"below print by at most {table.points:g} point"),
            ("down", "further below print"),
        )
    )
    colours = colours_of(list(dict.fromkeys(row.method for row in rows)))
    for dataset in dict.fromkeys(row.dataset for row in rows):
        mine = [row for row in rows if row.dataset == dataset]
        made.heading(f"{dataset}, {cells[0].settings.network}")
        lines: list[list[str | Entry]] = []
        for row, line in zip(mine, words.table_lines(mine), strict=True):
            lines.append([*line[:2], Entry(line[2], "first"), line[3], entry(row, table.points), *line[5:]])
        made.table(words.COLUMNS, lines, left=2, wrapped=(len(words.COLUMNS) - 1,))
        if len({row.ratio for row in mine}) > 1:
            made.plots([by_ratio(mine, end, colours) for end in ("best_val", "last")])
    made.heading("Training")
    made.paragraph("The last stage of every run. The band reaches from the lowest seed to the highest.")
    panels = training(runs, rows, colours)
    for dataset in dict.fromkeys(row.dataset for row in rows):
        made.plots([p for p in panels if p.alt.startswith(f"{dataset}, ")], f"Curves of {dataset}")
    made.heading("Not reached, not run")
    made.bullets(lacking or [f"Nothing: {headline}."])
    made.heading("Settings")
    made.paragraph(words.run_options(runs))
    made.table(words.SETTINGS_COLUMNS, words.settings_lines(rows, runs), left=6, wrapped=(2,))
    made.heading("Circumstances")
    made.bullets(circumstances([r.record for r in runs], [r.job for r in runs if r.job], command))
    return made.render()
