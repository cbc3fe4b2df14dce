"""The small comparison on Fashion-MNIST: its arithmetic, its report, and, when asked, the whole of it."""

from __future__ import annotations

import csv
import math
import statistics
from pathlib import Path

import numpy as np
import pytest

from benchmarks import pages, vision_small
from benchmarks.vision_small import Result
from vision import methods


def result(method: str, seed: int, last: float) -> Result:
    return Result(method, seed, last, 0.8, 0.5, 10.0, 8.0)


def test_a_margin_is_clear_by_points_and_by_the_error_of_paired_differences() -> None:
    normal = [0.60, 0.70, 0.65]
    gaps = {"elr": [0.10, 0.11, 0.12], "gce": [0.30, -0.20, 0.20], "mixup": [0.015, 0.015, 0.016]}
    results = [result("normal", seed, value) for seed, value in enumerate(normal)]
    for method, gap in gaps.items():
        results += [result(method, seed, normal[seed] + gap[seed]) for seed in range(3)]
    lines = {line.method: line for line in vision_small.summarise(results)}
    assert list(lines) == ["normal", "elr", "gce", "mixup"]
    assert lines["normal"].ahead is None
    assert lines["elr"].ahead == pytest.approx(0.11)
    assert lines["elr"].error == pytest.approx(0.01 / math.sqrt(3))  # of the differences: normal's spread is far larger
    assert lines["elr"].last == pytest.approx(statistics.fmean([0.70, 0.81, 0.77]))
    assert {name for name, line in lines.items() if line.clear} == {"elr"}
    assert lines["gce"].ahead == pytest.approx(0.1)


def test_one_seed_is_never_clear() -> None:
    lines = vision_small.summarise([result("normal", 0, 0.5), result("elr", 0, 0.9)])
    assert math.isinf(lines[1].error)
    assert not lines[1].clear


def test_every_method_is_known_and_takes_its_options() -> None:
    for name, options in vision_small.METHODS.items():
        methods.get(name).read_config(options)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images whose class is a bright row, as a file; and steps small enough for it."""
    draws = np.random.default_rng(0)
    parts = {}
    for part, n in (("train", 80), ("test", 40)):
        labels = np.arange(n) % 4
        images = draws.integers(0, 60, (n, 8, 8), dtype=np.uint8)
        images[np.arange(n), 2 * labels] += 150
        parts |= {f"{part}_images": images, f"{part}_labels": labels}
    path = tmp_path / "tiny.npz"
    np.savez(path, **parts)
    monkeypatch.setitem(vision_small.RUN, "batch_size", 16)
    return path


def test_runs_once_and_writes_its_report(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [
        "--dataset",
        str(tiny),
        "--images",
        "60",
        "--epochs",
        "2",
        "--seeds",
        "2",
        "--methods",
        "normal",
        "elr",
    ]
    arguments += ["--runs", str(tmp_path / "runs"), "--report", str(tmp_path / "out" / "report")]
    monkeypatch.setattr("sys.argv", ["vision_small", *arguments])
    assert vision_small.main(arguments) == 0
    first = capsys.readouterr().out
    assert "of 1 methods are ahead" in first
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "| Normal | defaults |" in text
    assert "--seeds 2" in text
    assert "`epochs: 2`" in text
    with (tmp_path / "out" / "report-runs.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["seed"]) for row in rows] == [
        ("normal", "0"),
        ("elr", "0"),
        ("normal", "1"),
        ("elr", "1"),
    ]
    stamp = (tmp_path / "runs" / "elr-1" / "model.pt").stat().st_mtime_ns
    assert vision_small.main(arguments) == 0
    assert (tmp_path / "runs" / "elr-1" / "model.pt").stat().st_mtime_ns == stamp
    assert capsys.readouterr().out.split("load")[0] == first.split("load")[0]
    assert vision_small.main([*arguments, "--epochs", "3"]) == 2
    assert "normal-0" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
@pytest.mark.usefixtures("real_data")
def test_at_least_five_of_seven_methods_beat_normal_at_the_last_epoch(tmp_path: Path) -> None:
    arguments = ["--runs", str(tmp_path / "runs"), "--report", str(tmp_path / "report")]
    assert vision_small.main(arguments) == 0, (tmp_path / "report.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("real_data")
def test_pes_and_sop_stand_beside_normal_at_the_last_epoch(tmp_path: Path) -> None:
    """They learn, and how far they are ahead is in the report: nothing is asked of the margin of one seed."""
    arguments = ["--methods", "normal", "pes", "sop", "--seeds", "1", "--runs", str(tmp_path / "runs")]
    assert vision_small.main([*arguments, "--report", str(tmp_path / "report")]) == 0
    with (tmp_path / "report.csv").open(encoding="utf-8") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["normal", "pes", "sop"]
    assert all(float(row["last"]) > 0.5 for row in rows.values())
    assert all(math.isfinite(float(rows[name]["ahead"])) for name in ("pes", "sop"))


def test_cells_and_options_of_a_page() -> None:
    assert pages.percent([0.5, 0.7]) == "60.0 ± 14.1"
    assert pages.percent([0.827]) == "82.7"
    options = {"keep": None, "flip": False, "fixed": True, "members": 1, "lr": 0.5, "name": "None"}
    said = "`keep: null`, `flip: false`, `fixed: true`, `members: 1`, `lr: 0.5`, `name: None`"
    assert (pages.told(options), pages.told({})) == (said, "defaults")
