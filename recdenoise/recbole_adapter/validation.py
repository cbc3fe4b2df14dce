"""Held-out loss and ranking metrics of a scorer, for model selection."""

from __future__ import annotations

from functools import cached_property, partial

import torch
from torch import Tensor
from torch.nn import functional as F

from recdenoise import ranking, seeds
from recdenoise.interactions import Interactions
from recdenoise.recbole_adapter.loaders import Pairs, WholeRows
from recdenoise.recbole_adapter.task import RecBoleTask
from recdenoise.sampling import NegativeSampler
from recdenoise.task import Call

TRIM = 0.2
"""Share of the validation positives, those with the largest loss, that ``trimmed`` leaves out (ERM_RE)."""

RIVALS = 256
"""Popular items against which a user's held-out items are held before all items are scored for the user."""

_SLACK = 1e-4
"""A rival counts when it is ahead by this much, absolutely and relatively: far more than two orders of summation do."""


class PairValidation:
    """Validates on held-out pairs.

    ``loss`` is what plain training would minimise on them: mean cross-entropy over the held-out positives plus the same
    over one unobserved pair for each, drawn once. ``trimmed_loss`` leaves out the 20% largest positive losses. Metrics
    rank all items with the training pairs masked. Where each pair of that costs a network's pass, a user whose held-out
    items are all behind K popular ones is not ranked: the measures at K are 0 whatever the other items score.

    Args:
        task: scores pairs, knows the training pairs.
        users, items: ``(n,)`` int64 held-out pairs.
    """

    def __init__(self, task: RecBoleTask, users: Tensor, items: Tensor) -> None:
        self.task = task
        self.users, self.items = users.to(task.device), items.to(task.device)
        self.truth = Interactions.from_pairs(self.users, self.items, task.n_users, task.n_items)

    @cached_property
    def negatives(self) -> tuple[Tensor, Tensor]:
        """``(users, items)``: one item for each held-out pair that its user has in neither set.

        Users who have every item between the two sets are left out.
        """
        lists, n_users, n_items = self.task.data.lists, self.task.n_users, self.task.n_items
        some = lists.union(self.truth).counts()[self.users] < n_items - 1
        users = self.users[some]
        held = Interactions.from_pairs(users, self.items[some], n_users, n_items)
        sampler = NegativeSampler(lists.union(held), first_item=1)
        return users, sampler.sample(users, seeds.generator(self.task.device, self.task.seed, "validation"))

    @torch.no_grad()
    def __call__(self, score: Call, wanted: set[str]) -> dict[str, float]:
        values: dict[str, float] = {}
        if wanted & {"loss", "trimmed_loss"}:
            values = self.losses(score)
        metrics = sorted(wanted - {"loss", "trimmed_loss"})
        if metrics:
            values |= self.rank(score, metrics)
        return {name: values[name] for name in wanted}

    def losses(self, score: Call) -> dict[str, float]:
        """Both validation losses."""
        n = len(self.users)
        users, items = (torch.cat(ids) for ids in zip((self.users, self.items), self.negatives, strict=True))
        logits = self.task.scan_pairs(score, users, items).double()
        positive, negative = F.softplus(-logits[:n]), F.softplus(logits[n:]).sum() / max(1, len(users) - n)
        kept = positive.sort().values[: max(1, n - int(TRIM * n))]
        return {"loss": (positive.mean() + negative).item(), "trimmed_loss": (kept.mean() + negative).item()}

    def rank(self, score: Call, metrics: list[str]) -> dict[str, float]:
        """Ranking metrics such as ``ndcg@20``."""
        result = ranking.evaluate(
            lambda users: score(WholeRows(users)),
            self.truth,
            topk=[],
            metrics=metrics,
            mask=self.task.data.lists,
            first_item=1,
            hopeless=None if self.rivals is None else partial(self.beaten, score, self.rivals),
        )
        return result.mean

    @cached_property
    def rivals(self) -> Tensor | None:
        """``(RIVALS,)`` items with the most training pairs; ``None`` where asking them first would not pay."""
        if not self.task.ranks_by_pairs or self.task.n_items < 4 * RIVALS:
            return None
        popularity = self.task.data.lists.item_popularity()
        popularity[0] = -1  # padding
        return popularity.topk(RIVALS).indices

    def beaten(self, score: Call, rivals: Tensor, users: Tensor, k: int) -> Tensor:
        """Which users have at least ``k`` rivals, none of them masked, ahead of all their held-out items.

        Args:
            score: scores pairs.
            rivals: ``(r,)`` item ids.
            users: ``(b,)`` distinct ids with held-out items.
            k: the deepest cut-off.

        Returns:
            ``(b,)`` bool. A user whose own or whose rivals' scores hold NaN is not beaten, so that ranking meets the
            NaN and says so.
        """
        if k > len(rivals):
            return torch.zeros_like(users, dtype=torch.bool)
        held = self.task.scan_pairs(score, self.users, self.items)
        held = held.masked_fill(self.task.data.lists.contains(self.users, self.items), -torch.inf)  # never in a list
        best = held.new_full((self.task.n_users,), -torch.inf).scatter_reduce_(0, self.users, held, "amax")[users]
        bar = torch.where(best == -torch.inf, best, best + _SLACK * (1 + best.abs()))
        answers, block = [], max(1, self.task.scan_pairs_at_once // len(rivals))
        for some, level in zip(users.split(block), bar.split(block), strict=True):
            scores = score(Pairs(some.repeat_interleave(len(rivals)), rivals.repeat(len(some)))).view(len(some), -1)
            masked = self.task.data.lists.contains(some[:, None], rivals)
            ahead = ((scores > level[:, None]) & ~masked).sum(1) >= k
            answers.append(ahead & ~scores.isnan().any(1))
        return torch.cat(answers)
