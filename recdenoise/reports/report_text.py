"""What every report says in the same words, whatever the backend of its runs."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from recdenoise.errors import UserError


def damaged(path: Path) -> UserError:
    """What to say of a run's file that cannot be read."""
    return UserError(f"{path} is damaged; delete the folder {path.parent} to run it again.")


def read_json(path: Path, *needed: str) -> dict[str, Any] | None:
    """A JSON file's mapping, ``None`` where there is no file. Raises ``UserError`` where it lacks something."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise damaged(path) from None
    if not isinstance(content, dict) or not content.keys() >= set(needed):
        raise damaged(path)
    return content


JOB = ("machine", "ended", "seconds")
"""What :func:`circumstances` reads of ``job.json``."""


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 2) -> list[str]:
    """Lines of a table; the first ``left`` columns are text, the others numbers. A bar in a cell is escaped."""
    lines = [_markdown_row(columns)]
    lines.append("|" + "|".join("---" if i < left else "---:" for i in range(len(columns))) + "|")
    return lines + [_markdown_row(row) for row in rows]


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def cells_of(line: str) -> list[str]:
    """The cells of a line of :func:`markdown_table`, as they were but for blanks around them."""
    cells = re.split(r"(?<!\\)\|", line.removeprefix("|").removesuffix("|"))
    return [cell.replace(r"\|", "|").strip() for cell in cells]


def circumstances(
    results: Sequence[dict[str, Any]],
    jobs: Sequence[dict[str, Any]],
    command: Sequence[str],
    protocol: str | None = None,
) -> list[str]:
    """Command, versions, hardware, dates and seconds: whatever the files say, each different value once.

    Args:
        results: contents of ``result.json``.
        jobs: contents of ``job.json``.
        command: what was typed.
        protocol: of all runs, where there is such a thing.
    """
    versions = dict.fromkeys(", ".join(f"{k} {v}" for k, v in result["versions"].items()) for result in results)
    machines = dict.fromkeys(
        f"{m['platform']}, {m['processor']}, {m['cores']} cores" for m in (job["machine"] for job in jobs)
    )
    dates = sorted(job["ended"] for job in jobs)
    seeds = sorted({result["seed"] for result in results})
    inside = sum(sum(result["seconds"].values()) for result in results)
    wall = sum(job["seconds"] for job in jobs)
    devices = dict.fromkeys(result["device"] for result in results if "device" in result)
    lead = "Seeds" if protocol is None else f"Protocol: {protocol}; seeds"
    lines = [f"- Command: `{shlex.join(command)}`", f"- {lead} {', '.join(map(str, seeds))}"]
    lines += [f"- Device: {', '.join(devices)}"] if devices else []
    lines += [f"- Versions: {v}" for v in versions] + [f"- Machine: {m}; one torch thread a run" for m in machines]
    lines += [f"- Runs: {len(results)}" + (f", ended {dates[0]} to {dates[-1]}" if dates else "")]
    total = f"- Seconds over all runs: {inside:.0f} preparing, training and testing"
    return [*lines, total + (f"; {wall:.0f} of whole processes" if wall else "")]
