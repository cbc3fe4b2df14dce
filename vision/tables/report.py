"""The report of a published table: ours at both ends beside print, as CSV, Markdown and one HTML page."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from recdenoise import checkpoint
from recdenoise.reports.report_text import circumstances, markdown_table
from vision.disagreement_report import as_csv
from vision.tables.plan import Cell, Part, departures, short
from vision.tables.rows import Finished, Numbers, Row, collect, folders, rows_of, summary
from vision.tables.table import Table


@dataclass(frozen=True)
class Content:
    """What a report is made of.

    Attributes:
        table, part: what was asked for.
        cells: everything planned.
        runs: those that have finished.
        rows: what they come to.
        command: what was typed.
    """

    table: Table
    part: Part
    cells: Sequence[Cell]
    runs: Sequence[Finished]
    rows: Sequence[Row]
    command: Sequence[str]


ENDS = {"best_val": "the weights of the epoch that validation chose", "last": "those of the last epoch"}


def rules(content: Content) -> list[str]:
    """How the runs were made and how to read the numbers, a sentence or two a line."""
    table, part, cells = content.table, content.part, content.cells
    first = cells[0].settings
    held = f"{first.valid:,} images" if isinstance(first.valid, int) else f"{first.valid:.0%} of the images"
    lines = [measures_line(content)]
    if apart := departures(table, part, cells):
        lines.append(f"**Not as published**, so that a gap to print may come from it: {'; '.join(apart)}.")
    lines += [note.format(held=held) for note in table.notes]
    only = [entry for entry in (*table.datasets, *table.methods) if entry.absent]
    if only:
        told = "; ".join(f"{entry.title}: {entry.absent}" for entry in only)
        lines.append(f"Shown as printed only, not run here: {told}.")
    clean = {c.entry.title: c.settings.clean for c in cells if c.settings.clean}
    lines += [
        f"{title} learns from {n:,} trusted images besides: drawn by the seed from the training part, with their "
        "true labels, and taken out of it. They choose no epoch."
        for title, n in clean.items()
    ]
    rates = list(dict.fromkeys(cell.rate for cell in cells if cell.group == cells[0].group))
    if len(rates) > 1:
        lines.append(
            f"Learning rates {', '.join(f'{r:g}' for r in rates)} were tried for every cell; the one with the best "
            "mean validation accuracy at `best_val` is shown."
        )
    return lines + required_line(table)


def measures_line(content: Content) -> str:
    """What the numbers are."""
    table = content.table
    told = [f"Ours, in per cent: {table.compared.title}; mean ± sample standard deviation over seeds."]
    if len(table.measures) > 1:
        each = "; ".join(f"{measure.name}: {measure.title}" for measure in table.measures)
        told = [f"Ours, in per cent, mean ± sample standard deviation over seeds. {each}."]
    if other_ends(content.rows):
        told.append(f"`best_val` are {ENDS['best_val']}, `last` {ENDS['last']}.")
        told.append(f"Compared with print: `{table.compared.end}`.")
    return " ".join([*told, "The test set chooses nothing."])


def required_line(table: Table) -> list[str]:
    """What is asked of our numbers, in a sentence; none where nothing is."""
    asked, words = table.required, []
    titles = {str(entry.key): entry.title for entry in table.methods}
    if asked.points is not None:
        words.append(
            f"`{table.compared.end}` within {asked.points:g} point{'s' * (asked.points != 1)} of print or better"
        )
    if asked.above:
        words.append(f"above our own {titles.get(asked.above, asked.above)}")
    if asked.ahead:
        over = asked.ahead.get("over")
        others = "all others" if over is None else ", ".join(titles[name] for name in over)
        keys = asked.ahead.get("conditions")
        chosen = [e.title for e in table.conditions if keys is not None and e.key in keys]
        at = f" at {' and '.join(chosen)}" if chosen else ""
        words.append(f"{titles[asked.ahead['method']]} above {others}{at}")
    return [f"Required: {'; '.join(words)}."] if words else []


def several_measures(rows: Sequence[Row]) -> bool:
    """Whether rows must say what they measure."""
    return len({row.measure for row in rows}) > 1


def other_ends(rows: Sequence[Row]) -> list[str]:
    """Ends that are shown beside the compared one: none where nothing was held out."""
    ends = dict.fromkeys(end for row in rows for end in row.measure.ends[1:])
    return [end for end in ends if any(row.at(end) is not None for row in rows)]


def lead_of(table: Table, rows: Sequence[Row]) -> int:
    """How many first columns say which cell it is."""
    return 1 + (len(table.conditions) > 1) + several_measures(rows)


def columns_of(table: Table, rows: Sequence[Row]) -> list[str]:
    """Of a data set's table; see :func:`table_lines`."""
    others = other_ends(rows)
    lead = [table.axis["title"]] if len(table.conditions) > 1 else []
    lead += ["method", *(["measured"] if several_measures(rows) else [])]
    ours = f"ours, {rows[0].measure.end}" if others else "ours"
    return [*lead, ours, "paper", "ours − paper", *(f"ours, {end}" for end in others), "seeds", ""]


