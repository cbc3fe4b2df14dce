"""Our runs beside print: rows from the result files alone, the required minimum of a cell, CSV."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recdenoise.recbole_adapter.recbole_config import read_yaml
from recdenoise.reports import published
from recdenoise.reports.grid import KEPT, Cell, TableSpec, to_csv
from recdenoise.reports.report_text import JOB, read_json
from recdenoise.reports.run_folder import result_of

MASKED = "masked"
"""Added to the variant of runs that were also tested with training items masked."""


@dataclass(frozen=True)
class Numbers:
    """Values of one metric over seeds, or what was printed for it."""

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Numbers:
        """Mean and sample standard deviation (none for a single value)."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


@dataclass(frozen=True)
class Row:
    """One metric of one cell of a table.

    Attributes:
        dataset, model, method, title, variant, metric: which.
        compared: whether it answers to print, or is shown beside it.
        ours: over seeds; ``None`` while no run has finished.
        warm, cold: the same over users seen in training and over the others, where there are both.
        ordered, ordered_cold: of all and of cold users, with equal scores ranked in the order of the items' tokens.
        printed, code: the paper's mean and deviation, and what the authors' public code gives; ``None`` where unknown.
        clean: lowest and highest value of a clean run: a separate implementation of the formulas, one or two seeds.
        required: the least value that counts as reached; ``None`` where nothing is required.
        label: what the report calls the row: the title, and the variant where the title does not name it.
    """

    dataset: str
    model: str
    method: str
    title: str
    variant: str
    metric: str
    compared: bool
    ours: Numbers | None
    warm: Numbers | None
    cold: Numbers | None
    ordered: Numbers | None
    ordered_cold: Numbers | None
    printed: Numbers | None
    code: float | None
    clean: tuple[float, float] | None
    required: float | None
    label: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether our mean is at least what is required; ``None`` where nothing is."""
        if self.required is None:
            return None
        return self.ours is not None and self.ours.mean >= self.required

    @property
    def difference(self) -> float | None:
        """Our mean less the printed one."""
        return None if self.ours is None or self.printed is None else self.ours.mean - self.printed.mean


def required_minimum(printed: Numbers, code: float | None, deviations: float, share: float) -> float:
    """The least mean that counts as reached.

    It is the printed mean less the larger of ``deviations`` standard deviations and ``share`` of it, or the public
    code's value less ``share`` of it, whichever is lower.
    """
    allowed = max(deviations * (printed.std or 0.0), share * printed.mean)
    bounds = [printed.mean - allowed]
    if code is not None:
        bounds.append(code * (1 - share))
    return min(bounds)


@dataclass(frozen=True)
class Finished:
    """A finished run of a grid: its cell, its files' content."""

    cell: Cell
    folder: Path
    result: dict[str, Any]
    config: dict[str, Any]
    job: dict[str, Any] | None
    ties: dict[str, Any] = field(default_factory=dict)

    def tests(self) -> dict[str, dict[str, float]]:
        """Variant's name -> metrics, with the masked test where the run has one."""
        name = self.cell.variant.name
        tests = {name: self.result["test"]}
        if "test_masked" in self.result:
            tests[f"{name}, {MASKED}" if name else MASKED] = self.result["test_masked"]
        return tests


def collect(cells: Sequence[Cell], out: Path) -> list[Finished]:
    """Read every finished run of ``cells`` under ``out``. Raises ``UserError`` for a file that is no result."""
    runs = []
    for cell in cells:
        folder = out / cell.name
        result = result_of(folder)
        if result is not None:
            job, ties = read_json(folder / "job.json", *JOB), read_json(folder / KEPT["ties"]) or {}
            runs.append(Finished(cell, folder, result, read_yaml(folder / "config.yaml"), job, ties))
    return runs


Values = dict[str, list[float]]
"""Metric to its values over seeds."""

POPULATIONS = ("all", "warm", "cold", "ordered", "ordered_cold")
"""See :class:`Row`."""


def gather(runs: Sequence[Finished]) -> dict[tuple[str, ...], dict[str, dict[str, Values]]]:
    """Group -> variant of the test -> population (:data:`POPULATIONS`) -> values over seeds."""
    found: dict[tuple[str, ...], dict[str, dict[str, Values]]] = {}
    for run in runs:
        for variant, test in run.tests().items():
            place = found.setdefault(run.cell.group, {}).setdefault(variant, {name: {} for name in POPULATIONS})
            populations = {"all": test}
            if variant == run.cell.variant.name:
                populations |= {name: run.result.get("counts", {}).get(name) or {} for name in ("warm", "cold")}
                populations |= {"ordered": run.ties.get("all") or {}, "ordered_cold": run.ties.get("cold") or {}}
            for name, means in populations.items():
                for metric, value in means.items():
                    place[name].setdefault(metric, []).append(float(value))
    return found


