"""``recdenoise vision bias-plot``. It imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("bias-plot")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Picture, .png.  [default: RUN/bias.png of the first run]")
@click.option("--stage", default=None, help="Of a method with several.  [default: the last]")
def bias_plot(runs: tuple[Path, ...], out: Path | None, stage: str | None) -> None:
    """Draw when runs learnt bias-aligned and bias-conflicting images, and what weights these had.

    For runs on images whose bias is known, such as colored-mnist. metrics.csv has the numbers.

    \b
    recdenoise vision bias-plot runs/vision/x
    recdenoise vision bias-plot runs/normal runs/lff --out bias.png
    """
    from vision.cli import console, prepare_process

    prepare_process()
    from recdenoise.reports.terminal import plain_table
    from vision.bias_plot import VIEWS, write_plot
    from vision.bias_views import KINDS

    out = out or runs[0] / "bias.png"
    found = write_plot(runs, out, stage)
    screen = console()
    rows = [
        [name, kind, *(f"{row[f'{kind}_{view}']:.4f}" if f"{kind}_{view}" in row else "–" for view in VIEWS)]
        for name, views in found
        for row in views[-1:]
        for kind in KINDS
    ]
    screen.print(plain_table(["run", "rows", *(f"{view}, last epoch" for view in VIEWS)], rows))
    screen.print(str(out), soft_wrap=True)
