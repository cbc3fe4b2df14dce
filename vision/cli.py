"""``recdenoise vision``: train and measure image classifiers. Heavy imports happen inside commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from recdenoise.errors import UserError
from recdenoise.mistakes import Group
from recdenoise.plugins import load_plugins
from vision.benchmark_commands import benchmark
from vision.bias_commands import bias_plot
from vision.issue_commands import find_issues
from vision.picture_commands import picture
from vision.show_commands import show

if TYPE_CHECKING:
    from rich.console import Console

    from recdenoise.parallel import Parallel
    from vision.settings import Settings

PLUGIN = click.option(
    "--plugin", "plugins", multiple=True, metavar="FILE|MODULE", help="Import this first: it registers a method."
)


def console() -> Console:
    """Where tables and progress go; wide enough for a table when the output is a file."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 140, highlight=False)


def prepare_process() -> None:
    """What every command of recdenoise that works with torch does first."""
    from recdenoise import cli

    cli.prepare_process()


@click.group(cls=Group)
def vision() -> None:
    """Train image classifiers through labels that lie.

    \b
    recdenoise vision train --dataset fashion-mnist --method deca_p --network resnet32 --noise symmetric:0.4
    """


@vision.command()
@click.option("--dataset", help="A name (fashion-mnist, cifar10, ...), an .npz file or a folder of images by class.")
@click.option("--method", default=None, help="`recdenoise vision methods` lists them.  [default: deca_p]")
@click.option("--network", default=None, help="resnet20, resnet32, preact18, cnn9, mlp, ...  [default: resnet32]")
@click.option("--noise", default=None, metavar="KIND:RATE", help="Add label noise, for example symmetric:0.4.")
@click.option("--seed", type=int, default=None, help="Everything random follows from it.  [default: 0]")
@click.option(
    "--valid", type=float, default=None, help="Share or number of images that choose the epoch.  [default: 0.2]"
)
@click.option(
    "--clean", type=int, default=None, help="Trusted images for methods that learn from some.  [default: 1000]"
)
@click.option("--images", type=int, default=None, help="Use only so many training images.  [default: all]")
@click.option("--root", default=None, help="Folder of data sets.  [default: $RECDENOISE_DATA/vision, the cache]")
@click.option("--masks", default=None, metavar="PATH", help="Folder or .npz of masks of the images' contents.")
@click.option("--image-size", type=int, default=None, help="Side that images of a folder are brought to.")
@click.option("--workers", type=int, default=None, help="Processes that read a folder ahead.  [default: threads]")
@click.option("--skip-unreadable", is_flag=True, default=None, help="Leave out image files that cannot be read.")
@click.option("--epochs", type=int, default=None, help="Sweeps over the training set in a stage.  [default: 120]")
@click.option(
    "--amp", type=click.Choice(["fp32", "bf16"]), default=None, help="Precision of networks.  [default: fp32]"
)
@click.option("--compile", "compiled", is_flag=True, default=None, help="Compile the networks.")
@click.option("--device", default=None, help="cpu, cuda, cuda:1.  [default: a GPU where there is one]")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="One option: lr=0.01, method.c_1=10.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run.  [default: runs/vision/...]")
@click.option("--resume", is_flag=False, flag_value="", default=None, metavar="[RUN]", help="Go on with --out or RUN.")
@click.option("--probe", is_flag=True, help="Record the test accuracy of every epoch; it never chooses.")
@click.option("--quiet", is_flag=True, help="No progress bars.")
@PLUGIN
@click.pass_obj
def train(
    parallel: Parallel | None,
    plugins: tuple[str, ...],
    resume: str | None,
    probe: bool,
    quiet: bool,
    out: Path | None,
    **given: Any,
) -> None:
    """Train a classifier on noisy labels and test it.

    Writes config.yaml, metrics.csv (a row per epoch), checkpoint.pt, model.pt, labels.npz (how likely each label is
    right) and result.json to the run's folder.

    \b
    recdenoise vision train --dataset fashion-mnist --method gce --network cnn9 --noise pairflip:0.3 --set method.q=0.5
    recdenoise vision train --resume runs/vision/x

    Several GPUs: torchrun --nproc-per-node 4 -m vision.train, with the same options.
    """
    prepare_process()
    load_plugins(plugins)
    settings, out = plan(resume, given, out)
    from recdenoise.parallel import ALONE
    from vision import distributed
    from vision.experiment import check_out
    from vision.experiment import train as train_run
    from vision.progress import Progress

    parallel = parallel or ALONE
    distributed.check(settings, parallel)
    if not parallel.main:
        train_run(settings, out, resume=resume is not None, probe=probe, parallel=parallel)
        return
    check_out(out, resume is not None)
    screen = console()
    label = f"{settings.network} + {settings.method.title}"
    observer = Progress(screen, label, settings.options.batch_size, settings.options.torch_device())
    observer.progress.disable = quiet
    with observer:
        result = train_run(settings, out, resume=resume is not None, probe=probe, observer=observer, parallel=parallel)
    record = result.record
    screen.print(title(settings), soft_wrap=True)
    screen.print(accuracy_table(record))
    times = ", ".join(f"{phase} {value:.1f} s" for phase, value in record["seconds"].items())
    screen.print(f"{settings.method.title}: {result.path}  ({times})", soft_wrap=True)


