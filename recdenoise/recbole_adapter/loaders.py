"""Batches of implicit feedback, built for a whole epoch at once from id tensors that stay on the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from recdenoise import seeds
from recdenoise.interactions import Interactions
from recdenoise.sampling import NegativeSampler
from recdenoise.task import Batch, Pass


class Pairs(NamedTuple):
    """Inputs of a step: ``users (n,)``, ``items (n,)`` and, for autoencoders, ``(distinct users, (n,) row)``."""

    users: Tensor
    items: Tensor
    rows: tuple[Tensor, Tensor] | None = None


class WholeRows(NamedTuple):
    """Inputs that ask for the scores of all items of ``users (b,)``."""

    users: Tensor


@dataclass(frozen=True)
class Observed:
    """The training interactions, resident on the device.

    Attributes:
        users, items: ``(n_rows,)`` int64, in the order of the training file.
        lists: the same without duplicates, as user -> items lists.
        seed: everything drawn follows from it.
        batch_size: observed pairs in a step (or users, for autoencoders).
    """

    users: Tensor
    items: Tensor
    lists: Interactions
    seed: int
    batch_size: int

    @cached_property
    def first_row(self) -> Tensor:
        """Where each distinct pair first stands in the training file, in the order of ``lists``: ``(nnz,)`` int64."""
        keys = self.users * self.lists.n_items + self.items
        order = torch.argsort(keys, stable=True)
        first = torch.ones(len(keys), dtype=torch.bool, device=keys.device)
        first[1:] = keys[order][1:] != keys[order][:-1]
        return order[first]

    def sampler(self, sweep: Pass) -> NegativeSampler:
        """The sampler that ``sweep`` asks for; item 0 is RecBole's padding."""
        return NegativeSampler(self.lists, sweep.negatives or "uniform", sweep.beta, sweep.reject, first_item=1)


class PairLoader:
    """B observed pairs and one sampled pair for each: all draws of the epoch in one call, every batch a view."""

    def __init__(self, data: Observed, sampler: NegativeSampler, key: tuple[int, ...]) -> None:
        device = data.users.device
        generator = seeds.generator(device, data.seed, "pairs", *key)
        order = torch.randperm(len(data.users), generator=generator, device=device)
        users = data.users.index_select(0, order)  # four times faster than data.users[order] on a CPU
        self._order, self._users, self._items = order, users, data.items.index_select(0, order)
        self._negatives = sampler.sample(users, generator)
        self._batch = data.batch_size
        self._whole = len(users) // data.batch_size * data.batch_size
        self._double = {
            "users": self._interleave(self._users, self._users),
            "items": self._interleave(self._items, self._negatives),
            "index": self._interleave(order, torch.full_like(order, -1)),
        }
        self._label = _labels(data.batch_size, device)

    def _interleave(self, positive: Tensor, negative: Tensor) -> Tensor:
        """``(n_batches, 2 B)``: every whole batch's positives, then its negatives."""
        halves = [part[: self._whole].view(-1, self._batch) for part in (positive, negative)]
        return torch.cat(halves, dim=1)

    def __len__(self) -> int:
        return -(-len(self._users) // self._batch)

    def batches(self, start: int = 0) -> Iterator[Batch]:
        b = self._batch
        for step in range(start, self._whole // b):
            inputs = Pairs(self._double["users"][step], self._double["items"][step])
            yield Batch(self._double["index"][step], inputs, self._label, (b, b))
        rest = slice(self._whole, None)
        users, n = self._users[rest], len(self._users) - self._whole
        if n and start < len(self):
            items = torch.cat([self._items[rest], self._negatives[rest]])
            index = torch.cat([self._order[rest], torch.full_like(self._order[rest], -1)])
            yield Batch(index, Pairs(users.repeat(2), items), _labels(n, users.device), (n, n))


class RowLoader:
    """B users with all their observed items and as many unobserved ones, drawn evenly over the batch's zeros."""

    def __init__(self, data: Observed, sampler: NegativeSampler, key: tuple[int, ...]) -> None:
        self._data, self._sampler = data, sampler
        self._key = key
        counts = data.lists.counts()
        active = counts.nonzero()[:, 0]
        generator = seeds.generator(data.users.device, data.seed, "rows", *key)
        self._users = active[torch.randperm(len(active), generator=generator, device=active.device)]
        self._zeros = (data.lists.n_items - 1 - counts).double()

    def __len__(self) -> int:
        return -(-len(self._users) // self._data.batch_size)

    def batches(self, start: int = 0) -> Iterator[Batch]:
        lists, size = self._data.lists, self._data.batch_size
        counts = lists.counts()
        for step in range(start, len(self)):
            # A generator a batch: the draws of one step do not depend on whether earlier ones were made.
            generator = seeds.generator(self._users.device, self._data.seed, "zeros", *self._key, step)
            users = self._users[step * size : (step + 1) * size]
            row, items = lists.rows(users)
            n = len(row)
            count = counts.index_select(0, users)
            shift = lists.indptr.index_select(0, users) - (count.cumsum(0) - count)
            pair = torch.arange(n, device=users.device) + shift.index_select(0, row)  # where it stands in the lists
            mass = self._zeros[users].cumsum(0)
            draw = torch.rand(n, generator=generator, device=users.device, dtype=torch.float64) * mass[-1]
            other = torch.searchsorted(mass, draw, right=True).clamp_(max=len(users) - 1)
            negatives = self._sampler.sample(users.index_select(0, other), generator)
            row = torch.cat([row, other])
            inputs = Pairs(users.index_select(0, row), torch.cat([items, negatives]), (users, row))
            index = torch.cat([self._data.first_row.index_select(0, pair), torch.full_like(other, -1)])
            yield Batch(index, inputs, _labels(n, users.device), (n, n))


def _labels(n: int, device: torch.device) -> Tensor:
    """``(2 n,)``: n ones, then n zeros."""
    label = torch.zeros(2 * n, device=device)
    label[:n] = 1.0
    return label
