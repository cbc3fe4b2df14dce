"""The command line. Heavy imports happen inside commands, so that help and mistakes answer at once."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from recdenoise import __version__
from recdenoise.data_commands import data
from recdenoise.errors import UserError
from recdenoise.mistakes import Group
from recdenoise.own_data_commands import OWN_DATA
from recdenoise.plugins import load_plugins
from recdenoise.reports.commands import benchmark, tune
from vision.cli import vision

if TYPE_CHECKING:
    from rich.console import Console

    from recdenoise.recbole_adapter.experiment import Run

EPILOG = "Bad input is answered in one sentence and exit code 2. Documentation: the docs folder of the project."


def console() -> Console:
    """Where tables and progress go; wide enough for a table when the output is a file."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 140, highlight=False)


def prepare_process() -> None:
    """What every command that works with torch does first: see the functions called."""
    one_thread()
    large_pages()
    ignore_foreign_warnings()


def one_thread() -> None:
    """One torch thread a process, before torch works, unless the user chose: two on busy cores stall each other."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    threads = os.environ["OMP_NUM_THREADS"].partition(",")[0]  # OpenMP takes a list, one entry a nesting level
    torch.set_num_threads(int(threads) if threads.isdigit() and int(threads) else 1)


def large_pages() -> None:
    """Have torch ask the system for large pages, where it is a Linux that has them and unless the user chose.

    The gradient of a large embedding table is new memory in every step, and the system clears it page by page: with
    200,000 users up to half of a step's time.
    """
    if Path("/sys/kernel/mm/transparent_hugepage/enabled").is_file():  # without them torch would warn
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it when it first allocates


def ignore_foreign_warnings() -> None:
    """What RecBole and torch-geometric call forth in torch stays out of the way: nobody here can act on it."""
    warnings.filterwarnings("ignore", category=UserWarning, module=r"recbole\.")
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", message=r".torch\.jit\..* is deprecated", category=category)


PLUGIN = click.option(
    "--plugin", "plugins", multiple=True, metavar="FILE|MODULE", help="Import this first: it registers a denoiser."
)


@click.group(
    cls=Group, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="recdenoise")
def cli() -> None:
    """Train recommenders through labels that lie.

    \b
    recdenoise train --model GMF --dataset ml-100k --denoiser deca_p --preset paper --compare normal
    """


@cli.command()
@click.option("--model", help="A model's name; `recdenoise models` lists them.")
@click.option("--dataset", help="A recipe's name (ml-100k) or a folder that `recdenoise data build` wrote.")
@click.option("--denoiser", help="A method's name; `recdenoise methods` lists them.  [default: normal]")
@click.option("--protocol", default=None, help="paper (as published) or clean (disjoint splits).  [default: paper]")
@click.option("--preset", default=None, help="paper: the settings of the published table cell.")
@click.option("--seed", type=int, default=None, help="Everything random follows from it.  [default: 2020]")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run.  [default: runs/...]")
@click.option("--config", "configs", multiple=True, metavar="FILE", help="A RecBole YAML file; later ones win.")
@click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="One option: epochs=5, denoiser.alpha=1."
)
@click.option("--compare", multiple=True, metavar="METHOD", help="Also train METHOD and print both.  [repeatable]")
@click.option("--resume", is_flag=False, flag_value="", default=None, metavar="[RUN]", help="Go on with --out or RUN.")
@click.option("--quiet", is_flag=True, help="No progress bars.")
@PLUGIN
def train(plugins: tuple[str, ...], resume: str | None, quiet: bool, compare: tuple[str, ...], **given: Any) -> None:
    """Train a model through a denoiser and test it on clean data.

    Writes config.yaml, metrics.csv (a row per epoch), checkpoint.pt, model.pt and result.json to the run's folder.

    \b
    recdenoise train --model LightGCN --dataset ml-100k --denoiser t_ce --set denoiser.drop_rate=0.1
    recdenoise train --resume runs/x
    """
    prepare_process()
    load_plugins(plugins)
    from recdenoise.recbole_adapter.experiment import RunResult
    from recdenoise.recbole_adapter.experiment import train as train_run
    from recdenoise.reports.terminal import ProgressObserver, metric_table

    screen = console()
    jobs = plan_runs(resume, compare, given)
    results: dict[str, RunResult] = {}
    for settings, out in jobs:
        label = f"{settings.model} + {settings.method.title}"
        observer = ProgressObserver(screen, label)
        observer.progress.disable = quiet
        with observer:
            results[settings.method.title] = train_run(settings, out, resume=resume is not None, observer=observer)
    first = jobs[0][0]
    where = f"{first.model} on {Path(first.dataset).name}, protocol {first.protocol}, seed {first.seed}, clean test"
    screen.print(metric_table(where, {name: result.test for name, result in reversed(results.items())}))
    for name, result in results.items():
        seconds = result.record["seconds"]
        times = ", ".join(f"{phase} {value:.1f} s" for phase, value in seconds.items())
        screen.print(f"{name}: {result.path}  ({times})", soft_wrap=True)


def plan_runs(resume: str | None, compare: tuple[str, ...], given: dict[str, Any]) -> list[tuple[Any, Path]]:
    """Settings and folders of the runs that a `train` command asks for, all checked before the first begins."""
    from recdenoise.recbole_adapter.dataset import check_dataset
    from recdenoise.recbole_adapter.experiment import check_out
    from recdenoise.recbole_adapter.settings import parse_assignments, read_settings, resolve

    if resume:  # a folder: everything else is in its config.yaml
        words = {"configs": "config", "assignments": "set"}
        extra = [f"--{words.get(name, name)}" for name, value in given.items() if value not in (None, ())]
        extra += ["--compare"] if compare else []
        if extra:
            raise UserError(f"--resume {resume} takes its settings from the run; leave out {', '.join(extra)}.")
        return [(read_settings(Path(resume)), Path(resume))]
    missing = [f"--{name}" for name in ("model", "dataset") if not given[name]]
    if missing:
        raise UserError(f"train needs {' and '.join(missing)}; see recdenoise train --help.")
    overrides = parse_assignments(given["assignments"])
    dataset = Path(given["dataset"]).resolve() if Path(given["dataset"]).is_dir() else Path(given["dataset"])
    jobs: list[tuple[Any, Path]] = []
    for index, denoiser in enumerate([given["denoiser"], *compare]):
        settings = resolve(
            given["model"],
            str(dataset),
            denoiser,
            protocol=given["protocol"],
            seed=given["seed"],
            preset=given["preset"],
            config_files=given["configs"],
            overrides=overrides,
            compared=index > 0,
        )
        name = f"{dataset.name}-{settings.protocol}-{settings.model}-{settings.method.name}-{settings.seed}"
        out = given["out"] or Path("runs") / name
        if index and given["out"]:
            out = out.with_name(f"{out.name}-{settings.method.name}")
        if out in [path for _, path in jobs]:
            raise UserError(f"--compare names {settings.method.name} twice.")
        jobs.append((settings, out))
    for settings, out in jobs:
        check_dataset(settings.dataset, settings.protocol)
        check_out(out, resume is not None)
    return jobs


@cli.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--topk", multiple=True, default=["3", "5", "10", "20"], show_default=True, help="Cut-offs: --topk 3 20.")
@click.option(
    "--metrics", default="recall,ndcg", show_default=True, help="Comma-separated: recall,ndcg,precision,mrr,hit."
)
@click.option("--protocol", default=None, help="How to count: paper or clean.  [default: the run's]")
@click.option("--unmasked", is_flag=True, help="Rank training and validation items too, as some published code does.")
@click.option(
    "--recommendations", type=click.Path(path_type=Path), help="Lists of any system: user,item,rank or score."
)
@click.option("--truth", type=click.Path(path_type=Path), help="Clean pairs to measure the lists against: user,item.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Also write the result here.")
@click.argument("more_cutoffs", nargs=-1)
@PLUGIN
def evaluate(plugins: tuple[str, ...], run: Path | None, json_path: Path | None, **given: Any) -> None:
    """Measure a run, or the recommendations of any other system.

    Recall and NDCG over clean pairs, by default; users seen and unseen in training apart where both exist.

    \b
    recdenoise evaluate runs/x --topk 3 20
    recdenoise evaluate --recommendations lists.csv --truth clean.csv --topk 10
    """
    prepare_process()
    load_plugins(plugins)
    from recdenoise import checkpoint
    from recdenoise.ranking import plan_metrics
    from recdenoise.reports.terminal import metric_table

    screen = console()
    topk, run = read_cutoffs(given.pop("topk"), given.pop("more_cutoffs"), run)
    metrics = [name.strip() for name in given["metrics"].split(",") if name.strip()]
    plan_metrics(metrics, topk)
    loaded: Run | None = None
    if given["recommendations"] or given["truth"]:
        if run is not None or not (given["recommendations"] and given["truth"]):
            raise UserError("Give either a run, or both --recommendations and --truth.")
        if given["unmasked"] or given["protocol"]:
            raise UserError("--protocol and --unmasked are for runs: a file of recommendations is counted as it is.")
        from recdenoise.recommendation_files import evaluate_files

        result = evaluate_files(given["recommendations"], given["truth"], topk, metrics)
        title = f"{given['recommendations']} against {given['truth']}"
    else:
        if run is None:
            raise UserError("Give the folder of a run, or --recommendations and --truth.")
        from recdenoise.recbole_adapter.dataset import check_protocol
        from recdenoise.recbole_adapter.experiment import load

        if given["protocol"] is not None:
            check_protocol(given["protocol"])
        loaded = load(run)
        masked = False if given["unmasked"] else None
        result = loaded.evaluate(topk, metrics, protocol=given["protocol"], masked=masked)
        title = f"{run}, protocol {given['protocol'] or loaded.data.protocol}"
    record = result.to_dict()
    if loaded is not None:
        record["unknown_test_rows"] = loaded.data.unknown_test_rows
    means: dict[str, dict[str, float]] = {"all": record["mean"]}
    means |= {name: record[name] for name in ("warm", "cold") if name in record}
    screen.print(metric_table(title, means))
    counts = {k: v for k, v in record.items() if isinstance(v, int) and v}
    screen.print("  ".join(f"{name.removeprefix('n_')}: {value}" for name, value in counts.items()))
    if json_path is not None:
        checkpoint.write_json(json_path, record)


def read_cutoffs(topk: tuple[str, ...], more: tuple[str, ...], run: Path | None) -> tuple[list[int], Path | None]:
    """``--topk 3 20`` puts 20 among the arguments: take whole numbers back from there, wherever the run stands."""
    words = ([] if run is None else [str(run)]) + list(more)
    runs = [word for word in words if not is_cutoff(word)] or [word for word in words if Path(word).is_dir()][:1]
    if len(runs) > 1:
        raise UserError(f"evaluate takes one run, not {' and '.join(runs)}; --topk takes whole numbers from 1.")
    words = [*topk, *(word for word in words if word not in runs)]
    cutoffs = []
    for part in " ".join(words).replace(",", " ").split():
        if not is_cutoff(part) or int(part) < 1:
            raise UserError(f"A cut-off is {part!r}; --topk takes whole numbers from 1.")
        cutoffs.append(int(part))
    return list(dict.fromkeys(cutoffs)), Path(runs[0]) if runs else None


def is_cutoff(word: str) -> bool:
    """Whether a word is a whole number."""
    return word.isascii() and word.isdigit()


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("more_users", nargs=-1)
@click.option("--users", multiple=True, required=True, help="Users by their tokens: --users 1 42.")
@click.option("--k", type=click.IntRange(min=1), default=10, show_default=True, help="Items for each user.")
@PLUGIN
def recommend(plugins: tuple[str, ...], run: Path, users: tuple[str, ...], more_users: tuple[str, ...], k: int) -> None:
    """Print the best new items of some users, by token.

    The score is the probability that the user likes the item.

    \b
    recdenoise recommend runs/x --users 1 42 --k 10
    """
    prepare_process()
    load_plugins(plugins)
    from recdenoise.recbole_adapter.experiment import load
    from recdenoise.reports.terminal import plain_table

    words = [str(run), *more_users]
    if not run.is_dir():  # recommend --users 1 42 RUN puts 42 first
        run = next((Path(word) for word in more_users if (Path(word) / "config.yaml").is_file()), run)
    words.remove(str(run))
    loaded = load(run)
    rows = []
    for user, items in loaded.recommend([*users, *words], k):
        rows += [[user, str(rank), item, f"{score:.3f}"] for rank, (item, score) in enumerate(items, 1)]
    console().print(plain_table(["user", "rank", "item", "score"], rows))


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Table, .parquet or .csv.  [default: RUN/p_clean.parquet]")
@click.option("--plot", type=click.Path(path_type=Path), help="Picture.  [default: RUN/p_clean_by_rating.png]")
@PLUGIN
def inspect(plugins: tuple[str, ...], run: Path, out: Path | None, plot: Path | None) -> None:
    """Say of every training interaction how likely it is a like.

    Writes P(y = 1 | observed) as a table, and its mean per rating as a picture.

    \b
    recdenoise inspect runs/x
    recdenoise inspect runs/x --out p_clean.csv --plot p_clean.png
    """
    prepare_process()
    load_plugins(plugins)
    from recdenoise.recbole_adapter.experiment import load
    from recdenoise.reports import inspection
    from recdenoise.reports.terminal import plain_table

    out, plot = out or run / "p_clean.parquet", plot or run / "p_clean_by_rating.png"
    if out.suffix not in inspection.FORMATS:
        raise UserError(f"--out {out} must end in {' or '.join(inspection.FORMATS)}.")
    if plot.suffix != ".png":
        raise UserError(f"--plot {plot} must end in .png.")
    loaded = load(run)
    table = inspection.probability_table(loaded)
    inspection.write_table(table, out)
    screen = console()
    screen.print(f"{len(table)} interactions: {out}", soft_wrap=True)
    if "rating" not in table:
        screen.print("No ratings in the data set, so no picture.")
        return
    settings = loaded.settings
    title = f"{settings.model} + {settings.method.title} on {loaded.data.name}"
    inspection.plot_per_rating(table, title, plot)
    means = inspection.mean_per_rating(table)
    rows = [[r.rating, f"{r.mean:.4f}", str(r.count)] for r in means.itertuples(index=False, name="Row")]
    screen.print(plain_table(["rating", "mean P(y=1|observed)", "interactions"], rows))
    screen.print(f"picture: {plot}", soft_wrap=True)


@cli.command()
@PLUGIN
def methods(plugins: tuple[str, ...]) -> None:
    """List the denoisers, with their papers."""
    load_plugins(plugins)
    from recdenoise import denoisers
    from recdenoise.reports.terminal import plain_table

    rows = [[n, (m := denoisers.get(n)).title, m.summary, m.paper] for n in denoisers.names()]
    console().print(plain_table(["name", "method", "what it does", "paper"], rows))


@cli.command()
def models() -> None:
    """List the models that a denoiser can train."""
    from recdenoise.recbole_adapter.models import MODELS
    from recdenoise.recbole_adapter.scorers import supported_models
    from recdenoise.reports.terminal import plain_table

    rows = [[name, entry.summary, entry.paper] for name, entry in MODELS.items()]
    rows += [[name, "RecBole's", "see RecBole's documentation"] for name in supported_models() if name not in MODELS]
    console().print(plain_table(["name", "what it computes", "paper"], rows))


cli.add_command(benchmark)
cli.add_command(data)
cli.add_command(tune)
for own in OWN_DATA:
    cli.add_command(own)
cli.add_command(vision)

main: Callable[[], Any] = cli

if __name__ == "__main__":
    main()
