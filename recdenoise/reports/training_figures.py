"""Figures 3 and 5: the test along training, and for every pair of two options."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recdenoise.reports import charts, markdown
from recdenoise.reports.comparison import Finished, Numbers
from recdenoise.reports.figure_content import Content, TableText, by_place
from recdenoise.reports.grid import KEPT, TableSpec
from recdenoise.reports.table_page import band


def read_curve(folder: Path) -> list[dict[str, float]]:
    """``test_curve.csv`` of a run: a row an epoch."""
    with (folder / KEPT["test_curve"]).open(encoding="utf-8", newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def curves(table: TableSpec, runs: Sequence[Finished]) -> Content:
    """Figure 3: the clean test after every epoch, for every method; users seen and unseen in training apart."""
    rows: list[dict[str, Any]] = []
    drawn: dict[tuple[str, str, str], list[charts.Line]] = {}
    table_rows = []
    for (dataset, model, method, _), members in by_place(runs).items():
        label = members[0].cell.label_of()
        curve_of = {int(m.result["seed"]): read_curve(m.folder) for m in members}
        for seed, points in curve_of.items():
            place = {"dataset": dataset, "model": model, "method": label, "seed": seed}
            rows += [{**place, **point, "epoch": int(point["epoch"])} for point in points]
        values = [name for name in next(iter(curve_of.values()))[0] if "@" in name]
        for name in values:
            found = [([p["epoch"] for p in points], [p[name] for p in points]) for points in curve_of.values()]
            line = band(label, found, charts.COLOURS.get(method, charts.PALETTE[7]))
            drawn.setdefault((dataset, model, name), []).append(line)
            best = max(range(len(line.y)), key=line.y.__getitem__)
            top, last = line.y[best], line.y[-1]
            fall = f"{last - top:+.4f} ({last / top - 1:+.0%})" if top else "–"
            place_of = (f"{dataset} {model}", label, population(name))
            table_rows.append([*place_of, f"{top:.4f}", f"{line.x[best]:.0f}", f"{last:.4f}", fall])
    panels = [
        charts.lines(
            f"{model} on {dataset}: {population(name)}", "epoch", f"{population(name)} on the clean test", found
        )
        for (dataset, model, name), found in drawn.items()
    ]
    columns = ("model", "method", "test", "best", "at epoch", "last", "last − best")
    lines = [f"{r[0]}, {r[1]}: {r[2]} {r[3]} at epoch {r[4]}, {r[5]} at the end, {r[6]}" for r in table_rows]
    seeds = len({r["seed"] for r in rows})
    notes = [
        "The clean test is measured after every epoch of the last stage and only written down: nothing chooses by "
        "it, and it leaves the run as it was. Every epoch is trained, whatever validation says.",
        f"Mean over {seeds} seeds; the band reaches from the lowest to the highest. "
        "A fall after the best epoch is what memorising noise looks like; it may have other causes.",
    ]
    if any("warm" in name for _, _, name in drawn):
        notes.append("Warm users were seen in training; cold users were not: untrained embeddings rank for them.")
    order = sorted(table_rows, key=lambda r: (r[0], r[2]))
    return Content(rows, panels, notes, [("Best and last epoch of the mean curve", columns, order, 3)], lines)


def population(name: str) -> str:
    """``R@20, warm users`` for ``warm_recall@20``."""
    kind, line, metric = name.rpartition("_")
    return markdown.short(metric) + (f", {kind} users" if line else "")


# Figure 5


def heat_map(table: TableSpec, runs: Sequence[Finished]) -> Content:
    """Figure 5: recall and NDCG for every pair of values of the table's two axes."""
    (first, first_values), (second, second_values) = table.axes.items()
    rows: list[dict[str, Any]] = []
    panels, lines = [], []
    tables: list[TableText] = []
    groups = by_place(runs)
    for dataset, model, method in dict.fromkeys(group[:3] for group in groups):
        members = [m for group, found in groups.items() if group[:3] == (dataset, model, method) for m in found]
        title = members[0].cell.settings.method.title
        for metric in table.shown_for(dataset):
            values = np.full((len(first_values), len(second_values)), np.nan)
            for (i, a), (j, b) in itertools.product(enumerate(first_values), enumerate(second_values)):
                chosen = [m for m in members if options_of(m, first, second) == (a, b)]
                if not chosen:
                    continue
                numbers = Numbers.of([m.result["test"][metric] for m in chosen])
                values[i, j] = numbers.mean
                place = {"dataset": dataset, "model": model, "method": title, "metric": metric}
                place |= {bare(first): a, bare(second): b}
                rows.append({**place, "mean": numbers.mean, "std": numbers.std, "seeds": numbers.n})
            name = f"{model} + {title} on {dataset}: {markdown.short(metric)}"
            across, up = ([f"{value:g}" for value in axis] for axis in (second_values, first_values))
            panels.append(charts.heat_map(name, bare(second), bare(first), across, up, values))
            i, j = divmod(int(np.nanargmax(values)), len(second_values))
            at = f"{bare(first)} {first_values[i]:g}, {bare(second)} {second_values[j]:g}"
            lines.append(f"{name}: highest {values[i, j]:.4f} at {at}; lowest {np.nanmin(values):.4f}")
            cells = [
                [f"{a:g}", *("–" if np.isnan(v) else f"{v:.4f}" for v in values[i])] for i, a in enumerate(first_values)
            ]
            tables.append((name, (f"{bare(first)} \\ {bare(second)}", *across), cells, 1))
    notes = [
        f"The test for every pair of {bare(first)} and {bare(second)}, everything else as published; mean over seeds. "
        "A picture of sensitivity, not a choice: no setting is chosen by the test."
    ]
    return Content(rows, panels, notes, tables, lines)


def bare(option: str) -> str:
    """``c_1`` for ``denoiser.c_1``."""
    return option.rpartition(".")[2]


def options_of(run: Finished, *options: str) -> tuple[float, ...]:
    """Values of method options of a run."""
    return tuple(run.config["denoiser"][bare(option)] for option in options)
