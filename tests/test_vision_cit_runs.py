"""CIT from end to end: answers to parts of images, runs from Python and from the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import vision
from recdenoise import checkpoint
from recdenoise.cli import cli as command_line
from recdenoise.errors import UserError
from tests.command import mistake, output
from tests.toy_contexts import TinyResNet, data, method, parts
from tests.toy_images import CLASSES, TinyImages
from vision import experiment, splitters
from vision.data import load

# Answers


def test_parts_of_the_test_images_are_answered_by_their_branches() -> None:
    denoiser = method(branches="double").eval()
    images = data(6)
    scores = denoiser.partial_scores()
    assert set(scores) == {"object_only", "background_only"}
    inputs = denoiser.task.scan_data(images, lambda each: each, masked=True)
    content, context, _ = parts(inputs)
    blank = torch.zeros_like(content)
    for name, pair in (("object_only", (content, blank)), ("background_only", (blank, context))):
        found = denoiser.task.scan_data(images, scores[name], masked=True)
        torch.testing.assert_close(found, denoiser.target(torch.cat(pair, 1)).detach())
    single = method().eval()
    for name, part in (("object_only", content), ("background_only", context)):
        found = single.task.scan_data(images, single.partial_scores()[name], masked=True)
        torch.testing.assert_close(found, single.target(part).detach())
    assert method(setting="sal_img").partial_scores() == {}


def test_one_network_answers_to_images_without_masks() -> None:
    single = method().eval()
    assert single.task.scan_data(data(6), lambda each: each).shape[1] == 1
    assert single.task.scan_data(data(6), single.score).shape == (6, CLASSES)
    double = method(branches="double").eval()
    assert double.task.scan_data(data(6), lambda each: each).shape[1] == 2


def test_fit_with_a_splitter_of_ones_own_measures_both_parts_and_loads_again(tmp_path: Path) -> None:
    images, held = data(48), data(12)
    for branches in ("single", "double"):
        spec = {"name": "cit", "splitter": "dark part", "branches": branches}
        result = vision.fit(
            TinyResNet, images, method=spec, test=held, epochs=1, batch_size=16, valid=0.25, device="cpu", crop_pad=1
        )
        assert {"object_only", "background_only"} <= set(result.measured["tests"])
        assert 0 <= result.measured["tests"]["object_only"]["last"]["accuracy"] <= 1
        result.save(tmp_path / "result.pt")
        again = vision.FitResult.load(tmp_path / "result.pt", TinyResNet(), device="cpu")
        assert torch.equal(again.predict_proba(held.images), result.predict_proba(held.images))


@pytest.mark.parametrize("branches", ["single", "double"])
def test_a_result_of_drawn_masks_is_loaded_again(tmp_path: Path, branches: str) -> None:
    images = data(48)
    masked = replace(images, masks=splitters.detect("dark part", images.images))
    spec = {"name": "cit", "splitter": "precomputed", "branches": branches}
    result = vision.fit(TinyResNet, masked, method=spec, epochs=1, batch_size=16, valid=0.25, device="cpu")
    result.save(tmp_path / "result.pt")
    again = vision.FitResult.load(tmp_path / "result.pt", TinyResNet(), device="cpu")
    np.testing.assert_array_equal(again.predict_proba(masked), result.predict_proba(masked))


def test_masks_are_asked_for_before_training_where_they_will_be_needed() -> None:
    images = data(48)
    masks = splitters.detect("dark part", images.images)
    masked = replace(images, masks=masks)
    options = {"epochs": 1, "batch_size": 16, "valid": 0.25, "device": "cpu"}
    spec: dict[str, Any] = {"name": "cit", "splitter": "precomputed"}
    with pytest.raises(UserError, match="needs a mask for every image"):
        vision.fit(TinyResNet, images, method=spec, **options)
    single = vision.fit(TinyResNet, masked, method=spec, test=data(12), **options)  # whole images are all that it needs
    assert "tests" not in single.measured
    with pytest.raises(UserError, match="needs a mask for every image"):
        vision.fit(TinyResNet, masked, method={**spec, "branches": "double"}, test=data(12), **options)
    double = vision.fit(TinyResNet, masked, method={**spec, "branches": "double"}, test=masked, **options)
    with pytest.raises(UserError, match="needs a mask for every image"):
        double.predict(images.images)
    by_name = vision.fit(TinyResNet, images, method={"name": "cit", "splitter": "dark part"}, test=data(12), **options)
    assert single.history[0]["loss"] == pytest.approx(by_name.history[0]["loss"])


def test_masks_are_found_once_however_long_a_run_is(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    detect = splitters.detect

    def counted(splitter: Any, images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return detect(splitter, images)

    monkeypatch.setattr(splitters, "detect", counted)
    spec = {"name": "cit", "splitter": "dark part", "branches": "double"}
    found = []
    for epochs in (1, 3):
        seen.clear()
        options = {"epochs": epochs, "batch_size": 16, "valid": 0.25, "device": "cpu"}
        vision.fit(TinyResNet, data(48), method=spec, test=data(12), **options)
        found.append(sum(seen))
    assert found[0] == found[1] >= 48 + 12


# Runs


def image_folder(tmp_path: Path) -> tuple[Path, Path]:
    """Pictures of 12 x 12 in two classes, a bright square on a ground that goes with the class, and their masks."""
    generator = np.random.default_rng(1)
    for split, n in (("train", 24), ("test", 8)):
        for number in range(n):
            picture = generator.integers(0, 60, (12, 12, 3), dtype=np.uint8)
            picture[..., number % 2] += 60
            mask = np.zeros((12, 12), dtype=np.uint8)
            y, x = generator.integers(2, 6, 2)
            picture[y : y + 5, x : x + 5] = 200
            mask[y : y + 5, x : x + 5] = 255
            for kind, array in (("images", picture), ("masks", mask)):
                path = tmp_path / kind / split / f"class{number % 2}" / f"{number:02}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    return tmp_path / "images", tmp_path / "masks"


def train(*words: str) -> dict[str, Any]:
    out = words[words.index("--out") + 1]
    done = CliRunner().invoke(command_line, ["vision", "train", "--quiet", "--device", "cpu", *words])
    assert done.exit_code == 0, done.output
    return json.loads((Path(out) / "result.json").read_text())


def test_folders_with_masks_from_a_single_network_to_two_branches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the command line, images and masks decoded as they are needed: the same result as from memory."""
    images, masks = image_folder(tmp_path)
    shared = ["--dataset", str(images), "--image-size", "8", "--network", "resnet20", "--epochs", "1", "--valid", "4"]
    shared += ["--set", "batch_size=8", "--seed", "3"]
    train(*shared, "--method", "normal", "--out", str(tmp_path / "single"))
    words = [*shared, "--masks", str(masks), "--method", "cit", "--set", "method.splitter=precomputed"]
    words += ["--set", "method.branches=double", "--set", "method.train_blocks=2"]
    words += ["--set", f"weights={tmp_path / 'single'}"]
    record = train(*words, "--out", str(tmp_path / "memory"))
    assert set(record["tests"]) == {"object_only", "background_only"}
    state = checkpoint.load(tmp_path / "memory" / "model.pt")["modules"]
    single = checkpoint.load(tmp_path / "single" / "model.pt")["modules"]
    for branch in ("content", "context"):
        assert torch.equal(state[f"target.{branch}.layer1.0.conv1.weight"], single["target.layer1.0.conv1.weight"])
        assert not torch.equal(state[f"target.{branch}.layer3.0.conv1.weight"], single["target.layer3.0.conv1.weight"])
    monkeypatch.setitem(load.__kwdefaults__, "memory", 1)
    streamed = train(*words, "--out", str(tmp_path / "streamed"))
    for name in ("test", "valid", "tests"):
        assert streamed[name] == record[name]
    again = CliRunner().invoke(command_line, ["vision", "evaluate", str(tmp_path / "memory"), "--device", "cpu"])
    assert again.exit_code == 0, again.output
    assert "object_only" in again.output


