"""LfF and DFA on 10,000 images of Colored MNIST, 99% of which go along with their colour, on one core.

Run ``python -m benchmarks.bias_small``. Every run is a folder of its own under ``--runs``: a finished one is not
repeated and an interrupted one goes on. ``REPORT.md``, ``REPORT.csv`` (a row a method) and ``REPORT-runs.csv`` (a row a
run) are written after every run. The measure is the accuracy of the last epoch's weights on the unbiased test set, in
which every digit has every colour equally often; nothing is held out, as validation images would be as biased as
training images.

Two things are claimed of the published networks: LfF is ahead of Normal by 15 points or more, and DFA with scheduled
swapping is ahead of DFA without. Exit status: 1 where both were run and one does not hold, else 0.
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

DATASET = "colored-mnist:0.99"
IMAGES = 10_000
RUN: dict[str, Any] = {"epochs": 12, **ADAM, "lr": 0.01, "batch_size": 128}
"""The run's options, the same for all methods. The learning rate is DFA's; LfF trains longer, with a tenth of it."""


@dataclass(frozen=True)
class Case:
    """A method as it is compared.

    Attributes:
        title: in the table.
        method, network: by name.
        options: of the method.
    """

    title: str
    method: str
    network: str
    options: Mapping[str, Any]


SWAP_FROM = 0.3
"""Share of the run after which DFA swaps; the paper's 10,000 of 50,000 steps would be 0.2."""

CASES: dict[str, Case] = {
    "normal": Case("Normal", "normal", "mlp100_code", {}),
    "lff": Case("LfF", "lff", "mlp100_code", {}),
    "dfa_apart": Case("DFA without swapping", "dfa", "mlp16_code", {"swap_from": None}),
    "dfa": Case("DFA with scheduled swapping", "dfa", "mlp16_code", {"swap_from": SWAP_FROM}),
    "normal_plain": Case("Normal", "normal", "mlp100", {}),
    "lff_plain": Case("LfF", "lff", "mlp100", {}),
}

CLAIMS = (("lff", "normal", 0.15), ("dfa", "dfa_apart", 0.0))
"""Which case must be ahead of which on the unbiased test, and by how much at least."""


@dataclass(frozen=True)
class Result:
    """One finished run: accuracies (shares) of the last epoch, and seconds of processor time.

    Attributes:
        unbiased: on the whole test set. conflicting: on its images whose colour is not their digit's.
        weight_aligned, weight_conflicting: mean weights of training rows at the end; not a number without weights.
    """

    case: str
    seed: int
    unbiased: float
    conflicting: float
    weight_aligned: float
    weight_conflicting: float
    processor_seconds: float


@dataclass(frozen=True)
class Line:
    """A case's row of the table: means and standard deviations over seeds."""

    case: str
    seeds: int
    unbiased: float
    unbiased_std: float
    conflicting: float
    conflicting_std: float
    weight_aligned: float
    weight_conflicting: float
    seconds: float


def one_run(name: str, seed: int, out: Path, dataset: str, images: int | None, options: Mapping[str, Any]) -> Result:
    """Train in ``out`` or read what is finished there. Raises ``UserError`` where ``out`` holds other settings."""
    from vision.bias_plot import read_views
    from vision.experiment import train
    from vision.settings import resolve

    case = CASES[name]
    run_options, places = {**RUN, **options}, {"seed": seed, "valid": 0, "images": images}
    settings = resolve(
        dataset, case.network, case.method, run_options=run_options, method_options=case.options, **places
    )
    started = time.process_time()
    record = train(settings, out, resume=True).record
    spent = time.process_time() - started
    file = out / "processor_seconds.txt"  # of the first time: a finished run is only read
    if not file.is_file():
        checkpoint.write_text(file, f"{spent:.1f}\n")
    last = read_views(out)[-1]
    return Result(
        name,
        seed,
        record["test"]["last"]["unbiased_accuracy"],
        record["tests"]["conflicting"]["last"]["accuracy"],
        last.get("aligned_weight", math.nan),
        last.get("conflicting_weight", math.nan),
        float(file.read_text("utf-8")),
    )


