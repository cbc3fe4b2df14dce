"""MF and GMF: the two shallow models of the DeCA paper, in the form that RecBole trains and evaluates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType
from torch import Tensor, nn

_BLOCK = 8192
"""Pairs whose products are made at once on a CPU."""


class _PointwiseModel(GeneralRecommender):
    """What MF and GMF share: two embedding tables, BCE on labelled pairs, full ranking by one matrix product.

    A subclass defines ``forward(user, item)`` and ``full_logits(users)``.
    """

    input_type = InputType.POINTWISE

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.LABEL = config["LABEL_FIELD"]
        # RecBole has no file of defaults for models of ours: a missing key is None.
        self.embedding_size = config["embedding_size"] or 32
        self.user_embedding = nn.Embedding(self.n_users, self.embedding_size)
        self.item_embedding = nn.Embedding(self.n_items, self.embedding_size)
        nn.init.normal_(self.user_embedding.weight, std=0.01)
        nn.init.normal_(self.item_embedding.weight, std=0.01)

    def by_blocks(self, user: Tensor, item: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
        """(n,) values of ``head`` on the (m, size) element-wise products of embeddings, block by block on a CPU.

        The 160,000 pairs of an autoencoder's batch are three times faster in blocks that stay in the cache.
        """
        users, items = self.user_embedding.weight, self.item_embedding.weight
        if user.device.type != "cpu":
            return head(F.embedding(user, users) * F.embedding(item, items))
        # On a CPU index_select and its gradient take three quarters of the time of an embedding look-up.
        parts = [
            head(users.index_select(0, u) * items.index_select(0, i))
            for u, i in zip(user.split(_BLOCK), item.split(_BLOCK), strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def calculate_loss(self, interaction: Any) -> Tensor:
        """RecBole's training loss: mean binary cross-entropy of the labelled pairs, a scalar."""
        logits = self.forward(interaction[self.USER_ID], interaction[self.ITEM_ID])
        return F.binary_cross_entropy_with_logits(logits, interaction[self.LABEL].to(logits.dtype))

    def predict(self, interaction: Any) -> Tensor:
        """(n,) probabilities of the pairs, as RecBole's NeuMF gives them."""
        return torch.sigmoid(self.forward(interaction[self.USER_ID], interaction[self.ITEM_ID]))

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """(b * n_items,) logits: they rank as the probabilities do and do not saturate."""
        return self.full_logits(interaction[self.USER_ID]).view(-1)


class MF(_PointwiseModel):
    """Matrix factorisation: the logit is the dot product of the two embeddings (Koren et al., 2009).

    Config keys: ``embedding_size`` (32). Embeddings start from N(0, 0.01).
    """

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """(n,) logits of (n,) users with (n,) items."""
        return self.by_blocks(user, item, lambda product: product.sum(-1))

    def full_logits(self, users: Tensor) -> Tensor:
        """(b, n_items) logits of (b,) users with every item."""
        return self.user_embedding(users) @ self.item_embedding.weight.t()


class GMF(_PointwiseModel):
    """Generalised matrix factorisation: a learned weight for each dimension of the product (He et al., WWW 2017).

    It has no MLP tables: RecBole's NeuMF with ``mlp_train: False`` would carry dead ones. Config keys:
    ``embedding_size`` (32). Embeddings start from N(0, 0.01), the head from Kaiming uniform (a = 1, sigmoid), bias 0.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.predict_layer = nn.Linear(self.embedding_size, 1)
        init_head(self.predict_layer)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """(n,) logits of (n,) users with (n,) items."""
        return self.by_blocks(user, item, lambda product: self.predict_layer(product).squeeze(-1))

    def full_logits(self, users: Tensor) -> Tensor:
        """(b, n_items) logits of (b,) users with every item."""
        weighted = self.user_embedding(users) * self.predict_layer.weight
        return torch.addmm(self.predict_layer.bias, weighted, self.item_embedding.weight.t())


def init_head(layer: nn.Linear) -> None:
    """Initialise a one-output head as the DeCA paper does: Kaiming uniform (a = 1, sigmoid), bias 0."""
    nn.init.kaiming_uniform_(layer.weight, a=1, nonlinearity="sigmoid")
    nn.init.zeros_(layer.bias)
