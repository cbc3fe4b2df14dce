"""Seconds and memory on interactions of Electronics' shape: 1,157,633 users, 9,560 items, 1,292,954 rows, a long tail.

Run: ``python -m benchmarks.electronics_shape [--scale 1] [--report FILE]``. The rows are generated: their times and
sizes say something, their metrics nothing. Every step is a process of its own, so that its peak memory is its own.
Limits on seconds hold for processor time, which other work on the machine does not change.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

N_USERS, N_ITEMS, N_ROWS = 1_157_633, 9_560, 1_292_954
FIVES = 0.585
"""Share of the rating 5 in the published valid and test files."""
BATCH, REPEATS = 2048, 5
COLUMNS = "item_id,user_id,rating,timestamp,model_attr,category,brand,year,user_attr,split"
GIB = 1 << 30


@dataclass(frozen=True)
class Figure:
    """One measured value; ``limit`` is what it must not pass."""

    name: str
    value: float
    unit: str
    limit: float | None = None

    @property
    def missed(self) -> bool:
        """Whether it passes its limit."""
        return self.limit is not None and self.value > self.limit

    def line(self) -> str:
        """The figure as a line of the table."""
        required = "" if self.limit is None else f"<= {self.limit:g} {self.unit}{'  MISSED' if self.missed else ''}"
        return f"{self.name:<58} {self.value:>12,.2f} {self.unit:<5} {required}".rstrip()


def shape(scale: float) -> tuple[int, int, int]:
    """Users, items and rows at a scale."""
    return max(int(N_USERS * scale), 200), max(int(N_ITEMS * scale), 60), max(int(N_ROWS * scale), 240)


def generate(path: Path, scale: float, seed: int = 0) -> None:
    """Write a csv in the publisher's layout: every user and item occurs, both have a long tail, no pair twice."""
    n_users, n_items, n_rows = shape(scale)
    rng = np.random.default_rng(seed)
    tail = np.arange(1, n_items + 1) ** -0.9
    tail /= tail.sum()
    pairs = np.arange(n_users) * n_items + rng.choice(n_items, n_users, p=tail)
    pairs[:n_items] = np.arange(n_items) * n_items + np.arange(n_items)
    while len(pairs) < n_rows:  # some users come again, few of them often
        again = (n_users * rng.random(n_rows) ** 3).astype(np.int64) * n_items + rng.choice(n_items, n_rows, p=tail)
        new = np.setdiff1d(again, pairs)
        pairs = np.concatenate([pairs, rng.permutation(new)[: n_rows - len(pairs)]])
    pairs = rng.permutation(pairs)
    ratings = np.where(rng.random(n_rows) < FIVES, 5, rng.integers(1, 5, n_rows))
    days = rng.integers(0, 28, n_rows) + 1
    columns = zip((pairs % n_items).tolist(), (pairs // n_items).tolist(), ratings.tolist(), days.tolist(), strict=True)
    with path.open("w", encoding="utf-8") as file:
        file.write(COLUMNS + "\n")
        for item, user, rating, day in columns:
            file.write(f"{item},{user},{rating},2015-06-{day:02d} 00:00:00+00:00,Female,Headphones,,2012,,0\n")


def recipe(folder: Path, scale: float) -> list[Figure]:
    """Build the data set from the csv."""
    import data_recipes
    from data_recipes import market_bias

    n_users, n_items, n_rows = shape(scale)
    reference = {**market_bias.ELECTRONICS.reference, "users": n_users, "items": n_items, "rows": n_rows}
    shop = dataclasses.replace(market_bias.ELECTRONICS, reference=reference, users=n_users)
    made = market_bias.shop_recipe(shop)
    begin, worked = time.perf_counter(), time.process_time()
    (built,) = data_recipes.build(made, folder / "data", folder, ["clean"])
    taken, worked = time.perf_counter() - begin, time.process_time() - worked
    train = data_recipes.load_manifest(built)["splits"]["train"]
    return [
        Figure("recipe: csv to folder", taken, "s"),
        Figure("recipe: processor time", worked, "s", 60.0),
        Figure("recipe: peak memory", peak(), "GiB", 3.0),
        Figure("recipe: rows of train", train["rows"], "rows"),
    ]


def settings(folder: Path, model: str, method: str) -> Any:
    """One epoch of a model under the published settings of its cell."""
    from recdenoise.recbole_adapter.settings import resolve

    options = {"epochs": 1, "use_gpu": False}
    return resolve(model, str(folder / "data"), method, protocol="clean", preset="paper", overrides=options)


def train(folder: Path, scale: float) -> list[Figure]:
    """One epoch of GMF with DeCA(p), prior included, then a full ranking of all users of the clean test.

    Without checkpoints: those of a run are written once a minute or so, and here have gigabytes.
    """
    from recdenoise.cli import prepare_process
    from recdenoise.loop import Loop
    from recdenoise.recbole_adapter import experiment

    prepare_process()
    chosen = settings(folder, "GMF", "deca_p")
    begin = time.perf_counter()
    run = experiment.prepare(chosen)
    prepared = time.perf_counter() - begin
    worked = time.process_time()
    history = Loop(run.denoiser, run.task, chosen.loop, validate=run.validation).run()
    worked = time.process_time() - worked
    figures = [
        Figure("GMF + DeCA(p): reading the data, building the networks", prepared, "s"),
        *(Figure(f"GMF + DeCA(p): one epoch, {row['stage']}", row["seconds"], "s") for row in history),
        Figure("GMF + DeCA(p): both epochs, processor time", worked, "s"),
        Figure("GMF + DeCA(p): peak memory of training", peak(), "GiB", 10.0),
    ]
    begin, worked = time.perf_counter(), time.process_time()
    measured = run.evaluate(protocol="paper").to_dict()
    taken, worked = time.perf_counter() - begin, time.process_time() - worked
    return [
        *figures,
        Figure("full ranking: users", measured["n_users"], "users"),
        Figure("full ranking of all items for them", taken, "s"),
        Figure("full ranking: processor time", worked, "s"),
        Figure("full ranking: peak memory, training included", peak(), "GiB", 10.0),
    ]


def graph(folder: Path, scale: float) -> list[Figure]:
    """LightGCN's graph from the training pairs, and its steps against those of a plain LightGCN.

    The plain one propagates all nodes in every layer; both have the same pairs, the same loss and no optimiser.
    """
    import torch
    import torch.nn.functional as F

    from benchmarks import reference
    from recdenoise.cli import prepare_process
    from recdenoise.recbole_adapter.dataset import load_split
    from recdenoise.recbole_adapter.models.graph import bipartite_graph, propagate_pairs

    prepare_process()
    data = load_split("LightGCN", str(folder / "data"), "clean", settings(folder, "LightGCN", "normal").options)
    n_users, n_items = data.truth.n_users, data.truth.n_items
    pair = data.train[0][:2] * 0 + 1
    bipartite_graph(pair, pair, 2, 2)  # imports torch-geometric
    begin, worked = time.perf_counter(), time.process_time()
    built = bipartite_graph(*data.train, n_users, n_items)
    taken, worked = time.perf_counter() - begin, time.process_time() - worked
    built_peak = peak()

    torch.manual_seed(0)
    plain = reference.LightGCN(reference.adjacency(*data.train, n_users, n_items), n_users, n_items)
    rows = torch.randint(len(data.train[0]), (BATCH,))
    users, items = data.train[0][rows].repeat(2), torch.cat([data.train[1][rows], torch.randint(n_items, (BATCH,))])
    label = torch.cat([torch.ones(BATCH), torch.zeros(BATCH)])

    def ours() -> torch.Tensor:
        by_user, by_item = propagate_pairs(built, plain.user, plain.item, plain.n_layers, (users, items))
        return (by_user * by_item).sum(1)

    def theirs() -> torch.Tensor:
        nodes = plain.propagate()
        return (nodes.index_select(0, users) * nodes.index_select(0, items + n_users)).sum(1)

    seconds: dict[Callable[[], torch.Tensor], list[float]] = {ours: [], theirs: []}
    gradients: list[tuple[Any, ...]] = []
    for _ in range(REPEATS + 1):
        for logits, times in seconds.items():
            plain.zero_grad()
            worked_before = time.process_time()
            F.binary_cross_entropy_with_logits(logits(), label).backward()
            times.append(time.process_time() - worked_before)
            if len(gradients) < len(seconds):
                gradients.append((plain.user.grad, plain.item.grad))
    torch.testing.assert_close(*gradients, atol=1e-7, rtol=1e-3)
    gradients.clear()
    mine, other = (statistics.median(times[1:]) for times in seconds.values())
    return [
        Figure("LightGCN: graph built", taken, "s"),
        Figure("LightGCN: graph built, processor time", worked, "s", 10.0),
        Figure("LightGCN: peak memory of building", built_peak, "GiB", 10.0),
        Figure("LightGCN: a step's forward and backward, processor time", mine, "s"),
        Figure("the same, all nodes in every layer", other, "s"),
        Figure("LightGCN: ratio of the two", mine / other, "", 0.5),
        Figure("LightGCN: peak memory, both", peak(), "GiB", 10.0),
    ]


STEPS: dict[str, Callable[[Path, float], list[Figure]]] = {"recipe": recipe, "train": train, "graph": graph}


def peak() -> float:
    """Peak resident memory of this process, GiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


def measure(step: str, folder: Path, scale: float) -> list[Figure]:
    """Run one step in a process of its own."""
    words = [sys.executable, "-W", "ignore", "-m", "benchmarks.electronics_shape", "--step", step]
    root = str(Path(__file__).resolve().parents[1])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    ran = subprocess.run(
        [*words, "--folder", str(folder), "--scale", str(scale)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [Figure(**figure) for figure in json.loads(ran.stdout.splitlines()[-1])]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    described = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.electronics_shape", description=described)
    parser.add_argument("--scale", type=float, default=1.0, help="a share of the users, items and rows (default 1)")
    parser.add_argument("--report", type=Path, help="write the table to this file as well")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not 0 < options.scale <= 1:
        parser.error("--scale must be above 0 and at most 1")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and return the exit status: 1 where a limit is passed."""
    options = parse(arguments)
    if options.step is not None:
        figures = STEPS[options.step](options.folder, options.scale)
        print(json.dumps([dataclasses.asdict(figure) for figure in figures]))
        return 0
    from benchmarks.turns import processor  # brings torch in, which the recipe's process does without

    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores" if hasattr(os, "getloadavg") else ""
    users, items, rows = shape(options.scale)
    lines = [
        f"$ python -m benchmarks.electronics_shape --scale {options.scale:g}",
        f"{time.strftime('%Y-%m-%d')}, Python {platform.python_version()}, {processor()}, one thread, {load} before",
        f"{users:,} users, {items:,} items, {rows:,} rows, generated: times and sizes mean something, metrics do not",
    ]
    print("\n".join(lines), flush=True)
    missed = 0
    with tempfile.TemporaryDirectory(prefix="electronics_shape_") as name:
        folder = Path(name)
        generate(folder / "df_electronics.csv", options.scale)
        for step in STEPS:
            for figure in measure(step, folder, options.scale):
                missed += figure.missed
                lines.append(figure.line())
                print(lines[-1], flush=True)
    lines.append(f"{missed} limits are passed." if missed else "All limits are kept.")
    print(lines[-1])
    if options.report is not None:
        options.report.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
