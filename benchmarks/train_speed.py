"""Seconds of an epoch against the bare step and against RecBole, and of ranking against its bare parts, on ml-100k.

Run ``python -m benchmarks.train_speed``. Everything is measured in one process on one thread. The sides of a ratio take
turns, epoch by epoch, so that whatever else the machine does slows all of them, and a ratio is that of their medians.
An epoch of ours is the whole loop: drawing negatives, shuffling, training, summing up losses; without validation. The
yardstick is :mod:`benchmarks.reference` times the number of steps. Data: the published split (``paper``) of the copy in
RecBole's wheel, no download. The two absolute limits, on a step and on a whole command, are judged by processor time,
which on a machine of one's own is the time on the clock. Exit status: 1 when a requirement is missed, else 0;
``--quick`` judges nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.turns import HEADER, Figure, compare, processor

MODELS = ("GMF", "NeuMF", "LightGCN", "CDAE")
METHODS = ("normal", "deca", "deca_p")
MOST = {("GMF", "deca"): 1.6, ("GMF", "deca_p"): 1.6} | {(m, d): 1.3 for m in ("NeuMF", "LightGCN") for d in METHODS}
"""Required ratios of an epoch to the bare steps."""
WHOLE_RUN_SECONDS = 15.0
STEP_MILLISECONDS = 25.0
RANKINGS = 25
"""Repeats of what takes a few milliseconds."""
RUNS = 3
"""Of the whole command; their median counts."""


def epochs(folder: Path, models: Sequence[str], methods: Sequence[str], repeats: int) -> Iterator[Figure]:
    """Epochs of every model and method against the bare step; plain training against RecBole's trainer as well."""
    from benchmarks.sides import Bench
    from benchmarks.turns import Side, take_turns

    for model in models:
        bench = Bench.load(model, folder)
        for method in methods:
            denoiser, settings, bare = bench.denoiser(method), bench.settings(method), bench.bare(method)
            steps = bench.steps(denoiser)
            others: list[Side] = [partial(bare.epoch, steps)]
            if method == "normal":
                others.append(bench.recbole_epoch(settings.batch_size, len(steps)))
            taken = take_turns(denoiser, replace(settings.loop, seed=settings.seed), others, repeats)
            ours, theirs = taken.ours, taken.theirs
            yield compare(f"{model} {method}: epoch / bare steps", ours, theirs[0], MOST.get((model, method)))
            if method == "normal":
                yield compare(f"{model} {method}: epoch / RecBole's trainer", ours, theirs[1], 1.0)
            if (model, method) == ("LightGCN", "deca"):
                step = 1e3 * statistics.median(taken.processor) / len(steps)
                yield Figure("LightGCN deca: one step, processor time", step, None, step, STEP_MILLISECONDS, unit="ms")
        yield from ranking(bench, repeats)


def ranking(bench: object, repeats: int) -> Iterator[Figure]:
    """What comes after training, where something is required of it: full ranking, propagation."""
    from benchmarks import ranking_sides

    for name, sides, limit, at_least in ranking_sides.comparisons(bench):  # type: ignore[arg-type]
        ours, *others = ranking_sides.medians(sides, RANKINGS if repeats > 1 else 3, "cpu")
        best = min(others)
        yield Figure(name, ours, best, best / ours if at_least else ours / best, limit, at_least)


def whole_run(folder: Path) -> Iterator[Figure]:
    """The command that a person types, from process start to result; the first of the runs builds the data set."""
    if importlib.util.find_spec("recdenoise.cli") is None:
        print("GMF deca_p, the whole command: skipped, there is no recdenoise.cli")
        return
    options = ["--model", "GMF", "--dataset", "ml-100k", "--denoiser", "deca_p", "--preset", "paper"]
    command = [sys.executable, "-c", "from recdenoise.cli import main; main()", "train", *options]
    root = str(Path(__file__).resolve().parents[1])
    known = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "RECDENOISE_CACHE": str(folder / "cache"),
        "PYTHONPATH": os.pathsep.join(known),
        "OMP_NUM_THREADS": "1",
    }
    taken, processor = [], []
    for number in range(RUNS):
        begin, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        out = str(folder / f"run{number}")
        done = subprocess.run([*command, "--out", out], env=environment, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"recdenoise train failed:\n{done.stderr[-2000:]}")
        taken.append(time.perf_counter() - begin)
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor.append(now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime)
    seconds = statistics.median(processor)
    yield Figure("GMF deca_p: whole command, processor time", seconds, None, seconds, WHOLE_RUN_SECONDS)
    seconds = statistics.median(taken)
    yield Figure("GMF deca_p: whole command, start to result", seconds, None, seconds)


def choose_adam() -> str:
    """Measure torch's three Adams on a model's tables and say which the yardstick takes."""
    from benchmarks.reference import GMF, adam_seconds

    seconds = adam_seconds(list(GMF(944, 1683).parameters()))
    measured = ", ".join(f"{name} {1e6 * value:.0f} us" for name, value in seconds.items())
    note = "" if min(seconds, key=lambda name: seconds[name]) == "fused" else "; here another one is faster"
    return f"Adam on GMF's tables: {measured}; the bare step takes fused{note}"


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A temporary folder with the data; RecBole leaves its logs there and not where the command was typed."""
    import data_recipes

    with tempfile.TemporaryDirectory(prefix="train_speed_") as name, contextlib.chdir(name):
        data_recipes.build("ml-100k", Path(name) / "data")
        yield Path(name)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_speed", description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--repeats", type=int, default=5, help="counted epochs of every side (default 5)")
    parser.add_argument("--quick", action="store_true", help="one epoch of every side; ratios are not judged")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error("--repeats must be 1 or more")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and return the exit status."""
    options = parse(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # pandas and torch on RecBole's code
    target = options.json.resolve() if options.json else None
    import recdenoise.recbole_adapter  # noqa: F401  (repairs RecBole before anything else imports it)
    from recdenoise import checkpoint

    machine = {"torch": torch.__version__, "python": platform.python_version(), "processor": processor(), "threads": 1}
    print(f"$ python -m benchmarks.train_speed {shlex.join(sys.argv[1:] if arguments is None else arguments)}".rstrip())
    print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, load at the start {os.getloadavg()[0]:.1f}")
    print(f"torch {machine['torch']}, Python {machine['python']}, {machine['processor']}, one thread")
    print(choose_adam())
    print(HEADER, flush=True)
    figures: list[Figure] = []
    with workplace() as folder:
        measured = [
            epochs(
                folder / "data/paper/ml-100k", options.models, options.methods, 1 if options.quick else options.repeats
            )
        ]
        if "GMF" in options.models and "deca_p" in options.methods and not options.quick:
            measured.append(whole_run(folder))
        for some in measured:
            for figure in some:
                figures.append(figure)
                print(figure.line(), flush=True)
    missed = [figure.name for figure in figures if figure.missed]
    if target is not None:
        record = {"date": time.strftime("%Y-%m-%d"), "repeats": options.repeats, "quick": options.quick, **machine}
        checkpoint.write_json(target, {**record, "figures": [asdict(f) | {"missed": f.missed} for f in figures]})
    required = sum(figure.limit is not None for figure in figures)
    if options.quick:
        print(f"Quick run of {len(figures)} figures: too short to judge.")
        return 0
    if missed:
        print(f"MISSED {len(missed)} of {required} requirements: {'; '.join(missed)}.")
        return 1
    print(f"All {required} requirements are met.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
