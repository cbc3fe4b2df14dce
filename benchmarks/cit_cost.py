"""What CIT costs: seconds of an epoch against one of its baseline, and what drawing contexts takes of it.

Run ``python -m benchmarks.cit_cost``. Images are generated, in CIFAR-10's shape: times mean something, accuracies do
not. An epoch is that of the whole loop (drawing contexts, shuffling, augmentation, training), without validation. The
sides take turns in one process, have the same number of steps, and a ratio is that of their medians. A step of CIT sees
each image twice. With one branch its baseline is Normal, with two the same network on content and own context (Obj+Bg).
On a CPU seconds are of the processor, which other work on the machine lengthens less. On a GPU: bfloat16 autocast,
channels last. Exit status: 1 when CIT takes more than 2.1 times its baseline or drawing contexts more than 3 % of an
epoch, else 0; ``--quick`` judges nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.costs import Cost, against
from benchmarks.turns import Figure
from benchmarks.vision_speed import Bench

LIMIT, SHARE = 2.1, 0.03
"""Most that an epoch takes, in epochs of the baseline, and most that drawing contexts takes of it."""
SIZES = {"cpu": {"resnet20": 32, "resnet18_small": 8}, "cuda": {"resnet20": 128, "resnet18_small": 128}}
"""Networks with their batches, by kind of device."""
COST = Cost("cit_cost", (__doc__ or "").splitlines()[0], SIZES, {"cuda": 100, "cpu": 4})
FRAMED: dict[str, Any] = {"splitter": "pattern", "frame": 4}
DOUBLE: dict[str, Any] = {"splitter": "saliency", "branches": "double"}
FORMS: dict[str, tuple[dict[str, Any], tuple[str, dict[str, Any]]]] = {
    "frames / Normal": (FRAMED, ("normal", {})),
    "saliency / Normal": ({"splitter": "saliency"}, ("normal", {})),
    "two branches / Obj+Bg": (DOUBLE, ("cit", {**DOUBLE, "branches": None, "setting": "obj_bg"})),
}
"""Options of CIT, and its baseline."""


def figures(bench: Bench, repeats: int, _: argparse.Namespace) -> Iterator[Figure]:
    """Every form against its baseline, and the share of drawing contexts in the first."""
    for words, (options, (name, of_base)) in FORMS.items():
        base = bench.denoiser(name, bench.task(), **of_base)
        denoiser = bench.denoiser("cit", bench.task(), **options)
        epoch = against(bench, words, denoiser, base, repeats)
        yield replace(epoch, limit=LIMIT)
        if options is FRAMED:
            drawing = draws(bench, denoiser, repeats)
            place = f"{bench.network}, batch {bench.batch}"
            yield Figure(f"{place}: drawing contexts / an epoch", drawing, epoch.ours, drawing / epoch.ours, SHARE)


def draws(bench: Bench, denoiser: Any, repeats: int) -> float:
    """Median seconds of what an epoch begins with: one context for each image."""
    stage = denoiser.stages()[0]
    seconds = []
    for epoch in range(max(20, repeats)):
        begin = time.perf_counter() if bench.on_gpu else time.process_time()
        denoiser.begin_epoch(stage, epoch)
        if bench.on_gpu:
            torch.cuda.synchronize()
        seconds.append((time.perf_counter() if bench.on_gpu else time.process_time()) - begin)
    return statistics.median(seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and return the exit status."""
    return COST.run(COST.parser(), arguments, figures)


if __name__ == "__main__":
    sys.exit(main())
