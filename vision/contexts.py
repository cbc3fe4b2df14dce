"""Context sets of causal interventional training: which image lends its context to which (Qin et al., 2023, step 2).

A set is never written out: images lie sorted by stratum, and a draw for every image of an epoch is a few operations on
whole columns. An image's own context is a member of its set, as in Algorithm 1: an image that is alone in its stratum
always keeps its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from recdenoise.errors import UserError

Prior = Literal["uniform", "observed"] | Sequence[float]
"""P(b): equal over the values that occur, their shares among the images, or one number for each value from 0 on."""


@dataclass(frozen=True, eq=False)
class ContextSets:
    """Where the context of every image may come from.

    Attributes:
        stratum: ``(n,)`` number of every image's stratum, 0 to ``strata - 1``: its value of A.
        cumulative: ``(strata * values,)`` float64: in each stratum, the growing sum of P(b) over the values of B plus
            the stratum's number. One value where B is not looked at.
        order: ``(n,)`` rows, sorted by cell (stratum, value of B).
        start, count: ``(strata * values,)`` where a cell's rows begin in ``order``, and how many there are.
    """

    stratum: Tensor
    cumulative: Tensor
    order: Tensor
    start: Tensor
    count: Tensor

    def __len__(self) -> int:
        return len(self.stratum)

    @property
    def sizes(self) -> Tensor:
        """``(n,)`` how many images may lend every image their context, itself included."""
        values = len(self.count) // (int(self.stratum.max()) + 1)
        allowed = self.cumulative.view(-1, values).diff(dim=1, prepend=_numbers(self.count, values).unsqueeze(1)) > 0
        return (self.count.view(-1, values) * allowed).sum(1).index_select(0, self.stratum)

    def draw(self, generator: torch.Generator | None = None) -> Tensor:
        """``(n,)`` row whose context every image gets: a value of B by its probability, then a row of the cell.

        Args:
            generator: on the CPU; ``None`` takes torch's global one. The draw is the same on every device.
        """
        device = self.stratum.device
        chances = torch.rand((2, len(self)), generator=generator, dtype=torch.float64).to(device)
        wanted = self.stratum + chances[0].clamp_max_(1 - 1e-9)  # which rounding could carry into the next stratum
        # The first cell whose sum is above: one of probability 0 adds nothing to the sum and is never the first.
        cell = torch.searchsorted(self.cumulative, wanted, right=True).clamp_max_(len(self.cumulative) - 1)
        offset = (chances[1] * self.count[cell]).long()
        return self.order[self.start[cell] + offset]


def stratify_c_given_a(a: Tensor) -> ContextSets:
    """Contexts of images with the same A, all equally likely (Eq. 10; Algorithm 1, line 5 of its second part).

    Args:
        a: ``(n,)`` whole numbers: the class property that decides the context, the class itself where nothing better
            is known, or a constant where A is null and any image's context will do.

    Raises:
        UserError: not one whole number for each image.
    """
    _check(a, "A")
    return _sets(a, torch.zeros_like(a), torch.ones(1, dtype=torch.float64))


def stratify_b(a: Tensor, b: Tensor, prior: Prior = "uniform") -> ContextSets:
    """For each value b of B with its P(b), a context that A and b make: that of an image with the same A and this b
    (Eq. 9, with ``h(a, b)`` looked up among the images).

    Where no image has both, b is left out for this A, and the probabilities of the others grow to a sum of 1.

    Args:
        a: ``(n,)`` as :func:`stratify_c_given_a` takes it.
        b: ``(n,)`` whole numbers: the bias.
        prior: P(b).

    Raises:
        UserError: not one whole number for each image, or a prior that is none, or that leaves an A no context.
    """
    _check(a, "A")
    _check(b, "B")
    if len(a) != len(b):
        raise UserError(f"There are {len(a)} values of A and {len(b)} of B; give one of each for every image.")
    values = b.unique()
    if prior == "uniform":
        weights = torch.ones(len(values), dtype=torch.float64)
    elif prior == "observed":
        weights = torch.bincount(torch.searchsorted(values, b)).double()
    else:
        weights = _given(prior, values)
    return _sets(a, b, weights)


def _check(values: Tensor, name: str) -> None:
    if values.ndim != 1 or len(values) == 0 or values.is_floating_point():
        raise UserError(
            f"{name} must be one whole number for each image, a tensor of shape (n,); it is {values.dtype} of shape "
            f"{tuple(values.shape)}."
        )


def _given(prior: Prior, values: Tensor) -> Tensor:
    if isinstance(prior, str):
        raise UserError(f"The prior P(b) is {prior!r}; it must be uniform, observed or a list of numbers.")
    weights = torch.tensor(list(prior), dtype=torch.float64)
    most = int(values.max())
    if len(weights) <= most or not bool((weights >= 0).all()) or not bool(weights.isfinite().all()):
        raise UserError(
            f"The prior P(b) is {list(prior)}; it must have one number, zero or more, for each value of B: 0 to {most}."
        )
    return weights.to(values.device)[values]


def _sets(a: Tensor, b: Tensor, weights: Tensor) -> ContextSets:
    """Sets of cells (A, B); ``weights`` are P(b) up to a factor, by the rank of b."""
    weights = weights.to(a.device)
    _, stratum = a.unique(return_inverse=True)
    _, value = b.unique(return_inverse=True)
    n_values = len(weights)
    cell = stratum * n_values + value
    count = torch.bincount(cell, minlength=(int(stratum.max()) + 1) * n_values)
    likely = weights * (count.view(-1, n_values) > 0)
    whole = likely.sum(1, keepdim=True)
    if not bool((whole > 0).all()):
        raise UserError(
            "The prior P(b) gives probability 0 to every value of B that occurs with some value of A: nothing is left "
            "to draw a context from."
        )
    summed = (likely / whole).cumsum(1)
    last = summed == summed[:, -1:]  # rounding must leave no gap below 1
    summed = torch.where(last, torch.ones_like(summed), summed) + _numbers(count, n_values).unsqueeze(1)
    return ContextSets(stratum, summed.flatten(), cell.argsort(stable=True), count.cumsum(0) - count, count)


def _numbers(count: Tensor, n_values: int) -> Tensor:
    return torch.arange(len(count) // n_values, device=count.device, dtype=torch.float64)
