"""``recdenoise vision find-issues``. It imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from recdenoise.errors import UserError
from recdenoise.plugins import load_plugins

if TYPE_CHECKING:
    from recdenoise.detection import Detection
    from vision.issues import Issues


@click.command("find-issues")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Table, .csv or .parquet.  [default: RUN/issues.csv]")
@click.option("--sheet", type=click.Path(path_type=Path), help="Picture of the worst.  [default: RUN/issues.png]")
@click.option(
    "--images", type=click.IntRange(0, 400), default=48, show_default=True, help="Images on the sheet; 0 writes none."
)
@click.option("--top", type=click.IntRange(min=0), default=10, show_default=True, help="Print so many of the first.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Also write the measures here.")
@click.option("--device", default=None, help="cpu, cuda.  [default: a GPU where there is one]")
@click.option(
    "--plugin", "plugins", multiple=True, metavar="FILE|MODULE", help="Import this first: it registers a method."
)
def find_issues(
    run: Path,
    out: Path | None,
    sheet: Path | None,
    images: int,
    top: int,
    json_path: Path | None,
    device: str | None,
    plugins: tuple[str, ...],
) -> None:
    """Rank the labels that a run learned from by P(label is wrong).

    Writes all of them, the most suspect first, and a picture of the worst with given and predicted label. Where the
    true labels are known, it also says how well the ranking finds the wrong ones.

    \b
    recdenoise vision find-issues runs/vision/x
    recdenoise vision find-issues runs/vision/x --images 96 --out suspects.parquet
    """
    from vision.cli import console, prepare_process, title

    prepare_process()
    load_plugins(plugins)
    from recdenoise import checkpoint
    from recdenoise.reports import inspection
    from recdenoise.reports.terminal import plain_table
    from vision import issues
    from vision.experiment import load

    out, sheet = out or run / "issues.csv", sheet or run / "issues.png"
    if out.suffix not in inspection.FORMATS:
        raise UserError(f"--out {out} must end in {' or '.join(inspection.FORMATS)}.")
    if sheet.suffix != ".png":
        raise UserError(f"--sheet {sheet} must end in .png.")
    settings, prepared, loaded = load(run, device)
    found = issues.find(run, settings, prepared, loaded)
    known = found.wrong is not None and 0 < found.wrong.sum() < len(found.row)
    if json_path is not None and not known:
        raise UserError(f"{run}: which labels are wrong is not known, so --json has nothing to write.")
    inspection.write_table(found.table(), out)
    screen = console()
    shown = min(top, len(found.row))
    if shown:
        screen.print(f"the {shown} most suspect of {len(found.row):,} labels ({title(settings)}):")
        screen.print(plain_table(*top_rows(found, shown)))
    if known:
        measured = found.measure()
        screen.print(measures_text(measured["this ranking"]))
        screen.print(plain_table(*measure_rows(measured)))
        if json_path is not None:
            checkpoint.write_json(json_path, {name: value.to_dict() for name, value in measured.items()})
    else:
        screen.print("Which labels are wrong is not known here: no true labels stand beside them, or none differs.")
    screen.print(f"all of them: {out}", soft_wrap=True)
    if images:
        worst = f"the {min(images, len(found.row))} most suspect of {len(found.row):,} labels"
        frame = "; red frame: the label is wrong" if found.wrong is not None else ""
        issues.write_sheet(found, prepared, sheet, images, f"{worst} ({title(settings)}){frame}")
        screen.print(f"the worst as pictures: {sheet}", soft_wrap=True)


def top_rows(found: Issues, number: int) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the most suspect labels."""
    headings = ["rank", "row", "part", "given", "predicted", "P(wrong)"]
    headings += ["true"] if found.true is not None else []
    headings += ["file"] if found.files is not None else []
    rows = []
    for rank, place in enumerate(found.order[:number], 1):
        names = [found.name(int(values[place])) for values in (found.given, found.predicted)]
        part = "valid" if found.held_out[place] else "train"
        cells = [str(rank), str(found.row[place]), part, *names, f"{1 - float(found.clean_probability[place]):.4f}"]
        cells += [found.name(int(found.true[place]))] if found.true is not None else []
        cells += [found.files[place]] if found.files is not None else []
        rows.append(cells)
    return headings, rows


def measures_text(measured: Detection) -> str:
    """How many labels are known to be wrong."""
    share = measured.n_noise / measured.n_rows
    return f"known to be wrong: {measured.n_noise:,} of {measured.n_rows:,} labels ({share:.1%})"


def measure_rows(measured: dict[str, Detection]) -> tuple[list[str], list[list[str]]]:
    """Headings, then a line for each ranking and one for guessing."""
    from recdenoise.detection import share_name

    first = next(iter(measured.values()))
    guess = first.n_noise / first.n_rows
    lines = {name: [m.auc, m.average_precision, *m.precision.values()] for name, m in measured.items()}
    lines["guessing"] = [0.5, guess, *(guess for _ in first.precision)]
    headings = ["", "AUC", "average precision", *(f"precision at {share_name(s)}" for s in first.precision)]
    return headings, [[name, *(f"{value:.4f}" for value in values)] for name, values in lines.items()]
