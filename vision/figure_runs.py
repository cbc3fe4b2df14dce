"""Figures 3(d) and 4 of the DeCA paper: the test along training, and test accuracy for every pair of c_1 and c_2."""

from __future__ import annotations

import csv
import itertools
import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recdenoise import checkpoint
from vision.data import derived
from vision.disagreement import Watch, unwatched
from vision.disagreement_report import as_csv, table

if TYPE_CHECKING:
    from vision.settings import Settings

VALUES = (1.0, 10.0, 50.0, 100.0)
"""Of c_1 and c_2, as searched in the paper."""

METHODS = ("normal", "mw_net", "itlm", "deca_p")
"""Of the curves: those of the paper's table."""


@dataclass(frozen=True)
class Cell:
    """One run of a figure: what sets it apart, and its settings."""

    place: dict[str, Any]
    settings: Settings

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return f"{self.label}-{self.settings.seed}"

    @property
    def label(self) -> str:
        """Its place in a few letters: ``deca_p``, ``1-10``."""
        return "-".join(f"{v:g}" if isinstance(v, float) else str(v) for v in self.place.values())


@dataclass(frozen=True)
class Done:
    """A finished run: its cell, what ``result.json`` holds, and the test accuracy of every epoch of its last stage."""

    cell: Cell
    record: dict[str, Any]
    curve: list[float]


def curve_cells(methods: Sequence[str], seeds: int, **settings: Any) -> list[Cell]:
    """A cell for each method and seed, seed by seed. Raises ``UserError``."""
    from vision.settings import resolve

    pairs = itertools.product(range(seeds), methods)
    return [Cell({"method": m}, resolve(method=m, seed=seed, **settings)) for seed, m in pairs]


def map_cells(first: Sequence[float], second: Sequence[float], seeds: int, **settings: Any) -> list[Cell]:
    """A cell of DeCA(p) for each c_1, c_2 and seed, seed by seed. Raises ``UserError``."""
    from vision.settings import resolve

    method_options = settings.pop("method_options", {})
    cells = []
    for seed, c_1, c_2 in itertools.product(range(seeds), first, second):
        place = {"c_1": c_1, "c_2": c_2}
        chosen = resolve(method="deca_p", seed=seed, method_options={**method_options, **place}, **settings)
        cells.append(Cell(place, chosen))
    return cells


def train_all(cells: Sequence[Cell], out: Path, watch: Watch = unwatched) -> Iterator[Done]:
    """Train what is missing under ``out`` and only read what is finished. Raises ``UserError`` for other settings."""
    from vision.experiment import train

    for cell in cells:
        folder = out / cell.folder
        with watch((cell.label, cell.settings.seed), cell.settings) as observer:
            record = train(cell.settings, folder, resume=True, probe=True, observer=observer).record
        yield Done(cell, record, read_curve(folder))


def read_curve(folder: Path) -> list[float]:
    """``test_accuracy`` of every epoch of the last stage."""
    with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [float(row["test_accuracy"]) for row in rows if row["stage"] == rows[-1]["stage"]]


def by_place(runs: Sequence[Done]) -> dict[tuple[Any, ...], list[Done]]:
    """The runs of each place over seeds, in their order."""
    found: dict[tuple[Any, ...], list[Done]] = {}
    for run in runs:
        found.setdefault(tuple(run.cell.place.values()), []).append(run)
    return found


def percent(values: Sequence[float]) -> str:
    """``84.12 ± 0.31``."""
    spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.2f}{spread}"


