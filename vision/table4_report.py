"""The report of Table 4: ours at best_val and at last beside print, as CSV, Markdown and one HTML page."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recdenoise import checkpoint
from recdenoise.reports.report_text import circumstances, markdown_table
from vision import table4_page
from vision.disagreement_report import as_csv
from vision.experiment import read_record
from vision.table4 import Cell, Table


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

    def accuracy(self, part: str, end: str) -> float:
        """In per cent, of ``test`` or ``valid`` at ``last`` or ``best_val``."""
        return 100 * float(self.record[part][end]["accuracy"])


@dataclass(frozen=True)
class Row:
    """One cell of the table, over seeds.

    Attributes:
        dataset, ratio, method, title: which.
        rate: the learning rate, chosen by validation where several were tried.
        seeds: finished ones.
        best_val, last: accuracy on the clean test.
        valid: mean accuracy on the noisy validation labels, at ``best_val``.
        wrong: share of the training and validation labels that are wrong, in per cent.
        printed: what the paper has.
        seconds: mean over seeds, of training.
        missed: what the cell must reach and does not, in words.
        required: number of things that it must reach.
    """

    dataset: str
    ratio: float
    method: str
    title: str
    rate: float
    seeds: tuple[int, ...]
    best_val: Numbers
    last: Numbers
    valid: float
    wrong: float | None
    printed: Numbers | None
    seconds: float
    missed: tuple[str, ...] = ()
    required: int = 0

    @property
    def difference(self) -> float | None:
        """``best_val`` less print, in points."""
        return None if self.printed is None else self.best_val.mean - self.printed.mean


def over(values: Iterable[float]) -> Numbers:
    """Mean and deviation."""
    found = list(values)
    return Numbers(statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None)


def collect(cells: Sequence[Cell], out: Path) -> list[Finished]:
    """The finished runs among the cells."""
    runs = []
    for cell in cells:
        folder = out / cell.name
        record = read_record(folder)
        if record is None:
            continue
        job = None
        if (folder / "job.json").is_file():
            job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        runs.append(Finished(cell, folder, record, job))
    return runs


def choose(runs: Sequence[Finished]) -> list[Finished]:
    """The runs of the learning rate with the best mean validation accuracy, over the seeds that all rates have."""
    by_rate: dict[float, list[Finished]] = {}
    for run in runs:
        by_rate.setdefault(run.cell.rate, []).append(run)
    shared = set.intersection(*({r.cell.settings.seed for r in members} for members in by_rate.values()))

    def value(rate: float) -> float:
        chosen = [r for r in by_rate[rate] if r.cell.settings.seed in shared] or by_rate[rate]
        return statistics.fmean(r.accuracy("valid", "best_val") for r in chosen)

    return by_rate[max(by_rate, key=value)]


def rows_of(table: Table, runs: Sequence[Finished]) -> list[Row]:
    """A row a cell, by data set, ratio and method as the table has them, judged."""
    groups: dict[tuple[str, float, str], list[Finished]] = {}
    for run in runs:
        groups.setdefault(run.cell.group, []).append(run)
    rows = []
    for (dataset, ratio, method), members in groups.items():
        chosen = choose(members)
        title = chosen[0].cell.settings.method.title
        printed = table.printed.get((dataset, title, ratio))
        wrong = chosen[0].record["noise"]["rate"]
        rows.append(
            Row(
                dataset,
                ratio,
                method,
                title,
                chosen[0].cell.rate,
                tuple(sorted(r.cell.settings.seed for r in chosen)),
                over(r.accuracy("test", "best_val") for r in chosen),
                over(r.accuracy("test", "last") for r in chosen),
                statistics.fmean(r.accuracy("valid", "best_val") for r in chosen),
                None if wrong is None else 100 * wrong,
                None if printed is None else Numbers(*printed),
                statistics.fmean(r.record["seconds"]["train"] for r in chosen),
            )
        )
    known = [*table.methods, *dict.fromkeys(row.method for row in rows)]
    sets = [*table.datasets, *dict.fromkeys(row.dataset for row in rows)]
    rows.sort(key=lambda row: (sets.index(row.dataset), row.ratio, known.index(row.method)))
    return [judged(table, row, rows) for row in rows]


def judged(table: Table, row: Row, rows: Sequence[Row]) -> Row:
    """The row with what it must reach, as far as what it is compared with is there."""
    beside = {r.method: r for r in rows if (r.dataset, r.ratio) == (row.dataset, row.ratio) and r.method != row.method}
    missed, required = [], 0
    if row.difference is not None:
        required += 1
        if row.difference < -table.points:
            missed.append(f"{-row.difference:.2f} points below print, {table.points:g} allowed")
    if row.method in table.methods and "normal" in beside:
        required += 1
        if row.best_val.mean <= beside["normal"].best_val.mean:
            missed.append(f"not above our own normal, {beside['normal'].best_val.mean:.2f}")
    if row.method == table.ahead["method"] and row.ratio in table.ahead["ratios"]:
        others = {r.title: r.best_val.mean for name, r in beside.items() if name in table.methods and name != "normal"}
        required += bool(others)
        missed += [f"not above our {t}, {mean:.2f}" for t, mean in others.items() if row.best_val.mean <= mean]
    return Row(**{**vars(row), "missed": tuple(missed), "required": required})


def summary(rows: Sequence[Row], cells: Sequence[Cell], runs: Sequence[Finished]) -> tuple[str, list[str]]:
    """What was reached, in a line; and a line for whatever was missed or has not been run."""
    required = [row for row in rows if row.required]
    good = sum(not row.missed for row in required)
    lines = [f"{row.dataset}, {row.ratio:.0%}, {row.title}: {'; '.join(row.missed)}" for row in rows if row.missed]
    done = {run.cell.name for run in runs}
    waiting: dict[tuple[str, float], list[str]] = {}
    for cell in cells:
        if cell.name not in done:
            rate = f" at {cell.rate:g}" if len({c.rate for c in cells}) > 1 else ""
            text = f"{cell.settings.method.title} seed {cell.settings.seed}{rate}"
            waiting.setdefault((cell.dataset, cell.ratio), []).append(text)
    lines += [f"{name}, {ratio:.0%}: not finished: {', '.join(runs)}" for (name, ratio), runs in waiting.items()]
    return f"{good} of {len(required)} cells reach what is required of them", lines


def rules(table: Table, cells: Sequence[Cell]) -> list[str]:
    """How the runs were made and how to read the numbers, a sentence or two a line."""
    first = cells[0].settings
    rates = list(dict.fromkeys(cell.rate for cell in cells))
    held = f"{first.valid:,} images" if isinstance(first.valid, int) else f"{first.valid:.0%} of the images"
    lines = [
        "Ours: accuracy on the clean test set in per cent, mean ± sample standard deviation over seeds. `best_val` are "
        "the weights of the epoch with the best accuracy on the noisy validation labels, `last` those of the last "
        "epoch. Print can only be `best_val`: it is compared with that. The test set chooses nothing.",
        f"Noise: `{table.noise}`. The given share of the labels is drawn anew from all classes, the true one "
        "included, so that 40% nominal is 36% wrong with ten classes. Noise is added to the whole training file; "
        f"then {held} are held out to choose the epoch, with their noisy labels. A seed draws noise, division and "
        "weights, alike for all methods.",
    ]
    clean = {c.settings.method.title: c.settings.clean for c in cells if c.settings.clean}
    lines += [
        f"{title} learns from {n:,} trusted images besides: drawn by the seed from the training part, with their "
        "true labels, and taken out of it. They choose no epoch."
        for title, n in clean.items()
    ]
    if len(rates) > 1:
        lines.append(
            f"Learning rates {', '.join(f'{r:g}' for r in rates)} were tried for every cell; the one with the best "
            "mean validation accuracy at `best_val` is shown."
        )
    ahead, share = table.ahead, " and ".join(f"{r:.0%}" for r in table.ahead["ratios"])
    titles = {c.method: c.settings.method.title for c in cells}
    lines.append(
        f"Required: `best_val` within {table.points:g} point of print or better; above our own Normal; "
        f"{titles.get(ahead['method'], ahead['method'])} above all others at {share}."
    )
    return lines


COLUMNS = ("noise", "method", "ours, best_val", "paper", "ours − paper", "ours, last", "seeds", "")


def table_lines(rows: Sequence[Row]) -> list[list[str]]:
    """A data set's rows in words."""
    return [
        [
            f"{row.ratio:.0%}",
            row.title,
            str(row.best_val),
            "–" if row.printed is None else str(row.printed),
            "–" if row.difference is None else f"{row.difference:+.2f}",
            str(row.last),
            str(len(row.seeds)),
            "missed: " + "; ".join(row.missed) if row.missed else "",
        ]
        for row in rows
    ]


