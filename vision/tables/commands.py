"""``recdenoise vision benchmark TABLE``, made from the table's declaration. It imports what it needs when it runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from recdenoise.errors import UserError
from recdenoise.plugins import load_plugins
from recdenoise.reports.commands import (
    REPORT_ONLY,
    WORKERS,
    ListCommand,
    list_option,
    run_with_progress,
    tell_failures,
    typed_command,
)
from vision.benchmark_commands import IMAGES, PLUGIN, ROOT

if TYPE_CHECKING:
    from vision.tables.plan import Part
    from vision.tables.table import Table

HOW = """Every run is a folder under --out: a finished one is not repeated, an interrupted one goes on. One seed of
everything comes first{first}. Several --workers share one GPU."""


def numbers(name: str, values: tuple[str, ...], example: str) -> tuple[float, ...]:
    """Typed values. Raises ``UserError`` for one that is no number."""
    try:
        return tuple(float(value) for value in values)
    except ValueError:
        raise UserError(f"--{name} {' '.join(values)}: all must be numbers, for example --{name} {example}.") from None


def table_command(name: str) -> click.Command:
    """The command of a table."""
    from vision.tables.table import read_table

    table = read_table(name)

    @click.pass_context
    def run(ctx: click.Context, **given: Any) -> None:
        run_table(ctx, table, given)

    run.__doc__ = help_text(table)
    decorated: Callable[..., Any] = run
    for option in reversed(options_of(table)):
        decorated = option(decorated)
    return click.command(name, cls=ListCommand)(decorated)


def help_text(table: Table) -> str:
    """The command's help."""
    first = table.conditions[0].title
    lines = [table.summary, "", HOW.format(first=f", {first} before all" if len(table.conditions) > 1 else "")]
    return "\n".join([*lines, "", "\b", *table.hints])


def options_of(table: Table) -> list[Any]:
    """The command's options: the same for every table, but for what the table's axes are called."""

    def words(axis: str) -> str:
        keys = [f"{key:g}" if isinstance(key, float) else str(key) for key in table.keys(axis)]
        return f"[default: {' '.join(keys)}]"

    options = [list_option("--datasets", help=f"Names, or .npz files with a test part.  {words('datasets')}")]
    if len(table.conditions) > 1:
        title = table.axis.get("told", f"{table.axis['title'].capitalize()}.")
        options.append(list_option(table.axis["option"], "conditions", help=f"{title}  {words('conditions')}"))
    network = table.gives.get("network")
    clean = [str(entry.key) for entry in table.methods if any("clean" in gives for _, gives in entry.gives)]
    held = f"  [default: {table.gives['valid']}]" if "valid" in table.gives else ""
    options += [
        list_option("--methods", help=f"Methods to compare; others by name too.  {runnable(table)}"),
        click.option("--seeds", type=click.IntRange(min=1), default=table.seeds, show_default=True, help="0, 1, ..."),
        WORKERS,
        list_option("--lr", "rates", help="Learning rates to choose from by validation.  [default: the table's]"),
        click.option("--network", help=f"In place of the table's.{f'  [default: {network}]' if network else ''}"),
        click.option("--epochs", type=click.IntRange(min=1), help="Of every run.  [default: the table's]"),
        click.option("--valid", type=float, help=f"Share or number of images that choose the epoch.{held}"),
    ]
    if clean:
        options.append(
            click.option("--clean", type=click.IntRange(min=1), help=f"Trusted images of {', '.join(clean)}.")
        )
    if any(entry.folder for entry in table.datasets):
        masks = "Folder of masks of the images' contents."
        options += [
            click.option("--masks", metavar="PATH", help=masks),
            click.option("--image-size", type=click.IntRange(min=1), help="Side that images are brought to."),
            click.option("--readers", type=click.IntRange(min=0), help="Processes of each run that read ahead."),
        ]
    return [*options, *files_of(table)]


def runnable(table: Table) -> str:
    """The methods that run by default."""
    return f"[default: {' '.join(str(entry.key) for entry in table.methods if not entry.absent)}]"


def files_of(table: Table) -> list[Any]:
    """Options of data and files, and ``--set``."""
    path: Any = click.Path(path_type=Path)
    out, report = Path("runs") / table.name, Path("docs") / "results" / table.name
    example = next((e for e in table.methods if any(g.get("method_options") for _, g in e.gives)), None)
    own = ""
    if example is not None:
        key, value = next((k, v) for _, g in example.gives for k, v in g.get("method_options", {}).items())
        own = f"; of a method: {example.key}.{key}={value}"
    told = f"In every run: precision=bf16{own}"
    return [
        IMAGES,
        ROOT,
        click.option("--out", type=path, default=out, show_default=True, help="Folder of the runs."),
        click.option("--report", type=path, default=report, show_default=True, help="The report, without ending."),
        REPORT_ONLY,
        click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help=told),
        PLUGIN,
    ]


def part_of(table: Table, given: dict[str, Any]) -> Part:
    """What was typed. Raises ``UserError``."""
    from vision.tables import plan

    keys = given["methods"] or [str(entry.key) for entry in table.methods]
    shared, of_method = plan.split_options(given["assignments"], keys)
    valid = given["valid"]
    if valid is not None and valid <= 0:
        raise UserError(f"--valid is {valid:g}; some images must choose the epoch.")
    return plan.Part(
        datasets=given["datasets"],
        conditions=given.get("conditions", ()),
        methods=given["methods"],
        seeds=given["seeds"],
        rates=numbers("lr", given["rates"], "0.1 0.01"),
        epochs=given["epochs"],
        network=given["network"],
        valid=int(valid) if valid is not None and valid >= 1 and valid == int(valid) else valid,
        clean=given.get("clean"),
        images=given["images"],
        root=given["root"],
        masks=given.get("masks"),
        image_size=given.get("image_size"),
        readers=given.get("readers"),
        options=shared,
        of_method=of_method,
    )


def run_table(ctx: click.Context, table: Table, given: dict[str, Any]) -> None:
    """Plan, run, report."""
    from vision.cli import console, prepare_process

    prepare_process()
    load_plugins(given["plugins"])
    from vision.tables import jobs, plan, report

    part, out = part_of(table, given), given["out"]
    cells = plan.plan(table, part)
    todo = jobs.jobs_of(cells, out, given["plugins"])
    command, screen = typed_command(ctx), console()
    failed: dict[str, str] = {}
    if given["report_only"]:
        if not any(job.finished for job in todo):
            raise UserError(f"{out} has no finished run of this table; leave out --report-only to make them.")
    else:
        jobs.check_data(table, cells)
        try:
            failed = run_with_progress(todo, given["workers"], jobs.describe_job)
        except SystemExit:  # stopped: what has finished is told all the same
            paths, _ = report.write(table, part, cells, out, given["report"], command)
            if paths:
                screen.print("report so far: " + ", ".join(map(str, paths)), soft_wrap=True)
            raise
    paths, lines = report.write(table, part, cells, out, given["report"], command)
    for line in [*lines[1:], lines[0]]:
        screen.print(line, soft_wrap=True)
    if paths:
        screen.print("report: " + ", ".join(map(str, paths)), soft_wrap=True)
    tell_failures(failed)
