"""Every method against injected noise: does it find the injected rows, and how much recall does it keep?

Every model and method is trained twice with each seed, on a data set as it is and on a copy with known noise in its
training rows. The copy of a seed is drawn with that seed, so that a deviation over seeds covers the noise too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recdenoise import own_data, presets
from recdenoise.errors import UserError
from recdenoise.recbole_adapter.dataset import dataset_name, find_folder
from recdenoise.reports import charts, grid
from recdenoise.reports.comparison import Finished, Numbers, collect
from recdenoise.reports.grid import FIRST_SEED, KEPT, Cell, TableSpec, Variant
from recdenoise.reports.html import page_of
from recdenoise.reports.markdown import (
    SETTINGS_COLUMNS,
    TEST_COLUMNS,
    circumstances,
    markdown_table,
    settings_rows,
    short,
    show,
    test_rows,
)
from recdenoise.reports.report_text import read_json
from recdenoise.reports.significance import explanation, paired_tests
from recdenoise.reports.table_report import write_texts
from recdenoise.reports.workers import Job

MODELS = ("GMF", "NeuMF", "CDAE", "LightGCN")
METHODS = ("normal", "wbpr", "t_ce", "r_ce", "ensemble", "deca", "deca_p")
FOUND = {"auc": "AUC", "average_precision": "average precision"} | {
    f"precision@{share}": f"precision at {share}" for share in ("1%", "5%", "10%")
}
"""Measures of finding noise, as files and as people call them."""
TESTED = ("recall@20", "ndcg@20")
RAREST = "rarest items first, no model"
TWO_SCHEDULES = (
    " T-CE runs twice: with the published drop schedule, under which a short run hardly drops anything, and with this "
    "library's own (`default_growth`)."
)


@dataclass(frozen=True)
class Noise:
    """What is injected into a data set.

    Attributes:
        dataset: a recipe's name or a folder.
        protocol, rate, kind: see :func:`recdenoise.own_data.corrupted`.
    """

    dataset: str
    protocol: str
    rate: float
    kind: str

    @property
    def name(self) -> str:
        """Of folders."""
        return f"{self.kind}-{self.rate:g}"

    def folder(self, out: Path, seed: int) -> Path:
        """Where the copy of a seed is kept."""
        return out / "data" / f"{Path(dataset_name(self.dataset)).name}-{self.protocol}-{self.name}-{seed}"


@dataclass(frozen=True)
class Grids:
    """The runs of an experiment: on the data set as it is, and on its noisy copies."""

    noise: Noise
    table: TableSpec
    out: Path
    plain: list[Cell]
    noisy: list[Cell]

    def folder(self, noisy: bool) -> Path:
        """Where the runs of one half are."""
        return self.out / (self.noise.name if noisy else "as-it-is")

    def jobs(self) -> list[Job]:
        """A process a run. Raises ``UserError`` where a folder holds a run with other settings."""
        found = []
        for noisy, cells in ((False, self.plain), (True, self.noisy)):
            table = replace(self.table, keeps=("users", "detection") if noisy else ("users",))
            for job in grid.jobs_of(cells, table, self.folder(noisy)):
                found.append(replace(job, name=f"{job.folder.parent.name}/{job.name}"))
        return found


def make_table(noise: Noise, models: Sequence[str], methods: Sequence[str]) -> TableSpec:
    """The experiment as a table without print: published settings where all models have them for the data set."""
    name = Path(dataset_name(noise.dataset)).name
    known = presets.available()
    published = all((name, model, presets.FALLBACK) in known for model in models or MODELS)
    own_schedule = Variant("default_growth", options={"denoiser": {"growth_steps": None}})
    return TableSpec(
        name="detection",
        title="Finding injected noise",
        source="",
        datasets=(noise.dataset,),
        models=tuple(models or MODELS),
        methods=tuple(methods or METHODS),
        protocol=noise.protocol,
        preset="paper" if published else None,
        public_code="deca_public_code.csv",
        shown=TESTED,
        method_variants={"t_ce": (own_schedule,)} if published else {},
    )


def plan(
    noise: Noise,
    out: Path,
    *,
    models: Sequence[str] = (),
    methods: Sequence[str] = (),
    n_seeds: int = 3,
    options: Mapping[str, Any] | None = None,
    plugins: Sequence[str] = (),
    build: bool = True,
) -> Grids:
    """Every run, checked before anything is written; then the noisy copies.

    Args:
        noise: what is injected into what.
        out: folder of runs and copies.
        models, methods: empty takes :data:`MODELS` and :data:`METHODS`.
        n_seeds: seeds 2020, 2021, ...
        options: set in every run.
        plugins: imported by every run first.
        build: write copies that are not there yet; else they must be there.

    Raises:
        UserError: anything that cannot work.
    """
    table = make_table(noise, models, methods)
    given: dict[str, Any] = {"options": options, "plugins": plugins}
    plain = grid.plan(table, n_seeds=n_seeds, **given)
    source = own_data.read_folder(find_folder(noise.dataset, noise.protocol)) if build else None
    noisy = []
    for seed in range(FIRST_SEED, FIRST_SEED + n_seeds):
        folder = noise.folder(out, seed)
        if source is not None:
            own_data.write(own_data.corrupted(source, rate=noise.rate, kind=noise.kind, seed=seed), folder)
        elif not folder.is_dir():
            raise UserError(f"There is no noisy copy {folder}; leave out --report-only to make it.")
        cells = grid.plan(table, datasets=(str(folder),), n_seeds=n_seeds, **given)
        noisy += [cell for cell in cells if cell.settings.seed == seed]
    noisy.sort(key=lambda cell: [c.group for c in plain].index(cell.group))
    return Grids(noise, table, out, plain, noisy)


@dataclass(frozen=True)
class Outcome:
    """A model and a method over seeds.

    Attributes:
        model, label, method, variant: which.
        seeds: those whose run on the noisy copy has finished.
        found: measure of :data:`FOUND` -> values over these seeds.
        rarest: the same for taking the rarest items first, which no model is needed for.
        plain, noisy: test metric -> seed -> value of the runs without and with the noise.
    """

    model: str
    label: str
    method: str
    variant: str
    seeds: list[int]
    found: dict[str, list[float]]
    rarest: dict[str, list[float]]
    plain: dict[str, dict[int, float]]
    noisy: dict[str, dict[int, float]]

    def kept(self, metric: str) -> Numbers | None:
        """Of the value without noise, the share that is left with it; every seed by itself."""
        plain, noisy = self.plain[metric], self.noisy[metric]
        shares = [noisy[seed] / plain[seed] for seed in noisy if plain.get(seed)]
        return Numbers.of(shares) if shares else None

    def numbers(self, measure: str) -> Numbers:
        """One measure of finding the noise."""
        return Numbers.of(self.found[measure])


def tested(values: Mapping[int, float]) -> Numbers | None:
    """Over seeds; ``None`` where no run has finished."""
    return Numbers.of(list(values.values())) if values else None


def outcomes(grids: Grids) -> tuple[list[Outcome], list[Finished], list[Finished]]:
    """Every model and method with a finished run on a noisy copy; and the finished runs, without and with noise."""
    plain, noisy = collect(grids.plain, grids.folder(False)), collect(grids.noisy, grids.folder(True))
    records = {run.folder: read_json(run.folder / KEPT["detection"]) for run in noisy}
    noisy = [run for run in noisy if records[run.folder] is not None]
    found = []
    for group in dict.fromkeys(run.cell.group for run in noisy):
        mine, base = ([run for run in runs if run.cell.group == group] for runs in (noisy, plain))
        measured = [record for run in mine if (record := records[run.folder]) is not None]
        values = [
            {metric: {run.cell.settings.seed: float(run.result["test"][metric]) for run in runs} for metric in TESTED}
            for runs in (base, mine)
        ]
        found.append(
            Outcome(
                group[1],
                mine[0].cell.label_of(),
                group[2],
                group[3],
                [run.cell.settings.seed for run in mine],
                {name: [float(record[name]) for record in measured] for name in FOUND},
                {name: [float(record["rarest_first"][name]) for record in measured] for name in FOUND},
                *values,
            )
        )
    return found, plain, noisy


def summary(found: Sequence[Outcome]) -> list[str]:
    """What the numbers say: for every model who finds the noise best, and DeCA(p) against the plain losses."""
    lines = []
    for model in dict.fromkeys(one.model for one in found):
        mine = [one for one in found if one.model == model]
        best = max(mine, key=lambda one: one.numbers("auc").mean)
        lines.append(
            f"{model}: AUC is highest for {best.label}, {show(best.numbers('auc'))}; rarest items first gives "
            f"{show(Numbers.of(best.rarest['auc']))}"
        )
        deca_p = next((one for one in mine if one.method == "deca_p"), None)
        if deca_p is not None:
            told = [f"{o.label} {verdict(deca_p, o)}" for o in mine if o.method in ("normal", "t_ce", "r_ce")]
            lines.append(f"{model}: DeCA(p)'s AUC {show(deca_p.numbers('auc'))}, against " + "; ".join(told))
    return lines


def verdict(one: Outcome, other: Outcome) -> str:
    """The other's AUC, and how far the first is ahead of it."""
    difference = one.numbers("auc").mean - other.numbers("auc").mean
    return f"{show(other.numbers('auc'))} ({difference:+.4f})"


