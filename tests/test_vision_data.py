"""Reading labelled images from everything that people have, and dividing them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recdenoise.errors import UserError
from vision import data, noise
from vision.augment import Augment
from vision.data import ImageData, named
from vision.data.arrays import as_images

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 5, 7, 3), dtype=np.uint8)
"""``(N, H, W, C)``."""
LABELS = np.array([0, 1, 2, 0, 1, 2])


def read(images: Any = PIXELS, labels: Any = LABELS, **options: Any) -> ImageData:
    return data.load((images, labels), **options)


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("form", ["NHWC", "NCHW", "NHW"])
def test_every_layout_gives_the_same_pixels(form: str, as_tensor: bool) -> None:
    images = {"NHWC": PIXELS, "NCHW": PIXELS.transpose(0, 3, 1, 2), "NHW": PIXELS[..., 0]}[form]
    found = read(torch.from_numpy(np.ascontiguousarray(images)) if as_tensor else images)
    wanted = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)[:, : 1 if form == "NHW" else 3]
    assert torch.equal(found.images, wanted)
    assert found.images.is_contiguous()
    assert (found.shape, found.n_classes, len(found), found.notes) == ((wanted.shape[1], 5, 7), 3, 6, ())
    assert found.labels.dtype == torch.int64


def test_floats_are_rounded_and_said_to_be() -> None:
    exact = read(PIXELS / 255)
    assert torch.equal(exact.images, read().images)
    assert exact.notes == ()
    moved = read(np.full((6, 5, 4), 0.5))
    assert set(moved.images.unique().tolist()) == {128}
    assert moved.notes == ("Float images were rounded to 256 levels; no pixel moved by more than 0.0020.",)


@pytest.mark.parametrize("kind", [np.int64, np.uint16, np.float32, ">i4"])
def test_other_number_types_keep_their_values(kind: Any) -> None:
    values = (PIXELS / 255 if kind is np.float32 else PIXELS).astype(kind)
    assert torch.equal(read(values).images, read().images)


def test_the_arrays_given_are_not_written_to() -> None:
    fixed = PIXELS.copy()
    fixed.flags.writeable = False
    found = read(fixed)
    found.images.zero_()
    assert fixed.any()


def one_nan() -> np.ndarray:
    images = PIXELS / 255
    images[3, 0, 0, 0] = np.nan
    return images


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "labels out of range": ({"labels": [0, 1, 2, 3, 0, 1], "n_classes": 3}, "label of row 3 is 3; .*labels are 0 to 2"),
    "negative label": ({"labels": [0, 1, -1, 0, 0, 1]}, "label of row 2 is -1"),
    "too few labels": ({"labels": LABELS[:5]}, "5 labels for 6 images"),
    "fractions": ({"labels": [0, 0.5, 1, 0, 0, 1]}, "whole numbers; row 1 is 0.5"),
    "NaN labels": ({"labels": [0, 1, 1, 0, 0, float("nan")]}, "whole numbers; row 5 is nan"),
    "text": ({"labels": list("abcabc")}, "labels are text; numbers are wanted.*unique"),
    "objects": ({"labels": [None] * 6}, "labels are object values"),
    "one-hot": ({"labels": np.eye(6)}, r"shape \(6, 6\); give one number.*argmax"),
    "no labels": ({"labels": None}, "There are no labels"),
    "one class": ({"labels": [1] * 6}, "All 6 labels are 1; training needs images of at least two classes"),
    "one class of several": ({"labels": [1] * 6, "n_classes": 4}, "All 6 labels are 1"),
    "absurd label": ({"labels": [0, 1, 2, 3, 4, 10**9]}, "highest label is 1,000,000,000"),
    "n_classes": ({"n_classes": 1}, "number of classes is 1"),
    "NaN pixels": ({"images": one_nan()}, "Image 3 has 1 pixels that are NaN or infinite"),
    "infinite pixels": ({"images": np.full((6, 5, 4), np.inf)}, "Image 0 has 20 pixels"),
    "normalised": ({"images": PIXELS / 255 - 0.5}, "has a pixel of -0.*not normalised"),
    "floats of 255": ({"images": PIXELS.astype(float)}, "uint8 of 0 to 255"),
    "large integers": ({"images": PIXELS.astype(int) + 100}, "whole numbers of 0 to 255"),
    "one image": ({"images": PIXELS[0, :, :, 0]}, r"shape \(5, 7\); it must be \(N, H, W\)"),
    "no image": ({"images": PIXELS[:0], "labels": []}, "There are no images"),
    "ragged": ({"images": [np.zeros((4, 4)), np.zeros((5, 5))]}, "their shapes differ"),
    "open layout": ({"images": np.zeros((6, 3, 8, 3), np.uint8)}, "cannot be told. Read them by vision.data.load"),
    "no such layout": ({"layout": "HWCN"}, "layout is 'HWCN'"),
    "class names": ({"class_names": ("a", "b"), "n_classes": 3}, "2 class names were given for 3 classes"),
    "true labels": ({"true_labels": [0, 1, 2, 0, 1, 9]}, "true label of row 5 is 9"),
}  # fmt: skip


@pytest.mark.parametrize(("given_", "message"), BAD.values(), ids=list(BAD))
def test_bad_arrays_get_one_clear_sentence(given_: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(**given_)


@pytest.mark.parametrize("source", ["nothing.npz", 7, ["only images"], {"images": PIXELS}])
def test_bad_sources_get_one_clear_sentence(source: Any) -> None:
    with pytest.raises(UserError, match=r"no file or folder nothing.npz|cannot be read from|no labels: it needs"):
        data.load(source)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"Did you mean 'cifar10'\? Valid: bar, bffhq, cifar10, .*fashion-mnist"):
        data.load("cifar11")


def test_missing_classes_are_noted() -> None:
    found = read(labels=[1, 2, 4, 1, 2, 4])
    assert (found.n_classes, found.notes) == (5, ("2 of 5 classes have no image: 0, 3.",))


@pytest.mark.parametrize("keys", [("images", "labels"), ("x_train", "y_train"), ("train_images", "train_labels")])
def test_npz_files_are_read(tmp_path: Path, keys: tuple[str, str]) -> None:
    np.savez(tmp_path / "a.npz", **{keys[0]: PIXELS, keys[1]: LABELS, "true_labels": LABELS[::-1]})
    found = data.load(tmp_path / "a.npz")
    assert torch.equal(found.images, read().images)
    assert found.true_labels is not None
    assert found.true_labels.tolist() == LABELS[::-1].tolist()


def test_the_parts_of_an_npz_are_kept_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, images=PIXELS, labels=LABELS, images_test=PIXELS[:2], labels_test=[1, 1])
    test = data.load(path, split="test", n_classes=3)
    assert torch.equal(test.images, read().images[:2])
    assert (test.labels.tolist(), test.n_classes) == ([1, 1], 3)
    assert len(data.load(path)) == 6
    np.savez(path, images=PIXELS, labels=LABELS)
    with pytest.raises(UserError, match=r"it needs the arrays images_test and labels_test; it has images, labels"):
        data.load(path, split="test")


def test_broken_npz_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, images=PIXELS)
    with pytest.raises(UserError, match=r"a.npz has no labels: it needs the arrays images and labels; it has images"):
        data.load(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"a.npz is not a whole .npz file"):
        data.load(path)
    np.savez(path, images=PIXELS, labels=np.array([object()] * 6))
    with pytest.raises(UserError, match=r"a.npz is not a whole .npz file of plain arrays"):
        data.load(path)


class Pairs(torch.utils.data.Dataset):
    """A data set that knows nothing but items."""

    transform = "some"

    def __init__(self, images: list[Any], labels: Any = LABELS) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> Any:
        return self.images[row], self.labels[row]


def test_torch_data_sets_are_read() -> None:
    from PIL import Image

    tensors = read().images
    forms = [list(tensors), list(tensors / 255), list(PIXELS), [Image.fromarray(each) for each in PIXELS]]
    for images in forms:
        found = data.load(Pairs(images))
        assert torch.equal(found.images, tensors)
        assert found.notes == ("The data set's own transforms were applied once, while it was read.",)
    assert torch.equal(data.load(torch.utils.data.TensorDataset(tensors, torch.from_numpy(LABELS))).images, tensors)
    part = data.load(torch.utils.data.Subset(Pairs(forms[0]), [4, 0]), n_classes=3)
    assert torch.equal(part.images, tensors[[4, 0]])
    assert part.labels.tolist() == [1, 0]


class Counted(torch.utils.data.TensorDataset):
    """Items with the next class's label."""

    def __getitem__(self, row: int) -> Any:
        image, label = super().__getitem__(row)
        return image, (label + 1) % 3


