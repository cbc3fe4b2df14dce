"""A table's report in Markdown, and the wording that all reports share."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from recdenoise.reports.comparison import Finished, Numbers, Row, summary, unfinished
from recdenoise.reports.grid import Cell, TableSpec
from recdenoise.reports.report_text import circumstances, markdown_table
from recdenoise.reports.significance import PairedTest, explanation


def show(numbers: Numbers | None, digits: int = 4) -> str:
    """``0.0952 ± 0.0013``."""
    if numbers is None:
        return "–"
    spread = "" if numbers.std is None else f" ± {numbers.std:.{digits}f}"
    return f"{numbers.mean:.{digits}f}{spread}"


def show_range(ends: tuple[float, float] | None) -> str:
    """``0.205–0.208``, or one number where the ends are the same."""
    if ends is None:
        return "–"
    return f"{ends[0]:.3f}" if ends[0] == ends[1] else f"{ends[0]:.3f}–{ends[1]:.3f}"


def short(metric: str) -> str:
    """``R@20`` for ``recall@20``."""
    return metric.replace("recall", "R").replace("ndcg", "N")


def blocks_of(rows: Sequence[Row]) -> dict[tuple[str, str], dict[str, Row]]:
    """(label, variant) -> metric -> row, in the order of the rows."""
    blocks: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        blocks.setdefault((row.label, row.variant), {})[row.metric] = row
    return blocks


def model_table(table: TableSpec, rows: Sequence[Row]) -> list[str]:
    """The table of one model: up to seven lines a method and variant, a column a metric."""
    names = table.shown_for(rows[0].dataset)
    lines = []
    for (label, _), metrics in blocks_of(rows).items():
        shown = [metrics[m] for m in names]
        if not shown[0].compared:
            lines.append([label, "ours, not compared", *(show(r.ours) for r in shown)])
            continue
        marks = {None: "", True: "", False: " **missed**"}
        lines.append([f"**{label}**", "ours", *(show(r.ours) + marks[r.reached] for r in shown)])
        lines.append(["", "paper", *(show(r.printed, 3) for r in shown)])
        if any(r.code is not None for r in shown):
            lines.append(["", "public code", *("–" if r.code is None else f"{r.code:.4f}" for r in shown)])
        if any(r.clean is not None for r in shown):
            lines.append(["", "clean run", *(show_range(r.clean) for r in shown)])
        lines.append(["", "ours − paper", *("–" if r.difference is None else f"{r.difference:+.4f}" for r in shown)])
        if any(r.required is not None for r in shown):
            lines.append(["", "required", *("" if r.required is None else f"≥ {r.required:.4f}" for r in shown)])
    return markdown_table(["method", "", *map(short, names)], lines)


SETTINGS_COLUMNS = ("model", "method", "selector", "options", "seeds", "epochs run, per seed", "seconds, mean")


def settings_rows(runs: Sequence[Finished]) -> list[list[str]]:
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
    return rows


def beside_print(table: TableSpec, protocol: str) -> str:
    """What the numbers are compared with, or why with nothing."""
    if protocol == table.protocol:
        return f"Compared with: {table.source}."
    return f"Not compared with print ({table.source}), which has protocol {table.protocol} and not {protocol}."


def rules(table: TableSpec, rows: Sequence[Row]) -> list[str]:
    """How to read the numbers, a sentence a line."""
    least = f"the paper's mean less the larger of {table.deviations} of its standard deviations and {table.share:.0%}"
    if not table.deviations:
        least = f"the paper's mean less {table.share:.0%}"
    if table.public_code:
        least += f", or the public code's value less {table.share:.0%}, whichever is lower"
    names = " and ".join(short(m) for m in dict.fromkeys(r.metric for r in rows if r.required is not None))
    lines = ["Ours: mean ± sample standard deviation over seeds, on the clean test."]
    if names:
        lines[0] += f" Required ({names}): {least}."
    if any(not row.compared for row in rows):
        lines.append("Rows that are not compared are runs under other rules than the printed ones.")
    if any(row.clean for row in rows):
        lines.append(
            "Clean run: a separate implementation of the same formulas, without the quirks of the authors' code, last "
            "epoch, one or two seeds."
        )
    return lines + [
        note for dataset in dict.fromkeys(row.dataset for row in rows) for note in table.notes_on.get(dataset, ())
    ]


POPULATION_COLUMNS = (
    *("model", "method", "metric", "all users", "warm", "cold"),
    *("cold, ties by token", "all, ties by token", "paper"),
)


def population_rows(table: TableSpec, rows: Sequence[Row]) -> list[list[str]]:
    """Every cell for users seen in training and for the others, where a data set has both."""
    return [
        [
            f"{row.dataset} {row.model}",
            row.label,
            short(row.metric),
            *map(show, (row.ours, row.warm, row.cold, row.ordered_cold, row.ordered)),
            show(row.printed, 3) if row.compared else "",
        ]
        for row in rows
        if row.warm is not None and row.metric in (table.required_for(row.dataset) or table.shown_for(row.dataset))
    ]


def population_notes(runs: Sequence[Finished]) -> list[str]:
    """Who is warm and who is cold, with their numbers, and what ties do."""
    counts: dict[str, tuple[int, int]] = {}
    tied: dict[str, list[int]] = {}
    for run in runs:
        c = run.result.get("counts", {})
        if c.get("warm"):
            n, cold = int(c["n_users"]), int(c["n_unseen_users"])
            counts[run.cell.dataset] = (n - cold if run.result.get("protocol") == "paper" else n, cold)
            if run.ties:
                tied.setdefault(run.cell.dataset, []).append(int(run.ties["n_tied"]))
    told = "; ".join(f"{name}: {warm:,} warm, {cold:,} cold" for name, (warm, cold) in counts.items())
    notes = [
        "Warm users were seen in training, cold users were not: nothing but the penalty moved their embeddings. "
        f"{told}."
    ]
    if tied:
        ranges = "; ".join(f"{name}: {min(n):,} to {max(n):,} users a run" for name, n in tied.items())
        notes.append(
            "Ties by token: the columns rank by probabilities in single precision, as programs do that end in a "
            "sigmoid, and equal ones in the order of the items' tokens, the lowest first. Near 0.5 a probability holds "
            "no logit below 1e-7, and those of users without training are smaller, or equal: for users whose 20th and "
            f"21st probability are the same ({ranges}) the order of the tokens decides. Where tokens are numbered by "
            "age or popularity, that order is a ranking by itself."
        )
    return notes


TEST_COLUMNS = (
    *("model", "method", "compared with", "metric", "difference"),
    *("users better / worse", "p", "p, Holm", "verdict"),
)


def test_rows(tests: Sequence[PairedTest]) -> list[list[str]]:
    """A line a paired test."""
    return [
        [
            f"{t.dataset} {t.model}",
            t.label,
            t.base_label,
            short(t.metric),
            f"{t.difference:+.4f}",
            f"{t.better} / {t.worse}",
            f"{t.p:.2g}",
            f"{t.adjusted:.2g}",
            t.verdict,
        ]
        for t in tests
    ]


def markdown(
    table: TableSpec,
    cells: Sequence[Cell],
    runs: Sequence[Finished],
    rows: Sequence[Row],
    tests: Sequence[PairedTest],
    command: Sequence[str],
) -> str:
    """The page: circumstances, a table per data set and model, tests, settings, and what was reached."""
    protocol = cells[0].settings.protocol
    lines = [f"# {table.title}", "", beside_print(table, protocol), ""]
    lines += [*circumstances([r.result for r in runs], [r.job for r in runs if r.job], command, protocol), ""]
    lines += [*rules(table, rows), ""]
    for dataset, model in dict.fromkeys((row.dataset, row.model) for row in rows):
        chosen = [row for row in rows if (row.dataset, row.model) == (dataset, model)]
        lines += [f"## {model} on {dataset}", "", *model_table(table, chosen), ""]
    populations = population_rows(table, rows)
    if populations:
        lines += ["## Warm and cold users", "", *(line for note in population_notes(runs) for line in (note, ""))]
        lines += [*markdown_table(POPULATION_COLUMNS, populations, left=3), ""]
    if tests:
        lines += ["## Paired tests", "", explanation(tests), ""]
        lines += [*markdown_table(TEST_COLUMNS, test_rows(tests), left=4), ""]
    lines += ["## Settings", "", *markdown_table(SETTINGS_COLUMNS, settings_rows(runs), left=6), "", "## Reached", ""]
    headline, *missed = [*summary(rows), *unfinished(cells, runs)]
    lines += [*(f"- {line}" for line in missed), *([""] if missed else []), f"{headline}.", ""]
    return "\n".join(lines)
