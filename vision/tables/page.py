"""The report of a published table as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from recdenoise.reports import charts
from recdenoise.reports.curves import band, read_history
from recdenoise.reports.html import Entry, Page
from recdenoise.reports.report_text import circumstances
from vision.tables import report
from vision.tables.report import Content
from vision.tables.rows import Row, folders, place_of, summary

OTHERS = (2, 3, 6, 7, 1, 5, 4)
"""Places in the palette of methods without a colour of their own."""
SHORT, LETTER = 14, 0.07
"""Letters of a method's name that a plot has room for, and inches for each further one."""
CURVES = 5
"""Methods that one plot of curves can show; bars stand in for more."""


def colours_of(methods: Sequence[str]) -> dict[str, str]:
    """A colour for each method, the same on the whole page."""
    plain = [m for m in methods if m not in charts.COLOURS]
    own = {m: charts.PALETTE[OTHERS[i % len(OTHERS)]] for i, m in enumerate(plain)}
    return {m: charts.COLOURS.get(m) or own[m] for m in methods}


def kind_of(row: Row, points: float) -> str:
    """The class that colours a difference."""
    if row.difference is None:
        return ""
    strong = abs(row.difference) > points
    return ("up" if strong else "up-some") if row.difference >= 0 else ("down" if strong else "down-some")


def entry(row: Row, points: float) -> Entry:
    """Ours less print, coloured."""
    if row.difference is None:
        return Entry("–")
    return Entry(f"{row.difference:+.2f}", kind_of(row, points))


def by_ratio(content: Content, rows: Sequence[Row], end: str, colours: dict[str, str]) -> charts.Panel:
    """Accuracy over the noise's ratio: ours as lines, print as hollow marks on dotted ones."""
    curves = []
    for method in dict.fromkeys(row.method for row in rows):
        found = [(row, numbers) for row in rows if row.method == method and (numbers := row.at(end)) is not None]
        if not found:
            continue
        spread = [numbers.std or 0.0 for _, numbers in found]
        x, y = [100 * float(row.condition) for row, _ in found], [numbers.mean for _, numbers in found]
        low = [m - s for m, s in zip(y, spread, strict=True)] if any(spread) else ()
        high = [m + s for m, s in zip(y, spread, strict=True)] if any(spread) else ()
        title = found[0][0].title
        curves.append(charts.Line(title, x, y, low, high, colours[method], marker="o"))
        known = [(100 * float(row.condition), row.printed.mean) for row, _ in found if row.printed is not None]
        if known and end == rows[0].measure.end:
            px, py = zip(*known, strict=True)
            curves.append(charts.Line(f"{title}, paper", px, py, (), (), colours[method], ":", "D"))
    ticks = sorted({100 * float(row.condition) for row in rows})
    label = content.table.axis.get("label", content.table.axis["title"])
    title = f"{content.table.called(rows[0].dataset)}, {named(content, rows, end)}"
    return charts.lines(title, label, "accuracy, %", curves, ticks=ticks)


def named(content: Content, rows: Sequence[Row], end: str) -> str:
    """What is measured, and at which end where there are two."""
    words = [rows[0].measure.name] if len(content.table.measures) > 1 else []
    return ", ".join([*words, *([end] if report.other_ends(rows) else [])])


def by_method(content: Content, rows: Sequence[Row], colours: dict[str, str]) -> list[charts.Panel]:
    """For every condition a bar a method, print as marks."""
    panels = []
    for label in dict.fromkeys(row.label for row in rows):
        mine = [row for row in rows if row.label == label]
        values = [None if row.ours is None else (row.ours.mean, row.ours.std) for row in mine]
        marks = {"paper": [None if row.printed is None else row.printed.mean for row in mine]}
        shades = [colours[row.method] for row in mine]
        place = place_of(content.table.called(mine[0].dataset), label)
        title = place_of(place, named(content, mine, mine[0].measure.end))
        names = [row.title for row in mine]
        panel = charts.bars(title, "%", names, values, marks, shades)
        panels.append(replace(panel, width=panel.width + LETTER * max(0, max(map(len, names)) - SHORT)))
    return panels


def plots(content: Content, rows: Sequence[Row], colours: dict[str, str]) -> list[charts.Panel]:
    """Of a data set and a measure."""
    if not content.table.axis.get("share") or len({row.method for row in rows}) > CURVES:
        return by_method(content, rows, colours)
    if len({row.condition for row in rows}) < 2:
        return []
    ends = sorted([rows[0].measure.end, *report.other_ends(rows)])
    return [by_ratio(content, rows, end, colours) for end in ends]


