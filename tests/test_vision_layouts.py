"""CIFAR-100, CIFAR-100N and Clothing1M on generated files of the published layouts: the real ones are not at hand."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_recipes.images import IMAGE_RECIPES, ImageFile
from data_recipes.images_names import CIFAR100_CLASSES
from recdenoise.denoisers import Clock
from recdenoise.errors import UserError
from recdenoise.task import Pass
from tests.command import mistake, output
from tests.toy_images import build, image_task
from vision import data, noise
from vision.data import clothing1m
from vision.data.folders import FolderImages
from vision.loader import ImageLoader, balanced

N = 240


@pytest.fixture
def cifar100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, np.ndarray, np.ndarray, np.ndarray]:
    """A root with the publisher's archive and label file, of few images; pixels, labels, and labels of people."""
    for name in ("cifar100", "cifar100n"):
        recipe = IMAGE_RECIPES[name]
        files = tuple(ImageFile(file.name, file.url) for file in recipe.files)
        small = dataclasses.replace(recipe, counts=dict.fromkeys(recipe.counts, N), files=files)
        monkeypatch.setitem(IMAGE_RECIPES, name, small)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (N, 3072), dtype=np.uint8)
    labels = rng.permutation(np.arange(N) % 100)
    given = np.where(rng.random(N) < 0.4, rng.integers(0, 100, N), labels)
    root = tmp_path / "root"
    (root / "cifar100").mkdir(parents=True)
    with tarfile.open(root / "cifar100" / "cifar-100-python.tar.gz", "w:gz") as archive:
        for part in ("train", "test", "meta"):
            content = {b"data": pixels, b"fine_labels": labels.tolist(), b"coarse_labels": (labels // 5).tolist()}
            raw = pickle.dumps({} if part == "meta" else content, protocol=3)
            info = tarfile.TarInfo(f"cifar-100-python/{part}")
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    (root / "cifar_human_labels").mkdir()
    np.savez(root / "cifar_human_labels" / "cifar100n.npz", clean_label=labels, noisy_label=given)
    torch.save(
        {"clean_label": labels, "noisy_label": given, "noisy_coarse_label": given // 5}, tmp_path / "CIFAR-100_human.pt"
    )
    return root, pixels.reshape(N, 3, 32, 32), labels, given


def test_cifar100_and_its_human_labels(
    cifar100: tuple[Path, np.ndarray, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    root, pixels, labels, given = cifar100
    for split in ("train", "test"):
        found = data.load("CIFAR-100", split=split, root=root, download=False)
        np.testing.assert_array_equal(found.images.numpy(), pixels)  # type: ignore[union-attr]
        assert found.labels.tolist() == labels.tolist()
        assert found.class_names == CIFAR100_CLASSES
    human = data.load("cifar100n-fine", root=root, download=False)
    assert human.labels.tolist() == given.tolist()
    assert human.true_labels is not None
    assert human.true_labels.tolist() == labels.tolist()
    assert data.load("cifar100n-fine", split="test", root=root, download=False).true_labels is None
    published = noise.apply(f"human:{tmp_path / 'CIFAR-100_human.pt'}#noisy_label", torch.from_numpy(labels), 100)
    assert published.labels.tolist() == given.tolist()
    out = tmp_path / "run"
    words = ("--network", "mlp", "--method", "normal", "--epochs", "1", "--set", "batch_size=60", "--quiet")
    output("vision", "train", "--dataset", "cifar100n-fine", "--root", root, "--out", out, *words)
    record = json.loads((out / "result.json").read_text())
    assert record["noise"]["rate"] == pytest.approx((given != labels).mean())


def test_labels_of_other_images_are_refused(cifar100: tuple[Path, np.ndarray, np.ndarray, np.ndarray]) -> None:
    root, _, labels, given = cifar100
    np.savez(root / "cifar_human_labels" / "cifar100n.npz", clean_label=labels[::-1], noisy_label=given)
    with pytest.raises(UserError, match="not in the order of the images of cifar100"):
        data.load("cifar100n-fine", root=root, download=False)


# Clothing1M

KEYS = {"noisy_train": 84, "clean_train": 14, "clean_val": 14, "clean_test": 28}


@pytest.fixture
def clothes(tmp_path: Path) -> Path:
    """A folder in the layout of Clothing1M; images differ in size, and the first classes have more of them."""
    folder = tmp_path / "clothing1M"
    rng = np.random.default_rng(1)
    labels: dict[str, list[str]] = {"noisy": [], "clean": []}
    for part, count in KEYS.items():
        keys = []
        for row in range(count):
            key = f"images/{row % 3}/0{row % 2}/{row},{part}.jpg"
            label = min(row % 20, 13) if part == "noisy_train" else row % 14
            (folder / key).parent.mkdir(parents=True, exist_ok=True)
            size = (20 + row % 5, 24, 3)
            pixels = np.full(size, 15 * label, np.uint8) + rng.integers(0, 20, size, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / key)
            keys.append(key)
            labels["noisy" if part == "noisy_train" else "clean"].append(f"{key} {label}")
        (folder / f"{part}_key_list.txt").write_text("\n".join(keys[::-1]) + "\n")
    for kind, lines in labels.items():
        (folder / f"{kind}_label_kv.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_clothing1m_is_read_by_its_lists(clothes: Path) -> None:
    found = data.load(clothes, image_size=16)
    assert found.name == "clothing1m"
    assert found.class_names == clothing1m.CLASSES
    assert found.true_labels is None
    keys = (clothes / "noisy_train_key_list.txt").read_text().split()
    known = dict(line.rsplit(" ", 1) for line in (clothes / "noisy_label_kv.txt").read_text().splitlines())
    assert found.labels.tolist() == [int(known[key]) for key in keys]
    levels = found.images.float().mean((1, 2, 3)) / 15  # type: ignore[union-attr]
    assert (levels - found.labels).abs().max() < 1
    for split, count in (("test", 28), ("valid", 14), ("clean_train", 14)):
        part = data.load(clothes, split=split, image_size=16)
        assert len(part) == count
        assert part.shape == (3, 16, 16)
    assert data.load(clothes, split="test").shape == (3, 224, 224)


def test_clothing1m_streams_where_it_does_not_fit(clothes: Path) -> None:
    whole = data.load(clothes, image_size=16)
    found = data.load(clothes, image_size=16, memory=1000)
    assert isinstance(found.images, FolderImages)
    rows = torch.tensor([5, 0, 83])
    assert torch.equal(found.images[rows], whole.images[rows])
    (clothes / "images" / "0" / "00" / "0,noisy_train.jpg").write_bytes(b"no picture")
    later = data.load(clothes, image_size=16, memory=1000)  # a million files are not looked at before training
    with pytest.raises(UserError, match=r"0,noisy_train.jpg cannot be read"):
        next(later.batches([torch.arange(84)]))
    with pytest.raises(UserError, match=r"0,noisy_train.jpg cannot be read"):
        data.load(clothes, image_size=16)
    kept = data.load(clothes, image_size=16, memory=1000, skip_unreadable=True)
    assert len(kept) == 83


def test_clothing1m_has_lists_in_annotations_and_names_of_its_own(clothes: Path) -> None:
    (clothes / "annotations").mkdir()
    for path in clothes.glob("*.txt"):
        path.rename(clothes / "annotations" / path.name)
    names = [f"kind {number}" for number in range(14)]
    (clothes / "annotations" / "category_names_eng.txt").write_text("\n".join(names))
    assert data.load(clothes, image_size=16).class_names == tuple(names)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "noisy_label_kv.txt",
            "images/a.jpg 14\n",
            "noisy_label_kv.txt, line 1: 'images/a.jpg 14' is not an image and",
        ),
        ("noisy_label_kv.txt", "images/a.jpg\n", "line 1: 'images/a.jpg' is not an image and a class of 0 to 13"),
        ("noisy_label_kv.txt", "\nimages/a.jpg 1\n", "has no label of images/2/01/83,noisy_train.jpg"),
        ("noisy_label_kv.txt", "../a.jpg 1\n", "line 1: ../a.jpg lies outside the folder"),
        ("noisy_label_kv.txt", "/a.jpg 1\n", "line 1: /a.jpg lies outside the folder"),
        ("noisy_train_key_list.txt", "\n", "noisy_train_key_list.txt lists no images"),
        ("category_names_eng.txt", "one\n", "names 1 classes; it must name two or more"),
    ],
)
def test_broken_lists_of_clothing1m_are_named(clothes: Path, file: str, text: str, message: str) -> None:
    (clothes / file).write_text(text)
    with pytest.raises(UserError, match=message):
        data.load(clothes)


def test_missing_parts_of_clothing1m_are_named(clothes: Path) -> None:
    with pytest.raises(UserError, match=r"Unknown part of Clothing1M 'val'\. Did you mean 'valid'"):
        data.load(clothes, split="val")
    (clothes / "clean_label_kv.txt").unlink()
    with pytest.raises(UserError, match=r"clean_label_kv.txt cannot be read: No such file"):
        data.load(clothes, split="test")
    (clothes / "noisy_label_kv.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is not text in UTF-8"):
        data.load(clothes)
    with pytest.raises(UserError, match="it is not laid out as Clothing1M"):
        clothing1m.load_clothing1m(clothes.parent)
    with pytest.raises(UserError, match="no layout for masks"):
        data.load(clothes, masks=clothes)


def test_clothing1m_trains_on_balanced_sweeps_and_its_suspects_have_files(clothes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ("--network", "resnet20", "--method", "normal", "--epochs", "2", "--image-size", "16", "--valid", "14")
    words += ("--set", "batch_size=14", "--set", "epoch_images=28", "--quiet")
    output("vision", "train", "--dataset", clothes, "--out", out, *words)
    record = json.loads((out / "result.json").read_text())
    assert record["images"] == {"train": 70, "valid": 14, "clean": 0}
    assert set(record["test"]) == {"last", "best_val"}
    output("vision", "find-issues", out, "--images", "4")
    assert "noisy_train.jpg" in (out / "issues.csv").read_text()


# Balanced sweeps


def test_a_balanced_draw_takes_as_many_of_every_class() -> None:
    labels = torch.tensor([0] * 50 + [1] * 20 + [2] * 3 + [3] * 27)
    rows = torch.arange(100)[torch.arange(100) != 60]
    drawn = balanced(rows, labels, 43, (0, 1, 2))
    assert torch.bincount(labels[drawn]).tolist() == [10, 10, 3, 10]
    assert len(set(drawn.tolist())) == len(drawn)
    assert 60 not in drawn
    assert torch.equal(drawn, balanced(rows, labels, 43, (0, 1, 2)))
    assert not torch.equal(drawn, balanced(rows, labels, 43, (0, 1, 3)))
    assert torch.bincount(labels[balanced(rows, labels, 2, (0,))]).tolist() == [1, 1, 1, 1]
    assert len(balanced(rows, labels, 4000, (0,))) == 99


def test_sweeps_are_balanced_and_drawn_anew() -> None:
    task = image_task(epoch_images=48)
    counts = []
    for epoch in range(2):
        loader = ImageLoader(task, Pass(), (0, epoch, 0))
        rows = torch.cat([batch.index for batch in loader.batches()])
        assert len(rows) == 48
        counts.append(rows.sort().values)
        assert torch.bincount(task.labels[rows]).tolist() == [16, 16, 16]
    assert not torch.equal(*counts)
    assert len(ImageLoader(task, Pass(source="clean"), (0, 0, 0)).rows) == 12
    assert len(ImageLoader(image_task(), Pass(), (0, 0, 0)).rows) == 66


def test_every_network_of_a_method_gets_a_balanced_sample_of_its_own() -> None:
    task = image_task(epoch_images=48)
    loader = ImageLoader(task, Pass(streams={"second": Pass(), "few": Pass(rows=torch.arange(40))}), (0, 0, 0))
    batches = list(loader.batches())
    first = torch.cat([batch.index for batch in batches])
    second = torch.cat([batch.streams["second"].index for batch in batches])
    for rows in (first, second):
        assert torch.bincount(task.labels[rows]).tolist() == [16, 16, 16]
    assert not torch.equal(first.sort().values, second.sort().values)
    assert len(loader.streams["few"].rows) == 40


def test_pes_weighs_no_class_whose_sample_is_balanced() -> None:
    for images, weighed in ((None, True), (48, False)):
        method = build("pes", image_task(epoch_images=images))
        method.kept.copy_(torch.arange(66) < 50)  # type: ignore[operator, union-attr]
        refine = method.stages()[-1]
        (sweep,) = method.passes(refine, 0)
        assert (sweep.weights is not None) == weighed
        for batch in method.task.loader(sweep, (0, 0, 0)).batches():
            for update in method.step(refine, batch, Clock(0, 1, 0, 1)):
                assert update.loss.isfinite().all()


def test_an_epoch_of_pes_semi_is_as_long_as_its_sample() -> None:
    for images, steps in ((None, 4), (32, 2)):
        method = build("pes_semi", image_task(epoch_images=images))
        method.kept.copy_(torch.arange(66) < 40)  # type: ignore[operator, union-attr]
        (sweep,) = method.passes(method.stages()[-1], 0)
        assert sweep.steps == steps


def test_a_sweep_has_a_batch_or_more(tmp_path: Path) -> None:
    words = ("--dataset", "mnist", "--method", "normal", "--set", "batch_size=20", "--set", "epoch_images=19")
    assert "Option 'epoch_images' is 19; it must be null, or a batch or more" in mistake(
        "vision", "train", *words, "--out", tmp_path / "run"
    )
