"""Methods after equal tuning, beside each other: studies as jobs, paired tests over users, CSV and Markdown."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recdenoise import denoisers
from recdenoise.errors import UserError
from recdenoise.reports.comparison import Numbers
from recdenoise.reports.grid import FIRST_SEED, KEPT, assignments, published_seconds, to_csv
from recdenoise.reports.html import page_of
from recdenoise.reports.markdown import circumstances, markdown_table, short, show
from recdenoise.reports.report_text import JOB, read_json
from recdenoise.reports.run_folder import check_data
from recdenoise.reports.significance import LEVEL, SignedRank, holm, mean_users, signed_rank
from recdenoise.reports.table_report import write_texts
from recdenoise.reports.tuning import StudySpec
from recdenoise.reports.workers import Job

METRICS = ("recall@20", "ndcg@20")
PUBLIC_CODE = "deca_public_code.csv"

PROTOCOLS = {
    "clean": "train, validation and test share no interaction, so nothing about the test decides a setting. The "
    "validation rows are as noisy as the training rows.",
    "paper": "as published. The validation rows of ml-100k are clean (rating 5) and lie inside the test set, where "
    "they are masked in every ranking: they count among the positives of a user but can never be hit, so no setting is "
    "chosen by an item that a method is credited for. A clean validation set is more than most users have: see the "
    "protocol `clean`, whose validation is as noisy as its training rows.",
}
"""What a reader has to know about selection under each."""


@dataclass(frozen=True)
class Study:
    """A finished study: what was searched, found and tested, and its folder."""

    spec: StudySpec
    folder: Path
    record: dict[str, Any]

    @property
    def title(self) -> str:
        return denoisers.get(self.spec.denoiser).title

    def numbers(self, metric: str) -> Numbers:
        """Over seeds, on the clean test."""
        return Numbers.of([run["test"][metric] for run in self.record["runs"]])

    def users(self, metric: str) -> dict[str, float]:
        """Every test user's measure, its mean over seeds."""
        return mean_users([self.folder / run["folder"] / KEPT["users"] for run in self.record["runs"]], metric)

    def training_seconds(self) -> float:
        """Of all trials."""
        with (self.folder / "trials.csv").open(encoding="utf-8", newline="") as file:
            return sum(float(row["seconds"] or 0) for row in csv.DictReader(file))


@dataclass(frozen=True)
class Contrast:
    """A method against the first one, for one model and metric.

    Attributes:
        model, title, metric: which.
        base, other: over seeds.
        test: Wilcoxon's signed-rank test over users, each one's mean over seeds.
        adjusted: its p after Holm's correction over the contrasts of a metric.
    """

    model: str
    title: str
    metric: str
    base: Numbers
    other: Numbers
    test: SignedRank
    adjusted: float

    @property
    def difference(self) -> float:
        return self.other.mean - self.base.mean

    @property
    def sure(self) -> bool:
        """Whether the corrected p is below .05, and the users that changed weigh as the mean does."""
        return self.adjusted < LEVEL and self.test.direction * self.difference > 0


def jobs_of(specs: Sequence[StudySpec], out: Path, trials: int, n_seeds: int, plugins: Sequence[str]) -> list[Job]:
    """A process a study. Every study gets the same number of trials, of the same sampler."""
    jobs = []
    seeds = list(range(FIRST_SEED, FIRST_SEED + n_seeds))
    for spec in specs:
        folder = out / spec.name
        words = ["tune", "--model", spec.model, "--dataset", spec.dataset, "--denoiser", spec.denoiser]
        words += ["--protocol", spec.protocol, "--selector", spec.selector, "--seed", str(spec.seed)]
        words += ["--trials", str(trials), "--seeds", str(n_seeds), "--out", str(folder), "--quiet"]
        given = {k: v for k, v in spec.options.items() if k != "valid_selector"}
        words += [*assignments(given), *(word for plugin in plugins for word in ("--plugin", plugin))]
        for key, values in spec.space.items():
            words += ["--search", f"{key}={','.join(map(json.dumps, values))}"]
        title = denoisers.get(spec.denoiser).title
        guess = published_seconds(PUBLIC_CODE, Path(spec.dataset).name, spec.model, title)
        wanted = {"spec": spec.to_dict(), "trials": trials, "seeds": seeds}
        jobs.append(Job(spec.name, folder, tuple(words), "tuned.json", (spec.name,), guess, wanted))
    return jobs


