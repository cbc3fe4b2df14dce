"""Tables of methods by name: one for each backend, explicit, open to a user's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from recdenoise.denoisers.base import Denoiser, DenoiserConfig
from recdenoise.errors import UserError, unknown_name

D = TypeVar("D", bound=type[Denoiser])


class Registry:
    """Methods by name.

    Args:
        kind: what a method is called in messages, for example ``"denoiser"``.
        methods: those that the package brings, in the order in which they are listed.
    """

    def __init__(self, kind: str, methods: Iterable[type[Denoiser]]) -> None:
        self.kind = kind
        self.table = {method.name: method for method in methods}

    def register(self, denoiser: D) -> D:
        """Make a method of one's own known by its ``name``; usable as a decorator.

        Raises:
            UserError: it is not a :class:`Denoiser`, has no ``name``, or the name is taken by another class.
        """
        if not (isinstance(denoiser, type) and issubclass(denoiser, Denoiser)):
            raise UserError(f"register() takes a subclass of recdenoise.Denoiser, not {denoiser!r}.")
        name = getattr(denoiser, "name", None)
        if not isinstance(name, str) or not name.isidentifier():
            raise UserError(f"{denoiser.__name__}.name is {name!r}; it must be a word usable in a config.")
        held = self.table.get(name)
        if held is not None and (held.__module__, held.__qualname__) != (denoiser.__module__, denoiser.__qualname__):
            raise UserError(f"The {self.kind} name {name!r} is taken by {held.__module__}.{held.__qualname__}.")
        self.table[name] = denoiser
        return denoiser

    def names(self) -> list[str]:
        """Registered names, in the order of the table."""
        return list(self.table)

    def get(self, name: str) -> type[Denoiser]:
        """A method's class by name. Raises ``UserError`` that lists the valid names."""
        try:
            return self.table[name]
        except (KeyError, TypeError):
            raise unknown_name(self.kind, name, self.table) from None

    def parse(self, spec: str | Mapping[str, Any]) -> tuple[type[Denoiser], DenoiserConfig]:
        """Read a config flag: ``"deca_p"`` or ``{"name": "deca_p", "c_1": 1000, ...}``.

        Raises:
            UserError: unknown name or option, wrong type, or a combination that cannot work.
        """
        if isinstance(spec, str):
            spec = {"name": spec}
        if not isinstance(spec, Mapping) or "name" not in spec:
            raise UserError(
                f"{self.kind} is {spec!r}; it must be a name or a mapping with a name, such as {{name: deca_p}}."
            )
        options = dict(spec)
        method = self.get(options.pop("name"))
        return method, method.read_config(options)
