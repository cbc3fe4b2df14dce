"""The commands of published tables and figures, and of a single run of a grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from recdenoise.errors import UserError
from recdenoise.reports import published
from recdenoise.reports.commands import (
    PLUGIN,
    REPORT_ONLY,
    SEEDS,
    SET,
    WORKERS,
    ListCommand,
    check_report,
    list_option,
    run_with_progress,
    tell_failures,
    typed_command,
)

COMPARED = click.option(
    "--compared-only", is_flag=True, help="Leave out runs that are shown beside and not compared with print."
)


def experiment_command(name: str) -> click.Command:
    """The command of one published table or figure."""

    @click.pass_context
    def run(ctx: click.Context, **given: Any) -> None:
        run_experiment(name, typed_command(ctx), **given)

    params = [
        list_option("--datasets", help=f"Recipes, or folders they built.  [default: the {name[:-1]}'s]"),
        list_option("--models", help=f"Models.  [default: the {name[:-1]}'s]"),
        list_option("--methods", help=f"Denoisers.  [default: the {name[:-1]}'s]"),
        SEEDS,
        WORKERS,
        click.option("--protocol", help=f"paper or clean.  [default: the {name[:-1]}'s]"),
        click.option("--out", type=click.Path(path_type=Path), help=f"Folder of the runs.  [default: runs/{name}]"),
        click.option(
            "--report",
            type=click.Path(path_type=Path),
            help=f"The report's files without their endings.  [default: docs/results/{name}-DATASET]",
        ),
        REPORT_ONLY,
        COMPARED,
        SET,
        PLUGIN,
    ]
    for param in reversed(params):
        run = param(run)
    example = "--models GMF NeuMF --methods normal deca_p" if name.startswith("table") else "--datasets ml-100k"
    beside = "beside the paper's numbers" if name.startswith("table") else "as numbers and pictures"
    text = f"""{published.load_table(name)["title"]}: {beside}.

    \b
    recdenoise benchmark {name} {example} --seeds 3 --workers 2
    recdenoise benchmark {name} --report-only
    """
    return click.command(name, cls=ListCommand, help=text)(run)


def run_experiment(name: str, command: list[str], **given: Any) -> None:
    """Run the grid of a table or figure and write its report."""
    from recdenoise.cli import console, prepare_process
    from recdenoise.plugins import load_plugins

    prepare_process()
    load_plugins(given["plugins"])
    from recdenoise.recbole_adapter.settings import parse_assignments
    from recdenoise.reports import figures, grid, table_report

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
        compared_only=given["compared_only"],
    )
    datasets = dict.fromkeys(cell.dataset for cell in cells)
    out = given["out"] or Path("runs") / name
    # Numbers of another protocol are not those of the table: they get a report of their own.
    other = [] if given["protocol"] in (None, table.protocol) else [given["protocol"]]
    report = check_report(given["report"] or Path("docs") / "results" / "-".join([name, *datasets, *other]))
    jobs = grid.jobs_of(cells, table, out)
    failed: dict[str, str] = {}
    if given["report_only"]:
        if not any(job.finished for job in jobs):
            raise UserError(f"{out} has no finished run of this {name[:-1]}; leave out --report-only to make them.")
    else:
        grid.prepare_data(cells)
        failed = run_with_progress(jobs, given["workers"])
        if failed and not any(job.finished for job in jobs):
            tell_failures(failed)
    write = table_report.write_report if table.report == "table" else figures.write_report
    paths, lines = write(table, cells, out, report, command)
    screen = console()
    for line in [*lines[1:], *lines[:1]]:
        screen.print(line, soft_wrap=True)
    screen.print("report: " + ", ".join(map(str, paths)), soft_wrap=True)
    tell_failures(failed)


@click.command("run", hidden=True)
@click.option("--model", required=True, help="A model's name.")
@click.option("--dataset", required=True, help="A recipe's name or a folder that one built.")
@click.option("--denoiser", required=True, help="A method's name.")
@click.option("--protocol", default="paper", show_default=True, help="paper or clean.")
@click.option("--preset", help="paper: the settings of the published table cell.")
@click.option("--seed", type=int, default=2020, show_default=True, help="Everything random follows from it.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
@click.option("--keep", "keeps", multiple=True, help="users, predictions, test_curve: files that reports need.")
@SET
@PLUGIN
def run_command(model: str, dataset: str, denoiser: str, **given: Any) -> None:
    """One run of a grid: as `recdenoise train --resume`, and the files that reports need."""
    from recdenoise.cli import console, prepare_process
    from recdenoise.plugins import load_plugins

    prepare_process()
    load_plugins(given["plugins"])
    from recdenoise.recbole_adapter.settings import parse_assignments, resolve
    from recdenoise.reports.runs import run_one

    settings = resolve(
        model,
        str(Path(dataset).resolve()) if Path(dataset).is_dir() else dataset,
        denoiser,
        protocol=given["protocol"],
        seed=given["seed"],
        preset=given["preset"],
        overrides=parse_assignments(given["assignments"]),
    )
    run_one(settings, given["out"], given["keeps"])
    console().print(f"finished: {given['out']}", soft_wrap=True)
