from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import recdenoise.sampling
from recdenoise.errors import UserError
from recdenoise.interactions import Interactions
from recdenoise.sampling import NegativeSampler, alias_table

# Four users over eight items (0 is padding): light, heavy, all but one, one who saw nothing.
SEEN = {1: [1, 2], 2: [1, 2, 3, 4, 5], 3: [1, 2, 3, 4, 5, 6], 4: []}
N_USERS, N_ITEMS = 5, 8


def small() -> Interactions:
    pairs = [(user, item) for user, items in SEEN.items() for item in items]
    return Interactions.from_pairs([u for u, _ in pairs], [i for _, i in pairs], N_USERS, N_ITEMS)


def expected_law(user: int, distribution: str, beta: float, reject: bool) -> np.ndarray:
    """The exact probabilities, by a plain loop."""
    weights = np.zeros(N_ITEMS)
    for item in range(1, N_ITEMS):
        count = sum(item in items for items in SEEN.values())
        weights[item] = 1.0 if distribution == "uniform" else (count**beta if count else 0.0)
        if reject and item in SEEN[user]:
            weights[item] = 0.0
    if weights.sum() == 0:
        weights = np.array([float(item > 0 and item not in SEEN[user]) for item in range(N_ITEMS)])
    return weights / weights.sum()


@pytest.mark.parametrize("redraws", [0, 1, 12])
@pytest.mark.parametrize("reject", [True, False])
@pytest.mark.parametrize(
    ("distribution", "beta"), [("uniform", 1.0), ("popularity", 1.0), ("popularity", 0.5), ("popularity", 0.0)]
)
def test_draws_follow_the_exact_conditional_law(
    monkeypatch: pytest.MonkeyPatch, distribution: str, beta: float, reject: bool, redraws: int
) -> None:
    monkeypatch.setattr(recdenoise.sampling, "_REDRAWS", redraws)
    sampler = NegativeSampler(small(), distribution, beta=beta, reject=reject, first_item=1)
    n = 20_000
    users = torch.arange(1, N_USERS).repeat(n)
    items = sampler.sample(users, torch.Generator().manual_seed(7))
    for user in SEEN:
        law = expected_law(user, distribution, beta, reject)
        counts = np.bincount(items[users == user].numpy(), minlength=N_ITEMS)
        assert counts[law == 0].sum() == 0
        if (law > 0).sum() > 1:
            assert stats.chisquare(counts[law > 0], law[law > 0] * n).pvalue > 1e-3


def test_the_direct_draw_in_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recdenoise.sampling, "_REDRAWS", 0)
    rng = np.random.default_rng(1)
    seen = Interactions.from_pairs(rng.integers(0, 40, 900), rng.integers(0, 60, 900), 40, 60)
    users = torch.arange(40).repeat(200)[torch.randperm(8_000, generator=torch.Generator().manual_seed(0))]
    whole = NegativeSampler(seen, "popularity").sample(users, torch.Generator().manual_seed(3))
    monkeypatch.setattr(recdenoise.sampling, "_BLOCK_CELLS", 60 * 7)
    parts = NegativeSampler(seen, "popularity").sample(users, torch.Generator().manual_seed(3))
    assert torch.equal(whole, parts)
    assert not bool(seen.contains(users, whole).any())


def test_a_nearly_full_user_over_a_large_catalogue_ends_at_once() -> None:
    n_items = 5_000
    seen = Interactions.from_pairs(np.zeros(n_items - 1, dtype=int), np.arange(n_items - 1), 2, n_items)
    for distribution in ("uniform", "popularity"):
        drawn = NegativeSampler(seen, distribution).sample(torch.zeros(1_000, dtype=torch.int64))
        assert drawn.unique().tolist() == [n_items - 1]


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_never_observed_in_range_and_the_same_for_the_same_seed(data: st.DataObject) -> None:
    n_users, n_items = data.draw(st.integers(1, 8)), data.draw(st.integers(2, 20))
    first = data.draw(st.integers(0, 1))
    pair = st.tuples(st.integers(0, n_users - 1), st.integers(first, n_items - 1))
    pairs = data.draw(st.lists(pair, min_size=1, max_size=60))
    seen = Interactions.from_pairs([u for u, _ in pairs], [i for _, i in pairs], n_users, n_items)
    if bool((seen.counts() >= n_items - first).any()):
        with pytest.raises(UserError, match="observed all"):
            NegativeSampler(seen, first_item=first)
        return
    sampler = NegativeSampler(
        seen, data.draw(st.sampled_from(["uniform", "popularity"])), data.draw(st.floats(0, 50)), first_item=first
    )
    users = torch.tensor(data.draw(st.lists(st.integers(0, n_users - 1), max_size=50)), dtype=torch.int64)
    seed = data.draw(st.integers(0, 2**31))
    items = sampler.sample(users, torch.Generator().manual_seed(seed))
    assert items.shape == users.shape
    assert items.dtype == torch.int64
    assert bool(((items >= first) & (items < n_items)).all())
    assert not any(pair in pairs for pair in zip(users.tolist(), items.tolist(), strict=True))
    assert torch.equal(items, sampler.sample(users, torch.Generator().manual_seed(seed)))


