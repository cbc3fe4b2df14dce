"""Attributes of images, and test parts by the bias: read, carried along, measured and stored."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch.utils.data import Subset

import vision
from recdenoise.errors import UserError
from tests.command import run
from vision import data
from vision.data import ImageData, bias
from vision.evaluation import measure
from vision.experiment import load, prepare, train
from vision.run import deterministic
from vision.settings import resolve

RNG = np.random.default_rng(0)
N = 96
TRUTH = np.arange(N) % 3
COLOUR = np.where(np.arange(N) % 4 == 3, (TRUTH + 1) % 3, TRUTH)
"""A quarter of the images conflict."""
PIXELS = RNG.integers(0, 100, (N, 6, 6), dtype=np.uint8)
PIXELS[np.arange(N), 2 * TRUTH, 1:5] += 120
BRIEF: dict[str, Any] = {"epochs": 2, "batch_size": 16, "optimizer": "adam", "crop_pad": 0, "flip": False}


def read(**more: Any) -> ImageData:
    return data.load((PIXELS, TRUTH), attributes={"bias": COLOUR, **more})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.npz"
    np.savez(
        path,
        images=PIXELS[:48],
        labels=TRUTH[:48],
        attribute_bias=COLOUR[:48],
        attribute_light_train=np.full(48, 2),
        images_test=PIXELS[48:],
        labels_test=TRUTH[48:],
        attribute_bias_test=COLOUR[48:],
        images_test_dark=PIXELS[50:60] // 2,
        labels_test_dark=TRUTH[50:60],
        attribute_bias_test_dark=COLOUR[50:60],
    )
    return path


def test_attributes_follow_their_rows() -> None:
    whole = read(light=np.arange(N))
    part = whole.subset(torch.tensor([7, 3, 3]))
    assert part.attributes["light"].tolist() == [7, 3, 3]
    assert part.attributes["bias"].tolist() == COLOUR[[7, 3, 3]].tolist()
    assert part.attributes["bias"].dtype == torch.int64
    other = whole.relabelled((whole.labels + 1) % 3)
    assert torch.equal(other.to("cpu").attributes["bias"], whole.attributes["bias"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (COLOUR[:5], r"attribute bias must be one whole number for each image.*shape \(96,\).*\(5,\)"),
        (COLOUR - 1, "attribute bias of row 0 is -1; it must be 0 or more"),
        (COLOUR + 0.5, "values of attribute bias must be whole numbers; row 0 is 0.5"),
        (["red"] * N, "values of attribute bias are text"),
    ],
)
def test_bad_attributes_get_one_sentence(values: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        data.load((PIXELS, TRUTH), attributes={"bias": values})


def test_an_npz_names_attributes_and_further_parts(file: Path) -> None:
    whole = data.load(file)
    assert sorted(whole.attributes) == ["bias", "light"]
    assert whole.attributes["bias"].tolist() == COLOUR[:48].tolist()
    test, dark = (data.load(file, split=split) for split in ("test", "test_dark"))
    assert [sorted(part.attributes) for part in (test, dark)] == [["bias"], ["bias"]]
    assert dark.attributes["bias"].tolist() == COLOUR[50:60].tolist()
    assert data.test_splits(str(file)) == ["test", "test_dark"]


def test_torch_sets_bring_attributes() -> None:
    class Pairs:
        attributes: ClassVar = {"bias": COLOUR}

        def __len__(self) -> int:
            return N

        def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
            return PIXELS[row], int(TRUTH[row])

    found = data.load(Subset(Pairs(), [4, 9, 2]))  # type: ignore[arg-type]
    assert found.attributes["bias"].tolist() == COLOUR[[4, 9, 2]].tolist()
    fake = type("CIFAR10", (SimpleNamespace,), {"__getitem__": None, "__len__": lambda self: N})
    fake.__module__ = "torchvision.datasets.cifar"
    assert data.load(fake(data=PIXELS, targets=TRUTH, attributes={"bias": COLOUR})).attributes["bias"][3] == COLOUR[3]


def test_aligned_and_conflicting_part_a_set() -> None:
    found = bias.parts(read())
    assert {name: len(part) for name, part in found.items()} == {"aligned": 72, "conflicting": 24}
    assert bool((found["aligned"].attributes["bias"] == found["aligned"].labels).all())
    assert bool((found["conflicting"].attributes["bias"] != found["conflicting"].labels).all())
    assert bias.parts(data.load((PIXELS, TRUTH))) == {}
    assert bias.parts(data.load((PIXELS, TRUTH), attributes={"bias": TRUTH})) == {}
    with pytest.raises(UserError, match="no attribute 'bias'"):
        bias.aligned(data.load((PIXELS, TRUTH)))


def test_unbiased_accuracy_is_the_mean_over_class_and_bias() -> None:
    # (class, bias): (0, 0) two of three right, (0, 1) one wrong, (1, 1) two right
    labels, values = torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([0, 0, 0, 1, 1, 1])
    predicted = torch.tensor([0, 1, 0, 1, 1, 1])
    found = measure(torch.eye(2)[predicted], labels, values)
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["unbiased_accuracy"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert found["worst_group_accuracy"] == 0
    assert set(measure(torch.eye(2)[predicted], labels)) == {"accuracy", "loss"}


def test_fit_measures_every_part() -> None:
    part = (PIXELS[:10], TRUTH[:10])
    result = vision.fit("mlp", read(), method="normal", test=read(), tests={"first": part}, **BRIEF)
    assert list(result.measured) == ["test", "valid", "tests"]
    assert list(result.measured["tests"]) == ["aligned", "conflicting", "first"]
    test = result.measured["test"]["last"]
    both = {name: result.measured["tests"][name]["last"]["accuracy"] for name in ("aligned", "conflicting")}
    assert test["accuracy"] == pytest.approx((72 * both["aligned"] + 24 * both["conflicting"]) / 96)
    assert result.evaluate(read()) == result.measured["test"]
    assert result.evaluate_parts(read())["conflicting"] == result.measured["tests"]["conflicting"]
    with pytest.raises(UserError, match=r"images of tests\['small'\] have shape"):
        vision.fit("mlp", read(), method="normal", tests={"small": (PIXELS[:, :5], TRUTH)}, **BRIEF)


def test_a_run_stores_and_shows_further_parts(file: Path, tmp_path: Path) -> None:
    options = {**BRIEF, "device": "cpu"}
    settings = resolve(str(file), "mlp", "normal", run_options=options, clean=3)
    prepared = prepare(settings)
    assert list(prepared.tests) == ["aligned", "conflicting", "dark"]
    assert prepared.clean is not None
    assert sorted(prepared.clean.attributes) == sorted(prepared.train.attributes) == ["bias", "light"]
    record = train(settings, tmp_path / "run").record
    saved = json.loads((tmp_path / "run" / "result.json").read_text())
    assert saved["tests"] == record["tests"]
    assert set(saved["tests"]["dark"]["best_val"]) >= {"accuracy", "loss"}
    assert load(tmp_path / "run")[2].measure_all()["tests"] == record["tests"]
    shown = run("vision", "evaluate", str(tmp_path / "run"), "--json", str(tmp_path / "again.json"))
    assert shown.exit_code == 0, shown.output
    assert "test, conflicting" in shown.output
    assert "test, mean over class and bias" in shown.output
    assert json.loads((tmp_path / "again.json").read_text())["tests"] == saved["tests"]
    words = ["evaluate", str(tmp_path / "run"), "--dataset", str(file), "--json", str(tmp_path / "data.json")]
    assert run("vision", *words).exit_code == 0
    parts = json.loads((tmp_path / "data.json").read_text())["tests"]
    assert parts == {name: saved["tests"][name] for name in ("aligned", "conflicting")}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_measures_groups_while_it_must_be_deterministic() -> None:
    correct, labels, colours = torch.arange(N) % 5 > 1, torch.from_numpy(TRUTH), torch.from_numpy(COLOUR)
    wanted = bias.group_accuracies(correct, labels, colours)
    with deterministic(True):
        found = bias.group_accuracies(correct.cuda(), labels.cuda(), colours.cuda())
    assert torch.equal(found.cpu(), wanted)
