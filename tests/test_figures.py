"""Figures from tiny runs: numbers against plain loops, a watched run against one that is not, files, pictures."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recdenoise.errors import UserError
from recdenoise.loop import Observer
from recdenoise.recbole_adapter.experiment import train
from recdenoise.recbole_adapter.settings import resolve
from recdenoise.reports import figures, grid, prediction_figures, runs, table_page, training_figures
from recdenoise.reports.comparison import Finished, collect
from recdenoise.reports.run_folder import result_of

FAST = {"train_batch_size": 64, "learning_rate": 0.01}


def tiny(name: str, built: Path, n_seeds: int = 2, **changes: Any) -> tuple[grid.TableSpec, list[grid.Cell]]:
    """A figure's grid on the small folder, without published settings."""
    table = grid.read_table(name)
    changes = {"preset": None, "preset_of": {}, "set": {**table.set, "epochs": 3}, **changes}
    table = dataclasses.replace(table, datasets=(str(built),), **changes)
    return table, grid.plan(table, n_seeds=n_seeds, options=FAST)


def ran(table: grid.TableSpec, cells: list[grid.Cell], out: Path) -> list[Finished]:
    for cell in cells:
        runs.run_one(cell.settings, out / cell.name, table.keeps)
    return collect(cells, out)


def report(table: grid.TableSpec, cells: list[grid.Cell], out: Path) -> tuple[list[dict[str, str]], str, list[str]]:
    """CSV rows, Markdown, lines; the other files are looked at."""
    paths, lines = figures.write_report(table, cells, out, out / "report" / "f", ["recdenoise", "benchmark", "x"])
    assert [path.suffix for path in paths] == [".md", ".csv", ".html", ".png"]
    assert paths[3].read_bytes().startswith(b"\x89PNG")
    page = paths[2].read_text(encoding="utf-8")
    assert "<svg" in page
    assert "http" not in page.replace("http-equiv", "")
    with paths[1].open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file)), paths[0].read_text(encoding="utf-8"), lines


# The test along training


def state(folder: Path) -> dict[str, torch.Tensor]:
    modules = torch.load(folder / "model.pt", weights_only=True)["modules"]
    assert isinstance(modules, dict)
    return modules


@pytest.mark.parametrize(("model", "denoiser"), [("GMF", "deca_p"), ("CDAE", "normal"), ("LightGCN", "deca")])
def test_watching_the_test_changes_no_bit(model: str, denoiser: str, built: Path, here: Path) -> None:
    """CDAE draws dropout in every step, LightGCN caches what it propagated: neither notices."""
    options = {**FAST, "epochs": 3, "valid_selector": "ndcg@20", "denoiser": {"compat": "none"}}
    settings = resolve(model, str(built), denoiser, seed=3, overrides=options)
    train(settings, here / "plain")
    runs.run_one(settings, here / "watched", ["test_curve"])
    plain, watched = state(here / "plain"), state(here / "watched")
    assert plain.keys() == watched.keys()
    assert all(torch.equal(plain[name], watched[name]) for name in plain)
    rows = training_figures.read_curve(here / "watched")
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert {"recall@20", "ndcg@20"} <= rows[0].keys()


def test_the_last_point_of_a_curve_is_the_test_of_the_last_epoch(built: Path, here: Path) -> None:
    options = {**FAST, "epochs": 2, "valid_selector": "last"}
    runs.run_one(resolve("GMF", str(built), "normal", overrides=options), here / "run", ["test_curve", "users"])
    result = result_of(here / "run")
    assert result is not None
    last = training_figures.read_curve(here / "run")[-1]
    assert last["recall@20"] == result["test"]["recall@20"]
    assert last["ndcg@20"] == result["test"]["ndcg@20"]


def test_an_interrupted_curve_goes_on_where_it_was(built: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {**FAST, "epochs": 6, "valid_selector": "last", "checkpoint_seconds": 0.0}
    settings = resolve("GMF", str(built), "deca_p", seed=5, overrides=options)
    runs.run_one(settings, here / "whole", ["test_curve"])

    class Stopped(runs.TestCurve):
        def on_epoch(self, row: dict[str, Any]) -> None:
            super().on_epoch(row)
            if len(self.rows) == 4:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs, "TestCurve", Stopped)
        with pytest.raises(KeyboardInterrupt):
            runs.run_one(settings, here / "parts", ["test_curve"])
    assert len(training_figures.read_curve(here / "parts")) == 4
    runs.run_one(settings, here / "parts", ["test_curve"])
    whole, parts = (
        [{k: v for k, v in row.items() if k != "seconds"} for row in training_figures.read_curve(here / name)]
        for name in ("whole", "parts")
    )
    assert parts == whole
    assert all(
        torch.equal(a, b) for a, b in zip(state(here / "whole").values(), state(here / "parts").values(), strict=True)
    )