def plan(resume: str | None, given: dict[str, Any], out: Path | None) -> tuple[Settings, Path]:
    """Settings and folder of the run that a `train` command asks for."""
    from vision.data import derived
    from vision.settings import parse_assignments, read_settings, resolve

    if resume:  # a folder: everything else is in its config.yaml
        words = {"assignments": "set", "compiled": "compile"}
        extra = [f"--{words.get(name, name)}" for name, value in given.items() if value not in (None, ())]
        extra += ["--out"] if out is not None else []
        if extra:
            raise UserError(f"--resume {resume} takes its settings from the run; leave out {', '.join(extra)}.")
        return read_settings(Path(resume)), Path(resume)
    if not given["dataset"]:
        raise UserError("train needs --dataset; see recdenoise vision train --help.")
    run_options, method_options = parse_assignments(given.pop("assignments"))
    direct = {"epochs": given.pop("epochs"), "precision": given.pop("amp"), "compile": given.pop("compiled")}
    direct["device"] = given.pop("device")
    run_options |= {name: value for name, value in direct.items() if value is not None}
    names = {"dataset": given.pop("dataset"), "method": given.pop("method") or "deca_p"}
    names["network"] = given.pop("network") or "resnet32"
    names["dataset"] = derived.absolute(names["dataset"])
    valid = given.get("valid")
    if valid is not None and valid >= 1 and valid == int(valid):
        given["valid"] = int(valid)
    if given.get("masks") is not None:
        given["masks"] = str(Path(given["masks"]).resolve())
    places = {name: value for name, value in given.items() if value is not None}
    settings = resolve(**names, run_options=run_options, method_options=method_options, **places)
    if out is None:
        noise = (settings.noise or "as-given").replace(":", "-")
        name = f"{derived.slug(settings.dataset)}-{noise}-{settings.network}-{settings.method.name}-{settings.seed}"
        out = Path("runs") / "vision" / name
    return settings, out


def title(settings: Settings) -> str:
    """What a table of results is of."""
    noise = settings.noise or "labels as given"
    from vision.data import derived

    return f"{settings.network} on {derived.title(settings.dataset)}, {noise}, seed {settings.seed}"


def accuracy_table(record: dict[str, Any]) -> Any:
    """Accuracy at both ends, in per cent, on every set that was measured."""
    from rich.table import Table

    table = Table()
    for column, side in (("accuracy", "left"), ("last", "right"), ("best_val", "right")):
        table.add_column(column, justify=side)  # type: ignore[arg-type]
    names = {"test": "test", "valid": "validation (given labels)", "data": "data"}
    rows = {(title, "accuracy"): record[name] for name, title in names.items() if name in record}
    for name, values in record.get("tests", {}).items():
        rows[f"test, {name}", "accuracy"] = values
    for name in ("test", "data"):
        if "unbiased_accuracy" in record.get(name, {}).get("last", ()):
            rows[f"{name}, mean over class and bias", "unbiased_accuracy"] = record[name]
    for (title, value), values in rows.items():
        table.add_row(title, *[f"{100 * values[end][value]:.2f} %" for end in ("last", "best_val")])
    return table


@vision.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--dataset", default=None, help="Other labelled images: a name, an .npz or a folder.  [default: the run's]"
)
@click.option("--split", default="test", show_default=True, help="Which part of it: train or test.")
@click.option("--root", default=None, help="Folder of data sets, for --dataset.  [default: the run's]")
@click.option("--masks", default=None, metavar="PATH", help="Folder or .npz of masks of --dataset's contents.")
@click.option("--device", default=None, help="cpu, cuda.  [default: a GPU where there is one]")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Also write the result here.")
@PLUGIN
def evaluate(
    plugins: tuple[str, ...],
    run: Path,
    dataset: str | None,
    split: str,
    root: str | None,
    masks: str | None,
    device: str | None,
    json_path: Path | None,
) -> None:
    """Measure a run again, or on other labelled images, at its last and at its best_val weights.

    \b
    recdenoise vision evaluate runs/vision/x
    recdenoise vision evaluate runs/vision/x --dataset mine.npz
    recdenoise vision evaluate runs/vision/cit --dataset photos --masks masks
    """
    prepare_process()
    load_plugins(plugins)
    from recdenoise import checkpoint
    from vision import data
    from vision.experiment import load
    from vision.fitting import load_set

    if dataset is None and (root or masks):
        raise UserError(f"{'--root' if root else '--masks'} is of other images: name them by --dataset.")
    settings, prepared, loaded = load(run, device)
    if dataset is None:
        record: dict[str, Any] = loaded.measure_all()
    else:
        n_classes = prepared.train.n_classes
        reading: dict[str, Any] = {"image_size": settings.image_size, "skip_unreadable": settings.skip_unreadable}
        reading |= {"root": root or settings.root, "masks": masks, "trains": False}
        found = data.load(dataset, split=split, n_classes=n_classes, **reading)
        other = load_set(found, dataset, prepared.train)
        record = {"data": loaded.measure(other.to(loaded.task.device))}
        parts = {name: loaded.measure(part.to(loaded.task.device)) for name, part in data.bias.parts(other).items()}
        record |= {"tests": parts} if parts else {}
    screen = console()
    screen.print(title(settings), soft_wrap=True)
    screen.print(accuracy_table(record))
    if json_path is not None:
        checkpoint.write_json(json_path, record)


@vision.command()
@PLUGIN
def methods(plugins: tuple[str, ...]) -> None:
    """List the methods, with their papers."""
    load_plugins(plugins)
    from recdenoise.reports.terminal import plain_table
    from vision import methods as table

    rows = [[n, (m := table.get(n)).title, m.summary, m.paper] for n in table.names()]
    console().print(plain_table(["name", "method", "what it does", "paper"], rows))


vision.add_command(find_issues)
vision.add_command(bias_plot)
vision.add_command(show)
vision.add_command(benchmark)
vision.add_command(picture)
