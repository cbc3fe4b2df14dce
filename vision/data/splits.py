"""Which rows train and which validate: a function of the seed, the same on every machine."""

from __future__ import annotations

import numbers

import numpy as np
import torch
from torch import Tensor

from recdenoise.errors import UserError
from recdenoise.noise import uniform_draws


def split(
    n: int, labels: Tensor | None, valid: float | int, seed: int, *, stratify: bool = False
) -> tuple[Tensor, Tensor]:
    """Divide rows 0 to n - 1 into a training and a validation part.

    Args:
        n: number of rows.
        labels: ``(n,)`` the given, noisy, labels; read only to ``stratify``.
        valid: share of the rows that validate, or their number; 0 gives none.
        seed: everything follows from it.
        stratify: give every class its share, to within a row, instead of a plain random draw.

    Returns:
        ``(train, valid)``: int64 rows on the CPU, both ascending.

    Raises:
        UserError: ``valid`` leaves no row to train on, asks for less than a row, or is negative.
    """
    count = _count(n, valid)
    order = np.argsort(uniform_draws(seed, "split")(n), kind="stable")
    if not stratify:
        chosen = order[:count]
    else:
        if labels is None or len(labels) != n:
            raise UserError(f"A stratified split of {n} rows needs the label of each.")
        kinds = labels.detach().cpu().numpy()[order]
        by_class = order[np.argsort(kinds, kind="stable")]
        sizes = np.unique(kinds, return_counts=True)[1]
        # Rounding goes over the running total: the sum is exact and every class less than a row off.
        shares = np.diff(np.cumsum(sizes) * count // n, prepend=0)
        starts = np.cumsum(sizes) - sizes
        chosen = np.concatenate([by_class[start : start + share] for start, share in zip(starts, shares, strict=True)])
    held = np.zeros(n, dtype=bool)
    held[chosen] = True
    rows = np.arange(n)
    return torch.from_numpy(rows[~held]), torch.from_numpy(rows[held])


def _count(n: int, valid: float | int) -> int:
    whole = isinstance(valid, numbers.Integral) and not isinstance(valid, bool)  # NumPy's numbers, too
    if isinstance(valid, bool) or not isinstance(valid, numbers.Real) or not valid >= 0 or (not whole and valid >= 1):
        raise UserError(f"The validation part is {valid!r}; it must be a share, 0 to below 1, or a number of rows.")
    count = int(valid) if whole else int(n * float(valid) + 0.5)
    if count == 0 and valid > 0:
        raise UserError(f"A validation share of {float(valid):g} is less than one row of {n}; raise it, or say 0.")
    if count >= n:
        raise UserError(f"{count:,} rows to validate leave none of {n:,} to train on.")
    return count
