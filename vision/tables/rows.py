"""What the runs of a table come to: means over seeds beside print, and what was asked of them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recdenoise.errors import UserError
from recdenoise.reports.report_text import JOB, read_json
from vision.experiment import read_record
from vision.tables.plan import Cell
from vision.tables.table import Entry, Key, Measure, Table


@dataclass(frozen=True)
class Numbers:
    """Mean and sample standard deviation in per cent; ``std`` is ``None`` for one value."""

    mean: float
    std: float | None

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + ("" if self.std is None else f" ± {self.std:.2f}")


@dataclass(frozen=True)
class Finished:
    """A finished run: its cell, its folder, and what ``result.json`` and, where it is there, ``job.json`` hold."""

    cell: Cell
    folder: Path
    record: dict[str, Any]
    job: dict[str, Any] | None

    def value(self, path: str, end: str) -> float:
        """In per cent: what the result has at a path such as ``test.{end}.accuracy``. Raises ``UserError``."""
        found: Any = self.record
        for step in path.format(end=end).split("."):
            if not isinstance(found, Mapping) or step not in found:
                told = path.format(end=end)
                raise UserError(f"{self.folder / 'result.json'} has no {told}: the run did not measure it.")
            found = found[step]
        return 100 * float(found)

    def accuracy(self, part: str, end: str) -> float:
        """In per cent, of ``test`` or ``valid`` at ``last`` or ``best_val``."""
        return self.value(f"{part}.{{end}}.accuracy", end)


@dataclass(frozen=True)
class Row:
    """One cell of the table, over seeds.

    Attributes:
        dataset, condition, method: keys: which.
        measure: what was measured.
        title: the method's, for people.
        label: the condition's, for people.
        rate: the learning rate, chosen by validation where several were tried; ``None`` where nothing has run.
        seeds: finished ones.
        best_val, last: our values; ``None`` where nothing has run, or where the value has no such end.
        valid: mean accuracy on the validation labels, at ``best_val``.
        wrong: share of the training and validation labels that are wrong, in per cent.
        printed: what the paper has.
        seconds: mean over seeds, of training.
        missed: what the cell must reach and does not, in words.
        required: number of things that it must reach.
    """

    dataset: str
    condition: Key
    method: str
    measure: Measure
    title: str
    label: str
    rate: float | None = None
    seeds: tuple[int, ...] = ()
    best_val: Numbers | None = None
    last: Numbers | None = None
    valid: float | None = None
    wrong: float | None = None
    printed: Numbers | None = None
    seconds: float | None = None
    missed: tuple[str, ...] = ()
    required: int = 0

    @property
    def ours(self) -> Numbers | None:
        """What is compared with print."""
        return self.at(self.measure.end)

    def at(self, end: str) -> Numbers | None:
        """Our value at an end."""
        return self.best_val if end == "best_val" else self.last

    @property
    def difference(self) -> float | None:
        """Ours less print, in points."""
        return None if self.printed is None or self.ours is None else self.ours.mean - self.printed.mean


def over(values: Iterable[float]) -> Numbers:
    """Mean and deviation."""
    found = list(values)
    return Numbers(statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None)


def collect(cells: Sequence[Cell], out: Path) -> list[Finished]:
    """The finished runs among the cells. Raises ``UserError`` for a file of theirs that is damaged."""
    runs = []
    for cell in cells:
        folder = out / cell.name
        record = read_record(folder)
        if record is None:
            continue
        runs.append(Finished(cell, folder, record, read_json(folder / "job.json", *JOB)))
    return runs


def folders(runs: Sequence[Finished]) -> list[Finished]:
    """Each run once, where one answers to several cells."""
    return list({run.cell.name: run for run in reversed(runs)}.values())[::-1]


def choose(runs: Sequence[Finished]) -> list[Finished]:
    """The runs of the learning rate with the best mean validation accuracy, over the seeds that all rates have."""
    by_rate: dict[float, list[Finished]] = {}
    for run in runs:
        by_rate.setdefault(run.cell.rate, []).append(run)
    if len(by_rate) == 1:
        return list(runs)
    shared = set.intersection(*({r.cell.settings.seed for r in members} for members in by_rate.values()))

    def value(rate: float) -> float:
        chosen = [r for r in by_rate[rate] if r.cell.settings.seed in shared] or by_rate[rate]
        return statistics.fmean(r.accuracy("valid", "best_val") for r in chosen)

    return by_rate[max(by_rate, key=value)]


def rows_of(table: Table, runs: Sequence[Finished]) -> list[Row]:
    """A row a cell and measure, by data set, condition and method as the table has them, judged."""
    groups: dict[tuple[str, Key, str], list[Finished]] = {}
    for run in runs:
        groups.setdefault(run.cell.group, []).append(run)
    rows = [row for members in groups.values() for row in measured(table, choose(members))]
    rows += print_alone(table, rows)
    methods = [*table.keys("methods"), *dict.fromkeys(row.method for row in rows)]
    sets = [*table.keys("datasets"), *dict.fromkeys(row.dataset for row in rows)]
    conditions = [*table.keys("conditions"), *dict.fromkeys(row.condition for row in rows)]
    if table.axis.get("share"):
        conditions = sorted(conditions)
    names = [measure.name for measure in table.measures]
    rows.sort(
        key=lambda row: (
            sets.index(row.dataset),
            names.index(row.measure.name),
            conditions.index(row.condition),
            methods.index(row.method),
        )
    )
    return [judged(table, row, rows) for row in rows]


def measured(table: Table, runs: Sequence[Finished]) -> list[Row]:
    """The rows of one cell. Where nothing was held out, ``best_val`` is the last epoch and not shown apart."""
    cell, record = runs[0].cell, runs[0].record
    held = all("valid" in run.record for run in runs)
    wrong = record["noise"]["rate"]
    common: dict[str, Any] = {
        "rate": cell.rate,
        "seeds": tuple(sorted(run.cell.settings.seed for run in runs)),
        "valid": statistics.fmean(r.accuracy("valid", "best_val") for r in runs) if held else None,
        "wrong": None if wrong is None else 100 * wrong,
        "seconds": statistics.fmean(run.record["seconds"]["train"] for run in runs),
    }
    rows = []
    for measure in table.measures:
        shown = measure.ends if held else measure.ends[:1]
        ends = {end: over(run.value(measure.of(cell.dataset), end) for run in runs) for end in shown}
        rows.append(bare(table, cell.dataset, cell.condition, cell.entry, measure, **common, **ends))
    return rows


def bare(table: Table, dataset: str, condition: Entry, method: Entry, measure: Measure, **ours: Any) -> Row:
    """A row with its print."""
    printed = table.printed.get((dataset, condition.key, method.key, measure.name))
    ours["printed"] = None if printed is None else Numbers(*printed)
    return Row(dataset, condition.key, str(method.key), measure, method.title, condition.title, **ours)


def print_alone(table: Table, rows: Sequence[Row]) -> list[Row]:
    """Rows of methods and data sets that are shown as printed only, beside those that have run."""
    places = list(dict.fromkeys((row.dataset, row.condition) for row in rows))
    keys = dict.fromkeys(key for _, key in places)
    whole = [(str(entry.key), key) for entry in table.datasets if entry.absent for key in keys]
    return [
        row
        for dataset, key in [*places, *whole]
        for method in table.methods
        for measure in table.measures
        if method.absent or (dataset, key) in whole
        if (condition := table.entry("conditions", key)) is not None
        if (row := bare(table, dataset, condition, method, measure)).printed is not None
    ]


def judged(table: Table, row: Row, rows: Sequence[Row]) -> Row:
    """The row with what it must reach, as far as what it is compared with is there."""
    if row.ours is None:
        return row
    place = (row.dataset, row.condition, row.measure)
    beside = {r.method: r for r in rows if (r.dataset, r.condition, r.measure) == place and r.method != row.method}
    theirs = {name: other.ours.mean for name, other in beside.items() if other.ours is not None}
    own, asked = table.keys("methods"), table.required
    missed, required = [], 0
    if row.difference is not None and asked.points is not None:
        required += 1
        if row.difference < -asked.points:
            missed.append(f"{-row.difference:.2f} points below print, {asked.points:g} allowed")
    if row.method in own and asked.above in theirs:
        required += 1
        if row.ours.mean <= theirs[asked.above]:
            missed.append(f"not above our own {asked.above}, {theirs[asked.above]:.2f}")
    if row.method == asked.ahead.get("method") and row.condition in asked.ahead.get("conditions", (row.condition,)):
        over_ = asked.ahead.get("over", [name for name in own if name != asked.above])
        others = {beside[name].title: theirs[name] for name in over_ if name in theirs}
        required += bool(others)
        missed += [f"not above our {title}, {mean:.2f}" for title, mean in others.items() if row.ours.mean <= mean]
    return replace(row, missed=tuple(missed), required=required)


def summary(
    table: Table, rows: Sequence[Row], cells: Sequence[Cell], runs: Sequence[Finished]
) -> tuple[str, list[str]]:
    """What was reached, in a line; and a line for whatever was missed or has not been run."""
    required = [row for row in rows if row.required]
    good = sum(not row.missed for row in required)
    several = len({row.measure for row in rows}) > 1
    lines = [
        f"{place_of(table.called(row.dataset), row.label)}, {row.title}"
        f"{', ' + row.measure.name if several else ''}: {'; '.join(row.missed)}"
        for row in rows
        if row.missed
    ]
    done = {run.cell.name for run in runs}
    waiting: dict[str, list[str]] = {}
    for cell in cells:
        if cell.name not in done:
            rate = f" at {cell.rate:g}" if len({c.rate for c in cells if c.group == cell.group}) > 1 else ""
            text = f"{cell.entry.title} seed {cell.settings.seed}{rate}"
            waiting.setdefault(place_of(table.called(cell.dataset), cell.condition.title), []).append(text)
    lines += [f"{place}: not finished: {', '.join(texts)}" for place, texts in waiting.items()]
    return f"{good} of {len(required)} cells reach what is required of them", lines


def place_of(dataset: str, condition: str) -> str:
    """Data set and condition for people."""
    return ", ".join(word for word in (dataset, condition) if word)