SETTINGS_COLUMNS = ("data", "method", "options of the method", "lr", "images", "seeds", "seconds, mean")


def settings_lines(rows: Sequence[Row], runs: Sequence[Finished]) -> list[list[str]]:
    """A line for each data set and method: its options, learning rates by ratio, images, seconds of training."""
    lines = []
    for dataset, method in dict.fromkeys((row.dataset, row.method) for row in rows):
        mine = [row for row in rows if (row.dataset, row.method) == (dataset, method)]
        run = next(r for r in runs if (r.cell.dataset, r.cell.method) == (dataset, method))
        config = run.cell.settings.config.to_dict()
        rates = dict.fromkeys(f"{row.rate:g}" for row in mine)
        told = ", ".join(rates) if len(rates) == 1 else ", ".join(f"{row.rate:g} ({row.ratio:.0%})" for row in mine)
        lines.append(
            [
                dataset,
                mine[0].title,
                ", ".join(f"{key} {value}" for key, value in config.items() if value is not None),
                told,
                ", ".join(f"{part} {n}" for part, n in run.record["images"].items()),
                ", ".join(str(seed) for seed in sorted({s for row in mine for s in row.seeds})),
                f"{statistics.fmean(row.seconds for row in mine):.0f}",
            ]
        )
    return lines