def write_curves(runs: Sequence[Done], report: Path, command: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Figure 3(d): ``REPORT.md``, ``.csv`` (a row an epoch and run), ``.png``; and what it comes to."""
    from recdenoise.reports import charts
    from vision import methods

    drawn, cells, lines = [], [], []
    for number, ((name,), members) in enumerate(by_place(runs).items()):
        curves = np.array([run.curve[: min(len(r.curve) for r in members)] for run in members])
        mean, title = curves.mean(0), methods.get(name).title
        colour = charts.COLOURS.get(name, charts.PALETTE[(1, 2, 3, 6, 7)[number % 5]])
        spread = {"low": curves.min(0), "high": curves.max(0)} if len(curves) > 1 else {}
        drawn.append(charts.Line(title, range(1, len(mean) + 1), mean, colour=colour, **spread))
        best = int(mean.argmax())
        ends = [percent([run.record["test"][end]["accuracy"] for run in members]) for end in ("best_val", "last")]
        fall = 100 * (mean[-1] - mean[best])
        cells.append([title, f"{100 * mean[best]:.2f}", str(best + 1), ends[1], f"{fall:+.2f}", ends[0]])
        lines.append(f"{title}: {100 * mean[best]:.2f} % at epoch {best + 1}, {ends[1]} % at the end ({fall:+.2f})")
    picture = report.with_name(report.name + ".png")
    report.parent.mkdir(parents=True, exist_ok=True)
    heading, settings = f"{what(runs)}: test along training", runs[0].cell.settings
    panel = charts.lines(
        f"{settings.network}, {derived.title(settings.dataset)}", "epoch", "accuracy on the clean test", drawn
    )
    charts.write_png([panel], picture, 1)
    columns = ["method", "best epoch's test", "at epoch", "last", "last − best", "best_val"]
    notes = [
        "As in: DeCA, Figure 3(d). The clean test is measured after every epoch of the last stage and only written "
        "down: nothing chooses by it. Mean over seeds in percent; the band goes from the lowest to the highest seed. "
        "A fall after the best epoch is what memorising noise looks like. `best_val` is what noisy validation labels "
        "choose.",
    ]
    rows = [
        {**run.cell.place, "seed": run.cell.settings.seed, "epoch": epoch, "test_accuracy": value}
        for run in runs
        for epoch, value in enumerate(run.curve, 1)
    ]
    return write(report, heading, notes, table(columns, cells), rows, runs, command), lines


def write_map(runs: Sequence[Done], report: Path, command: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Figure 4: ``REPORT.md``, ``.csv`` (a row a run), ``.png``; and what it comes to."""
    from recdenoise.reports import charts

    places = by_place(runs)
    first, second = (list(dict.fromkeys(place[axis] for place in places)) for axis in (0, 1))
    names = [[f"{value:g}" for value in axis] for axis in (first, second)]
    panels, text, lines = [], [], []
    for end in ("best_val", "last"):
        found = {place: [r.record["test"][end]["accuracy"] for r in members] for place, members in places.items()}
        grid = np.array([[statistics.fmean(found.get((a, b), [np.nan])) for b in second] for a in first])
        panels.append(charts.heat_map(f"test accuracy, {end}", "c_2", "c_1", names[1], names[0], grid))
        shown = [[percent(found[a, b]) if (a, b) in found else "–" for b in second] for a in first]
        cells = [[name, *row] for name, row in zip(names[0], shown, strict=True)]
        text += [f"## {end}", "", *table(["c_1 \\ c_2", *names[1]], cells), ""]
        i, j = divmod(int(np.nanargmax(grid)), len(second))
        lines.append(f"{end}: highest {100 * grid[i, j]:.2f} % at c_1 = {names[0][i]}, c_2 = {names[1][j]}")
    report.parent.mkdir(parents=True, exist_ok=True)
    charts.write_png(panels, report.with_name(report.name + ".png"))
    heading = f"{what(runs)}: DeCA(p) by c_1 and c_2"
    notes = ["As in: DeCA, Figure 4. Accuracy on the clean test in percent, mean over seeds. Nothing chooses by it."]
    rows = []
    for run in runs:
        ends = {end: values["accuracy"] for end, values in run.record["test"].items()}
        rows.append({**run.cell.place, "seed": run.cell.settings.seed, **ends})
    return write(report, heading, notes, text, rows, runs, command), lines


def what(runs: Sequence[Done]) -> str:
    """``resnet32 on mnist, symmetric-any:0.4``."""
    settings = runs[0].cell.settings
    return f"{settings.network} on {derived.title(settings.dataset)}, {settings.noise or 'labels as given'}"


def write(
    report: Path,
    heading: str,
    notes: Sequence[str],
    tables: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    runs: Sequence[Done],
    command: Sequence[str],
) -> list[Path]:
    """The texts of a figure beside its picture; returns all paths."""
    picture = report.with_name(report.name + ".png")
    settings, records = runs[0].cell.settings, [run.record for run in runs]
    options = ", ".join(f"`{key}: {value}`" for key, value in settings.options.to_dict().items())
    versions = sorted({f"{k} {v}" for r in records for k, v in r["versions"].items()})
    lines = [f"# {heading}", ""]
    lines += [line for note in notes for line in (note, "")]
    lines += [f"![{heading}]({picture.name})", "", *tables, "", "## Circumstances", ""]
    lines += [f"- Command: `{shlex.join(command)}`", f"- Options of every run: {options}"]
    lines += [f"- Images: {records[0]['images']}; seeds {sorted({r['seed'] for r in records})}"]
    lines += [f"- Versions: {', '.join(versions)}; device {', '.join(sorted({r['device'] for r in records}))}"]
    lines += [f"- Seconds of training, all runs: {sum(r['seconds']['train'] for r in records):.0f}", ""]
    texts = {".md": "\n".join(lines), ".csv": as_csv(rows)}
    for ending, text in texts.items():
        checkpoint.write_text(report.with_name(report.name + ending), text)
    return [*(report.with_name(report.name + ending) for ending in texts), picture]