def collect(specs: Sequence[StudySpec], out: Path) -> list[Study]:
    """Finished studies under ``out``. Raises ``UserError`` for a ``tuned.json`` of another search."""
    studies = []
    for spec in specs:
        path = out / spec.name / "tuned.json"
        record = read_json(path, "spec", "runs", "trials", "distinct", "validation", "parameters", "seeds")
        if record is not None:
            if record["spec"] != spec.to_dict():
                raise UserError(f"{path} is of a search with other settings; choose another --out.")
            for run in record["runs"]:
                check_data(run.get("data"), spec.dataset, spec.protocol, path)
            studies.append(Study(spec, path.parent, record))
    return studies


def contrasts(studies: Sequence[Study], base: str) -> list[Contrast]:
    """Every other method against ``base`` on the same model, Holm-corrected within a metric."""
    found = []
    for metric in METRICS:
        pairs = [
            (first, other)
            for first in studies
            for other in studies
            if first.spec.denoiser == base
            and other.spec.denoiser != base
            and (first.spec.dataset, first.spec.model) == (other.spec.dataset, other.spec.model)
        ]
        tests = [signed_rank(first.users(metric), other.users(metric)) for first, other in pairs]
        adjusted = holm([test.p for test in tests])
        for (first, other), test, corrected in zip(pairs, tests, adjusted, strict=True):
            found.append(
                Contrast(
                    other.spec.model,
                    other.title,
                    metric,
                    first.numbers(metric),
                    other.numbers(metric),
                    test,
                    corrected,
                )
            )
    return found


def summary(found: Sequence[Contrast], base: str) -> list[str]:
    """A line per method and metric: for how many models its mean is ahead of the base's."""
    lines = []
    for title, metric in dict.fromkeys((c.title, c.metric) for c in found):
        chosen = [c for c in found if (c.title, c.metric) == (title, metric)]
        ahead = [c for c in chosen if c.difference > 0]
        sure = sum(c.sure for c in ahead)
        lines.append(
            f"{title} is ahead of {base} in {short(metric)} for {len(ahead)} of {len(chosen)} models, "
            f"{sure} of them with a corrected p below .05"
        )
    return lines


COLUMNS = (
    *("dataset", "model", "method", "selector", "protocol", "trials", "distinct_trials", "validation", "parameters"),
    *(f"{metric}_{kind}" for metric in METRICS for kind in ("mean", "std")),
    "seeds",
    *(f"{metric}_{kind}" for metric in METRICS for kind in ("difference", "better", "worse", "p", "p_holm")),
)


def to_rows(studies: Sequence[Study], found: Sequence[Contrast]) -> list[dict[str, Any]]:
    """A record a study for the CSV file, with its contrast to the base where it has one."""
    rows = []
    for study in studies:
        spec, record = study.spec, study.record
        row: dict[str, Any] = {"dataset": Path(spec.dataset).name, "model": spec.model, "method": study.title}
        row |= {"selector": spec.selector, "protocol": spec.protocol, "trials": record["trials"]}
        row |= {"distinct_trials": record["distinct"], "validation": record["validation"]}
        row |= {"parameters": json.dumps(record["parameters"]), "seeds": len(record["seeds"])}
        for metric in METRICS:
            numbers = study.numbers(metric)
            row |= {f"{metric}_mean": numbers.mean, f"{metric}_std": numbers.std}
            for c in found:
                if (c.model, c.title, c.metric) == (spec.model, study.title, metric):
                    row |= {f"{metric}_difference": c.difference, f"{metric}_better": c.test.better}
                    row |= {f"{metric}_worse": c.test.worse, f"{metric}_p": c.test.p, f"{metric}_p_holm": c.adjusted}
        rows.append(row)
    return rows


