"""Folders of image files: rows, sizes, broken files, decoding ahead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vision
from recdenoise.errors import UserError
from tests.toy_runs import Stop
from vision import data, noise
from vision.data.folders import FolderImages, decode
from vision.data.images import LazyImages

RNG = np.random.default_rng(0)


def write(path: Path, height: int = 8, width: int = 8, grey: bool = False) -> np.ndarray:
    """A random picture, without loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = RNG.integers(0, 256, (height, width) if grey else (height, width, 3), dtype=np.uint8)
    Image.fromarray(array).save(path)
    return array


@pytest.fixture
def folder(tmp_path: Path) -> tuple[Path, list[np.ndarray]]:
    """Two classes, five pictures, in the order of their rows."""
    names = ["cat/1.png", "cat/2.png", "cat/sub/3.png", "dog/10.png", "dog/9.png"]
    return tmp_path, [write(tmp_path / name) for name in names]


def broken(folder: Path) -> Path:
    """A file that ends too soon."""
    path = folder / "dog" / "95.png"
    path.write_bytes((folder / "dog" / "9.png").read_bytes()[:120])
    return path


LAZY: dict[str, Any] = {"memory": 0}


@pytest.mark.parametrize("options", [{}, LAZY], ids=["memory", "lazy"])
def test_rows_are_in_the_order_of_names(folder: tuple[Path, list[np.ndarray]], options: dict[str, Any]) -> None:
    root, arrays = folder
    (root / "notes.txt").write_text("no class")
    (root / "cat" / "notes.txt").write_text("no image")
    found = data.load(root, **options)
    wanted = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
    assert isinstance(found.images, torch.Tensor) == (not options)
    assert torch.equal(found.images[torch.arange(5)], wanted)
    assert torch.equal(found.images[1:3], wanted[1:3])
    assert found.labels.tolist() == [0, 0, 0, 1, 1]
    assert (found.class_names, found.n_classes, found.shape) == (("cat", "dog"), 2, (3, 8, 8))
    part = found.subset(torch.tensor([4, 0]))
    assert torch.equal(part.images[torch.tensor([0])], wanted[[4]])
    assert found.statistics() == data.load((wanted, found.labels)).statistics()


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_decoded_ahead_in_order(folder: tuple[Path, list[np.ndarray]], workers: int) -> None:
    root, arrays = folder
    found = data.load(root, memory=0, workers=workers)
    assert isinstance(found.images, LazyImages)
    orders = [torch.tensor([4, 1]), torch.tensor([2, 2]), torch.tensor([0, 3])]
    batches = list(found.batches(orders))
    for rows, batch in zip(orders, batches, strict=True):
        assert torch.equal(batch, torch.from_numpy(np.stack([arrays[row] for row in rows])).permute(0, 3, 1, 2))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_breaks_later_is_named_in_one_sentence(folder: tuple[Path, list[np.ndarray]], workers: int) -> None:
    root, _ = folder
    found = data.load(root, memory=0, workers=workers)
    (root / "dog" / "9.png").write_bytes(b"gone")
    with pytest.raises(UserError, match=r"9.png cannot be read as an image: it is no image that Pillow knows.$"):
        list(found.batches([torch.tensor([0, 1]), torch.tensor([4])]))
    with pytest.raises(UserError, match=r"9.png cannot be read"):
        found.images[torch.tensor([4])]
    with pytest.raises(UserError, match=r"Row 5 is not one of the 5 images"):
        found.images[torch.tensor([5])]


@pytest.mark.parametrize("options", [{}, LAZY], ids=["memory", "lazy"])
def test_unreadable_files_are_named_or_left_out(folder: tuple[Path, list[np.ndarray]], options: dict[str, Any]) -> None:
    root, arrays = folder
    bad = broken(root)
    (root / "cat" / "0.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"cat/0.png cannot be read as an image.*skip_unreadable"):
        data.load(root, **options)
    found = data.load(root, skip_unreadable=True, **options)
    assert torch.equal(found.images[torch.arange(5)], torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2))
    assert found.labels.tolist() == [0, 0, 0, 1, 1]
    note = found.notes[-1]
    assert note.startswith("2 of 7 images could not be read and were left out:")
    assert str(bad) in note


