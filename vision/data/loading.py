"""One call from whatever a user has to :class:`ImageData`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_recipes import RecipeError
from data_recipes.images_files import array_names, arrays
from recdenoise.errors import UserError, unknown_name
from vision.data import biased_folders, clothing1m, derived, named
from vision.data.arrays import Layout, as_images, as_labels, count_classes
from vision.data.folders import DEFAULT_MEMORY, from_paths, load_folder
from vision.data.images import ImageData
from vision.data.masks import as_masks

_IMAGE_KEYS = ("images", "x", "X", "data")
_LABEL_KEYS = ("labels", "y", "targets", "label")


def load(
    source: Any,
    *,
    split: str = "train",
    root: str | Path | None = None,
    n_classes: int | None = None,
    class_names: tuple[str, ...] | None = None,
    true_labels: Any = None,
    attributes: Mapping[str, Any] | None = None,
    layout: Layout | None = None,
    image_size: int | tuple[int, int] | None = None,
    skip_unreadable: bool = False,
    memory: int = DEFAULT_MEMORY,
    workers: int = 0,
    download: bool = True,
    masks: Any = None,
    trains: bool = True,
) -> ImageData:
    """Read labelled images.

    Args:
        source: one of

            - ``(images, labels)``, arrays or tensors: uint8 or floats of 0 to 1, ``(N, H, W)``, ``(N, H, W, C)`` or
              ``(N, C, H, W)``; or a mapping with ``images`` and ``labels``, and perhaps ``true_labels`` and
              ``attribute_NAME``;
            - the path of an ``.npz`` with these arrays (``x_train``, ``y_train`` and so on also do);
            - a folder with one folder of image files a class, perhaps under ``train`` and ``test``;
            - a folder in the layout of Clothing1M, see :mod:`vision.data.clothing1m`, or of bFFHQ or BAR, see
              :mod:`vision.data.biased_folders`;
            - a torch or torchvision data set of ``(image, label)`` pairs, perhaps with a mapping ``attributes``;
            - a name, see :func:`vision.data.named.names`, or one that makes a set from another, see
              :mod:`vision.data.derived`.
        split: which part of a named set, of an ``.npz`` (``images_test``, or ``x_test``), or of a folder.
        root: where named sets are looked for, built and downloaded to.
        n_classes: number of classes; ``None`` takes the highest label plus 1.
        class_names: one a class.
        true_labels: ``(N,)`` labels known to be right, where ``labels`` are noisy.
        attributes: ``(N,)`` whole numbers by name, such as ``{"bias": colours}``; see :class:`ImageData`.
        layout: ``"NHWC"`` or ``"NCHW"`` where the shape leaves it open.
        image_size: side, or height and width, that the images of a folder are brought to: the shorter side is scaled,
            the middle is cut out. Needed where they differ in size.
        skip_unreadable: leave out broken image files, with a note, instead of refusing the folder.
        memory: bytes of decoded images up to which a folder is read once; a larger one is read as it is needed.
        workers: processes that decode ahead where a folder is read as it is needed.
        download: whether a named set may be downloaded.
        masks: of the images' contents: for a folder of images a folder with a file of the same name at the same place,
            otherwise an array or an ``.npz``, see :func:`vision.data.masks.as_masks`.
        trains: whether the images will be learned from; otherwise all may be of one class, where ``n_classes`` is told.

    Raises:
        UserError: whatever is wrong with the source, in one sentence.
    """
    options = {"image_size": image_size, "skip_unreadable": skip_unreadable, "memory": memory, "workers": workers}
    given: dict[str, Any] = {"n_classes": n_classes, "class_names": class_names, "true_labels": true_labels}
    given |= {"attributes": attributes, "trains": trains}
    files = isinstance(masks, str | os.PathLike) and Path(masks).is_dir()
    data = _read(source, split, root, layout, {**options, "masks": Path(masks)} if files else options, given, download)
    if files and data.masks is None:
        raise UserError(
            f"{masks} is a folder of masks, and the images are no folder: give an array or an .npz of masks."
        )
    if masks is None or files:
        return data
    return dataclasses.replace(data, masks=as_masks(masks, data.images.shape, split).to(data.device))


def _read(
    source: Any,
    split: str,
    root: str | Path | None,
    layout: Layout | None,
    options: dict[str, Any],
    given: dict[str, Any],
    download: bool,
) -> ImageData:
    """:func:`load` without masks in arrays."""
    if isinstance(source, ImageData):
        return source
    if isinstance(source, str | os.PathLike):
        text = os.fspath(source)
        name = named.canonical(text)
        made = derived.parse(name or text)
        if made is not None:
            own: dict[str, Any] = {**options, "n_classes": given["n_classes"], "layout": layout}
            base = load(made.base, split=split, root=root, download=download, **own)
            cache = named.cache_folder() if root is None else Path(root)
            return _agreed(made.build(base, split, cache), **given)
        if name is not None and name not in biased_folders.NAMES:
            return _agreed(named.load_named(name, split, root, download), **given)
        path = Path(text) if name is None else named.folder_of(name, root)
        if path.is_dir() and clothing1m.lists_folder(path) is not None:
            return _agreed(clothing1m.load_clothing1m(path, split, **options), **given)
        if path.is_dir() and biased_folders.layout(path) is not None:
            return _agreed(biased_folders.load_biased_folder(path, split, **options), **given)
        if path.is_dir():
            data = load_folder(path, split, **options)
            return _agreed(data, **given)
        if path.is_file():
            return _npz(path, split, layout, given)
        if isinstance(source, str) and os.sep not in text and not path.suffix:
            raise unknown_name("data set (and no file or folder either)", text, named.names())
        raise UserError(f"There is no file or folder {path}.")
    if isinstance(source, Mapping):
        return _mapping(source, "the mapping", layout, given)
    if isinstance(source, tuple | list) and len(source) == 2:
        return from_arrays(*source, layout=layout, **given)
    if hasattr(source, "__getitem__") and hasattr(source, "__len__") and not isinstance(source, Tensor | tuple | list):
        return _dataset(source, layout, given, options)
    raise UserError(
        f"Images cannot be read from {type(source).__name__}: give (images, labels), the path of an .npz or a folder, "
        "a torch data set or a name."
    )


def test_splits(source: str) -> list[str]:
    """The parts of a source that are there to test on: ``test``, where it has one, then every ``test_NAME``, sorted.

    Raises:
        UserError: an ``.npz`` that cannot be read.
    """
    source = derived.base_of(source)
    if named.canonical(source) is not None:
        return ["test"]
    path = Path(source)
    if path.is_dir() and clothing1m.lists_folder(path) is not None:
        return ["test"]
    if path.is_dir():
        found = {each.name for each in path.iterdir() if each.is_dir()}
        found |= {"test"} if {"train", "val"} <= found else set()
    elif path.is_file():
        keys = _read_npz(array_names, path)
        prefixes = [f"{name}_" for name in _IMAGE_KEYS]
        found = {key.removeprefix(prefix) for key in keys for prefix in prefixes if key.startswith(prefix)}
        found |= {"test" for key in keys if key.startswith("test_") and key.removeprefix("test_") in _IMAGE_KEYS}
    else:
        return []
    return [name for name in sorted(found) if name == "test" or name.startswith("test_")]


def from_arrays(
    images: Any,
    labels: Any,
    *,
    n_classes: int | None = None,
    class_names: tuple[str, ...] | None = None,
    true_labels: Any = None,
    attributes: Mapping[str, Any] | None = None,
    layout: Layout | None = None,
    name: str = "",
    trains: bool = True,
) -> ImageData:
    """Images and labels in memory; see :func:`load`. One class alone will do unless it ``trains``.

    Raises:
        UserError: as :func:`load`.
    """
    if labels is None:
        raise UserError("There are no labels: give (images, labels).")
    pixels, notes = as_images(images, layout)
    observed = as_labels(labels)
    if len(observed) != len(pixels):
        raise UserError(f"There are {len(observed)} labels for {len(pixels)} images; give one for each image.")
    if n_classes is None and class_names is not None:
        n_classes = len(class_names)
    count, more = count_classes(observed, n_classes)
    if trains and len(observed.unique()) == 1:
        raise UserError(
            f"All {len(observed)} labels are {int(observed[0])}; training needs images of at least two classes."
        )
    true = None if true_labels is None else as_labels(true_labels, "true labels").to(pixels.device)
    names = None if class_names is None else tuple(str(each) for each in class_names)
    further = {key: values.to(pixels.device) for key, values in as_attributes(attributes).items()}
    return ImageData(pixels, observed.to(pixels.device), count, names, true, name, (*notes, *more), further)


def as_attributes(given: Mapping[str, Any] | None) -> dict[str, Tensor]:
    """Attributes in any form as int64 tensors. Raises ``UserError``."""
    return {str(name): as_labels(values, f"values of attribute {name}") for name, values in (given or {}).items()}


def _agreed(
    data: ImageData,
    n_classes: int | None,
    class_names: tuple[str, ...] | None,
    true_labels: Any,
    attributes: Mapping[str, Any] | None,
    trains: bool,
) -> ImageData:
    """``data`` with what the caller knows of it besides; what it is for changes nothing."""
    true = data.true_labels if true_labels is None else as_labels(true_labels, "true labels")
    names = data.class_names if class_names is None else tuple(class_names)
    if n_classes is not None and names is not None and class_names is None and len(names) != n_classes:
        raise UserError(f"{data.name or 'The data'} has {data.n_classes} classes, not {n_classes}.")
    further = {**data.attributes, **{key: v.to(data.labels.device) for key, v in as_attributes(attributes).items()}}
    return dataclasses.replace(
        data, n_classes=n_classes or data.n_classes, class_names=names, true_labels=true, attributes=further
    )


def _pick(found: Mapping[str, Any], keys: tuple[str, ...], split: str) -> Any:
    """The array of a split; arrays without the split's name in theirs are of the training part."""
    plain = keys if split == "train" else ()
    for key in (*(f"{key}_{split}" for key in keys), *(f"{split}_{key}" for key in keys), *plain):
        if key in found:
            return found[key]
    return None


