"""What a run with known bias tells after every epoch, the plot of it, and the split of rows by a biased network."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

import vision
from recdenoise.detection import auc
from recdenoise.errors import UserError
from tests.toy_images import TinyImages, build, cross_entropies, image_task
from vision.bias_plot import VIEWS, panels, read_views
from vision.bias_views import BiasViews, split_quality
from vision.cli import vision as vision_command


def biased_set(n: int = 90) -> vision.data.ImageData:
    tiny = TinyImages.draw(n, 0.0, 3)
    bias = torch.where(torch.arange(n) % 10 == 0, (tiny.labels + 1) % 3, tiny.labels)
    return vision.data.ImageData(tiny.images, tiny.labels, 3, attributes={"bias": bias})


def test_every_epoch_tells_loss_accuracy_and_weight_of_both_kinds_of_rows(tmp_path: Path) -> None:
    data = biased_set()
    result = vision.fit(
        "mlp", data, method="lff", valid=0, epochs=2, batch_size=16, lr=0.01, optimizer="adam", device="cpu"
    )
    task, method = result.run.task, result.run.denoiser
    same = data.attributes["bias"] == data.labels
    logits = task.scan(method.score)
    loss = torch.tensor(cross_entropies(logits.double(), data.labels))
    weights = method.row_weights()
    assert weights is not None
    for kind, rows in (("aligned", same), ("conflicting", ~same)):
        row = result.history[-1]
        assert row[f"{kind}_loss"] == pytest.approx(float(loss[rows].mean()), rel=1e-5)
        assert row[f"{kind}_accuracy"] == pytest.approx(float((logits.argmax(1) == data.labels)[rows].double().mean()))
        assert row[f"{kind}_weight"] == pytest.approx(float(weights[rows].mean()), rel=1e-5)
    result.save(tmp_path / "result.pt")
    assert np.allclose(
        vision.FitResult.load(tmp_path / "result.pt").predict_proba(data.images), result.predict_proba(data.images)
    )


def test_a_method_without_weights_tells_none_and_looking_changes_nothing() -> None:
    data = biased_set()
    options: dict[str, Any] = {"valid": 0, "epochs": 2, "batch_size": 16, "optimizer": "adam", "device": "cpu"}
    seen = vision.fit("mlp", data, method="gce", **options)
    blind = vision.fit("mlp", dataclasses.replace(data, attributes={}), method="gce", **options)
    assert {k for k in seen.history[0] if k.startswith("conflicting")} == {"conflicting_loss", "conflicting_accuracy"}
    assert not any(k.startswith("conflicting") for k in blind.history[0])
    assert np.array_equal(seen.predict_proba(data.images), blind.predict_proba(data.images))


def test_a_saved_group_dro_knows_its_groups_again(tmp_path: Path) -> None:
    data = biased_set()
    options: dict[str, Any] = {"valid": 0.2, "epochs": 2, "batch_size": 16, "optimizer": "adam", "device": "cpu"}
    result = vision.fit("mlp", data, method="group_dro", **options)
    result.save(tmp_path / "result.pt")
    again = vision.FitResult.load(tmp_path / "result.pt")
    assert torch.equal(again.run.denoiser.group_weights, result.run.denoiser.group_weights)
    assert np.array_equal(again.predict_proba(data.images), result.predict_proba(data.images))


def test_many_rows_are_looked_at_by_a_sample_that_the_seed_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vision.bias_views.MOST_ROWS", 7)
    task = image_task()
    views = [BiasViews(task, build("normal", task)) for _ in range(2)]
    same = task.source("train").attributes["bias"] == task.labels
    for kind, chosen in (("aligned", same), ("conflicting", ~same)):
        rows = views[0].rows[kind]
        assert len(rows) == 7
        assert chosen[rows].all()
        assert torch.equal(rows, views[1].rows[kind])


def test_split_quality_by_hand() -> None:
    conflicting = torch.tensor([True, True, True, False, False])
    known = torch.tensor([True, False, True, True, False])
    assert split_quality(conflicting, known) == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3})
    assert split_quality(~known, known) == {"precision": 0.0, "recall": 0.0, "f1": 0.0}


# The plot


@pytest.fixture
def file(tmp_path: Path) -> Path:
    data = biased_set()
    parts = {"images": data.images, "labels": data.labels, "attribute_bias": data.attributes["bias"]}
    np.savez(tmp_path / "biased.npz", **{name: values.numpy() for name, values in parts.items()})
    return tmp_path / "biased.npz"


def command(*words: object) -> Result:
    return CliRunner().invoke(vision_command, [str(word) for word in words])


def test_the_plot_of_runs_and_its_numbers(file: Path, tmp_path: Path) -> None:
    places = ["--dataset", file, "--network", "mlp", "--epochs", 2, "--device", "cpu", "--quiet"]
    options = ["--set", "batch_size=16", "--set", "optimizer=adam"]
    for method in ("normal", "lff"):
        done = command("train", *places, *options, "--method", method, "--out", tmp_path / method)
        assert done.exit_code == 0, done.output
    rows = read_views(tmp_path / "lff")
    assert [row["epoch"] for row in rows] == [1, 2]
    assert {"aligned_loss", "conflicting_accuracy", "conflicting_weight"} <= rows[0].keys()
    done = command("bias-plot", tmp_path / "normal", tmp_path / "lff", "--out", tmp_path / "two.png")
    assert done.exit_code == 0, done.output
    assert f"{rows[-1]['conflicting_weight']:.4f}" in done.output
    assert (tmp_path / "two.png").read_bytes().startswith(b"\x89PNG")
    drawn = panels([("normal", read_views(tmp_path / "normal")), ("lff", rows)])
    assert [panel.alt.split(",")[0] for panel in drawn] == [title for title, _ in VIEWS.values()]
    assert "normal" not in drawn[2].alt  # it weighs nothing
    assert command("bias-plot", tmp_path / "lff").exit_code == 0
    assert (tmp_path / "lff" / "bias.png").is_file()


@pytest.mark.parametrize(
    ("text", "stage", "message"),
    [
        (None, None, "no run with a metrics.csv"),
        ("stage,epoch,loss\ntrain,1,0.5\n", None, "bias of the run's training images is not known"),
        ("stage,epoch,aligned_loss\ntrain,1,0.5\n", "other", "no stage 'other'; it has train"),
        ("stage,epoch,aligned_loss\ntrain,1,x\n", None, "something else than numbers"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_a_sentence(
    tmp_path: Path, text: str | None, stage: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / "metrics.csv").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_views(tmp_path, stage)


def test_gce_alone_doubts_the_labels_that_conflict_with_the_bias() -> None:
    """The biased reference: its clean probability ranks conflicting rows first."""
    draws, n = torch.Generator().manual_seed(0), 300
    labels = torch.arange(n) % 3
    bias = torch.where(torch.arange(n) % 10 == 0, (labels + 1) % 3, labels)
    images = torch.randint(0, 120, (n, 1, 6, 6), generator=draws, dtype=torch.uint8)
    images[torch.arange(n), 0, :, 2 * bias] += 120  # what goes along is bright, and nothing else tells the class
    data = vision.data.ImageData(images, labels, 3, attributes={"bias": bias})
    options: dict[str, Any] = {"valid": 0, "epochs": 5, "batch_size": 32, "optimizer": "adam", "device": "cpu"}
    result = vision.fit("mlp", data, method="gce", crop_pad=0, flip=False, **options)
    assert auc(1 - result.clean_probability, (bias != labels).numpy()) > 0.95
    assert result.history[-1]["aligned_accuracy"] > 0.9 > 0.1 > result.history[-1]["conflicting_accuracy"]
