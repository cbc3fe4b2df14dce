from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recdenoise.errors import UserError
from recdenoise.interactions import Interactions
from recdenoise.ranking import (
    METRICS,
    RankingResult,
    evaluate,
    evaluate_lists,
    hit_matrix,
    parse_metric,
    plan_metrics,
    top_k,
)

NAMES = list(METRICS)


def interactions(pairs: dict[int, list[int]], n_users: int, n_items: int) -> Interactions:
    flat = [(u, i) for u, items in pairs.items() for i in items]
    return Interactions.from_pairs([u for u, _ in flat], [i for _, i in flat], n_users, n_items)


def by_hand(ranked: list[int], truth: set[int], k: int) -> dict[str, float]:
    """All measures of one list at one cut-off, item by item."""
    hits = [item in truth for item in ranked[:k]]
    dcg = sum(1 / math.log2(place + 2) for place, good in enumerate(hits) if good)
    ideal = sum(1 / math.log2(place + 2) for place in range(min(k, len(truth))))
    first = next((1 / (place + 1) for place, good in enumerate(hits) if good), 0.0)
    return {
        "recall": sum(hits) / len(truth),
        "precision": sum(hits) / k,
        "ndcg": dcg / ideal,
        "mrr": first,
        "hit": float(any(hits)),
    }


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_top_k_equals_sorting(data: st.DataObject) -> None:
    n_users, n_items = data.draw(st.integers(1, 8)), data.draw(st.integers(2, 15))
    first = data.draw(st.integers(0, 1))
    k = data.draw(st.integers(1, n_items - first))
    seed = data.draw(st.integers(0, 10_000))
    scores = torch.stack(
        [torch.randperm(n_items, generator=torch.Generator().manual_seed(seed + u)).float() for u in range(n_users)]
    )
    pair = st.tuples(st.integers(0, n_users - 1), st.integers(0, n_items - 1))
    masked = data.draw(st.lists(pair, max_size=60))
    mask = Interactions.from_pairs([u for u, _ in masked], [i for _, i in masked], n_users, n_items)
    users = torch.tensor(data.draw(st.lists(st.integers(0, n_users - 1), min_size=1, max_size=12)))
    block = data.draw(st.one_of(st.none(), st.integers(1, 5)))
    lists = top_k(lambda u: scores[u], users, k, n_items, mask=mask, block=block, first_item=first)
    for row, user in enumerate(users.tolist()):
        allowed = [i for i in range(first, n_items) if (user, i) not in masked]
        best = sorted(allowed, key=lambda i: -float(scores[user, i]))[:k]
        assert lists[row].tolist() == best + [-1] * (k - len(best))


def test_top_k_leaves_the_given_scores_alone_and_takes_any_view() -> None:
    scores = torch.rand(3, 6)
    kept = scores.clone()
    mask = interactions({0: [1, 2], 2: [0]}, 3, 6)
    top_k(lambda u: scores, torch.arange(3), 2, 6, mask=mask, first_item=1)
    assert torch.equal(scores, kept)
    popularity = torch.tensor([5.0, 4, 3, 2, 1, 0], dtype=torch.float16)
    lists = top_k(lambda u: popularity.expand(len(u), -1), torch.arange(3), 2, 6, mask=mask)
    assert lists.tolist() == [[0, 3], [0, 1], [1, 2]]


def test_top_k_refuses_what_cannot_be_ranked() -> None:
    users = torch.arange(2)
    with pytest.raises(UserError, match="k must be between 1 and the 4 items"):
        top_k(lambda u: torch.rand(len(u), 5), users, 5, 5, first_item=1)
    with pytest.raises(UserError, match=r"shape \(2, 5\)"):
        top_k(lambda u: torch.rand(len(u), 4), users, 2, 5)
    with pytest.raises(UserError, match="mask knows 3 items"):
        top_k(lambda u: torch.rand(len(u), 5), users, 2, 5, mask=interactions({}, 2, 3))
    spoiled = torch.rand(2, 5)
    spoiled[1, 3] = torch.nan
    with pytest.raises(UserError, match="NaN"):
        top_k(lambda u: spoiled[u], users, 2, 5)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_metrics_equal_a_plain_loop(data: st.DataObject) -> None:
    n_users, n_items = data.draw(st.integers(1, 6)), data.draw(st.integers(4, 20))
    lists, truth = [], {}
    longest = data.draw(st.integers(1, 8))
    for user in range(n_users):
        order = data.draw(st.permutations(range(n_items)))
        full = order[: data.draw(st.integers(0, longest))]
        lists.append((full + [-1] * longest)[:longest])
        truth[user] = data.draw(st.lists(st.integers(0, n_items - 1), min_size=1, max_size=6, unique=True))
    ks = data.draw(st.lists(st.integers(1, longest), min_size=1, max_size=4, unique=True))
    result = evaluate_lists(
        torch.tensor(lists), torch.arange(n_users), interactions(truth, n_users, n_items), topk=ks, metrics=NAMES
    )
    for k in ks:
        rows = [by_hand(lists[user], set(truth[user]), k) for user in range(n_users)]
        for name in NAMES:
            values = [row[name] for row in rows]
            np.testing.assert_allclose(result.per_user[f"{name}@{k}"].numpy(), values, atol=1e-12)
            assert result.mean[f"{name}@{k}"] == pytest.approx(sum(values) / n_users, abs=1e-12)


