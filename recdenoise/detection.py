"""How well a score finds the rows that are known to be noise: AUC, average precision, precision among the first.

All are functions of a ranking. Rows with equal scores have no order, so no measure depends on the one that they happen
to come in: AUC counts a tie as a half, average precision puts its thresholds between different scores only, and
precision takes the mean over all orders of the tied rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from recdenoise.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

SHARES = (0.01, 0.05, 0.1)
"""Shares of the rows, most suspicious first, at which precision is told."""


@dataclass(frozen=True)
class Detection:
    """How well one score finds the noise of one data set.

    Attributes:
        n_rows, n_noise: rows in all, and those known to be noise.
        auc: chance that a noisy row is more suspicious than a clean one; 0.5 by guessing.
        average_precision: area under precision over recall; ``n_noise / n_rows`` by guessing.
        precision: share of the rows -> share of noise among that many most suspicious ones.
    """

    n_rows: int
    n_noise: int
    auc: float
    average_precision: float
    precision: dict[float, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain types; precision as ``precision@5%``."""
        names = {f"precision@{share_name(share)}": value for share, value in self.precision.items()}
        return {
            "n_rows": self.n_rows,
            "n_noise": self.n_noise,
            "auc": self.auc,
            "average_precision": self.average_precision,
            **names,
        }


def share_name(share: float) -> str:
    """``0.05`` as ``5%``."""
    return f"{share * 100:g}%"


def measure(score: ArrayLike, noise: ArrayLike, shares: Sequence[float] = SHARES) -> Detection:
    """All measures of one score.

    Args:
        score: ``(n,)`` numbers, high for rows that look like noise.
        noise: ``(n,)`` booleans, true for rows that are.
        shares: where precision is taken.

    Raises:
        UserError: lengths differ, a score is not a number, or there is no noise or nothing else.

    Example:
        >>> measure([0.9, 0.8, 0.1], [True, False, False], shares=[0.5]).auc
        1.0
    """
    values, flags = _checked(score, noise)
    return Detection(
        len(values),
        int(flags.sum()),
        auc(values, flags),
        average_precision(values, flags),
        {share: precision_at(values, flags, share) for share in shares},
    )


def auc(score: ArrayLike, noise: ArrayLike) -> float:
    """Area under the ROC curve: the Mann-Whitney statistic over the number of pairs, ties counted as a half.

    Args:
        score: ``(n,)`` numbers, high for rows that look like noise.
        noise: ``(n,)`` booleans.

    Raises:
        UserError: as :func:`measure`.
    """
    noisy, total = _groups(*_checked(score, noise))
    clean = total - noisy
    clean_below = clean.sum() - np.cumsum(clean)  # groups come with the highest score first
    pairs = noisy.sum() * clean.sum()
    return float((noisy * (clean_below + 0.5 * clean)).sum() / pairs)


def average_precision(score: ArrayLike, noise: ArrayLike) -> float:
    """Sum over thresholds of precision times the recall that the threshold adds; no interpolation.

    Args:
        score: ``(n,)`` numbers, high for rows that look like noise.
        noise: ``(n,)`` booleans.

    Raises:
        UserError: as :func:`measure`.
    """
    noisy, total = _groups(*_checked(score, noise))
    precision = np.cumsum(noisy) / np.cumsum(total)
    return float((precision * noisy).sum() / noisy.sum())


def precision_at(score: ArrayLike, noise: ArrayLike, share: float) -> float:
    """Share of noise among the most suspicious rows; where the last of them tie with others, the mean over orders.

    Args:
        score: ``(n,)`` numbers, high for rows that look like noise.
        noise: ``(n,)`` booleans.
        share: of the rows, above 0 and at most 1; rounded to a whole number of rows, at least one.

    Raises:
        UserError: as :func:`measure`, or ``share`` is out of range.
    """
    if not 0 < share <= 1:
        raise UserError(f"The share is {share}; it must be above 0 and at most 1.")
    noisy, total = _groups(*_checked(score, noise))
    wanted = max(1, int(share * total.sum() + 0.5))
    ends = np.cumsum(total)
    last = int(np.searchsorted(ends, wanted))  # the group in which the wanted number is reached
    before = ends[last] - total[last]
    hits = noisy[:last].sum() + noisy[last] * (wanted - before) / total[last]
    return float(hits / wanted)


def _checked(score: ArrayLike, noise: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    values, flags = np.asarray(score, dtype=np.float64), np.asarray(noise, dtype=bool)
    if values.ndim != 1 or values.shape != flags.shape:
        raise UserError(f"Scores {values.shape} and noise flags {flags.shape} must be vectors of one length.")
    if np.isnan(values).any():
        raise UserError("A score is not a number.")
    n_noise = int(flags.sum())
    if n_noise in (0, len(flags)):
        what = "none" if n_noise == 0 else "all"
        raise UserError(f"Of {len(flags)} rows {what} are noise: there is nothing to tell apart.")
    return values, flags


def _groups(values: NDArray[np.float64], flags: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Noisy rows and all rows of every distinct score, the highest score first."""
    order = np.argsort(-values, kind="stable")
    ranked = values[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    noisy = np.add.reduceat(flags[order].astype(np.float64), starts)
    return noisy, np.diff(np.r_[starts, len(values)]).astype(np.float64)
