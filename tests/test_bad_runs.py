"""Run folders, files and disks that are not what they should be: one line, and what was there before is kept."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.command import mistake, output

BASE = ("--model", "GMF", "--dataset", "ml-100k")
FAST = ("--set", "epochs=1", "--set", "train_batch_size=64", "--quiet")


# Run folders


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.yaml", b"", "has no usable 'model'"),
        ("config.yaml", b"model: GMF\ndataset: x\nproto", "config.yaml, line 3"),
        ("config.yaml", b"[1, 2]", "must hold a mapping"),
        ("config.yaml", b"\xff\xfe\x00", "cannot be read"),
        ("config.yaml", None, "is not a run: it has no config.yaml"),
        ("model.pt", None, "has not finished; continue it with: recdenoise train --resume"),
    ],
)
def test_run_files_that_are_missing_or_truncated(copied: Path, name: str, content: bytes | None, said: str) -> None:
    path = copied / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    for command in (("evaluate", copied), ("recommend", copied, "--users", "u1"), ("inspect", copied)):
        assert said in mistake(*command)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_weights_that_are_truncated(copied: Path, share: float) -> None:
    path = copied / "model.pt"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert f"{path} is not a readable checkpoint" in mistake("evaluate", copied)


def test_a_checkpoint_of_garbage(copied: Path) -> None:
    (copied / "checkpoint.pt").write_bytes(b"\x00" * 1000)
    assert "checkpoint.pt is not a readable checkpoint" in mistake("train", "--resume", copied)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "NeuMF"}, "its model is 'GMF', here it is 'NeuMF'"),
        ({"seed": 99}, "its seed is 1, here it is 99"),
        ({"embedding_size": 16}, "does not fit this model: size mismatch"),
        ({"denoiser": {"name": "normal"}}, "its denoiser is 'deca_p', here it is 'normal'"),
    ],
)
def test_weights_of_another_run(copied: Path, change: dict[str, Any], said: str) -> None:
    config = yaml.safe_load((copied / "config.yaml").read_text())
    (copied / "config.yaml").write_text(yaml.safe_dump({**config, **change}))
    assert said in mistake("evaluate", copied)


def test_weights_of_another_format(copied: Path) -> None:
    state = torch.load(copied / "model.pt", weights_only=True)
    torch.save({**state, "format": 0}, copied / "model.pt")
    assert "model.pt has checkpoint format 0; this version reads format 1" in mistake("evaluate", copied)


def test_a_run_whose_data_has_gone(copied: Path) -> None:
    config = yaml.safe_load((copied / "config.yaml").read_text())
    (copied / "config.yaml").write_text(yaml.safe_dump({**config, "dataset": "/gone"}))
    assert "There is no data set '/gone'" in mistake("evaluate", copied)


# Files of recommendations


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "lists.csv is empty"),
        ("user,item,rank\n", "lists.csv holds no pair"),
        ("user,item,rank\nu1,i1,1\nu1,i2\n", "lists.csv, line 3: the rank is missing"),
        ("user,item,rank\nu1,i1,first\n", "lists.csv, line 2: the rank 'first' is not a finite number"),
        ("user,item,rank\nu1,i1,1\nu1,i1,2\n", "lists.csv, line 3: item 'i1' was recommended to user 'u1' before"),
        ("user,item\nu1,i1,4,5\n", "lists.csv, line 2: more than the 2 columns of line 1"),
        ("nothing\n", "lists.csv, line 1: expected user and item separated by a tab or a comma"),
    ],
)
def test_a_bad_row_is_named(here: Path, text: str, said: str) -> None:
    (here / "lists.csv").write_text(text)
    (here / "truth.csv").write_text("u1,i1\n")
    assert said in mistake("evaluate", "--recommendations", "lists.csv", "--truth", "truth.csv")
    if "rank" not in said and "recommended" not in said:
        assert said.replace("lists", "other") in mistake(
            "evaluate", "--recommendations", "truth.csv", "--truth", shutil.copy("lists.csv", "other.csv")
        )


# Folders and disks


@pytest.mark.usefixtures("no_data")
def test_a_folder_that_holds_a_run(trained: Path, here: Path, copied: Path) -> None:
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    assert f"{copied} holds a run already; add --resume" in mistake("train", *BASE, "--out", copied)
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before


@pytest.mark.usefixtures("no_data")
def test_a_compared_run_that_is_there_is_noticed_before_the_first_trains(here: Path) -> None:
    (here / "x-normal").mkdir()
    (here / "x-normal" / "result.json").write_text("{}")
    words = ("--denoiser", "deca", "--compare", "normal", "--out", "x")
    assert "x-normal holds a run already" in mistake("train", *BASE, *words)


@pytest.mark.usefixtures("no_data")
def test_an_out_that_is_a_file(here: Path) -> None:
    (here / "file").write_text("mine")
    for out in ("file", "file/x"):
        assert f"Cannot write {out}" in mistake("train", *BASE, "--out", out)
    assert (here / "file").read_text() == "mine"


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that even root cannot write to."""
    folder = tmp_path / "read_only"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=64k", "tmpfs", str(folder)]
    if os.geteuid() == 0 and shutil.which("mount"):
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("this machine mounts no tmpfs")
        yield folder
        subprocess.run(["umount", str(folder)], check=True)
    else:
        folder.chmod(0o500)
        yield folder
        folder.chmod(0o700)