def _mapping(
    found: Mapping[str, Any], where: str, layout: Layout | None, given: dict[str, Any], split: str = "train"
) -> ImageData:
    images, labels = _pick(found, _IMAGE_KEYS, split), _pick(found, _LABEL_KEYS, split)
    if images is None or labels is None:
        lacks = "images" if images is None else "labels"
        end = "" if split == "train" else f"_{split}"
        raise UserError(
            f"{where} has no {lacks}: it needs the arrays images{end} and labels{end}; it has "
            f"{', '.join(sorted(str(key) for key in found)) or 'none'}."
        )
    if given["true_labels"] is None:
        given = {**given, "true_labels": _pick(found, ("true_labels", "clean_labels"), split)}
    if given["attributes"] is None:
        given = {**given, "attributes": _attributes(found, split)}
    if given["n_classes"] is None and "n_classes" in found:
        given = {**given, "n_classes": _number(found["n_classes"], where)}
    if given["class_names"] is None and "class_names" in found:
        if np.ndim(found["class_names"]) != 1:
            raise UserError(f"class_names of {where} must be a list, with one name for each class.")
        given = {**given, "class_names": tuple(str(each) for each in found["class_names"])}
    given = {**given, "trains": given["trains"] and split == "train"}
    return from_arrays(images, labels, layout=layout, **given)


