"""The RecBole backend's :class:`~recdenoise.task.Task`: its models scored on user-item pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from recdenoise import seeds
from recdenoise.errors import UserError
from recdenoise.interactions import Interactions
from recdenoise.recbole_adapter.loaders import Observed, PairLoader, Pairs, RowLoader, WholeRows
from recdenoise.recbole_adapter.scorers import Scorer, clear_caches, scorer_for
from recdenoise.sampling import NegativeSampler
from recdenoise.selection import copy_weights, load_weights
from recdenoise.task import Call, Pass

SCAN_PAIRS = 1 << 16
"""Pairs scored at once when going over the training set or a validation set, if a model's scorer allows so many."""

SCAN_ROWS = 1 << 11
"""Users whose rows an autoencoder reconstructs at once there."""


class RecBoleTask:
    """Pairs of a RecBole dataset, and networks of RecBole's (or our) model classes.

    Args:
        users, items: ``(n_rows,)`` int64 training pairs; id 0 is RecBole's padding.
        n_users, n_items: number of ids, padding included.
        new_model: builds a network from a name (``None``: the target's class) under whatever seed is set.
        seed: everything random follows from it.
        batch_size: observed pairs (or users, for autoencoders) in a step.
        device: where everything lives.
        first_target: a network that is trained as it was handed in: the first answer for member 0.
    """

    n_classes = 2

    def __init__(
        self,
        users: Tensor,
        items: Tensor,
        n_users: int,
        n_items: int,
        *,
        new_model: Callable[[str | None], nn.Module],
        seed: int,
        batch_size: int,
        device: torch.device | str,
        first_target: nn.Module | None = None,
    ) -> None:
        if len(users) == 0:
            raise UserError("The training set is empty.")
        if batch_size < 1:
            raise UserError(f"The batch size is {batch_size}; it must be 1 or more.")
        self.device = torch.device(device)
        lists = Interactions.from_pairs(users, items, n_users, n_items, device=self.device)
        self.data = Observed(users.to(self.device), items.to(self.device), lists, seed, batch_size)
        self.n_users, self.n_items, self.n_rows = n_users, n_items, len(users)
        self.l2_scale = 1.0 / (n_users - 1)
        self.seed = seed
        self._new_model = new_model
        self._first_target = first_target
        # Whoever asks for member 0 again gets these weights in a network of its own, never the one being trained.
        self._first_weights = None if first_target is None else copy_weights({"target": first_target})
        self._scorers: dict[type, Scorer] = {}
        self._most_pairs: dict[type, int] = {}
        self._samplers: dict[Pass, NegativeSampler] = {}
        probe = first_target if first_target is not None else self.new_target(0)
        self.rowwise = self._scorer(probe).kind == "row"
        self.ranks_by_pairs = not self.rowwise and self._scorer(probe).ranks_by_pairs(probe)

    def _scorer(self, module: nn.Module) -> Scorer:
        scorer = self._scorers.get(type(module))
        if scorer is None:
            scorer = self._scorers[type(module)] = scorer_for(module)
            if scorer.kind == "pair":
                self._most_pairs[type(module)] = scorer.pairs_at_once(module)
        return scorer

    @property
    def scan_pairs_at_once(self) -> int:
        """Pairs in a block of :meth:`scan_pairs`: as many as every network seen so far takes at once."""
        return min([SCAN_PAIRS, *self._most_pairs.values()])

    def _seeded(self, kind: str | None, *key: int | str) -> nn.Module:
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seeds.derive(self.seed, *key))
            network = self._new_model(kind).to(self.device)
        self._scorer(network)
        return network

    def new_target(self, member: int) -> nn.Module:
        """Member 0 is the model that RecBole was handed, where there is one; others differ in their seed alone."""
        if member == 0 and self._first_target is not None:
            first, self._first_target = self._first_target, None
            return first
        network = self._seeded(None, "target", member)
        if member == 0 and self._first_weights is not None:
            load_weights({"target": network}, self._first_weights)
        return network

    def new_auxiliary(self, kind: str, member: int) -> nn.Module:
        return self._seeded(kind, "auxiliary", kind.lower(), member)

    def call(self, module: nn.Module, inputs: Any) -> Tensor:
        """``(n,)`` differentiable logits of :class:`Pairs`; ``(b, n_items)`` of :class:`WholeRows` without gradient.

        They have single precision at least: losses are differences of numbers that bfloat16 rounds alike.
        """
        scorer = self._scorer(module)
        if isinstance(inputs, WholeRows):
            logits = scorer.full_logits(module, inputs.users)
        else:
            logits = scorer.pair_logits(module, inputs.users, inputs.items, inputs.rows)
        return logits.float() if logits.itemsize < 4 else logits

    def begin_step(self, modules: nn.Module) -> None:
        for module in modules.modules():
            if type(module) in self._scorers:
                clear_caches(module)

    def loader(self, sweep: Pass, key: tuple[int, ...]) -> PairLoader | RowLoader:
        sampler = self._samplers.get(sweep)
        if sampler is None:
            sampler = self._samplers[sweep] = self.data.sampler(sweep)
        return (RowLoader if self.rowwise else PairLoader)(self.data, sampler, key)

    def scan(self, function: Call) -> Tensor:
        return self.scan_pairs(function, self.data.users, self.data.items)

    @torch.no_grad()
    def scan_pairs(self, function: Call, users: Tensor, items: Tensor) -> Tensor:
        """``function`` over any pairs, in blocks; ``(n, ...)`` in the order given.

        An autoencoder's block is a set of users: its pairs are visited by user and put back in order.
        """
        if not self.rowwise:
            size = self.scan_pairs_at_once
            blocks = zip(users.split(size), items.split(size), strict=True)
            return torch.cat([function(Pairs(u, i)) for u, i in blocks])
        order = torch.argsort(users, stable=True)
        distinct, inverse = torch.unique_consecutive(users[order], return_inverse=True)
        out: list[Tensor] = []
        for begin in range(0, len(distinct), SCAN_ROWS):
            inside = (inverse >= begin) & (inverse < begin + SCAN_ROWS)
            pairs, rows = order[inside], (distinct[begin : begin + SCAN_ROWS], inverse[inside] - begin)
            out.append(function(Pairs(users[pairs], items[pairs], rows)))
        values = torch.cat(out)
        return torch.empty_like(values).index_copy_(0, order, values)
