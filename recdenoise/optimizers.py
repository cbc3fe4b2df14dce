"""From a declared :class:`~recdenoise.denoisers.Optim` to torch's optimiser, with the penalties of the papers."""

from __future__ import annotations

from typing import Any, Literal

import torch

from recdenoise.denoisers.base import Denoiser, Optim
from recdenoise.errors import UserError


def build_optimizer(
    denoiser: Denoiser,
    optim: Optim,
    *,
    l2_scale: float,
    lr: float,
    weight_decay: float = 0.0,
    algorithm: Literal["adam", "sgd"] = "adam",
    momentum: float = 0.0,
    nesterov: bool = False,
) -> torch.optim.Optimizer:
    """Build an optimiser over the parameters of ``optim.modules`` that require a gradient.

    The penalty ``l2 * l2_scale / 2 ||theta||^2`` becomes coupled weight decay, whose gradient it equals.

    Args:
        denoiser: holds the modules.
        optim: what to build.
        l2_scale: see :class:`~recdenoise.task.Task`.
        lr, weight_decay, algorithm, momentum, nesterov: the run's, where ``optim`` names none. ``weight_decay`` is of
            every parameter, on top of the penalty.

    Returns:
        The optimiser; ``base_lr`` of each parameter group is the rate that a schedule multiplies.

    Raises:
        UserError: no parameter requires a gradient.
    """
    base_decay = weight_decay if optim.weight_decay is None else optim.weight_decay
    rate = lr if optim.lr is None else optim.lr
    groups = []
    for name, l2 in optim.modules.items():
        decay = base_decay + (0.0 if optim.norm_penalty else l2 * l2_scale)
        parameters = [p for p in denoiser.module(name).parameters() if p.requires_grad]
        if parameters:
            group: dict[str, Any] = {"params": parameters, "weight_decay": decay, "base_lr": rate}
            groups.append({**group, "norm_penalty": l2 * optim.norm_penalty})
    if not groups:
        raise UserError(f"Nothing to train: {', '.join(optim.modules)} has no trainable parameters.")
    if (optim.algorithm or algorithm) == "sgd":
        amount = momentum if optim.momentum is None else optim.momentum
        return torch.optim.SGD(groups, lr=rate, momentum=amount, nesterov=nesterov and amount > 0, fused=True)
    return torch.optim.Adam(groups, lr=rate, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Multiply the declared learning rate of every parameter group by ``factor``; returns the first group's rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return float(optimizer.param_groups[0]["lr"])


def add_norm_penalty(optimizer: torch.optim.Optimizer) -> None:
    """Add the gradient of ``lambda * ||theta||`` (the published code's autoencoder penalty) where a group has one."""
    for group in optimizer.param_groups:
        if group["norm_penalty"]:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.add_(p.detach() / p.detach().norm().clamp_min(1e-12), alpha=group["norm_penalty"])
