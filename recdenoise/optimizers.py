"""From a declared :class:`~recdenoise.denoisers.Optim` to torch's optimiser, with the penalties of the papers."""

from __future__ import annotations

import torch

from recdenoise.denoisers.base import Denoiser, Optim
from recdenoise.errors import UserError


def build_optimizer(
    denoiser: Denoiser, optim: Optim, *, l2_scale: float, lr: float, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """Build an optimiser over the parameters of ``optim.modules`` that require a gradient.

    The penalty ``l2 * l2_scale / 2 ||theta||^2`` becomes coupled weight decay, whose gradient it equals.

    Args:
        denoiser: holds the modules.
        optim: what to build.
        l2_scale: see :class:`~recdenoise.task.Task`.
        lr: learning rate where ``optim`` names none.
        weight_decay: of every parameter, on top.

    Raises:
        UserError: no parameter requires a gradient.
    """
    groups = []
    for name, l2 in optim.modules.items():
        decay = weight_decay + (0.0 if optim.norm_penalty else l2 * l2_scale)
        parameters = [p for p in denoiser.module(name).parameters() if p.requires_grad]
        if parameters:
            groups.append({"params": parameters, "weight_decay": decay, "norm_penalty": l2 * optim.norm_penalty})
    if not groups:
        raise UserError(f"Nothing to train: {', '.join(optim.modules)} has no trainable parameters.")
    rate = lr if optim.lr is None else optim.lr
    if optim.algorithm == "sgd":
        return torch.optim.SGD(groups, lr=rate)
    return torch.optim.Adam(groups, lr=rate, fused=True)


def add_norm_penalty(optimizer: torch.optim.Optimizer) -> None:
    """Add the gradient of ``lambda * ||theta||`` (the published code's autoencoder penalty) where a group has one."""
    for group in optimizer.param_groups:
        if group["norm_penalty"]:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.add_(p.detach() / p.detach().norm().clamp_min(1e-12), alpha=group["norm_penalty"])
