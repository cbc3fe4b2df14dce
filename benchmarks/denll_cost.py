"""What DeNLL costs: seconds of an epoch of its training against one of its host's, in one process, taking turns.

Run ``python -m benchmarks.denll_cost``. Images are generated, in CIFAR-10's shape: times mean something, accuracies do
not. An epoch is that of the whole loop (shuffling, augmentation, training), without validation; both sides have the
same number of steps and the same backbone, and a ratio is that of their medians. On a CPU seconds are of the processor,
which other work on the machine lengthens less. On a GPU: bfloat16 autocast, channels last. Exit status: 1 when DeNLL
takes more than 2.3 times its host, else 0; ``--quick`` judges nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.turns import WARM_UP, Figure, Side, compare, take_turns
from benchmarks.vision_speed import CONFIG, Bench, head
from vision import methods, networks

LIMIT = 2.3
"""Most that a step of DeNLL takes, in steps of its host."""
SIZES = {"cpu": {"resnet18_small": 8, "resnet32": 32}, "cuda": {"resnet18_small": 128, "resnet32": 128}}
"""Networks with their batches, by kind of device."""
STEPS = {"cpu": 2, "cuda": 100}
"""Of an epoch, where ``--steps`` does not say."""
HOSTS = {"ce": "normal", "sop": "sop"}
"""Hosts of one stage, whose epochs compare step by step, and the method that each is by itself."""


class ByProcessor:
    """A side that notes the processor's seconds of each turn."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.seconds: list[float] = []

    def __call__(self) -> None:
        begin = time.process_time()
        self.side()
        self.seconds.append(time.process_time() - begin)


def figures(bench: Bench, hosts: Sequence[str], repeats: int) -> Iterator[Figure]:
    """DeNLL against its hosts with one network; its other forms are told and not judged."""
    for host in hosts:
        for words, options in (("DeNLL", {}), ("shared encoder", {"share": True}), ("w/o DIM", {"use_dim": False})):
            task = bench.task()
            alone = ByProcessor(bench.loop_epoch(bench.denoiser(HOSTS[host], task)))
            taken = take_turns(bench.denoiser("denll", task, host=host, **options), CONFIG, [alone], repeats)
            sides = (taken.ours, taken.theirs[0]) if bench.on_gpu else (taken.processor, alone.seconds[WARM_UP:])
            figure = compare(f"{bench.network}, batch {bench.batch}: {words} / {host}", *sides)
            yield figure if options else replace(figure, limit=LIMIT)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.denll_cost", description=(__doc__ or "").splitlines()[0]
    )
    here = "cuda" if torch.cuda.is_available() else "cpu"
    known = [host for host, method in HOSTS.items() if method in methods.names()]
    parser.add_argument("--networks", nargs="+", choices=networks.names(), metavar="NETWORK")
    parser.add_argument("--hosts", nargs="+", choices=known, default=["ce"], metavar="HOST")
    parser.add_argument("--batch", type=int, help="images in a step")
    parser.add_argument("--device", choices=list(SIZES), default=here)
    parser.add_argument("--steps", type=int, help="of an epoch (default 100 on a GPU, 2 on a CPU)")
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
    told = head("denll_cost", sys.argv[1:] if arguments is None else arguments, device)
    for network in options.networks or SIZES[device.type]:
        batch = options.batch or SIZES[device.type].get(network, 32)
        bench = Bench.make(network, batch, options.steps or STEPS[device.type], device)
        for figure in figures(bench, options.hosts, 1 if options.quick else options.repeats):
            told.add(figure)
    return told.judge(options.quick, options.report)


if __name__ == "__main__":
    sys.exit(main())
