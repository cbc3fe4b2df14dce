"""recdenoise: train through labels that lie, on RecBole recommenders and on images.

What a script needs is importable from here; it is loaded when it is first asked for, RecBole only for ``run_recbole``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from recdenoise.denoisers import Clock, Denoiser, DenoiserConfig, Losses, Optim, Stage, Update, register
    from recdenoise.errors import TrainingError, UserError
    from recdenoise.loop import Loop, LoopConfig
    from recdenoise.recbole_adapter import run_recbole
    from recdenoise.task import Batch, Pass

__all__ = [
    "Batch",
    "Clock",
    "Denoiser",
    "DenoiserConfig",
    "Loop",
    "LoopConfig",
    "Losses",
    "Optim",
    "Pass",
    "Stage",
    "TrainingError",
    "Update",
    "UserError",
    "__version__",
    "register",
    "run_recbole",
]

_HOMES = {
    "denoisers": ("Clock", "Denoiser", "DenoiserConfig", "Losses", "Optim", "Stage", "Update", "register"),
    "errors": ("TrainingError", "UserError"),
    "loop": ("Loop", "LoopConfig"),
    "recbole_adapter": ("run_recbole",),
    "task": ("Batch", "Pass"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
