"""The benchmarks of DivideMix: what they print, write and judge; and, when asked, the figure on Fashion-MNIST."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import dividemix_cost, mixture_auc
from benchmarks.mixture_auc import Division


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images whose class is a bright row, as a file; and steps small enough for it."""
    draws = np.random.default_rng(0)
    labels = np.arange(120) % 4
    images = draws.integers(0, 60, (120, 8, 8), dtype=np.uint8)
    images[np.arange(120), 2 * labels] += 150
    path = tmp_path / "tiny.npz"
    np.savez(path, train_images=images, train_labels=labels)
    monkeypatch.setitem(mixture_auc.RUN, "batch_size", 16)
    return path


def test_divisions_are_measured_and_written(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixture_auc, "LEAST", 0.0)
    words = ["--dataset", str(tiny), "--images", "100", "--seeds", "2", "--warm", "2", "--divisions", "2"]
    assert mixture_auc.main([*words, "--report", str(tmp_path / "out" / "report")]) == 0
    printed = capsys.readouterr().out
    assert "seed 1, epoch 3, second: AUC" in printed
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "--divisions 2" in text
    assert "(seed 1)" in text
    with (tmp_path / "out" / "report.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["seed"], row["epoch"], row["network"]) for row in rows] == [
        (seed, epoch, network) for seed in "01" for epoch in "34" for network in ("first", "second")
    ]
    assert all(0 <= float(row["auc"]) <= 1 for row in rows)
    assert all(0 < float(row["wrong"]) < 0.6 for row in rows)


def test_the_first_division_of_every_seed_is_judged() -> None:
    found = [
        Division(seed, epoch, network, area, 0.5, 0.9, 0.4)
        for seed, epoch, network, area in [
            (0, 3, "first", 0.9),
            (0, 3, "second", 0.94),
            (0, 4, "first", 0.1),
            (1, 3, "first", 0.8),
            (1, 3, "second", 0.9),
        ]
    ]
    assert mixture_auc.firsts(found, 2) == {0: pytest.approx(0.92), 1: pytest.approx(0.85)}


@pytest.mark.parametrize(
    ("program", "words", "said"),
    [
        (mixture_auc, ["--warm", "0"], "must be 1 or more"),
        (dividemix_cost, ["--images", "8", "--batch", "16"], "less than one batch of 16"),
        (dividemix_cost, ["--epochs", "0"], "--epochs must be 1 or more"),
        (dividemix_cost, ["--device", "nowhere"], "--device nowhere"),
    ],
)
def test_bad_options_are_one_sentence(
    program: object, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        program.main(words)  # type: ignore[attr-defined]
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_parts_of_an_epoch_are_told_and_their_sum_is_the_epoch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--network", "convnet2", "--images", "16", "--batch", "4", "--device", "cpu", "--quick"]
    report, record = tmp_path / "cost.txt", tmp_path / "cost.json"
    assert dividemix_cost.main([*words, "--report", str(report), "--json", str(record)]) == 0
    printed = capsys.readouterr().out
    figures = {figure["name"].split(" /")[0]: figure for figure in json.loads(record.read_text(encoding="utf-8"))}
    assert [name for name in figures if name in dividemix_cost.PARTS] == list(dividemix_cost.PARTS)
    assert sum(figures[part]["ours"] for part in dividemix_cost.PARTS) == pytest.approx(figures["forward"]["yardstick"])
    assert all(figures[part]["ours"] > 0 for part in dividemix_cost.PARTS)
    books = sum(figures[part]["ours"] for part in dividemix_cost.PARTS[2:])
    assert figures["bookkeeping"]["ours"] == pytest.approx(books)
    assert "Quick run" in printed
    assert report.read_text(encoding="utf-8").splitlines()[-1] == printed.splitlines()[-1]


def test_too_much_bookkeeping_fails() -> None:
    epoch = dict.fromkeys(dividemix_cost.PARTS, 0.01) | {"forward": 0.5, "backward": 0.5}
    met, missed = epoch, epoch | {"rest": 0.1}
    for parts, wanted in ((met, False), (missed, True)):
        found = {figure.name: figure for figure in dividemix_cost.figures([parts, parts])}
        assert found["bookkeeping / epoch"].missed is wanted


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("real_data")
def test_mixtures_separate_wrong_labels_of_fashion_mnist(tmp_path: Path) -> None:
    report = tmp_path / "report"
    assert mixture_auc.main(["--report", str(report)]) == 0, Path(f"{report}.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_bookkeeping_takes_less_than_its_share(capsys: pytest.CaptureFixture[str]) -> None:
    assert dividemix_cost.main(["--device", "cpu"]) == 0, capsys.readouterr().out
