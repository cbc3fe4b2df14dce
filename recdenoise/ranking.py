"""Full ranking and its measures: blocked top-k with masks, recall / NDCG / precision / MRR / hit, protocols.

Definitions (RecBole's): with ``hits[j]`` telling whether rank ``j + 1`` holds one of the user's ``n`` true items,
recall@K = hits in the first K / n; precision@K = the same / K; NDCG@K = sum of 1 / log2(rank + 1) over hits, divided by
that sum for min(K, n) hits at the top; MRR@K = 1 / rank of the first hit within K, else 0; hit@K = 1 when there is any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from recdenoise.errors import TrainingError, UserError, unknown_name
from recdenoise.interactions import Interactions

ScoreBlock = Callable[[Tensor], Tensor]
Hopeless = Callable[[Tensor, int], Tensor]
MetricFunction = Callable[[Tensor, Tensor, Sequence[int]], Tensor]

# Scores in one block. A CPU is fastest while the block stays near its caches; a GPU needs enough rows to fill it.
_BLOCK_SCORES = {"cpu": 1 << 20, "cuda": 1 << 24}


@torch.no_grad()
def top_k(
    score_block: ScoreBlock,
    users: Tensor,
    k: int,
    n_items: int,
    *,
    mask: Interactions | None = None,
    block: int | None = None,
    first_item: int = 0,
) -> Tensor:
    """The k best items of every user among all items, by blocks of users.

    Args:
        score_block: takes (b,) user ids, returns (b, n_items) floating scores, higher is better. What it returns is
            copied into one work buffer and never written to.
        users: (U,) int64 ids.
        k: length of the lists, at most ``n_items - first_item``.
        n_items: number of item ids, padding included.
        mask: pairs never to recommend, for example what the user was trained on.
        block: users a block; by default so many that a block holds about a million scores (16 million on a GPU).
        first_item: 1 where item id 0 is padding, else 0.

    Returns:
        (U, k) int64, best first. Masked items, padding and items scored ``-inf`` never appear: a user with fewer
        items left has -1 in the remaining places. Equal scores come in no particular order.

    Raises:
        UserError: k is out of range, or a block has the wrong shape.
        TrainingError: a score is NaN.
    """
    if not 1 <= k <= n_items - first_item:
        raise UserError(f"k must be between 1 and the {n_items - first_item} items that can be ranked, not {k}.")
    if mask is not None and mask.n_items != n_items:
        raise UserError(f"The mask knows {mask.n_items} items, the ranking {n_items}.")
    if block is None:
        block = max(1, _BLOCK_SCORES["cpu" if users.device.type == "cpu" else "cuda"] // n_items)
    if block < 1:
        raise UserError(f"block must be at least 1 user, not {block}.")
    buffer: Tensor | None = None
    lists = torch.empty(len(users), k, dtype=torch.int64, device=users.device)
    for begin in range(0, len(users), block):
        chunk = users[begin : begin + block]
        given = score_block(chunk)
        if given.shape != (len(chunk), n_items) or not given.is_floating_point():
            raise UserError(
                f"The scores of {len(chunk)} users must be a floating tensor of shape ({len(chunk)}, {n_items}), not "
                f"{given.dtype} of {tuple(given.shape)}."
            )
        if buffer is None:
            wide = torch.promote_types(given.dtype, torch.float32)
            buffer = torch.empty(min(block, len(users)), n_items, dtype=wide, device=given.device)
            mask = None if mask is None else mask.to(given.device)
        # A copy costs a few per cent of the top-k, and spares callers a silent write into tensors they keep.
        scores = buffer[: len(chunk)].copy_(given)
        scores[:, :first_item] = -torch.inf
        if mask is not None:
            row, item = mask.rows(chunk.to(mask.device))
            scores.view(-1).index_fill_(0, row.mul_(n_items).add_(item), -torch.inf)
        best, order = scores.topk(k)
        # topk puts NaN above every number, so one look at the winners finds any NaN of the block.
        if bool(best[:, 0].isnan().any()):
            raise TrainingError("The model's scores hold NaN, so nothing can be ranked: its training has diverged.")
        lists[begin : begin + block] = order.masked_fill_(best == -torch.inf, -1)
    return lists


def hit_matrix(lists: Tensor, truth: Interactions, users: Tensor) -> Tensor:
    """Which places of the users' lists hold true items.

    Args:
        lists: (U, K) int64 item ids, best first, -1 for an empty place.
        truth: the true pairs.
        users: (U,) ids, one a row.

    Returns:
        (U, K) bool.
    """
    place = lists.to(truth.device)
    filled = place >= 0
    return truth.contains(users.to(truth.device)[:, None], place.clamp(min=0)) & filled


def recall(hits: Tensor, n_truth: Tensor, ks: Sequence[int]) -> Tensor:
    """recall@K of every user: hits (U, K) bool, n_truth (U,) -> (U, len(ks)) float64."""
    return _hits_until(hits, ks) / n_truth.clamp(min=1)[:, None]


def precision(hits: Tensor, n_truth: Tensor, ks: Sequence[int]) -> Tensor:
    """precision@K of every user: hits (U, K) bool, n_truth (U,) -> (U, len(ks)) float64."""
    return _hits_until(hits, ks) / torch.tensor(list(ks), dtype=torch.float64, device=hits.device)


def hit(hits: Tensor, n_truth: Tensor, ks: Sequence[int]) -> Tensor:
    """hit@K of every user: hits (U, K) bool, n_truth (U,) -> (U, len(ks)) float64 of 0 and 1."""
    return (_hits_until(hits, ks) > 0).to(torch.float64)


def ndcg(hits: Tensor, n_truth: Tensor, ks: Sequence[int]) -> Tensor:
    """NDCG@K of every user: hits (U, K) bool, n_truth (U,) -> (U, len(ks)) float64."""
    places = _places(hits, ks)
    discount = 1.0 / torch.log2(torch.arange(2, hits.shape[1] + 2, dtype=torch.float64, device=hits.device))
    gain = (hits * discount).cumsum(1)[:, places]
    ideal = discount.cumsum(0)[torch.minimum(places, n_truth.clamp(min=1)[:, None] - 1)]
    return gain / ideal


def mrr(hits: Tensor, n_truth: Tensor, ks: Sequence[int]) -> Tensor:
    """Reciprocal rank of the first hit within K: hits (U, K) bool, n_truth (U,) -> (U, len(ks)) float64."""
    places = _places(hits, ks)
    first = hits.to(torch.uint8).argmax(1)[:, None]
    reached = hits.any(1)[:, None] & (first <= places)
    return torch.where(reached, 1.0 / (first + 1).to(torch.float64), 0.0)


METRICS: dict[str, MetricFunction] = {
    "recall": recall,
    "ndcg": ndcg,
    "precision": precision,
    "mrr": mrr,
    "hit": hit,
}


def _places(hits: Tensor, ks: Sequence[int]) -> Tensor:
    if min(ks) < 1 or max(ks) > hits.shape[1]:
        raise UserError(f"Cut-offs must be between 1 and the list length {hits.shape[1]}, not {list(ks)}.")
    return torch.tensor(list(ks), device=hits.device) - 1


def _hits_until(hits: Tensor, ks: Sequence[int]) -> Tensor:
    return hits.cumsum(1)[:, _places(hits, ks)].to(torch.float64)


def parse_metric(name: str) -> tuple[str, int | None]:
    """Split ``recall@20`` into ``("recall", 20)`` and ``recall`` into ``("recall", None)``; upper case is accepted.

    Raises:
        UserError: the metric is unknown, or what follows ``@`` is no positive integer.
    """
    base, at, cut = name.strip().lower().partition("@")
    if base not in METRICS:
        raise unknown_name("metric", name, METRICS)
    if not at:
        return base, None
    if not (cut.isascii() and cut.isdigit() and int(cut) > 0):
        raise UserError(f"The metric {name!r} needs a positive whole number after '@', as in {base}@20.")
    return base, int(cut)


def plan_metrics(metrics: Sequence[str], topk: Sequence[int]) -> dict[str, list[int]]:
    """Cut-offs of every metric: ``recall`` is asked at each of ``topk``, ``recall@20`` at 20.

    Raises:
        UserError: unknown metric, no metric, no cut-off, or a cut-off that is no positive integer.
    """
    for k in topk:
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise UserError(f"topk must hold positive whole numbers, not {k!r}.")
    plan: dict[str, list[int]] = {}
    for name in metrics:
        base, cut = parse_metric(name)
        wanted = plan.setdefault(base, [])
        wanted.extend(k for k in (topk if cut is None else [cut]) if k not in wanted)
        if not wanted:
            raise UserError(f"The metric {name!r} needs a cut-off: give topk, or write {base}@20.")
    if not plan:
        raise UserError(f"No metric was asked for. Valid: {', '.join(sorted(METRICS))}.")
    return plan


@dataclass(frozen=True)
class RankingResult:
    """Measures of one ranking.

    Attributes:
        mean: mean over ``users`` in float64, keyed ``recall@20``.
        per_user: (n_users,) float64 each, parallel to ``users``.
        users: ids of the users in the mean.
        n_users: how many they are.
        n_unseen_users: users with a true item who have no training pair; in the mean only under ``keep_unseen_users``.
        n_unseen_items: distinct true items without a training pair.
        n_masked_truth: true pairs that the mask makes unreachable; left out only under ``drop_masked_truth``.
        n_without_truth: users asked for who have no true item (left): never in the mean.
        warm: mean over users seen in training, and
        cold: mean over the others; both ``None`` unless both kinds exist.
        counts: further counts, from whoever made the lists.
        user_tokens: names of ``users`` where they have names.
    """

    mean: dict[str, float]
    per_user: dict[str, Tensor]
    users: Tensor
    n_users: int
    n_unseen_users: int = 0
    n_unseen_items: int = 0
    n_masked_truth: int = 0
    n_without_truth: int = 0
    warm: dict[str, float] | None = None
    cold: dict[str, float] | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    user_tokens: tuple[str, ...] | None = None

    def to_dict(self, per_user: bool = False) -> dict[str, Any]:
        """Plain numbers, strings and lists, as JSON and YAML take them; ``per_user`` adds the values of every user."""
        names = ("n_users", "n_unseen_users", "n_unseen_items", "n_masked_truth", "n_without_truth")
        plain: dict[str, Any] = {"mean": dict(self.mean)}
        plain |= {name: getattr(self, name) for name in names} | dict(self.counts)
        if self.warm is not None and self.cold is not None:
            plain |= {"warm": dict(self.warm), "cold": dict(self.cold)}
        if per_user:
            plain["users"] = list(self.user_tokens) if self.user_tokens is not None else self.users.tolist()
            plain["per_user"] = {name: values.tolist() for name, values in self.per_user.items()}
        return plain


def evaluate(
    score_block: ScoreBlock,
    truth: Interactions,
    *,
    topk: Sequence[int],
    metrics: Sequence[str] = ("recall", "ndcg"),
    mask: Interactions | None = None,
    users: Tensor | None = None,
    train: Interactions | None = None,
    keep_unseen_users: bool = True,
    drop_masked_truth: bool = False,
    block: int | None = None,
    first_item: int = 0,
    hopeless: Hopeless | None = None,
) -> RankingResult:
    """Rank all items for every user with a true item and measure the lists.

    The ``paper`` protocol is ``keep_unseen_users=True, drop_masked_truth=False``: users never seen in training stay in
    the mean, and true items hidden by the mask stay in the denominators. The ``clean`` protocol is the opposite of
    both.

    Args:
        score_block: as in :func:`top_k`.
        truth: the true pairs.
        topk: cut-offs.
        metrics: names of :data:`METRICS`, or with their own cut-off as ``recall@20``.
        mask: pairs never to recommend.
        users: ids to evaluate, on the device the scores are made on; by default everybody with a true item.
        train: training pairs, to tell who and what was seen. Needed for ``keep_unseen_users=False``.
        keep_unseen_users: whether users without a training pair count in the mean.
        drop_masked_truth: whether true pairs in ``mask`` are forgotten before anything is counted.
        block: users a block, as in :func:`top_k`.
        first_item: 1 where item id 0 is padding, else 0.
        hopeless: takes (b,) user ids and the deepest cut-off K, returns (b,) bool: users known to have no true item
            among their K best. They count with every measure 0, and nothing is scored for them.

    Raises:
        UserError: unknown metric, a cut-off beyond the catalogue, NaN scores, or nobody left to evaluate.
    """
    plan = plan_metrics(metrics, topk)
    deepest = max(k for ks in plan.values() for k in ks)
    if mask is not None:
        truth.require_same_ids(mask)
    known = truth.counts() > 0
    if users is None:
        users = known.nonzero()[:, 0]
    if len(users) and not 0 <= int(users.min()) <= int(users.max()) < truth.n_users:
        raise UserError(f"A user to evaluate is out of range: valid are 0 to {truth.n_users - 1}.")
    ranked = users[known[users.to(truth.device)].to(users.device)]
    hopeful = slice(None) if hopeless is None else ~hopeless(ranked, deepest)
    lists = torch.full((len(ranked), deepest), -1, dtype=torch.int64, device=ranked.device)
    lists[hopeful] = top_k(
        score_block, ranked[hopeful], deepest, truth.n_items, mask=mask, block=block, first_item=first_item
    )
    result = evaluate_lists(
        lists,
        ranked,
        truth,
        topk=topk,
        metrics=metrics,
        mask=mask,
        train=train,
        keep_unseen_users=keep_unseen_users,
        drop_masked_truth=drop_masked_truth,
    )
    return replace(result, n_without_truth=result.n_without_truth + len(users) - len(ranked))


def evaluate_lists(
    lists: Tensor,
    users: Tensor,
    truth: Interactions,
    *,
    topk: Sequence[int],
    metrics: Sequence[str] = ("recall", "ndcg"),
    mask: Interactions | None = None,
    train: Interactions | None = None,
    keep_unseen_users: bool = True,
    drop_masked_truth: bool = False,
) -> RankingResult:
    """Measure lists that exist already: (U, K) item ids, -1 for an empty place, row ``i`` for ``users[i]``.

    The other arguments, the result and the errors are those of :func:`evaluate`. The mask is not applied to the lists;
    it only tells which true pairs were out of reach.
    """
    plan = plan_metrics(metrics, topk)
    if not keep_unseen_users and train is None:
        raise UserError("Leaving out users unseen in training (the clean protocol) needs the training pairs.")
    users = users.to(truth.device)
    mask = None if mask is None else mask.to(truth.device)
    n_masked = len(truth) if mask is not None else 0
    if mask is not None:
        reachable = truth.minus(mask)
        n_masked -= len(reachable)
        truth = reachable if drop_masked_truth else truth
    n_truth = truth.counts()[users]
    counted = n_truth > 0
    users, n_truth, lists = users[counted], n_truth[counted], lists.to(truth.device)[counted]
    hits = hit_matrix(lists, truth, users)
    names = [f"{name}@{k}" for name, ks in plan.items() for k in ks]
    values = torch.cat([METRICS[name](hits, n_truth, ks) for name, ks in plan.items()], dim=1)

    seen = torch.ones_like(users, dtype=torch.bool)
    n_unseen_items = 0
    if train is not None:
        truth.require_same_ids(train)
        train = train.to(truth.device)
        seen = train.counts()[users] > 0
        n_unseen_items = int(((truth.item_popularity() > 0) & (train.item_popularity() == 0)).sum())
    keep = torch.ones_like(seen) if keep_unseen_users else seen
    if not bool(keep.any()):
        raise UserError("Nobody is left to evaluate: no user has a true item" + (" to reach." if n_masked else "."))
    both = bool(seen.any()) and not bool(seen.all())
    kept = values[keep]
    return RankingResult(
        mean=_means(names, kept),
        per_user={name: kept[:, column].clone() for column, name in enumerate(names)},
        users=users[keep],
        n_users=int(keep.sum()),
        n_unseen_users=int((~seen).sum()),
        n_unseen_items=n_unseen_items,
        n_masked_truth=n_masked,
        n_without_truth=int((~counted).sum()),
        warm=_means(names, values[seen]) if both else None,
        cold=_means(names, values[~seen]) if both else None,
    )


def _means(names: list[str], values: Tensor) -> dict[str, float]:
    return dict(zip(names, values.mean(0).tolist(), strict=True))
