"""Context sets of CIT against plain loops: who may lend a context to whom, and how often."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recdenoise.errors import UserError
from vision.contexts import ContextSets, stratify_b, stratify_c_given_a

A = torch.tensor([5, 5, 2, 2, 2, 9])
B = torch.tensor([0, 1, 0, 0, 3, 1])


def shares(sets: ContextSets, row: int, draws: int = 4000) -> list[float]:
    """How often each row lends its context to ``row``."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([sets.draw(generator) for _ in range(draws)])[:, row]
    return (torch.bincount(drawn, minlength=len(sets)) / draws).tolist()


def loop_set(a: Tensor, row: int) -> list[int]:
    """Algorithm 1, lines 4 to 7: the contexts of images with the same A."""
    return [other for other in range(len(a)) if a[other] == a[row]]


@pytest.mark.parametrize("row", range(6))
def test_c_given_a_takes_every_image_with_the_same_a_equally_often(row: int) -> None:
    sets, allowed = stratify_c_given_a(A), loop_set(A, row)
    found = shares(sets, row)
    assert sets.sizes[row] == len(allowed)
    for other, share in enumerate(found):
        assert share == pytest.approx(1 / len(allowed) if other in allowed else 0.0, abs=0.03)


@pytest.mark.parametrize(
    ("prior", "chance"),
    [
        ("uniform", {0: 1.0, 1: 1.0, 3: 1.0}),
        ("observed", {0: 3.0, 1: 2.0, 3: 1.0}),
        ((0.2, 0.7, 5.0, 0.1), {0: 0.2, 1: 0.7, 3: 0.1}),
    ],
)
@pytest.mark.parametrize("row", range(6))
def test_b_is_drawn_by_its_prior_and_an_image_of_that_a_and_b_shows_it(
    prior: object, chance: dict[int, float], row: int
) -> None:
    with_a = loop_set(A, row)
    there = {int(B[other]) for other in with_a}  # a b that no image has with this a cannot be shown
    whole = sum(chance[b] for b in there)
    found = shares(stratify_b(A, B, prior), row)  # type: ignore[arg-type]
    for other, share in enumerate(found):
        wanted = 0.0
        if other in with_a:
            b = int(B[other])
            wanted = chance[b] / whole / sum(int(B[each]) == b for each in with_a)
        assert share == pytest.approx(wanted, abs=0.03)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=60), st.integers(0, 2**31))
def test_every_context_has_the_same_a(rows: list[tuple[int, int]], seed: int) -> None:
    a, b = (torch.tensor(column) for column in zip(*rows, strict=True))
    generator = torch.Generator().manual_seed(seed)
    for sets in (stratify_c_given_a(a), stratify_b(a, b), stratify_b(a, b, "observed")):
        assert torch.equal(a[sets.draw(generator)], a)


def test_a_value_of_probability_zero_is_never_shown() -> None:
    a, b = torch.zeros(300, dtype=torch.int64), torch.arange(300) % 3
    for prior, gone in (((0.0, 1.0, 1.0), 0), ((1.0, 0.0, 1.0), 1), ((1.0, 1.0, 0.0), 2)):
        sets = stratify_b(a, b, prior)
        assert not (b[sets.draw()] == gone).any()
        assert (sets.sizes == 200).all()


def test_an_image_alone_in_its_stratum_keeps_its_own_context() -> None:
    assert (torch.stack([stratify_c_given_a(A).draw()[5] for _ in range(20)]) == 5).all()


def test_the_global_generator_draws_where_none_is_given_and_each_draw_differs() -> None:
    sets = stratify_c_given_a(torch.zeros(100, dtype=torch.int64))
    torch.manual_seed(3)
    first = sets.draw()
    assert not torch.equal(first, sets.draw())
    torch.manual_seed(3)
    assert torch.equal(first, sets.draw())


def test_bad_values_are_refused_in_a_sentence() -> None:
    with pytest.raises(UserError, match=r"A must be one whole number for each image.*float32"):
        stratify_c_given_a(torch.rand(3))
    with pytest.raises(UserError, match="6 values of A and 2 of B"):
        stratify_b(A, B[:2])
    with pytest.raises(UserError, match="'even'; it must be uniform, observed or a list"):
        stratify_b(A, B, "even")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="one number, zero or more, for each value of B: 0 to 3"):
        stratify_b(A, B, (0.5, 0.5))
    with pytest.raises(UserError, match="gives probability 0 to every value of B that occurs"):
        stratify_b(A, B, (1.0, 0.0, 0.0, 0.0))
