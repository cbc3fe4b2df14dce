"""vision: train image classifiers through labels that lie.

What a script needs is importable from here; it is loaded when it is first asked for. Nothing of RecBole is imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vision.classifier import NoisyLabelClassifier
    from vision.fitting import FitResult, fit
    from vision.methods import register
    from vision.networks.interaction import ClassBackgroundMemory, DebiasedInteraction
    from vision.networks.localization import GaussianLocalization
    from vision.options import TrainOptions

__all__ = [
    "ClassBackgroundMemory",
    "DebiasedInteraction",
    "FitResult",
    "GaussianLocalization",
    "NoisyLabelClassifier",
    "TrainOptions",
    "fit",
    "register",
]

_HOMES = {
    "classifier": ("NoisyLabelClassifier",),
    "fitting": ("FitResult", "fit"),
    "methods": ("register",),
    "networks.interaction": ("ClassBackgroundMemory", "DebiasedInteraction"),
    "networks.localization": ("GaussianLocalization",),
    "options": ("TrainOptions",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_MODULES = frozenset(
    {"augment", "data", "fitting", "instance_noise", "methods", "networks", "noise", "options", "pictures", "progress"}
)
"""Those that are written ``vision.data.load`` and so on after a plain ``import vision``."""


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
