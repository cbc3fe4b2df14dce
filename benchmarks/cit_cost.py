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
from pathlib import Path
from typing import Any

import torch

from benchmarks.denll_cost import ByProcessor
from benchmarks.turns import WARM_UP, Figure, compare, take_turns
from benchmarks.vision_speed import CONFIG, Bench, head
from vision import networks

LIMIT, SHARE = 2.1, 0.03
"""Most that an epoch takes, in epochs of the baseline, and most that drawing contexts takes of it."""
SIZES = {"cpu": {"resnet20": 32, "resnet18_small": 8}, "cuda": {"resnet20": 128, "resnet18_small": 128}}
"""Networks with their batches, by kind of device."""
STEPS = {"cpu": 4, "cuda": 100}
"""Of an epoch, where ``--steps`` does not say."""
FRAMED: dict[str, Any] = {"splitter": "pattern", "frame": 4}
DOUBLE: dict[str, Any] = {"splitter": "saliency", "branches": "double"}
FORMS: dict[str, tuple[dict[str, Any], tuple[str, dict[str, Any]]]] = {
    "frames / Normal": (FRAMED, ("normal", {})),
    "saliency / Normal": ({"splitter": "saliency"}, ("normal", {})),
    "two branches / Obj+Bg": (DOUBLE, ("cit", {**DOUBLE, "branches": None, "setting": "obj_bg"})),
}
"""Options of CIT, and its baseline."""


def figures(bench: Bench, repeats: int) -> Iterator[Figure]:
    """Every form against its baseline, and the share of drawing contexts in the first."""
    for words, (options, (name, of_base)) in FORMS.items():
        base = ByProcessor(bench.loop_epoch(bench.denoiser(name, bench.task(), **of_base)))
        denoiser = bench.denoiser("cit", bench.task(), **options)
        taken = take_turns(denoiser, CONFIG, [base], repeats)
        sides = (taken.ours, taken.theirs[0]) if bench.on_gpu else (taken.processor, base.seconds[WARM_UP:])
        place = f"{bench.network}, batch {bench.batch}"
        yield replace(compare(f"{place}: {words}", *sides), limit=LIMIT)
        if options is FRAMED:
            drawing = draws(bench, denoiser, repeats)
            epoch = statistics.median(sides[0])
            yield Figure(f"{place}: drawing contexts / an epoch", drawing, epoch, drawing / epoch, SHARE)


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


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cit_cost", description=(__doc__ or "").splitlines()[0])
    here = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--networks", nargs="+", choices=networks.names(), metavar="NETWORK")
    parser.add_argument("--batch", type=int, help="images in a step")
    parser.add_argument("--device", choices=list(SIZES), default=here)
    parser.add_argument("--steps", type=int, help="of an epoch (default 100 on a GPU, 4 on a CPU)")
    parser.add_argument("--repeats", type=int, default=5, help="counted epochs of every side (default 5)")
    parser.add_argument("--quick", action="store_true", help="one epoch of every side; ratios are not judged")
    parser.add_argument("--report", type=Path, help="write what is printed to this file as well")
    options = parser.parse_args(arguments)
    for name in ("batch", "steps", "repeats"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name} must be 1 or more")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no GPU")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and return the exit status."""
    options = parse(arguments)
    torch.set_num_threads(1)
    device = torch.device(options.device)
    told = head("cit_cost", sys.argv[1:] if arguments is None else arguments, device)
    for network in options.networks or SIZES[device.type]:
        batch = options.batch or SIZES[device.type].get(network, 32)
        bench = Bench.make(network, batch, options.steps or STEPS[device.type], device)
        for figure in figures(bench, 1 if options.quick else options.repeats):
            told.add(figure)
    return told.judge(options.quick, options.report)


if __name__ == "__main__":
    sys.exit(main())
