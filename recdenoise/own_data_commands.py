"""Commands for data of one's own: `find-noise`, `corrupt`, `export`. They import what they need when they run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from recdenoise.errors import UserError
from recdenoise.plugins import load_plugins

if TYPE_CHECKING:
    import pandas as pd

    from recdenoise.detection import Detection

PLUGIN = click.option(
    "--plugin", "plugins", multiple=True, metavar="FILE|MODULE", help="Import this first: it registers a denoiser."
)
OUT = click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write to.")


@click.command("find-noise")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Table, .csv or .parquet.  [default: RUN/suspects.csv]")
@click.option("--top", type=click.IntRange(min=0), default=10, show_default=True, help="Print so many of the first.")
@click.option("--flag", metavar="COLUMN", help="Column of the training file: 1 is noise, 0 is none.")
@click.option("--clean", metavar="RULE", help="What is no noise: --clean 'rating >= 5'.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Also write the measures here.")
@PLUGIN
def find_noise(
    run: Path,
    out: Path | None,
    top: int,
    flag: str | None,
    clean: str | None,
    json_path: Path | None,
    plugins: tuple[str, ...],
) -> None:
    """Rank the training interactions by P(noise).

    Writes all of them, the most suspicious first, and prints the top. Where noise is known, by injection, rating or
    flag, it also says how well the ranking finds it.

    \b
    recdenoise find-noise runs/x --top 20
    recdenoise find-noise runs/x --clean 'rating >= 4' --out suspects.parquet
    """
    from recdenoise.cli import console, one_thread

    one_thread()
    load_plugins(plugins)
    from recdenoise import checkpoint
    from recdenoise.recbole_adapter.experiment import load
    from recdenoise.reports import inspection, suspects
    from recdenoise.reports.terminal import plain_table

    out = out or run / "suspects.csv"
    if out.suffix not in inspection.FORMATS:
        raise UserError(f"--out {out} must end in {' or '.join(inspection.FORMATS)}.")
    if flag is not None and clean is not None:
        raise UserError("Give --flag or --clean, not both.")
    loaded = load(run)
    known = suspects.known_noise(loaded, flag, clean)
    if known is None and json_path is not None:
        raise UserError(
            f"{run}: no noise is known, so --json has nothing to write; name a column by --flag or --clean."
        )
    measured = None if known is None else suspects.measure(loaded, known)
    table = suspects.suspect_table(loaded, known)
    inspection.write_table(table, out)
    screen = console()
    shown = min(top, len(table))
    if shown:
        screen.print(f"the {shown} most suspicious of {len(table):,} training interactions:")
        screen.print(plain_table(*suspect_rows(table.head(shown))))
    if measured is not None and known is not None:
        share = measured.n_noise / measured.n_rows
        screen.print(f"known noise: {known.words}, {measured.n_noise:,} of {measured.n_rows:,} rows ({share:.1%})")
        screen.print(plain_table(*measure_rows(measured)))
        if json_path is not None:
            record = {"known": known.words, **measured.to_dict()}
            checkpoint.write_json(json_path, record)
    else:
        screen.print("No noise is known here: no column says it, and no rating. --flag or --clean names a column.")
    screen.print(f"all of them: {out}", soft_wrap=True)


def suspect_rows(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Headings and cells for people."""
    columns = [name for name in table.columns if name != "row"]
    rows = []
    for rank, values in enumerate(table[columns].itertuples(index=False), 1):
        cells = [
            f"{v:.4f}" if name == "p_noise" else f"{v:g}" if isinstance(v, float) else str(v)
            for name, v in zip(columns, values, strict=True)
        ]
        rows.append([str(rank), *cells])
    return ["rank", *(name.replace("p_noise", "P(noise)") for name in columns)], rows


def measure_rows(measured: Detection) -> tuple[list[str], list[list[str]]]:
    """Headings, then a line for the ranking and one for guessing."""
    from recdenoise.detection import share_name

    share = measured.n_noise / measured.n_rows
    precision = [f"precision at {share_name(s)}" for s in measured.precision]
    found = [measured.auc, measured.average_precision, *measured.precision.values()]
    guess = [0.5, share, *(share for _ in measured.precision)]
    rows = [[name, *(f"{v:.4f}" for v in values)] for name, values in (("this ranking", found), ("guessing", guess))]
    return ["", "AUC", "average precision", *precision], rows


OWN_DATA = (find_noise,)
"""All of them."""
