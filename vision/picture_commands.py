"""``recdenoise vision picture``: pictures of finished runs, each with its numbers. They import what they need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from recdenoise.errors import UserError
from recdenoise.mistakes import Group
from recdenoise.plugins import load_plugins
from recdenoise.reports.commands import ListCommand, list_option

RUNS = click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
OUT = click.option("--out", type=click.Path(path_type=Path), help="Folder of the files.  [default: RUN/pictures]")
NAME = click.option("--name", "names", multiple=True, help="What a run is called; once for every run, in their order.")
END = click.option(
    "--weights", "end", type=click.Choice(["last", "best_val"]), help="Whose answers.  [default: those the run kept]"
)
PART = click.option(
    "--part", type=click.Choice(["test", "train"]), default="test", show_default=True, help="Images looked at."
)
ROWS = list_option("--rows", help="These rows of the part in place of drawn ones.")
DEVICE = click.option("--device", default=None, help="cpu, cuda.  [default: a GPU where there is one]")
PLUGIN = click.option(
    "--plugin", "plugins", multiple=True, metavar="FILE|MODULE", help="Import this first: it registers a method."
)


@click.group(cls=Group)
def picture() -> None:
    """Draw what finished runs do: a PNG and a CSV each.

    \b
    recdenoise vision picture losses runs/a runs/b --out pictures
    """


def begin(plugins: tuple[str, ...]) -> None:
    """What every command does first."""
    from vision.cli import prepare_process

    prepare_process()
    load_plugins(plugins)


def place(out: Path | None, runs: tuple[Path, ...]) -> Path:
    """The folder to write to."""
    return runs[0] / "pictures" if out is None else out


def numbers(rows: tuple[str, ...]) -> list[int]:
    """Row numbers as typed. Raises ``UserError`` for anything else."""
    try:
        return [int(row) for row in rows]
    except ValueError:
        raise UserError(f"--rows {' '.join(rows)}: all must be whole numbers, for example --rows 3 17.") from None


def tell(headings: list[str], rows: Sequence[Sequence[Any]], paths: list[Path]) -> None:
    """A table, and where the files are."""
    from recdenoise.reports.terminal import plain_table
    from vision.cli import console

    screen = console()
    screen.print(plain_table(headings, [[str(cell) for cell in row] for row in rows]))
    screen.print("  ".join(str(path) for path in paths), soft_wrap=True)


@picture.command()
@RUNS
@OUT
@NAME
@click.option(
    "--weights",
    "ends",
    multiple=True,
    type=click.Choice(["last", "best_val"]),
    default=("last",),
    show_default=True,
    help="Whose losses; may be given twice.",
)
@click.option("--bins", type=click.IntRange(2, 1000), default=40, show_default=True, help="Of each histogram.")
@click.option("--sample", type=click.IntRange(min=1), help="Draw so many right labels, as print does.  [default: all]")
@DEVICE
@PLUGIN
def losses(
    runs: tuple[Path, ...],
    out: Path | None,
    names: tuple[str, ...],
    ends: tuple[str, ...],
    bins: int,
    sample: int | None,
    device: str | None,
    plugins: tuple[str, ...],
) -> None:
    """Histograms of the losses of right and of wrong labels.

    Of the images that each run learned from; the true labels must be known. AUC is the chance that a wrong label has a
    larger loss than a right one. Runs may be of different data: losses are scaled to 0..1 within each.

    \b
    recdenoise vision picture losses runs/normal runs/elr --weights last --weights best_val
    """
    begin(plugins)
    from vision.pictures import write_losses

    chosen = tuple(dict.fromkeys(ends))
    records, paths = write_losses(
        runs, place(out, runs), names=names, ends=chosen, bins=bins, sample=sample, device=device
    )
    rows = [[r.name, r.end, f"{(~r.wrong).sum():,}", f"{r.wrong.sum():,}", f"{r.auc:.4f}"] for r in records]
    tell(["run", "weights", "right", "wrong", "AUC"], rows, paths)


@picture.command()
@RUNS
@OUT
@NAME
@END
@PART
@click.option("--images", type=click.IntRange(min=2), default=1000, show_default=True, help="Drawn at random.")
@click.option("--mask", default="box", show_default=True, metavar="box|own|RUN", help="What counts as foreground.")
@click.option(
    "--across",
    type=click.Choice(["features", "images"]),
    default="features",
    show_default=True,
    help="A coefficient of each image over features, or of each feature over images.",
)
@DEVICE
@PLUGIN
def correlation(
    runs: tuple[Path, ...], out: Path | None, names: tuple[str, ...], plugins: tuple[str, ...], **given: Any
) -> None:
    """Does a representation stand on foreground or background?

    Each image is also shown with its background and with its foreground blanked. The mean correlation of the whole
    image's representation with those of the parts is drawn. --mask box takes the middle as foreground, own the masks of
    each run, and a run's folder its masks for all.

    \b
    recdenoise vision picture correlation runs/clean runs/noisy runs/denll --mask runs/denll
    """
    begin(plugins)
    from vision.pictures import write_correlation

    records, paths = write_correlation(runs, place(out, runs), names=names, **given)
    parts = ("foreground", "background")
    rows = [[r.name, r.end, *(f"{r.mean(part, given['across']):.4f}" for part in parts)] for r in records]
    tell(["run", "weights", *parts], rows, paths)


@picture.command(cls=ListCommand)
@RUNS
@OUT
@NAME
@END
@PART
@click.option("--images", type=click.IntRange(1, 40), default=10, show_default=True, help="The classes in turn.")
@ROWS
@click.option(
    "--target",
    type=click.Choice(["label", "predicted"]),
    default="label",
    show_default=True,
    help="The class that is asked about.",
)
@click.option("--layer", help="By dotted name in the network.  [default: the last with a map]")
@DEVICE
@PLUGIN
def cam(
    runs: tuple[Path, ...],
    out: Path | None,
    names: tuple[str, ...],
    rows: tuple[str, ...],
    plugins: tuple[str, ...],
    **given: Any,
) -> None:
    """Grad-CAM: what in an image speaks for a class.

    A row for every run, the images themselves below.

    \b
    recdenoise vision picture cam runs/denll runs/normal --images 8 --out pictures
    """
    begin(plugins)
    from vision.pictures import write_cam

    records, paths = write_cam(runs, place(out, runs), names=names, rows=numbers(rows), **given)
    cells = []
    for record in records:
        inside = record.inside.nanmean().item()
        cells.append([record.name, record.end, record.layer, f"{record.probability.mean():.4f}", f"{inside:.4f}"])
    tell(["run", "weights", "layer", "mean probability", "share inside the box"], cells, paths)


@picture.command(cls=ListCommand)
@RUNS
@OUT
@NAME
@END
@PART
@click.option("--images", type=click.IntRange(1, 40), default=10, show_default=True, help="The classes in turn.")
@ROWS
@DEVICE
@PLUGIN
def masks(
    runs: tuple[Path, ...],
    out: Path | None,
    names: tuple[str, ...],
    rows: tuple[str, ...],
    plugins: tuple[str, ...],
    **given: Any,
) -> None:
    """DeNLL's masks, with the foregrounds and backgrounds that they cut out.

    \b
    recdenoise vision picture masks runs/denll --images 8 --out pictures
    """
    begin(plugins)
    from vision.pictures import write_masks

    records, paths = write_masks(runs, place(out, runs), names=names, rows=numbers(rows), **given)
    cells = [[r.name, r.end, f"{r.share.mean():.4f}", f"{r.share.min():.4f} to {r.share.max():.4f}"] for r in records]
    tell(["run", "weights", "mean share in front", "smallest to largest"], cells, paths)
