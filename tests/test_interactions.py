from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recdenoise.errors import UserError
from recdenoise.interactions import Interactions


@st.composite
def pair_sets(draw: st.DrawFn) -> tuple[list[tuple[int, int]], int, int]:
    n_users, n_items = draw(st.integers(1, 9)), draw(st.integers(1, 30))
    pair = st.tuples(st.integers(0, n_users - 1), st.integers(0, n_items - 1))
    return draw(st.lists(pair, max_size=60)), n_users, n_items


def build(pairs: list[tuple[int, int]], n_users: int, n_items: int) -> Interactions:
    return Interactions.from_pairs([u for u, _ in pairs], [i for _, i in pairs], n_users, n_items)


def as_set(interactions: Interactions) -> set[tuple[int, int]]:
    return set(zip(interactions.users().tolist(), interactions.items.tolist(), strict=True))


@settings(max_examples=80, deadline=None)
@given(pair_sets())
def test_everything_equals_a_python_set(given_pairs: tuple[list[tuple[int, int]], int, int]) -> None:
    pairs, n_users, n_items = given_pairs
    stored, expected = build(pairs, n_users, n_items), set(pairs)
    assert len(stored) == len(expected)
    assert stored.n_duplicates == len(pairs) - len(expected)
    assert as_set(stored) == expected
    for user in range(n_users):
        mine = stored.items[stored.indptr[user] : stored.indptr[user + 1]].tolist()
        assert mine == sorted(i for u, i in expected if u == user)
    assert stored.counts().tolist() == [sum(u == user for u, _ in expected) for user in range(n_users)]
    assert stored.item_popularity().tolist() == [sum(i == item for _, i in expected) for item in range(n_items)]
    assert stored.keys.tolist() == sorted(u * n_items + i for u, i in expected)
    grid = stored.contains(torch.arange(n_users)[:, None], torch.arange(n_items))
    assert grid.tolist() == [[(u, i) in expected for i in range(n_items)] for u in range(n_users)]


@settings(max_examples=40, deadline=None)
@given(pair_sets(), st.data())
def test_rows_scatter_a_block_of_users(
    given_pairs: tuple[list[tuple[int, int]], int, int], data: st.DataObject
) -> None:
    pairs, n_users, n_items = given_pairs
    users = data.draw(st.lists(st.integers(0, n_users - 1), max_size=12))
    row, item = build(pairs, n_users, n_items).rows(torch.tensor(users, dtype=torch.int64))
    expected = [(at, i) for at, user in enumerate(users) for i in sorted({i for u, i in pairs if u == user})]
    assert list(zip(row.tolist(), item.tolist(), strict=True)) == expected


@settings(max_examples=40, deadline=None)
@given(pair_sets(), st.data())
def test_union_and_minus(given_pairs: tuple[list[tuple[int, int]], int, int], data: st.DataObject) -> None:
    pairs, n_users, n_items = given_pairs
    pair = st.tuples(st.integers(0, n_users - 1), st.integers(0, n_items - 1))
    more = data.draw(st.lists(pair, max_size=40))
    one, two = build(pairs, n_users, n_items), build(more, n_users, n_items)
    assert as_set(one.union(two)) == set(pairs) | set(more)
    assert one.union(two).n_duplicates == len(set(pairs) & set(more))
    assert as_set(one.minus(two)) == set(pairs) - set(more)


def test_contains_at_size_where_the_filter_matters() -> None:
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 500, 20_000), rng.integers(0, 2_000, 20_000)
    stored = Interactions.from_pairs(users, items, 500, 2_000)
    expected = {(int(u), int(i)) for u, i in zip(users, items, strict=True)}
    ask_u, ask_i = rng.integers(0, 500, (400, 100)), rng.integers(0, 2_000, (400, 100))
    found = stored.contains(torch.from_numpy(ask_u), torch.from_numpy(ask_i))
    asked = zip(ask_u.ravel().tolist(), ask_i.ravel().tolist(), strict=True)
    assert found.view(-1).tolist() == [pair in expected for pair in asked]
    assert bool(stored.contains(stored.users(), stored.items).all())
    maybe = stored._filter[0]
    assert maybe.dtype == torch.bool
    assert maybe.numel() <= 32 * len(stored)  # grows with the pairs, not with users x items


def test_moving_to_the_same_device_is_free() -> None:
    stored = build([(0, 1)], 2, 3)
    assert stored.to("cpu") is stored


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_equals_cpu() -> None:
    rng = np.random.default_rng(0)
    stored = Interactions.from_pairs(rng.integers(0, 50, 2_000), rng.integers(0, 99, 2_000), 50, 99)
    users, items = torch.arange(50)[:, None], torch.arange(99)
    there = stored.to("cuda")
    assert torch.equal(stored.contains(users, items), there.contains(users.cuda(), items.cuda()).cpu())
    for here, moved in zip(stored.rows(users[:, 0]), there.rows(users[:, 0].cuda()), strict=True):
        assert torch.equal(here, moved.cpu())


def test_bad_ids_are_refused() -> None:
    with pytest.raises(UserError, match=r"user id 5 is out of range: valid are 0 to 4"):
        Interactions.from_pairs([5], [0], 5, 5)
    with pytest.raises(UserError, match="item id -1 is out of range"):
        Interactions.from_pairs([0], [-1], 5, 5)
    with pytest.raises(UserError, match="one length"):
        Interactions.from_pairs([0, 1], [0], 5, 5)
    with pytest.raises(UserError, match="must be integers"):
        Interactions.from_pairs([0.5], [0], 5, 5)
    stored = build([(0, 1)], 2, 3)
    with pytest.raises(UserError, match="item id 3 is out of range"):
        stored.contains(torch.tensor([0]), torch.tensor([3]))
    with pytest.raises(UserError, match="2 x 3 ids do not go with 2 x 4"):
        stored.union(build([], 2, 4))
