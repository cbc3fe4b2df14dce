"""The small comparison on Colored MNIST: its arithmetic, its report, and, when asked, the whole of it."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks import bias_small
from benchmarks.bias_small import Result
from vision import methods, networks


def result(case: str, seed: int, unbiased: float) -> Result:
    return Result(case, seed, unbiased, unbiased - 0.1, math.nan, math.nan, 8.0)


def test_claims_are_of_means_over_seeds_and_by_points() -> None:
    values = {"normal": (0.3, 0.4), "lff": (0.5, 0.49), "dfa_apart": (0.6, 0.6), "dfa": (0.5, 0.71)}
    results = [result(case, seed, value) for case, pair in values.items() for seed, value in enumerate(pair)]
    lines = bias_small.summarise(results)
    assert [line.case for line in lines] == list(values)
    assert lines[0].unbiased == pytest.approx(0.35)
    assert lines[0].conflicting == pytest.approx(0.25)
    (lff, holds), (dfa, too) = bias_small.verdicts(lines)
    assert not holds
    assert "by 14.5 points (wanted: at least 15 points): **no**" in lff
    assert too
    assert "by 0.5 points (wanted: at all): yes" in dfa
    assert bias_small.verdicts(lines[:1]) == []


def test_every_case_is_known_and_takes_its_options() -> None:
    for case in bias_small.CASES.values():
        methods.get(case.method).read_config(case.options)
        assert case.network in networks.names()


def test_runs_once_and_writes_its_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    draws, parts = np.random.default_rng(0), {}
    for end in ("", "_test"):
        labels = np.arange(80) % 4
        images = draws.integers(0, 60, (80, 8, 8), dtype=np.uint8)
        images[np.arange(80), 2 * labels] += 150
        parts |= {f"images{end}": images, f"labels{end}": labels}
        parts[f"attribute_bias{end}"] = np.where(draws.random(80) < 0.3, (labels + 1) % 4, labels)
    np.savez(tmp_path / "tiny.npz", **parts)
    monkeypatch.setitem(bias_small.RUN, "batch_size", 16)
    arguments = ["--dataset", str(tmp_path / "tiny.npz"), "--images", "64", "--epochs", "2", "--seeds", "2"]
    arguments += ["--cases", "normal", "lff", "--runs", str(tmp_path / "runs"), "--report", str(tmp_path / "report")]
    monkeypatch.setattr("sys.argv", ["bias_small", *arguments])
    assert bias_small.main(arguments) == 0
    first = capsys.readouterr().out
    assert "LfF is ahead of Normal by" in first
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| LfF | `mlp100_code` | defaults |" in text
    assert "--seeds 2" in text
    with (tmp_path / "report-runs.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["seed"]) for row in rows] == [
        ("normal", "0"),
        ("lff", "0"),
        ("normal", "1"),
        ("lff", "1"),
    ]
    assert 0 <= float(rows[1]["weight_aligned"]) <= 1
    stamp = (tmp_path / "runs" / "lff-1" / "model.pt").stat().st_mtime_ns
    assert bias_small.main(arguments) == 0
    assert (tmp_path / "runs" / "lff-1" / "model.pt").stat().st_mtime_ns == stamp
    assert capsys.readouterr().out.split("load")[0] == first.split("load")[0]
    assert bias_small.main([*arguments, "--epochs", "3"]) == 2
    assert "normal-0" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(2 * 3600)
@pytest.mark.usefixtures("real_data")
def test_lff_beats_normal_by_15_points_and_scheduled_swapping_helps_dfa(tmp_path: Path) -> None:
    arguments = ["--runs", str(tmp_path / "runs"), "--report", str(tmp_path / "report")]
    arguments += ["--cases", "normal", "lff", "dfa_apart", "dfa"]
    assert bias_small.main(arguments) == 0, (tmp_path / "report.md").read_text(encoding="utf-8")
