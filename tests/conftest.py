"""Shared fixtures. One torch thread, set before torch works: two threads on busy cores stall each other."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the published data files, named by ``RECDENOISE_DATA``; tests skip where it is absent."""
    root = os.environ.get("RECDENOISE_DATA")
    if not root:
        pytest.skip("set RECDENOISE_DATA to the folder with the published data files to run this test")
    path = Path(root)
    if not path.is_dir():
        pytest.skip(f"RECDENOISE_DATA names {path}, which is not a folder")
    return path


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where recipes are built during the tests, once for all of them."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECDENOISE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small built folder with both protocols; read only."""
    from tests.built_folder import write_built

    return write_built(tmp_path_factory.mktemp("built") / "data")


@pytest.fixture(scope="session")
def trained(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of DeCA(p) on the small folder; read only."""
    from recdenoise.recbole_adapter.experiment import train
    from recdenoise.recbole_adapter.settings import resolve

    options = {"epochs": 3, "train_batch_size": 64, "learning_rate": 0.01, "embedding_size": 8}
    options |= {"denoiser": {"c_1": 10, "c_2": 10}}
    out = tmp_path_factory.mktemp("runs") / "trained"
    train(resolve("GMF", str(built), "deca_p", seed=1, overrides=options), out)
    return out


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder: RecBole writes its logs and checkpoints wherever the process stands."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong is found before a data set is opened or built."""

    from recdenoise.recbole_adapter import experiment

    def opened(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("data was read")

    monkeypatch.setattr(experiment, "load_split", opened)


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """A finished run that may be spoiled."""
    return shutil.copytree(trained, tmp_path / "run")
