"""Observed user-item pairs as a CSR of int64 tensors: membership tests, masks for blocks of users, counts.

Everything about "has this user seen this item" goes through here: the negative sampler, the masks of full ranking and
the hits of an evaluation. Memory grows with the number of pairs, never with users times items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recdenoise.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

# 2**64 divided by the golden ratio, as a signed number: multiplying by it spreads consecutive keys over all slots.
_SPREAD = -7046029254386353131
# Slots of the filter per stored pair. At 16 about 6% of absent pairs still need the binary search.
_SLOTS_PER_PAIR = 16


@dataclass(frozen=True, slots=True, eq=False)
class Interactions:
    """User -> items lists without duplicates, on one device. Build it with :meth:`from_pairs`.

    Attributes:
        indptr: (n_users + 1,) int64; the items of user ``u`` are ``items[indptr[u]:indptr[u + 1]]``.
        items: (nnz,) int64, ascending within a user.
        keys: (nnz,) int64, ascending, ``user * n_items + item``.
        n_users: number of user ids, padding included.
        n_items: number of item ids, padding included.
        n_duplicates: how many given pairs repeated another and were removed.
    """

    indptr: Tensor
    items: Tensor
    keys: Tensor
    n_users: int
    n_items: int
    n_duplicates: int
    _filter: list[Tensor]  # empty until the first membership test on a CPU, then one bool tensor

    @classmethod
    def from_pairs(
        cls,
        users: ArrayLike | Tensor,
        items: ArrayLike | Tensor,
        n_users: int,
        n_items: int,
        *,
        device: torch.device | str | None = None,
    ) -> Interactions:
        """Build from parallel arrays of ids.

        Args:
            users: (n,) integer ids in ``[0, n_users)``.
            items: (n,) integer ids in ``[0, n_items)``.
            n_users: number of user ids, padding included.
            n_items: number of item ids, padding included.
            device: where the tensors live; by default where ``users`` is.

        Raises:
            UserError: lengths differ, ids are no integers, or an id is out of range.
        """
        user_ids, item_ids = _ids(users, "user", n_users, device), _ids(items, "item", n_items, device)
        if user_ids.ndim != 1 or user_ids.shape != item_ids.shape:
            raise UserError(
                "Interactions need users and items of one length, not "
                f"{tuple(user_ids.shape)} and {tuple(item_ids.shape)}."
            )
        return cls._from_keys(user_ids * n_items + item_ids, n_users, n_items)

    @classmethod
    def _from_keys(cls, given: Tensor, n_users: int, n_items: int) -> Interactions:
        keys = torch.unique(given)
        owners = keys.div(n_items, rounding_mode="floor")
        indptr = torch.zeros(n_users + 1, dtype=torch.int64, device=keys.device)
        torch.cumsum(torch.bincount(owners, minlength=n_users), 0, out=indptr[1:])
        return cls(indptr, keys - owners * n_items, keys, n_users, n_items, len(given) - len(keys), [])

    def __len__(self) -> int:
        return len(self.items)

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.items.device

    def counts(self) -> Tensor:
        """Number of items of every user, (n_users,) int64."""
        return self.indptr.diff()

    def item_popularity(self) -> Tensor:
        """Number of distinct users of every item, (n_items,) int64."""
        return torch.bincount(self.items, minlength=self.n_items)

    def users(self) -> Tensor:
        """The user of every stored pair, (nnz,) int64, parallel to ``items``."""
        return self.keys.div(self.n_items, rounding_mode="floor")

    def contains(self, users: Tensor, items: Tensor) -> Tensor:
        """Tell for every (user, item) whether it is stored.

        Args:
            users: integer ids of any shape on this object's device.
            items: integer ids; the two shapes are broadcast against each other.

        Returns:
            bool tensor of the broadcast shape.

        Raises:
            UserError: an id is out of range.
        """
        users, items = _ids(users, "user", self.n_users, self.device), _ids(items, "item", self.n_items, self.device)
        keys = (users * self.n_items + items).contiguous()
        found = torch.zeros(keys.shape, dtype=torch.bool, device=self.device)
        found.view(-1).index_fill_(0, self.find(keys.view(-1)), True)
        return found

    def find(self, keys: Tensor) -> Tensor:
        """Positions in ``keys`` (``user * n_items + item``, (n,) int64, in range) that are stored, ascending.

        On a CPU a hashed bit table of 16 slots a pair answers most "no" in one lookup, and only its "maybe" goes to the
        binary search: five to eight times faster than searching for all. A GPU searches for all.
        """
        if len(self) == 0 or len(keys) == 0:
            return torch.empty(0, dtype=torch.int64, device=self.device)
        if self.device.type != "cpu":
            return (self.keys[torch.searchsorted(self.keys, keys).clamp_(max=len(self) - 1)] == keys).nonzero()[:, 0]
        bits = max(int(len(self) * _SLOTS_PER_PAIR - 1).bit_length(), 4)
        if not self._filter:
            table = torch.zeros(1 << bits, dtype=torch.bool)
            table[_slot(self.keys, bits)] = True
            self._filter.append(table)
        maybe = self._filter[0].index_select(0, _slot(keys, bits)).nonzero()[:, 0]
        asked = keys.index_select(0, maybe)
        near = torch.searchsorted(self.keys, asked).clamp_(max=len(self) - 1)
        return maybe.index_select(0, (self.keys.index_select(0, near) == asked).nonzero()[:, 0])

    def rows(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """All pairs of a block of users, ready to scatter into a (len(users), n_items) block.

        Args:
            users: (b,) int64 ids; repeats are allowed.

        Returns:
            ``(row, item)``, both (m,) int64: ``row`` counts within ``users``.
        """
        starts = self.indptr.index_select(0, users)
        lengths = self.indptr.index_select(0, users + 1) - starts
        ends = lengths.cumsum(0)
        row = torch.repeat_interleave(lengths)
        where = torch.arange(len(row), device=self.device) + (starts - ends + lengths).index_select(0, row)
        return row, self.items.index_select(0, where)

    def union(self, *others: Interactions) -> Interactions:
        """Pairs that are in this or in any of the others, on this device; overlaps count as duplicates.

        Raises:
            UserError: the id spaces differ.
        """
        for other in others:
            self.require_same_ids(other)
        keys = torch.cat([self.keys, *(other.keys.to(self.device) for other in others)])
        return self._from_keys(keys, self.n_users, self.n_items)

    def minus(self, other: Interactions) -> Interactions:
        """Pairs that are here and not in ``other``, on this device.

        Raises:
            UserError: the id spaces differ.
        """
        self.require_same_ids(other)
        keep = torch.ones(len(self), dtype=torch.bool, device=self.device)
        keep[other.to(self.device).find(self.keys)] = False
        return self._from_keys(self.keys[keep], self.n_users, self.n_items)

    def require_same_ids(self, other: Interactions) -> None:
        """Raise a :class:`UserError` unless ``other`` has as many user and item ids as this."""
        if (other.n_users, other.n_items) != (self.n_users, self.n_items):
            raise UserError(
                f"Interactions of {self.n_users} x {self.n_items} ids do not go with {other.n_users} x {other.n_items}."
            )

    def to(self, device: torch.device | str) -> Interactions:
        """The same pairs on another device; itself when they are there already."""
        moved = self.keys.to(device)
        if moved is self.keys:
            return self
        return Interactions(
            self.indptr.to(device), self.items.to(device), moved, self.n_users, self.n_items, self.n_duplicates, []
        )


def _slot(keys: Tensor, bits: int) -> Tensor:
    """Multiplicative hash of int64 keys to ``[0, 2 ** bits)``: the top bits of a wrapping product."""
    return keys.mul(_SPREAD).bitwise_right_shift_(64 - bits).bitwise_and_((1 << bits) - 1)


def _ids(values: ArrayLike | Tensor, kind: str, size: int, device: torch.device | str | None) -> Tensor:
    """An int64 tensor of ids in ``[0, size)``."""
    ids = torch.as_tensor(values, device=device)
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        if ids.numel():
            raise UserError(f"The {kind} ids must be integers, not {ids.dtype}.")
        ids = ids.to(torch.int64)
    ids = ids.to(torch.int64)
    if ids.numel():
        low, high = (int(value) for value in torch.aminmax(ids))
        if low < 0 or high >= size:
            raise UserError(f"The {kind} id {low if low < 0 else high} is out of range: valid are 0 to {size - 1}.")
    return ids
