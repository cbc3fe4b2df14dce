"""Folders in the layouts of bFFHQ and BAR, generated here: the published ones were not at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recdenoise.errors import UserError
from vision import data
from vision.data import biased_folders
from vision.experiment import prepare
from vision.settings import resolve

RNG = np.random.default_rng(0)


def write(path: Path, height: int = 8, width: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def bffhq(tmp_path: Path) -> Path:
    """Eight images whose age and gender agree, two that do not; four to test on."""
    root = tmp_path / "bffhq"
    for i in range(8):
        write(root / "0.5pct" / "align" / str(i % 2) / f"{i}_{i % 2}_{i % 2}.png")
    for i in (8, 9):
        write(root / "0.5pct" / "conflict" / str(i % 2) / f"{i}_{i % 2}_{1 - i % 2}.png")
    for i, (age, gender) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        write(root / "test" / f"{i}_{age}_{gender}.png")
    write(root / "valid" / "0_1_0.png")
    write(root / "1pct" / "align" / "0" / "0_0_0.png")
    write(root / "1pct" / "conflict" / "0" / "1_0_1.png")
    return root


@pytest.fixture
def bar(tmp_path: Path) -> Path:
    root = tmp_path / "BAR"
    for kind in ("climbing", "diving"):
        for i in range(3):
            write(root / "train" / f"{kind}_{i}.jpg", 8 + i, 9)
        write(root / "test" / f"{kind}_7.jpg")
    return root


def test_bffhq_has_age_and_gender_from_its_file_names(bffhq: Path) -> None:
    found = data.load(bffhq)
    assert (len(found), found.class_names) == (10, ("young", "old"))
    assert found.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 0, 1]
    assert found.attributes["bias"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1, 0]
    test, valid = (data.load(bffhq, split=split) for split in ("test", "valid"))
    assert (test.labels.tolist(), test.attributes["bias"].tolist()) == ([0, 0, 1, 1], [0, 1, 0, 1])
    assert (valid.labels.tolist(), valid.attributes["bias"].tolist()) == ([1], [0])
    lazy = data.load(bffhq, memory=0)
    assert lazy.subset(found.labels.nonzero()[:, 0]).attributes["bias"].tolist() == [1, 1, 1, 1, 0]


def test_they_are_known_by_name(bffhq: Path, bar: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert len(data.load("bffhq", root=bffhq.parent)) == 10
    assert len(data.load("BAR", root=bar.parent)) == 6
    assert data.test_splits("bffhq") == ["test"]
    settings = resolve("bffhq", "mlp", "normal", root=str(tmp_path), run_options={"batch_size": 4, "device": "cpu"})
    assert {name: len(part) for name, part in prepare(settings).tests.items()} == {"aligned": 2, "conflicting": 2}
    monkeypatch.setenv("RECDENOISE_DATA", str(tmp_path / "empty"))
    monkeypatch.setenv("RECDENOISE_CACHE", str(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"no folder bar in any of: .*empty.*publisher has the images: BAR \(https"):
        data.load("bar")


def test_bar_has_classes_from_its_file_names(bar: Path) -> None:
    found = data.load(bar)
    assert (found.class_names, found.labels.tolist()) == (("climbing", "diving"), [0, 0, 0, 1, 1, 1])
    assert found.shape == (3, biased_folders.BAR_SIZE, biased_folders.BAR_SIZE)
    assert dict(found.attributes) == {}
    assert data.load(bar, split="test", image_size=16).shape == (3, 16, 16)


def test_what_the_names_do_not_tell_is_refused(bffhq: Path, bar: Path) -> None:
    write(bffhq / "0.5pct" / "align" / "0" / "portrait.png")
    with pytest.raises(UserError, match=r"portrait.png is not called ID_CLASS_BIAS, such as 123_0_1.png"):
        data.load(bffhq)
    write(bffhq / "test" / "9_5_0.png")
    (bffhq / "0.5pct" / "align" / "0" / "portrait.png").unlink()
    with pytest.raises(UserError, match="test has the class 5, which is none of"):
        data.load(bffhq, split="test")
    with pytest.raises(UserError, match="has no folder best"):
        data.load(bffhq, split="best")
    write(bar / "test" / "sleeping_1.jpg")
    with pytest.raises(UserError, match="has a class 'sleeping' that is none of the training part"):
        data.load(bar, split="test")
    write(bar / "train" / "nobody.jpg")
    with pytest.raises(UserError, match=r"nobody.jpg is not called CLASS_NUMBER, such as climbing_12.jpg"):
        data.load(bar)
