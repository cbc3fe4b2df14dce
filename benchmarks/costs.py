"""The command line that benchmarks of a method's cost share, and their sides: networks, batches, steps, turns."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.turns import WARM_UP, Figure, Side, compare, take_turns
from benchmarks.vision_speed import CONFIG, Bench, head
from recdenoise.denoisers import Denoiser
from vision import networks


@dataclass(frozen=True)
class Cost:
    """A benchmark of a method's cost.

    Attributes:
        module: its name under ``benchmarks``.
        about: what ``--help`` says.
        sizes: networks with their batches, by kind of device.
        steps: of an epoch where ``--steps`` does not say, by kind of device.
    """

    module: str
    about: str
    sizes: Mapping[str, Mapping[str, int]]
    steps: Mapping[str, int]

    def parser(self) -> argparse.ArgumentParser:
        """The options that all have."""
        parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{self.module}", description=self.about)
        here = "cuda" if torch.cuda.is_available() else "cpu"
        steps = " or ".join(
            f"{number} on a {kind.replace('cuda', 'gpu').upper()}" for kind, number in self.steps.items()
        )
        parser.add_argument("--networks", nargs="+", choices=networks.names(), metavar="NETWORK")
        parser.add_argument("--batch", type=int, help="images in a step")
        parser.add_argument("--device", choices=list(self.sizes), default=here)
        parser.add_argument("--steps", type=int, help=f"of an epoch (default {steps})")
        parser.add_argument("--repeats", type=int, default=5, help="counted epochs of every side (default 5)")
        parser.add_argument("--quick", action="store_true", help="one epoch of every side; ratios are not judged")
        parser.add_argument("--report", type=Path, help="write what is printed to this file as well")
        return parser

    def run(
        self,
        parser: argparse.ArgumentParser,
        arguments: Sequence[str] | None,
        figures: Callable[[Bench, int, argparse.Namespace], Iterator[Figure]],
    ) -> int:
        """Measure every network, print the table and return the exit status.

        Args:
            parser: of :meth:`parser`, with what else the benchmark takes.
            arguments: as typed; ``None`` takes those of the process.
            figures: measures one network so many times.
        """
        typed = parser.parse_args(arguments)
        for name in ("batch", "steps", "repeats"):
            if getattr(typed, name) is not None and getattr(typed, name) < 1:
                parser.error(f"--{name} must be 1 or more")
        if typed.device == "cuda" and not torch.cuda.is_available():
            parser.error("--device cuda: there is no GPU")
        torch.set_num_threads(1)
        device = torch.device(typed.device)
        told = head(self.module, sys.argv[1:] if arguments is None else arguments, device)
        sizes = self.sizes[device.type]
        for network in typed.networks or sizes:
            batch = typed.batch or sizes.get(network, 32)
            bench = Bench.make(network, batch, typed.steps or self.steps[device.type], device)
            for figure in figures(bench, 1 if typed.quick else typed.repeats, typed):
                told.add(figure)
        return told.judge(typed.quick, typed.report)


class ByProcessor:
    """A side that notes the processor's seconds of each turn."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.seconds: list[float] = []

    def __call__(self) -> None:
        begin = time.process_time()
        self.side()
        self.seconds.append(time.process_time() - begin)


def against(bench: Bench, words: str, denoiser: Denoiser, base: Denoiser, repeats: int) -> Figure:
    """An epoch of ``denoiser`` in epochs of ``base``: by the clock on a GPU, by processor time on a CPU, which other
    work on the machine lengthens less."""
    side = ByProcessor(bench.loop_epoch(base))
    taken = take_turns(denoiser, CONFIG, [side], repeats)
    sides = (taken.ours, taken.theirs[0]) if bench.on_gpu else (taken.processor, side.seconds[WARM_UP:])
    return compare(f"{bench.network}, batch {bench.batch}: {words}", *sides)
