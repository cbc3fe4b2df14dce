"""``recdenoise vision find-issues``: the ranking, what it finds, the sheet, and mistakes in one sentence."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recdenoise.errors import UserError
from tests.command import figures, mistake, output
from tests.toy_images import TinyImages
from vision import experiment, issues
from vision.issues import Issues

FAST = ("--set", "batch_size=16", "--set", "optimizer=adam", "--set", "lr=0.01", "--set", "crop_pad=0", "--set")
FAST += ("flip=false", "--network", "mlp", "--quiet", "--method", "normal")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey images as PNG files, in a folder for each of three classes, of which a quarter lie in a wrong one."""
    base = tmp_path_factory.mktemp("pictures")
    data = TinyImages.draw(96, 0.25, 7)
    for row, (image, label) in enumerate(zip(data.images, data.labels.tolist(), strict=True)):
        kind = base / "train" / "abc"[label]
        kind.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(kind / f"{row:03}.png")
    return base


@pytest.fixture(scope="module")
def of_files(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the folder, whose true labels nobody knows."""
    out = tmp_path_factory.mktemp("runs") / "files"
    output("vision", "train", "--dataset", folder, "--epochs", "2", *FAST, "--out", out)
    return out


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on arrays with injected noise."""
    path = tmp_path_factory.mktemp("arrays") / "small.npz"
    data = TinyImages.draw(132, 0.0, 7)
    np.savez(path, images=data.images.numpy(), labels=data.labels.numpy())
    out = path.parent / "run"
    words = ("--dataset", path, "--noise", "symmetric-other:0.25", "--epochs", "15", "--valid", "24")
    output("vision", "train", *words, *FAST, "--out", out)
    return out


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_label_is_ranked_once_beside_what_is_known(noisy: Path, tmp_path: Path) -> None:
    printed = output("vision", "find-issues", noisy, "--json", tmp_path / "m.json", "--out", tmp_path / "t.csv")
    rows = table(tmp_path / "t.csv")
    with np.load(noisy / "labels.npz") as found:
        saved = {name: found[name] for name in found.files}
    assert [int(row["rank"]) for row in rows] == list(range(1, 133))
    places = np.array([int(row["row"]) for row in rows])
    assert sorted(places) == list(range(132))
    suspicion = np.array([float(row["p_wrong"]) for row in rows])
    assert (np.diff(suspicion) <= 0).all()
    np.testing.assert_allclose(suspicion, 1 - saved["clean_probability"][places], atol=1e-7)
    assert [int(row["given"]) for row in rows] == saved["given"][places].tolist()
    wrong = saved["given"] != saved["true"]
    assert [int(row["wrong"]) for row in rows] == wrong[places].astype(int).tolist()
    assert sum(row["part"] == "valid" for row in rows) == 24
    record = json.loads((tmp_path / "m.json").read_text())
    assert record["this ranking"]["n_noise"] == wrong.sum()
    assert record["this ranking"]["auc"] == pytest.approx(pairs_in_order(places, wrong))
    assert record["this ranking"]["auc"] > 0.8
    assert figures(printed.partition("known to be wrong")[2])["this ranking"][0] == pytest.approx(
        record["this ranking"]["auc"], abs=1e-4
    )


def pairs_in_order(places: np.ndarray, wrong: np.ndarray) -> float:
    """Share of (wrong, right) pairs in which the wrong label comes first, one pair after the other."""
    rank = {int(place): position for position, place in enumerate(places)}
    pairs = [(a, b) for a in np.flatnonzero(wrong) for b in np.flatnonzero(~wrong)]
    return sum(rank[int(a)] < rank[int(b)] for a, b in pairs) / len(pairs)


def test_predictions_are_the_networks(noisy: Path) -> None:
    settings, prepared, run = experiment.load(noisy)
    found = issues.find(noisy, settings, prepared, run)
    for part, numbers in ((prepared.train, prepared.rows[0]), (prepared.valid, prepared.rows[1])):
        assert part is not None
        predicted = run.logits(part).argmax(1).numpy()
        assert found.predicted[numbers].tolist() == predicted.tolist()
    assert found.row.tolist() == list(range(132))


def test_files_are_named_and_nothing_is_measured_where_nobody_knows(
    of_files: Path, folder: Path, tmp_path: Path
) -> None:
    printed = output("vision", "find-issues", of_files, "--top", "3")
    assert "is not known here" in printed
    rows = table(of_files / "issues.csv")
    assert "true" not in rows[0]
    for row in rows[:20]:
        kind, name = row["file"].split("/")[-2:]
        assert kind == row["given_name"] == "abc"[int(row["given"])]
        assert (folder / "train" / kind / name).is_file()
    assert rows[0]["file"] in printed
    words = mistake("vision", "find-issues", of_files, "--json", tmp_path / "m.json")
    assert "--json has nothing to write" in words


def test_the_sheet_shows_the_worst_images(noisy: Path, tmp_path: Path) -> None:
    output("vision", "find-issues", noisy, "--images", "10", "--sheet", tmp_path / "s.png", "--out", tmp_path / "t.csv")
    with Image.open(tmp_path / "s.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
        assert picture.width > picture.height > 300  # two rows of eight places
    assert (pixels == (194, 41, 30)).all(1).any()  # a red frame
    none = ("--sheet", tmp_path / "none.png")
    output("vision", "find-issues", noisy, "--images", "0", "--out", tmp_path / "u.parquet", *none)
    assert not (tmp_path / "none.png").exists()
    assert (tmp_path / "u.parquet").stat().st_size > 0


def test_pictures_are_those_of_the_rows(noisy: Path) -> None:
    _, prepared, _ = experiment.load(noisy)
    rows = np.array([131, 0, int(prepared.rows[1][0])])
    data = TinyImages.draw(132, 0.0, 7)
    for row, pixels in zip(rows, issues.pictures(prepared, rows), strict=True):
        np.testing.assert_array_equal(pixels, data.images[int(row), 0].numpy())


def made(clean: list[float], label: list[float], true: list[int] | None) -> Issues:
    n = len(clean)
    given = np.zeros(n, dtype=np.int64)
    arrays = (np.arange(n), np.zeros(n, dtype=bool), given, given)
    numbers = (np.array(clean, dtype=np.float32), np.array(label, dtype=np.float32))
    return Issues(*arrays, *numbers, None if true is None else np.array(true))


def test_ties_of_the_method_are_broken_by_the_network() -> None:
    found = made([0.5, 0.1, 0.1, 0.1], [0.1, 0.4, 0.2, 0.2], [0, 0, 1, 0])
    assert found.order.tolist() == [2, 3, 1, 0]
    assert found.suspicion[2] == found.suspicion[3] > found.suspicion[1] > found.suspicion[0]
    assert found.measure()["this ranking"].auc == pytest.approx((1 + 1 + 0.5) / 3)


def test_nothing_can_be_measured_without_true_labels() -> None:
    with pytest.raises(UserError, match="No true labels are known"):
        made([0.1, 0.2], [0.1, 0.2], None).measure()


def test_bad_input_gets_one_sentence(noisy: Path, tmp_path: Path) -> None:
    assert "is not a run" in mistake("vision", "find-issues", tmp_path)
    assert "must end in .png" in mistake("vision", "find-issues", noisy, "--sheet", tmp_path / "s.jpg")
    assert "must end in .parquet or .csv" in mistake("vision", "find-issues", noisy, "--out", tmp_path / "s.txt")
    run = shutil.copytree(noisy, tmp_path / "run")
    (run / "labels.npz").unlink()
    assert "labels.npz is missing" in mistake("vision", "find-issues", run)
    (run / "labels.npz").write_bytes(b"PK")
    assert "labels.npz cannot be read" in mistake("vision", "find-issues", run)
    np.savez(run / "labels.npz", row=np.arange(3))
    assert "has no clean_probability, given" in mistake("vision", "find-issues", run)
    with np.load(noisy / "labels.npz") as saved:
        columns = {name: saved[name] for name in saved.files}
    np.savez(run / "labels.npz", **{**columns, "given": columns["given"][::-1]})
    assert "is of other labels than" in mistake("vision", "find-issues", run)
    (run / "model.pt").unlink()
    assert "has not finished" in mistake("vision", "find-issues", run)


def test_class_names_fit_under_a_picture() -> None:
    assert issues.short("T-shirt/top") == "T-shirt/top"
    assert len(issues.short("a very long name of a class")) == issues.NAME_LENGTH