def training(content: Content, colours: dict[str, str]) -> dict[str, list[charts.Panel]]:
    """By data set, for every condition, accuracy on validation labels in the last stage: mean and range over seeds."""
    runs, rows = content.runs, content.rows
    panels: dict[str, list[charts.Panel]] = {}
    methods = list(colours)
    chosen = {(row.dataset, row.condition, row.method): row for row in rows if row.seeds}
    for dataset, condition in dict.fromkeys((row.dataset, row.condition) for row in rows):
        curves = []
        for place, row in chosen.items():
            if place[:2] != (dataset, condition):
                continue
            members = [run for run in runs if run.cell.group == place and run.cell.rate == row.rate]
            last = [stages[-1] for run in members if (stages := list(read_history(run.folder).values()))]
            found = [(s["valid_accuracy epoch"], s["valid_accuracy"]) for s in last if "valid_accuracy" in s]
            if found and len(found[0][0]) > 1:
                dashed = methods.index(row.method) >= len(OTHERS)  # colours come round
                line = band(row.title, found, colours[row.method])
                curves.append(replace(line, style="--") if dashed else line)
        if curves:
            label = next(row.label for row in rows if row.condition == condition)
            title = place_of(content.table.called(dataset), label)
            panel = charts.lines(title, "epoch", "accuracy on validation labels", curves)
            panels.setdefault(dataset, []).append(panel)
    return panels


def add_overview(made: Page, content: Content, rows: Sequence[Row], points: float) -> None:
    """A table as print has it, ours beside print in every entry."""
    labels, grid = report.overview(content.table, rows)
    if len(labels) < 2:
        return
    lines: list[list[str | Entry]] = []
    for line in grid:
        title = next(row for row in line if row is not None).title
        lines.append([title, *(Entry(report.told_in_overview(r), kind_of(r, points) if r else "") for r in line)])
    alone = [i for i, line in enumerate(grid) if not any(row is not None and row.seeds for row in line)]
    made.heading("Ours / paper" + (f": {rows[0].measure.name}" if len(content.table.measures) > 1 else ""), 3)
    made.table(("method", *labels), lines, beside=alone)


def add_dataset(made: Page, content: Content, dataset: str, points: float, colours: dict[str, str]) -> None:
    """Everything about one data set."""
    mine = [row for row in content.rows if row.dataset == dataset]
    networks = dict.fromkeys(r.cell.settings.network for r in content.runs if r.cell.dataset == dataset)
    made.heading(place_of(content.table.called(dataset), ", ".join(networks)))
    measures = dict.fromkeys(row.measure for row in mine)
    for measure in measures:
        add_overview(made, content, [row for row in mine if row.measure == measure], points)
    left = report.lead_of(content.table, mine)
    lines: list[list[str | Entry]] = []
    for row, line in zip(mine, report.table_lines(content.table, mine), strict=True):
        told = entry(row, points)
        ours, last = Entry(line[left], "first"), Entry(line[-1], "text")
        lines.append([*line[:left], ours, line[left + 1], told, *line[left + 3 : -1], last])
    columns = report.columns_of(content.table, mine)
    alone = [i for i, row in enumerate(mine) if not row.seeds]
    made.heading("Every cell", 3)
    made.table(columns, lines, left=left, wrapped=(len(columns) - 1,), beside=alone)
    for measure in measures:
        made.plots(plots(content, [row for row in mine if row.measure == measure], colours))


def page(content: Content) -> str:
    """The whole report."""
    table, rows, runs = content.table, content.rows, folders(content.runs)
    headline, lacking = summary(table, rows, content.cells, content.runs)
    made = Page(table.title)
    made.heading(table.title, 1)
    made.paragraph(f"Beside print: {table.source}.", quiet=True)
    required = [row for row in rows if row.required]
    hours = sum(r.job["seconds"] for r in runs if r.job) / 3600
    told = f"{hours:.1f} h" if hours >= 0.5 else f"{hours * 60:.0f} min"
    tiles = [(f"{sum(not r.missed for r in required)} / {len(required)}", "cells reach what is required")]
    tiles += [(f"{len(runs)} / {len({cell.name for cell in content.cells})}", "runs finished")]
    tiles += [(", ".join(dict.fromkeys(r.record["device"] for r in runs)), "device")]
    made.tiles([*tiles, *([(told, "of processes")] if hours else [])])
    for rule in report.rules(content):
        made.paragraph(rule)
    points = 1.0 if table.required.points is None else table.required.points
    unit = f"{points:g} point{'s' * (points != 1)}"
    key = (("up", f"more than {unit} above print"), ("up-some", "above print"))
    made.key((*key, ("down-some", f"below print by at most {unit}"), ("down", "further below print")))
    colours = colours_of(list(dict.fromkeys(row.method for row in rows)))
    for dataset in dict.fromkeys(row.dataset for row in rows):
        add_dataset(made, content, dataset, points, colours)
    if panels := training(content, colours):
        made.heading("Training")
        made.paragraph("The last stage of every run. The band reaches from the lowest seed to the highest.")
        for dataset, mine in panels.items():
            made.plots(mine, f"Curves of {table.called(dataset)}")
    made.heading("Not reached, not run")
    made.bullets(lacking or [f"Nothing: {headline}."])
    made.heading("Settings")
    made.paragraph(report.run_options(runs))
    made.table(report.SETTINGS_COLUMNS, report.settings_lines(rows, runs), left=7, wrapped=(2, 3))
    made.heading("Circumstances")
    made.bullets(circumstances([r.record for r in runs], [r.job for r in runs if r.job], content.command))
    return made.render()
