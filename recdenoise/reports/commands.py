"""The commands `benchmark` (its tables and figures: :mod:`recdenoise.reports.experiments`) and `tune`.

They import what they need when they run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from recdenoise.errors import UserError

if TYPE_CHECKING:
    from recdenoise.reports.tuning import StudySpec
    from recdenoise.reports.workers import Job


TYPED = "recdenoise.typed"
"""Where a command keeps the words it was typed with."""


class ListCommand(click.Command):
    """A command whose list options take words, commas or repetition: ``--models GMF NeuMF``, ``--models GMF,NeuMF``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        lists = {n for p in self.params if isinstance(p, click.Option) and p.multiple for n in p.opts}
        ctx.meta[TYPED] = [*args]
        words: list[str] = []
        current = ""
        for word in args:
            if word.startswith("-"):
                current = word if word in lists else ""
            elif current and words[-1] != current:
                words.append(current)
            words.append(word)
        return super().parse_args(ctx, words)


def split_list(ctx: click.Context, option: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Comma lists taken apart, repetitions dropped."""
    return tuple(dict.fromkeys(part.strip() for value in values for part in value.split(",") if part.strip()))


def list_option(*names: str, help: str) -> Any:
    """An option that takes several values."""
    return click.option(*names, multiple=True, callback=split_list, metavar="NAME...", help=help)


def typed_command(ctx: click.Context) -> list[str]:
    """What was typed, for reports."""
    names: list[str] = []
    place: click.Context | None = ctx
    while place is not None and place.parent is not None:
        names.insert(0, str(place.info_name))
        place = place.parent
    return ["recdenoise", *names, *ctx.meta[TYPED]]


SEEDS = click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="2020, 2021, ...")
WORKERS = click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True, help="Runs at a time.")
SET = click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Set in every run: epochs=5.")
PLUGIN = click.option("--plugin", "plugins", multiple=True, metavar="FILE|MODULE", help="Imported by every run first.")
TRIALS = click.option(
    "--trials", type=click.IntRange(min=1), default=24, show_default=True, help="Choices tried, in all."
)
SELECTOR = click.option(
    "--selector",
    default="ndcg@20",
    show_default=True,
    help="Validation value that chooses epochs and settings: loss, trimmed or a metric.",
)
CLEAN = click.option(
    "--protocol", default="clean", show_default=True, help="clean (noisy validation), or paper (clean validation)."
)
EPOCHS = click.option(
    "--epochs",
    type=click.IntRange(min=1),
    help="Most epochs of a run.  [default: 300, or twice the longest published run if more]",
)
SEARCH = click.option(
    "--search", multiple=True, metavar="KEY=V1,V2", help="Also search this: learning_rate=0.001,0.01, denoiser.l2=0,1."
)
REPORT_ONLY = click.option("--report-only", is_flag=True, help="Only write the report of the runs there are.")


def words(seconds: float | None) -> str:
    """A duration for people."""
    if seconds is None:
        return "time left unknown"
    if seconds < 90:
        return f"{seconds:.0f} s left"
    return f"{seconds / 60:.0f} min left" if seconds < 5400 else f"{seconds / 3600:.1f} h left"


def run_with_progress(
    jobs: Sequence[Job], workers: int, describe: Callable[[Job], str] = lambda job: job.name
) -> dict[str, str]:
    """Run jobs with one line over all of them: done, names at work, time left. Returns failures by name."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from recdenoise.cli import console
    from recdenoise.reports.workers import run_all

    screen = console()
    total, done = len(jobs), sum(job.finished for job in jobs)
    screen.print(f"{total} runs, {done} of them finished before, {workers} at a time")
    if total == done:
        return {}
    columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=screen, disable=not screen.is_terminal) as progress:
        bar = progress.add_task("", total=total, completed=done)

        def report(job: Job | None, seconds: float, n_done: int, active: list[Job], left: float | None) -> None:
            progress.update(bar, completed=n_done, description=f"{words(left)}: {', '.join(map(describe, active))}")
            if job is not None:
                end = "" if job.finished else f"  FAILED, see {job.folder / 'log.txt'}"
                screen.print(f"{n_done}/{total}  {job.name}  {seconds:.1f} s  {words(left)}{end}", soft_wrap=True)

        try:
            return run_all(jobs, workers, report)
        except KeyboardInterrupt:
            click.echo("recdenoise: interrupted; finished runs stay, the same command goes on from here.", err=True)
            raise SystemExit(130) from None


