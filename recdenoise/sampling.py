"""Negative sampling: one unobserved item for every user asked, a whole epoch in one call.

Uniform draws are what DeCA and plain training use; popularity draws (count in train to the power ``beta``) are WBPR's
(Gantner et al., "Personalized Ranking for Non-Uniformly Sampled Items", KDD Cup 2011 workshop).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recdenoise.errors import UserError, unknown_name
from recdenoise.interactions import Interactions

DISTRIBUTIONS = ("uniform", "popularity")

# After so many redraws the few pairs still colliding are drawn from the allowed items directly.
_REDRAWS = 12
# Cells of the (users x items) bool block of that direct draw.
_BLOCK_CELLS = 1 << 22


class NegativeSampler:
    """Draws items that a user was not observed with.

    With ``reject`` every draw follows the distribution conditioned on the user's unobserved items, exactly: drawing
    again until the pair is unobserved and drawing from the unobserved items directly have the same law, so the
    switch from the first to the second after a few rounds changes nothing but the time it takes.

    Under ``popularity`` items without a training pair have probability 0. A user who has seen every other item gets
    one of those items uniformly.

    Args:
        interactions: the observed training pairs; only they count, for rejection and for popularity.
        distribution: ``"uniform"`` or ``"popularity"``.
        beta: exponent of the popularity, at least 0; 1 follows the count, 0 is uniform over items with a count.
        reject: never return an observed pair. ``False`` draws without looking, as DeCA's public code does.
        first_item: 1 where item id 0 is padding, else 0.

    Raises:
        UserError: unknown distribution, a negative exponent, no item to draw, or (with ``reject``) users who have
            observed every item.
    """

    def __init__(
        self,
        interactions: Interactions,
        distribution: str = "uniform",
        beta: float = 1.0,
        reject: bool = True,
        first_item: int = 0,
    ) -> None:
        if distribution not in DISTRIBUTIONS:
            raise unknown_name("negative distribution", distribution, DISTRIBUTIONS)
        if not (math.isfinite(beta) and beta >= 0):
            raise UserError(f"The popularity exponent beta must be a number of at least 0, not {beta}.")
        if first_item not in (0, 1):
            raise UserError(f"first_item must be 0 or 1 (item 0 is padding), not {first_item}.")
        self.interactions = interactions
        self.distribution = distribution
        self.beta = beta
        self.reject = reject
        self.first_item = first_item
        self._catalogue = interactions.n_items - first_item
        if self._catalogue < 1:
            raise UserError(f"There is no item to draw: n_items is {interactions.n_items}.")
        if first_item and bool((interactions.items == 0).any()):
            raise UserError("Item 0 is padding here (first_item=1), yet an observed pair holds it.")
        if reject:
            self._refuse_full_users()
        self._weights: Tensor | None = None
        if distribution == "popularity":
            count = interactions.item_popularity().to(torch.float64)
            if not bool(count.any()):
                raise UserError("Popularity sampling needs at least one observed pair.")
            # Divided by the largest count first: a large exponent then underflows to 0 instead of overflowing.
            self._weights = torch.where(count > 0, (count / count.max()).pow(beta), torch.zeros_like(count))
            self._accept, self._alias = alias_table(self._weights)

    def _refuse_full_users(self) -> None:
        full = (self.interactions.counts() >= self._catalogue).nonzero()[:, 0]
        if len(full):
            shown = ", ".join(str(int(user)) for user in full[:5]) + (", ..." if len(full) > 5 else "")
            raise UserError(
                f"{len(full)} users have observed all {self._catalogue} items (ids {shown}), so no negative exists for "
                "them; leave them out of the training pairs."
            )

    @torch.no_grad()
    def sample(self, users: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw one item for every entry of ``users``.

        Args:
            users: (n,) integer ids on the interactions' device, in any order, with repeats.
            generator: source of randomness on the same device; the same state gives the same items.

        Returns:
            (n,) int64 items in ``[first_item, n_items)``.

        Raises:
            UserError: ``users`` is not a vector or holds an id out of range.
        """
        n_items = self.interactions.n_items
        if users.ndim != 1:
            raise UserError(f"Users to sample for must be a vector, not of shape {tuple(users.shape)}.")
        if len(users):
            low, high = (int(value) for value in torch.aminmax(users))
            if low < 0 or high >= self.interactions.n_users:
                valid = f"0 to {self.interactions.n_users - 1}"
                raise UserError(f"User id {low if low < 0 else high} is out of range: valid are {valid}.")
        items = self._draw(len(users), generator)
        if not self.reject:
            return items
        row_start = users.to(torch.int64) * n_items
        again = self.interactions.find(row_start + items)
        for _ in range(_REDRAWS):
            if not len(again):
                return items
            fresh = self._draw(len(again), generator)
            items.index_copy_(0, again, fresh)
            again = again.index_select(0, self.interactions.find(row_start.index_select(0, again) + fresh))
        if len(again):
            items[again] = self._draw_allowed(users.index_select(0, again), generator)
        return items

    def _draw(self, n: int, generator: torch.Generator | None) -> Tensor:
        """n independent draws that look at no user."""
        device = self.interactions.device
        if self._weights is None:
            return torch.randint(self.first_item, self.interactions.n_items, (n,), generator=generator, device=device)
        # One uniform number serves both choices of the alias method: integer part the column, fraction the coin.
        # (first_item needs no care: a weight of 0 is never accepted and never an alias.)
        place = torch.rand(n, generator=generator, device=device, dtype=torch.float64).mul_(len(self._weights))
        column = place.to(torch.int64).clamp_(max=len(self._weights) - 1)
        keep = place.sub_(column) < self._accept.index_select(0, column)
        return torch.where(keep, column, self._alias.index_select(0, column))

    def _draw_allowed(self, users: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw from each user's unobserved items directly; exact, for the few pairs that redrawing did not settle."""
        device, n_items = self.interactions.device, self.interactions.n_items
        uniform = torch.rand(len(users), generator=generator, device=device, dtype=torch.float64)
        some, owner = torch.unique(users.to(torch.int64), return_inverse=True)
        weights = torch.ones(n_items, dtype=torch.float64, device=device) if self._weights is None else self._weights
        drawn = torch.empty(len(users), dtype=torch.int64, device=device)
        step = max(1, _BLOCK_CELLS // n_items)
        for begin in range(0, len(some), step):
            block = some[begin : begin + step]
            free = torch.ones(len(block), n_items, dtype=torch.bool, device=device)
            free[:, : self.first_item] = False
            free[self.interactions.rows(block)] = False
            likely = free & (weights > 0)
            stuck = ~likely.any(1)
            row, item = torch.where(stuck[:, None], free, likely).nonzero(as_tuple=True)
            # By each user's largest weight: one sum over all users would swallow the rare items of some.
            largest = torch.where(likely, weights, 0.0).amax(1)
            mass = torch.where(stuck[row], 1.0, weights[item] / largest[row]).cumsum(0)
            last = torch.bincount(row, minlength=len(block)).cumsum(0) - 1
            first = torch.cat([last.new_zeros(1), last[:-1] + 1])
            below = torch.where(first > 0, mass[(first - 1).clamp_(min=0)], 0.0)
            here = ((owner >= begin) & (owner < begin + len(block))).nonzero()[:, 0]
            mine = owner[here] - begin
            target = below[mine] + uniform[here] * (mass[last] - below)[mine]
            place = torch.searchsorted(mass, target, right=True)
            drawn[here] = item[torch.minimum(torch.maximum(place, first[mine]), last[mine])]
        return drawn


def alias_table(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Tables for drawing from a discrete distribution by one lookup (Walker's alias method), built without a loop.

    Scaled to mean 1, a weight below 1 leaves a deficit that some weight above 1 must fill. Laying all deficits and all
    excesses end to end on one line, a deficit is filled by the excess in which it begins; an excess that is used up by
    a deficit reaching beyond it ends below 1 itself and is filled by the next excess.

    Args:
        weights: (n,) float64, at least 0, with a positive sum.

    Returns:
        ``(accept, alias)``: column ``j``, drawn uniformly, is kept with probability ``accept[j]``, else it becomes
        ``alias[j]``. A weight of 0 is never kept and never an alias.
    """
    scaled = weights * (len(weights) / weights.sum())
    accept = scaled.clamp(max=1.0)
    alias = torch.arange(len(weights), device=weights.device)
    large = (scaled >= 1).nonzero()[:, 0]
    small = (scaled < 1).nonzero()[:, 0]
    if not len(large) or not len(small):  # all equal, up to rounding
        return torch.ones_like(accept), alias
    # bounds[i] is where the deficit of small[i] begins, bounds[i + 1] where it ends.
    bounds = torch.cat([scaled.new_zeros(1), (1 - scaled[small]).cumsum(0)])
    excess = (scaled[large] - 1).cumsum(0)
    alias[small] = large[torch.searchsorted(excess, bounds[:-1], right=True).clamp_(max=len(large) - 1)]
    ends = bounds[torch.searchsorted(bounds, excess).clamp_(max=len(bounds) - 1)]
    accept[large] = (1 - (ends - excess).clamp_(min=0)).clamp_(min=0)
    alias[large[:-1]] = large[1:]
    # Rounding may leave the last excess short of its deficit; it keeps its whole column either way.
    accept[large[-1]] = 1.0
    return accept, alias
