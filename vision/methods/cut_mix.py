"""What CutMix does to a batch: a box of one image is pasted into another, labels count by the area.

Reference: Yun et al., CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features, ICCV 2019.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from recdenoise.parallel import ALONE, Parallel


@dataclass(frozen=True)
class Box:
    """Rows ``top`` to ``bottom - 1`` and columns ``left`` to ``right - 1`` of images of ``height`` x ``width``."""

    top: int
    bottom: int
    left: int
    right: int
    height: int
    width: int

    @property
    def share(self) -> float:
        """Of an image that stays its own."""
        return 1.0 - (self.bottom - self.top) * (self.right - self.left) / (self.height * self.width)


def draw_box(height: int, width: int, share: float) -> Box:
    """A box of the image's shape and ``1 - share`` of its area around a uniform centre, cut at the edges (Eq. 2), by
    torch's global generator."""
    side = math.sqrt(max(0.0, 1.0 - share))
    down, across = int(height * side), int(width * side)
    y, x = int(torch.randint(height, ())), int(torch.randint(width, ()))
    top, left = max(0, y - down // 2), max(0, x - across // 2)
    bottom, right = min(height, y + down // 2), min(width, x + across // 2)
    return Box(top, bottom, left, right, height, width)


def pasted(images: Tensor, partners: Tensor, box: Box, parallel: Parallel = ALONE) -> Tensor:
    """``(n, C, H, W)`` images with their partners' pixels inside the box.

    Args:
        images: of this process's share of a batch.
        partners: ``(n,)`` places in the whole batch.
        box: the same for the whole batch, as published.
        parallel: the processes that share the batch.
    """
    rows, columns = slice(box.top, box.bottom), slice(box.left, box.right)
    inside = images[..., rows, columns]
    every = inside if parallel.size == 1 else parallel.gather(inside.contiguous())
    out = images.clone()
    out[..., rows, columns] = every.index_select(0, partners)
    return out