def method_table(found: Sequence[Outcome], rate: float) -> list[str]:
    """Finding the noise, for one model."""
    rows = [[one.label, *(show(one.numbers(name)) for name in FOUND)] for one in found]
    rows.append([RAREST, *(show(Numbers.of(found[0].rarest[name])) for name in FOUND)])
    rows.append(["guessing", "0.5000", *(f"{rate:.4f}" for _ in list(FOUND)[1:])])
    return markdown_table(["method", *FOUND.values()], rows, left=1)


def recall_table(found: Sequence[Outcome]) -> list[str]:
    """The test without and with the noise, for one model."""
    rows = []
    for one in found:
        cells = [one.label]
        for metric in TESTED:
            kept = one.kept(metric)
            spread = f" ± {kept.std:.1%}" if kept and kept.std is not None else ""
            share = f"{kept.mean:.1%}{spread}" if kept else "–"
            cells += [show(tested(one.plain[metric])), show(tested(one.noisy[metric])), share]
        rows.append(cells)
    columns = [f"{short(m)}{word}" for m in TESTED for word in (" without noise", " with noise", " kept")]
    return markdown_table(["method", *columns], rows, left=1)


def markdown(grids: Grids, command: Sequence[str]) -> str:
    """The page. Raises ``UserError`` where no run on a noisy copy has finished."""
    found, plain, noisy = outcomes(grids)
    if not found:
        raise UserError(f"{grids.folder(True)} has no finished run; leave out --report-only to make them.")
    noise, runs = grids.noise, [*plain, *noisy]
    settings = "the published ones" if grids.table.preset else "the defaults, the epoch chosen by ndcg@20 on validation"
    lines = [f"# {grids.table.title}: {noise.kind}, {noise.rate:.0%}, {grids.plain[0].dataset}", ""]
    lines += circumstances([r.result for r in runs], [r.job for r in runs if r.job], command, noise.protocol)
    lines += [
        "",
        f"{noise.rate:.0%} of the training rows are injected: pairs that no file of the data set has "
        f"(`recdenoise corrupt --kind {noise.kind}`), drawn anew for every seed. Validation and test are as they were. "
        f"Settings are {settings}." + (TWO_SCHEDULES if any(one.variant for one in found) else ""),
        "",
        "A method's suspicion of a row is 1 - P(y = 1 | observed); for all methods but DeCA that orders rows as their "
        "loss does. Numbers are mean ± sample standard deviation over seeds. Kept: the value with noise over the value "
        "without, of the same method and seed; it may exceed 100%, and a ranking masks injected pairs as it does all "
        "training pairs.",
        "",
        "The rows that were there before are no proof of a like either: a method that rightly suspects one of them "
        "counts as wrong here.",
        "",
    ]
    for model in dict.fromkeys(one.model for one in found):
        mine = [one for one in found if one.model == model]
        lines += [f"## {model}", "", *method_table(mine, noise.rate), "", *recall_table(mine), ""]
    tests = paired_tests(grids.table, noisy)
    if tests:
        lines += ["## Paired tests, with the noise", "", explanation(tests), ""]
        lines += [*markdown_table(TEST_COLUMNS, test_rows(tests), left=4), ""]
    lines += ["## Settings, with the noise", "", *markdown_table(SETTINGS_COLUMNS, settings_rows(noisy), left=6), ""]
    return "\n".join([*lines, "## In words", "", *(f"- {line}" for line in [*summary(found), *missing(grids)]), ""])