def summarise(results: Sequence[Result]) -> list[Line]:
    """A line for each case, in the order of :data:`CASES`."""
    lines = []
    for name in CASES:
        runs = [r for r in results if r.case == name]
        if runs:
            unbiased, conflicting = [r.unbiased for r in runs], [r.conflicting for r in runs]
            rest = ("weight_aligned", "weight_conflicting", "processor_seconds")
            means = [statistics.fmean(getattr(r, value) for r in runs) for value in rest]
            ends = [call(values) for values in (unbiased, conflicting) for call in (statistics.fmean, deviation)]
            lines.append(Line(name, len(runs), *ends, *means))
    return lines


def verdicts(lines: Sequence[Line]) -> list[tuple[str, bool]]:
    """Each claim whose two cases were run, as a sentence, and whether it holds."""
    mean = {line.case: line.unbiased for line in lines}
    found = []
    for ahead, behind, least in CLAIMS:
        if {ahead, behind} <= mean.keys():
            points = 100 * (mean[ahead] - mean[behind])
            holds = points > 0 and points >= 100 * least
            wanted = f"at least {100 * least:g} points" if least else "at all"
            told = f"{CASES[ahead].title} is ahead of {CASES[behind].title} by {points:.1f} points"
            found.append((f"{told} (wanted: {wanted}): {'yes' if holds else '**no**'}.", holds))
    return found


def page(
    lines: Sequence[Line], results: Sequence[Result], dataset: str, images: int, options: Mapping[str, Any]
) -> str:
    """The report in Markdown."""
    rows = []
    for line in lines:
        case = CASES[line.case]
        weights = [line.weight_aligned, line.weight_conflicting]
        shown = ["–" if math.isnan(w) else f"{w:.2f}" for w in weights]
        ends = [cell(line.unbiased, line.unbiased_std), cell(line.conflicting, line.conflicting_std)]
        rows.append([case.title, f"`{case.network}`", told(case.options), *ends, *shown, f"{line.seconds:.0f}"])
    columns = ["method", "network", "options", "unbiased test", "bias-conflicting test"]
    columns += ["weight, aligned", "weight, conflicting", "processor s a run"]
    about = (
        "Accuracy in percent, mean and standard deviation over seeds, and mean weights of training rows at the end. "
        "Networks with `_code` divide the images by 255 once more, as the public code of LfF and DFA does: that makes "
        "colours far easier than shapes."
    )
    if any(line.case.endswith("_plain") for line in lines):
        about += " Without it there is less bias to mend, as the last rows show."
    sentences = [text for text, _ in verdicts(lines)]
    return "\n".join(
        [
            f"# {dataset}: LfF and DFA on a small training set",
            "",
            about,
            "",
            *markdown_table(columns, rows),
            "",
            *(f"- {text}" for text in sentences),
            "",
            *facts(
                "bias_small",
                f"Seeds: {seeds_of(results)}; `{dataset}`, {images} training images drawn by the seed, none held out; "
                "the last epoch's weights",
                f"Run: {told({**RUN, **options})}",
            ),
            "",
        ]
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What was typed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bias_small", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ...")
    parser.add_argument("--epochs", type=int, default=RUN["epochs"])
    parser.add_argument("--images", type=int, default=IMAGES, help="training images, drawn by the seed")
    parser.add_argument("--dataset", default=DATASET)
    parser.add_argument("--runs", type=Path, default=Path("runs/bias-small"), help="folder of the runs")
    parser.add_argument("--report", type=Path, default=Path("docs/results/bias-colored-mnist-10000"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, seed by seed, and write the report after each run."""
    typed = parse(arguments)
    torch.set_num_threads(1)
    changed = {} if typed.epochs == RUN["epochs"] else {"epochs": typed.epochs}
    results: list[Result] = []
    lines: list[Line] = []
    for seed in range(typed.seeds):
        for name in typed.cases:
            folder = typed.runs / f"{name}-{seed}"
            try:
                result = one_run(name, seed, folder, typed.dataset, typed.images, changed)
            except UserError as error:
                print(error, file=sys.stderr)
                return 2
            results.append(result)
            lines = summarise(results)
            text = page(lines, results, typed.dataset, typed.images, changed)
            write(typed.report, text, rows=lines, runs=results)
            print(
                f"{name:12} seed {seed}  unbiased {result.unbiased:.4f}  conflicting {result.conflicting:.4f}  "
                f"{result.processor_seconds:6.1f} s of processor, load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
    found = verdicts(lines)
    for text, _ in found:
        print(text)
    return 1 if len(found) == len(CLAIMS) and not all(holds for _, holds in found) else 0


if __name__ == "__main__":
    sys.exit(main())
