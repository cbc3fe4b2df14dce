"""Recipes of images: MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100 and the human labels of CIFAR-N, as plain arrays.

``<root>/<name>/train.npz`` and ``test.npz`` hold ``images``, uint8 ``(N, H, W)`` or ``(N, H, W, 3)``, and ``labels``,
int64 ``(N,)``, in the order of the release. The human labels are one file, ``<root>/<name>/labels.npz``, since their
images are those of CIFAR-10 and CIFAR-100.
"""

from __future__ import annotations

import difflib
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_recipes import images_files as files
from data_recipes.download import fetch
from data_recipes.errors import RecipeError, because
from data_recipes.images_manifest import record
from data_recipes.images_names import CIFAR10_CLASSES, CIFAR100_CLASSES, FASHION_CLASSES
from data_recipes.recipe import RawFile

CIFAR = "https://www.cs.toronto.edu/~kriz"
CIFAR_N = "https://github.com/UCSC-REAL/cifar-10-100n"
SPLITS = ("train", "test")


@dataclass(frozen=True)
class ImageFile:
    """One file of a publisher."""

    name: str
    url: str
    md5: str | None = None
    """Of the bytes as published, where it is known."""


@dataclass(frozen=True)
class ImageRecipe:
    """One public set of images, or of labels for one."""

    name: str
    title: str
    url: str
    """The publisher's page."""
    licence: str
    citation: str
    n_classes: int
    class_names: tuple[str, ...]
    counts: Mapping[str, int]
    """Images of each split."""
    files: tuple[ImageFile, ...]
    packed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Split -> the ``.npz`` parts, plain or packed, that stand for the publisher's files."""
    label_sets: Mapping[str, str] = field(default_factory=dict)
    """Of human labels: set -> name of its array in ``labels.npz``."""
    images_of: str | None = None
    """Of human labels: the recipe with the images."""
    folders: tuple[str, ...] = ()
    """Further names that its folder may have."""
    notes: tuple[str, ...] = ()


_IDX = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
_MNIST_MD5 = (
    "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "d53e105ee54ea40749a09fcbcd1e9432",
    "9fb629c4189551a2d022fa330f9573f3",
    "ec29112dd5afa0611ce80d1b7f02629c",
)
_FASHION_MD5 = (
    "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "25c81989df183df01b3e8a0aad5dffbe",
    "bef4ecab320f06d8554ea6380940ec79",
    "bb300cfdad3c16e7a12a480ee83cd310",
)
_KRIZHEVSKY = "Alex Krizhevsky. 2009. Learning Multiple Layers of Features from Tiny Images. Technical report."
_WEI = (
    "Jiaheng Wei, Zhaowei Zhu, Hao Cheng, Tongliang Liu, Gang Niu and Yang Liu. 2022. Learning with Noisy Labels "
    "Revisited: A Study Using Real-World Human Annotations. ICLR 2022. https://arxiv.org/abs/2110.12088"
)

