"""What bad images and labels get on the command line: one sentence, exit code 2, and nothing lost."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from recdenoise import checkpoint
from tests.command import mistake, output
from tests.toy_images import TinyImages
from vision.data import ImageData
from vision.pictures import cam
from vision.task import ImageTask

DATA = TinyImages.draw(96, 0.0, 5)
FAST = ("--method", "normal", "--network", "mlp", "--epochs", "3", "--quiet", "--set", "batch_size=16")
FAST += ("--set", "optimizer=adam", "--set", "checkpoint_seconds=0")


def arrays(path: Path, **changed: Any) -> Path:
    """An ``.npz`` of tiny images with some arrays changed; ``None`` leaves one out."""
    given = {"images": DATA.images.numpy(), "labels": DATA.labels.numpy(), **changed}
    np.savez(path, **{name: values for name, values in given.items() if values is not None})
    return path


def one_nan() -> np.ndarray:
    images = DATA.images.numpy() / 255
    images[7, 0, 2, 3] = np.nan
    return images


LABELS = DATA.labels.numpy()
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "labels below the range": ({"labels": LABELS - 1}, "The label of row 0 is -1; with 2 classes, labels are 0 to 1"),
    "labels above the range": ({"n_classes": 2}, "The label of row 2 is 2; with 2 classes, labels are 0 to 1"),
    "too few labels": ({"labels": LABELS[:90]}, "There are 90 labels for 96 images"),
    "too many labels": ({"labels": np.arange(100) % 3}, "There are 100 labels for 96 images"),
    "labels of another type": ({"labels": LABELS + 0.5}, "must be whole numbers; row 0 is 0.5"),
    "labels that are text": ({"labels": np.array(["a", "b", "c"] * 32)}, "The labels are text; numbers are wanted"),
    "labels of many columns": ({"labels": np.eye(3)[LABELS]}, "labels have shape (96, 3); give one number"),
    "no labels": ({"labels": None}, "has no labels: it needs the arrays images and labels"),
    "one class": ({"labels": np.full(96, 2)}, "All 96 labels are 2; training needs images of at least two classes"),
    "several numbers of classes": ({"n_classes": [3, 3]}, "bad.npz is [3, 3]; it must be one whole number"),
    "a number of classes that is text": ({"n_classes": "abc"}, "bad.npz is abc; it must be one whole number"),
    "half a class": ({"n_classes": 2.5}, "bad.npz is 2.5; it must be one whole number"),
    "no end of classes": ({"n_classes": np.inf}, "bad.npz is inf; it must be one whole number"),
    "one name for all classes": ({"class_names": "cat"}, "class_names of"),
    "NaN pixels": ({"images": one_nan()}, "Image 7 has 1 pixels that are NaN or infinite"),
    "pixels out of range": ({"images": DATA.images.numpy() / 100.0}, "images must be floats of 0 to 1"),
    "other images in the test": (
        {"images_test": np.zeros((6, 1, 9, 9), np.uint8), "labels_test": LABELS[:6]},
        "The images of test have shape (1, 9, 9) (channels, height, width); those to train on have (1, 6, 6)",
    ),
    "test labels out of range": (
        {"images_test": DATA.images[:6].numpy(), "labels_test": LABELS[:6] + 1},
        "label of row 2 is 3; with 3 classes, labels are 0 to 2",
    ),
}


@pytest.mark.parametrize(("changed", "said"), BAD.values(), ids=list(BAD))
def test_bad_arrays_are_one_sentence(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    path, out = arrays(tmp_path / "bad.npz", **changed), tmp_path / "run"
    assert said in mistake("vision", "train", "--dataset", path, *FAST, "--out", out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--set", "batch_size=97"), "77 training images, fewer than one batch of 97"),
        (("--noise", "symmetric:1"), "The noise rate is 1.0; it must be 0 or more and below 1"),
        (("--noise", "symmetric:-0.1"), "The noise rate is -0.1; it must be 0 or more and below 1"),
        (("--noise", "pairflip:nan"), "The noise rate is nan"),
        (("--noise", "symmetric:half"), "half"),
        (("--method", "mw_net", "--clean", "0"), "mw_net needs a clean set"),
        (("--method", "group_dro"), "bias"),
        (("--set", "embedding=nowhere", "--method", "deca_p"), "Unknown layer 'nowhere'"),
    ],
)
def test_what_does_not_fit_the_data_is_one_sentence(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    path, out = arrays(tmp_path / "good.npz"), tmp_path / "run"
    assert said in mistake("vision", "train", "--dataset", path, *FAST, "--out", out, *words)
    assert not out.exists() or not list(out.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of images, one of which is no image."""
    for row, (image, label) in enumerate(zip(DATA.images, LABELS, strict=True)):
        path = tmp_path / "pictures" / "abc"[label] / f"{row:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(path)
    (tmp_path / "pictures" / "b" / "04.png").write_bytes(b"no picture")
    return tmp_path / "pictures"


