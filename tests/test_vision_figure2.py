"""``recdenoise vision benchmark figure2``: the shares against loops, one set of data for all runs, and its pages."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from tests.command import mistake, output
from tests.toy_images import TinyImages
from vision import disagreement
from vision.disagreement import CLEAN, NOISY, comparisons, figure_rows, read_arrays

FAST = ("--networks", "mlp", "convnet2", "--set", "epochs=2", "--set", "batch_size=16", "--noise", "symmetric:0.4")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "small.npz"
    train, test = TinyImages.draw(96, 0.0, 7), TinyImages.draw(60, 0.0, 9)
    arrays = {"images": train.images, "labels": train.labels, "images_test": test.images, "labels_test": test.labels}
    np.savez(path, **{name: value.numpy() for name, value in arrays.items()})
    return path


@pytest.fixture(scope="module")
def figure(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("figure") / "out"
    output("vision", "benchmark", "figure2", "--dataset", small, *FAST, "--images", "64", "--out", out)
    return out


def test_comparisons_are_between_networks_of_a_seed_and_seeds_of_a_network() -> None:
    keys = [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2)]
    assert comparisons(keys) == {
        ("two networks", "a, b"): [(("a", 0), ("b", 0)), (("a", 1), ("b", 1))],
        ("two seeds", "a"): [(("a", 0), ("a", 1)), (("a", 0), ("a", 2)), (("a", 1), ("a", 2))],
        ("two seeds", "b"): [(("b", 0), ("b", 1))],
    }
    assert list(comparisons([("a", 0), ("b", 0)])) == [("two networks", "a, b")]


def test_shares_against_a_loop() -> None:
    random = np.random.default_rng(3)
    keys = [(network, seed) for network in "ab" for seed in range(2)]
    predicted = {key: {part: random.integers(0, 3, 50) for part in ("train", "test")} for key in keys}
    wrong = {part: random.random(50) < 0.4 for part in ("train", "test")}
    rows = {(r["part"], r["pair"], r["labels"]): r for r in figure_rows(predicted, wrong)}
    for part in ("train", "test"):
        for group, flag in ((CLEAN, False), (NOISY, True)):
            shares = []
            for seed in range(2):
                images = [i for i in range(50) if wrong[part][i] == flag]
                different = [i for i in images if predicted["a", seed][part][i] != predicted["b", seed][part][i]]
                shares.append(len(different) / len(images))
            row = rows[part, "a, b", group]
            assert row["disagreement"] == pytest.approx(sum(shares) / 2)
            assert row["std"] == pytest.approx(abs(shares[0] - shares[1]) / 2**0.5)
            assert (row["images"], row["comparisons"]) == (len(images), 2)


def test_all_runs_learn_from_the_same_images_and_labels(figure: Path, small: Path) -> None:
    found = {name: read_arrays(figure / f"{name}" / "labels.npz") for name in ("mlp-0", "mlp-1", "convnet2-0")}
    data, original, wrong = read_arrays(figure / "data.npz"), read_arrays(small), read_arrays(figure / "wrong.npz")
    for labels in found.values():
        assert np.array_equal(labels["given"], data["labels"])
        assert np.array_equal(labels["true"], data["true_labels"])
    assert len(data["images"]) == 64
    of_image = {image.tobytes(): label for image, label in zip(original["images"], original["labels"], strict=True)}
    assert [of_image[image.tobytes()] for image in data["images"]] == data["true_labels"].tolist()
    assert np.array_equal(wrong["train"], data["labels"] != data["true_labels"])
    assert 0.1 < wrong["train"].mean() < 0.5
    assert 0.1 < wrong["test"].mean() < 0.5
    assert np.array_equal(data["labels_test"], original["labels_test"])  # tests are always of clean labels


def test_the_pages_say_what_was_measured(figure: Path) -> None:
    with (figure / "figure2.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 3 * 2  # parts, comparisons, groups
    predicted = {key: read_arrays(figure / f"{key[0]}-{key[1]}" / "predicted.npz") for key in (("mlp", 0), ("mlp", 1))}
    wrong = read_arrays(figure / "wrong.npz")["train"]
    share = float(np.mean(predicted["mlp", 0]["train"][wrong] != predicted["mlp", 1]["train"][wrong]))
    (row,) = (r for r in rows if (r["part"], r["pair"], r["labels"]) == ("train", "mlp", NOISY))
    assert float(row["disagreement"]) == pytest.approx(share)
    page = (figure / "figure2.md").read_text(encoding="utf-8")
    assert f"{share:.4f}" in page
    assert "recdenoise vision benchmark figure2" in page
    assert (figure / "figure2.png").stat().st_size > 10_000


def test_finished_runs_are_only_read(figure: Path, small: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in figure.glob("*-*/*")}
    page = (figure / "figure2.csv").read_bytes()
    output("vision", "benchmark", "figure2", "--dataset", small, *FAST, "--images", "64", "--out", figure)
    assert {path: path.stat().st_mtime_ns for path in figure.glob("*-*/*")} == before
    assert (figure / "figure2.csv").read_bytes() == page


def test_bad_input_gets_one_sentence(figure: Path, small: Path, tmp_path: Path) -> None:
    def said(*words: str | Path) -> str:
        return mistake("vision", "benchmark", "figure2", "--dataset", small, "--out", tmp_path / "x", *words)

    assert "'mpl'" in (told := said("--networks", "mpl"))
    assert "mlp" in told
    assert "nothing to compare" in said("--networks", "mlp", "--seeds", "1")
    assert "trained plainly" in said("--set", "method.q=1")
    assert "--images is 97, but" in said("--images", "97")
    assert not (tmp_path / "x" / "data.txt").exists()
    words = ("vision", "benchmark", "figure2", "--dataset", small, "--images", "32", "--out", figure)
    assert "holds the figure of other data" in mistake(*words)


def test_no_images_have_no_share() -> None:
    assert np.isnan(disagreement.disagreement(np.zeros(0), np.zeros(0)))
