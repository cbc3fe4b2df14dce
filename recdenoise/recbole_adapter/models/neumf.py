"""NeuMF with its first layer split into a user half and an item half.

The first MLP layer sees ``[e_u; e_i]``, so ``W [e_u; e_i] = W_u e_u + W_i e_i``: each half is computed once per
distinct user or item instead of once per pair. Same logits; most of the multiplications gone.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from recbole.model.general_recommender.neumf import NeuMF as RecBoleNeuMF
from torch import Tensor, nn

from recdenoise.recbole_adapter.models.factorisation import init_head

_PAIRS_PER_BLOCK = 4096
"""Pairs scored at once in full ranking: their (pairs, width) activations stay in the CPU's cache."""
_PAIRS_PER_BLOCK_GPU = 2**20


class NeuMF(RecBoleNeuMF):
    """RecBole's NeuMF (He et al., WWW 2017), faster, with the initialisation of the DeCA paper.

    Embeddings start from N(0, 0.01), the MLP from Xavier uniform, the head from Kaiming uniform (a = 1, sigmoid), every
    bias from 0. Config keys are RecBole's; :func:`paper_model_config` has the paper's sizes.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self._drop_dead_parts()
        self.ranks_by_pairs = bool(self.mlp_train)
        if not self.use_pretrain:
            for layer in self.mlp_layers.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.xavier_uniform_(layer.weight)
                    nn.init.zeros_(layer.bias)
            init_head(self.predict_layer)

    def _drop_dead_parts(self) -> None:
        """Freeze the half that does not score (``mf_train`` or ``mlp_train`` off): no optimiser or L2 should see it."""
        if not self.mf_train:
            self.user_mf_embedding.requires_grad_(False)
            self.item_mf_embedding.requires_grad_(False)
        if not self.mlp_train:
            for part in (self.user_mlp_embedding, self.item_mlp_embedding, self.mlp_layers):
                part.requires_grad_(False)

    def _linears(self) -> list[nn.Linear]:
        """The MLP's layers; each is followed by a ReLU."""
        return [layer for layer in self.mlp_layers.mlp_layers if isinstance(layer, nn.Linear)]

    def _half(self, table: nn.Embedding, weight: Tensor, bias: Tensor | None, ids: Tensor) -> Tensor:
        """(n, width): ``weight @ table[id] + bias`` for each id, computed once per distinct id."""
        if table.num_embeddings <= ids.numel():  # the whole table is the shorter list
            return F.embedding(ids, F.linear(table.weight, weight, bias))
        distinct, where = torch.unique(ids, return_inverse=True)
        return F.embedding(where, F.linear(table(distinct), weight, bias))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """Score pairs; equal to RecBole's forward.

        Args:
            user: (n,) user ids.
            item: (n,) item ids.

        Returns:
            (n,) logits.
        """
        if not self.mlp_train or (self.training and self.dropout_prob > 0):
            return super().forward(user, item)  # dropout draws per pair: the halves are then not shared
        first, *rest = self._linears()
        width = self.mlp_embedding_size
        output = self._half(self.user_mlp_embedding, first.weight[:, :width], first.bias, user)
        # In place where autograd allows it: for a few thousand pairs, fresh memory costs more than the arithmetic.
        output = output.add_(self._half(self.item_mlp_embedding, first.weight[:, width:], None, item)).relu_()
        for layer in rest:
            output = F.linear(output, layer.weight, layer.bias).relu_()
        if self.mf_train:
            output = torch.cat((self.user_mf_embedding(user) * self.item_mf_embedding(item), output), -1)
        return self.predict_layer(output).squeeze(-1)

    @torch.no_grad()
    def full_logits(self, users: Tensor) -> Tensor:
        """Score every item for some users, without gradient and without dropout.

        Args:
            users: (b,) user ids.

        Returns:
            (b, n_items) logits.
        """
        head = self.predict_layer.weight[0]
        size = self.mf_embedding_size if self.mf_train else 0
        scores = head.new_full((users.numel(), self.n_items), float(self.predict_layer.bias))
        if self.mf_train:
            scores.addmm_(self.user_mf_embedding(users) * head[:size], self.item_mf_embedding.weight.t())
        if self.mlp_train:
            self._add_mlp_logits(scores, users, head[size:])
        return scores

    def _add_mlp_logits(self, scores: Tensor, users: Tensor, head: Tensor) -> None:
        """Add the MLP's part of the logits to (b, n_items) scores, block by block in reused memory."""
        first, *rest = self._linears()
        width = self.mlp_embedding_size
        by_user = torch.addmm(first.bias, self.user_mlp_embedding(users), first.weight[:, :width].t())
        by_item = self.item_mlp_embedding.weight @ first.weight[:, width:].t()
        pairs = _PAIRS_PER_BLOCK if scores.device.type == "cpu" else _PAIRS_PER_BLOCK_GPU
        n_items = min(self.n_items, pairs)
        n_users = max(1, pairs // n_items)
        for top in range(0, users.numel(), n_users):
            block = by_user[top : top + n_users, None, :]
            for left in range(0, self.n_items, n_items):
                hidden = (block + by_item[None, left : left + n_items, :]).relu_().flatten(0, 1)
                for layer in rest:
                    hidden = torch.addmm(layer.bias, hidden, layer.weight.t()).relu_()
                scores[top : top + n_users, left : left + n_items] += (hidden @ head).view(block.shape[0], -1)

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """(b * n_items,) logits for RecBole's full ranking; RecBole's own class scores pair by pair."""
        return self.full_logits(interaction[self.USER_ID]).view(-1)
