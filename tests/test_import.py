"""What ``import recdenoise`` costs and pulls in, and that its names load when they are asked for."""

from __future__ import annotations

import json
import subprocess
import sys
import types

import pytest

import recdenoise
from tests.command import environment

HEAVY = ("recbole", "torchvision", "torch_geometric", "matplotlib", "pandas", "pyarrow", "rich", "scipy", "tensorboard")


def fresh(code: str) -> str:
    """Output of a fresh interpreter that sees the package."""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_is_light_and_quick() -> None:
    """Beyond torch, at most half a second of the process's own time: a busy machine makes the wall clock longer."""
    code = "import torch, sys, time, json; t = time.process_time(); import recdenoise\n"
    code += (
        "from recdenoise import Denoiser, Losses, Update, Stage, Pass, Batch, UserError, register, Loop, LoopConfig\n"
    )
    code += "import recdenoise.cli; t = time.process_time() - t\n"
    code += f"print(json.dumps([t, [name for name in {HEAVY!r} if name in sys.modules]]))"
    seconds, loaded = json.loads(fresh(code))
    assert loaded == []
    assert seconds < 0.5


def test_the_package_alone_needs_no_torch() -> None:
    assert fresh("import sys, recdenoise; print('torch' in sys.modules, recdenoise.__version__)").split() == [
        "False",
        recdenoise.__version__,
    ]


def test_help_and_mistakes_need_no_torch() -> None:
    code = "import sys\nfrom recdenoise.cli import main\n"
    for words in (["train", "--help"], ["train", "--modle", "GMF"]):
        code += f"try:\n    main({words!r})\nexcept SystemExit:\n    pass\n"
    assert fresh(code + "print('torch' in sys.modules)").splitlines()[-1] == "False"


def test_every_name_that_is_promised_is_there() -> None:
    for name in recdenoise.__all__:
        value = getattr(recdenoise, name)
        assert not isinstance(value, types.ModuleType)
        assert name in dir(recdenoise)
    assert recdenoise.run_recbole is recdenoise.recbole_adapter.run_recbole
    assert recdenoise.register is recdenoise.denoisers.register
    assert recdenoise.Denoiser is recdenoise.denoisers.base.Denoiser
    with pytest.raises(AttributeError, match="module 'recdenoise' has no attribute 'denoise'"):
        recdenoise.denoise  # noqa: B018
