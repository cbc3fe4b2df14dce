"""Readers of published image files, with NumPy and the standard library alone: IDX, CIFAR's archives, packed arrays.

Every reader returns ``(images, labels)``: uint8 ``(N, H, W)`` or ``(N, H, W, 3)``, int64 ``(N,)``.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from data_recipes.errors import RecipeError, because

Labelled = tuple[np.ndarray, np.ndarray]
Read = TypeVar("Read")
_PACK_FILTERS: list[dict[str, Any]] = [
    {"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20, "mf": lzma.MF_BT4, "lc": 4, "lp": 0, "pb": 0}
]


def read_bytes(path: Path) -> bytes:
    """The bytes of a file. Raises ``RecipeError`` that names it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise RecipeError(f"Cannot read {path}: {because(error)}.") from error


def check_md5(path: Path, data: bytes, md5: str) -> None:
    """Refuse bytes that are not the published ones. Raises ``RecipeError``."""
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if found != md5:
        raise RecipeError(
            f"{path} is not the published file, or not all of it: its md5 is {found}, expected {md5}. Fetch it again."
        )


def idx(path: Path, data: bytes) -> np.ndarray:
    """An array in the IDX format of MNIST, gzipped or not: uint8 of any number of axes."""
    try:
        raw = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError, zlib.error) as error:
        raise RecipeError(f"{path} is a damaged gzip file ({error}). Fetch it again.") from error
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise RecipeError(f"{path} is not an IDX file of bytes: it begins with {raw[:4].hex()}, not 000008.")
    axes = raw[3]
    shape = tuple(int(n) for n in np.frombuffer(raw, ">i4", axes, 4))
    found, wanted = len(raw) - 4 - 4 * axes, int(np.prod(shape))
    if found != wanted:
        raise RecipeError(f"{path} holds {found:,} values where its head names {wanted:,}. Fetch it again.")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape)


class _Arrays(pickle.Unpickler):
    """Unpickles the dicts, lists, strings and arrays that CIFAR's files hold, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.array(0).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def cifar(path: Path, data: bytes, members: Sequence[str], label_key: bytes) -> Labelled:
    """Batches of a CIFAR python archive (``cifar-10-python.tar.gz``), in the order of ``members``."""
    images, labels = [], []
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for member in members:
                file = archive.extractfile(member)
                batch = _Arrays(file, encoding="bytes").load() if file else {}
                images.append(np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32))
                labels.append(np.asarray(batch[label_key], np.int64))
    except (OSError, EOFError, KeyError, ValueError, tarfile.TarError, pickle.UnpicklingError, zlib.error) as error:
        raise RecipeError(f"{path} is not CIFAR's python archive: {error}.") from error
    return np.ascontiguousarray(np.concatenate(images).transpose(0, 2, 3, 1)), np.concatenate(labels)


def arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file; pickled objects are refused. Raises ``RecipeError``."""
    return _read_npz(path, lambda file: {name: file[name] for name in file.files})


def array_names(path: Path) -> list[str]:
    """The names of the arrays of an ``.npz`` file, which stay unread. Raises ``RecipeError``."""
    return _read_npz(path, lambda file: list(file.files))


def _read_npz(path: Path, read: Callable[[Any], Read]) -> Read:
    try:
        with np.load(path, allow_pickle=False) as file:
            return read(file)
    except OSError as error:
        raise RecipeError(f"Cannot read {path}: {because(error)}.") from error
    except (ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise RecipeError(f"{path} is not a whole .npz file of plain arrays: {error}.") from error


def packed(paths: Sequence[Path]) -> Labelled:
    """Images and labels of ``.npz`` parts, plain or packed, joined in order."""
    images, labels = [], []
    for path in paths:
        part = arrays(path)
        try:
            images.append(
                unpack(part["images_lzma"], part["images_shape"]) if "images_lzma" in part else part["images"]
            )
            labels.append(part["labels"].astype(np.int64))
        except KeyError as error:
            raise RecipeError(f"{path} has no array {error}; it needs images (or images_lzma) and labels.") from error
        except (lzma.LZMAError, ValueError) as error:
            raise RecipeError(f"{path} is damaged: {error}.") from error
    return np.concatenate(images), np.concatenate(labels)


def unpack(data: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Undo the lossless packing of uint8 images.

    What is stored are the differences to a prediction from the left, upper and upper left neighbour (the median rule
    of JPEG-LS), plane by plane, modulo 256; colours are stored as green, red - green and blue - green.

    Args:
        data: the compressed bytes.
        shape: of the result, ``(N, H, W)`` or ``(N, H, W, 3)``.
    """
    n, height, width, *rest = (int(each) for each in shape)
    channels = rest[0] if rest else 1
    raw = lzma.decompress(data.tobytes(), lzma.FORMAT_RAW, filters=_PACK_FILTERS)
    error = np.frombuffer(raw, np.uint8).reshape(channels, n, height, width)
    error = np.ascontiguousarray(error.transpose(2, 3, 0, 1))
    value = np.empty_like(error)
    value[0] = np.cumsum(error[0], axis=0, dtype=np.uint8)
    value[:, 0] = np.cumsum(error[:, 0], axis=0, dtype=np.uint8)
    for row in range(1, height):
        for column in range(1, width):
            left, up, corner = value[row, column - 1], value[row - 1, column], value[row - 1, column - 1]
            low, high = np.minimum(left, up), np.maximum(left, up)
            # The median of left, up and left + up - corner; the sum wraps only where one of the others is taken.
            guess = np.where(corner >= high, low, np.where(corner <= low, high, left + up - corner))
            np.add(guess, error[row, column], out=value[row, column])
    planes = np.ascontiguousarray(value.transpose(3, 0, 1, 2))
    if channels == 3:
        green = planes[..., 0].copy()
        red, blue = planes[..., 1] + green - np.uint8(128), planes[..., 2] + green - np.uint8(128)
        planes[..., 0], planes[..., 1], planes[..., 2] = red, green, blue
    return planes.reshape(tuple(int(each) for each in shape))
