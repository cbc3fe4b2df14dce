"""How sides of a ratio take turns, epoch by epoch, and how what they took is told and judged. Needs no RecBole."""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from recdenoise import checkpoint
from recdenoise.denoisers import Denoiser
from recdenoise.loop import Loop, LoopConfig, Observer

WARM_UP = 1
"""Epochs of every side that are not counted."""

Side = Callable[[], object]


@dataclass(frozen=True)
class Figure:
    """One measurement and what it must reach.

    Attributes:
        name: what was measured.
        ours: seconds (or as ``unit`` says).
        yardstick: seconds of what it is compared with, or ``None`` where ``ours`` alone is judged.
        ratio: ours / yardstick, or yardstick / ours where ``required`` begins with "at least", or ``ours`` itself.
        limit: what the ratio must not exceed (or fall short of), ``None`` where nothing is required.
        at_least: whether ``limit`` is a lower bound.
        unit: of ``ours`` and ``yardstick``.
        digits: of the ratio, after the point; small shares need more than ratios of sides.
    """

    name: str
    ours: float
    yardstick: float | None
    ratio: float
    limit: float | None = None
    at_least: bool = False
    unit: str = "s"
    digits: int = 2

    @property
    def missed(self) -> bool:
        """Whether the requirement is not met."""
        if self.limit is None:
            return False
        return self.ratio < self.limit if self.at_least else self.ratio > self.limit

    def line(self) -> str:
        """A row of the table."""
        against = "" if self.yardstick is None else f"{self.yardstick:10.4f}"
        required = "-" if self.limit is None else f"{'>=' if self.at_least else '<='} {self.limit:g}"
        return (
            f"{self.name:47} {self.ours:10.4f} {against:>10} {self.unit:2} {self.ratio:8.{self.digits}f} {required:>8}"
            f"{'  MISSED' if self.missed else ''}"
        )


HEADER = f"{'':47} {'ours':>10} {'yardstick':>10} {'':2} {'ratio':>8} {'required':>8}"


def compare(name: str, ours: Sequence[float], yardstick: Sequence[float], limit: float | None = None) -> Figure:
    """The ratio of two medians, which must be at most ``limit``."""
    mine, theirs = statistics.median(ours), statistics.median(yardstick)
    return Figure(name, mine, theirs, mine / theirs, limit)


def wait() -> None:
    """Let a GPU finish what it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


class _Turns(Observer):
    """Times each epoch of the loop from end to end and lets the other sides take their turn in between."""

    def __init__(self, stage: str, others: Sequence[Side]) -> None:
        self.stage, self.others = stage, others
        self.ours: list[float] = []
        self.processor: list[float] = []
        self.theirs: list[list[float]] = [[] for _ in others]
        self.begin, self.used = time.perf_counter(), time.process_time()

    def on_epoch(self, row: dict[str, Any]) -> None:
        wait()
        now = time.perf_counter()
        if row["stage"] == self.stage:
            self.ours.append(now - self.begin)
            self.processor.append(time.process_time() - self.used)
            for other, taken in zip(self.others, self.theirs, strict=True):
                begin = time.perf_counter()
                other()
                wait()
                taken.append(time.perf_counter() - begin)
        self.begin, self.used = time.perf_counter(), time.process_time()


@dataclass(frozen=True)
class Taken:
    """Seconds of every counted epoch.

    Attributes:
        ours: the loop's: drawing, shuffling, training, bookkeeping; no validation.
        processor: the same in processor time, which other people's work on the machine does not lengthen.
        theirs: each other side's.
    """

    ours: list[float]
    processor: list[float]
    theirs: list[list[float]]


def take_turns(denoiser: Denoiser, config: LoopConfig, others: Sequence[Side], repeats: int) -> Taken:
    """Train with the loop, every other side once after each epoch of its last stage, which alone is counted.

    Args:
        denoiser: what the loop trains.
        config: of the loop; ``repeats`` and the warm-up decide its epochs, and nothing is validated.
        others: each does the work of an epoch by other means.
        repeats: counted epochs.
    """
    turns = _Turns(denoiser.stages()[-1].name, others)
    config = replace(config, epochs=repeats + WARM_UP, selector="last", patience=None)
    Loop(denoiser, denoiser.task, config, observer=turns).run()
    counted = [taken[WARM_UP:] for taken in (turns.ours, turns.processor, *turns.theirs)]
    return Taken(counted[0], counted[1], counted[2:])


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


class Told:
    """What a benchmark of images prints, line by line, kept for its report.

    Args:
        module: its name under ``benchmarks``.
        typed: its arguments.
        device: where it measures.
        facts: what else the figures belong to.
    """

    def __init__(self, module: str, typed: Sequence[str], device: torch.device, *facts: str) -> None:
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{processor()}, one thread"
        load = f", load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
        self.figures: list[Figure] = []
        self.lines: list[str] = []
        self.say(f"$ python -m benchmarks.{module} {shlex.join(typed)}".rstrip())
        self.say(f"{time.strftime('%Y-%m-%d')}, {where}, {os.cpu_count()} cores{load}")
        self.say(", ".join([f"torch {torch.__version__}", f"Python {platform.python_version()}", *facts]))
        self.say(HEADER)

    def say(self, line: str) -> None:
        """Print a line, and keep it."""
        self.lines.append(line)
        print(line, flush=True)

    def add(self, figure: Figure) -> None:
        """Print a figure, and keep it."""
        self.figures.append(figure)
        self.say(figure.line())

    def judge(self, quick: bool, report: Path | None = None, record: Path | None = None) -> int:
        """Say what is missed, write both files where they are wanted, and return the exit status.

        Args:
            quick: judge nothing.
            report: for what was printed.
            record: for the figures as JSON.
        """
        missed = [figure.name for figure in self.figures if figure.missed]
        required = sum(figure.limit is not None for figure in self.figures)
        if quick:
            self.say(f"Quick run of {len(self.figures)} figures: too short to judge.")
        elif missed:
            self.say(f"MISSED {len(missed)} of {required} requirements: {'; '.join(missed)}.")
        else:
            self.say(f"All {required} requirements are met.")
        if report is not None:
            checkpoint.write_text(report, "\n".join(line.rstrip() for line in self.lines) + "\n")
        if record is not None:
            checkpoint.write_json(record, [asdict(figure) | {"missed": figure.missed} for figure in self.figures])
        return 1 if missed and not quick else 0
