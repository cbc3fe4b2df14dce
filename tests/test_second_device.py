"""Every method with its data and networks on another device than the CPU, on a machine that has none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from recdenoise import denoisers
from tests import second_device
from tests.command import environment
from vision import methods

pytestmark = pytest.mark.skipif(not second_device.available(), reason="this torch has no devices made of Python")

MODELS = ("MF", "GMF", "NeuMF", "CDAE", "LightGCN")
EXPECTED = {
    "images": len(methods.names()),
    "commands": 12,
    "recommenders": len(MODELS) * len(denoisers.names()),
    "checks": 11,
}
"""Kinds of runs, and how many of each there are."""


@pytest.mark.parametrize("kind", EXPECTED)
def test_runs_where_nothing_may_meet_the_cpu(kind: str, tmp_path: Path) -> None:
    words = [sys.executable, "-W", "ignore", "-m", "tests.second_device_runs", kind, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=500)
    assert done.returncode == 0, done.stderr
    errors = {row["name"]: row["error"] for row in map(json.loads, done.stdout.splitlines())}
    assert len(errors) == EXPECTED[kind]
    found = [f"{name}\n{error}" for name, error in errors.items() if error is not None]
    assert not found, "\n".join(found)
