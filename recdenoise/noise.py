"""Noise that is known: unobserved user-item pairs, to be put among the observed ones of a training set.

Pure functions on arrays of ids. Memory grows with the pairs that are observed or drawn, never with users times items:
an unobserved pair is drawn as its number among the unobserved pairs, and :func:`unobserved` turns numbers into pairs.

Draws come from the bit stream of PCG64 and not from NumPy's distributions, which may change with a release: the same
seed gives the same noise on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recdenoise import seeds
from recdenoise.errors import UserError, unknown_name

Ids = NDArray[np.int64]
Draw = Callable[[int], NDArray[np.float64]]
"""Gives so many independent numbers in [0, 1)."""

KINDS = {
    "random": "every unobserved pair of a user and an item is as likely as any other",
    "popular": "users in proportion to their activity, items in proportion to their popularity",
    "per-user": "every user gets the same share of noise, items uniformly",
}
"""Kinds of injected noise and what they draw."""

_ROUNDS = 200
_LARGEST_ROUND = 1 << 22


def uniform_draws(seed: int, *key: int | str) -> Draw:
    """A stream of uniform numbers that follows from a seed and a key, the same on every platform and NumPy."""
    bits = np.random.PCG64(seeds.derive(seed, "noise", *key))

    def draw(n: int) -> NDArray[np.float64]:
        raw: NDArray[Any] = bits.random_raw(n)
        return np.multiply(raw >> np.uint64(11), 2.0**-53, dtype=np.float64)

    return draw


def check(rate: float, kind: str) -> None:
    """Refuse an unknown kind, or a rate that is not between 0 and 1. Raises ``UserError``."""
    if kind not in KINDS:
        raise unknown_name("kind of noise", kind, KINDS)
    if not 0 < rate < 1:
        raise UserError(f"The noise rate is {rate:g}; it must lie between 0 and 1, both excluded.")


def injected_count(n_rows: int, rate: float) -> int:
    """How many rows to add so that they make up ``rate`` of all.

    Args:
        n_rows: rows that are there.
        rate: share of the injected rows in the result, between 0 and 1, both excluded.

    Raises:
        UserError: ``rate`` asks for less than one row, or there are none.
    """
    if not n_rows:
        raise UserError("There is no row to put noise among.")
    count = int(n_rows * rate / (1 - rate) + 0.5)
    if count == 0:
        raise UserError(f"A noise rate of {rate:g} is less than one row of {n_rows}; raise it.")
    return count


def inject(
    users: Ids,
    items: Ids,
    taken: Ids,
    n_users: int,
    n_items: int,
    *,
    rate: float,
    kind: str,
    seed: int,
    key: str = "",
    n_rows: int | None = None,
) -> tuple[Ids, Ids]:
    """Draw pairs that were not observed, no pair twice.

    Args:
        users, items: ``(n,)`` the observed pairs, ids from 0.
        taken: pairs that must not be drawn, as ``user * n_items + item`` in any order, with or without repeats; the
            observed pairs are added to them.
        n_users, n_items: numbers of ids.
        rate: share of the drawn pairs in the result.
        kind: a name in :data:`KINDS`.
        seed: everything follows from it.
        key: distinguishes several draws of one seed.
        n_rows: rows that the noise is to stand among, where they are more than the observed pairs (some may have no
            id); by default ``n``.

    Returns:
        ``(users, items)`` of the injected pairs, ``(m,)`` each, by user and item; ``m / (n_rows + m)`` is the rate, but
        for rounding.

    Raises:
        UserError: unknown kind, a rate out of range, no observed pair for a kind that follows them, or too few
            unobserved pairs.
    """
    check(rate, kind)
    n_rows = len(users) if n_rows is None else n_rows
    count = injected_count(n_rows, rate)
    if not len(users) and kind != "random":
        raise UserError(
            f"Noise of the kind {kind!r} follows the observed pairs, and none of the {n_rows:,} rows has a known user "
            "and item; take the kind 'random'."
        )
    observed = np.unique(np.concatenate([taken, users * n_items + items]))
    free = n_items - np.bincount(observed // n_items, minlength=n_users)
    if count > free.sum():
        raise UserError(
            f"The catalogue is too small: a noise rate of {rate:g} needs {count:,} unobserved pairs, and of "
            f"{n_users:,} users and {n_items:,} items only {free.sum():,} are left."
        )
    draw = uniform_draws(seed, kind, key)
    if kind == "random":
        keys = unobserved(choose(np.array([count]), np.array([free.sum()]), draw), observed)
    elif kind == "per-user":
        wanted = shares_by_user(np.bincount(users, minlength=n_users), rate, n_rows)
        lacking = int((wanted > free).sum())
        if lacking:
            raise UserError(
                f"The catalogue is too small: {lacking:,} users have fewer unobserved ones among its {n_items:,} items "
                f"than a noise rate of {rate:g} gives to each of them."
            )
        keys = unobserved(choose(wanted, free, draw), observed)
    else:
        keys = popular_keys(users, items, observed, n_items, count, draw)
    return keys // n_items, keys % n_items


def shares_by_user(counts: Ids, rate: float, n_rows: int) -> Ids:
    """Noise rows for every user, ``(n_users,)``, in proportion to the user's ``counts``, of which one is not 0.

    Rounding goes over the running total, so that the sum is :func:`injected_count` of ``n_rows`` and every user is at
    most one row off.
    """
    ends = np.cumsum(counts)
    # Multiplied before it is divided: the last end is then exactly n_rows, and with n_rows of counts every end stays.
    ends = (ends * n_rows / ends[-1] * rate / (1 - rate) + 0.5).astype(np.int64)
    return np.diff(ends, prepend=0)


def unobserved(numbers: Ids, observed: Ids) -> Ids:
    """The keys with these numbers among all that are not in ``observed``.

    Args:
        numbers: ``(n,)`` from 0; the keys that are not observed are numbered in ascending order.
        observed: ``(m,)`` keys, ascending, without repeats.
    """
    # Before the j-th observed key lie observed[j] - j others. Key number x stands behind all with at most x of them.
    return numbers + np.searchsorted(observed - np.arange(len(observed)), numbers, side="right")


def choose(counts: Ids, sizes: Ids, draw: Draw) -> Ids:
    """Draw distinct places in groups that are laid end to end, every set of places in a group as likely as any other.

    Args:
        counts: ``(g,)`` how many places of each group.
        sizes: ``(g,)`` how many places each group has, at least ``counts``.
        draw: source of randomness.

    Returns:
        ``(counts.sum(),)`` ascending places.
    """
    starts = np.cumsum(sizes) - sizes
    full = 2 * counts > sizes
    # Of a group that is mostly taken, all places are listed and put in a random order: fewer than two for each taken.
    group = np.repeat(np.flatnonzero(full), sizes[full])
    place = np.arange(len(group)) - np.repeat(np.cumsum(sizes[full]) - sizes[full], sizes[full])
    order = np.lexsort((draw(len(group)), group))  # groups stay contiguous: entry i of the order is rank `place[i]`
    dense = (starts[group] + place)[order][place < counts[group]]
    # Of any other, places are drawn and repetitions drawn again. No place is preferred, so no set of them is.
    group = np.repeat(np.flatnonzero(~full), counts[~full])
    sparse = starts[group] + (draw(len(group)) * sizes[group]).astype(np.int64)
    while True:
        repeated = np.ones(len(sparse), dtype=bool)
        repeated[np.unique(sparse, return_index=True)[1]] = False
        if not repeated.any():
            return np.sort(np.concatenate([dense, sparse]))
        again = group[repeated]
        sparse[repeated] = starts[again] + (draw(len(again)) * sizes[again]).astype(np.int64)


def popular_keys(users: Ids, items: Ids, observed: Ids, n_items: int, count: int, draw: Draw) -> Ids:
    """Pairs of the user of one random observed row and the item of another: observed and repeated pairs are left out.

    Returns:
        ``(count,)`` ascending keys.

    Raises:
        UserError: almost every pair that can be drawn is observed.
    """
    found = np.empty(0, dtype=np.int64)
    for _ in range(_ROUNDS):
        n = min(2 * (count - len(found)) + 64, _LARGEST_ROUND)
        rows = (draw(2 * n) * len(users)).astype(np.int64)
        keys = users[rows[:n]] * n_items + items[rows[n:]]
        near = np.minimum(np.searchsorted(observed, keys), len(observed) - 1)
        found = np.concatenate([found, keys[observed[near] != keys]])
        found = found[np.sort(np.unique(found, return_index=True)[1])][:count]  # in the order of their drawing
        if len(found) == count:
            return np.sort(found)
    raise UserError(
        f"The catalogue is too small: {_ROUNDS} rounds found {len(found):,} of {count:,} unobserved pairs of active "
        "users and popular items; lower the rate or take another kind of noise."
    )
