"""Put a finished folder in its place: whole or not at all, and safe when several processes do it at once."""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from data_recipes.errors import RecipeError, because
from data_recipes.manifest import MANIFEST, load_manifest, sha256, verify_folder
from data_recipes.recipe import Folder


def write_folder(folder: Folder, out: Path, say: Callable[[str], None] | None = None) -> Path:
    """Write ``out/<protocol>/<dataset>`` with its ``manifest.json`` and return that path.

    Everything is first written to a hidden folder beside the target and then renamed, so no reader meets half a
    build. A complete build with the same manifest is left untouched. An older or damaged build of the same recipe is
    replaced file by file; files that no recipe wrote stay.

    Args:
        folder: what to write.
        out: output folder.
        say: told in a sentence when a build from other data or with other options was replaced.

    Raises:
        RecipeError: the place cannot be written (permission, full disk; names the file), or is taken by a folder or
            file that this recipe did not build.
    """
    target = out / folder.protocol / folder.dataset
    manifest = {**folder.manifest, "files": {name: sha256(data) for name, data in sorted(folder.files.items())}}
    text = (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode()
    if _is_complete(target, text):
        return target
    try:
        _refuse_foreign(target, folder)
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"Cannot use the output folder {target.parent}: {because(error)}.") from error
    hidden = target.parent / f".{target.name}.{uuid.uuid4().hex}"
    replaced = _replaced(target, folder)
    try:
        _write(hidden, target, {**folder.files, MANIFEST: text})
        _move(hidden, target, folder, text)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    if replaced is not None and say is not None:
        say(replaced)
    return target


@contextmanager
def workspace(out: Path) -> Iterator[Callable[[], Path]]:
    """Give a function that makes a hidden folder inside ``out`` when it is first called, and remove it at the end.

    Where nothing was built, the folders that were made for it go too.

    Raises:
        RecipeError: by the function, when the folder cannot be made.
    """
    work = out / f".work.{uuid.uuid4().hex}"
    absent = [folder for folder in (out, *out.parents) if not folder.exists()]

    def make() -> Path:
        try:
            work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecipeError(f"Cannot use the output folder {out}: {because(error)}.") from error
        return work

    try:
        yield make
    finally:
        if work.exists():
            shutil.rmtree(work, ignore_errors=True)
            for folder in absent:
                with suppress(OSError):  # something was built in it
                    folder.rmdir()


def _is_complete(target: Path, text: bytes) -> bool:
    """Whether ``target`` holds exactly this manifest and every file that it names, unchanged."""
    try:
        same = (target / MANIFEST).read_bytes() == text
        return same and bool(verify_folder(target))
    except (OSError, RecipeError):
        return False


def _refuse_foreign(target: Path, folder: Folder) -> None:
    """Raise unless ``target`` is absent, empty, or an earlier build of the same recipe and protocol."""
    if not target.exists():
        return
    if not target.is_dir():
        raise RecipeError(f"{target} is a file; choose another output folder.")
    if not any(target.iterdir()):
        return
    try:
        found = load_manifest(target)
    except RecipeError as error:
        raise RecipeError(f"Will not write into {target}: {error} Choose another output folder.") from error
    wanted = (folder.manifest["recipe"], folder.protocol)
    if (found["recipe"], found["protocol"]) != wanted:
        raise RecipeError(
            f"Will not write into {target}: it holds recipe {found['recipe']!r}, protocol {found['protocol']!r}, "
            f"not {wanted[0]!r}, {wanted[1]!r}. Choose another output folder."
        )


def _replaced(target: Path, folder: Folder) -> str | None:
    """What to say of an earlier build that stands for something else than the new one, or None."""
    try:
        old = load_manifest(target)
    except RecipeError:
        return None
    new = folder.manifest
    if old["source"].get("sha256") != new["source"]["sha256"]:
        built = f"from other data ({_origin(old)}; now {_origin(new)})"
    elif any(old.get(key) != new.get(key) for key in ("seed", "clean", "splits", *({"columns"} & old.keys()))):
        built = "from the same data in another way"
    else:
        return None  # damaged, or of an older version that gave the same
    return f"{target} was built {built} and is replaced: runs trained on it now find other data there."


def _origin(manifest: Mapping[str, Any]) -> str:
    source = manifest["source"]
    sha = source.get("sha256")
    told = f", sha256 {sha[:12]}..." if isinstance(sha, str) else ""
    return f"{source.get('rows', 0):,} rows{told}"


def _write(hidden: Path, target: Path, contents: Mapping[str, bytes | Path]) -> None:
    """Write all files into ``hidden``; errors name the file by its place in ``target``, which is what people know."""
    path = target
    try:
        hidden.mkdir()
        for name, data in contents.items():
            path = target / name
            if isinstance(data, Path):
                shutil.move(data, hidden / name)  # a rename where both are on one disk
                continue
            with open(hidden / name, "xb") as file:
                file.write(data)
    except OSError as error:
        raise RecipeError(f"Cannot write {path}: {because(error)}. Nothing was changed.") from error


def _move(hidden: Path, target: Path, folder: Folder, text: bytes) -> None:
    """Rename ``hidden`` to ``target``; where a build is there already, put the new files in its place one by one."""
    try:
        try:
            os.rename(hidden, target)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EACCES) or not target.is_dir():
                raise
        # Somebody was quicker (then the bytes are the same), or an older build stands here.
        if _is_complete(target, text):
            return
        _refuse_foreign(target, folder)
        # The manifest goes last: until then the old one disagrees with the files, so a crash here is noticed.
        for name in [*sorted(folder.files), MANIFEST]:
            os.replace(hidden / name, target / name)
    except OSError as error:
        raise RecipeError(f"Cannot put the build at {target}: {because(error)}.") from error
