"""Masks of contents for a task's images: found once for a set in memory, with each batch where images are on disk."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recdenoise.errors import UserError
from vision import splitters

BLOCK = 512
"""Images whose masks are found at once."""


class Isolation:
    """Where a task's masks come from, and when its inputs carry them.

    Args:
        splitter: a name of :mod:`vision.splitters` other than ``pattern``.
        training: whether the batches of a pass carry masks.
        scoring: whether inputs to score do, where nothing else is said.

    Raises:
        UserError: an unknown splitter.
    """

    def __init__(self, splitter: str, training: bool = True, scoring: bool = True) -> None:
        if splitter != splitters.PRECOMPUTED:
            splitters.detector(splitter)
        self.splitter, self.training, self.scoring = splitter, training, scoring
        self._found: dict[int, tuple[Any, Tensor]] = {}  # the set is kept beside them, so that its id stays its own

    def knows(self, data: Any) -> bool:
        """Whether the masks of a set can be found."""
        return self.splitter != splitters.PRECOMPUTED or getattr(data, "masks", None) is not None

    def stored(self, data: Any) -> Any:
        """The masks that a set brings along, ``(N, 1, H, W)`` uint8, decoded or not; ``None`` for those to be found.

        Raises:
            UserError: they should be there and are not.
        """
        if self.splitter != splitters.PRECOMPUTED:
            return None
        masks = getattr(data, "masks", None)
        if masks is None:
            raise UserError(
                "The splitter 'precomputed' needs a mask for every image: say masks=PATH when the images are loaded "
                "(--masks PATH on the command line)."
            )
        return masks

    def masks(self, data: Any, rows: Tensor, raw: Tensor, keep: bool) -> Tensor:
        """``(b, 1, H, W)`` uint8 masks of some rows, on the device of their images.

        Args:
            data: the set.
            rows: ``(b,)`` rows of it.
            raw: ``(b, C, H, W)`` their uint8 images.
            keep: find the masks of the whole set, where it is in memory, at the first call, and look them up later.
        """
        stored = self.stored(data)
        if stored is None and not (keep and isinstance(data.images, Tensor)):
            return splitters.detect(self.splitter, raw)
        if stored is None:
            stored = self._whole(data)
        if isinstance(stored, Tensor):
            return stored.index_select(0, rows.to(stored.device)).to(raw.device, non_blocking=True)
        found: Tensor = stored[rows]
        return found.to(raw.device, non_blocking=True)

    def _whole(self, data: Any) -> Tensor:
        if id(data) not in self._found:
            blocks = data.images.split(BLOCK)
            masks = torch.cat([splitters.detect(self.splitter, block) for block in blocks])
            self._found[id(data)] = (data, masks)
        return self._found[id(data)][1]
