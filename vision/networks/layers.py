"""Layers that several networks share."""

from __future__ import annotations

from torch import Tensor, nn


class Conv(nn.Conv2d):
    """A convolution without bias, initialised as He et al. (ICCV 2015) have it, by fan-out.

    The initialisation is the layer's own, so that whoever draws a part of a network anew gets the same distribution.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, kernel // 2, bias=False)

    def reset_parameters(self) -> None:
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")


def pooled(maps: Tensor) -> Tensor:
    """The mean over height and width: ``(n, D, H, W)`` to ``(n, D)``, deterministic on every device."""
    return maps.mean((2, 3))
