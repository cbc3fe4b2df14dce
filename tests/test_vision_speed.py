"""The benchmark of images' speed, at its smallest: what it measures, judges and refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import vision_speed
from benchmarks.turns import Figure
from recdenoise.task import Pass
from tests.command import environment

SMALL = ["--networks", "convnet2", "--batch", "8", "--steps", "2", "--workers", "0", "--device", "cpu"]


def test_quick_run_measures_everything_and_judges_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report, record = tmp_path / "speed.txt", tmp_path / "speed.json"
    assert vision_speed.main([*SMALL, "--quick", "--report", str(report), "--json", str(record)]) == 0
    printed = capsys.readouterr().out
    assert report.read_text().split() == printed.split()
    figures = json.loads(record.read_text())
    names = [figure["name"].partition(": ")[2] for figure in figures]
    assert names == [
        "bare steps / epoch",
        "images a second",
        "DataLoader, 0 workers / epoch",
        "DeCA(p)'s target / Normal",
    ]
    assert [figure["limit"] for figure in figures] == [0.9, None, None, 1.6]
    assert all(figure["ratio"] > 0 for figure in figures)


def test_a_missed_requirement_is_an_exit_status(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Figure("a", 1.0, 0.5, 0.5, 0.9, at_least=True)]
    monkeypatch.setattr(vision_speed, "figures", lambda *given: iter(found))
    assert vision_speed.main([*SMALL, "--repeats", "1"]) == 1
    assert vision_speed.main([*SMALL, "--quick"]) == 0


def test_the_loader_gives_the_same_examples_as_the_loop() -> None:
    bench = vision_speed.Bench.make("convnet2", 4, 3, torch.device("cpu"))
    vision_speed.FedTask.workers = 0
    sides = [bench.task(), bench.task(vision_speed.FedTask)]
    seen = []
    for task in sides:
        batches = list(task.loader(Pass(), (0, 0, 0)).batches())
        assert [batch.inputs.shape for batch in batches] == [(4, 3, 32, 32)] * 3
        for batch in batches:
            assert torch.equal(batch.label, task.labels[batch.index])
        seen.append(sorted(torch.cat([batch.index for batch in batches]).tolist()))
    assert seen[0] == seen[1] == list(range(12))


def test_the_bare_step_trains() -> None:
    bench = vision_speed.Bench.make("convnet2", 4, 2, torch.device("cpu"))
    built: list[torch.nn.Module] = []
    build = vision_speed.networks.build
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vision_speed.networks, "build", lambda *given: built.append(build(*given)) or built[-1])
        epoch = bench.bare()
    before = [p.clone() for p in built[0].parameters()]
    epoch()
    assert not any(torch.equal(p, q) for p, q in zip(before, built[0].parameters(), strict=True))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--steps", "0"], "--steps must be 1 or more"),
        (["--device", "tpu9"], "--device tpu9"),
        (["--batch", "0"], "--batch"),
    ],
)
def test_options_are_checked(words: list[str], said: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.vision_speed", *words],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=Path(__file__).parents[1],
    )
    assert ran.returncode == 2
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr


def test_nothing_of_recbole_is_needed() -> None:
    code = "import sys, benchmarks.vision_speed; print(any(m.split('.')[0] == 'recbole' for m in sys.modules))"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=Path(__file__).parents[1],
        check=True,
    )
    assert ran.stdout.strip() == "False"
