"""Batches of images: whole-batch augmentation on the device, each batch a function of the seed and its place."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from recdenoise import seeds
from recdenoise.errors import UserError
from recdenoise.task import Batch, Pass

if TYPE_CHECKING:
    from vision.isolation import Isolation
    from vision.task import ImageTask


@dataclass(frozen=True)
class Read:
    """What was read from files for a batch ahead of its use; ``None`` for what is in memory."""

    images: Tensor | None = None
    masks: Tensor | None = None
    streams: Mapping[str, Read] = field(default_factory=dict)


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
        whole = sweep.rows is None and not sweep.paired  # another network's sweep beside the first
        if task.epoch_images is not None and sweep.source == "train" and (whole or not name):
            draws: tuple[int | str, ...] = (task.seed, *key, name) if name else (task.seed, *key)
            rows = balanced(rows.cpu(), task.labels.cpu(), task.epoch_images, draws)
        self.rows = rows.to(task.device)
        self.labels = self.data.labels if sweep.labels is None else sweep.labels
        self.size = shared_size(sweep.batch_size or task.batch_size, len(self.rows), task.parallel.size)
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
        for step, read in zip(steps, self.ahead(steps), strict=True):
            yield self.batch(step, read=read)

    def ahead(self, steps: Sequence[int], partners_of: Sequence[Tensor] | None = None) -> Iterator[Read]:
        """What the batches of some steps need of files, read by as many workers as the folder has.

        Args:
            steps: zero-based.
            partners_of: for each step, the rows of the outer pass, which a paired stream follows.
        """
        if not self.reads_files:
            return itertools.repeat(Read(), len(steps))
        followed = [None] * len(steps) if partners_of is None else partners_of
        orders = [self._rows_at(step, outer) for step, outer in zip(steps, followed, strict=True)]
        own = {name: source.batches(orders) for name, source in self._files().items()}
        streams = {name: loader.ahead(steps, orders) for name, loader in self.streams.items()}
        return (
            Read(**{k: next(v) for k, v in own.items()}, streams={k: next(v) for k, v in streams.items()})
            for _ in steps
        )

    @property
    def reads_files(self) -> bool:
        """Whether any image or mask of this pass or its streams is on disk."""
        return bool(self._files()) or any(loader.reads_files for loader in self.streams.values())

    def _files(self) -> dict[str, Any]:
        stored = {"images": self.data.images}
        if self._isolation is not None:
            stored["masks"] = self._isolation.stored(self.data)
        return {name: each for name, each in stored.items() if each is not None and not isinstance(each, Tensor)}

    @property
    def _isolation(self) -> Isolation | None:
        isolation = self.task.isolation
        return isolation if isolation is not None and isolation.training else None

    def _rows_at(self, step: int, partners_of: Tensor | None) -> Tensor:
        if self.sweep.paired and partners_of is not None:
            return self.rows.index_select(0, partners_of)
        return self._index(step)

    def _index(self, step: int) -> Tensor:
        turn, at = divmod(step, self._round_steps)
        return self._ordered(turn)[at * self.size : (at + 1) * self.size][self.task.parallel.share(self.size)]

    def batch(self, step: int, partners_of: Tensor | None = None, read: Read | None = None) -> Batch:
        """The batch of a step; beyond the pass's end it goes round again in another order.

        Args:
            step: zero-based.
            partners_of: rows of the outer pass, which a paired stream follows.
            read: what of the batch has been read from files already.
        """
        index, read = self._rows_at(step, partners_of), read or Read()
        sweep, device = self.sweep, self.task.device
        raw = self.task.fetch(self.data, index) if read.images is None else read.images.to(device, non_blocking=True)
        masks = None if read.masks is None else read.masks.to(device, non_blocking=True)
        if masks is None and self._isolation is not None:
            masks = self._isolation.masks(self.data, index, raw, keep=True)
        generator = seeds.generator(device, self.task.seed, "augment", self.name, *self.key, step)
        size = len(index) * self.task.parallel.size  # of the whole batch; a paired stream has the outer pass's
        views = tuple(
            self.task.augmented(raw, generator, sweep.augment, size, masks, view) for view in range(sweep.views)
        )
        weight = None if sweep.weights is None else sweep.weights.index_select(0, index)
        streams = {name: loader.batch(step, index, read.streams.get(name)) for name, loader in self.streams.items()}
        label = self.labels.index_select(0, index)
        return Batch(index, views[0], label, (len(index),), weight, views if len(views) > 1 else (), streams)

    def _ordered(self, turn: int) -> Tensor:
        if self._round != turn:
            generator = seeds.generator(self.task.device, self.task.seed, "images", self.name, *self.key, turn)
            order = torch.randperm(len(self.rows), generator=generator, device=self.task.device)
            self._round, self._order = turn, self.rows.index_select(0, order)
        return self._order


def balanced(rows: Tensor, labels: Tensor, number: int, key: tuple[int | str, ...]) -> Tensor:
    """Some of the rows, as many of every class as of another: all of a class that has fewer.

    Args:
        rows: ``(n,)`` of the training set.
        labels: ``(N,)`` observed labels of the training set.
        number: rows wanted, rounded down to a multiple of the classes among ``rows``, with one a class at least.
        key: seed, stage, epoch and pass, and the stream's name: the same ones draw the same rows.

    Returns:
        ``(m,)`` rows in random order.
    """
    drawn = rows[torch.randperm(len(rows), generator=seeds.generator("cpu", int(key[0]), *key[1:], "balanced"))]
    kinds, place = labels[drawn].unique(return_inverse=True)
    order = place.argsort(stable=True)
    counts = torch.bincount(place)
    turn = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[place[order]]
    rank = torch.empty_like(turn).scatter_(0, order, turn)
    return drawn[rank < max(1, number // len(kinds))]


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