def table_lines(table: Table, rows: Sequence[Row]) -> list[list[str]]:
    """A data set's rows in words."""

    def told(numbers: Numbers | None) -> str:
        return "–" if numbers is None else str(numbers)

    others = other_ends(rows)
    return [
        [
            *([row.label] if len(table.conditions) > 1 else []),
            row.title,
            *([row.measure.name] if several_measures(rows) else []),
            told(row.ours),
            told(row.printed),
            "–" if row.difference is None else f"{row.difference:+.2f}",
            *(told(row.at(end)) for end in others),
            str(len(row.seeds)) if row.seeds else "–",
            "missed: " + "; ".join(row.missed) if row.missed else "" if row.seeds else "printed only",
        ]
        for row in rows
    ]


def options_of(run: Finished) -> dict[str, Any]:
    """A run's options and network, without what is shown apart."""
    settings = run.cell.settings
    options = {k: v for k, v in settings.options.to_dict().items() if k not in ("lr", "device") and v is not None}
    return {"network": settings.network, **options}


def shared_options(runs: Sequence[Finished]) -> dict[str, Any]:
    """Options that all runs share."""
    first = options_of(runs[0])
    return {k: v for k, v in first.items() if all(options_of(run).get(k, None) == v for run in runs)}


def run_options(runs: Sequence[Finished]) -> str:
    """The options that all runs share, in a line."""
    shown = ", ".join(f"`{key}: {value}`" for key, value in shared_options(runs).items())
    return f"Of every run: {shown}."


SETTINGS_COLUMNS = ("data", "method", "options of the method", "of the run", "lr", "images", "seeds", "seconds, mean")


def settings_lines(rows: Sequence[Row], runs: Sequence[Finished]) -> list[list[str]]:
    """A line for each data set, method and set of options: what differs from run to run, and what it took."""
    shared = shared_options(runs)
    kinds: dict[tuple[str, str, str, str, str], list[Finished]] = {}
    chosen = {(row.dataset, row.condition, row.method): row for row in rows if row.seeds}
    for run in runs:
        if run.cell.group in chosen and chosen[run.cell.group].rate == run.cell.rate:
            config = ", ".join(
                f"{k} {short(v)}" for k, v in run.cell.settings.config.to_dict().items() if v is not None
            )
            own = ", ".join(f"{k} {short(v)}" for k, v in options_of(run).items() if shared.get(k) != v)
            images = ", ".join(f"{part} {n}" for part, n in run.record["images"].items())
            kinds.setdefault((run.cell.dataset, run.cell.entry.title, config, own, images), []).append(run)
    lines = []
    for (dataset, title, config, own, images), members in kinds.items():
        labels: dict[str, list[str]] = {}
        for run in members:
            told = labels.setdefault(f"{run.cell.rate:g}", [])
            told += [run.cell.condition.title] if run.cell.condition.title not in told else []
        rates = ", ".join(r if len(labels) == 1 else f"{r} ({', '.join(of)})" for r, of in labels.items())
        seeds = ", ".join(str(seed) for seed in sorted({run.cell.settings.seed for run in members}))
        seconds = statistics.fmean(run.record["seconds"]["train"] for run in members)
        lines.append([dataset, title, config, own, rates, images, seeds, f"{seconds:.0f}"])
    return lines


def overview(table: Table, rows: Sequence[Row]) -> tuple[list[str], list[list[Row | None]]]:
    """A data set's rows as print has them: titles of conditions, and a line a method with a row for each of these."""
    labels = dict.fromkeys(row.label for row in rows)
    methods = [*map(str, table.keys("methods")), *dict.fromkeys(row.method for row in rows)]
    found = {(row.method, row.label): row for row in rows}
    lines = [[found.get((method, label)) for label in labels] for method in dict.fromkeys(methods)]
    return list(labels), [line for line in lines if any(line)]


def told_in_overview(row: Row | None) -> str:
    """Ours and print in a few characters."""
    if row is None:
        return ""
    ours, printed = row.ours, row.printed
    return f"{'–' if ours is None else f'{ours.mean:.2f}'} / {'–' if printed is None else f'{printed.mean:.2f}'}"


