"""Batches of an epoch: every observed pair once, negatives never observed, the same from any starting step."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from recdenoise.interactions import Interactions
from recdenoise.recbole_adapter.loaders import Observed, PairLoader, Pairs, RowLoader
from recdenoise.task import Batch, Pass

N_USERS, N_ITEMS = 9, 12  # padding included: users 1 to 8, items 1 to 11


def observed(pairs: list[tuple[int, int]], batch_size: int, seed: int = 5) -> Observed:
    users, items = torch.tensor(pairs, dtype=torch.int64).T.contiguous()
    return Observed(users, items, Interactions.from_pairs(users, items, N_USERS, N_ITEMS), seed, batch_size)


def some_pairs(n: int, seed: int = 0) -> list[tuple[int, int]]:
    """n pairs, some of them repeated; user 8 has none."""
    generator = torch.Generator().manual_seed(seed)
    users = torch.randint(1, N_USERS - 1, (n,), generator=generator).tolist()
    items = torch.randint(1, N_ITEMS - 3, (n,), generator=generator).tolist()
    return list(zip(users, items, strict=True))


def pair_loader(data: Observed, *key: int, sweep: Pass | None = None) -> PairLoader:
    sweep = sweep or Pass()
    return PairLoader(data, data.sampler(sweep), key)


def row_loader(data: Observed, *key: int) -> RowLoader:
    return RowLoader(data, data.sampler(Pass()), key)


def flat(batch: Batch) -> list[Tensor]:
    assert isinstance(batch.inputs, Pairs)
    rows = list(batch.inputs.rows) if batch.inputs.rows is not None else []
    return [batch.index, batch.inputs.users, batch.inputs.items, batch.label, torch.tensor(batch.groups), *rows]


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(flat(x), flat(y), strict=True)
    )


pairs_of_ids = st.lists(st.tuples(st.integers(1, N_USERS - 1), st.integers(1, N_ITEMS - 2)), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(pairs_of_ids, st.integers(1, 50), st.integers(0, 3))
def test_pairs_epoch_holds_every_observed_pair_once(pairs: list[tuple[int, int]], batch: int, epoch: int) -> None:
    data = observed(pairs, batch)
    loader = pair_loader(data, 0, epoch, 0)
    batches = list(loader.batches())
    assert len(batches) == len(loader) == -(-len(pairs) // batch)
    rows: list[int] = []
    for number, each in enumerate(batches):
        n = min(batch, len(pairs) - number * batch)
        assert each.groups == (n, n)
        assert each.label.tolist() == [1.0] * n + [0.0] * n
        assert each.label.dtype == torch.float32
        assert each.index[n:].tolist() == [-1] * n
        inputs = each.inputs
        assert inputs.users.dtype == inputs.items.dtype == torch.int64
        assert [pairs[row] for row in each.index[:n]] == list(
            zip(inputs.users[:n].tolist(), inputs.items[:n].tolist(), strict=True)
        )
        # every positive has a negative of the same user, at the same place
        assert inputs.users[n:].tolist() == inputs.users[:n].tolist()
        for user, item in zip(inputs.users[n:].tolist(), inputs.items[n:].tolist(), strict=True):
            assert (user, item) not in pairs
            assert 1 <= item < N_ITEMS
        rows += each.index[:n].tolist()
    assert sorted(rows) == list(range(len(pairs)))


@pytest.mark.parametrize("make", [pair_loader, row_loader])
def test_starting_at_a_step_equals_skipping_to_it(make: type) -> None:
    data = observed(some_pairs(47), 5 if make is pair_loader else 2)
    everything = list(make(data, 0, 1, 0).batches())
    assert len(everything) > 2
    for start in range(len(everything) + 1):
        assert same(list(make(data, 0, 1, 0).batches(start)), everything[start:])
    assert same(list(make(data, 0, 1, 0).batches(2)), everything[2:]), "draws of a step depend on earlier ones"


@pytest.mark.parametrize("make", [pair_loader, row_loader])
def test_the_key_and_the_seed_alone_decide(make: type) -> None:
    pairs = some_pairs(40)
    first = list(make(observed(pairs, 4), 0, 1, 0).batches())
    torch.rand(100)  # the global generator has no say
    assert same(list(make(observed(pairs, 4), 0, 1, 0).batches()), first)
    for other in ((0, 2, 0), (1, 1, 0), (0, 1, 1)):
        assert not same(list(make(observed(pairs, 4), *other).batches()), first)
    assert not same(list(make(observed(pairs, 4, seed=6), 0, 1, 0).batches()), first)


def test_the_published_sampler_does_not_reject() -> None:
    pairs = [(user, item) for user in range(1, N_USERS) for item in range(1, N_ITEMS - 1)]
    data = observed(pairs, len(pairs))
    (batch,) = pair_loader(data, 0, sweep=Pass(reject=False)).batches()
    drawn = zip(batch.inputs.users[len(pairs) :].tolist(), batch.inputs.items[len(pairs) :].tolist(), strict=True)
    share = sum(pair in pairs for pair in drawn) / len(pairs)
    assert share > 0.7  # ten of eleven items are observed


def test_popularity_reaches_the_loader() -> None:
    pairs = [(user, 3) for user in range(1, N_USERS - 1)] + [(7, 4), (8, 5)] * 40
    data = observed(pairs, 1000)
    (batch,) = pair_loader(data, 0, sweep=Pass("popularity")).batches()
    drawn = Counter(batch.inputs.items[len(pairs) :][batch.inputs.users[len(pairs) :] == 8].tolist())
    # User 8 has item 5; item 3 has seven users, item 4 has one, all others none.
    assert set(drawn) <= {3, 4}
    assert drawn[3] > drawn[4] > 0


@settings(max_examples=60, deadline=None)
@given(pairs_of_ids, st.integers(1, 10), st.integers(0, 3))
def test_rows_epoch_holds_every_user_with_all_positives(pairs: list[tuple[int, int]], batch: int, epoch: int) -> None:
    data = observed(pairs, batch)
    loader = row_loader(data, 0, epoch, 0)
    active = sorted({user for user, _ in pairs})
    batches = list(loader.batches())
    assert len(batches) == len(loader) == -(-len(active) // batch)
    met: list[int] = []
    for each in batches:
        users, row = each.inputs.rows
        n = each.groups[0]
        assert each.groups == (n, n)
        assert len(users) == len(set(users.tolist())) <= batch
        assert torch.equal(users[row], each.inputs.users)
        mine = {pair for pair in pairs if pair[0] in users.tolist()}
        positives = list(zip(each.inputs.users[:n].tolist(), each.inputs.items[:n].tolist(), strict=True))
        assert len(positives) == len(mine)  # distinct pairs, whatever is repeated in the file
        assert set(positives) == mine
        # the index leads to the first row of the file that holds the pair
        assert each.index[:n].tolist() == [pairs.index(pair) for pair in positives]
        assert each.index[n:].tolist() == [-1] * n
        assert each.label.tolist() == [1.0] * n + [0.0] * n
        for user, item in zip(each.inputs.users[n:].tolist(), each.inputs.items[n:].tolist(), strict=True):
            assert user in users.tolist()
            assert (user, item) not in pairs
            assert 1 <= item < N_ITEMS
        met += users.tolist()
    assert sorted(met) == active


def test_zeros_are_even_over_the_zeros_of_the_batch() -> None:
    """Not even over users: a user with one zero left gets a ninth of what a user with nine zeros gets."""
    pairs = [(1, item) for item in range(1, N_ITEMS - 1)]  # one zero left: item 11
    pairs += [(2, 1), (2, 2)] + [(3, item) for item in range(1, 7)]  # nine and five zeros
    data = observed(pairs, 3)
    counts: Counter[tuple[int, int]] = Counter()
    for epoch in range(700):
        for batch in row_loader(data, 0, epoch).batches():
            n = batch.groups[0]
            counts.update(zip(batch.inputs.users[n:].tolist(), batch.inputs.items[n:].tolist(), strict=True))
    zeros = [(user, item) for user in (1, 2, 3) for item in range(1, N_ITEMS) if (user, item) not in pairs]
    assert len(zeros) == 1 + 9 + 5
    assert set(counts) == set(zeros)
    assert stats.chisquare([counts[zero] for zero in zeros]).pvalue > 1e-3
    # The test has the power to tell: even over users is rejected out of hand.
    expected = [len(pairs) * 700 / 3 / len([z for z in zeros if z[0] == user]) for user, _ in zeros]
    assert stats.chisquare([counts[zero] for zero in zeros], expected).pvalue < 1e-12
