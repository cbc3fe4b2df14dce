"""Weights drawn anew where a stage asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn

from recdenoise.denoisers.base import Denoiser, Stage
from recdenoise.errors import UserError


def redraws(module: nn.Module, name: str) -> Iterator[Callable[[], object]]:
    """What draws the weights of ``module`` anew from the global generator, part by part.

    The outermost modules that have a ``reset_parameters`` are asked, so that a network's own initialisation comes
    before that of its layers.

    Raises:
        UserError: a part has weights of its own and no ``reset_parameters``.
    """
    own = getattr(module, "reset_parameters", None)
    if callable(own):
        yield own
        return
    if next(module.parameters(recurse=False), None) is not None:
        raise UserError(
            f"{name} ({type(module).__name__}) has weights and no reset_parameters(): it cannot be drawn anew."
        )
    for key, child in module.named_children():
        yield from redraws(child, f"{name}.{key}")


def check_resets(denoiser: Denoiser, stage: Stage) -> None:
    """Refuse, before training, a stage whose ``reset`` cannot be carried out. Raises ``UserError``."""
    for name in stage.reset:
        list(redraws(denoiser.module(name), name))


def reset(denoiser: Denoiser, stage: Stage) -> None:
    """Carry out ``stage.reset``."""
    for name in stage.reset:
        for redraw in redraws(denoiser.module(name), name):
            redraw()