def test_pictures_of_runs_with_masks(tmp_path: Path) -> None:
    images, masks = image_folder(tmp_path)
    words = ["--dataset", str(images), "--masks", str(masks), "--image-size", "8", "--network", "resnet20"]
    words += ["--epochs", "1", "--valid", "4", "--set", "batch_size=8", "--method", "cit", "--set"]
    words += ["method.splitter=precomputed", "--set"]
    single, double = tmp_path / "single", tmp_path / "double"
    train(*words, "method.branches=single", "--out", str(single))
    output("vision", "picture", "cam", single, "--part", "train", "--images", "2", "--device", "cpu")
    train(*words, "method.branches=double", "--out", str(double))
    for picture, said in (("cam", "Grad-CAM is for networks"), ("correlation", "this correlation is for networks")):
        assert said in mistake("vision", "picture", picture, double, "--images", "2", "--device", "cpu")


def test_other_images_are_measured_with_their_masks(tmp_path: Path) -> None:
    images, masks = image_folder(tmp_path)
    words = ["--dataset", str(images), "--masks", str(masks), "--image-size", "8", "--network", "resnet20"]
    words += ["--epochs", "1", "--valid", "4", "--set", "batch_size=8", "--method", "cit", "--set"]
    words += ["method.splitter=precomputed", "--set", "method.branches=double", "--out", str(tmp_path / "run")]
    record = train(*words)
    evaluate = ("vision", "evaluate", tmp_path / "run", "--device", "cpu")
    output(*evaluate, "--dataset", images, "--masks", masks, "--json", tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text())["data"] == record["test"]
    assert "needs a mask for every image" in mistake(*evaluate, "--dataset", images)
    for option in ("--masks", "--root"):
        assert f"{option} is of other images: name them by --dataset" in mistake(*evaluate, option, masks)


