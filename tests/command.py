"""The command line inside this process: quick, and with everything that it printed."""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path

from click.testing import CliRunner, Result

import recdenoise
from recdenoise.cli import main


def environment() -> dict[str, str]:
    """For another process, which then sees the package wherever it stands."""
    paths = [str(Path(recdenoise.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def run(*words: str | Path) -> Result:
    """Run ``recdenoise`` with these words; stdout and stderr apart. Nothing is asserted about how it ends."""
    separate = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
    return CliRunner(**separate).invoke(main, [str(word) for word in words], prog_name="recdenoise")  # type: ignore[arg-type]


def output(*words: str | Path) -> str:
    """What a command that ends well printed."""
    result = run(*words)
    assert result.exit_code == 0, f"{result.stderr}\n{result.exception!r}"
    return result.stdout


def mistake(*words: str | Path) -> str:
    """The one line that a mistake is answered with."""
    result = run(*words)
    assert result.exit_code == 2, f"exit code {result.exit_code}: {result.exception!r}\n{result.stderr}"
    lines = result.stderr.splitlines()
    assert len(lines) == 1, f"{len(lines)} lines: {result.stderr}"
    assert lines[0].startswith("recdenoise: ")
    assert "Traceback" not in result.output
    return lines[0].removeprefix("recdenoise: ")


FAST = ("--set", "epochs=2", "--set", "train_batch_size=64", "--set", "embedding_size=8", "--quiet")


def train(built: Path, *words: str, model: str = "GMF") -> str:
    """Train on a built folder, fast, and return what was printed."""
    return output("train", "--model", model, "--dataset", str(built), *FAST, *words)


def figures(printed: str) -> dict[str, list[float]]:
    """The rows of a printed table of metrics."""
    rows = [
        [cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in printed.splitlines() if line[:1] in "│┃"
    ]
    return {row[0]: [float(cell) for cell in row[1:]] for row in rows[1:] if len(row) > 1}