def markdown(studies: Sequence[Study], found: Sequence[Contrast], command: Sequence[str]) -> str:
    """The page: circumstances, a table per metric, what was chosen."""
    first = studies[0]
    base = first.title
    results = [run for study in studies for run in study.record["runs"]]
    jobs = [job for study in studies if (job := read_json(study.folder / "job.json", *JOB)) is not None]
    trials = sorted({study.record["trials"] for study in studies})
    lines = ["# Methods after equal tuning", "", *circumstances(results, jobs, command, first.spec.protocol)]
    lines += [
        f"- Tuning: {', '.join(map(str, trials))} trials a model and method, Optuna's TPE sampler, the same for every "
        f"method, compared by {first.spec.selector} on the validation split; no trial sees the test. The first "
        "trial is the published setting, where there is one. No choice is tried twice before all "
        "were; from then on a repetition counts as a trial and is not trained again.",
        f"- Selector: {first.spec.selector} chooses the epoch within a run as well.",
        f"- Why protocol {first.spec.protocol}: {PROTOCOLS[first.spec.protocol]}",
        "",
        "Mean ± sample standard deviation over seeds, on the clean test. p: Wilcoxon's signed-rank test over users, "
        "each user's measure averaged over seeds first, two-sided; Holm's correction over the rows of a table.",
        "",
    ]
    for metric in METRICS:
        rows = [
            [
                c.model,
                c.title,
                show(c.base),
                show(c.other),
                f"{c.difference:+.4f}",
                f"{c.difference / c.base.mean:+.1%}" if c.base.mean else "–",
                f"{c.test.better} / {c.test.worse}",
                f"{c.test.p:.2g}",
                f"{c.adjusted:.2g}",
            ]
            for c in found
            if c.metric == metric
        ]
        columns = [
            "model",
            "method",
            base,
            "method's",
            "difference",
            "relative",
            "users better / worse",
            "p",
            "p, Holm",
        ]
        lines += [f"## {short(metric)}", "", *markdown_table(columns, rows), ""]
    chosen = [
        [
            study.spec.model,
            study.title,
            ", ".join(f"{k.removeprefix('denoiser.')} {v}" for k, v in study.record["parameters"].items()),
            f"{study.record['validation']:.4f}",
            f"{study.record['trials']} ({study.record['distinct']})",
            ", ".join(" + ".join(map(str, run["epochs"].values())) for run in study.record["runs"]),
            f"{study.training_seconds():.0f}",
        ]
        for study in studies
    ]
    columns = ["model", "method", "chosen", "validation", "trials (distinct)", "epochs, per seed", "seconds of trials"]
    lines += ["## Chosen", "", *markdown_table(columns, chosen, left=3), ""]
    return "\n".join([*lines, *(f"{line}.  " for line in summary(found, base)), ""])


def write_report(
    specs: Sequence[StudySpec], out: Path, report: Path, command: Sequence[str]
) -> tuple[list[Path], list[str]]:
    """Write ``REPORT.md``, ``REPORT.csv``, ``REPORT-trials.csv`` and ``REPORT.html`` from the files under ``out``.

    Returns:
        The files, and :func:`summary`'s lines.

    Raises:
        UserError: nothing has finished.
    """
    studies = collect(specs, out)
    if not studies:
        raise UserError(f"{out} has no finished study of this comparison.")
    base = specs[0].denoiser
    found = contrasts(studies, base)
    texts = {".md": markdown(studies, found, command), ".csv": to_csv(COLUMNS, to_rows(studies, found))}
    texts |= {"-trials.csv": all_trials(studies), ".html": page_of(texts[".md"]).render()}
    return write_texts(report, texts), summary(found, denoisers.get(base).title)


def all_trials(studies: Sequence[Study]) -> str:
    """Every study's log of trials in one CSV."""
    rows: list[dict[str, Any]] = []
    for study in studies:
        with (study.folder / "trials.csv").open(encoding="utf-8", newline="") as file:
            place = {"model": study.spec.model, "method": study.title}
            rows += [{**place, **row} for row in csv.DictReader(file)]
    return to_csv(list(dict.fromkeys(key for row in rows for key in row)), rows)
