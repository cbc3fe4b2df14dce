"""``recdenoise vision benchmark``: figures of the DeCA paper on images. They import what they need when they run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from recdenoise.errors import UserError, unknown_name
from recdenoise.mistakes import Group
from recdenoise.plugins import load_plugins
from recdenoise.reports.commands import ListCommand, list_option, typed_command

if TYPE_CHECKING:
    from rich.console import Console

    from vision.disagreement import Watch
    from vision.figure_runs import Cell, Done
    from vision.settings import Settings

NETWORKS = ("mlp", "convnet2", "resnet32", "inception_small")

SEEDS = click.option("--seeds", type=click.IntRange(min=1), default=2, show_default=True, help="0, 1, ...")
SET = click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Set in every run: epochs=5.")
NOISE = click.option("--noise", default="symmetric:0.4", show_default=True, help="Label noise.")
IMAGES = click.option("--images", type=click.IntRange(min=2), help="Training images used.  [default: all]")
ROOT = click.option("--root", help="Folder of data sets.  [default: $RECDENOISE_DATA/vision, the cache]")
NETWORK = click.option("--network", default="resnet32", show_default=True, help="Of every run.")
DATASET = click.option("--dataset", default="mnist", show_default=True, help="A name, an .npz or a folder.")
VALID = click.option("--valid", type=float, default=0.2, show_default=True, help="Share that chooses the epoch.")
OUT = click.option("--out", type=click.Path(path_type=Path), help="Folder of the runs.  [default: runs/vision/FIGURE]")
REPORT = click.option(
    "--report", type=click.Path(path_type=Path), help="Where the pages go, without ending.  [default: OUT/FIGURE]"
)
PLUGIN = click.option(
    "--plugin", "plugins", multiple=True, metavar="FILE|MODULE", help="Import this first: it registers a method."
)


class Experiments(Group):
    """Finds a command for every published table when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from vision.tables import table

        return [*super().list_commands(ctx), *table.names()]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        from vision.tables import commands, table

        return commands.table_command(name) if name in table.names() else super().get_command(ctx, name)


@click.group(cls=Experiments)
def benchmark() -> None:
    """Repeat published experiments on images and put the numbers beside print."""


def watching(screen: Console) -> Watch:
    """A progress bar for every run."""
    from vision.progress import Progress

    def watch(key: tuple[str, int], settings: Settings) -> Progress:
        return Progress(
            screen, f"{key[0]}, seed {key[1]}", settings.options.batch_size, settings.options.torch_device()
        )

    return watch


def tell(screen: Console, lines: list[str], paths: list[Path]) -> None:
    """What a figure comes to, and where its pages are."""
    for line in lines:
        screen.print(line)
    screen.print("  ".join(str(path) for path in paths), soft_wrap=True)


@benchmark.command(cls=ListCommand)
@list_option("--networks", help=f"Networks to compare.  [default: {' '.join(NETWORKS)}]")
@DATASET
@NOISE
@IMAGES
@SEEDS
@SET
@ROOT
@OUT
@REPORT
@click.pass_context
def figure2(
    ctx: click.Context,
    networks: tuple[str, ...],
    dataset: str,
    noise: str,
    images: int | None,
    seeds: int,
    assignments: tuple[str, ...],
    root: str | None,
    out: Path | None,
    report: Path | None,
) -> None:
    """Figure 2: do networks disagree more where labels are wrong?

    Every run is a folder of its own under --out: a finished one is not repeated, an interrupted one goes on.

    \b
    recdenoise vision benchmark figure2 --images 5000 --networks mlp convnet2
    """
    from vision.cli import console, prepare_process

    prepare_process()
    from vision import disagreement, disagreement_report
    from vision import networks as known
    from vision.noise import parse
    from vision.settings import parse_assignments

    options, of_method = parse_assignments(assignments)
    if of_method:
        raise UserError(f"--set method.{next(iter(of_method))}: every network is trained plainly here.")
    chosen = networks or NETWORKS
    for name in chosen:
        if name not in known.names():
            raise unknown_name("network", name, known.names())
    if len(chosen) < 2 and seeds < 2:
        raise UserError("There is nothing to compare: give two networks or more, or --seeds 2.")
    spec = disagreement.Spec(dataset, chosen, str(parse(noise)), seeds, images, options, root)
    out = out or Path("runs/vision/figure2")
    screen = console()
    predicted, records = {}, []
    for key, record in disagreement.train_all(spec, out, watching(screen)):
        predicted[key] = disagreement.read_arrays(out / f"{key[0]}-{key[1]}" / "predicted.npz")
        records.append(record)
    wrong, data = (disagreement.read_arrays(out / name) for name in ("wrong.npz", "data.npz"))
    place = report or out / "figure2"
    paths, lines = disagreement_report.write(spec, predicted, wrong, data, records, place, typed_command(ctx))
    tell(screen, lines, paths)