def _number(given: Any, where: str) -> int:
    """The number of classes as a file has it. Raises ``UserError``."""
    values = np.asarray(given)
    whole = values.size == 1 and values.dtype.kind in "iuf" and float(values.item()).is_integer()
    if not whole:
        raise UserError(f"n_classes of {where} is {str(values.tolist())[:40]}; it must be one whole number.")
    return int(values.item())


def _attributes(found: Mapping[str, Any], split: str) -> dict[str, Any]:
    """What is called ``attribute_NAME_SPLIT``, or ``attribute_NAME`` for training."""
    splits = {str(key).removeprefix("images_") for key in found if str(key).startswith("images_")} | {"train", "test"}
    out = {}
    for key in found:
        name = str(key).removeprefix("attribute_")
        ends = [each for each in splits if name.endswith(f"_{each}")]
        of = max(ends, key=len, default="")
        if name != key and of in ((split, "") if split == "train" else (split,)):
            out[name.removesuffix(f"_{of}")] = found[key]
    return out


def _npz(path: Path, split: str, layout: Layout | None, given: dict[str, Any]) -> ImageData:
    return _mapping(_read_npz(arrays, path), str(path), layout, given, split)


def _read_npz(read: Callable[[Path], Any], path: Path) -> Any:
    try:
        return read(path)
    except RecipeError as error:
        raise UserError(str(error)) from error


