"""``recdenoise vision benchmark figure3`` and ``figure4``: what the pages say is what the runs' files hold."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from tests.command import mistake, output
from tests.toy_images import TinyImages

FAST = ("--network", "mlp", "--set", "batch_size=16", "--set", "optimizer=adam", "--set", "epochs=2", "--valid", "0.25")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "small.npz"
    train, test = TinyImages.draw(64, 0.0, 7), TinyImages.draw(30, 0.0, 9)
    arrays = {"images": train.images, "labels": train.labels, "images_test": test.images, "labels_test": test.labels}
    np.savez(path, **{name: value.numpy() for name, value in arrays.items()})
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_curves_are_those_of_the_last_stage(small: Path, tmp_path: Path) -> None:
    words = ("vision", "benchmark", "figure3", "--dataset", small, "--methods", "normal", "deca_p", *FAST)
    printed = output(*words, "--out", tmp_path / "out", "--report", tmp_path / "pages" / "curves")
    rows = rows_of(tmp_path / "pages" / "curves.csv")
    assert len(rows) == 2 * 2 * 2  # methods, seeds, epochs
    for method, stage in (("normal", "train"), ("deca_p", "train")):
        for seed in ("0", "1"):
            history = rows_of(tmp_path / "out" / f"{method}-{seed}" / "metrics.csv")
            curve = [row["test_accuracy"] for row in history if row["stage"] == stage]
            assert [r["test_accuracy"] for r in rows if (r["method"], r["seed"]) == (method, seed)] == curve
    page = (tmp_path / "pages" / "curves.md").read_text(encoding="utf-8")
    last = [float(r["test_accuracy"]) for r in rows if (r["method"], r["epoch"]) == ("deca_p", "2")]
    assert f"{100 * np.mean(last):.2f} ± {100 * np.std(last, ddof=1):.2f}" in page
    assert "DeCA(p): " in printed
    assert (tmp_path / "pages" / "curves.png").stat().st_size > 5_000
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/*")}
    output(*words, "--out", tmp_path / "out", "--report", tmp_path / "pages" / "curves")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/*")} == before


def test_the_map_holds_every_pair(small: Path, tmp_path: Path) -> None:
    words = ("vision", "benchmark", "figure4", "--dataset", small, "--c_1", "1", "10", "--c_2", "2.5", *FAST)
    printed = output(*words, "--seeds", "1", "--out", tmp_path / "out")
    rows = rows_of(tmp_path / "out" / "figure4.csv")
    assert [(row["c_1"], row["c_2"]) for row in rows] == [("1.0", "2.5"), ("10.0", "2.5")]
    for row in rows:
        folder = tmp_path / "out" / f"{float(row['c_1']):g}-2.5-0"
        record = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        assert float(row["best_val"]) == record["test"]["best_val"]["accuracy"]
        assert f"c_1: {row['c_1']}" in (folder / "config.yaml").read_text(encoding="utf-8")
    best = max(rows, key=lambda row: float(row["last"]))
    assert f"last: highest {100 * float(best['last']):.2f} % at c_1 = {float(best['c_1']):g}, c_2 = 2.5" in printed
    assert (tmp_path / "out" / "figure4.png").stat().st_size > 5_000


def test_bad_input_gets_one_sentence(small: Path, tmp_path: Path) -> None:
    def said(figure: str, *words: str) -> str:
        return mistake("vision", "benchmark", figure, "--dataset", small, "--out", tmp_path / "x", *FAST, *words)

    assert "the methods differ in their options" in said("figure3", "--set", "method.q=1")
    assert "'nomal'" in said("figure3", "--methods", "nomal")
    assert "all must be numbers" in said("figure4", "--c_1", "one")
    assert "give values by --c_2" in said("figure4", "--set", "method.c_2=1")
    assert "some images must choose" in said("figure4", "--valid", "0")
    assert not (tmp_path / "x").exists()