def test_an_unreadable_image_is_named_and_skipped_only_if_asked(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ("vision", "train", "--dataset", folder, *FAST[:-4], "--out", out)
    said = mistake(*words)
    assert "b/04.png cannot be read as an image: it is no image that Pillow knows." in said
    assert "--skip-unreadable" in said
    assert not out.exists()
    printed = output(*words, "--skip-unreadable")
    assert "1 of 96 images could not be read and were left out" in printed
    assert "b/04.png" in printed
    with np.load(out / "labels.npz") as saved:
        assert len(saved["row"]) == 95
    output("vision", "evaluate", out)
    output("vision", "find-issues", out, "--images", "0")
    listed = (out / "issues.csv").read_text()
    assert "b/01.png" in listed
    assert "b/04.png" not in listed
    output("vision", "train", "--resume", out)


def test_a_gpu_without_memory_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = arrays(tmp_path / "data.npz")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    output("vision", "train", "--dataset", data, *FAST, "--out", whole)
    call, seen = ImageTask.call, []

    def full(self: ImageTask, module: torch.nn.Module, inputs: Any) -> torch.Tensor:
        seen.append(1)
        if module.training and len(seen) > 12:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return call(self, module, inputs)

    with monkeypatch.context() as patch:
        patch.setattr(ImageTask, "call", full)
        said = mistake("vision", "train", "--dataset", data, *FAST, "--out", cut)
    assert said == "The GPU has no memory left at batch_size 16: lower batch_size, or set precision to bf16."
    with (cut / "metrics.csv").open() as file:
        done = len(list(csv.DictReader(file)))
    assert 0 < done < 3
    kept = shutil.copytree(cut, tmp_path / "kept")
    output("vision", "train", "--resume", kept, "--quiet")
    ends = [checkpoint.load(path / "model.pt", torch.device("cpu"))["ends"]["last"] for path in (whole, kept)]
    for name, weights in ends[0].items():
        for key, values in weights.items():
            assert torch.equal(values, ends[1][name][key])


@pytest.mark.parametrize(
    ("owner", "name", "said"),
    [
        (
            ImageData,
            "to",
            "no memory left for 19 images of 0.0 GiB: use fewer images, a smaller image_size, or a folder",
        ),
        (ImageTask, "call", "The GPU has no memory left at batch_size 16: lower batch_size"),
    ],
)
def test_a_gpu_without_memory_before_training(
    owner: type, name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(owner, name, full)
    data = arrays(tmp_path / "data.npz")
    assert said in mistake("vision", "train", "--dataset", data, *FAST, "--out", tmp_path / "run")


def test_pictures_without_memory_say_what_to_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    path = arrays(tmp_path / "data.npz", images_test=DATA.images[:9].numpy(), labels_test=LABELS[:9])
    output("vision", "train", "--dataset", path, *FAST, "--network", "convnet2", "--out", out)

    def full(*args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(cam, "grad_cam", full)
    monkeypatch.setattr(ImageTask, "embed", full)
    for command in ("cam", "correlation"):
        said = mistake("vision", "picture", command, out, "--out", tmp_path)
        assert said == "The GPU has no memory left: ask for fewer --images, or say --device cpu."
