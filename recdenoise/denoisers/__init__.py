"""The table of methods. Adding one is a file and a line here; users register their own by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

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
from recdenoise.denoisers.t_ce import TCE
from recdenoise.denoisers.wbpr import WBPR
from recdenoise.errors import UserError, unknown_name

_TABLE: dict[str, type[Denoiser]] = {method.name: method for method in (Normal, WBPR, TCE, RCE, Ensemble, DeCA, DeCAP)}

D = TypeVar("D", bound=type[Denoiser])


def register(denoiser: D) -> D:
    """Make a denoiser of one's own known by its ``name``; usable as a decorator.

    Raises:
        UserError: it is not a :class:`Denoiser`, has no ``name``, or the name is taken by another class.
    """
    if not (isinstance(denoiser, type) and issubclass(denoiser, Denoiser)):
        raise UserError(f"register() takes a subclass of recdenoise.Denoiser, not {denoiser!r}.")
    name = getattr(denoiser, "name", None)
    if not isinstance(name, str) or not name.isidentifier():
        raise UserError(f"{denoiser.__name__}.name is {name!r}; it must be a word usable in a config.")
    held = _TABLE.get(name)
    if held is not None and (held.__module__, held.__qualname__) != (denoiser.__module__, denoiser.__qualname__):
        raise UserError(f"The denoiser name {name!r} is taken by {held.__module__}.{held.__qualname__}.")
    _TABLE[name] = denoiser
    return denoiser


def names() -> list[str]:
    """Registered names, in the order of the table."""
    return list(_TABLE)


def get(name: str) -> type[Denoiser]:
    """A method's class by name. Raises ``UserError`` that lists the valid names."""
    try:
        return _TABLE[name]
    except (KeyError, TypeError):
        raise unknown_name("denoiser", name, _TABLE) from None


def parse(spec: str | Mapping[str, Any]) -> tuple[type[Denoiser], DenoiserConfig]:
    """Read a config flag: ``"deca_p"`` or ``{"name": "deca_p", "c_1": 1000, ...}``.

    Raises:
        UserError: unknown name or option, wrong type, or a combination that cannot work.
    """
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping) or "name" not in spec:
        raise UserError(f"denoiser is {spec!r}; it must be a name or a mapping with a name, such as {{name: deca_p}}.")
    options = dict(spec)
    method = get(options.pop("name"))
    return method, method.read_config(options)


__all__ = [
    "Clock",
    "Denoiser",
    "DenoiserConfig",
    "Losses",
    "Optim",
    "Stage",
    "Update",
    "get",
    "names",
    "parse",
    "register",
]
