"""Measures of finding noise against plain loops over pairs, thresholds and orders, and against answers by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from recdenoise.detection import auc, average_precision, measure, precision_at
from recdenoise.errors import UserError

# Few distinct scores, so that ties are the rule.
rows = st.lists(st.tuples(st.integers(-2, 3), st.booleans()), min_size=2, max_size=7)


def loop_auc(score: list[float], noise: list[bool]) -> float:
    """The chance that a noisy row stands above a clean one, pair by pair."""
    wins = [
        1.0 if score[i] > score[j] else 0.5 if score[i] == score[j] else 0.0
        for i in range(len(score))
        for j in range(len(score))
        if noise[i] and not noise[j]
    ]
    return sum(wins) / len(wins)


def loop_average_precision(score: list[float], noise: list[bool]) -> float:
    """Precision at every threshold, weighted by the recall that it adds."""
    found, area = 0, 0.0
    for threshold in sorted(set(score), reverse=True):
        taken = [n for s, n in zip(score, noise, strict=True) if s >= threshold]
        area += (sum(taken) - found) * sum(taken) / len(taken)
        found = sum(taken)
    return area / sum(noise)


def loop_precision(score: list[float], noise: list[bool], k: int) -> float:
    """The mean over every order that the scores allow."""
    orders = [
        order
        for order in itertools.permutations(range(len(score)))
        if all(score[a] >= score[b] for a, b in itertools.pairwise(order))
    ]
    return sum(sum(noise[i] for i in order[:k]) / k for order in orders) / len(orders)


@given(rows)
def test_measures_equal_plain_loops(pairs: list[tuple[int, bool]]) -> None:
    score, noise = [float(s) for s, _ in pairs], [n for _, n in pairs]
    assume(0 < sum(noise) < len(noise))
    assert auc(score, noise) == pytest.approx(loop_auc(score, noise))
    assert average_precision(score, noise) == pytest.approx(loop_average_precision(score, noise))
    k = max(1, len(score) // 2)
    assert precision_at(score, noise, k / len(score)) == pytest.approx(loop_precision(score, noise, k))


@given(rows, st.randoms())
def test_the_order_of_the_rows_changes_nothing(pairs: list[tuple[int, bool]], random: object) -> None:
    noise = [n for _, n in pairs]
    assume(0 < sum(noise) < len(noise))
    shuffled = list(pairs)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    first, second = (measure([s for s, _ in p], [n for _, n in p], [0.3]).to_dict() for p in (pairs, shuffled))
    assert first == pytest.approx(second)


def test_by_hand() -> None:
    found = measure([5, 4, 3, 2, 1], [True, False, True, False, False], shares=[0.2, 0.4, 0.6, 1.0])
    assert (found.n_rows, found.n_noise) == (5, 2)
    assert found.auc == pytest.approx(5 / 6)  # of six pairs only (3, 4) is the wrong way round
    assert found.average_precision == pytest.approx((1 + 2 / 3) / 2)
    assert found.precision == pytest.approx({0.2: 1.0, 0.4: 0.5, 0.6: 2 / 3, 1.0: 0.4})
    assert list(found.to_dict())[2:5] == ["auc", "average_precision", "precision@20%"]


def test_guessing_and_the_opposite() -> None:
    noise = [True, False, True, False]
    equal = measure([7.0] * 4, noise)
    assert (equal.auc, equal.average_precision, equal.precision[0.01]) == (0.5, 0.5, 0.5)
    assert auc([1, 2, 1, 2], noise) == 0.0
    assert auc([-math.inf, math.inf, -math.inf, 0], noise) == 0.0


def test_tiny_probabilities_keep_their_order() -> None:
    p_clean = np.array([1e-30, 1e-9, 0.5, 1.0], dtype=np.float32)
    assert auc(-p_clean, [True, False, False, False]) == 1.0


def test_many_rows_against_the_integral() -> None:
    """Noise in proportion to a uniform score s: densities 2 s and (1 - s / 2) / (3 / 4), hence an AUC of 13 / 18."""
    rng = np.random.default_rng(0)
    score = rng.random(1_000_000)
    noise = rng.random(1_000_000) < score / 2
    assert auc(score, noise) == pytest.approx(13 / 18, abs=2e-3)
    assert precision_at(score, noise, 0.01) == pytest.approx(0.995 / 2, abs=0.02)


@pytest.mark.parametrize(
    ("score", "noise", "said"),
    [
        ([1.0, 2.0], [False, False], "none are noise"),
        ([1.0, 2.0], [True, True], "all are noise"),
        ([1.0], [True, False], "one length"),
        ([[1.0], [2.0]], [[True], [False]], "vectors"),
        ([1.0, math.nan], [True, False], "not a number"),
    ],
)
def test_what_cannot_be_measured(score: list[float], noise: list[bool], said: str) -> None:
    with pytest.raises(UserError, match=said):
        measure(score, noise)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, math.nan])
def test_shares_out_of_range(share: float) -> None:
    with pytest.raises(UserError, match="above 0 and at most 1"):
        precision_at([1.0, 2.0], [True, False], share)