class Renamed(torch.utils.data.Subset[Any]):
    """Every item has label 1, but for the first."""

    def __getitem__(self, row: int) -> Any:
        return super().__getitem__(row)[0], int(row > 0)

    def __getitems__(self, rows: list[int]) -> list[Any]:
        return [self[row] for row in rows]


class Titled(torch.utils.data.Subset[Any]):
    """With a name, and nothing else of its own."""


def test_labels_are_those_of_a_data_sets_items() -> None:
    tensors = read().images
    pairs = torch.utils.data.TensorDataset(tensors, torch.from_numpy(LABELS))
    assert data.load(Counted(*pairs.tensors)).labels.tolist() == [1, 2, 0, 1, 2, 0]
    assert data.load(Renamed(pairs, [5, 4, 3])).labels.tolist() == [0, 1, 1]
    assert data.load(Titled(pairs, [5, 4, 3])).labels.tolist() == [2, 1, 0]
    assert data.load(torch.utils.data.Subset(Counted(*pairs.tensors), [5, 4])).labels.tolist() == [0, 2]
    assert torch.equal(data.load(Renamed(pairs, [5, 4, 3])).images, tensors[[5, 4, 3]])


def test_torch_data_sets_that_do_not_fit() -> None:
    with pytest.raises(UserError, match="differ in size"):
        data.load(Pairs([torch.zeros(1, 4, 4), torch.zeros(1, 5, 4)]))
    with pytest.raises(UserError, match="Item 0 of Pairs is str, not an image"):
        data.load(Pairs(["a", "b"]))
    with pytest.raises(UserError, match="Item 0 of Pairs is not a pair"):
        data.load(Pairs([1, 2], labels=[]))


