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
from collections.abc import Iterator, Sequence
from dataclasses import replace

from benchmarks.costs import Cost, against
from benchmarks.turns import Figure
from benchmarks.vision_speed import Bench
from vision import methods

LIMIT = 2.3
"""Most that a step of DeNLL takes, in steps of its host."""
SIZES = {"cpu": {"resnet18_small": 8, "resnet32": 32}, "cuda": {"resnet18_small": 128, "resnet32": 128}}
"""Networks with their batches, by kind of device."""
COST = Cost("denll_cost", (__doc__ or "").splitlines()[0], SIZES, {"cuda": 100, "cpu": 2})
HOSTS = {"ce": "normal", "sop": "sop"}
"""Hosts of one stage, whose epochs compare step by step, and the method that each is by itself."""


def figures(bench: Bench, repeats: int, typed: argparse.Namespace) -> Iterator[Figure]:
    """DeNLL against its hosts with one network; its other forms are told and not judged."""
    for host in typed.hosts:
        for words, options in (("DeNLL", {}), ("shared encoder", {"share": True}), ("w/o DIM", {"use_dim": False})):
            task = bench.task()
            base, denoiser = bench.denoiser(HOSTS[host], task), bench.denoiser("denll", task, host=host, **options)
            figure = against(bench, f"{words} / {host}", denoiser, base, repeats)
            yield figure if options else replace(figure, limit=LIMIT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and return the exit status."""
    parser = COST.parser()
    known = [host for host, method in HOSTS.items() if method in methods.names()]
    parser.add_argument("--hosts", nargs="+", choices=known, default=["ce"], metavar="HOST")
    return COST.run(parser, arguments, figures)


if __name__ == "__main__":
    sys.exit(main())
