"""Files that survive: whole or not at all, whatever goes wrong in writing; read without running anything."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recdenoise import checkpoint
from recdenoise.errors import UserError

STATE: dict[str, Any] = {
    "identity": {"model": "GMF"},
    "modules": {"weight": torch.arange(6.0)},
    "history": [{"loss": 1.5}],
}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "c.pt"
    checkpoint.save(path, STATE)
    found = checkpoint.load(path)
    assert torch.equal(found["modules"]["weight"], STATE["modules"]["weight"])
    assert (found["identity"], found["history"], found["format"]) == (
        STATE["identity"],
        STATE["history"],
        checkpoint.FORMAT,
    )
    assert names(path.parent) == ["c.pt"]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        checkpoint.write_text(tmp_path / "a.txt", "a")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


def test_text_and_json(tmp_path: Path) -> None:
    checkpoint.write_json(tmp_path / "a.json", {"name": "Zoë", "k": [1, 2.5]})
    assert json.loads((tmp_path / "a.json").read_bytes().decode()) == {"name": "Zoë", "k": [1, 2.5]}
    assert (tmp_path / "a.json").read_bytes().endswith(b"}\n")


@pytest.mark.parametrize("error", [RuntimeError("mine"), KeyboardInterrupt()])
def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def write() -> None:
        with checkpoint.atomic_file(path) as file:
            file.write(b"half of the n")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


# A disk that is full


def full(*args: Any, **kwargs: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("function", ["fsync", "replace", "chmod"])
def test_an_operating_system_that_refuses(tmp_path: Path, function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.pt"
    checkpoint.save(path, STATE)
    old = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, function, full)
        with pytest.raises(
            UserError, match=rf"Cannot write {path}: No space left on device\. What was there before is"
        ):
            checkpoint.save(path, {**STATE, "history": []})
    assert path.read_bytes() == old
    assert names(tmp_path) == ["c.pt"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small disk needs root")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"this machine mounts no tmpfs: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("megabytes", [1.5, 30])
def test_a_disk_that_is_really_full(small_disk: Path, megabytes: float) -> None:
    path = small_disk / "c.pt"
    checkpoint.save(path, STATE)
    large = {**STATE, "modules": {"weight": torch.zeros(int(megabytes * 2**18))}}
    for write in (
        lambda: checkpoint.save(path, large),
        lambda: checkpoint.write_text(small_disk / "metrics.csv", "x" * int(megabytes * 2**20)),
    ):
        with pytest.raises(
            UserError, match=r"Cannot write .*(No space left|disk refused it).* What was there before is kept"
        ):
            write()
    assert names(small_disk) == ["c.pt"]
    assert torch.equal(checkpoint.load(path)["modules"]["weight"], STATE["modules"]["weight"])
    checkpoint.save(path, {**STATE, "history": []})  # and goes on where there is room
    assert checkpoint.load(path)["history"] == []


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Cannot write .*file/c\.pt: (Not a directory|File exists)"):
        checkpoint.save(tmp_path / "file" / "c.pt", STATE)


def test_a_folder_without_permission(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(0o500)
    if os.access(folder, os.W_OK):
        pytest.skip("permissions do not bind this user")
    with pytest.raises(UserError, match="Permission denied"):
        checkpoint.write_text(folder / "a", "a")


# Reading


def test_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no checkpoint .*none\.pt"):
        checkpoint.load(tmp_path / "none.pt")


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 truncated", b"\x80\x02}"])
def test_garbage(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"c\.pt .*(is not a readable checkpoint|has checkpoint format None)"):
        checkpoint.load(tmp_path / "c.pt")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_truncated(tmp_path: Path, share: float) -> None:
    path = tmp_path / "c.pt"
    checkpoint.save(path, STATE)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match="is not a readable checkpoint"):
        checkpoint.load(path)


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "hacked"),)

    path = tmp_path / "c.pt"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match="is not a readable checkpoint"):
        checkpoint.load(path)
    torch.save({"format": checkpoint.FORMAT, "identity": Evil()}, path)
    with pytest.raises(UserError, match="is not a readable checkpoint"):
        checkpoint.load(path)
    assert names(tmp_path) == ["c.pt"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"format": 99, **STATE}, r"has checkpoint format 99; this version reads format 1"),
        ({"state_dict": {}}, "has checkpoint format None"),
        ([1, 2], "has checkpoint format None"),
        ({"format": checkpoint.FORMAT}, "lacks what a run writes"),
        ({"format": checkpoint.FORMAT, "identity": {}, "modules": 3}, "lacks what a run writes"),
    ],
)
def test_another_programs_or_versions_file(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(UserError, match=message):
        checkpoint.load(tmp_path / "c.pt")


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    for weights in ({"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, {"weight": torch.zeros(2, 3)}):
        with pytest.raises(UserError, match=r"c\.pt does not fit this model: (size mismatch|Missing key)") as caught:
            checkpoint.load_modules(tmp_path / "c.pt", model.load_state_dict, weights)
        assert "\n" not in str(caught.value)


def test_require_same(tmp_path: Path) -> None:
    checkpoint.require_same(tmp_path, {"a": 1, "b": [2], "c": 3}, {"a": 1, "b": [2]})
    with pytest.raises(UserError, match=r"belongs to another run: its b is None, here it is \[2\]"):
        checkpoint.require_same(tmp_path, {"a": 1}, {"a": 1, "b": [2]})


# Generators


def test_random_state_of_every_generator_survives_a_file(tmp_path: Path) -> None:
    def draw() -> tuple[float, ...]:
        return (
            torch.rand(()).item(),
            float(np.random.rand()),
            float(np.random.randn()),
            random.random(),
            random.gauss(0, 1),
        )

    torch.manual_seed(1)
    np.random.seed(2)
    random.seed(3)
    draw()  # leaves a second Gaussian number waiting in NumPy and in Python
    checkpoint.save(tmp_path / "c.pt", {**STATE, "random": checkpoint.random_state()})
    expected = [draw() for _ in range(3)]
    torch.manual_seed(9)
    np.random.seed(9)
    random.seed(9)
    checkpoint.restore_random_state(checkpoint.load(tmp_path / "c.pt")["random"])
    assert [draw() for _ in range(3)] == expected
