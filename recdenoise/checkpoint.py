"""Files that survive: written beside their name, renamed when whole, read without executing anything."""

from __future__ import annotations

import contextlib
import json
import os
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from recdenoise.errors import UserError

FORMAT = 1
"""Raised when what a checkpoint holds changes."""


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path`` that becomes ``path`` only when the block ends well.

    Raises:
        UserError: the folder cannot be written or the disk is full; an older ``path`` is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror or error}.") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp gives 0600; a result is as readable as any other file
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        reason = error if isinstance(error, OSError) else _refused_write(error)
        if reason is not None:
            raise UserError(
                f"Cannot write {path}: {reason.strerror or reason}. What was there before is kept."
            ) from error
        raise


def _refused_write(error: BaseException) -> OSError | None:
    """What the disk said, where torch's archive writer turned it into a RuntimeError of its own."""
    if not isinstance(error, RuntimeError) or not any(
        s in str(error) for s in ("PytorchStreamWriter", "inline_container")
    ):
        return None
    said = error.__context__
    return said if isinstance(said, OSError) else OSError("the disk refused it")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, all or nothing."""
    with atomic_file(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, all or nothing."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def save(path: Path, state: dict[str, Any]) -> None:
    """Save tensors and plain types."""
    with atomic_file(path) as file:
        torch.save({"format": FORMAT, **state}, file)


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Load what :func:`save` wrote, with ``weights_only=True``.

    Raises:
        UserError: missing, truncated or foreign file, or one of another format.
    """
    if not path.is_file():
        raise UserError(f"There is no checkpoint {path}.")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise UserError(f"{path} is not a readable checkpoint (truncated, or written by something else).") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else None
        raise UserError(f"{path} has checkpoint format {found!r}; this version reads format {FORMAT}.")
    if not isinstance(state.get("identity"), dict) or not isinstance(state.get("modules"), dict):
        raise UserError(f"{path} is not a readable checkpoint: it lacks what a run writes.")
    return state


def random_state() -> dict[str, Any]:
    """State of every global generator (a model may use any of them), in plain types and tensors."""
    state: Any = np.random.get_state(legacy=True)
    name, keys, position, has_gauss, gauss = state
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)],
        "python": random.getstate(),
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Inverse of :func:`random_state`."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"]:
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, has_gauss, gauss))
    version, internal, following = state["python"]
    random.setstate((version, tuple(internal), following))


def require_same(path: Path, saved: dict[str, Any], expected: dict[str, Any]) -> None:
    """Refuse a checkpoint of another run, naming the first thing that differs."""
    for key, value in expected.items():
        if saved.get(key) != value:
            raise UserError(f"{path} belongs to another run: its {key} is {saved.get(key)!r}, here it is {value!r}.")


def require_keys(path: Path, state: dict[str, Any], keys: Iterable[str], what: str) -> None:
    """Refuse a file that lacks a part of a checkpoint of ``what``, naming the first. Raises ``UserError``."""
    for key in keys:
        if key not in state:
            raise UserError(f"{path} is not a checkpoint of {what}: it lacks {key!r}.")


def load_modules(path: Path, load_state: Callable[[dict[str, Any]], Any], weights: dict[str, Any]) -> None:
    """Load weights, turning a shape or name mismatch into one sentence."""
    try:
        load_state(weights)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[1:2] or [str(error)]
        raise UserError(f"{path} does not fit this model: {first[0].strip()}") from error