def test_the_observer_forgets_epochs_that_are_trained_again(tmp_path: Path) -> None:
    path = tmp_path / "test_curve.csv"
    path.write_text("epoch,recall@20,seconds\n1.0,0.1,0.0\n2.0,0.2,0.0\n3.0,0.3,0.0\n", encoding="utf-8")

    class Stage:
        name = "train"

    class Denoiser:
        @staticmethod
        def stages() -> list[Any]:
            return [Stage]

    class Run:
        denoiser = Denoiser

    curve = runs.TestCurve(Run, path)  # type: ignore[arg-type]
    assert isinstance(curve, Observer)
    curve.on_stage(Stage, 9, 1, 2)  # type: ignore[arg-type]
    assert [row["epoch"] for row in curve.rows] == [1, 2]


# Numbers


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30))
def test_disagreement_is_what_a_loop_counts(pairs: list[tuple[float, float]]) -> None:
    first, second = (np.array(column) for column in zip(*pairs, strict=True))
    different = sum(abs(int(a >= 0.5) - int(b >= 0.5)) for a, b in pairs)
    assert prediction_figures.disagreement(first, second) == pytest.approx(different / len(pairs))


def test_differences_by_hand() -> None:
    rating = np.array([5, 4, 3, 2, 1])
    known = {
        ("A", 1): np.array([0.9, 0.9, 0.9, 0.9, 0.1]),
        ("A", 2): np.array([0.9, 0.9, 0.1, 0.1, 0.1]),
        ("B", 1): np.array([0.9, 0.1, 0.1, 0.1, 0.9]),
    }
    rows = prediction_figures.difference_rows("x", known, rating)
    found = {(r["kind"], r["pair"], r["group"][:5]): (r["mean"], r["comparisons"], r["interactions"]) for r in rows}
    assert found == {
        ("two models", "A, B", "clean"): (0.5, 1, 2),
        ("two models", "A, B", "noisy"): (1.0, 1, 2),
        ("two seeds", "A", "clean"): (0.0, 1, 2),
        ("two seeds", "A", "noisy"): (0.5, 1, 2),
    }


@given(st.lists(st.tuples(st.sampled_from([1.0, 2.5, 5.0]), st.floats(0, 1, width=32)), min_size=1, max_size=40))
def test_means_by_rating_are_what_a_loop_finds(rows: list[tuple[float, float]]) -> None:
    rating, p = (np.array(column, dtype=np.float32) for column in zip(*rows, strict=True))
    means, counts = prediction_figures.means_by_rating({"rating": rating, "p_clean": p})
    for level in {r for r, _ in rows}:
        chosen = [q for r, q in rows if r == level]
        assert counts[level] == len(chosen)
        assert means[level] == pytest.approx(math.fsum(chosen) / len(chosen), abs=1e-6)
    assert list(means) == sorted(means)


def test_pairs_without_a_rating_have_no_mean() -> None:
    arrays = {"rating": np.array([5, np.nan, 1, np.nan], np.float32), "p_clean": np.array([0.5, 0.9, 0.25, 1])}
    assert prediction_figures.means_by_rating(arrays) == ({1.0: 0.25, 5.0: 0.5}, {1.0: 1, 5.0: 1})


def test_a_band_covers_the_epochs_that_every_seed_reached() -> None:
    line = table_page.band("a", [([1, 2, 3], [0.1, 0.2, 0.3]), ([1, 2], [0.3, 0.2])], "#000000")
    assert (list(line.x), list(line.low), list(line.high)) == ([1, 2], [0.1, 0.2], [0.3, 0.2])
    assert list(line.y) == pytest.approx([0.2, 0.2])
    assert list(table_page.band("a", [([1, 2], [0.1, 0.2])], "#000000").low) == []


# Files