def _dataset(source: Any, layout: Layout | None, given: dict[str, Any], options: dict[str, Any]) -> ImageData:
    """A torch data set: its arrays where its items are those, else one pass over its items."""
    from torch.utils.data import Subset, TensorDataset

    if isinstance(source, Subset) and _reads_as(source, Subset):
        whole = {**given, "true_labels": None, "attributes": None}
        part = _dataset(source.dataset, layout, whole, options).subset(torch.as_tensor(source.indices))
        return _agreed(part, **given)
    if isinstance(source, TensorDataset) and _reads_as(source, TensorDataset):
        if len(source.tensors) != 2:
            raise UserError(f"The TensorDataset holds {len(source.tensors)} tensors; it must be images and labels.")
        return from_arrays(*source.tensors, layout=layout, **given)
    if given["attributes"] is None and isinstance(getattr(source, "attributes", None), Mapping):
        given = {**given, "attributes": source.attributes}
    data: ImageData | None = None
    notes: tuple[str, ...] = ()
    if type(source).__module__.startswith("torchvision.datasets"):
        names = _class_names(source)
        if given["class_names"] is None and names is not None:
            given = {**given, "class_names": names}
        data = _torchvision(source, layout, given, options)
    if data is None:
        data = _items(source, layout, given)
        if getattr(source, "transform", None) or getattr(source, "transforms", None):
            notes = ("The data set's own transforms were applied once, while it was read.",)
    elif getattr(source, "transform", None):
        notes = ("The data set's own transforms are not applied; augmentation is chosen for training.",)
    return dataclasses.replace(data, notes=(*data.notes, *notes))


def _reads_as(source: Any, kind: type[Any]) -> bool:
    """Whether items come as ``kind`` gives them: a class derived from it may give other labels."""
    return type(source).__getitem__ is kind.__getitem__  # type: ignore[attr-defined]


def _class_names(source: Any) -> tuple[str, ...] | None:
    """Of a torchvision set, where its labels still are the classes that it names."""
    if getattr(source, "target_transform", None) is not None:
        return None
    return tuple(getattr(source, "classes", ())) or None


def _torchvision(
    source: Any, layout: Layout | None, given: dict[str, Any], options: dict[str, Any]
) -> ImageData | None:
    """The files or arrays of a torchvision set with the labels of its items; ``None`` where only those have them."""
    if hasattr(source, "samples"):  # its items read these; ``targets`` is a copy made when the folder was listed
        from torchvision.datasets.folder import default_loader

        if getattr(source, "loader", default_loader) is not default_loader:
            return None
        paths = [Path(path) for path, _ in source.samples]
        labels = as_labels(_targets(source, [label for _, label in source.samples]))
        folder = from_paths(paths, labels, _class_names(source) or (), n_classes=given["n_classes"], **options)
        return _agreed(folder, **given)
    found = getattr(source, "targets", getattr(source, "labels", None))
    if hasattr(source, "data") and found is not None and np.ndim(found) == 1:
        kind = type(source).__name__
        name = named.canonical(kind) or kind  # what noise and augmentation know the same images by
        return from_arrays(source.data, _targets(source, found), layout=layout, name=name, **given)
    return None


def _targets(source: Any, labels: Any) -> Any:
    """Labels as the items of a torchvision set have them."""
    change = getattr(source, "target_transform", None)
    return labels if change is None else [_number_of(change(int(label))) for label in labels]


def _number_of(label: Any) -> Any:
    return int(label) if isinstance(label, Tensor) and label.numel() == 1 else label


def _items(source: Any, layout: Layout | None, given: dict[str, Any]) -> ImageData:
    """Every ``(image, label)`` of a data set, read once."""
    images, labels = [], []
    for row in range(len(source)):
        try:
            image, label = source[row][:2]
        except (TypeError, ValueError, IndexError) as error:
            raise UserError(f"Item {row} of {type(source).__name__} is not a pair of image and label.") from error
        images.append(_pixels(image, row, type(source).__name__))
        labels.append(_number_of(label))
    shapes = {tuple(image.shape) for image in images}
    if not images:
        raise UserError(f"{type(source).__name__} has no items.")
    if len(shapes) > 1:
        raise UserError(
            f"The images of {type(source).__name__} differ in size ({len(shapes)} shapes); resize them to one."
        )
    return from_arrays(torch.stack(images), labels, layout=layout or "NCHW", **given)


def _pixels(image: Any, row: int, where: str) -> Tensor:
    """One image as ``(C, H, W)``, uint8 or float."""
    if type(image).__module__.startswith("PIL."):
        image = np.array(image.convert("RGB") if image.mode in ("P", "CMYK", "YCbCr") else image)
    try:
        array = torch.as_tensor(image)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"Item {row} of {where} is {type(image).__name__}, not an image.") from None
    if array.ndim == 2:
        return array.unsqueeze(0)
    if array.ndim == 3 and array.shape[0] not in (1, 3, 4) and array.shape[2] in (1, 3, 4):
        return array.permute(2, 0, 1)
    return array