def table_rows(table: TableSpec, cells: Sequence[Cell], runs: Sequence[Finished]) -> list[Row]:
    """Rows for every metric that was measured or printed, in the order of the grid."""
    means, stds = ({} if not table.printed else published.load_numbers(table.printed, c) for c in ("mean", "std"))
    code = published.load_numbers(table.public_code, "value") if table.public_code else {}
    low, high = ({} if not table.clean_run else published.load_numbers(table.clean_run, c) for c in ("low", "high"))
    values = gather(runs)
    rows = []
    for group, cell in {cell.group: cell for cell in cells}.items():
        dataset, model, method, name = group
        for variant, populations in (values.get(group) or {name: {p: {} for p in POPULATIONS}}).items():
            compared = cell.variant.compared and variant == name
            label = cell.label_of(variant)
            for metric in dict.fromkeys([*populations["all"], *table.shown_for(dataset)]):
                key = (dataset, model, cell.title, metric)
                # Print is of one protocol: under another, users and positives are other ones.
                comparable = cell.settings.protocol == table.protocol
                printed = Numbers(means[key], stds.get(key), 0) if comparable and key in means else None
                ours, warm, cold, ordered, ordered_cold = (
                    Numbers.of(populations[p][metric]) if metric in populations[p] else None for p in POPULATIONS
                )
                least = None
                if compared and metric in table.required_for(dataset) and printed is not None:
                    least = required_minimum(printed, code.get(key), table.deviations, table.share)
                clean = (low[key], high[key]) if comparable and key in low else None
                references = (printed, code.get(key) if comparable else None, clean, least)
                place = (dataset, model, method, cell.title, variant, metric, compared)
                rows.append(Row(*place, ours, warm, cold, ordered, ordered_cold, *references, label))
    return rows


def summary(rows: Iterable[Row]) -> list[str]:
    """``N of M required cells reached``, then a line for every one that is not, with its gap."""
    required = [row for row in rows if row.required is not None]
    lines = [f"{sum(bool(row.reached) for row in required)} of {len(required)} required cells reached"]
    for row in required:
        if not row.reached:
            least = row.required or 0.0
            where = f"{row.dataset} {row.model} {row.title} {row.metric}"
            if row.ours is None:
                lines.append(f"{where}: no finished run, at least {least:.4f} is required")
            else:
                gap = row.ours.mean - least
                lines.append(
                    f"{where}: {row.ours.mean:.4f}, at least {least:.4f} is required, {gap:+.4f} ({gap / least:+.1%})"
                )
    return lines


def unfinished(cells: Sequence[Cell], runs: Sequence[Finished]) -> list[str]:
    """A line where runs are missing: cells with fewer seeds than asked for are no final answer."""
    missing = len(cells) - len(runs)
    return [f"{missing} of {len(cells)} runs have not finished; their seeds are missing above"] if missing else []


# CSV


CELL_COLUMNS = (
    *("dataset", "model", "method", "variant", "metric", "compared", "mean", "std", "seeds"),
    *("paper_mean", "paper_std", "public_code", "difference", "required_minimum", "reached"),
    *("clean_run_low", "clean_run_high", "warm_mean", "warm_std", "cold_mean", "cold_std"),
    *("token_order_mean", "token_order_cold_mean"),
)


def cell_csv(rows: Sequence[Row]) -> str:
    """Every row of the table, numbers in full."""
    records = []
    for row in rows:
        ours, printed = row.ours, row.printed
        values = (
            (row.dataset, row.model, row.title, row.variant, row.metric, "yes" if row.compared else "no")
            + ((ours.mean, ours.std, ours.n) if ours else (None, None, 0))
            + ((printed.mean, printed.std) if printed else (None, None))
            + (row.code, row.difference, row.required)
            + (None if row.reached is None else "yes" if row.reached else "no",)
            + (row.clean or (None, None))
            + ((row.warm.mean, row.warm.std) if row.warm else (None, None))
            + ((row.cold.mean, row.cold.std) if row.cold else (None, None))
            + tuple(None if numbers is None else numbers.mean for numbers in (row.ordered, row.ordered_cold))
        )
        records.append(dict(zip(CELL_COLUMNS, values, strict=True)))
    return to_csv(CELL_COLUMNS, records)


def run_csv(runs: Sequence[Finished]) -> str:
    """A row a run and test: seed, metrics, seconds, epochs."""
    records = []
    for run in runs:
        dataset, model, _, _ = run.cell.group
        for variant, test in run.tests().items():
            record: dict[str, Any] = {"dataset": dataset, "model": model}
            record |= {"method": run.cell.title, "variant": variant}
            record |= {"seed": run.result["seed"], "selector": run.result["selector"], **test}
            record |= {f"{phase}_seconds": round(s, 3) for phase, s in run.result["seconds"].items()}
            record["epochs"] = "+".join(str(n) for n in run.result["epochs"].values())
            records.append(record)
    columns = list(dict.fromkeys(key for record in records for key in record))
    return to_csv(columns, records)
