"""Commands for data of one's own: `find-noise`, `corrupt`, `export`. They import what they need when they run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from recdenoise.errors import UserError
from recdenoise.plugins import load_plugins
from recdenoise.reports.commands import (
    PLUGIN as PLUGIN_OF_RUNS,
)
from recdenoise.reports.commands import (
    REPORT_ONLY,
    SEEDS,
    SET,
    WORKERS,
    ListCommand,
    benchmark,
    check_report,
    list_option,
    run_with_progress,
    tell_failures,
    typed_command,
)

if TYPE_CHECKING:
    import pandas as pd

    import data_recipes
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
    from recdenoise.cli import console, prepare_process

    prepare_process()
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
    rarity = None if known is None else suspects.measure_rarity(loaded, known)
    table = suspects.suspect_table(loaded, known)
    inspection.write_table(table, out)
    screen = console()
    shown = min(top, len(table))
    if shown:
        screen.print(f"the {shown} most suspicious of {len(table):,} training interactions:")
        screen.print(plain_table(*suspect_rows(table.head(shown))))
    if known is not None and measured is not None and rarity is not None:
        share = measured.n_noise / measured.n_rows
        screen.print(f"known noise: {known.words}, {measured.n_noise:,} of {measured.n_rows:,} rows ({share:.1%})")
        screen.print(plain_table(*measure_rows(measured, rarity)))
        if json_path is not None:
            checkpoint.write_json(json_path, suspects.detection_record(loaded, known))
    else:
        screen.print(f"{suspects.nothing_known(loaded)} --flag or --clean names a column.", soft_wrap=True)
    screen.print(f"all of them: {out}", soft_wrap=True)


def suspect_rows(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Headings and cells for people."""
    columns = [name for name in table.columns if name != "row"]
    rows = []
    for rank, values in enumerate(table[columns].itertuples(index=False), 1):
        cells = [
            f"{v:.4f}" if name == "p_noise" else str(v) if not isinstance(v, float) else f"{v:g}" if v == v else ""
            for name, v in zip(columns, values, strict=True)
        ]
        rows.append([str(rank), *cells])
    return ["rank", *(name.replace("p_noise", "P(noise)") for name in columns)], rows


def measure_rows(measured: Detection, rarity: Detection) -> tuple[list[str], list[list[str]]]:
    """Headings, then a line for the ranking, one for taking the rarest items first and one for guessing."""
    from recdenoise.detection import share_name

    share = measured.n_noise / measured.n_rows
    lines = {
        name: [found.auc, found.average_precision, *found.precision.values()]
        for name, found in (("this ranking", measured), ("rarest items first", rarity))
    }
    lines["guessing"] = [0.5, share, *(share for _ in measured.precision)]
    headings = ["", "AUC", "average precision", *(f"precision at {share_name(s)}" for s in measured.precision)]
    return headings, [[name, *(f"{value:.4f}" for value in values)] for name, values in lines.items()]


@click.command()
@click.argument("dataset")
@click.option("--rate", type=float, required=True, help="Share of noise in the new training set, between 0 and 1.")
@click.option("--kind", default="random", show_default=True, help="random, popular or per-user.")
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same noise.")
@OUT
@click.option("--protocol", help="paper or clean.  [default: paper, or the folder's only one]")
@click.option("--also-valid", is_flag=True, help="Corrupt the validation set at the same rate, too.")
def corrupt(dataset: str, rate: float, kind: str, seed: int, out: Path, protocol: str | None, also_valid: bool) -> None:
    """Inject known noise into a copy of a data set.

    The noise is pairs that no file of the data set has, marked by 1 in the column `injected` of the training file.
    find-noise then measures how well a run finds it.

    \b
    recdenoise corrupt ml-100k --rate 0.2 --kind random --seed 0 --out noisy
    recdenoise train --model GMF --dataset noisy --denoiser deca_p --preset paper
    """
    from recdenoise import noise, own_data
    from recdenoise.cli import prepare_process

    prepare_process()
    from recdenoise.recbole_adapter.dataset import default_protocol, find_folder

    noise.check(rate, kind)
    folder = find_folder(dataset, protocol or default_protocol(dataset))
    source = own_data.read_folder(folder)
    show_folder(own_data.corrupted(source, rate=rate, kind=kind, seed=seed, also_valid=also_valid), out)


