"""Eight methods on 5,000 images of Fashion-MNIST with 40% of the labels drawn anew, on one core.

Run ``python -m benchmarks.vision_small``. Every run is a folder of its own under ``--runs``: a finished one is not
repeated and an interrupted one goes on. ``REPORT.md``, ``REPORT.csv`` (a row a method) and ``REPORT-runs.csv`` (a row a
run) are written after every run. The measure is the accuracy of the last epoch's weights on the clean test set, where
memorised noise shows; that of the weights which noisy validation labels choose stands beside. A method is ahead of
Normal where its mean over seeds is ahead by two points and by more than twice the standard error of the difference,
seed by seed: a seed draws the images, the noise and the weights for all methods alike. Exit status: 1 where every
method was run and fewer than five are ahead, else 0.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.pages import ADAM, cell, deviation, facts, seeds_of, told, write
from recdenoise import checkpoint
from recdenoise.errors import UserError
from recdenoise.reports.report_text import markdown_table

IMAGES = 5000
NOISE = "symmetric-any:0.4"
NETWORK = "convnet2"
VALID = 0.1
RUN: dict[str, Any] = {"epochs": 15, **ADAM}
"""The run's options, the same for all methods; long enough without augmentation for Normal to memorise."""

METHODS: dict[str, dict[str, Any]] = {
    "normal": {},
    "deca_p": {},
    "elr": {},
    "gce": {},
    "co_teaching": {"noise_rate": 0.36, "gradual_epochs": 4},
    "jocor": {"noise_rate": 0.36, "gradual_epochs": 4},
    "mixup": {},
    "itlm": {"keep": 0.64, "round_epochs": 4},
    "pes": {},
    "sop": {"lr_u": 20.0, "lr_v": 200.0},  # 300 epochs' growth in 15
}
"""Options that differ from a method's defaults: the true noise rate, and times that fit a short run."""

COMPARED = ("normal", "deca_p", "elr", "gce", "co_teaching", "jocor", "mixup", "itlm")
"""Methods that run, and are judged, where none are named."""

POINTS, ERRORS, LEAST = 0.02, 2.0, 5
"""What a clear margin is: so much accuracy, so many standard errors; and how many methods must have it."""


@dataclass(frozen=True)
class Result:
    """One finished run: accuracies (shares) on the clean test set, and seconds of training."""

    method: str
    seed: int
    last: float
    best_val: float
    valid: float
    seconds: float
    processor_seconds: float


@dataclass(frozen=True)
class Line:
    """A method's row of the table.

    Attributes:
        method: its name.
        seeds: number of runs.
        last, best_val: mean accuracy over seeds.
        last_std, best_val_std: standard deviation over seeds; 0 for one.
        ahead: mean over the seeds shared with Normal of ``last`` less Normal's; ``None`` without any.
        error: standard error of ``ahead``; infinite for one seed.
        seconds: mean processor seconds of a whole run.
    """

    method: str
    seeds: int
    last: float
    last_std: float
    best_val: float
    best_val_std: float
    ahead: float | None
    error: float
    seconds: float

    @property
    def clear(self) -> bool:
        """Whether the method is ahead of Normal by a clear margin."""
        return self.ahead is not None and self.ahead >= POINTS and self.ahead > ERRORS * self.error


def one_run(method: str, seed: int, out: Path, dataset: str, images: int | None, options: Mapping[str, Any]) -> Result:
    """Train in ``out`` or read what is finished there. Raises ``UserError`` where ``out`` holds other settings."""
    from vision.experiment import train
    from vision.settings import resolve

    places: dict[str, Any] = {"noise": NOISE, "seed": seed, "valid": VALID, "images": images}
    run_options = {**RUN, **options}
    settings = resolve(dataset, NETWORK, method, run_options=run_options, method_options=METHODS[method], **places)
    started = time.process_time()
    record = train(settings, out, resume=True).record
    spent = time.process_time() - started
    file = out / "processor_seconds.txt"  # of the first time: a finished run is only read
    if not file.is_file():
        checkpoint.write_text(file, f"{spent:.1f}\n")
    ends = {end: record["test"][end]["accuracy"] for end in ("last", "best_val")}
    valid, seconds = record["valid"]["best_val"]["accuracy"], record["seconds"]["train"]
    return Result(method, seed, ends["last"], ends["best_val"], valid, seconds, float(file.read_text("utf-8")))


