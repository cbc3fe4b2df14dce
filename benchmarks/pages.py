"""What the reports of benchmarks on small sets of images share: cells, facts, files."""

from __future__ import annotations

import csv
import io
import os
import shlex
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.turns import processor
from recdenoise import checkpoint
from recdenoise.run_files import versions

ADAM: dict[str, Any] = {
    "optimizer": "adam",
    "lr": 1e-3,
    "weight_decay": 0.0,
    "schedule": "constant",
    "batch_size": 64,
    "crop_pad": 0,
    "flip": False,
    "device": "cpu",
}
"""Options of a run on one core that no augmentation keeps from memorising."""


def deviation(values: Sequence[float]) -> float:
    """Standard deviation over seeds; 0 for one."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def cell(mean: float, spread: float) -> str:
    """Mean and standard deviation, shares, in percent: ``82.7 ± 0.3``."""
    return f"{100 * mean:.1f} ± {100 * spread:.1f}"


def percent(values: Sequence[float]) -> str:
    """The cell of shares over seeds; a mean alone for one seed."""
    mean = statistics.fmean(values)
    return cell(mean, deviation(values)) if len(values) > 1 else f"{100 * mean:.1f}"


def told(options: Mapping[str, Any]) -> str:
    """Options as a page names them, spelled as in YAML."""

    def spelled(value: Any) -> str:
        if value is None:
            return "null"
        return str(value).lower() if isinstance(value, bool) else str(value)

    return ", ".join(f"`{key}: {spelled(value)}`" for key, value in options.items()) or "defaults"


def facts(
    module: str, *lines: str, packages: Sequence[str] = ("torch", "numpy"), typed: Sequence[str] | None = None
) -> list[str]:
    """The lines that end a page: what was typed and when, what belongs to it, versions, the machine.

    Args:
        module: of the benchmark, by its name under ``benchmarks``.
        lines: what else the numbers belong to.
        packages: whose versions are told, beside Python's and this library's.
        typed: arguments; ``None`` takes those of the process.
    """
    command = shlex.join(["python", "-m", f"benchmarks.{module}", *(sys.argv[1:] if typed is None else typed)])
    return [
        f"- Command: `{command}`, {time.strftime('%Y-%m-%d')}",
        *(f"- {line}" for line in lines),
        "- Versions: " + ", ".join(f"{name} {version}" for name, version in versions(tuple(packages)).items()),
        f"- Machine: {processor()}, {os.cpu_count()} cores; one torch thread, a run at a time",
    ]


def seeds_of(results: Sequence[Any]) -> str:
    """The seeds that were run, in order."""
    return ", ".join(str(seed) for seed in sorted({result.seed for result in results}))


def as_csv(items: Sequence[Any]) -> str:
    """Dataclasses of one kind as CSV, a row each."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(vars(items[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(vars(item) for item in items)
    return file.getvalue()


def write(report: Path, page: str, **tables: Sequence[Any]) -> None:
    """Write ``REPORT.md`` and a CSV for each table: ``rows`` as ``REPORT.csv``, any other as ``REPORT-NAME.csv``."""
    report.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write_text(Path(f"{report}.md"), page)
    for name, items in tables.items():
        checkpoint.write_text(Path(f"{report}{'' if name == 'rows' else f'-{name}'}.csv"), as_csv(items))