def missing(grids: Grids) -> list[str]:
    """A line where runs are missing."""
    _, plain, noisy = outcomes(grids)
    wanted = len(grids.plain) + len(grids.noisy)
    lacking = wanted - len(plain) - len(noisy)
    return [f"{lacking} of {wanted} runs have not finished; they are missing above"] if lacking else []


def cell_csv(grids: Grids, found: Sequence[Outcome]) -> str:
    """A row a model and method, numbers in full."""
    rows = []
    for one in found:
        row: dict[str, Any] = {"dataset": grids.plain[0].dataset, "kind": grids.noise.kind, "rate": grids.noise.rate}
        row |= {"model": one.model, "method": one.label, "seeds": len(one.seeds)}
        values: dict[str, Numbers | None] = {name: one.numbers(name) for name in FOUND}
        values |= {f"rarest_first_{name}": Numbers.of(one.rarest[name]) for name in FOUND}
        for metric in TESTED:
            values |= {f"{metric}_plain": tested(one.plain[metric]), f"{metric}_noisy": tested(one.noisy[metric])}
            values[f"{metric}_kept"] = one.kept(metric)
        for name, numbers in values.items():
            row |= {f"{name}_mean": numbers and numbers.mean, f"{name}_std": numbers and numbers.std}
        rows.append(row)
    return grid.to_csv(list(rows[0]), rows)