def summarise(results: Sequence[Result]) -> list[Line]:
    """A line for each method, in the order of :data:`METHODS`."""
    normal = {r.seed: r.last for r in results if r.method == "normal"}
    lines = []
    for method in METHODS:
        runs = [r for r in results if r.method == method]
        if not runs:
            continue
        ends = [[r.last for r in runs], [r.best_val for r in runs]]
        spread = [deviation(values) for values in ends]
        gaps = [r.last - normal[r.seed] for r in runs if r.seed in normal and method != "normal"]
        error = statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else math.inf
        lines.append(
            Line(
                method,
                len(runs),
                statistics.fmean(ends[0]),
                spread[0],
                statistics.fmean(ends[1]),
                spread[1],
                statistics.fmean(gaps) if gaps else None,
                error,
                statistics.fmean(r.processor_seconds for r in runs),
            )
        )
    return lines


def page(lines: Sequence[Line], results: Sequence[Result], dataset: str, options: Mapping[str, Any]) -> str:
    """The report in Markdown."""
    from vision import methods

    columns = ["method", "options", "last", "best_val", "last, over Normal", "clear", "processor s a run"]
    rows = []
    for line in lines:
        gap = "–"
        if line.ahead is not None:
            gap = f"{100 * line.ahead:+.1f}" + ("" if math.isinf(line.error) else f" (error {100 * line.error:.1f})")
        verdict = "" if line.method == "normal" else "yes" if line.clear else "**no**"
        numbers = [cell(line.last, line.last_std), cell(line.best_val, line.best_val_std)]
        numbers += [gap, verdict, f"{line.seconds:.0f}"]
        rows.append([methods.get(line.method).title, told(METHODS[line.method]), *numbers])
    ahead = sum(line.clear for line in lines)
    others = sum(line.method != "normal" for line in lines)
    return "\n".join(
        [
            f"# {dataset}: methods for images on a small training set with noisy labels",
            "",
            "Accuracy on the clean test set in percent, mean and standard deviation over seeds: of the last epoch's "
            "weights, and of those that noisy validation labels chose. A margin over Normal is clear where it is at "
            f"least {100 * POINTS:g} points and more than {ERRORS:g} standard errors of the difference, seed by seed.",
            "",
            *markdown_table(columns, rows),
            "",
            f"{ahead} of {others} methods are ahead of Normal by a clear margin.",
            "",
            *facts(
                "vision_small",
                f"Seeds: {seeds_of(results)}; noise `{NOISE}`; network `{NETWORK}`; a share of {VALID} of the images "
                "validates, with labels as noisy; the test labels are clean",
                f"Run: {told({**RUN, **options})}",
            ),
            "",
        ]
    )


def write_report(report: Path, results: Sequence[Result], dataset: str, options: Mapping[str, Any]) -> list[Line]:
    """Write the page and both tables; returns the lines."""
    lines = summarise(results)
    write(report, page(lines, results, dataset, options), rows=lines, runs=results)
    return lines


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What was typed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.vision_small", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(COMPARED), metavar="METHOD")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ...")
    parser.add_argument("--epochs", type=int, default=RUN["epochs"])
    parser.add_argument("--images", type=int, default=IMAGES, help="training images, drawn by the seed")
    parser.add_argument("--dataset", default="fashion-mnist")
    parser.add_argument("--runs", type=Path, default=Path("runs/vision-small"), help="folder of the runs")
    parser.add_argument("--report", type=Path, default=Path("docs/results/vision-fashion-5000"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, seed by seed, and write the report after each run."""
    typed = parse(arguments)
    torch.set_num_threads(1)
    changed = {} if typed.epochs == RUN["epochs"] else {"epochs": typed.epochs}
    results: list[Result] = []
    lines: list[Line] = []
    for seed in range(typed.seeds):
        for method in typed.methods:
            folder = typed.runs / f"{method}-{seed}"
            try:
                result = one_run(method, seed, folder, typed.dataset, typed.images, changed)
            except UserError as error:
                print(error, file=sys.stderr)
                return 2
            results.append(result)
            lines = write_report(typed.report, results, typed.dataset, changed)
            print(
                f"{method:12} seed {seed}  last {result.last:.4f}  best_val {result.best_val:.4f}  "
                f"{result.processor_seconds:6.1f} s of processor, {result.seconds:6.1f} s on the clock, "
                f"load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
    ahead = sum(line.clear for line in lines)
    print(f"{ahead} of {len(lines) - 1} methods are ahead of Normal by a clear margin: {typed.report}.md")
    return 1 if set(typed.methods) >= set(COMPARED) and ahead < LEAST else 0


if __name__ == "__main__":
    sys.exit(main())
