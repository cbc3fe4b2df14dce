"""A set of labelled images: one uint8 tensor, or a folder that is read as it is needed, indexed alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from recdenoise.errors import UserError
from recdenoise.noise import uniform_draws

_STATISTICS_BLOCK = 4096


@runtime_checkable
class LazyImages(Protocol):
    """Images that are decoded as they are asked for, all of one size.

    Attributes:
        shape: ``(N, C, H, W)``.
        device: where the batches go.
    """

    @property
    def shape(self) -> torch.Size: ...
    @property
    def device(self) -> torch.device: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """``(b, C, H, W)`` uint8 images of ``(b,)`` rows, in their order."""
        ...

    def take(self, rows: Tensor) -> LazyImages:
        """The images of these rows alone; still not decoded."""
        ...

    def to(self, device: torch.device | str) -> LazyImages: ...
    def batches(self, orders: Iterable[Tensor]) -> Iterator[Tensor]:
        """The images of each ``(b,)`` set of rows, decoded ahead of their use."""
        ...


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images with observed labels. Row i is image i, everywhere and for good.

    Attributes:
        images: ``(N, C, H, W)`` uint8, or :class:`LazyImages` of that shape.
        labels: ``(N,)`` int64 observed labels, 0 to ``n_classes - 1``.
        n_classes: number of classes, at least 2.
        class_names: one name a class, or ``None``.
        true_labels: ``(N,)`` int64 labels known to be right, or ``None`` where nobody knows them.
        name: of the data set, for messages.
        notes: sentences that a reader of results must know, for example that floats were rounded.
        attributes: further whole numbers of every image by name, ``(N,)`` int64, 0 or more. ``bias`` is the value of
            what training may mistake for the class, such as a colour: an image whose ``bias`` is its class's number is
            bias-aligned, any other bias-conflicting. ``a`` and ``b`` are the causes of a frame.
        frame: pixels on every side that are no content: augmentation leaves them where they are. 0 without a frame.
        masks: ``(N, 1, H, W)`` uint8 or :class:`LazyImages`, 255 on an image's content and 0 on its context; ``None``
            where nobody has drawn them.

    Raises:
        UserError: shapes, types or ranges that do not fit together.
    """

    images: Tensor | LazyImages
    labels: Tensor
    n_classes: int
    class_names: tuple[str, ...] | None = None
    true_labels: Tensor | None = None
    name: str = ""
    notes: tuple[str, ...] = ()
    attributes: Mapping[str, Tensor] = field(default_factory=dict)
    frame: int = 0
    masks: Tensor | LazyImages | None = None

    def __post_init__(self) -> None:
        if len(self.images.shape) != 4 or (isinstance(self.images, Tensor) and self.images.dtype != torch.uint8):
            raise UserError(
                f"Images must be a uint8 tensor of shape (N, C, H, W); {self._what()} holds "
                f"{getattr(self.images, 'dtype', 'images')} of shape {tuple(self.images.shape)}. "
                "vision.data.load takes other forms."
            )
        if self.n_classes < 2:
            raise UserError(f"The number of classes is {self.n_classes}; it must be 2 or more.")
        check_labels(self.labels, len(self.images), self.n_classes, "label")
        if self.true_labels is not None:
            check_labels(self.true_labels, len(self.images), self.n_classes, "true label")
        if self.class_names is not None and len(self.class_names) != self.n_classes:
            raise UserError(
                f"{len(self.class_names)} class names were given for {self.n_classes} classes; give one for each."
            )
        if not 0 <= 2 * self.frame < min(self.shape[1:]):
            raise UserError(f"A frame of {self.frame} pixels leaves nothing of images of {self.shape[1:]}.")
        for name, values in self.attributes.items():
            check_attribute(values, len(self.images), name)
        if self.masks is not None:
            check_masks(self.masks, self.images)

    def _what(self) -> str:
        return self.name or "the data"

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of one image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def device(self) -> torch.device:
        """Where batches come from."""
        return self.images.device

    def to(self, device: torch.device | str) -> ImageData:
        """The same rows on a device; images of a folder go there batch by batch."""
        return dataclasses.replace(
            self,
            images=self.images.to(device),
            labels=self.labels.to(device),
            true_labels=None if self.true_labels is None else self.true_labels.to(device),
            attributes={name: values.to(device) for name, values in self.attributes.items()},
            masks=None if self.masks is None else self.masks.to(device),
        )

    def subset(self, rows: Tensor) -> ImageData:
        """The given ``(m,)`` int64 rows, in their order; row i of the result is row ``rows[i]`` of this.

        Raises:
            UserError: a row that is not there, or no rows.
        """
        rows = torch.as_tensor(rows, dtype=torch.int64)
        if rows.ndim != 1 or len(rows) == 0:
            raise UserError(f"A subset of {self._what()} needs a list of rows; got shape {tuple(rows.shape)}.")
        low, high = int(rows.min()), int(rows.max())
        if low < 0 or high >= len(self):
            raise UserError(
                f"Row {low if low < 0 else high} is not one of {self._what()}: rows are 0 to {len(self) - 1}."
            )
        here = rows.to(self.labels.device)
        return dataclasses.replace(
            self,
            images=_taken(self.images, rows),
            labels=self.labels.index_select(0, here),
            true_labels=None if self.true_labels is None else self.true_labels.index_select(0, here),
            attributes={name: values.index_select(0, here) for name, values in self.attributes.items()},
            masks=None if self.masks is None else _taken(self.masks, rows),
        )

    def relabelled(self, labels: Tensor) -> ImageData:
        """The same images with other observed labels; the labels so far become the true ones where none are known."""
        true = self.labels if self.true_labels is None else self.true_labels
        return dataclasses.replace(self, labels=labels.to(self.labels.device), true_labels=true)

    def batches(self, orders: Iterable[Tensor]) -> Iterator[Tensor]:
        """``(b, C, H, W)`` uint8 images of each ``(b,)`` set of rows, on the device, in the order of ``orders``."""
        if isinstance(self.images, Tensor):
            for rows in orders:
                yield self.images.index_select(0, rows.to(self.images.device))
        else:
            yield from self.images.batches(orders)

    def statistics(self, most: int = 100_000) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel on the scale 0 to 1: of all images, or of ``most`` random ones.

        Pixels are counted by value, so that the result is the same on every device. A channel that is constant gets a
        standard deviation of 1.
        """
        rows = torch.arange(len(self))
        if len(self) > most:
            rows = torch.from_numpy(np.sort(np.argsort(uniform_draws(0, "statistics")(len(self)))[:most]))
        counts = torch.zeros(self.shape[0], 256, dtype=torch.int64, device=self.device)
        for images in self.batches(rows.split(_STATISTICS_BLOCK)):
            counts += torch.stack([torch.bincount(plane.flatten(), minlength=256) for plane in images.unbind(1)])
        shares = counts.cpu().double() / counts[0].sum().cpu()
        values = torch.arange(256, dtype=torch.float64)
        mean = shares @ values
        deviation = (shares @ values**2 - mean**2).clamp_min(0).sqrt()
        deviation = torch.where(deviation < 1e-6, torch.full_like(deviation, 255.0), deviation)
        return tuple((mean / 255).tolist()), tuple((deviation / 255).tolist())


def _taken(images: Tensor | LazyImages, rows: Tensor) -> Tensor | LazyImages:
    if isinstance(images, Tensor):
        return images.index_select(0, rows.to(images.device))
    return images.take(rows)


def check_labels(labels: Tensor, n_images: int, n_classes: int, what: str) -> None:
    """Refuse labels that are not ``(n_images,)`` int64 from 0 to ``n_classes - 1``. Raises ``UserError``."""
    if labels.ndim != 1 or labels.dtype != torch.int64:
        raise UserError(
            f"Every image needs one {what}, a whole number: an int64 tensor of shape ({n_images},); got {labels.dtype} "
            f"of shape {tuple(labels.shape)}."
        )
    if len(labels) != n_images:
        raise UserError(f"There are {len(labels)} {what}s for {n_images} images; give one for each image.")
    if n_images == 0:
        raise UserError("There are no images.")
    wrong = (labels < 0) | (labels >= n_classes)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise UserError(
            f"The {what} of row {row} is {int(labels[row])}; with {n_classes} classes, labels are 0 to {n_classes - 1}."
        )


def check_attribute(values: Tensor, n_images: int, name: str) -> None:
    """Refuse an attribute that is not ``(n_images,)`` int64 of 0 or more. Raises ``UserError``."""
    if values.shape != (n_images,) or values.dtype != torch.int64:
        raise UserError(
            f"The attribute {name} must be one whole number for each image, an int64 tensor of shape ({n_images},); it "
            f"is {values.dtype} of shape {tuple(values.shape)}."
        )
    if bool((values < 0).any()):
        row = int((values < 0).nonzero()[0])
        raise UserError(f"The attribute {name} of row {row} is {int(values[row])}; it must be 0 or more.")


def check_masks(masks: Tensor | LazyImages, images: Tensor | LazyImages) -> None:
    """Refuse masks that are not ``(N, 1, H, W)`` uint8 for ``(N, C, H, W)`` images. Raises ``UserError``."""
    n, _, height, width = images.shape
    kind = masks.dtype if isinstance(masks, Tensor) else torch.uint8
    if tuple(masks.shape) != (n, 1, height, width) or kind != torch.uint8:
        raise UserError(
            f"The masks must be a uint8 tensor of shape ({n}, 1, {height}, {width}), as the images are; they are "
            f"{kind} of shape {tuple(masks.shape)}."
        )