def test_without_rejection_observed_pairs_come_at_their_rate() -> None:
    sampler = NegativeSampler(small(), reject=False, first_item=1)
    users = torch.full((20_000,), 2)
    hit = small().contains(users, sampler.sample(users, torch.Generator().manual_seed(0))).double().mean().item()
    assert hit == pytest.approx(5 / 7, abs=0.02)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.just(0.0), st.just(1.0), st.floats(1e-6, 1e6)), min_size=1, max_size=40))
def test_alias_table_holds_the_distribution(weights: list[float]) -> None:
    if sum(weights) == 0:
        return
    given_weights = torch.tensor(weights, dtype=torch.float64)
    accept, alias = alias_table(given_weights)
    assert bool(((accept >= 0) & (accept <= 1)).all())
    mass = [0.0] * len(weights)
    for column in range(len(weights)):
        mass[column] += float(accept[column]) / len(weights)
        mass[int(alias[column])] += (1 - float(accept[column])) / len(weights)
    np.testing.assert_allclose(mass, (given_weights / given_weights.sum()).numpy(), atol=1e-12)
    assert all(m == 0 for m, w in zip(mass, weights, strict=True) if w == 0)


def test_a_large_exponent_neither_overflows_nor_hangs() -> None:
    sampler = NegativeSampler(small(), "popularity", beta=5_000.0, first_item=1)
    items = sampler.sample(torch.tensor([1, 3, 4] * 100), torch.Generator().manual_seed(0))
    # Counts are 3, 3, 2, 2, 2, 1, 0: only items 1 and 2 keep any weight; user 1 and 3, who saw both, get the rest.
    assert set(items[2::3].tolist()) == {1, 2}
    assert set(items[1::3].tolist()) == {7}
    assert set(items[0::3].tolist()) == {3, 4, 5, 6, 7}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("distribution", ["uniform", "popularity"])
def test_gpu_is_deterministic_and_rejects(distribution: str) -> None:
    seen = small().to("cuda")
    sampler = NegativeSampler(seen, distribution, first_item=1)
    users = torch.arange(1, N_USERS, device="cuda").repeat(500)
    first, again = (sampler.sample(users, torch.Generator("cuda").manual_seed(5)) for _ in range(2))
    assert torch.equal(first, again)
    assert not bool(seen.contains(users, first).any())


def test_bad_input() -> None:
    with pytest.raises(UserError, match=r"Did you mean 'popularity'"):
        NegativeSampler(small(), "popularty")
    with pytest.raises(UserError, match="beta must be a number of at least 0"):
        NegativeSampler(small(), "popularity", beta=-1.0)
    with pytest.raises(UserError, match=r"1 users have observed all 7 items \(ids 0\)"):
        NegativeSampler(Interactions.from_pairs([0] * 7, range(1, 8), 2, 8), first_item=1)
    with pytest.raises(UserError, match="Item 0 is padding"):
        NegativeSampler(Interactions.from_pairs([0], [0], 2, 8), first_item=1)
    with pytest.raises(UserError, match="at least one observed pair"):
        NegativeSampler(Interactions.from_pairs([], [], 2, 8), "popularity")
    with pytest.raises(UserError, match="no item to draw"):
        NegativeSampler(Interactions.from_pairs([], [], 2, 1), first_item=1)
    with pytest.raises(UserError, match="User id 5 is out of range: valid are 0 to 4"):
        NegativeSampler(small()).sample(torch.tensor([5]))
    with pytest.raises(UserError, match="must be a vector"):
        NegativeSampler(small()).sample(torch.tensor([[1]]))


def test_rare_items_are_drawn_beside_users_who_can_draw_popular_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recdenoise.sampling, "_REDRAWS", 0)
    popular = [(user, item) for item in range(5) for user in range(2_000)]
    rare = [(2_000 + item, item) for item in range(5, 15)]
    narrow = [
        (2_100, item) for item in range(5)
    ]  # has every popular item: ten rare ones, as likely as each other, are left
    users, items = np.array(popular[:-1] + rare + narrow).T
    sampler = NegativeSampler(Interactions.from_pairs(users, items, 2_101, 15), "popularity", beta=5)
    asked = torch.cat([torch.arange(2_000, 2_010), torch.full((5_000,), 2_100)])
    drawn = sampler.sample(asked, torch.Generator().manual_seed(0))[10:]
    counts = np.bincount(drawn.numpy(), minlength=15)
    assert counts[:5].sum() == 0
    assert stats.chisquare(counts[5:]).pvalue > 1e-3