@pytest.mark.usefixtures("no_data")
def test_an_out_that_cannot_be_written(read_only: Path, here: Path) -> None:
    said = mistake("train", *BASE, "--out", read_only / "x")
    assert f"Cannot write {read_only / 'x'}" in said
    assert "Read-only file system" in said or "Permission denied" in said


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kilobytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small disk needs root")
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine mounts no tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_in_training(built: Path, small_disk: Path, here: Path) -> None:
    """The run stops with one line, the checkpoint before is whole, and training goes on from it once there is room."""
    out, stone = small_disk / "x", small_disk / "stone"
    words = ("train", "--model", "GMF", "--dataset", built, "--denoiser", "normal", "--set", "embedding_size=64")
    words += ("--set", "train_batch_size=64", "--set", "checkpoint_seconds=0", "--quiet", "--out", out)
    stone.write_bytes(b"x" * 280_000)  # one checkpoint of some 65 kilobytes fits, a second one beside it does not
    said = mistake(*words)
    assert "Cannot write" in said
    assert "What was there before is kept" in said
    assert not [path.name for path in out.iterdir() if path.name.endswith(".part")]
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    assert state["position"]["stage_step"] >= 1
    stone.unlink()
    printed = output("train", "--resume", out)
    assert "Normal" in printed


@pytest.mark.parametrize("failing", [1, 3, 4, 6])
def test_a_write_that_fails_leaves_what_was_there(
    built: Path, here: Path, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no small disk can be mounted: the n-th write of a run finds no room."""
    writes, replace = 0, os.replace

    def full(source: Any, target: Any) -> None:
        nonlocal writes
        writes += 1
        if writes == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    words = ("train", "--model", "GMF", "--dataset", built, *FAST, "--set", "checkpoint_seconds=0", "--out", "x")
    assert "No space left on device. What was there before is kept" in mistake(*words)
    assert not list(here.rglob("*.part"))
    if failing > 4:  # two trials of the folder, config.yaml, then a checkpoint a step
        assert torch.load(here / "x" / "checkpoint.pt", weights_only=True)["position"]["stage_step"] == failing - 4
    output(*words, "--resume")


def test_training_that_diverges(built: Path, here: Path) -> None:
    words = ("--set", "epochs=3", "--set", "train_batch_size=64", "--set", "learning_rate=1e30", "--quiet")
    said = mistake("train", "--model", "GMF", "--dataset", built, *words, "--out", "x")
    assert "of stage 'train': training stopped" in said
    assert "at step " in said
    assert "lower learning rate (now 1e+30)" in said
    assert not (here / "x" / "result.json").exists()
