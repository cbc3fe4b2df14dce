"""``recdenoise vision benchmark deca-table4``. It imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def numbers(name: str, values: tuple[str, ...], example: str) -> tuple[float, ...]:
    """Typed values. Raises ``UserError`` for one that is no number."""
    try:
        return tuple(float(value) for value in values)
    except ValueError:
        raise UserError(f"--{name} {' '.join(values)}: all must be numbers, for example --{name} {example}.") from None


@click.command("deca-table4", cls=ListCommand)
@list_option("--datasets", help="Names, or .npz files with a test part.  [default: fashion-mnist cifar10]")
@list_option("--ratios", help="Shares of labels drawn anew.  [default: 0.4 0.5 0.3 0.2 0.1]")
@list_option("--methods", help="Methods to compare.  [default: normal mw_net itlm deca_p]")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="0, 1, ...")
@WORKERS
@list_option("--lr", "rates", help="Learning rates to choose from by validation.  [default: 0.1]")
@click.option("--network", help="In place of the table's.  [default: resnet32]")
@click.option("--valid", type=float, help="Share or number of images that choose the epoch.  [default: 10000]")
@click.option("--clean", type=click.IntRange(min=1), help="Trusted images of mw_net.  [default: 1000]")
@IMAGES
@ROOT
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/deca-table4"),
    show_default=True,
    help="Folder of the runs.",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    default=Path("docs/results/deca-table4"),
    show_default=True,
    help="The report's files without their endings.",
)
@REPORT_ONLY
@click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="In every run: epochs=5; of a method: itlm.keep=.7"
)
@PLUGIN
@click.pass_context
def deca_table4(ctx: click.Context, out: Path, report: Path, report_only: bool, **given: Any) -> None:
    """Table 4 of the DeCA paper: test accuracy at five ratios of label noise, beside print.

    Every run is a folder under --out: a finished one is not repeated, an interrupted one goes on. 40% with one seed
    comes first. Several --workers share one GPU.

    \b
    recdenoise vision benchmark deca-table4 --workers 4 --set precision=bf16
    recdenoise vision benchmark deca-table4 --ratios 0.4 --seeds 1 --datasets fashion-mnist
    recdenoise vision benchmark deca-table4 --report-only
    """
    from vision.cli import console, one_thread

    one_thread()
    load_plugins(given["plugins"])
    from vision import table4, table4_report

    table = table4.read_table()
    shared, of_method = table4.split_options(given["assignments"], given["methods"] or table.methods)
    valid = given["valid"]
    if valid is not None and valid <= 0:
        raise UserError(f"--valid is {valid:g}; some images must choose the epoch.")
    part = table4.Part(
        datasets=given["datasets"],
        ratios=numbers("ratios", given["ratios"], "0.4 0.5"),
        methods=given["methods"],
        seeds=given["seeds"],
        rates=numbers("lr", given["rates"], "0.1 0.01"),
        network=given["network"],
        valid=int(valid) if valid is not None and valid >= 1 and valid == int(valid) else valid,
        clean=given["clean"],
        images=given["images"],
        root=given["root"],
        options=shared,
        of_method=of_method,
    )
    cells = table4.plan(table, part)
    jobs = table4.jobs_of(table, cells, out, given["plugins"])
    command, screen = typed_command(ctx), console()
    failed: dict[str, str] = {}
    if report_only:
        if not any(job.finished for job in jobs):
            raise UserError(f"{out} has no finished run of this table; leave out --report-only to make them.")
    else:
        table4.check_data(cells)
        try:
            failed = run_with_progress(jobs, given["workers"], table4.describe_job)
        except SystemExit:  # stopped: what has finished is told all the same
            paths, _ = table4_report.write(table, cells, out, report, command)
            if paths:
                screen.print("report so far: " + ", ".join(map(str, paths)), soft_wrap=True)
            raise
    paths, lines = table4_report.write(table, cells, out, report, command)
    for line in [*lines[1:], lines[0]]:
        screen.print(line, soft_wrap=True)
    if paths:
        screen.print("report: " + ", ".join(map(str, paths)), soft_wrap=True)
    tell_failures(failed)