def test_half_a_file_is_found_where_everything_is_read(folder: tuple[Path, list[np.ndarray]]) -> None:
    bad = broken(folder[0])
    with pytest.raises(UserError, match=f"{bad} cannot be read as an image"):
        data.load(folder[0])


def test_sizes_must_be_said_where_they_differ(folder: tuple[Path, list[np.ndarray]]) -> None:
    root, _ = folder
    write(root / "dog" / "wide.png", 8, 16)
    with pytest.raises(UserError, match=r"differ in size: .*1.png is 8 x 8, .*wide.png is 8 x 16. .*image_size=64"):
        data.load(root)
    assert data.load(root, image_size=6).shape == (3, 6, 6)
    assert data.load(root, image_size=(4, 6), memory=0).shape == (3, 4, 6)
    for size in (0, -3, (1, 2, 3), "8", True):
        with pytest.raises(UserError, match="image size is"):
            data.load(root, image_size=size)  # type: ignore[arg-type]


def test_the_middle_of_a_scaled_image_is_taken(tmp_path: Path) -> None:
    array = np.zeros((4, 8), np.uint8)
    array[:, 2:6] = 200
    Image.fromarray(array).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png", 1, (4, 4)).unique().tolist() == [200]
    assert decode(tmp_path / "a.png", 3, (2, 2)).shape == (3, 2, 2)


def test_a_size_is_that_of_torchvision(tmp_path: Path) -> None:
    from torchvision.transforms import v2

    same = v2.Compose([v2.Resize(16), v2.CenterCrop(16), v2.PILToTensor()])
    for height, width in ((37, 53), (64, 16), (20, 23), (9, 8)):
        write(tmp_path / "a.png", height, width)
        assert torch.equal(decode(tmp_path / "a.png", 3, (16, 16)), same(Image.open(tmp_path / "a.png")))


def test_grey_and_odd_files(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/1.png"):
        write(tmp_path / name, grey=True)
    assert data.load(tmp_path).shape == (1, 8, 8)
    Image.fromarray(RNG.integers(0, 256, (8, 8, 4), dtype=np.uint8)).save(tmp_path / "b" / "alpha.png")
    Image.fromarray(RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)).convert("P").save(tmp_path / "b" / "palette.gif")
    assert data.load(tmp_path).images.shape == (4, 3, 8, 8)