def show_folder(folder: data_recipes.Folder, out: Path) -> None:
    """Write a copy of a data set and say what it holds."""
    import data_recipes
    from recdenoise import own_data
    from recdenoise.cli import console
    from recdenoise.recbole_adapter.dataset import default_protocol
    from recdenoise.reports.terminal import plain_table

    written = own_data.write(folder, out)
    screen = console()
    manifest = data_recipes.load_manifest(written)
    title = f"{manifest['recipe']}, protocol {manifest['protocol']}"
    screen.print(plain_table(data_recipes.SUMMARY_COLUMNS, data_recipes.summary_rows(manifest), title))
    screen.print(f"note: {manifest['notes'][-1]}", soft_wrap=True)
    own = manifest["protocol"]
    protocol = "" if default_protocol(str(out)) == own else f" --protocol {own}"
    screen.print(f"wrote {written}; train on it by --dataset {out}{protocol}", soft_wrap=True)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--drop", type=float, help="Leave out this share of the rows, the most suspicious: --drop 0.05.")
@click.option("--weights", is_flag=True, help="Keep all rows and add P(y = 1 | observed) as the column `weight`.")
@OUT
@PLUGIN
def export(run: Path, drop: float | None, weights: bool, out: Path, plugins: tuple[str, ...]) -> None:
    """Write the training set without its suspects, or with weights.

    The data set of the run is copied as RecBole's atomic files; validation and test stay as they are.

    \b
    recdenoise export runs/x --drop 0.05 --out cleaner
    recdenoise train --model LightGCN --dataset cleaner --denoiser normal
    """
    from recdenoise import own_data
    from recdenoise.cli import prepare_process

    if (drop is None) != weights:
        raise UserError("Give --drop SHARE or --weights" + (", not both." if weights else "."))
    if drop is not None:
        own_data.check_share(drop)
    prepare_process()
    load_plugins(plugins)
    from recdenoise.recbole_adapter.experiment import load
    from recdenoise.reports import inspection, suspects

    loaded = load(run)
    suspects.train_columns(loaded)  # rows of the run are rows of the file, or it says so
    probability = inspection.probability_table(loaded)["p_clean"].to_numpy()
    by = {"model": loaded.settings.model, "denoiser": loaded.settings.method.name, "seed": loaded.settings.seed}
    source = own_data.read_folder(loaded.data.folder)
    show_folder(own_data.exported(source, probability, drop, by), out)


@benchmark.command(cls=ListCommand)
@click.option("--dataset", default="ml-100k", show_default=True, help="A recipe's name or a folder that one built.")
@list_option("--models", help="Models.  [default: GMF NeuMF CDAE LightGCN]")
@list_option("--methods", help="Denoisers.  [default: all seven]")
@click.option("--rate", type=float, default=0.2, show_default=True, help="Share of noise among the training rows.")
@click.option("--kind", default="random", show_default=True, help="random, popular or per-user.")
@SEEDS
@WORKERS
@click.option("--protocol", default="clean", show_default=True, help="paper or clean.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the runs.  [default: runs/detection]")
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    help="The report's files without their endings.  [default: docs/results/detection-DATASET-KIND-RATE]",
)
@REPORT_ONLY
@SET
@PLUGIN_OF_RUNS
@click.pass_context
def detection(ctx: click.Context, dataset: str, rate: float, kind: str, **given: Any) -> None:
    """Inject noise, then see which method finds it.

    Also measured: how much of its recall on clean data each method keeps. Every method runs twice with each seed, on
    the data set as it is and on a noisy copy.

    \b
    recdenoise benchmark detection --models GMF LightGCN --rate 0.2 --kind random --seeds 3 --workers 2
    """
    from recdenoise import noise
    from recdenoise.cli import console, prepare_process

    noise.check(rate, kind)
    prepare_process()
    load_plugins(given["plugins"])
    from recdenoise.recbole_adapter.settings import parse_assignments
    from recdenoise.reports import detection as experiment

    if given["report"] is not None:
        check_report(given["report"])
    injected = experiment.Noise(dataset, given["protocol"], rate, kind)
    out = given["out"] or Path("runs") / "detection"
    grids = experiment.plan(
        injected,
        out,
        models=given["models"],
        methods=given["methods"],
        n_seeds=given["seeds"],
        options=parse_assignments(given["assignments"]),
        plugins=given["plugins"],
        build=not given["report_only"],
    )
    name = f"detection-{grids.plain[0].dataset}-{injected.name}"
    jobs = grids.jobs()
    failed = {} if given["report_only"] else run_with_progress(jobs, given["workers"])
    paths, lines = experiment.write_report(
        grids, given["report"] or Path("docs") / "results" / name, typed_command(ctx)
    )
    screen = console()
    for line in lines:
        screen.print(line, soft_wrap=True)
    screen.print("report: " + ", ".join(map(str, paths)), soft_wrap=True)
    tell_failures(failed)


OWN_DATA = (find_noise, corrupt, export)
"""All of them."""