def test_torchvision_data_sets_are_read_whole() -> None:
    from torchvision.datasets import CIFAR10

    cifar = CIFAR10.__new__(CIFAR10)
    cifar.data, cifar.targets, cifar.classes = PIXELS, LABELS.tolist(), ["a", "b", "c"]
    cifar.transform = lambda image: 1 / 0
    found = data.load(cifar)
    assert torch.equal(found.images, read().images)
    assert found.class_names == ("a", "b", "c")
    assert found.notes == ("The data set's own transforms are not applied; augmentation is chosen for training.",)


@pytest.mark.parametrize("kind", ["MNIST", "FashionMNIST"])
def test_torchvisions_sets_are_known_by_the_names_that_they_have_here(kind: str) -> None:
    from torchvision import datasets

    digits = getattr(datasets, kind).__new__(getattr(datasets, kind))
    digits.data, digits.targets = PIXELS[..., 0], LABELS.tolist()
    found = data.load(digits, n_classes=10)
    assert found.name == {"MNIST": "mnist", "FashionMNIST": "fashion-mnist"}[kind]
    assert Augment.for_data(found).flip == (kind != "MNIST")
    assert noise.make_noisy(found, "asymmetric:0.4")[1].transition is not None


def test_labels_of_torchvisions_sets_are_those_of_their_items() -> None:
    from torchvision import datasets

    digits = datasets.MNIST.__new__(datasets.MNIST)
    digits.data, digits.targets, digits.transform = PIXELS[..., 0], torch.from_numpy(LABELS), None
    for change in (lambda label: int(label > 0), lambda label: torch.tensor(int(label > 0))):
        digits.target_transform = change
        found = data.load(digits)
        assert (found.labels.tolist(), found.n_classes, found.class_names) == ([0, 1, 1, 0, 1, 1], 2, None)
        assert found.notes == ()
    many = datasets.QMNIST.__new__(datasets.QMNIST)
    many.data, many.targets = torch.from_numpy(PIXELS[..., 0]), torch.from_numpy(np.stack([LABELS, LABELS + 5], 1))
    many.compat, many.transform, many.target_transform = True, None, None
    assert data.load(many, n_classes=10).labels.tolist() == LABELS.tolist()