def markdown(content: Content) -> str:
    """The page: circumstances, tables of every data set, settings, and what was reached."""
    table, rows = content.table, content.rows
    headline, lacking = summary(table, rows, content.cells, content.runs)
    own = folders(content.runs)
    lines = [f"# {table.title}", "", f"Compared with: {table.source}.", ""]
    lines += [*circumstances([r.record for r in own], [r.job for r in own if r.job], content.command), ""]
    lines += [line for rule in rules(content) for line in (rule, "")]
    for dataset in dict.fromkeys(row.dataset for row in rows):
        mine = [row for row in rows if row.dataset == dataset]
        lines += [f"## {table.called(dataset)}", ""]
        for measure in dict.fromkeys(row.measure for row in mine):
            labels, grid = overview(table, [row for row in mine if row.measure == measure])
            if len(labels) > 1:
                named = f", {measure.name}" if several_measures(mine) else ""
                lines += [f"Ours / paper{named}:", ""]
                entries = [[next(r for r in line if r).title, *map(told_in_overview, line)] for line in grid]
                lines += [*markdown_table(("method", *labels), entries, left=1), ""]
        lines += [*markdown_table(columns_of(table, mine), table_lines(table, mine), lead_of(table, mine)), ""]
    lines += ["## Settings", "", run_options(own), ""]
    lines += [*markdown_table(SETTINGS_COLUMNS, settings_lines(rows, own), left=7), "", "## Reached", ""]
    lines += [*(f"- {line}" for line in lacking), *([""] if lacking else []), f"{headline}.", ""]
    return "\n".join(lines)


def cell_csv(table: Table, rows: Sequence[Row]) -> str:
    """A line a cell, in per cent."""
    records = []
    for row in rows:
        values: dict[str, Any] = {item.name: getattr(row, item.name) for item in fields(row)}
        for name in ("label", "measure"):
            values.pop(name)
        values = {table.axis["name"] if key == "condition" else key: value for key, value in values.items()}
        if len(table.measures) > 1:
            values |= {"measure": row.measure.name}
        for name in ("best_val", "last", "printed"):
            numbers = values.pop(name)
            mean, std = (None, None) if numbers is None else (numbers.mean, numbers.std)
            values |= {name: mean, f"{name}_std": std}
        values |= {
            "difference": row.difference,
            "seeds": " ".join(map(str, row.seeds)),
            "missed": "; ".join(row.missed),
        }
        records.append(values)
    return as_csv(records)


def run_csv(table: Table, runs: Sequence[Finished]) -> str:
    """A line a run, those of learning rates not chosen too."""
    records: list[Mapping[str, Any]] = []
    for run in runs:
        valid = run.accuracy("valid", "best_val") if "valid" in run.record else None
        ends = {f"test_{end}": run.accuracy("test", end) for end in ("best_val", "last")}
        more = {
            f"{measure.name}_{end}": run.value(measure.of(run.cell.dataset), end)
            for measure in (table.measures if len(table.measures) > 1 else ())
            for end in measure.ends
        }
        name = "noise_ratio" if table.axis.get("share") else table.axis["name"]
        records.append(
            {
                "dataset": run.cell.dataset,
                name: run.cell.condition.key,
                "method": run.cell.method,
                "lr": run.cell.rate,
                "seed": run.cell.settings.seed,
                **ends,
                "valid_best_val": valid,
                "wrong_labels": run.record["noise"]["rate"],
                "train_seconds": run.record["seconds"]["train"],
                "device": run.record["device"],
                "ended": (run.job or {}).get("ended", ""),
                **more,
            }
        )
    return as_csv(records)


def write(
    table: Table, part: Part, cells: Sequence[Cell], out: Path, report: Path, command: Sequence[str]
) -> tuple[list[Path], list[str]]:
    """Write ``REPORT.html``, ``.md``, ``.csv`` (cells), ``-runs.csv`` (seeds) from the files in ``out``.

    Returns:
        The files; and a line of what was reached, then lines of what was not. No files where no run has finished.
    """
    from vision.tables import page

    runs = collect(cells, out)
    if not runs:
        return [], ["no run has finished"]
    rows = rows_of(table, runs)
    content = Content(table, part, cells, runs, rows, command)
    texts = {
        ".html": page.page(content),
        ".md": markdown(content),
        ".csv": cell_csv(table, rows),
        "-runs.csv": run_csv(table, runs),
    }
    paths = []
    for ending, text in texts.items():
        paths.append(report.with_name(report.name + ending))
        checkpoint.write_text(paths[-1], text)
    headline, lacking = summary(table, rows, cells, runs)
    return paths, [headline, *lacking]
