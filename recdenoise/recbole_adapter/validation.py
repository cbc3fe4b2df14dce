"""Held-out loss and ranking metrics of a scorer, for model selection."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from recdenoise import ranking, seeds
from recdenoise.interactions import Interactions
from recdenoise.recbole_adapter.loaders import WholeRows
from recdenoise.recbole_adapter.task import RecBoleTask
from recdenoise.sampling import NegativeSampler
from recdenoise.task import Call

TRIM = 0.2
"""Share of the validation positives, those with the largest loss, that ``trimmed`` leaves out (ERM_RE)."""


class PairValidation:
    """Validates on held-out pairs.

    ``loss`` is what plain training would minimise on them: mean cross-entropy over the held-out positives plus the same
    over one unobserved pair for each, drawn once. ``trimmed_loss`` leaves out the 20% largest positive losses. Metrics
    rank all items with the training pairs masked.

    Args:
        task: scores pairs, knows the training pairs.
        users, items: ``(n,)`` int64 held-out pairs.
    """

    def __init__(self, task: RecBoleTask, users: Tensor, items: Tensor) -> None:
        self.task = task
        self.users, self.items = users.to(task.device), items.to(task.device)
        self.truth = Interactions.from_pairs(self.users, self.items, task.n_users, task.n_items)

    @cached_property
    def negatives(self) -> Tensor:
        """One item for each held-out pair that its user has in neither set."""
        sampler = NegativeSampler(self.task.data.lists.union(self.truth), first_item=1)
        return sampler.sample(self.users, seeds.generator(self.task.device, self.task.seed, "validation"))

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
        users, items = self.users.repeat(2), torch.cat([self.items, self.negatives])
        logits = self.task.scan_pairs(score, users, items).double()
        positive, negative = F.softplus(-logits[:n]), F.softplus(logits[n:]).mean()
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
        )
        return result.mean
