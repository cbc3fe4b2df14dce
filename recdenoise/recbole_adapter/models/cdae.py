"""CDAE that reads users' rows from compressed sparse rows and scores pairs without paying for the rest.

A user's row is a handful of ones among thousands of zeros. Dropping inputs can only turn ones into zeros, so drawing a
mask for the ones alone is the same corruption as drawing one for the whole row, at a fraction of the random numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from recbole.model.general_recommender.cdae import CDAE as RecBoleCDAE
from torch import Tensor

from recdenoise.errors import unknown_name

INPUT_NORMS = ("none", "paper_code")
_CELLS_PER_PAIR = 32
"""One gathered pair costs about as much as this many cells of a dense product (measured on one CPU thread)."""


class CDAE(RecBoleCDAE):
    """RecBole's CDAE (Wu et al., WSDM 2016), faster; same parameters, same logits.

    Config keys are RecBole's and ``input_norm``: ``none`` (default), or ``paper_code``, which divides each input by
    sqrt(row norm x column norm) of the batch's 0/1 matrix as the published DeCA code does. Columns count the users of
    the batch; so that a ranking depends on no one else's presence, evaluation takes the columns of the training matrix
    instead, scaled to the largest batch seen in training (identical where a batch holds every user).
    """

    pair_kind = "row"
    """Tells the scorers that a whole user is scored at once, see :mod:`recdenoise.recbole_adapter.scorers`."""

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.input_norm = config["input_norm"] or "none"
        if self.input_norm not in INPUT_NORMS:
            raise unknown_name("input_norm of CDAE", self.input_norm, INPUT_NORMS)
        if self.input_norm == "paper_code":
            # In the state dict, unlike the rest: it follows from training, not from the data.
            self.register_buffer("batch_users", torch.zeros((), dtype=torch.long, device=self.device))

    def build_histroy_items(self, dataset: Any) -> None:
        """Keep the training matrix as compressed rows (RecBole's name, and its place in the constructor)."""
        matrix = dataset.inter_matrix(form="csr")
        matrix.sum_duplicates()
        count = np.bincount(matrix.indices, minlength=self.n_items)
        for name, part in (("crow", matrix.indptr), ("col", matrix.indices), ("count", count)):
            buffer = torch.from_numpy(part.astype(np.int64)).to(self.device)
            self.register_buffer(f"history_{name}", buffer, persistent=False)

    def _entries(self, users: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The ones of (b,) users' rows: where each row begins (b + 1,), and the row and the item of each, (nnz,)."""
        start = self.history_crow[users]
        length = self.history_crow[users + 1] - start
        begin = F.pad(length.cumsum(0), (1, 0))
        row = torch.repeat_interleave(torch.arange(users.numel(), device=users.device), length)
        within = torch.arange(row.numel(), device=users.device) - begin[row]
        return begin, row, self.history_col[start[row] + within]

    def _values(self, users: Tensor, begin: Tensor, row: Tensor, col: Tensor) -> Tensor:
        """(nnz,) inputs before the corruption: ones, or as ``input_norm`` has them."""
        if self.input_norm == "none":
            return torch.ones(row.numel(), device=row.device, dtype=self.out_layer.weight.dtype)
        if self.training:
            if torch.is_grad_enabled():  # a test in training mode, as the published code's, is no batch
                self.batch_users.clamp_(min=users.numel())
            count = torch.bincount(col, minlength=self.n_items).to(self.out_layer.weight.dtype)
        else:
            size = torch.where(self.batch_users > 0, self.batch_users, self.n_users - 1)
            share = (size / (self.n_users - 1)).clamp(max=1).to(self.out_layer.weight.dtype)
            count = self.history_count * share
        # L2 norms of a 0/1 matrix: sqrt(ones in the row), sqrt(ones in the column).
        return (begin.diff()[row] * count[col]).pow(-0.25)

    def get_rating_matrix(self, user: Tensor) -> Tensor:
        """(b, n_items) 0/1 rows of (b,) users; equal to RecBole's, written in one indexed assignment."""
        _, row, col = self._entries(user)
        rows = torch.zeros(user.numel(), self.n_items, device=user.device, dtype=self.out_layer.weight.dtype)
        rows[row, col] = 1
        return rows

    def forward(self, x_items: Tensor, x_users: Tensor) -> Tensor:
        """RecBole's dense path: (b, n_items) rows and their (b,) users to (b, n_items) logits."""
        if self.input_norm != "none":
            begin, row, col = self._entries(x_users)
            x_items = torch.zeros_like(x_items).index_put((row, col), self._values(x_users, begin, row, col))
        return super().forward(x_items, x_users)

    def encode(self, users: Tensor) -> Tensor:
        """Hidden units of users, inputs corrupted while training.

        Args:
            users: (b,) user ids.

        Returns:
            (b, d) hidden units after the activation.
        """
        begin, row, col = self._entries(users)
        value = self._values(users, begin, row, col)
        if self.training and self.corruption_ratio > 0:
            kept = torch.rand(value.shape, device=value.device) >= self.corruption_ratio
            value = value * kept / (1 - self.corruption_ratio)
        if row.numel() * _CELLS_PER_PAIR > users.numel() * self.n_items:
            rows = torch.zeros(users.numel(), self.n_items, device=users.device, dtype=value.dtype)
            hidden = self.h_item(rows.index_put_((row, col), value))
        else:
            table = self.h_item.weight.t()
            hidden = F.embedding_bag(col, table, begin[:-1], mode="sum", per_sample_weights=value) + self.h_item.bias
        return self.h_act(self.h_user(users) + hidden)

    def row_logits(self, users: Tensor) -> Tensor:
        """(b, n_items) logits of (b,) users with every item, before the output activation."""
        return self.out_layer(self.encode(users))

    def pair_logits(self, users: Tensor, items: Tensor, rows: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Score pairs, each distinct user encoded (and corrupted) once.

        Args:
            users: (n,) user ids; ignored when ``rows`` is given.
            items: (n,) item ids.
            rows: (b,) distinct users and (n,) the position of each pair's user among them.

        Returns:
            (n,) logits.
        """
        distinct, row = torch.unique(users, return_inverse=True) if rows is None else rows
        hidden = self.encode(distinct)
        weight, bias = self.out_layer.weight, self.out_layer.bias
        if items.numel() * _CELLS_PER_PAIR > distinct.numel() * self.n_items:
            everything = torch.addmm(bias, hidden, weight.t()).view(-1)
            return everything.index_select(0, row * self.n_items + items)
        products = hidden.index_select(0, row) * weight.index_select(0, items)
        return products.sum(-1) + bias.index_select(0, items)

    @torch.no_grad()
    def full_logits(self, users: Tensor) -> Tensor:
        """(b, n_items) logits without gradient."""
        return self.row_logits(users)

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """(b * n_items,) outputs for RecBole's full ranking."""
        return self.o_act(self.row_logits(interaction[self.USER_ID])).view(-1)

    def predict(self, interaction: Any) -> Tensor:
        """(n,) outputs of the pairs, after the output activation."""
        return self.o_act(self.pair_logits(interaction[self.USER_ID], interaction[self.ITEM_ID]))
