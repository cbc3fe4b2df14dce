"""``recdenoise vision benchmark``: figures of the DeCA paper on images. They import what they need when they run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from recdenoise.errors import unknown_name
from recdenoise.mistakes import Group
from recdenoise.reports.commands import ListCommand, list_option, typed_command

if TYPE_CHECKING:
    from vision.settings import Settings

NETWORKS = ("mlp", "convnet2", "resnet32", "inception_small")


@click.group(cls=Group)
def benchmark() -> None:
    """Repeat experiments of the DeCA paper on images."""


@benchmark.command(cls=ListCommand)
@list_option("--networks", help=f"Networks to compare.  [default: {' '.join(NETWORKS)}]")
@click.option("--dataset", default="mnist", show_default=True, help="A name, or an .npz or folder with a test part.")
@click.option("--noise", default="symmetric:0.4", show_default=True, help="Label noise.")
@click.option("--images", type=click.IntRange(min=2), default=None, help="Training images used.  [default: all]")
@click.option("--seeds", type=click.IntRange(min=1), default=2, show_default=True, help="Of the weights: 0, 1, ...")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Set in every run: epochs=5.")
@click.option("--root", default=None, help="Folder of data sets.  [default: $RECDENOISE_DATA/vision, the cache]")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/vision/figure2"), show_default=True)
@click.option(
    "--report", type=click.Path(path_type=Path), help="Where the pages go, without ending.  [default: OUT/figure2]"
)
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
    out: Path,
    report: Path | None,
) -> None:
    """Figure 2: do networks disagree more where labels are wrong?

    Every run is a folder of its own under --out: a finished one is not repeated, an interrupted one goes on.

    \b
    recdenoise vision benchmark figure2 --images 5000 --networks mlp convnet2
    """
    from vision.cli import console, one_thread

    one_thread()
    from recdenoise.errors import UserError
    from vision import disagreement, disagreement_report
    from vision import networks as known
    from vision.noise import parse
    from vision.progress import Progress
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
    screen = console()

    def watch(key: disagreement.Key, settings: Settings) -> Progress:
        device = settings.options.torch_device()
        return Progress(screen, f"{key[0]}, seed {key[1]}", settings.options.batch_size, device)

    predicted, records = {}, []
    for key, record in disagreement.train_all(spec, out, watch):
        predicted[key] = disagreement.read_arrays(out / f"{key[0]}-{key[1]}" / "predicted.npz")
        records.append(record)
        accuracy = record["test"]["last"]["accuracy"]
        screen.print(
            f"{key[0]}, seed {key[1]}: test accuracy {100 * accuracy:.2f} %, {record['seconds']['train']:.0f} s"
        )
    wrong, data = (disagreement.read_arrays(out / name) for name in ("wrong.npz", "data.npz"))
    place = report or out / "figure2"
    paths, lines = disagreement_report.write(spec, predicted, wrong, data, records, place, typed_command(ctx))
    for line in lines:
        screen.print(line)
    screen.print("  ".join(str(path) for path in paths), soft_wrap=True)
