"""The benchmark of hosts' cost, at its smallest: what it measures and judges."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import host_cost
from benchmarks.turns import Figure

SMALL = ["--network", "convnet2", "--batch", "8", "--steps", "2", "--device", "cpu"]


def test_quick_run_measures_everything_and_judges_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = tmp_path / "cost.json"
    assert host_cost.main([*SMALL, "--quick", "--json", str(record)]) == 0
    assert "too short to judge" in capsys.readouterr().out
    figures = json.loads(record.read_text())
    assert [figure["limit"] for figure in figures] == [1.3, 1.3, None, None, None, None]
    assert [figure["name"].partition(",")[0].partition(":")[0] for figure in figures] == ["PES"] * 4 + ["SOP", "SOP+"]
    assert all(figure["ratio"] > 0 for figure in figures)


def test_a_missed_requirement_is_an_exit_status(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Figure("a", 2.0, 1.0, 2.0, 1.3)]
    monkeypatch.setattr(host_cost, "figures", lambda *given: iter(found))
    assert host_cost.main([*SMALL, "--repeats", "1"]) == 1
    assert host_cost.main([*SMALL, "--quick"]) == 0


def test_it_looks_at_all_rows_and_keeps_the_share_that_it_is_told() -> None:
    bench = host_cost.Bench.make("convnet2", 8, 4, torch.device("cpu"))
    denoiser = host_cost.Keeps(bench.task(), {})
    denoiser.share = 0.6
    looks: list[int] = []
    denoiser.score = lambda inputs: looks.append(len(inputs)) or denoiser.target(inputs)  # type: ignore[method-assign]
    with torch.no_grad():
        denoiser.select()
    assert sum(looks) == 2 * 32
    assert int(denoiser.kept.sum()) == 20


@pytest.mark.parametrize("words", [["--steps", "0"], ["--device", "tpu"]])
def test_options_are_checked(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        host_cost.parse(words)
    assert words[0] in capsys.readouterr().err
