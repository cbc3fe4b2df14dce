"""Weights drawn anew where a stage asks for it, but for those that a run was handed to keep."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
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
        with torch.random.fork_rng(devices=[]):  # a look ahead: nothing of it is used
            kept = denoiser.renewed(name)
        if kept is not None:
            continue
        module = denoiser.module(name)
        if name == stage.watch and getattr(denoiser.task, "pretrained", False):
            raise UserError(
                f"{denoiser.name} draws {name} anew, and {type(module).__name__} is another network than the one whose "
                "weights are to be kept: leave out pretrained or weights."
            )
        list(redraws(module, name))


def reset(denoiser: Denoiser, stage: Stage) -> None:
    """Carry out ``stage.reset``."""
    for name in stage.reset:
        module, kept = denoiser.module(name), denoiser.renewed(name)
        if kept is not None:
            module.load_state_dict(kept)
            continue
        for redraw in redraws(module, name):
            redraw()
