"""Class activation maps of any network, and places drawn by them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vision.embedding import as_logits


def last_map(module: nn.Module, images: Tensor) -> str | None:
    """Name of the part of a network whose output is its last map ``(n, c, h, w)`` of more than one place.

    ``None`` where no part has one, as in a network of Linears: the images themselves are then its only map.
    """
    found: list[str] = []

    def note(name: str) -> Any:
        def hook(part: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
                found.append(name)

        return hook

    handles = [part.register_forward_hook(note(name)) for name, part in module.named_modules() if name]
    try:
        with torch.no_grad():
            module(images)
    finally:
        for handle in handles:
            handle.remove()
    return found[-1] if found else None


def activation_maps(module: nn.Module, layer: str | None, images: Tensor, classes: Tensor) -> Tensor:
    """What every place of a map adds to the logit of a class: ``sum_c A_c(x, y) df_k / dA_c(x, y)``.

    Where a global mean and a Linear follow the map, as in ResNets, the derivative is the Linear's weight over the
    number of places, and this is the class activation map of Zhou et al. (CVPR 2016); elsewhere it is what that
    map is in place of: a part for every place, by the network's slope.

    Args:
        module: in eval mode.
        layer: from :func:`last_map`.
        images: ``(n, C, H, W)``.
        classes: ``(n,)`` int64, k of every image.

    Returns:
        ``(n, h, w)`` without gradient.
    """
    kept: list[Tensor] = []

    def keep(part: nn.Module, args: Any, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[0].clone()  # what follows may work in place

    with torch.enable_grad():
        if layer is None:
            kept.append(images.detach().requires_grad_())
            logits = as_logits(module(kept[0]))
        else:
            handle = module.get_submodule(layer).register_forward_hook(keep)
            try:
                logits = as_logits(module(images))
            finally:
                handle.remove()
        chosen = logits.gather(1, classes.unsqueeze(1)).sum()
        (slope,) = torch.autograd.grad(chosen, kept[0])
    return (kept[0] * slope).detach().sum(1).float()


def places(maps: Tensor, draws: Tensor) -> Tensor:
    """Points of images, drawn with the probability ``softmax`` over a map's places and evenly within a place.

    Args:
        maps: ``(n, h, w)``.
        draws: ``(n, k, 3)`` uniform draws from 0 to 1: which place, and where in it.

    Returns:
        ``(n, k, 2)`` points (x, y), from -1 at the left or upper edge to 1 at the other.
    """
    _, height, width = maps.shape
    reached = torch.softmax(maps.flatten(1), 1).cumsum(1)
    cell = torch.searchsorted(reached, draws[..., 0].contiguous() * reached[:, -1:], right=True)
    cell = cell.clamp_max(height * width - 1)
    x = (cell % width + draws[..., 1]) / width
    y = (cell // width + draws[..., 2]) / height
    return torch.stack([x, y], -1) * 2.0 - 1.0
