"""Shared fixtures. One torch thread, set before torch works: two threads on busy cores stall each other."""

from __future__ import annotations

import os
from pathlib import Path

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