def test_metrics_equal_recbole() -> None:
    for alias, target in (("float", float), ("bool", bool), ("long", int), ("str", str), ("float_", np.float64)):
        if alias not in np.__dict__:
            setattr(np, alias, target)
    theirs = pytest.importorskip("recbole.evaluator.metrics")
    rng = np.random.default_rng(0)
    n_truth = rng.integers(1, 40, 300)
    hits = rng.random((300, 20)) < 0.15
    ks = [1, 3, 5, 10, 20]
    judges = (theirs.Recall, theirs.NDCG, theirs.Precision, theirs.MRR, theirs.Hit)
    for name, judge in zip(("recall", "ndcg", "precision", "mrr", "hit"), judges, strict=True):
        arguments = (hits, n_truth) if name in ("recall", "ndcg") else (hits,)
        expected = judge.metric_info(judge.__new__(judge), *arguments)[:, [k - 1 for k in ks]]
        ours = METRICS[name](torch.from_numpy(hits), torch.from_numpy(n_truth), ks)
        assert ours.dtype == torch.float64
        np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=1e-12)


def checkerboard(n: int) -> tuple[torch.Tensor, Interactions, Interactions]:
    """Even users like even items, odd users odd ones; the diagonal is the test, the rest of a colour is training."""
    board = (torch.arange(n)[:, None] + torch.arange(n)) % 2 == 0
    test = torch.eye(n, dtype=torch.bool)
    train = board & ~test
    as_pairs = [Interactions.from_pairs(rows, columns, n, n) for rows, columns in (test.nonzero().T, train.nonzero().T)]
    return board.float(), as_pairs[0], as_pairs[1]


def test_checkerboard_is_solved_only_with_the_mask() -> None:
    scores, truth, train = checkerboard(10)
    solved = evaluate(lambda u: scores[u], truth, topk=[1, 3], metrics=NAMES, mask=train)
    assert solved.n_users == 10
    for name in NAMES:
        assert solved.mean[f"{name}@1"] == 1.0
    assert solved.mean["precision@3"] == pytest.approx(1 / 3)
    wrong = evaluate(lambda u: -scores[u], truth, topk=[5], metrics=NAMES, mask=train)
    assert set(wrong.mean.values()) == {0.0}


# Users: 0 cold, 1 all of the truth masked, 2 warm, 3 without truth, 4 warm with half of the truth masked.
TRUTH = {0: [0], 1: [1], 2: [2], 4: [3, 4]}
MASK = {1: [1], 2: [0], 4: [3]}
TRAIN = {1: [1], 2: [0], 4: [5]}
SCORES = torch.tensor([[5.0, 4, 3, 2, 1, 0, -1]]).expand(5, -1)


def protocol(paper: bool, users: torch.Tensor | None = None) -> RankingResult:
    return evaluate(
        lambda u: SCORES[u],
        interactions(TRUTH, 5, 7),
        topk=[2],
        metrics=["recall"],
        mask=interactions(MASK, 5, 7),
        train=interactions(TRAIN, 5, 7),
        users=users,
        keep_unseen_users=paper,
        drop_masked_truth=not paper,
    )


def test_paper_protocol_keeps_unseen_users_and_unreachable_items() -> None:
    result = protocol(paper=True)
    assert result.users.tolist() == [0, 1, 2, 4]
    assert result.per_user["recall@2"].tolist() == [1.0, 0.0, 1.0, 0.0]
    assert result.mean == {"recall@2": 0.5}
    assert (result.n_users, result.n_unseen_users, result.n_masked_truth, result.n_without_truth) == (4, 1, 2, 0)
    assert result.warm == {"recall@2": pytest.approx(1 / 3)}
    assert result.cold == {"recall@2": 1.0}
    assert result.n_unseen_items == 3  # items 2, 3 and 4


def test_clean_protocol_leaves_both_out() -> None:
    result = protocol(paper=False, users=torch.arange(5))
    assert result.users.tolist() == [2, 4]
    assert result.per_user["recall@2"].tolist() == [1.0, 0.0]
    assert (result.n_users, result.n_unseen_users, result.n_masked_truth, result.n_without_truth) == (2, 1, 2, 2)
    assert result.warm == result.mean
    assert result.cold == {"recall@2": 1.0}


def test_result_as_plain_types() -> None:
    plain = protocol(paper=True).to_dict(per_user=True)
    assert json.loads(json.dumps(plain)) == plain
    assert plain["mean"] == {"recall@2": 0.5}
    assert plain["per_user"]["recall@2"] == [1.0, 0.0, 1.0, 0.0]
    assert plain["n_unseen_users"] == 1
    assert "per_user" not in protocol(paper=True).to_dict()