def test_a_split_is_a_folder_above_the_classes(
    folder: tuple[Path, list[np.ndarray]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    tmp_path = tmp_path_factory.mktemp("split")
    for name in ("train/a/1.png", "train/b/1.png", "train/b/2.png", "test/a/1.png", "test/b/1.png"):
        write(tmp_path / "both" / name)
    assert len(data.load(tmp_path / "both")) == 3
    assert len(data.load(tmp_path / "both", split="test")) == 2
    root, arrays = folder
    with pytest.raises(UserError, match="has no folder test"):
        data.load(root, split="test")
    write(root / "test" / "dog" / "1.png")
    test = data.load(root, split="test")
    assert (test.labels.tolist(), test.class_names) == ([1], ("cat", "dog"))
    assert data.load(root).class_names == ("cat", "dog")
    assert len(data.load(root)) == len(arrays)
    write(root / "test" / "cow" / "1.png")
    with pytest.raises(UserError, match="has a class 'cow' that is none of the training part"):
        data.load(root, split="test")


def test_folders_that_are_none_get_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds 0 folders and 0 images in them; it must hold one folder of images for"):
        data.load(tmp_path)
    write(tmp_path / "a" / "1.png")
    with pytest.raises(UserError, match="holds 1 folders and 1 images"):
        data.load(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.png").write_bytes(b"")
    (tmp_path / "a" / "1.png").write_bytes(b"")
    for skip in (False, True):
        with pytest.raises(UserError, match=r"1.png cannot be read|None of the 2 images can be read"):
            data.load(tmp_path, skip_unreadable=skip)


def test_torchvision_folders_are_read_alike(folder: tuple[Path, list[np.ndarray]]) -> None:
    from torchvision.datasets import ImageFolder

    root, _ = folder
    mine, theirs = data.load(root), data.load(ImageFolder(str(root)))
    assert torch.equal(torch.as_tensor(mine.images), torch.as_tensor(theirs.images))
    assert mine.labels.tolist() == theirs.labels.tolist()
    assert mine.class_names == theirs.class_names
    assert isinstance(data.load(ImageFolder(str(root)), memory=0).images, FolderImages)


def test_labels_of_torchvision_folders_are_those_of_their_items(folder: tuple[Path, list[np.ndarray]]) -> None:
    from torchvision.datasets import ImageFolder

    root, arrays = folder
    for memory in (0, 1 << 30):
        changed = data.load(ImageFolder(str(root), target_transform=lambda label: 2 - label), memory=memory)
        assert (changed.labels.tolist(), changed.n_classes, changed.class_names) == ([2, 2, 2, 1, 1], 3, None)
        one = ImageFolder(str(root), target_transform=lambda label: 1)
        assert data.load(one, n_classes=4, trains=False, memory=memory).labels.tolist() == [1] * 5
        edited = ImageFolder(str(root))
        edited.samples = [(path, 1 - label) for path, label in edited.samples[1:]]
        found = data.load(edited, memory=memory)
        assert (found.labels.tolist(), found.class_names) == ([1, 1, 0, 0], ("cat", "dog"))
        assert torch.equal(found.images[0:4], torch.from_numpy(np.stack(arrays[1:])).permute(0, 3, 1, 2))
    own = ImageFolder(str(root), loader=lambda path: Image.open(path).convert("L"))
    assert data.load(own).shape == (1, 8, 8)


def test_instance_noise_reads_a_folder_in_blocks(folder: tuple[Path, list[np.ndarray]]) -> None:
    root, _ = folder
    lazy, eager = (noise.make_noisy(data.load(root, memory=memory), "instance:0.4")[1] for memory in (0, 1 << 30))
    assert torch.equal(lazy.labels, eager.labels)


def test_imagenets_val_is_the_test_part(tmp_path: Path) -> None:
    for name in ("train/n01440764/a.JPEG", "train/n01443537/b.JPEG", "val/n01443537/c.JPEG"):
        write(tmp_path / name, 10, 8)
    assert data.test_splits(str(tmp_path)) == ["test"]
    found = data.load(tmp_path, split="test", image_size=8, memory=0)
    assert (found.labels.tolist(), found.class_names) == ([1], ("n01440764", "n01443537"))


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_method_draws_does_not_depend_on_how_a_folder_is_read(tmp_path: Path, workers: int) -> None:
    for row in range(24):
        write(tmp_path / "images" / "ab"[row % 2] / f"{row}.png")
    options: dict[str, Any] = {"method": "mixup", "epochs": 2, "batch_size": 4, "valid": 0, "crop_pad": 0, "lr": 0.01}
    eager = vision.fit("mlp", data.load(tmp_path / "images"), **options)
    lazy = data.load(tmp_path / "images", memory=0, workers=workers)
    whole = vision.fit("mlp", lazy, **options)
    with pytest.raises(KeyboardInterrupt):
        vision.fit("mlp", lazy, **options, checkpoint_path=tmp_path / "c.pt", observer=Stop(3))
    rest = vision.fit("mlp", lazy, **options, checkpoint_path=tmp_path / "c.pt")
    for result in (whole, rest):
        for name, value in eager.model.state_dict().items():
            assert torch.equal(result.model.state_dict()[name], value), name
