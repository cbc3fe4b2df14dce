"""Seconds of an epoch of methods that host others (PES, SOP, SOP+) against one of Normal.

Run ``python -m benchmarks.host_cost``. Images and labels are generated, in CIFAR-10's shape: times mean something,
accuracies do not. So PES scans the images in two views, as always, and then keeps 60% of them, as of labels with 40%
noise, or all; let 60% of the steps be a whole number. Everything is measured in one process; the sides of a ratio take
turns, epoch by epoch, and a ratio is that of their medians: of PES by processor time, which other work on the machine
lengthens less. An epoch is the whole loop: shuffling, augmentation (crop and flip), the scan, training, summing up
losses; without validation. A whole run of PES is reckoned from its epochs: T_1 25, T_2 7, T_3 5, 200 in all. Exit
status: 1 when a requirement is missed, else 0; ``--quick`` judges nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from benchmarks.turns import WARM_UP, Figure, Side, compare, take_turns, wait
from benchmarks.vision_speed import CONFIG, STEPS, Bench, head
from recdenoise.loop import Loop, LoopConfig, Observer
from vision import networks
from vision.methods.pes import PES

NETWORK, BATCH = "resnet20", 64
MOST = 1.3
"""Most that PES may take, an epoch, in epochs of Normal."""
EPOCHS, WARM, REFIT, HEAD = 200, 25, 7, 5
"""Of a run as published, and of its stages."""
NOISE = 0.4
"""Share of wrong labels that PES is to leave out."""


class Keeps(PES):
    """PES that looks at the rows as always, and then keeps a share of them, whatever it saw."""

    share: ClassVar[float]

    def select(self) -> None:
        self.believed()
        self.kept.copy_(torch.arange(len(self.kept)) < self.share * len(self.kept))


class Epochs(Observer):
    """Processor seconds of each epoch by stage; an epoch of Normal takes its turn after each one of ``refine``."""

    def __init__(self, plain: Side) -> None:
        self.plain = plain
        self.seconds: dict[str, list[float]] = {}
        self.normal: list[float] = []
        self.begin = clock()

    def on_epoch(self, row: dict[str, Any]) -> None:
        now = clock()
        self.seconds.setdefault(row["stage"], []).append(now - self.begin)
        if row["stage"] == "refine":
            self.plain()
            self.normal.append(clock() - now)
        self.begin = clock()


def clock() -> float:
    """Seconds of this process's work; on a GPU, of the clock, once it is done."""
    wait()
    return time.perf_counter() if torch.cuda.is_initialized() else time.process_time()


def progressive(bench: Bench, repeats: int, share: float, limit: float | None) -> Iterator[Figure]:
    """PES that keeps a share of the rows: an epoch of ``refine``, and a run of all its stages, against Normal."""
    task = bench.task()
    timed = Epochs(bench.loop_epoch(bench.denoiser("normal", task)))
    denoiser = Keeps(task, {"warm_epochs": 1.0, "refit_epochs": 1 + WARM_UP, "head_epochs": 1 + WARM_UP})
    denoiser.share = share  # type: ignore[misc]
    config = LoopConfig(**{**vars(CONFIG), "epochs": 1 + WARM_UP + repeats})
    Loop(denoiser.to(bench.device), task, config, observer=timed).run()
    counted = {stage: seconds[WARM_UP:] for stage, seconds in timed.seconds.items()}
    name = f"PES, {share:.0%} kept"
    refine = compare(f"{name}: refine / Normal", counted["refine"], timed.normal[WARM_UP:], limit)
    yield refine
    normal = statistics.median(timed.normal[WARM_UP:])
    refit, last = (statistics.median(counted[stage]) for stage in ("refit", "head"))
    mean = (WARM * normal + REFIT * refit + HEAD * last + (EPOCHS - WARM) * refine.ours) / EPOCHS
    yield Figure(f"{name}: a run's mean / Normal", mean, normal, mean / normal, limit)


def figures(network: str, batch: int, steps: int, repeats: int, device: torch.device) -> Iterator[Figure]:
    """Everything about one network."""
    bench = Bench.make(network, batch, steps, device)
    yield from progressive(bench, repeats, 1.0 - NOISE, MOST)
    yield from progressive(bench, repeats, 1.0, None)
    task = bench.task()
    plain = bench.loop_epoch(bench.denoiser("normal", task))
    for method, title in (("sop", "SOP"), ("sop_plus", "SOP+")):
        taken = take_turns(bench.denoiser(method, task), CONFIG, [plain], repeats)
        yield compare(f"{title}: an epoch / Normal", taken.ours, taken.theirs[0])


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host_cost", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", choices=networks.names(), default=NETWORK, metavar="NETWORK")
    parser.add_argument("--batch", type=int, default=BATCH, help="images in a step")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, help="of an epoch of Normal (default 390 on a GPU, 10 on a CPU)")
    parser.add_argument("--repeats", type=int, default=3, help="counted epochs of every side (default 3)")
    parser.add_argument("--quick", action="store_true", help="one epoch of every side; ratios are not judged")
    parser.add_argument("--report", type=Path, help="write what is printed to this file as well")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    options = parser.parse_args(arguments)
    for name in ("batch", "steps", "repeats"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name} must be 1 or more")
    if options.device.partition(":")[0] not in STEPS:
        parser.error(f"--device {options.device}: one of {', '.join(STEPS)}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and return the exit status."""
    options = parse(arguments)
    torch.set_num_threads(1)
    device = torch.device(options.device)
    told = head("host_cost", sys.argv[1:] if arguments is None else arguments, device)
    told.say(f"{options.network}, batch {options.batch}")
    steps = options.steps or {"cuda": STEPS["cuda"], "cpu": 10}[device.type]
    for figure in figures(options.network, options.batch, steps, 1 if options.quick else options.repeats, device):
        told.add(figure)
    return told.judge(options.quick, options.report, options.json)


if __name__ == "__main__":
    sys.exit(main())
