"""LightGCN whose graph is built in two sorts and whose steps propagate the smaller side alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from recbole.model.general_recommender.lightgcn import LightGCN as RecBoleLightGCN
from torch import Tensor, nn

from recdenoise.recbole_adapter.models.graph import (
    BipartiteGraph,
    CompressedRows,
    bipartite_graph,
    propagate,
    propagate_pairs,
)


class LightGCN(RecBoleLightGCN):
    """RecBole's LightGCN (He et al., SIGIR 2020), faster, with the initialisation of the DeCA paper: N(0, 0.1).

    RecBole's own training (BPR) and evaluation work on it unchanged. Propagated embeddings are cached while the model
    evaluates and forgotten by ``train()``, ``eval()``, loading weights and :meth:`clear_caches`.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        # The graph lives in dense buffers: a sparse tensor can be neither deep-copied nor moved with the module.
        # They follow from the data, so they stay out of the state dict, which remains RecBole's.
        del self.norm_adj_matrix
        del self.interaction_matrix
        for name, matrix in self._graph._asdict().items():
            for field in CompressedRows._fields:
                part = None if matrix is None else getattr(matrix, field).to(self.device)
                self.register_buffer(f"graph_{name}_{field}", part, persistent=False)
        del self._graph
        nn.init.normal_(self.user_embedding.weight, std=0.1)
        nn.init.normal_(self.item_embedding.weight, std=0.1)
        self.register_load_state_dict_post_hook(lambda module, _: module.clear_caches())

    def get_norm_adj_mat(self) -> Tensor:
        """Build the graph while RecBole's constructor runs; the dictionary that RecBole fills is not needed."""
        pairs = self.interaction_matrix
        users, items = (torch.from_numpy(ids.astype(np.int64)) for ids in (pairs.row, pairs.col))
        self._graph = bipartite_graph(users, items, self.n_users, self.n_items)
        return torch.empty(0)

    @property
    def graph(self) -> BipartiteGraph:
        """The normalised graph."""
        return BipartiteGraph(self._matrix("by_user"), self._matrix("by_item"), self._matrix("overlap"))

    def _matrix(self, name: str) -> Any:
        parts = [getattr(self, f"graph_{name}_{field}") for field in CompressedRows._fields]
        return None if parts[0] is None else CompressedRows(*parts)

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
        return propagate(self.graph, self.user_embedding.weight, self.item_embedding.weight, self.n_layers)

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
        own = type(self).forward is LightGCN.forward  # a subclass that embeds differently is taken at its word
        if own and (self.training or torch.is_grad_enabled()):
            tables = self.user_embedding.weight, self.item_embedding.weight
            by_user, by_item = propagate_pairs(self.graph, *tables, self.n_layers, (users, items))
        else:
            by_user, by_item = (t.index_select(0, ids) for t, ids in zip(self._cached(), (users, items), strict=True))
        return (by_user * by_item).sum(-1)

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