def run_csv(grids: Grids, plain: Sequence[Finished], noisy: Sequence[Finished]) -> str:
    """A row a run, without and with noise."""
    rows = []
    for injected, runs in ((0.0, plain), (grids.noise.rate, noisy)):
        for run in runs:
            _, model, _, _ = run.cell.group
            row = {"model": model, "method": run.cell.label_of(), "seed": run.cell.settings.seed, "injected": injected}
            record = read_json(run.folder / KEPT["detection"]) or {}
            row |= {name: record.get(name) for name in FOUND} | run.result["test"]
            row["epochs"] = "+".join(str(n) for n in run.result["epochs"].values())
            row["seconds"] = round(sum(run.result["seconds"].values()), 3)
            rows.append(row)
    return grid.to_csv(list(dict.fromkeys(key for row in rows for key in row)), rows)


def panels(found: Sequence[Outcome]) -> list[charts.Panel]:
    """Of one model: how well each method finds the noise, beside no model; recall without and with it."""
    model, labels = found[0].model, [one.label for one in found]
    colours = [charts.COLOURS.get(one.method, charts.PALETTE[-1]) for one in found] + [charts.FAINT]

    def drawn(numbers: Numbers | None) -> tuple[float, float | None] | None:
        return None if numbers is None else (numbers.mean, numbers.std)

    made = []
    for name in ("auc", "average_precision"):
        values = [*(drawn(one.numbers(name)) for one in found), drawn(Numbers.of(found[0].rarest[name]))]
        made.append(charts.bars(f"{model}: finding the noise", FOUND[name], [*labels, RAREST], values, colours=colours))
    metric = TESTED[0]
    groups = {
        "without noise": [drawn(tested(one.plain[metric])) for one in found],
        "with noise": [drawn(tested(one.noisy[metric])) for one in found],
    }
    return [*made, charts.grouped_bars(f"{model}: recall kept", f"{short(metric)}, clean test", labels, groups)]


def write_report(grids: Grids, report: Path, command: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Write ``REPORT.md``, ``REPORT.csv``, ``REPORT-runs.csv`` and ``REPORT.html`` from the files of the runs.

    Returns:
        The files, and the lines of :func:`summary`.

    Raises:
        UserError: nothing has finished.
    """
    text = markdown(grids, command)
    found, plain, noisy = outcomes(grids)
    models = dict.fromkeys(one.model for one in found)
    page = page_of(text, {model: panels([one for one in found if one.model == model]) for model in models})
    texts = {".md": text, ".csv": cell_csv(grids, found), "-runs.csv": run_csv(grids, plain, noisy)}
    texts[".html"] = page.render()
    return write_texts(report, texts), [*summary(found), *missing(grids)]