def test_figure_1(built: Path, here: Path) -> None:
    table, cells = tiny("figure1", built, models=("MF", "GMF"))
    found = ran(table, cells, here)
    rows, text, lines = report(table, cells, here)
    assert {(r["kind"], r["pair"]) for r in rows} == {
        ("two models", "MF, GMF"),
        ("two seeds", "MF"),
        ("two seeds", "GMF"),
    }
    first, second = (runs.read_predictions(found[i].folder) for i in (0, 1))  # MF, both seeds
    noisy = [
        (a >= 0.5) != (b >= 0.5) for a, b, r in zip(first["p"], second["p"], first["rating"], strict=True) if r <= 2
    ]
    row = next(r for r in rows if r["pair"] == "MF" and r["group"].startswith("noisy"))
    assert float(row["mean"]) == pytest.approx(sum(noisy) / len(noisy))
    assert int(row["interactions"]) == len(noisy)
    assert "![Figure 1, what two models disagree on](f.png)" in text
    assert sum("disagree more on noisy" in line for line in lines) == 2


def test_figure_3(built: Path, here: Path) -> None:
    table, cells = tiny("figure3", built, methods=("normal", "deca"))
    found = ran(table, cells, here)
    rows, text, _ = report(table, cells, here)
    assert len(rows) == 2 * 2 * 3
    measured = training_figures.read_curve(found[0].folder)
    assert [float(r["recall@20"]) for r in rows[:3]] == [row["recall@20"] for row in measured]
    assert "nothing chooses by it" in " ".join(text.split())
    assert {f.result["selector"] for f in found} == {"last"}


def test_figure_5(built: Path, here: Path) -> None:
    axes = {"denoiser.c_1": (1, 1000), "denoiser.c_2": (1, 10)}
    table, cells = tiny("figure5", built, 1, axes=axes, methods=("deca",))
    found = ran(table, cells[:3], here)  # one place of the map stays empty
    rows, text, lines = report(table, cells, here)
    assert [(float(r["c_1"]), float(r["c_2"])) for r in rows if r["metric"] == "recall@20"] == [
        (1, 1),
        (1, 10),
        (1000, 1),
    ]
    assert [float(r["mean"]) for r in rows if r["metric"] == "ndcg@20"] == [f.result["test"]["ndcg@20"] for f in found]
    assert "| 1000 | " in text
    assert "1 of 4 runs have not finished" in lines[-1]
    best = max(f.result["test"]["recall@20"] for f in found)
    assert any(f"highest {best:.4f} at" in line for line in lines)


def test_figure_6(built: Path, here: Path) -> None:
    table, cells = tiny("figure6", built, methods=("deca",))
    found = ran(table, cells, here)
    rows, _, lines = report(table, cells, here)
    assert {r["h_model"] for r in rows} == {"MF", "GMF", "NeuMF"}
    values = [runs.read_predictions(f.folder) for f in found[:2]]
    of_five = [float(v["p_clean"][v["rating"] == 5].astype(float).mean()) for v in values]
    row = next(r for r in rows if r["h_model"] == "MF" and float(r["rating"]) == 5)
    assert float(row["mean"]) == pytest.approx(sum(of_five) / 2, abs=1e-6)
    assert not np.allclose(values[0]["p"], values[0]["p_clean"])  # Eq. 25, not the model's own probability
    assert any("networks for h differ by" in line for line in lines)


def test_figures_of_predictions_need_ratings(built: Path, here: Path) -> None:
    table, cells = tiny("figure1", built, 1, models=("MF", "GMF"))
    found = ran(table, cells, here)
    for run in found:
        arrays = {k: v for k, v in runs.read_predictions(run.folder).items() if k != "rating"}
        np.savez(run.folder / "predictions.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="have no ratings"):
        figures.write_report(table, cells, here, here / "f", ["x"])
    with pytest.raises(UserError, match="no finished run"):
        figures.write_report(table, cells, here / "nowhere", here / "f", ["x"])


def test_axes_make_every_combination() -> None:
    variants = grid.axis_variants({"denoiser.c_1": (1, 10), "denoiser.c_2": (1, 10)})
    assert [v.name for v in variants] == [f"c_1_{a}-c_2_{b}" for a, b in itertools.product((1, 10), repeat=2)]
    assert variants[1].options == {"denoiser": {"c_1": 1, "c_2": 10}}
    assert grid.axis_variants({}) == ()
