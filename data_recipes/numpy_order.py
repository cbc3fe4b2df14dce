"""The order in which NumPy up to 1.24 sorted integers by default.

Public splits were cut with ``np.argsort`` and its default, unstable quicksort. Where keys tie, the result is an
accident of the algorithm: a stable sort gives other rows, and so may a newer NumPy, which sorts with the processor's
vector instructions. To cut the same rows today the algorithm itself has to be walked through, step by step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SHORT_RUN = 15
"""Runs whose last minus first position is at most this are finished by insertion."""


def unstable_argsort(keys: Sequence[Any]) -> list[int]:
    """Return the positions that sort ``keys``, ties broken as NumPy up to 1.24 broke them.

    Quicksort with the median of the first, middle and last key as pivot; the smaller side of a partition is sorted
    first, runs of up to 16 entries by insertion. NumPy also changes to heapsort once a run was partitioned more than
    ``2 * log2(n)`` times; only adversarial keys get there, and this function leaves that out.

    Args:
        keys: ``n`` comparable keys, as a list (plain numbers compare several times faster than NumPy scalars).

    Returns:
        ``n`` positions; ``[keys[p] for p in positions]`` ascends.
    """
    order = list(range(len(keys)))
    postponed: list[tuple[int, int]] = [(0, len(keys) - 1)]
    while postponed:
        first, last = postponed.pop()
        while last - first > SHORT_RUN:
            cut = _partition(keys, order, first, last)
            if cut - first < last - cut:
                postponed.append((cut + 1, last))
                last = cut - 1
            else:
                postponed.append((first, cut - 1))
                first = cut + 1
        _insertion_sort(keys, order, first, last)
    return order


def _partition(keys: Sequence[Any], order: list[int], first: int, last: int) -> int:
    """Partition ``order[first:last + 1]`` around the median of three; return where the pivot came to lie."""
    middle = first + (last - first) // 2
    for low, high in ((first, middle), (middle, last), (first, middle)):
        if keys[order[high]] < keys[order[low]]:
            order[low], order[high] = order[high], order[low]
    pivot = keys[order[middle]]
    # The pivot waits next to the end; first and last are already on their own sides, so they stop both walks.
    parked = last - 1
    order[middle], order[parked] = order[parked], order[middle]
    left, right = first, parked
    while True:
        left += 1
        while keys[order[left]] < pivot:
            left += 1
        right -= 1
        while pivot < keys[order[right]]:
            right -= 1
        if left >= right:
            break
        order[left], order[right] = order[right], order[left]
    order[left], order[parked] = order[parked], order[left]
    return left


def _insertion_sort(keys: Sequence[Any], order: list[int], first: int, last: int) -> None:
    for position in range(first + 1, last + 1):
        moving = order[position]
        key = keys[moving]
        slot = position
        while slot > first and key < keys[order[slot - 1]]:
            order[slot] = order[slot - 1]
            slot -= 1
        order[slot] = moving