def test_evaluation_refuses_what_cannot_work() -> None:
    truth = interactions(TRUTH, 5, 7)
    with pytest.raises(UserError, match="needs the training pairs"):
        evaluate(lambda u: SCORES[u], truth, topk=[2], keep_unseen_users=False)
    with pytest.raises(UserError, match="k must be between 1 and the 7 items"):
        evaluate(lambda u: SCORES[u], truth, topk=[8])
    with pytest.raises(UserError, match="Nobody is left"):
        evaluate(lambda u: SCORES[u], interactions({}, 5, 7), topk=[2])
    with pytest.raises(UserError, match="to reach"):
        evaluate(lambda u: SCORES[u], truth, topk=[2], mask=truth, drop_masked_truth=True)
    with pytest.raises(UserError, match="out of range: valid are 0 to 4"):
        evaluate(lambda u: SCORES[u], truth, topk=[2], users=torch.tensor([5]))
    with pytest.raises(UserError, match="do not go with"):
        evaluate(lambda u: SCORES[u], truth, topk=[2], mask=interactions({}, 4, 7))
    with pytest.raises(UserError, match="Cut-offs must be between 1 and the list length 3"):
        evaluate_lists(torch.zeros(5, 3, dtype=torch.int64), torch.arange(5), truth, topk=[4])


def test_metric_names() -> None:
    assert parse_metric("recall@20") == ("recall", 20)
    assert parse_metric("NDCG") == ("ndcg", None)
    assert plan_metrics(["recall", "ndcg@5", "recall@50"], [10, 20]) == {"recall": [10, 20, 50], "ndcg": [5]}
    with pytest.raises(UserError, match=r"Unknown metric 'recal@20'.*Valid: hit, mrr, ndcg, precision, recall"):
        parse_metric("recal@20")
    for bad in ("recall@", "recall@0", "recall@x", "recall@-1", "recall@²"):
        with pytest.raises(UserError, match="positive whole number"):
            parse_metric(bad)
    with pytest.raises(UserError, match="positive whole numbers, not 0"):
        plan_metrics(["recall"], [0])
    with pytest.raises(UserError, match="needs a cut-off"):
        plan_metrics(["recall"], [])
    with pytest.raises(UserError, match="No metric"):
        plan_metrics([], [5])


def test_hit_matrix_ignores_empty_places() -> None:
    truth = interactions({0: [0], 1: [2]}, 2, 3)
    lists = torch.tensor([[-1, 0], [2, -1]])
    assert hit_matrix(lists, truth, torch.tensor([0, 1])).tolist() == [[False, True], [True, False]]


def test_published_movielens_split_by_popularity(real_data: Path) -> None:
    folder = real_data / "recsys" / "ml-100k"

    def load(name: str) -> list[tuple[int, int]]:
        rows = (folder / f"ml-100k.{name}").read_text().split("\n")
        return [(int(row.split("\t")[0]), int(row.split("\t")[1])) for row in rows if row.strip()]

    train, valid, clean = load("train.rating"), load("valid.rating"), load("test.negative")
    n_users = 1 + max(u for u, _ in train + valid + clean)
    n_items = 1 + max(i for _, i in train + valid + clean)
    truth, seen, held = (
        Interactions.from_pairs([u for u, _ in rows], [i for _, i in rows], n_users, n_items)
        for rows in (clean, train, valid)
    )
    count = [0] * n_items
    for _, item in train:
        count[item] += 1
    order = sorted(range(n_items), key=lambda item: (-count[item], item))
    score = torch.tensor(count, dtype=torch.float64) - torch.arange(n_items, dtype=torch.float64) / (n_items + 1)
    ks = [3, 5, 10, 20]
    mask = seen.union(held)
    result = evaluate(lambda u: score.expand(len(u), -1), truth, topk=ks, mask=mask, train=seen)

    hidden = set(train) | set(valid)
    wanted: dict[int, set[int]] = {}
    for user, item in clean:
        wanted.setdefault(user, set()).add(item)
    lists = {u: [i for i in order if (u, i) not in hidden][:20] for u in wanted}
    assert result.users.tolist() == sorted(wanted)
    assert result.n_users == 707
    assert result.n_masked_truth == 1_707
    for k in ks:
        rows = [by_hand(lists[u], wanted[u], k) for u in sorted(wanted)]
        for name in ("recall", "ndcg"):
            assert result.mean[f"{name}@{k}"] == pytest.approx(sum(r[name] for r in rows) / 707, abs=1e-12)
    assert result.mean["recall@20"] > 0.03

    def oracle(users: torch.Tensor) -> torch.Tensor:
        return truth.contains(users[:, None], torch.arange(n_items)).float()

    most = evaluate(oracle, truth, topk=[300], metrics=["recall"], mask=mask)
    assert most.mean["recall@300"] == pytest.approx(0.517, abs=5e-4)
    assert int((most.per_user["recall@300"] == 0).sum()) == 128
    reachable = evaluate(oracle, truth, topk=[300], metrics=["recall"], mask=mask, train=seen,
                         keep_unseen_users=False, drop_masked_truth=True)  # fmt: skip
    assert reachable.mean["recall@300"] == 1.0
    assert reachable.n_users == 707 - 128
