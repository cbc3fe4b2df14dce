"""Recipes of images: every form of the published files gives the same arrays, and damage is named."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import lzma
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_recipes import RecipeError, images, images_files
from data_recipes.images import IMAGE_RECIPES, ImageFile, build_images, find_image_recipe
from recdenoise.errors import UserError
from tests.command import mistake, run
from vision import data

RNG = np.random.default_rng(0)
DIGITS = RNG.integers(0, 256, (6, 28, 28), dtype=np.uint8)
LABELS = np.array([3, 1, 4, 1, 5, 9])


def idx(array: np.ndarray) -> bytes:
    head = b"\x00\x00\x08" + bytes([array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
    return head + array.astype(np.uint8).tobytes()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes of six images, whatever the md5 of their files."""
    for name, recipe in IMAGE_RECIPES.items():
        counts = dict.fromkeys(recipe.counts, 6)
        files = tuple(ImageFile(file.name, file.url) for file in recipe.files)
        monkeypatch.setitem(IMAGE_RECIPES, name, dataclasses.replace(recipe, counts=counts, files=files))


def write_idx(folder: Path, zipped: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in IMAGE_RECIPES["mnist"].files:
        raw = idx(DIGITS if "images" in file.name else LABELS)
        name = file.name if zipped else file.name.removesuffix(".gz")
        (folder / name).write_bytes(gzip.compress(raw) if zipped else raw)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.usefixtures("small")
def test_idx_files_become_arrays(tmp_path: Path, zipped: bool) -> None:
    write_idx(tmp_path / "raw", zipped)
    train, test = build_images("fashion-mnist", tmp_path / "out", tmp_path / "raw")
    assert train == tmp_path / "out" / "fashion-mnist" / "train.npz"
    found = np.load(test)
    assert found["images"].dtype == np.uint8
    assert found["labels"].dtype == np.int64
    assert np.array_equal(found["images"], DIGITS)
    assert found["labels"].tolist() == LABELS.tolist()
    stamp = train.stat().st_mtime_ns
    assert build_images("fashion-mnist", tmp_path / "out", tmp_path / "nowhere")[0].stat().st_mtime_ns == stamp
    assert sorted(path.name for path in train.parent.iterdir()) == ["manifest.json", "test.npz", "train.npz"]


@pytest.mark.usefixtures("small")
def test_files_that_are_not_whole_are_named(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    with pytest.raises(RecipeError, match=r"does not hold train-images-idx3-ubyte.gz, train-labels.*publishes it"):
        build_images("mnist", tmp_path, raw)
    for spoil, message in [
        (lambda b: b[:30], "is a damaged gzip file"),
        (
            lambda b: gzip.compress(b"\x00\x00\x0d\x03" + bytes(30)),
            "is not an IDX file of bytes: it begins with 00000d03",
        ),
        (lambda b: gzip.compress(gzip.decompress(b)[:-5]), "holds 4,699 values where its head names 4,704"),
        (lambda b: gzip.compress(idx(DIGITS[:5])), "has 5 images and 6 labels of MNIST's train part, not 6"),
    ]:
        write_idx(raw, zipped=True)
        path = raw / "train-images-idx3-ubyte.gz"
        path.write_bytes(spoil(path.read_bytes()))
        with pytest.raises(RecipeError, match=message):
            build_images("mnist", tmp_path / "out", raw)
    assert not (tmp_path / "out" / "mnist" / "train.npz").exists()


def test_a_wrong_md5_is_told(tmp_path: Path) -> None:
    write_idx(tmp_path, zipped=True)
    with pytest.raises(RecipeError, match=r"train-images.*not the published file.*expected f68b3c2dcbeaaa9fbdd348bb"):
        build_images("mnist", tmp_path / "out", tmp_path)


def archive(path: Path, members: dict[str, Any]) -> None:
    with tarfile.open(path, "w:gz") as file:
        for name, value in members.items():
            raw = pickle.dumps(value, protocol=3)
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            file.addfile(info, io.BytesIO(raw))


@pytest.mark.usefixtures("small")
def test_the_cifar_archive_becomes_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = RNG.integers(0, 256, (6, 3072), dtype=np.uint8)
    batch = {b"data": pixels[:1], b"labels": [7]}
    parts = {f"cifar-10-batches-py/data_batch_{i}": batch for i in range(1, 6)}
    parts["cifar-10-batches-py/test_batch"] = {b"data": pixels, b"labels": LABELS.tolist()}
    path = tmp_path / "cifar-10-python.tar.gz"
    archive(path, parts)
    (test,) = build_images("cifar10", tmp_path / "out", tmp_path, ("test",))
    found = np.load(test)
    assert np.array_equal(found["images"], pixels.reshape(6, 3, 32, 32).transpose(0, 2, 3, 1))
    assert found["labels"].tolist() == LABELS.tolist()
    with pytest.raises(RecipeError, match="has 5 images and 5 labels of CIFAR-10's train part, not 6"):
        build_images("cifar10", tmp_path / "out", tmp_path, ("train",))
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(b"half")
    with pytest.raises(RecipeError, match="is not CIFAR's python archive"):
        build_images("cifar100", tmp_path / "out", tmp_path)


@pytest.mark.usefixtures("small")
def test_code_in_an_archive_does_not_run(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> Any:
            return (exec, ("raise SystemExit('ran')",))

    archive(tmp_path / "cifar-10-python.tar.gz", {"cifar-10-batches-py/test_batch": {b"data": Runs()}})
    with pytest.raises(RecipeError, match=r"is not CIFAR's python archive: it asks for builtins.exec"):
        build_images("cifar10", tmp_path / "out", tmp_path, ("test",))


def pack(pixels: np.ndarray) -> bytes:
    """Packed images, one value at a time: the differences to the median predictor, compressed."""
    planes = pixels[..., None] if pixels.ndim == 3 else pixels
    values = planes.astype(int)
    if values.shape[3] == 3:
        red, green, blue = values[..., 0], values[..., 1], values[..., 2]
        values = np.stack([green, (red - green + 128) % 256, (blue - green + 128) % 256], 3)
    n, height, width, channels = values.shape
    out = np.zeros((channels, n, height, width), np.uint8)
    for c, i, y, x in np.ndindex(channels, n, height, width):
        left = int(values[i, y, x - 1, c]) if x else 0
        up = int(values[i, y - 1, x, c]) if y else 0
        guess = left or up if not (x and y) else sorted([left, up, left + up - int(values[i, y - 1, x - 1, c])])[1]
        out[c, i, y, x] = (int(values[i, y, x, c]) - guess) % 256
    return lzma.compress(out.tobytes(), lzma.FORMAT_RAW, filters=images_files._PACK_FILTERS)


@pytest.mark.parametrize("shape", [(3, 5, 6), (2, 5, 4, 3)])
def test_packing_is_undone(shape: tuple[int, ...]) -> None:
    for pixels in (RNG.integers(0, 256, shape, dtype=np.uint8), np.full(shape, 255, np.uint8)):
        packed = np.frombuffer(pack(pixels), np.uint8)
        assert np.array_equal(images_files.unpack(packed, np.array(shape)), pixels)


@pytest.mark.usefixtures("small")
def test_packed_parts_are_joined_and_damage_is_named(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    path = tmp_path / "test_compact.npz"
    whole = np.frombuffer(pack(pixels), np.uint8)
    np.savez(path, images_shape=np.array(pixels.shape), images_lzma=whole, labels=LABELS)
    (test,) = build_images("cifar10", tmp_path / "out", tmp_path, ("test",))
    assert np.array_equal(np.load(test)["images"], pixels)
    np.savez(path, images_shape=np.array(pixels.shape), images_lzma=whole[: len(whole) // 2], labels=LABELS)
    with pytest.raises(RecipeError, match=r"test_compact.npz is damaged"):
        build_images("cifar10", tmp_path / "other", tmp_path, ("test",))
    np.savez(path, images=pixels, labels=LABELS + 9)
    with pytest.raises(RecipeError, match="labels of CIFAR-10 must be 0 to 9"):
        build_images("cifar10", tmp_path / "other", tmp_path, ("test",))
    np.savez(path, images=pixels)
    with pytest.raises(RecipeError, match="has no array 'labels'"):
        build_images("cifar10", tmp_path / "other", tmp_path, ("test",))


@pytest.mark.usefixtures("small")
def test_human_labels_go_with_their_images(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "cifar_human_labels").mkdir(parents=True)
    (root / "cifar10").mkdir()
    np.savez(root / "cifar10" / "train.npz", images=np.zeros((6, 32, 32, 3), np.uint8), labels=LABELS)
    sets = dict.fromkeys(IMAGE_RECIPES["cifar10n"].label_sets.values(), LABELS)
    sets["worse_label"] = LABELS[::-1]
    np.savez(root / "cifar_human_labels" / "cifar10n.npz", clean_label=LABELS, **sets)  # type: ignore[arg-type]
    found = data.load("cifar10n-worse", root=root)
    assert found.labels.tolist() == LABELS[::-1].tolist()
    assert found.true_labels is not None
    assert found.true_labels.tolist() == LABELS.tolist()
    assert (root / "cifar10n" / "labels.npz").is_file()
    np.savez(root / "cifar10" / "train.npz", images=np.zeros((6, 32, 32, 3), np.uint8), labels=LABELS[::-1])
    with pytest.raises(UserError, match="not in the order of the images of cifar10"):
        data.load("cifar10n-worse", root=root)


def test_names_and_splits_are_checked(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="Did you mean 'fashion-mnist'"):
        find_image_recipe("fashion_mnist")
    with pytest.raises(RecipeError, match=r"mnist has no split 'valid'. Valid: train, test"):
        build_images("mnist", tmp_path, tmp_path, ("valid",))
    for recipe in IMAGE_RECIPES.values():
        assert len(recipe.class_names) == recipe.n_classes
        assert recipe.licence
        assert recipe.citation
        assert all(file.url.startswith("http") for file in recipe.files)
    assert images.built_file("mnist", "train", tmp_path) is None


def test_md5_sums_are_those_that_torchvision_knows() -> None:
    from torchvision import datasets

    for name, kind in (("mnist", datasets.MNIST), ("fashion-mnist", datasets.FashionMNIST)):
        assert [(file.name, file.md5) for file in IMAGE_RECIPES[name].files] == kind.resources
    for name, kind in (("cifar10", datasets.CIFAR10), ("cifar100", datasets.CIFAR100)):
        assert (IMAGE_RECIPES[name].files[0].url, IMAGE_RECIPES[name].files[0].md5) == (kind.url, kind.tgz_md5)


def test_real_fashion_mnist_is_built_once(real_data: Path, cache: Path) -> None:
    test = data.load("fashion-mnist", split="test")
    built = cache / "vision" / "fashion-mnist" / "test.npz"
    assert test.images.shape == (10_000, 1, 28, 28)
    assert torch.bincount(test.labels).tolist() == [1000] * 10
    stamp = built.stat().st_mtime_ns
    assert torch.equal(data.load("fashion_mnist", split="test").labels, test.labels)
    assert built.stat().st_mtime_ns == stamp
    digest = hashlib.sha256(np.load(built)["images"].tobytes()).hexdigest()
    assert digest == FASHION_TEST_SHA256


FASHION_TEST_SHA256 = "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a"
"""Of the pixels of the release."""


# On the command line


@pytest.mark.usefixtures("small")
def test_images_are_listed_built_and_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "CC BY-NC 4.0" in run("data", "list").output
    write_idx(tmp_path / "raw", zipped=True)
    built = run("data", "build", "mnist", "--from", str(tmp_path / "raw"), "--out", str(tmp_path / "out"))
    assert built.exit_code == 0, built.output
    assert "28 x 28" in built.output
    first = (tmp_path / "out" / "mnist" / "manifest.json").read_bytes()
    again = run("data", "build", "mnist", "--from", str(tmp_path / "raw"), "--out", str(tmp_path / "out"))
    assert again.exit_code == 0, again.output
    assert (tmp_path / "out" / "mnist" / "manifest.json").read_bytes() == first
    for place in (tmp_path / "out", tmp_path / "out" / "mnist"):
        shown = run("data", "verify", str(place))
        assert "mnist: mnist, all files as built" in shown.output.replace("\n", "")
    monkeypatch.setenv("RECDENOISE_CACHE", str(tmp_path / "cache"))
    assert "has no build of mnist yet" in mistake("data", "verify", "mnist")
    build_images("mnist", tmp_path / "cache" / "vision", tmp_path / "raw", ("train",))
    assert run("data", "verify", "mnist").exit_code == 0
    with (tmp_path / "cache" / "vision" / "mnist" / "train.npz").open("ab") as file:
        file.write(b"more")
    assert "has changed since it was built" in mistake("data", "verify", "mnist")


@pytest.mark.usefixtures("small")
def test_the_publishers_files_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fetch(files: Any, folder: Path) -> Path:
        asked.extend(file.url for file in files)
        write_idx(folder, zipped=True)
        return folder

    monkeypatch.setattr(images, "fetch", fetch)
    out = tmp_path / "out"
    assert run("data", "build", "mnist", "--out", str(out)).exit_code == 0
    assert len(asked) == 4
    assert asked[0].endswith("train-images-idx3-ubyte.gz")
    assert (out / ".downloads" / "mnist" / "train-images-idx3-ubyte.gz").is_file()
    assert run("data", "build", "mnist", "--out", str(out)).exit_code == 0
    assert len(asked) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("mnist", "--protocol", "clean"), "--protocol is for interactions; mnist is a set of images"),
        (("mnist", "--user", "u"), "--user describe a table: they go with csv, not mnist"),
        (("cifar10n",), "is made from a file at hand: give --from"),
        (("mnits",), "Unknown recipe 'mnits'. Did you mean 'mnist'"),
        (("mnist", "--from", "nowhere"), "does not hold train-images-idx3-ubyte.gz"),
    ],
)
def test_bad_words_get_one_sentence(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    assert message in mistake("data", "build", *words, "--out", tmp_path)