MNIST = ImageRecipe(
    name="mnist",
    title="MNIST",
    url="http://yann.lecun.com/exdb/mnist/",
    licence="Derived from NIST's databases by Yann LeCun and Corinna Cortes; their page names no licence.",
    citation=(
        "Yann LeCun, Leon Bottou, Yoshua Bengio and Patrick Haffner. 1998. Gradient-Based Learning Applied to "
        "Document Recognition. Proceedings of the IEEE 86, 11: 2278-2324. https://doi.org/10.1109/5.726791"
    ),
    n_classes=10,
    class_names=tuple("0123456789"),
    counts={"train": 60_000, "test": 10_000},
    files=tuple(
        ImageFile(name, f"https://ossci-datasets.s3.amazonaws.com/mnist/{name}", md5)
        for name, md5 in zip(_IDX, _MNIST_MD5, strict=True)
    ),
    packed={"train": ("train.npz",), "test": ("test.npz",)},
)
FASHION_MNIST = ImageRecipe(
    name="fashion-mnist",
    title="Fashion-MNIST",
    url="https://github.com/zalandoresearch/fashion-mnist",
    licence="MIT, (c) 2017 Zalando SE.",
    citation=(
        "Han Xiao, Kashif Rasul and Roland Vollgraf. 2017. Fashion-MNIST: a Novel Image Dataset for Benchmarking "
        "Machine Learning Algorithms. https://arxiv.org/abs/1708.07747"
    ),
    n_classes=10,
    class_names=FASHION_CLASSES,
    counts={"train": 60_000, "test": 10_000},
    files=tuple(
        ImageFile(name, f"http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/{name}", md5)
        for name, md5 in zip(_IDX, _FASHION_MD5, strict=True)
    ),
    packed={"train": ("train_compact.npz",), "test": ("test_compact.npz",)},
    folders=("fashion_mnist",),
)
CIFAR10 = ImageRecipe(
    name="cifar10",
    title="CIFAR-10",
    url=f"{CIFAR}/cifar.html",
    licence="The publisher names no licence and asks for a citation.",
    citation=_KRIZHEVSKY,
    n_classes=10,
    class_names=CIFAR10_CLASSES,
    counts={"train": 50_000, "test": 10_000},
    files=(ImageFile("cifar-10-python.tar.gz", f"{CIFAR}/cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),),
    packed={"train": tuple(f"train_compact_{i}.npz" for i in range(5)), "test": ("test_compact.npz",)},
    notes=("111 images of the packed form (86 of train, 25 of test) are JPEG decodes; all others are the release's.",),
)
CIFAR100 = ImageRecipe(
    name="cifar100",
    title="CIFAR-100",
    url=f"{CIFAR}/cifar.html",
    licence="The publisher names no licence and asks for a citation.",
    citation=_KRIZHEVSKY,
    n_classes=100,
    class_names=CIFAR100_CLASSES,
    counts={"train": 50_000, "test": 10_000},
    files=(
        ImageFile("cifar-100-python.tar.gz", f"{CIFAR}/cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),
    ),
)
CIFAR10N = ImageRecipe(
    name="cifar10n",
    title="CIFAR-10N, human labels of CIFAR-10",
    url=CIFAR_N,
    licence="CC BY-NC 4.0: no commercial use.",
    citation=_WEI,
    n_classes=10,
    class_names=CIFAR10_CLASSES,
    counts={"train": 50_000},
    files=(ImageFile("CIFAR-10_human.pt", f"{CIFAR_N}/raw/main/data/CIFAR-10_human.pt"),),
    packed={"train": ("cifar10n.npz",)},
    label_sets={
        "aggre": "aggre_label",
        "random1": "random_label1",
        "random2": "random_label2",
        "random3": "random_label3",
        "worse": "worse_label",
    },
    images_of="cifar10",
    folders=("cifar_human_labels",),
)
CIFAR100N = ImageRecipe(
    name="cifar100n",
    title="CIFAR-100N, human labels of CIFAR-100",
    url=CIFAR_N,
    licence="CC BY-NC 4.0: no commercial use.",
    citation=_WEI,
    n_classes=100,
    class_names=CIFAR100_CLASSES,
    counts={"train": 50_000},
    files=(ImageFile("CIFAR-100_human.pt", f"{CIFAR_N}/raw/main/data/CIFAR-100_human.pt"),),
    packed={"train": ("cifar100n.npz",)},
    label_sets={"fine": "noisy_label"},
    images_of="cifar100",
    folders=("cifar_human_labels",),
)
IMAGE_RECIPES: dict[str, ImageRecipe] = {
    recipe.name: recipe for recipe in (MNIST, FASHION_MNIST, CIFAR10, CIFAR100, CIFAR10N, CIFAR100N)
}
"""Every recipe of images by name."""


def find_image_recipe(name: str) -> ImageRecipe:
    """Return the recipe called ``name``.

    Raises:
        RecipeError: there is none; the message lists the names.
    """
    if name in IMAGE_RECIPES:
        return IMAGE_RECIPES[name]
    close = difflib.get_close_matches(str(name), IMAGE_RECIPES, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise RecipeError(f"Unknown image recipe {name!r}.{hint} Valid: {', '.join(IMAGE_RECIPES)}.")


def built_file(name: str, split: str, root: Path) -> Path | None:
    """The plain arrays of a split under ``root``, or ``None`` where they are not built."""
    recipe = find_image_recipe(name)
    stem = "labels" if recipe.label_sets else split
    for folder in (recipe.name, *recipe.folders):
        path = root / folder / f"{stem}.npz"
        if path.is_file():
            return path
    return None


def source_folder(name: str, split: str, root: Path) -> Path | None:
    """The folder under ``root`` with a split's raw or packed files, or ``None``."""
    recipe = find_image_recipe(name)
    for folder in (root / recipe.name, *(root / each for each in recipe.folders), root):
        if _sources(recipe, split, folder) is not None:
            return folder
    return None


def build_images(name: str, out: str | Path, source: str | Path, splits: tuple[str, ...] | None = None) -> list[Path]:
    """Write the plain arrays of a recipe; files that are there already stay as they are.

    Args:
        name: a name in :data:`IMAGE_RECIPES`.
        out: the root; files land in ``out/<name>``.
        source: folder with the publisher's files or the packed parts.
        splits: which to write; None takes all.

    Returns:
        The files, one a split.

    Raises:
        RecipeError: files that are absent, damaged or not the published ones, or a place that cannot be written.
    """
    recipe, out, source = find_image_recipe(name), Path(out), Path(source)
    written = []
    for split in splits or tuple(recipe.counts):
        if split not in recipe.counts:
            raise RecipeError(f"{name} has no split {split!r}. Valid: {', '.join(recipe.counts)}.")
        done = built_file(name, split, out)
        if done is None:
            found = _sources(recipe, split, source)
            if found is None:
                raise RecipeError(_missing(recipe, split, source))
            stem = "labels" if recipe.label_sets else split
            contents = _read(recipe, split, found)
            done = _write(out / recipe.name / f"{stem}.npz", contents)
            record(recipe, done, split, contents)
        written.append(done)
    return written


def fetch_images(name: str, downloads: Path) -> Path:
    """Download the publisher's files of a recipe to a folder, where they are not there yet; returns the folder.

    Raises:
        RecipeError: a server that does not answer, or labels that are read from a file at hand alone.
    """
    recipe = find_image_recipe(name)
    if recipe.label_sets:
        raise RecipeError(f"{recipe.title} is made from a file at hand: give --from; {recipe.url} publishes it.")
    raw = [RawFile(file.name, file.url) for file in recipe.files]
    missing = [file for file in raw if not (downloads / file.name).is_file()]
    return fetch(missing, downloads) if missing else downloads


def _raw_names(recipe: ImageRecipe, split: str) -> tuple[str, ...]:
    """The publisher's files that a split is made from."""
    names = tuple(file.name for file in recipe.files)
    return (names[:2] if split == "train" else names[2:]) if len(names) == 4 else names


def _sources(recipe: ImageRecipe, split: str, folder: Path) -> list[Path] | None:
    """All files of one form of a split, packed or raw, where ``folder`` has them."""
    forms = [recipe.packed.get(split, ()), _raw_names(recipe, split)]
    if len(recipe.files) == 4:
        forms.append(tuple(name.removesuffix(".gz") for name in _raw_names(recipe, split)))
    for names in forms:
        paths = [folder / name for name in names]
        if names and all(path.is_file() for path in paths):
            return paths
    return None


def _missing(recipe: ImageRecipe, split: str, folder: Path) -> str:
    wanted = ", ".join(_raw_names(recipe, split))
    return f"{folder} does not hold {wanted} of {recipe.title}; {recipe.url} publishes it."


def _read(recipe: ImageRecipe, split: str, paths: list[Path]) -> dict[str, np.ndarray]:
    """The arrays of a split, checked for number and range."""
    if recipe.label_sets:
        return _human_labels(recipe, paths[0])
    if paths[0].suffix == ".npz":
        images, labels = files.packed(paths)
    elif paths[0].name.endswith(".tar.gz"):
        images, labels = _archive(recipe, split, paths[0])
    else:
        images, labels = (files.idx(path, _checked(recipe, path)) for path in paths)
    count = recipe.counts[split]
    if len(images) != count or len(labels) != count:
        raise RecipeError(
            f"{paths[0].parent} has {len(images):,} images and {len(labels):,} labels of {recipe.title}'s {split} "
            f"part, not {count:,}."
        )
    labels = labels.astype(np.int64)
    if labels.min() < 0 or labels.max() >= recipe.n_classes:
        raise RecipeError(f"{paths[0].parent}: labels of {recipe.title} must be 0 to {recipe.n_classes - 1}.")
    return {"images": images, "labels": labels}


def _checked(recipe: ImageRecipe, path: Path) -> bytes:
    data = files.read_bytes(path)
    md5 = {file.name: file.md5 for file in recipe.files}.get(path.name)
    if md5 is not None:
        files.check_md5(path, data, md5)
    return data


def _archive(recipe: ImageRecipe, split: str, path: Path) -> files.Labelled:
    data = _checked(recipe, path)
    if recipe.n_classes == 10:
        names = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
        return files.cifar(path, data, [f"cifar-10-batches-py/{name}" for name in names], b"labels")
    return files.cifar(path, data, [f"cifar-100-python/{split}"], b"fine_labels")


def _human_labels(recipe: ImageRecipe, path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".pt":
        raise RecipeError(
            f"{path} needs torch to be read: vision.noise reads it, as in noise 'human:{path}#worse_label'."
        )
    found = files.arrays(path)
    wanted = ("clean_label", *recipe.label_sets.values())
    for name in wanted:
        if name not in found or found[name].shape != (recipe.counts["train"],):
            raise RecipeError(f"{path} has no array {name!r} of {recipe.counts['train']:,} labels.")
    return {name: found[name].astype(np.int64) for name in wanted}


def _write(path: Path, contents: Mapping[str, np.ndarray]) -> Path:
    """Write an ``.npz`` beside its place and move it there when it is whole."""
    hidden = path.parent / f".{path.stem}.{uuid.uuid4().hex}.npz"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(hidden, **contents)  # type: ignore[arg-type]
        os.replace(hidden, path)
    except OSError as error:
        raise RecipeError(f"Cannot write {path}: {because(error)}.") from error
    finally:
        hidden.unlink(missing_ok=True)
    return path
