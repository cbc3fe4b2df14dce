"""Methods for implicit feedback. Adding one is a file and a line in the table; users register their own by name."""

from __future__ import annotations

from recdenoise.denoisers.base import (
    Clock,
    Denoiser,
    DenoiserConfig,
    Losses,
    Optim,
    Stage,
    Update,
)
from recdenoise.denoisers.deca import DeCA
from recdenoise.denoisers.deca_p import DeCAP
from recdenoise.denoisers.ensemble import Ensemble
from recdenoise.denoisers.normal import Normal
from recdenoise.denoisers.r_ce import RCE
from recdenoise.denoisers.registry import Registry
from recdenoise.denoisers.t_ce import TCE
from recdenoise.denoisers.wbpr import WBPR

_REGISTRY = Registry("denoiser", (Normal, WBPR, TCE, RCE, Ensemble, DeCA, DeCAP))
_TABLE = _REGISTRY.table

register = _REGISTRY.register
names = _REGISTRY.names
get = _REGISTRY.get
parse = _REGISTRY.parse

__all__ = [
    "Clock",
    "Denoiser",
    "DenoiserConfig",
    "Losses",
    "Optim",
    "Registry",
    "Stage",
    "Update",
    "get",
    "names",
    "parse",
    "register",
]