def test_a_missing_mask_is_named_on_the_command_line(tmp_path: Path) -> None:
    images, masks = image_folder(tmp_path)
    (masks / "train" / "class1" / "05.png").unlink()
    words = ["vision", "train", "--dataset", str(images), "--masks", str(masks), "--method", "cit"]
    done = CliRunner().invoke(command_line, [*words, "--out", str(tmp_path / "run")])
    assert done.exit_code == 2
    assert "There is no mask" in done.output
    assert "05.png" in done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize("contexts", ["stratify_c_given_a", "stratify_b"])
def test_framed_sets_bring_their_frame_and_their_a_and_b(contexts: str, tmp_path: Path) -> None:
    images = TinyImages.draw(60, 0.0, 3)
    np.savez(
        tmp_path / "tiny.npz",
        images=images.images[:, 0].numpy(),
        labels=images.labels.numpy(),
        images_test=images.images[:12, 0].numpy(),
        labels_test=images.labels[:12].numpy(),
    )
    words = ["--dataset", f"framed-{tmp_path / 'tiny.npz'}:v2", "--network", "resnet20", "--epochs", "1"]
    words += ["--set", "batch_size=16", "--method", "cit", "--set", f"method.contexts={contexts}"]
    record = train(*words, "--out", str(tmp_path / "run"))
    assert {"object_only", "background_only", "aligned", "conflicting"} <= set(record["tests"])
    partner = checkpoint.load(tmp_path / "run" / "model.pt")["modules"]["partner"]
    settings, prepared, run = experiment.load(tmp_path / "run", "cpu")
    assert settings.config.contexts == contexts
    a = prepared.train.attributes["a"]
    assert torch.equal(a[partner], a)
    assert run.denoiser.framed
    assert run.denoiser.frame[0, 0].sum() == 36