def test_image_data_refuses_what_does_not_fit() -> None:
    images, labels = read().images, torch.from_numpy(LABELS)
    for arguments, message in [
        ((images.float(), labels, 3), r"uint8 tensor of shape \(N, C, H, W\); the data holds torch.float32"),
        ((images[0], labels, 3), "uint8 tensor"),
        ((images, labels.int(), 3), "int64 tensor"),
        ((images, labels[:2], 3), "2 labels for 6 images"),
        ((images, labels, 2), "label of row 2 is 2"),
    ]:
        with pytest.raises(UserError, match=message):
            ImageData(*arguments)


def test_rows_keep_their_images() -> None:
    found = read(true_labels=LABELS[::-1])
    part = found.subset(torch.tensor([5, 2, 2]))
    assert torch.equal(part.images, found.images[[5, 2, 2]])
    assert part.labels.tolist() == [2, 2, 2]
    assert part.true_labels is not None
    assert part.true_labels.tolist() == [0, 0, 0]
    assert torch.equal(next(found.batches([torch.tensor([3, 1])])), found.images[[3, 1]])
    assert found.to("cpu").device.type == "cpu"
    for rows, message in [
        ([6], "Row 6 is not one of the data: rows are 0 to 5"),
        ([-1], "Row -1"),
        ([], "list of rows"),
    ]:
        with pytest.raises(UserError, match=message):
            found.subset(torch.tensor(rows, dtype=torch.int64))


def test_relabelling_keeps_the_first_labels_as_true() -> None:
    once = read().relabelled(torch.tensor([1, 1, 1, 1, 1, 0]))
    twice = once.relabelled(torch.tensor([2, 1, 1, 1, 1, 0]))
    assert twice.true_labels is not None
    assert twice.true_labels.tolist() == LABELS.tolist()
    assert twice.labels.tolist() == [2, 1, 1, 1, 1, 0]


def test_statistics_are_those_of_numpy() -> None:
    mean, deviation = read().statistics()
    np.testing.assert_allclose(mean, PIXELS.mean((0, 1, 2)) / 255, rtol=1e-12)
    np.testing.assert_allclose(deviation, PIXELS.std((0, 1, 2)) / 255, rtol=1e-9)
    assert read(np.full((6, 5, 4), 7, np.uint8)).statistics() == ((7 / 255,), (1.0,))
    some = read().statistics(most=2)
    assert some == read().statistics(most=2) != read().statistics()


@given(n=st.integers(2, 300), share=st.floats(0.01, 0.99), seed=st.integers(0, 2**31), classes=st.integers(1, 7))
def test_a_split_divides_all_rows(n: int, share: float, seed: int, classes: int) -> None:
    count = int(n * share + 0.5)
    labels = torch.arange(n) % classes
    for stratify in (False, True):
        if not 0 < count < n:
            with pytest.raises(UserError):
                data.split(n, labels, share, seed, stratify=stratify)
            continue
        train, valid = data.split(n, labels, share, seed, stratify=stratify)
        assert torch.equal(torch.cat([train, valid]).sort().values, torch.arange(n))
        assert len(valid) == count
        assert torch.equal(train, train.sort().values)
        assert torch.equal(valid, valid.sort().values)
        if stratify:
            sizes, held = torch.bincount(labels, minlength=classes), torch.bincount(labels[valid], minlength=classes)
            assert bool(((held - sizes * (count / n)).abs() < 1 + 1e-9).all())


