"""Framed images: colours and counts by hand, who wears which frame, and that augmentation never touches a frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vision
from recdenoise.errors import UserError
from vision import data
from vision.augment import Augment
from vision.data import ImageData, derived, frames, named
from vision.experiment import prepare
from vision.settings import resolve

COUNTS = {"v1": (10, 1), "v2": (5, 2), "v3": (2, 5), "v4": (1, 10)}
"""Values of a and of b on ten classes, as Table III has them."""


def ten_classes(each: int = 12, channels: int = 3, side: int = 8) -> ImageData:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (10 * each, channels, side, side), dtype=np.uint8)
    return data.load((images, np.arange(10 * each) % 10), layout="NCHW")


@pytest.mark.parametrize("version", COUNTS)
@pytest.mark.parametrize("n_classes", [10, 100])
def test_counts_are_those_of_table_iii(version: str, n_classes: int) -> None:
    found, scale = frames.plan(version, n_classes), n_classes // 10
    of_a, of_b = COUNTS[version]
    hues = 5 * scale
    wanted = {"v1": (n_classes, 1), "v2": (hues, 2), "v3": (2, hues), "v4": (1, n_classes)}[version]
    assert tuple(found.colours.shape[:2]) == wanted
    assert n_classes != 10 or wanted == (of_a, of_b)
    assert len(found.colours.reshape(-1, 3).unique(dim=0)) == n_classes
    assert sorted(found.owner.flatten().tolist()) == list(range(n_classes))


def test_the_colours_are_five_hues_of_two_brightnesses() -> None:
    # HSV with S = 1: hue 72 degrees is 4/5 of the way from red to green (0.8 = 204), at V = 1 and at V = 0.5
    colours = frames.plan("v2", 10).colours
    assert colours[:, 1].tolist() == [[255, 0, 0], [204, 255, 0], [0, 255, 102], [0, 102, 255], [204, 0, 255]]
    assert colours[:2, 0].tolist() == [[128, 0, 0], [102, 128, 0]]
    assert torch.equal(frames.plan("v3", 10).colours, colours.transpose(0, 1))


def test_a_frame_by_hand() -> None:
    content = torch.tensor([[[[7]]], [[[9]]]], dtype=torch.uint8)
    colour = torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.uint8)
    found = frames.frame(content, colour, 1)
    assert found.shape == (2, 3, 3, 3)
    assert found[1, 2].tolist() == [[6, 6, 6], [6, 9, 6], [6, 6, 6]]
    assert torch.equal(frames.inside(found, 1), content.expand(2, 3, 1, 1))
    lent = frames.reframed(found, found.flip(0), 1)
    assert lent[1, 2].tolist() == [[3, 3, 3], [3, 9, 3], [3, 3, 3]]
    with pytest.raises(UserError, match=r"A frame needs images .* it got \(2, 1, 1, 1\), \(1, 3\) and 1"):
        frames.frame(content, colour[:1], 1)


@pytest.mark.parametrize("version", COUNTS)
def test_training_frames_follow_the_class(version: str) -> None:
    base, found = ten_classes(), frames.framed(ten_classes(), version)
    drawn = frames.plan(version, 10)
    assert (found.shape, found.frame) == ((3, 16, 16), 4)
    assert torch.equal(frames.inside(found.images, 4), base.images)  # type: ignore[arg-type]
    for row in (0, 17, 118):
        label = int(base.labels[row])
        a, b = int(found.attributes["a"][row]), int(found.attributes["b"][row])
        assert (a, b) == (int(drawn.a[label]), int(drawn.b[label]))
        assert found.images[row, :, 0, 0].tolist() == drawn.colours[a, b].tolist()
        assert found.images[row, :, 15, 9].tolist() == drawn.colours[a, b].tolist()
    assert ("bias" in found.attributes) == (version != "v1")
    assert version == "v1" or torch.equal(found.attributes["bias"], base.labels)


@pytest.mark.parametrize(("version", "test_bias"), [("v2", None), ("v3", None), ("v4", "uniform"), ("v4", None)])
def test_test_frames_are_spread_evenly(version: str, test_bias: Any) -> None:
    found = frames.framed(ten_classes(180), version, "test", test_bias=test_bias)
    drawn = frames.plan(version, 10)
    values = drawn.colours.shape[1]
    deranged = version == "v4" and test_bias is None
    for label in range(10):
        own = found.attributes["b"][found.labels == label]
        counts = torch.bincount(own, minlength=values)
        if deranged:
            assert counts[drawn.b[label]] == 0
            counts = counts[torch.arange(values) != drawn.b[label]]
        assert counts.tolist() == [180 // len(counts)] * len(counts)
    assert torch.equal(found.attributes["a"], drawn.a[found.labels])
    assert torch.equal(found.attributes["bias"], drawn.owner[found.attributes["a"], found.attributes["b"]])
    again = frames.framed(ten_classes(180), version, "test", test_bias=test_bias)
    other = frames.framed(ten_classes(180), version, "test", test_bias=test_bias, seed=1)
    assert torch.equal(again.images, found.images)  # type: ignore[arg-type]
    assert not torch.equal(other.attributes["b"], found.attributes["b"])


def test_frames_follow_the_true_label() -> None:
    base = ten_classes()
    noisy = base.relabelled((base.labels + 1) % 10)
    assert torch.equal(frames.framed(noisy, "v4").attributes["b"], base.labels)


def test_an_odd_number_of_classes_leaves_one_frame_unused() -> None:
    base = data.load((np.zeros((90, 8, 8), np.uint8), np.arange(90) % 3))
    found = frames.framed(base, "v2", "test")
    assert found.attributes["b"][found.labels == 2].unique().tolist() == [0]
    assert (found.attributes["bias"] >= 0).all()
    with pytest.raises(UserError, match="derange leaves a class no other frame"):
        frames.framed(base, "v2", "test", test_bias="derange")


def test_augmentation_leaves_frames_alone() -> None:
    found = frames.framed(ten_classes(6), "v4")
    augment = Augment((0.5,) * 3, (0.25,) * 3, crop_pad=3, flip=True, cutout=5, policy="trivialaugment", frame=4)
    images = found.images
    assert isinstance(images, torch.Tensor)
    moved, still = augment(images, torch.Generator().manual_seed(0)), augment(images, torch.Generator(), train=False)
    inner = torch.zeros(16, 16, dtype=torch.bool)
    inner[4:12, 4:12] = True
    assert torch.equal(moved[..., ~inner], still[..., ~inner])
    assert (moved[..., inner] != still[..., inner]).flatten(1).any(1).float().mean() > 0.95
    # inside, the content alone would be augmented to the same values
    alone = Augment((0.5,) * 3, (0.25,) * 3, crop_pad=3, flip=True, cutout=5, policy="trivialaugment")
    assert torch.equal(frames.inside(moved, 4), alone(frames.inside(images, 4), torch.Generator().manual_seed(0)))
    # as one process's share of a batch
    part = augment.part(images[30:50], torch.Generator().manual_seed(0), True, len(images), slice(30, 50))
    assert torch.equal(part, moved[30:50])


def test_training_takes_the_frame_from_the_data(tmp_path: Path) -> None:
    train, test = frames.framed(ten_classes(), "v2"), frames.framed(ten_classes(), "v2", "test")
    result = vision.fit("mlp", train, method="normal", test=test, epochs=1, batch_size=30)
    assert (result.settings["augment"]["frame"], result.settings["augment"]["crop_pad"]) == (4, 1)
    assert set(result.measured["tests"]) == {"aligned", "conflicting"}
    result.save(tmp_path / "result.pt")
    assert vision.FitResult.load(tmp_path / "result.pt").run.task.augment.frame == 4  # type: ignore[attr-defined]
    assert train.subset(torch.arange(5)).frame == 4


def test_masks_of_contents_are_context_on_the_frame() -> None:
    base = ten_classes(1)
    whole = data.load((base.images, base.labels), masks=np.full((10, 8, 8), 255, np.uint8))
    masks = frames.framed(whole, "v2").masks
    assert masks is not None
    assert torch.equal(frames.inside(masks[:], 4), torch.full((10, 1, 8, 8), 255, dtype=torch.uint8))
    assert int((masks[:] > 0).sum()) == 10 * 64


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    arrays = {"images": rng.integers(0, 256, (60, 8, 8), dtype=np.uint8), "labels": np.arange(60) % 10}
    test = {"images_test": arrays["images"][:40], "labels_test": np.arange(40) % 10}
    np.savez(tmp_path / "mine.npz", **arrays, **test)  # type: ignore[arg-type]
    return tmp_path / "mine.npz"


def test_a_file_of_ones_own_is_framed_by_name(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = data.load(f"framed-{file}:v4")
    assert (found.shape, found.name) == ((3, 16, 16), f"framed-{file}:v4")
    test = data.load(f"framed-{file}:V4,test_bias=uniform,width=2", split="test")
    assert (test.shape, test.frame) == ((3, 12, 12), 2)
    assert data.test_splits(f"framed-{file}:v4") == ["test"]
    monkeypatch.chdir(file.parent)
    assert derived.absolute("framed-mine.npz:v4,seed=3") == f"framed-{file}:v4,seed=3"
    assert derived.title(f"framed-{file}:v4,seed=3") == "framed-mine:v4,seed=3"
    assert derived.slug(f"framed-{file}:v4,seed=3") == "framed-mine-v4-seed-3"
    settings = resolve(f"framed-{file}:v2", "mlp", "normal", run_options={"device": "cpu", "batch_size": 16})
    prepared = prepare(settings)
    assert list(prepared.tests) == ["aligned", "conflicting"]
    assert prepared.train.frame == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("framed-mnist", "it must read framed-BASE:VERSION, versions v1 to v4; for example framed-cifar10:v2"),
        ("framed-mnist:v5", "Unknown version of framed images 'v5'.*Valid: v1, v2, v3, v4"),
        ("framed-mnist:v2,bias=1", "Unknown option of framed images 'bias'"),
        ("framed-mnist:v2,seed=a", "seed must read seed=VALUE"),
        ("framed-nothing:v2", "Unknown data set"),
    ],
)  # fmt: skip
def test_bad_names_get_one_sentence(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        data.load(name)


def test_named_sets_are_framed(real_data: Path) -> None:
    assert named.canonical("Framed-Fashion_MNIST:V2") == "framed-fashion-mnist:v2"
    found = data.load("framed-fashion-mnist:v2", split="test", root=None)
    assert found.shape == (3, 36, 36)
    assert torch.bincount(found.attributes["bias"][found.labels == 4]).tolist() == [0, 0, 0, 0, 500, 500]
    settings = resolve("framed-fashion-mnist:v4", "resnet20", "normal", images=100, run_options={"device": "cpu"})
    assert prepare(settings).tests == {}  # derange: all images of the test conflict