def check_report(report: Path) -> Path:
    """Refuse, before anything runs, a ``--report`` to which no ending can be added. Raises ``UserError``."""
    if report.name in ("", ".."):
        raise UserError(
            f"--report {report} is a folder; give the start of the files' names, such as {report / 'mine'}."
        )
    return report


def tell_failures(failed: dict[str, str]) -> None:
    """Raise ``UserError`` that names every run that failed, where one did."""
    if failed:
        told = "; ".join(f"{name}: {line.removeprefix('recdenoise: ')}" for name, line in failed.items())
        raise UserError(f"{len(failed)} of the runs failed; the same command tries them again. {told}")


class Experiments(click.Group):
    """Finds a command for every published table and figure when it is asked for, and the one of a single run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from recdenoise.reports import published

        return [*published.tables(), *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        from recdenoise.reports import experiments, published

        if name == "run":
            return experiments.run_command
        return experiments.experiment_command(name) if name in published.tables() else super().get_command(ctx, name)


@click.group(cls=Experiments)
def benchmark() -> None:
    """Run published experiments and put the numbers beside print.

    One folder a run; a finished run is never repeated; an interrupted command goes on where it stopped.
    """


def parse_search(texts: Sequence[str]) -> dict[str, list[Any]]:
    """``["learning_rate=0.001,0.01"]`` as values by option. Raises ``UserError`` for anything else."""
    from recdenoise.recbole_adapter.recbole_config import parse_yaml

    found: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        try:
            parsed = parse_yaml(f"[{values}]") if equals and key.strip() else None
        except ValueError:
            parsed = None
        if not parsed or not all(v is None or isinstance(v, bool | int | float | str) for v in parsed):
            raise UserError(f"--search {text!r} must read KEY=V1,V2, for example --search learning_rate=0.001,0.01.")
        found[key.strip()] = parsed
    return found


@click.command(cls=ListCommand)
@click.option("--model", required=True, help="A model's name; `recdenoise models` lists them.")
@click.option("--dataset", required=True, help="A recipe's name or a folder that one built.")
@click.option("--denoiser", default="normal", show_default=True, help="A method; `recdenoise methods` lists them.")
@CLEAN
@TRIALS
@SELECTOR
@EPOCHS
@click.option("--seed", type=int, default=2020, show_default=True, help="Of the sampler and of every trial.")
@SEEDS
@click.option("--out", type=click.Path(path_type=Path), help="Folder of log and runs.  [default: runs/tune/...]")
@click.option("--study", type=click.Path(path_type=Path), help="SQLite file.  [default: OUT/study.db]")
@SEARCH
@SET
@click.option("--quiet", is_flag=True, help="No progress bars.")
@PLUGIN
def tune(model: str, dataset: str, denoiser: str, **given: Any) -> None:
    """Search options on validation data, then test the best.

    The space is the DeCA paper's grid, the sampler Optuna's TPE. The test set is not looked at before the search ends.
    The best is then trained with several seeds. A stopped search goes on where it was; trials.csv logs it, tuned.json
    holds what it found.

    \b
    recdenoise tune --model GMF --dataset ml-100k --denoiser deca_p --trials 24
    recdenoise tune --model GMF --dataset ml-100k --denoiser r_ce --search learning_rate=0.001,0.003,0.01
    """
    from recdenoise.cli import console, prepare_process
    from recdenoise.plugins import load_plugins

    prepare_process()
    load_plugins(given["plugins"])
    from recdenoise.recbole_adapter.settings import parse_assignments
    from recdenoise.reports import tuning
    from recdenoise.reports.grid import FIRST_SEED
    from recdenoise.reports.terminal import metric_table
    from recdenoise.reports.workers import lock

    spec = tuning.make_spec(
        model,
        dataset,
        denoiser,
        protocol=given["protocol"],
        selector=given["selector"],
        seed=given["seed"],
        epochs=given["epochs"],
        options=parse_assignments(given["assignments"]),
        search=parse_search(given["search"]),
    )
    out = given["out"] or Path("runs") / "tune" / spec.name
    path = given["study"] or out / "study.db"
    held = lock(path.parent, f".{path.name}.lock")
    if held is None:
        raise UserError(f"Another process works on {path}; wait for it or choose another --study.")
    with held:
        screen = console()
        study = tuning.run_study(
            spec,
            path,
            given["trials"],
            log=out / "trials.csv",
            report=lambda trial, n: screen.print(trial_line(trial, n, given["trials"], spec), soft_wrap=True),
        )
        best = study.best_trial
        screen.print(f"best: trial {best.number}, validation {spec.selector} {best.value:.4f}, {best.params}")
        seeds = range(FIRST_SEED, FIRST_SEED + given["seeds"])
        record = tuning.final_runs(spec, study, list(seeds), out)
    screen.print(metric_table(f"{spec.name}, clean test", {f"seed {r['seed']}": r["test"] for r in record["runs"]}))
    screen.print(f"found: {out / 'tuned.json'}; log of trials: {out / 'trials.csv'}", soft_wrap=True)


@benchmark.command(cls=ListCommand)
@click.option("--dataset", default="ml-100k", show_default=True, help="A recipe's name or a folder that one built.")
@list_option("--models", help="Models.  [default: GMF NeuMF CDAE LightGCN]")
@list_option("--methods", help="Denoisers, the first is the one compared with.  [default: normal deca_p]")
@CLEAN
@TRIALS
@SELECTOR
@EPOCHS
@SEEDS
@WORKERS
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the studies.  [default: runs/tuned]")
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    help="The report's files without their endings.  [default: docs/results/tuned-DATASET, or tuned-DATASET-paper]",
)
@REPORT_ONLY
@SEARCH
@SET
@PLUGIN
@click.pass_context
def tuned(ctx: click.Context, dataset: str, **given: Any) -> None:
    """Tune several methods with the same budget, then compare them.

    The comparison is a paired test over users.

    \b
    recdenoise benchmark tuned --models GMF NeuMF --methods normal deca_p --trials 24 --workers 2
    """
    from recdenoise.cli import console, prepare_process
    from recdenoise.plugins import load_plugins

    prepare_process()
    load_plugins(given["plugins"])
    from recdenoise.recbole_adapter.dataset import find_folder
    from recdenoise.recbole_adapter.settings import parse_assignments
    from recdenoise.reports import grid, tuning
    from recdenoise.reports import tuned as comparison

    specs = [
        tuning.make_spec(
            model,
            dataset,
            method,
            protocol=given["protocol"],
            selector=given["selector"],
            epochs=given["epochs"],
            options=parse_assignments(given["assignments"]),
            search=parse_search(given["search"]),
        )
        for model in given["models"] or grid.read_table("table2").models
        for method in given["methods"] or ("normal", "deca_p")
    ]
    out = given["out"] or Path("runs") / "tuned"
    under = "" if given["protocol"] == "clean" else f"-{given['protocol']}"
    report = check_report(given["report"] or Path("docs") / "results" / f"tuned-{Path(dataset).name}{under}")
    failed: dict[str, str] = {}
    if not given["report_only"]:
        find_folder(dataset, given["protocol"])
        jobs = comparison.jobs_of(specs, out, given["trials"], given["seeds"], given["plugins"])
        failed = run_with_progress(jobs, given["workers"], lambda job: f"{job.name} {trials_so_far(job.folder)}")
    paths, lines = comparison.write_report(specs, out, report, typed_command(ctx))
    screen = console()
    for line in lines:
        screen.print(line, soft_wrap=True)
    screen.print("report: " + ", ".join(map(str, paths)), soft_wrap=True)
    tell_failures(failed)


def trials_so_far(folder: Path) -> str:
    """How far a study at work is, from its log."""
    log = folder / "trials.csv"
    return f"(trial {len(log.read_text(encoding='utf-8').splitlines())})" if log.is_file() else ""


def trial_line(trial: Any, n: int, trials: int, spec: StudySpec) -> str:
    """One trial for people."""
    chosen = ", ".join(f"{key.removeprefix('denoiser.')} {value}" for key, value in trial.params.items())
    value = "failed" if trial.value is None else f"{spec.selector} {trial.value:.4f}"
    seconds = trial.user_attrs.get("seconds")
    more = f"{seconds:.1f} s" if seconds is not None else f"as trial {trial.user_attrs.get('repeats', '')}".strip()
    return f"{n}/{trials}  {chosen}: {value}  ({more})"