def shared(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What all cells of a figure have, and the options of the method."""
    from vision.settings import parse_assignments

    run_options, of_method = parse_assignments(given.pop("assignments"))
    if given["valid"] <= 0:
        raise UserError(f"--valid is {given['valid']:g}; some images must choose the epoch.")
    if Path(given["dataset"]).exists():  # a run must find its data from wherever it is continued
        given["dataset"] = str(Path(given["dataset"]).resolve())
    return {**given, "run_options": run_options}, of_method


def run_cells(
    cells: list[Cell], out: Path, place: Path, write: Callable[..., tuple[list[Path], list[str]]], ctx: click.Context
) -> None:
    """Train the cells; the pages are written after every run, so that a figure in the making can be looked at."""
    from vision.cli import console
    from vision.figure_runs import train_all

    screen = console()
    runs: list[Done] = []
    for done in train_all(cells, out, watching(screen)):
        runs.append(done)
        paths, lines = write(runs, place, typed_command(ctx))
    tell(screen, lines, paths)


@benchmark.command(cls=ListCommand)
@list_option("--methods", help="Methods to compare.  [default: normal mw_net itlm deca_p]")
@DATASET
@NETWORK
@NOISE
@IMAGES
@VALID
@SEEDS
@SET
@ROOT
@OUT
@REPORT
@PLUGIN
@click.pass_context
def figure3(
    ctx: click.Context,
    methods: tuple[str, ...],
    seeds: int,
    out: Path | None,
    report: Path | None,
    plugins: tuple[str, ...],
    **given: Any,
) -> None:
    """Figure 3(d): the clean test along training.

    \b
    recdenoise vision benchmark figure3 --dataset fashion-mnist --images 5000 --network convnet2 --set epochs=20
    """
    from vision.cli import prepare_process

    prepare_process()
    load_plugins(plugins)
    from vision import figure_runs

    settings, of_method = shared(given)
    if of_method:
        raise UserError(f"--set method.{next(iter(of_method))}: the methods differ in their options.")
    cells = figure_runs.curve_cells(methods or figure_runs.METHODS, seeds, **settings)
    out = out or Path("runs/vision/figure3")
    run_cells(cells, out, report or out / "figure3", figure_runs.write_curves, ctx)


@benchmark.command(cls=ListCommand)
@list_option("--c_1", "first", help="Values of c_1.  [default: 1 10 50 100]")
@list_option("--c_2", "second", help="Values of c_2.  [default: 1 10 50 100]")
@DATASET
@NETWORK
@NOISE
@IMAGES
@VALID
@SEEDS
@SET
@ROOT
@OUT
@REPORT
@click.pass_context
def figure4(
    ctx: click.Context,
    first: tuple[str, ...],
    second: tuple[str, ...],
    seeds: int,
    out: Path | None,
    report: Path | None,
    **given: Any,
) -> None:
    """Figure 4: DeCA(p)'s test accuracy for every pair of c_1 and c_2.

    \b
    recdenoise vision benchmark figure4 --dataset fashion-mnist --images 5000 --network convnet2 --c_1 1 10 --c_2 1 10
    """
    from vision.cli import prepare_process

    prepare_process()
    from vision import figure_runs

    settings, of_method = shared(given)
    if taken := {"c_1", "c_2"} & of_method.keys():
        raise UserError(f"--set method.{min(taken)}: give values by --{min(taken)}.")
    settings["method_options"] = of_method
    cells = figure_runs.map_cells(numbers("c_1", first), numbers("c_2", second), seeds, **settings)
    out = out or Path("runs/vision/figure4")
    run_cells(cells, out, report or out / "figure4", figure_runs.write_map, ctx)


def numbers(name: str, values: tuple[str, ...]) -> tuple[float, ...]:
    """Values typed for an axis. Raises ``UserError`` for one that is no number."""
    from vision.figure_runs import VALUES

    try:
        return tuple(float(value) for value in values) or VALUES
    except ValueError:
        raise UserError(f"--{name} {' '.join(values)}: all must be numbers, for example --{name} 1 10.") from None
