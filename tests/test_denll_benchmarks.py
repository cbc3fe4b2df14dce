"""The benchmarks of DeNLL: what they draw, what they claim, and that they run once."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import denll_background, denll_cost
from benchmarks.denll_background import SIZE, Result, claims, hues, pearson, scenes
from vision.data import ImageData


def objects(n: int) -> ImageData:
    """Grey images, each a bright square whose side grows with the class."""
    images, labels = torch.zeros(n, 1, 28, 28, dtype=torch.uint8), torch.arange(n) % 10
    for image, label in zip(images, labels.tolist(), strict=True):
        image[0, : 8 + 2 * label, : 8 + 2 * label] = 255
    return ImageData(images, labels, 10)


def test_scenes_are_objects_on_hues_and_replaced_labels_are_the_hues() -> None:
    source = objects(400)
    made = scenes(source, 0.5, torch.Generator().manual_seed(0))
    assert made.data.images.shape == (400, 3, SIZE, SIZE)
    assert made.data.true_labels is not None
    assert torch.equal(made.data.true_labels, source.labels)
    backgrounds = made.backgrounds[:, :, 0, 0]
    assert torch.equal(made.backgrounds, backgrounds[:, :, None, None].expand_as(made.backgrounds))
    colours = hues().mul(255).round().to(torch.uint8)
    hue = (backgrounds.unsqueeze(1) == colours).all(2).float().argmax(1)
    wrong = made.data.labels != source.labels
    assert torch.equal(made.data.labels[wrong], hue[wrong])
    assert 0.35 < wrong.float().mean() < 0.55  # half of the labels are replaced, a tenth of them by themselves
    behind = (made.data.images == made.backgrounds).all(1)
    sides = (8 + 2 * source.labels) // 2
    assert torch.equal((~behind).sum((1, 2)), sides**2)
    places = (~behind).float().flatten(1).argmax(1)
    assert len(places.unique()) > 100
    assert torch.equal((made.foregrounds == 255).all(1), ~behind)
    assert torch.equal(made.objects[:, 0], ~behind)
    clean = scenes(source, 0.0, torch.Generator().manual_seed(0))
    assert torch.equal(clean.data.labels, source.labels)


def test_ten_hues_differ() -> None:
    assert len({tuple(round(value, 3) for value in colour) for colour in hues().tolist()}) == 10
    assert hues()[0].tolist() == pytest.approx([0.8, 0.2, 0.2])


def test_correlation_is_pearsons() -> None:
    a, b = torch.randn(6, 5), torch.randn(6, 5)
    rows = [float(torch.corrcoef(torch.stack([x, y]))[0, 1]) for x, y in zip(a, b, strict=True)]
    assert pearson(a, b, 1).tolist() == pytest.approx(rows, abs=1e-5)
    columns = [float(torch.corrcoef(torch.stack([x, y]))[0, 1]) for x, y in zip(a.t(), b.t(), strict=True)]
    assert pearson(a, b, 0).tolist() == pytest.approx(columns, abs=1e-5)
    assert pearson(a, torch.ones(6, 5), 1).isnan().all()


def test_claims_are_about_means_and_say_where_they_do_not_hold() -> None:
    def result(variant: str, seed: int, accuracy: float, background: float) -> Result:
        return Result(variant, seed, accuracy, background, 0.5, background, 0.5, 1.0, 1.0)

    runs = [result("ce", 0, 0.3, 0.8), result("ce", 1, 0.5, 0.6), result("denll", 0, 0.5, 0.6)]
    runs += [result("denll", 1, 0.42, 0.4), result("without-lm", 0, 0.4, 0.6), result("without-dim", 0, 0.5, 0.7)]
    held = [holds for _, holds in claims(runs)]
    assert held == [True, True, True, True, False]
    assert claims(runs)[0][0] == "DeNLL is at least 5 points ahead of its host: +6.0"
    assert claims([result("ce", 0, 0.3, 0.8)]) == []


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    monkeypatch.setattr(denll_background, "load", lambda *_, **__: objects(80))
    words = [
        "--images",
        "64",
        "--test",
        "20",
        "--epochs",
        "1",
        "--seeds",
        "1",
        "--variants",
        "ce",
        "denll",
        "without-lm",
    ]
    return [*words, "--runs", str(tmp_path / "runs"), "--report", str(tmp_path / "report")]


def test_the_background_runs_once_and_writes_its_report(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["denll_background", *small])
    assert denll_background.main(small) == 0
    first = capsys.readouterr().out
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| DeNLL | `name: denll`, `host: ce` | 1 |" in text
    assert "python -m benchmarks.denll_background --images 64" in text
    with (tmp_path / "report.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["variant"] for row in rows] == ["ce", "denll", "without-lm"]
    assert all(-1 <= float(row["background"]) <= 1 for row in rows)
    plain, found, box = ([float(row[name]) for name in ("mask_object", "mask_elsewhere")] for row in rows)
    assert all(math.isnan(value) for value in plain)
    assert all(0 < value <= 1 for value in found)
    draw = denll_background.generator("cpu", 0, "scenes")
    torch.randperm(80, generator=draw)  # of the training images, of which none is read here but for their draws
    scenes(objects(64), 0.3, draw)
    test = scenes(objects(80).subset(torch.randperm(80, generator=draw)[:20]), 0.0, draw)
    inside = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    inside[3:24, 3:24] = True  # three quarters of each side, in the middle
    shares = [float((inside & kind).sum() / kind.sum()) for kind in (test.objects, ~test.objects)]
    assert box == pytest.approx(shares, abs=1e-5)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished run is not repeated")

    monkeypatch.setattr(denll_background, "fit", refuse)
    assert denll_background.main(small) == 0
    assert capsys.readouterr().out == first
    assert denll_background.main([*small, "--seeds", "2", "--finished"]) == 0
    assert capsys.readouterr().out == first
    assert denll_background.main([*small, "--epochs", "2"]) == 2
    assert "name another folder by --runs" in capsys.readouterr().err
    monkeypatch.setitem(denll_background.RUN, "batch_size", 32)
    assert denll_background.main(small) == 2
    assert "name another folder by --runs" in capsys.readouterr().err
    for file in (tmp_path / "runs").rglob("result.json"):  # of a release that kept what was typed alone
        record = json.loads(file.read_text(encoding="utf-8"))
        del record["settings"]["method"], record["settings"]["run"]
        file.write_text(json.dumps(record), encoding="utf-8")
    assert denll_background.main([*small, "--finished"]) == 0


@pytest.mark.parametrize("words", [["--rate", "1.5"], ["--seeds", "0"], ["--variants", "mine"]])
def test_what_the_background_refuses(words: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        denll_background.main(words)
    assert stopped.value.code == 2


def test_the_cost_is_told_for_every_form(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = [
        "--networks",
        "resnet20",
        "--batch",
        "2",
        "--steps",
        "1",
        "--quick",
        "--report",
        str(tmp_path / "cost.txt"),
    ]
    assert denll_cost.main(words) == 0
    printed = capsys.readouterr().out
    assert [line.split(": ")[1].split(" / ")[0] for line in printed.splitlines() if "/ ce" in line] == [
        "DeNLL",
        "shared encoder",
        "w/o DIM",
    ]
    assert "<= 2.3" in printed
    assert (tmp_path / "cost.txt").read_text(encoding="utf-8").startswith("$ python -m benchmarks.denll_cost")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("real_data")
def test_denll_leans_less_on_the_background_than_its_host(tmp_path: Path) -> None:
    """One seed: how far ahead DeNLL is differs from seed to seed, and the report says it whatever it is."""
    arguments = ["--seeds", "1", "--variants", "ce", "denll"]
    arguments += ["--runs", str(tmp_path / "runs"), "--report", str(tmp_path / "report")]
    assert denll_background.main(arguments) == 0
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "DeNLL is at least 5 points ahead of its host" in text
    assert "- Holds: Its correlation with the background is lower, over features" in text, text


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_step_of_denll_takes_at_most_what_it_may() -> None:
    assert denll_cost.main([]) == 0