def test_a_split_follows_from_its_seed_on_every_machine() -> None:
    _, valid = data.split(20, None, 0.25, 7)
    assert torch.equal(valid, data.split(20, None, 5, 7)[1])
    assert valid.tolist() == SPLIT_OF_SEED_7
    assert data.split(20, None, 5, 8)[1].tolist() != valid.tolist()


SPLIT_OF_SEED_7 = [4, 10, 12, 16, 19]


def test_every_row_validates_as_often_as_another() -> None:
    counts = sum(torch.bincount(data.split(10, None, 3, seed)[1], minlength=10) for seed in range(1000))
    assert isinstance(counts, torch.Tensor)
    chi_square = float(((counts - 300.0) ** 2 / 300).sum())
    assert chi_square < 28  # 9 degrees of freedom, p = 0.001


@pytest.mark.parametrize("valid", [-0.1, 1.0, 10, 11, True, "half", 0.01])
def test_bad_shares_are_refused(valid: Any) -> None:
    with pytest.raises(UserError, match=r"validat"):
        data.split(10, None, valid, 0)


def test_nothing_to_validate_on() -> None:
    train, valid = data.split(10, None, 0, 0)
    assert (len(train), len(valid)) == (10, 0)
    with pytest.raises(UserError, match="needs the label of each"):
        data.split(10, None, 3, 0, stratify=True)


def test_names_are_found_as_people_write_them() -> None:
    for typed in ("fashion-mnist", "Fashion_MNIST", "FashionMNIST"):
        assert named.canonical(typed) == "fashion-mnist"
    assert named.canonical("CIFAR-10N-worse") == "cifar10n-worse"
    assert named.canonical("data.npz") is None


def test_a_named_set_is_read_from_plain_arrays(tmp_path: Path) -> None:
    (tmp_path / "cifar10").mkdir()
    images = RNG.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "cifar10" / "test.npz", images=images, labels=[0, 9, 3, 3])
    found = data.load("cifar10", split="test", root=tmp_path)
    assert torch.equal(found.images, torch.from_numpy(images).permute(0, 3, 1, 2))
    assert (found.n_classes, found.name, found.labels.tolist()) == (10, "cifar10", [0, 9, 3, 3])
    assert found.class_names is not None
    assert found.class_names[9] == "truck"
    with pytest.raises(UserError, match=r"CIFAR-10 is in none of: .*Allow the download, or put train.npz"):
        data.load("cifar10", root=tmp_path, download=False)
    with pytest.raises(UserError, match="split is 'valid'"):
        data.load("cifar10", root=tmp_path, split="valid")
    with pytest.raises(UserError, match=r"cifar10n has 5 sets of labels; say which: cifar10n-aggre"):
        data.load("cifar10n", root=tmp_path)


def test_a_failed_download_says_what_to_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    def offline(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no network")

    monkeypatch.setattr(datasets, "CIFAR100", offline)
    with pytest.raises(UserError, match=r"could not be downloaded.*no network.*cifar-100-python.tar.gz by hand"):
        data.load("cifar100", root=tmp_path)


def test_real_mnist_is_all_there(real_data: Path) -> None:
    train = data.load("mnist", root=real_data / "vision")
    assert train.images.shape == (60_000, 1, 28, 28)
    mean, deviation = train.statistics()
    assert mean[0] == pytest.approx(0.1307, abs=5e-5)
    assert deviation[0] == pytest.approx(0.3081, abs=5e-5)


def test_blocks_of_floats_are_all_checked() -> None:
    images = torch.zeros(5000, 1, 1)
    images[4999] = 2
    with pytest.raises(UserError, match="Image 4999 has a pixel of 2"):
        as_images(images)
