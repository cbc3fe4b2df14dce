"""Raw files out of an archive, as publishers and repositories hand them out; no member leaves its folder."""

from __future__ import annotations

import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from data_recipes.errors import RecipeError, because

_BLOCK = 1 << 20
_LARGEST = 8 << 30
"""Bytes that an archive may unpack to, at most."""
_PACKED_TAR = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_CUT = (EOFError, zlib.error, lzma.LZMAError)
"""What a packed stream that is cut short or broken raises, which tarfile lets through."""


def is_archive(path: Path) -> bool:
    """Whether ``path`` is a zip or a (perhaps packed) tar file, or broken and called like one.

    :func:`unpack` then tells what is wrong with it; other packed files that are broken are left to whoever reads them.
    """
    try:
        return path.is_file() and (
            path.name.lower().endswith(_PACKED_TAR) or zipfile.is_zipfile(path) or tarfile.is_tarfile(path)
        )
    except (OSError, *_CUT):
        return False


def unpack(path: Path, folder: Path) -> Path:
    """Unpack the plain files of an archive.

    Args:
        path: a zip or tar file.
        folder: where they go, keeping their folders.

    Returns:
        The folder; where everything lies in one folder of the archive, that one.

    Raises:
        RecipeError: a broken archive, a member whose path leads out of the folder, a link, a device, or a full disk.
    """
    total = 0
    try:
        for name, size, stream in _members(path):
            place = PurePosixPath(name.replace("\\", "/"))
            if place.is_absolute() or ".." in place.parts or ":" in place.parts[0]:
                raise RecipeError(f"{path} has a member {name!r}, which would lie outside of its folder; not unpacked.")
            total += size
            if total > _LARGEST:
                raise RecipeError(f"{path} would unpack to more than {_LARGEST >> 30} GiB; not unpacked.")
            target = folder.joinpath(*place.parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            with stream, target.open("xb") as out:
                shutil.copyfileobj(stream, out, _BLOCK)
    except (zipfile.BadZipFile, tarfile.TarError, *_CUT, RuntimeError) as error:  # the last: encrypted, or packed oddly
        raise RecipeError(f"{path} is an archive that is cut short or broken ({error}).") from error
    except OSError as error:
        raise RecipeError(f"Cannot unpack {path}: {because(error)}.") from error
    found = list(folder.iterdir()) if folder.is_dir() else []
    return found[0] if len(found) == 1 and found[0].is_dir() else folder


def _members(path: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Name, size and contents of each plain file."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if not entry.is_dir():
                    yield entry.filename, entry.file_size, archive.open(entry)
        return
    with tarfile.open(path) as packed:
        for member in packed:
            if member.isdir():
                continue
            stream = packed.extractfile(member) if member.isreg() else None
            if stream is None:
                raise RecipeError(f"{path} has a member {member.name!r} that is a link or no plain file; not unpacked.")
            yield member.name, member.size, stream
