"""Our runs beside print: rows from the result files alone, the required minimum of a cell, CSV and Markdown."""

from __future__ import annotations

import json
import shlex
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recdenoise import checkpoint
from recdenoise.recbole_adapter.recbole_config import read_yaml
from recdenoise.reports import published
from recdenoise.reports.grid import Cell, TableSpec, result_of, to_csv

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
        printed, code: the paper's mean and deviation, and what the authors' public code gives; ``None`` where unknown.
        required: the least value that counts as reached; ``None`` where nothing is required.
    """

    dataset: str
    model: str
    method: str
    title: str
    variant: str
    metric: str
    compared: bool
    ours: Numbers | None
    printed: Numbers | None
    code: float | None
    required: float | None

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
            note = folder / "job.json"
            job = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else None
            runs.append(Finished(cell, folder, result, read_yaml(folder / "config.yaml"), job))
    return runs


def table_rows(table: TableSpec, cells: Sequence[Cell], runs: Sequence[Finished]) -> list[Row]:
    """Rows for every metric that was measured or printed, in the order of the grid."""
    means = published.load_numbers(table.printed, "mean")
    stds = published.load_numbers(table.printed, "std")
    code = published.load_numbers(table.public_code, "value") if table.public_code else {}
    values: dict[tuple[str, ...], dict[str, dict[str, list[float]]]] = {}
    for run in runs:
        for variant, test in run.tests().items():
            place = values.setdefault(run.cell.group, {}).setdefault(variant, {})
            for metric, value in test.items():
                place.setdefault(metric, []).append(float(value))
    rows = []
    for group, cell in {cell.group: cell for cell in cells}.items():
        dataset, model, method, name = group
        title = cell.settings.method.title
        for variant, metrics in (values.get(group) or {name: {}}).items():
            compared = cell.variant.compared and variant == name
            for metric in dict.fromkeys([*metrics, *table.shown]):
                key = (dataset, model, title, metric)
                printed = Numbers(means[key], stds[key], 0) if key in means else None
                ours = Numbers.of(metrics[metric]) if metric in metrics else None
                least = None
                if compared and metric in table.required and printed is not None:
                    least = required_minimum(printed, code.get(key), table.deviations, table.share)
                rows.append(
                    Row(dataset, model, method, title, variant, metric, compared, ours, printed, code.get(key), least)
                )
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
            record |= {"method": run.cell.settings.method.title, "variant": variant}
            record |= {"seed": run.result["seed"], "selector": run.result["selector"], **test}
            record |= {f"{phase}_seconds": round(s, 3) for phase, s in run.result["seconds"].items()}
            record["epochs"] = "+".join(str(n) for n in run.result["epochs"].values())
            records.append(record)
    columns = list(dict.fromkeys(key for record in records for key in record))
    return to_csv(columns, records)


# Markdown


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 2) -> list[str]:
    """Lines of a table; the first ``left`` columns are text, the others numbers."""
    lines = ["| " + " | ".join(columns) + " |"]
    lines.append("|" + "|".join("---" if i < left else "---:" for i in range(len(columns))) + "|")
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def show(numbers: Numbers | None, digits: int = 4) -> str:
    """``0.0952 ± 0.0013``."""
    if numbers is None:
        return "–"
    spread = "" if numbers.std is None else f" ± {numbers.std:.{digits}f}"
    return f"{numbers.mean:.{digits}f}{spread}"


def short(metric: str) -> str:
    """``R@20`` for ``recall@20``."""
    return metric.replace("recall", "R").replace("ndcg", "N")


def model_table(table: TableSpec, rows: Sequence[Row]) -> list[str]:
    """The table of one model: four lines a method and variant, a column a metric."""
    blocks: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        blocks.setdefault((row.title, row.variant), {})[row.metric] = row
    lines = []
    for (title, variant), metrics in blocks.items():
        shown = [metrics[m] for m in table.shown]
        label = title + (f" ({variant})" if variant else "")
        if not shown[0].compared:
            lines.append([label, "ours, not compared", *(show(r.ours) for r in shown)])
            continue
        marks = {None: "", True: "", False: " **missed**"}
        lines.append([f"**{label}**", "ours", *(show(r.ours) + marks[r.reached] for r in shown)])
        lines.append(["", "paper", *(show(r.printed, 3) for r in shown)])
        if any(r.code is not None for r in shown):
            lines.append(["", "public code", *("–" if r.code is None else f"{r.code:.4f}" for r in shown)])
        lines.append(["", "ours − paper", *("–" if r.difference is None else f"{r.difference:+.4f}" for r in shown)])
        lines.append(["", "required", *("" if r.required is None else f"≥ {r.required:.4f}" for r in shown)])
    return markdown_table(["method", "", *map(short, table.shown)], lines)


def settings_table(runs: Sequence[Finished]) -> list[str]:
    """Selector, options, epochs and seconds of every cell."""
    groups: dict[tuple[str, ...], list[Finished]] = {}
    for run in runs:
        groups.setdefault(run.cell.group, []).append(run)
    rows = []
    for (dataset, model, _, variant), members in groups.items():
        first = members[0]
        options = {k: v for k, v in first.config["denoiser"].items() if k != "name" and v is not None}
        epochs = [" + ".join(map(str, m.result["epochs"].values())) for m in members]
        seconds = statistics.fmean(sum(m.result["seconds"].values()) for m in members)
        rows.append(
            [
                f"{dataset} {model}",
                first.cell.settings.method.title + (f" ({variant})" if variant else ""),
                str(first.result["selector"]),
                ", ".join(f"{k} {v}" for k, v in options.items()),
                ", ".join(str(m.result["seed"]) for m in members),
                ", ".join(epochs),
                f"{seconds:.1f}",
            ]
        )
    columns = ["model", "method", "selector", "options", "seeds", "epochs run, per seed", "seconds, mean"]
    return markdown_table(columns, rows, left=6)


def circumstances(
    results: Sequence[dict[str, Any]], jobs: Sequence[dict[str, Any]], command: Sequence[str], protocol: str
) -> list[str]:
    """Command, versions, hardware, dates and seconds: whatever the files say, each different value once.

    Args:
        results: contents of ``result.json``.
        jobs: contents of ``job.json``.
        command: what was typed.
        protocol: of all runs.
    """
    versions = dict.fromkeys(", ".join(f"{k} {v}" for k, v in result["versions"].items()) for result in results)
    machines = dict.fromkeys(
        f"{m['platform']}, {m['processor']}, {m['cores']} cores" for m in (job["machine"] for job in jobs)
    )
    dates = sorted(job["ended"] for job in jobs)
    seeds = sorted({result["seed"] for result in results})
    inside = sum(sum(result["seconds"].values()) for result in results)
    wall = sum(job["seconds"] for job in jobs)
    lines = [f"- Command: `{shlex.join(command)}`", f"- Protocol: {protocol}; seeds {', '.join(map(str, seeds))}"]
    lines += [f"- Versions: {v}" for v in versions] + [f"- Machine: {m}; one torch thread a run" for m in machines]
    lines += [f"- Runs: {len(results)}" + (f", ended {dates[0]} to {dates[-1]}" if dates else "")]
    total = f"- Seconds over all runs: {inside:.0f} preparing, training and testing"
    return [*lines, total + (f"; {wall:.0f} of whole processes" if wall else "")]


def markdown(
    table: TableSpec, cells: Sequence[Cell], runs: Sequence[Finished], rows: Sequence[Row], command: Sequence[str]
) -> str:
    """The page: circumstances, a table per data set and model, settings, and what was reached."""
    protocol = cells[0].settings.protocol
    lines = [f"# {table.title}", "", f"Compared with: {table.source}.", ""]
    lines += [*circumstances([r.result for r in runs], [r.job for r in runs if r.job], command, protocol), ""]
    least = f"the paper's mean less the larger of {table.deviations} of its standard deviations and {table.share:.0%}"
    if table.public_code:
        least += f", or the public code's value less {table.share:.0%}, whichever is lower"
    names = " and ".join(short(m) for m in table.required)
    lines += [
        f"Ours: mean ± sample standard deviation over seeds, on the clean test. Required ({names}): {least}.",
        "Rows that are not compared are runs under other rules than the printed ones.",
        "",
    ]
    for dataset, model in dict.fromkeys((row.dataset, row.model) for row in rows):
        chosen = [row for row in rows if (row.dataset, row.model) == (dataset, model)]
        lines += [f"## {model} on {dataset}", "", *model_table(table, chosen), ""]
    lines += ["## Settings", "", *settings_table(runs), "", "## Reached", ""]
    headline, *missed = [*summary(rows), *unfinished(cells, runs)]
    lines += [*(f"- {line}" for line in missed), *([""] if missed else []), f"{headline}.", ""]
    return "\n".join(lines)


def write_report(
    table: TableSpec, cells: Sequence[Cell], out: Path, report: Path, command: Sequence[str]
) -> tuple[list[Path], list[str]]:
    """Write ``REPORT.md``, ``REPORT.csv`` (cells) and ``REPORT-runs.csv`` (seeds) from the files under ``out``.

    Returns:
        The files, and the lines of :func:`summary` and :func:`unfinished`.
    """
    runs = collect(cells, out)
    rows = table_rows(table, cells, runs)
    texts = {".md": markdown(table, cells, runs, rows, command), ".csv": cell_csv(rows), "-runs.csv": run_csv(runs)}
    paths = []
    for ending, text in texts.items():
        path = report.with_name(report.name + ending)
        checkpoint.write_text(path, text)
        paths.append(path)
    return paths, [*summary(rows), *unfinished(cells, runs)]
