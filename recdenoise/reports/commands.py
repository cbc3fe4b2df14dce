"""The commands `benchmark` and `tune`. They import what they need when they run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from recdenoise.errors import UserError

if TYPE_CHECKING:
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
    return [*ctx.command_path.split(), *ctx.meta[TYPED]]


SEEDS = click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="2020, 2021, ...")
WORKERS = click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True, help="Runs at a time.")
SET = click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Set in every run: epochs=5.")
PLUGIN = click.option("--plugin", "plugins", multiple=True, metavar="FILE|MODULE", help="Imported by every run first.")
REPORT_ONLY = click.option("--report-only", is_flag=True, help="Only write the report of the runs there are.")


def words(seconds: float | None) -> str:
    """A duration for people."""
    if seconds is None:
        return "time left unknown"
    if seconds < 90:
        return f"{seconds:.0f} s left"
    return f"{seconds / 60:.0f} min left" if seconds < 5400 else f"{seconds / 3600:.1f} h left"


def run_with_progress(jobs: Sequence[Job], workers: int) -> dict[str, str]:
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

        def report(job: Job | None, seconds: float, n_done: int, active: list[str], left: float | None) -> None:
            progress.update(bar, completed=n_done, description=f"{words(left)}: {', '.join(active)}")
            if job is not None:
                end = "" if job.finished else f"  FAILED, see {job.folder / 'log.txt'}"
                screen.print(f"{n_done}/{total}  {job.name}  {seconds:.1f} s  {words(left)}{end}", soft_wrap=True)

        return run_all(jobs, workers, report)


def tell_failures(failed: dict[str, str]) -> None:
    """Raise ``UserError`` that names every run that failed, where one did."""
    if failed:
        told = "; ".join(f"{name}: {line.removeprefix('recdenoise: ')}" for name, line in failed.items())
        raise UserError(f"{len(failed)} of the runs failed; the same command tries them again. {told}")


class Tables(click.Group):
    """Finds a command for every published table when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from recdenoise.reports import published

        return [*published.tables(), *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        from recdenoise.reports import published

        return table_command(name) if name in published.tables() else super().get_command(ctx, name)


@click.group(cls=Tables)
def benchmark() -> None:
    """Run published experiments and put the numbers beside print.

    One folder a run; a finished run is never repeated; an interrupted command goes on where it stopped.
    """


def table_command(name: str) -> click.Command:
    """The command of one published table."""

    @click.pass_context
    def run(ctx: click.Context, **given: Any) -> None:
        benchmark_table(name, typed_command(ctx), **given)

    params = [
        list_option("--datasets", help="Recipes, or folders they built.  [default: the table's]"),
        list_option("--models", help="Models.  [default: the table's]"),
        list_option("--methods", help="Denoisers.  [default: the table's]"),
        SEEDS,
        WORKERS,
        click.option("--protocol", help="paper or clean.  [default: the table's]"),
        click.option("--out", type=click.Path(path_type=Path), help=f"Folder of the runs.  [default: runs/{name}]"),
        click.option(
            "--report",
            type=click.Path(path_type=Path),
            help=f"The report's files without their endings.  [default: docs/results/{name}-DATASET]",
        ),
        REPORT_ONLY,
        SET,
        PLUGIN,
    ]
    for param in reversed(params):
        run = param(run)
    text = f"""The runs of {name}, beside the paper's numbers.

    \b
    recdenoise benchmark {name} --models GMF NeuMF --methods normal deca_p --seeds 3 --workers 2
    recdenoise benchmark {name} --report-only
    """
    return click.command(name, cls=ListCommand, help=text)(run)


def benchmark_table(name: str, command: list[str], **given: Any) -> None:
    """Run a table's grid and write its report."""
    from recdenoise.cli import console, load_plugins, one_thread

    one_thread()
    load_plugins(given["plugins"])
    from recdenoise.recbole_adapter.settings import parse_assignments
    from recdenoise.reports import grid
    from recdenoise.reports.comparison import write_report

    table = grid.read_table(name)
    cells = grid.plan(
        table,
        datasets=given["datasets"],
        models=given["models"],
        methods=given["methods"],
        protocol=given["protocol"],
        n_seeds=given["seeds"],
        options=parse_assignments(given["assignments"]),
        plugins=given["plugins"],
    )
    datasets = dict.fromkeys(cell.dataset for cell in cells)
    out = given["out"] or Path("runs") / name
    report = given["report"] or Path("docs") / "results" / "-".join([name, *datasets])
    jobs = grid.jobs_of(cells, table, out)
    failed: dict[str, str] = {}
    if given["report_only"]:
        if not any(job.finished for job in jobs):
            raise UserError(f"{out} has no finished run of this table; leave out --report-only to make them.")
    else:
        grid.prepare_data(cells)
        failed = run_with_progress(jobs, given["workers"])
    paths, lines = write_report(table, cells, out, report, command)
    screen = console()
    for line in [*lines[1:], lines[0]]:
        screen.print(line, soft_wrap=True)
    screen.print("report: " + ", ".join(map(str, paths)), soft_wrap=True)
    tell_failures(failed)