def run_options(runs: Sequence[Finished]) -> str:
    """The options that all runs share."""
    options = {k: v for k, v in runs[0].cell.settings.options.to_dict().items() if k not in ("lr", "device")}
    shown = ", ".join(f"`{key}: {value}`" for key, value in options.items() if value is not None)
    return f"Network `{runs[0].cell.settings.network}`; of every run: {shown}."


def markdown(
    table: Table, cells: Sequence[Cell], runs: Sequence[Finished], rows: Sequence[Row], command: Sequence[str]
) -> str:
    """The page: circumstances, a table a data set, settings, and what was reached."""
    headline, lacking = summary(rows, cells, runs)
    lines = [f"# {table.title}", "", f"Compared with: {table.source}.", ""]
    lines += [*circumstances([r.record for r in runs], [r.job for r in runs if r.job], command), ""]
    lines += [line for rule in rules(table, cells) for line in (rule, "")]
    for dataset in dict.fromkeys(row.dataset for row in rows):
        mine = [row for row in rows if row.dataset == dataset]
        lines += [f"## {dataset}", "", *markdown_table(COLUMNS, table_lines(mine)), ""]
    lines += ["## Settings", "", run_options(runs), ""]
    lines += [*markdown_table(SETTINGS_COLUMNS, settings_lines(rows, runs), left=6), "", "## Reached", ""]
    lines += [*(f"- {line}" for line in lacking), *([""] if lacking else []), f"{headline}.", ""]
    return "\n".join(lines)


def cell_csv(rows: Sequence[Row]) -> str:
    """A line a cell, in per cent."""
    records = []
    for row in rows:
        values = asdict(row)
        for name in ("best_val", "last", "printed"):
            numbers = values.pop(name) or {"mean": None, "std": None}
            values |= {name: numbers["mean"], f"{name}_std": numbers["std"]}
        values |= {
            "difference": row.difference,
            "seeds": " ".join(map(str, row.seeds)),
            "missed": "; ".join(row.missed),
        }
        records.append(values)
    return as_csv(records)


def run_csv(runs: Sequence[Finished]) -> str:
    """A line a run, those of learning rates not chosen too."""
    return as_csv(
        [
            {
                "dataset": run.cell.dataset,
                "noise_ratio": run.cell.ratio,
                "method": run.cell.method,
                "lr": run.cell.rate,
                "seed": run.cell.settings.seed,
                "test_best_val": run.accuracy("test", "best_val"),
                "test_last": run.accuracy("test", "last"),
                "valid_best_val": run.accuracy("valid", "best_val"),
                "wrong_labels": run.record["noise"]["rate"],
                "train_seconds": run.record["seconds"]["train"],
                "device": run.record["device"],
                "ended": (run.job or {}).get("ended", ""),
            }
            for run in runs
        ]
    )


def write(
    table: Table, cells: Sequence[Cell], out: Path, report: Path, command: Sequence[str]
) -> tuple[list[Path], list[str]]:
    """Write ``REPORT.html``, ``.md``, ``.csv`` (cells), ``-runs.csv`` (seeds) from the files in ``out``.

    Returns:
        The files; and a line of what was reached, then lines of what was not. No files where no run has finished.
    """
    runs = collect(cells, out)
    if not runs:
        return [], ["no run has finished"]
    rows = rows_of(table, runs)
    texts = {
        ".html": table4_page.page(table, cells, runs, rows, command),
        ".md": markdown(table, cells, runs, rows, command),
        ".csv": cell_csv(rows),
        "-runs.csv": run_csv(runs),
    }
    paths = []
    for ending, text in texts.items():
        paths.append(report.with_name(report.name + ending))
        checkpoint.write_text(paths[-1], text)
    headline, lacking = summary(rows, cells, runs)
    return paths, [headline, *lacking]
