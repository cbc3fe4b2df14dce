"""Folders of image files, one folder a class: read once where they fit into memory, else decoded as they are needed.

A file is decoded to RGB (or to one channel where all files are grey), its shorter side is scaled to the wanted size and
the middle is cut out. Nothing here is random: augmentation comes later, on the whole batch.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recdenoise.errors import UserError
from vision.data.arrays import count_classes
from vision.data.images import ImageData
from vision.data.masks import check_sizes, mask_files

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif"})
DEFAULT_MEMORY = 4 << 30
"""Bytes of decoded images up to which a folder is read once."""
_GREY = frozenset({"1", "L", "LA", "I;16"})
_THREADS = 8


class Unreadable(ValueError):
    """A file that is no image, or half of one."""


def load_folder(
    folder: Path,
    split: str = "train",
    *,
    image_size: int | tuple[int, int] | None = None,
    skip_unreadable: bool = False,
    memory: int = DEFAULT_MEMORY,
    workers: int = 0,
    masks: Path | None = None,
) -> ImageData:
    """Read ``folder/<class>/*`` or ``folder/<split>/<class>/*``; see :func:`vision.data.load` for the options.

    Where there are ``train`` and ``val`` and no ``test``, as in ImageNet, the part ``test`` is ``val``.

    Classes are numbered in the order of their names, files within a class too: the same folder gives the same rows.

    Raises:
        UserError: fewer than two classes, no image, an image that cannot be read, or sizes that differ.
    """
    base = folder / split if (folder / split).is_dir() else folder
    if split == "test" and base == folder and all((folder / each).is_dir() for each in ("train", "val")):
        split, base = "val", folder / "val"  # as ImageNet calls it
    if split != "train" and base == folder:
        raise UserError(f"{folder} has no folder {split}.")
    kinds = _class_folders(base)
    known = _class_folders(folder / "train" if (folder / "train").is_dir() else folder)
    if split != "train":  # classes have the numbers that they have in training
        strange = sorted({kind.name for kind in kinds} - {kind.name for kind in known} - {split})
        if strange:
            raise UserError(f"{base} has a class {strange[0]!r} that is none of the training part.")
        kinds = [base / kind.name for kind in known]
    paths: list[Path] = []
    counts: list[int] = []
    for kind in kinds:
        found = sorted(each for each in kind.rglob("*") if each.suffix.lower() in EXTENSIONS and each.is_file())
        paths += found
        counts.append(len(found))
    if len(kinds) < 2 or not paths:
        raise UserError(
            f"{base} holds {len(kinds)} folders and {len(paths)} images in them; it must hold one folder of images for "
            "each class, and at least two."
        )
    labels = torch.repeat_interleave(torch.arange(len(kinds)), torch.tensor(counts))
    return from_paths(
        paths,
        labels,
        tuple(kind.name for kind in kinds),
        image_size=image_size,
        skip_unreadable=skip_unreadable,
        memory=memory,
        workers=workers,
        name=folder.name,
        masks=None if masks is None else mask_files(masks, base, split, paths),
    )


def _class_folders(base: Path) -> list[Path]:
    """The folders of the classes, by name. A folder ``test`` or ``valid`` beside them that holds some again is none."""
    found = sorted(each for each in base.iterdir() if each.is_dir() and not each.name.startswith("."))
    names = {each.name for each in found}

    def again(each: Path) -> bool:
        inner = {inside.name for inside in each.iterdir() if inside.is_dir()}
        return each.name in ("test", "valid", "val") and bool(inner & names)

    return [each for each in found if not again(each)]


def from_paths(
    paths: Sequence[Path],
    labels: Tensor,
    class_names: tuple[str, ...],
    *,
    image_size: int | tuple[int, int] | None = None,
    skip_unreadable: bool = False,
    memory: int = DEFAULT_MEMORY,
    workers: int = 0,
    name: str = "",
    masks: Sequence[Path] | None = None,
    attributes: Mapping[str, Tensor] | None = None,
    n_classes: int | None = None,
) -> ImageData:
    """Images of a list of files, perhaps with a file of each one's mask; see :func:`load_folder`.

    ``n_classes`` says how many classes there are where they have no names.

    Raises:
        UserError: as :func:`load_folder`.
    """
    wanted = side_lengths(image_size)
    heads = _parallel(_head, paths)
    bad = {row: head for row, head in enumerate(heads) if isinstance(head, Unreadable)}
    good = [head for head in heads if not isinstance(head, Unreadable)]
    if bad and not skip_unreadable:
        _refuse(bad)
    if wanted is None:
        wanted = _common_size(paths, heads)
    channels = 1 if all(mode in _GREY for _, mode in good) else 3
    lazy = FolderImages(tuple(paths), channels, wanted, workers)
    fits = len(paths) * channels * wanted[0] * wanted[1] <= memory
    pixels: FolderImages | Tensor = lazy
    if fits or skip_unreadable:  # to skip what is broken, everything has to be decoded once
        out = torch.zeros(lazy.shape if fits else (0,), dtype=torch.uint8)
        bad |= _decode_all(lazy, out if fits else None, set(bad))
        pixels = out if fits else lazy
    if bad and not skip_unreadable:
        _refuse(bad)
    count, notes = count_classes(labels, len(class_names) or n_classes)
    keep = torch.tensor([row not in bad for row in range(len(paths))])
    if bad and not bool(keep.any()):
        raise UserError(f"None of the {len(paths)} images can be read; the first: {next(iter(bad.values()))}")
    drawn = None
    if masks is not None:
        drawn = _masks(masks, paths, heads, lazy, fits)
    data = ImageData(pixels, labels, count, class_names or None, None, name, notes, attributes or {}, masks=drawn)
    if not bad:
        return data
    shown = ", ".join(str(paths[row]) for row in sorted(bad)[:3]) + (", ..." if len(bad) > 3 else "")
    note = f"{len(bad)} of {len(paths)} images could not be read and were left out: {shown}."
    return dataclasses.replace(data.subset(keep.nonzero()[:, 0]), notes=(*notes, note))


def _masks(
    masks: Sequence[Path], paths: Sequence[Path], heads: Sequence[Any], images: FolderImages, fits: bool
) -> FolderImages | Tensor:
    """The masks of image files, of the images' size; decoded where the images are."""
    found = _parallel(_head, masks)
    broken = {row: head for row, head in enumerate(found) if isinstance(head, Unreadable)}
    if broken:
        _refuse(broken)
    good = [row for row, head in enumerate(heads) if not isinstance(head, Unreadable)]
    sides = [[each[row] for row in good] for each in (masks, paths)]
    check_sizes(sides[0], [found[row][0] for row in good], sides[1], [heads[row][0] for row in good])
    lazy = dataclasses.replace(images, paths=tuple(masks), channels=1)
    if not fits:
        return lazy
    out = torch.zeros(lazy.shape, dtype=torch.uint8)
    bad = _decode_all(lazy, out, set())
    if bad:
        _refuse(bad)
    return out


@dataclass(frozen=True, eq=False)
class FolderImages:
    """Image files as :class:`~vision.data.images.LazyImages`.

    Attributes:
        paths: one a row.
        channels: 1 or 3.
        size: height and width that every image is brought to.
        workers: processes that decode ahead in :meth:`batches`; 0 decodes in threads of this process.
        device: where batches go.
    """

    paths: tuple[Path, ...]
    channels: int
    size: tuple[int, int]
    workers: int = 0
    device: torch.device = torch.device("cpu")  # noqa: RUF009

    @property
    def shape(self) -> torch.Size:
        """``(N, C, H, W)``."""
        return torch.Size((len(self.paths), self.channels, *self.size))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """Decode the images of ``(b,)`` rows now: ``(b, C, H, W)`` uint8.

        Raises:
            UserError: one of the files cannot be read; the message names it.
        """
        listed = list(range(*rows.indices(len(self)))) if isinstance(rows, slice) else rows.tolist()
        images, error = _Decoder(self, threads=True).__getitems__(listed)
        return self._arrived(images, error)

    def take(self, rows: Tensor) -> FolderImages:
        """The files of these rows, in their order."""
        return dataclasses.replace(self, paths=tuple(self.paths[row] for row in rows.tolist()))

    def to(self, device: torch.device | str) -> FolderImages:
        """The same files, their batches on another device."""
        return dataclasses.replace(self, device=torch.device(device))

    def batches(self, orders: Iterable[Tensor]) -> Iterator[Tensor]:
        """``(b, C, H, W)`` uint8 images of each set of rows, in order, decoded ahead by a ``DataLoader``.

        Raises:
            UserError: a file cannot be read.
        """
        from torch.utils.data import DataLoader

        loader: DataLoader[Any] = DataLoader(
            _Decoder(self, threads=self.workers == 0),  # type: ignore[arg-type]
            batch_sampler=_Orders(orders),  # type: ignore[arg-type]
            num_workers=self.workers,
            collate_fn=_as_it_is,
            pin_memory=self.device.type == "cuda",
            prefetch_factor=4 if self.workers else None,
            # An iterator draws a seed for its workers. Out of the global generator, methods would see other draws than
            # over images in memory, and others again after a resume.
            generator=torch.Generator(),
        )
        for images, error in loader:
            yield self._arrived(images, error)

    def _arrived(self, images: Tensor, error: str) -> Tensor:
        if error:
            raise UserError(error)
        return images.to(self.device, non_blocking=True)


class _Orders:
    """Hands index tensors to a DataLoader as the lists that it wants."""

    def __init__(self, orders: Iterable[Tensor]) -> None:
        self.orders = orders

    def __iter__(self) -> Iterator[list[int]]:
        for rows in self.orders:
            yield rows.tolist()


class _Decoder:
    """Decodes a batch at a time. Errors are returned: an exception out of a worker carries its whole traceback."""

    def __init__(self, images: FolderImages, threads: bool) -> None:
        self.images, self.threads = images, threads

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, rows: list[int]) -> tuple[Tensor, str]:
        images = self.images
        out = torch.empty((len(rows), images.channels, *images.size), dtype=torch.uint8)
        for place, row in enumerate(rows):
            if not 0 <= row < len(images):
                return out, f"Row {row} is not one of the {len(images)} images."
            if self.threads:
                continue
            try:
                out[place] = decode(images.paths[row], images.channels, images.size)
            except Unreadable as error:
                return out, str(error)
        if self.threads:
            bad = _decode_all(images.take(torch.tensor(rows, dtype=torch.int64)), out, set())
            return out, str(bad[min(bad)]) if bad else ""
        return out, ""


def _as_it_is(batch: Any) -> Any:
    return batch


def decode(path: Path, channels: int, size: tuple[int, int]) -> Tensor:
    """One file as ``(channels, *size)`` uint8.

    Raises:
        Unreadable: no image, or half of one.
    """
    from PIL import Image

    height, width = size
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as file:
                image = file.convert("L" if channels == 1 else "RGB")
    except Exception as error:  # Pillow's decoders raise almost anything: OSError, SyntaxError, struct.error, ...
        raise Unreadable(_sentence(path, error)) from error
    if (image.height, image.width) != size:
        # Rounded as torchvision's Resize and CenterCrop do, so that both give the same pixels.
        if width * image.height >= height * image.width:
            across, down = width, max(height, int(width * image.height / image.width))
        else:
            across, down = max(width, int(height * image.width / image.height)), height
        image = image.resize((across, down), Image.Resampling.BILINEAR)
        left, top = round((across - width) / 2), round((down - height) / 2)
        image = image.crop((left, top, left + width, top + height))
    array = np.array(image, dtype=np.uint8)
    return torch.from_numpy(array).reshape(height, width, channels).permute(2, 0, 1)


def _sentence(path: Path, error: Exception) -> str:
    reason = "it is no image that Pillow knows" if type(error).__name__ == "UnidentifiedImageError" else str(error)
    return f"{path} cannot be read as an image: {reason or type(error).__name__}."


def _head(path: Path) -> tuple[tuple[int, int], str] | Unreadable:
    """Height and width, and the colour mode, from the first bytes of a file."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as file:
                return (file.height, file.width), file.mode
    except Exception as error:
        return Unreadable(_sentence(path, error))


def _parallel(function: Any, items: Sequence[Any]) -> list[Any]:
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(function, items, chunksize=64))


def _decode_all(images: FolderImages, out: Tensor | None, skip: set[int]) -> dict[int, Unreadable]:
    """Decode every file into ``out`` (nowhere, if ``None``), all but ``skip``; return the errors by row."""

    def one(row: int) -> Unreadable | None:
        if row in skip:
            return None
        try:
            image = decode(images.paths[row], images.channels, images.size)
        except Unreadable as error:
            return error
        if out is not None:
            out[row] = image
        return None

    errors = _parallel(one, range(len(images)))
    return {row: error for row, error in enumerate(errors) if error is not None}


def _refuse(bad: dict[int, Unreadable]) -> None:
    first = str(bad[min(bad)])
    more = f" {len(bad) - 1} more files fail, too." if len(bad) > 1 else ""
    raise UserError(
        f"{first}{more} Mend it, take it away, or say skip_unreadable (--skip-unreadable) to leave such files out."
    )


def _common_size(paths: Sequence[Path], heads: Sequence[Any]) -> tuple[int, int]:
    sizes: dict[tuple[int, int], Path] = {}
    for path, head in zip(paths, heads, strict=True):
        if not isinstance(head, Unreadable):
            sizes.setdefault(head[0], path)
    if len(sizes) == 1:
        return next(iter(sizes))
    if not sizes:
        raise UserError(f"None of the {len(paths)} images can be read; the first: {heads[0]}")
    (one, first), (two, second) = list(sizes.items())[:2]
    raise UserError(
        f"The images differ in size: {first} is {one[0]} x {one[1]}, {second} is {two[0]} x {two[1]}. Say which "
        "size to bring them to, for example image_size=64."
    )


def side_lengths(image_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """Height and width of a size as given, ``None`` of none. Raises ``UserError``."""
    if image_size is None:
        return None
    pair = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(pair) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in pair):
        raise UserError(f"The image size is {image_size!r}; it must be a side in pixels, or height and width.")
    return pair
