"""Options as frozen dataclasses: read from a mapping, checked by their annotations, written back as plain types."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from recdenoise.errors import UserError, unknown_name

T = TypeVar("T")


def describe(annotation: Any) -> str:
    """What an annotation accepts, in words for an error message."""
    if typing.get_origin(annotation) is typing.Literal:
        return "one of " + ", ".join(str(a) for a in typing.get_args(annotation))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " or ".join("null" if a is type(None) else describe(a) for a in typing.get_args(annotation))
    if typing.get_origin(annotation) is tuple:
        return f"a list, each entry {describe(typing.get_args(annotation)[0])}"
    return {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a name",
        list: "a list",
        dict: "a mapping",
    }.get(annotation, str(annotation))


def convert(value: Any, annotation: Any) -> Any:
    """Return ``value`` as ``annotation`` or raise ``TypeError``; strings are never evaluated."""
    origin = typing.get_origin(annotation)
    if getattr(value, "ndim", None) == 0:  # a NumPy scalar, as np.arange and np.random.choice yield
        value = value.item()
    if origin in (typing.Union, types.UnionType):
        for choice in typing.get_args(annotation):
            if choice is type(None):
                if value is None:
                    return None
                continue
            try:
                return convert(value, choice)
            except TypeError:
                continue
        raise TypeError
    if origin is typing.Literal:
        if value in typing.get_args(annotation):
            return value
        raise TypeError
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise TypeError
        return tuple(convert(entry, typing.get_args(annotation)[0]) for entry in value)
    if annotation is bool:
        if isinstance(value, bool):
            return value
        raise TypeError
    if annotation in (int, float):
        if isinstance(value, str):  # command lines and flat search spaces hand numbers over as text
            try:
                value = float(value)
            except ValueError:
                raise TypeError from None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError
        if annotation is int and not (math.isfinite(value) and int(value) == value):
            raise TypeError
        return annotation(value)
    if isinstance(value, annotation):
        return value
    raise TypeError


def flat_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """``{"denoiser": {"alpha": 1}}`` as ``{"denoiser.alpha": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in options.items():
        flat |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, Mapping) else {key: value}
    return flat


def read_options(cls: type[T], options: Mapping[str, Any], where: str) -> T:
    """Build the dataclass ``cls`` from ``options``.

    Args:
        cls: a frozen dataclass; its ``__post_init__`` checks ranges and combinations and raises :class:`UserError`.
        options: option name to value.
        where: what the options belong to, for messages, for example ``"denoiser deca_p"``.

    Raises:
        UserError: an unknown option, a wrong type, or whatever ``__post_init__`` refuses.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name: hints[f.name] for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values = {}
    for name, value in options.items():
        if name not in fields:
            raise unknown_name(f"option of {where}:", name, fields)
        try:
            values[name] = convert(value, fields[name])
        except TypeError:
            raise UserError(f"Option {name!r} of {where} is {value!r}; it must be {describe(fields[name])}.") from None
    return cls(**values)


def require(condition: bool, name: str, value: object, valid: str) -> None:
    """Raise a :class:`UserError` that names option, value and what is valid, unless ``condition`` holds."""
    if not condition:
        raise UserError(f"Option {name!r} is {value!r}; it must be {valid}.")
