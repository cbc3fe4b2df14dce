"""LightGCN whose graph is built in two sorts and whose propagation keeps nothing for its backward pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from recbole.model.general_recommender.lightgcn import LightGCN as RecBoleLightGCN
from torch import Tensor, nn

from recdenoise.recbole_adapter.models.graph import Adjacency, normalised_adjacency, propagate


class LightGCN(RecBoleLightGCN):
    """RecBole's LightGCN (He et al., SIGIR 2020), faster, with the initialisation of the DeCA paper: N(0, 0.1).

    RecBole's own training (BPR) and evaluation work on it unchanged. Propagated embeddings are cached while the model
    evaluates and forgotten by ``train()``, ``eval()``, loading weights and :meth:`clear_caches`.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        # The graph lives in three dense buffers: a sparse tensor can be neither deep-copied nor moved with the module.
        # They follow from the data, so they stay out of the state dict, which remains RecBole's.
        del self.norm_adj_matrix
        del self.interaction_matrix
        for name, part in zip(Adjacency._fields, self._graph, strict=True):
            self.register_buffer(f"graph_{name}", part.to(self.device), persistent=False)
        del self._graph
        nn.init.normal_(self.user_embedding.weight, std=0.1)
        nn.init.normal_(self.item_embedding.weight, std=0.1)
        self.register_load_state_dict_post_hook(lambda module, _: module.clear_caches())

    def get_norm_adj_mat(self) -> Tensor:
        """Build the graph while RecBole's constructor runs; the dictionary that RecBole fills is not needed."""
        pairs = self.interaction_matrix
        users, items = (torch.from_numpy(ids.astype(np.int64)) for ids in (pairs.row, pairs.col))
        self._graph = normalised_adjacency(users, items, self.n_users, self.n_items)
        return torch.empty(0)

    @property
    def graph(self) -> Adjacency:
        """The normalised adjacency, users first, then items."""
        return Adjacency(self.graph_crow, self.graph_col, self.graph_value)

    def clear_caches(self) -> None:
        """Forget the propagated embeddings: call it whenever weights change outside ``calculate_loss``."""
        self.restore_user_e: Tensor | None = None
        self.restore_item_e: Tensor | None = None

    def train(self, mode: bool = True) -> LightGCN:
        """Switch the mode and forget the cached embeddings."""
        self.clear_caches()
        return super().train(mode)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Propagate once: (n_users, d) and (n_items, d), the mean over the layers 0..n_layers."""
        nodes = propagate(self.graph, self.get_ego_embeddings(), self.n_layers)
        users, items = nodes.split([self.n_users, self.n_items])
        return users, items

    def _cached(self) -> tuple[Tensor, Tensor]:
        """Propagated embeddings, from the cache when nothing can have changed them."""
        if self.training or torch.is_grad_enabled():
            return self.forward()
        if self.restore_user_e is None or self.restore_item_e is None:
            self.restore_user_e, self.restore_item_e = self.forward()
        return self.restore_user_e, self.restore_item_e

    def pair_logits(self, users: Tensor, items: Tensor) -> Tensor:
        """Score pairs with one propagation: hand positives and negatives in together.

        Args:
            users: (n,) user ids.
            items: (n,) item ids.

        Returns:
            (n,) logits, the dot products.
        """
        by_user, by_item = self._cached()
        # index_select's backward is twice as fast as that of plain indexing
        return (by_user.index_select(0, users) * by_item.index_select(0, items)).sum(-1)

    def predict(self, interaction: Any) -> Tensor:
        """(n,) dot products of the pairs."""
        return self.pair_logits(interaction[self.USER_ID], interaction[self.ITEM_ID])

    @torch.no_grad()
    def full_logits(self, users: Tensor) -> Tensor:
        """(b, n_items) dot products of (b,) users with every item, without gradient."""
        by_user, by_item = self._cached()
        return by_user[users] @ by_item.t()

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """(b * n_items,) dot products for RecBole's full ranking."""
        return self.full_logits(interaction[self.USER_ID]).view(-1)
