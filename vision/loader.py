"""Batches of images: whole-batch augmentation on the device, each batch a function of the seed and its place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recdenoise import seeds
from recdenoise.errors import UserError
from recdenoise.task import Batch, Pass

if TYPE_CHECKING:
    from vision.task import ImageTask


class ImageLoader:
    """The batches of one pass.

    Batches all have the same size: the rows that are left over after the last whole batch wait for another epoch's
    shuffle. A pass over fewer rows than a batch is one smaller batch. Where several processes train, each gets its
    share of every batch: the same size for all, so that a smaller batch leaves out what cannot be shared.

    Args:
        task: holds the images.
        sweep: what to go over.
        key: stage, epoch and pass; with the task's seed all that a batch depends on.
        name: of the stream, to give it draws of its own; empty for the outer pass.

    Raises:
        UserError: no rows, or a batch that the processes cannot share evenly.
    """

    def __init__(self, task: ImageTask, sweep: Pass, key: tuple[int, ...], name: str = "") -> None:
        self.task, self.sweep, self.key, self.name = task, sweep, key, name
        self.data = task.source(sweep.source)
        rows = torch.arange(len(self.data)) if sweep.rows is None else sweep.rows
        if len(rows) == 0:
            raise UserError(f"A pass over {sweep.source}{f', stream {name},' if name else ''} has no rows.")
        self.rows = rows.to(task.device)
        self.labels = self.data.labels if sweep.labels is None else sweep.labels
        self.size = shared_size(sweep.batch_size or task.batch_size, len(rows), task.parallel.size)
        self.streams = {each: ImageLoader(task, stream, key, each) for each, stream in sweep.streams.items()}
        self._round, self._order = -1, self.rows

    def __len__(self) -> int:
        return self._round_steps if self.sweep.steps is None else self.sweep.steps

    @property
    def _round_steps(self) -> int:
        """Steps that go over the rows once."""
        return len(self.rows) // self.size

    def batches(self, start: int = 0) -> Iterator[Batch]:
        steps = range(start, len(self))
        if isinstance(self.data.images, Tensor):
            for step in steps:
                yield self.batch(step)
            return
        # Files are read ahead of their use, by as many workers as the folder has.
        ahead = self.data.images.batches([self._index(step) for step in steps])
        for step, raw in zip(steps, ahead, strict=True):
            yield self.batch(step, raw=raw)

    def _index(self, step: int) -> Tensor:
        turn, at = divmod(step, self._round_steps)
        return self._ordered(turn)[at * self.size : (at + 1) * self.size][self.task.parallel.share(self.size)]

    def batch(self, step: int, partners_of: Tensor | None = None, raw: Tensor | None = None) -> Batch:
        """The batch of a step; beyond the pass's end it goes round again in another order.

        Args:
            step: zero-based.
            partners_of: rows of the outer pass, which a paired stream follows.
            raw: the step's uint8 images where they have been read already.
        """
        if self.sweep.paired and partners_of is not None:
            index = self.rows.index_select(0, partners_of)
        else:
            index = self._index(step)
        sweep, device = self.sweep, self.task.device
        raw = self.task.fetch(self.data, index) if raw is None else raw.to(device, non_blocking=True)
        generator = seeds.generator(device, self.task.seed, "augment", self.name, *self.key, step)
        size = len(index) * self.task.parallel.size  # of the whole batch; a paired stream has the outer pass's
        views = tuple(self.task.augmented(raw, generator, sweep.augment, size) for _ in range(sweep.views))
        weight = None if sweep.weights is None else sweep.weights.index_select(0, index)
        streams = {name: loader.batch(step, index) for name, loader in self.streams.items()}
        label = self.labels.index_select(0, index)
        return Batch(index, views[0], label, (len(index),), weight, views if len(views) > 1 else (), streams)

    def _ordered(self, turn: int) -> Tensor:
        if self._round != turn:
            generator = seeds.generator(self.task.device, self.task.seed, "images", self.name, *self.key, turn)
            order = torch.randperm(len(self.rows), generator=generator, device=self.task.device)
            self._round, self._order = turn, self.rows.index_select(0, order)
        return self._order


def shared_size(wanted: int, n_rows: int, processes: int) -> int:
    """Size of the batches of a pass.

    Args:
        wanted: by the run or the method.
        n_rows: of the pass; where there are fewer than a batch, they are one.
        processes: each gets the same share of a batch.

    Raises:
        UserError: the processes cannot share a batch evenly.
    """
    if wanted % processes:
        raise UserError(f"A batch of {wanted} images is not divisible among {processes} processes.")
    if n_rows < processes:
        raise UserError(f"A pass has {n_rows} images for {processes} processes.")
    return min(wanted, n_rows - n_rows % processes)
