"""Raw files from their publishers: resumed where a download broke off, checked before anything reads them."""

from __future__ import annotations

import contextlib
import http.client
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from data_recipes.errors import MissingFiles, RecipeError, because
from data_recipes.lock import locked
from data_recipes.manifest import sha256
from data_recipes.recipe import RawFile

Progress = Callable[[str, int, int | None], None]
"""Told a file's name, the bytes that are here, and how many there will be where that is known."""
TRIES = 4
"""Of a file whose connection breaks; a server that cannot be reached at all is tried once."""
TIMEOUT = 20.0
"""Seconds without an answer, or without another byte."""
_BLOCK = 1 << 16


def fetch(files: Sequence[RawFile], folder: Path, progress: Progress | None = None) -> Path:
    """Download files that are not there yet.

    Args:
        files: each with a url.
        folder: where they go; made where absent. One process at a time downloads into it, others wait.
        progress: told how far each is; by default a line on stderr.

    Returns:
        The folder.

    Raises:
        RecipeError: a file without an address, a server that does not answer, bytes that are not the published ones, or
            a full disk. A download that broke off goes on from there the next time.
    """
    by_hand = [file.name for file in files if file.url is None]
    if by_hand:
        raise MissingFiles(f"{' and '.join(by_hand)} cannot be downloaded: no address is known; give --from FOLDER.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".lock"):
            for file in files:
                _fetch(file, folder, progress or show)
    except OSError as error:
        raise RecipeError(f"Cannot download to {folder}: {because(error)}.") from error
    return folder


def show(name: str, done: int, total: int | None) -> None:
    """Progress on stderr: a bar that moves on a terminal, else one line when a file is there."""
    if sys.stderr.isatty():
        share = f"{20 * done // total * '━':<20} {done / total:4.0%} of " if total else ""
        size = (total or done) / 1e6
        sys.stderr.write(f"\r{name} {share}{size:.1f} MB{chr(10) if total and done >= total else ''}")
        sys.stderr.flush()
    elif done == 0 or done == total:
        sys.stderr.write(f"downloading {name}\n" if done == 0 else f"downloaded {name}, {done / 1e6:.1f} MB\n")


def _fetch(file: RawFile, folder: Path, progress: Progress) -> None:
    target, part = folder / file.name, folder / f"{file.name}.part"
    if target.is_file() and (file.sha256 is None or sha256(target) == file.sha256):
        return
    progress(file.name, 0, file.size)
    for attempt in range(TRIES):
        try:
            _transfer(file, part, progress)
            break
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the part is no beginning of what the server has now
                part.unlink(missing_ok=True)
            elif error.code < 500 or attempt == TRIES - 1:
                raise RecipeError(
                    f"Cannot download {file.url}: the server says {error.code} {error.reason}; give --from FOLDER."
                ) from error
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            if attempt == TRIES - 1 or isinstance(error, urllib.error.URLError):
                reason = getattr(error, "reason", None) or str(error) or type(error).__name__
                raise RecipeError(
                    f"Cannot download {file.url}: {reason}. What has come is kept and the next try goes on from there; "
                    "or give --from FOLDER."
                ) from error
    found = sha256(part)
    if file.sha256 is not None and found != file.sha256:
        part.unlink()
        raise RecipeError(
            f"{file.url} is not the published {file.name} any more: sha256 {found}, expected {file.sha256}; "
            "give the original with --from FOLDER."
        )
    os.replace(part, target)
    _tag(part).unlink(missing_ok=True)


def _tag(part: Path) -> Path:
    return part.with_name(f"{part.name}.tag")


def _transfer(file: RawFile, part: Path, progress: Progress) -> None:
    """Append to ``part`` what is missing; start again where the server's file is another one or cannot be resumed."""
    url = str(file.url)
    if not url.startswith(("http://", "https://")):
        raise RecipeError(f"{url} is no web address.")
    have = part.stat().st_size if part.is_file() else 0
    tag = _tag(part).read_text() if have and _tag(part).is_file() else ""
    headers = {"User-Agent": "recdenoise", "Accept-Encoding": "identity"}
    if have and (tag or file.sha256):  # without either, nothing would tell a changed file
        headers["Range"] = f"bytes={have}-"
        if tag:
            headers["If-Range"] = tag
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as answer:
        resumed = answer.status == 206
        start = have if resumed else 0
        rest = answer.headers.get("Content-Length")
        total = start + int(rest) if rest is not None and rest.isdigit() else file.size
        new_tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        _tag(part).write_text("" if new_tag.startswith("W/") else new_tag)
        with part.open("ab" if resumed else "wb") as out:
            for done in _copy(answer, out, start):
                progress(file.name, done, total)
    if total is not None and part.stat().st_size < total:
        raise ConnectionError(f"the connection closed after {part.stat().st_size:,} of {total:,} bytes")


def _copy(source: Any, out: IO[bytes], done: int) -> Iterator[int]:
    while block := source.read(_BLOCK):
        out.write(block)
        done += len(block)
        yield done


def has_all(files: Sequence[RawFile], folder: Path) -> bool:
    """Whether every file was downloaded to ``folder`` before."""
    with contextlib.suppress(OSError):
        return all((folder / file.name).is_file() for file in files)
    return False
