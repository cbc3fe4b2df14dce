"""Differentiable logits for (user, item) pairs from any RecBole model: one scorer a family, one line a model.

A denoiser asks ``sigmoid(logit)`` for the probability that a user likes an item. RecBole's models answer in different
ways: some return a logit, some a probability, some score a whole user at once. A further model of a known kind is one
line in :data:`SCORERS` (or a call of :func:`register_scorer`); a subclass is scored as its base.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recdenoise.errors import UserError

Rows = tuple[Tensor, Tensor]
"""(b,) distinct users, and (n,) the position of each pair's user among them."""

_CACHES = ("restore_user_e", "restore_item_e", "i_embedding")
_BLOCK_CELLS = 2**18
"""Pairs scored at once without gradient, divided by the length of the history that the model gathers for each."""


def clear_caches(model: nn.Module) -> None:
    """Forget embeddings that a model keeps for evaluation; call it each training step, before scoring.

    RecBole clears them in ``calculate_loss`` alone. A loss that skips it would evaluate on frozen embeddings, or
    backpropagate through a freed graph.

    Args:
        model: any module; one without caches is left alone.
    """
    for name in _CACHES:
        if model.__dict__.get(name) is not None:
            setattr(model, name, None)
    own = getattr(model, "clear_caches", None)
    if callable(own):
        own()


class Scorer:
    """How one family of models scores pairs. Scorers hold no state of a model; the model is handed in.

    Subclasses define :meth:`pair_logits`, and :meth:`_full` where scoring all items of a user at once is cheaper.
    """

    kind: ClassVar[str] = "pair"
    """``pair``: scores pairs one by one; ``row``: scores whole users (autoencoders) and picks the items."""

    def pair_logits(self, model: Any, users: Tensor, items: Tensor, rows: Rows | None = None) -> Tensor:
        """Score pairs, differentiably; the model's mode (dropout) is left as it is.

        Args:
            model: the model.
            users: (n,) user ids.
            items: (n,) item ids.
            rows: where known, the distinct users and each pair's position among them; saves ``row`` scorers a sort.

        Returns:
            (n,) logits.
        """
        raise UserError(f"{type(self).__name__} does not say how to score pairs: define pair_logits.")

    @torch.no_grad()
    def full_logits(self, model: Any, users: Tensor) -> Tensor:
        """Score every item for some users, without gradient: the values of :meth:`pair_logits`.

        Args:
            model: the model, in eval mode.
            users: (b,) user ids.

        Returns:
            (b, n_items) logits, the padding item included.
        """
        own = getattr(model, "full_logits", None)
        scores = own(users) if callable(own) else self._full(model, users)
        if scores.numel() != users.numel() * model.n_items:
            raise UserError(
                f"The full_logits of {type(model).__name__} gives {tuple(scores.shape)} for {users.numel()} users; it "
                f"must give ({users.numel()}, {model.n_items}): a logit for every item, the padding item included."
            )
        return scores.view(users.numel(), model.n_items)

    def ranks_by_pairs(self, model: Any) -> bool:
        """Whether scoring all items of a user takes a network's pass for each pair, and not one product of matrices.

        A model with a ``full_logits`` of its own says so by an attribute ``ranks_by_pairs``.
        """
        if callable(getattr(model, "full_logits", None)):
            return bool(getattr(model, "ranks_by_pairs", False))
        return type(self)._full is Scorer._full

    def pairs_at_once(self, model: Any) -> int:
        """How many pairs one call may score without gradient, so that what it gathers for each fits in memory."""
        history = getattr(model, "history_item_matrix", None)
        width = history.shape[1] if isinstance(history, Tensor) else 1
        return max(1 << 8, _BLOCK_CELLS // max(width, 1))

    def _full(self, model: Any, users: Tensor) -> Tensor:
        block = self.pairs_at_once(model)
        items = torch.arange(model.n_items, device=users.device)
        parts = []
        for some in users.split(max(1, block // model.n_items)):
            pairs = some.repeat_interleave(model.n_items), items.repeat(some.numel())
            parts += [self.pair_logits(model, u, i) for u, i in zip(*(ids.split(block) for ids in pairs), strict=True)]
        return torch.cat(parts) if parts else torch.empty(0, device=users.device)


class OwnScorer(Scorer):
    """A model that scores itself: it defines ``pair_logits(users, items)``, and ``full_logits(users)`` if it likes."""

    def pair_logits(self, model: Any, users: Tensor, items: Tensor, rows: Rows | None = None) -> Tensor:
        return _one_each(model, model.pair_logits(users, items), users)


class OwnRowScorer(Scorer):
    """The same for a model with ``pair_kind = "row"``, whose ``pair_logits`` takes ``rows`` as well."""

    kind = "row"

    def pair_logits(self, model: Any, users: Tensor, items: Tensor, rows: Rows | None = None) -> Tensor:
        return _one_each(model, model.pair_logits(users, items, rows), users)


def _one_each(model: Any, logits: Tensor, users: Tensor) -> Tensor:
    """``logits`` of a model of one's own if there is one a pair. Raises ``UserError``."""
    if logits.shape != users.shape:
        raise UserError(
            f"The pair_logits of {type(model).__name__} gives {tuple(logits.shape)} for {users.numel()} pairs; it must "
            f"give ({users.numel()},): a logit for every pair."
        )
    return logits


class ForwardScorer(Scorer):
    """``forward(user, item)`` is a logit."""

    def pair_logits(self, model: Any, users: Tensor, items: Tensor, rows: Rows | None = None) -> Tensor:
        return model(users, items)


class DotScorer(Scorer):
    """``predict`` is a dot product, after a propagation of the whole graph: one call for positives and negatives."""

    def pair_logits(self, model: Any, users: Tensor, items: Tensor, rows: Rows | None = None) -> Tensor:
        training = torch.is_grad_enabled()
        if training:
            clear_caches(model)
        scores = model.predict({model.USER_ID: users, model.ITEM_ID: items})
        if training:  # SGL caches inside predict: the next call must not reuse this graph
            clear_caches(model)
        return scores

    def _full(self, model: Any, users: Tensor) -> Tensor:
        return model.full_sort_predict({model.USER_ID: users})


class NGCFScorer(DotScorer):
    """NGCF of RecBole 1.2.0 builds its dropout anew in ``forward``, so it would drop while evaluating as well."""

    def pair_logits(self, model: Any, users: Tensor, items: Tensor, rows: Rows | None = None) -> Tensor:
        with _without_stray_dropout(model):
            return super().pair_logits(model, users, items, rows)

    def _full(self, model: Any, users: Tensor) -> Tensor:
        with _without_stray_dropout(model):
            return super()._full(model, users)


@contextmanager
def _without_stray_dropout(model: Any) -> Iterator[None]:
    """Set NGCF's rate to zero while the model evaluates; its later versions look at the mode themselves."""
    rate = model.message_dropout
    if not model.training:
        model.message_dropout = 0.0
    try:
        yield
    finally:
        model.message_dropout = rate


class LineScorer(ForwardScorer):
    """LINE: ``forward`` is a dot product, and so is RecBole's full ranking."""

    def _full(self, model: Any, users: Tensor) -> Tensor:
        return model.full_sort_predict({model.USER_ID: users})


class DMFScorer(ForwardScorer):
    """DMF: towers over the rows and columns of the interaction matrix; full ranking encodes each item once."""

    def _full(self, model: Any, users: Tensor) -> Tensor:
        towers = model.user_fc_layers(model.get_user_embedding(users))
        return towers @ model.get_item_embedding().t()


class ConvScorer(ForwardScorer):
    """ConvNCF: convolutions over the outer product of two embeddings, about 200 KiB a pair at RecBole's sizes."""

    def pairs_at_once(self, model: Any) -> int:
        return 1 << 10


class AttentionScorer(ForwardScorer):
    """NAIS: attention over a user's history; without one RecBole divides zero by zero, and the item's bias is left."""

    def pair_logits(self, model: Any, users: Tensor, items: Tensor, rows: Rows | None = None) -> Tensor:
        return torch.where(model.history_lens[users] > 0, model(users, items), model.bias[items])


class ProbabilityScorer(Scorer):
    """FISM: ``forward`` is already a probability; the clamp keeps the logit of a saturated one finite.

    A user without a history has the biases: RecBole raises the length 0 to the power ``-alpha``.
    """

    def pair_logits(self, model: Any, users: Tensor, items: Tensor, rows: Rows | None = None) -> Tensor:
        biases = model.user_bias[users] + model.item_bias[items]
        return torch.where(model.history_lens[users] > 0, torch.logit(model(users, items), eps=1e-6), biases)


class TwoClassScorer(Scorer):
    """GCMC: a softmax over dislike and like; the difference of the two is the logit of like."""

    def _classes(self, model: Any, users: Tensor, items: Tensor | None) -> Tensor:
        scores = model(model.user_features, model.item_features, users, items)
        return scores[:, 1] - scores[:, 0]

    def pair_logits(self, model: Any, users: Tensor, items: Tensor, rows: Rows | None = None) -> Tensor:
        return self._classes(model, users, items)

    def _full(self, model: Any, users: Tensor) -> Tensor:
        return self._classes(model, users, None)


class CosineScorer(Scorer):
    """SimpleX: a cosine, so it needs a scale to reach probabilities away from one half.

    Args:
        scale: the logit is ``scale * cosine``; a model's attribute ``cosine_scale`` outranks it.
    """

    def __init__(self, scale: float = 10.0) -> None:
        if not scale > 0:
            raise UserError(f"The scale of a cosine must be positive, got {scale}.")
        self.scale = scale

    def _users(self, model: Any, users: Tensor) -> Tensor:
        history = model.item_emb(model.history_item_id[users])
        mixed = model.get_UI_aggregation(model.user_emb(users), history, model.history_item_len[users])
        return F.normalize(model.dropout(mixed), dim=1) * getattr(model, "cosine_scale", self.scale)

    def pair_logits(self, model: Any, users: Tensor, items: Tensor, rows: Rows | None = None) -> Tensor:
        distinct, row = torch.unique(users, return_inverse=True) if rows is None else rows
        by_user = self._users(model, distinct)  # the history is gathered once a user, not once a pair
        return (by_user[row] * F.normalize(model.item_emb(items), dim=1)).sum(-1)

    def _full(self, model: Any, users: Tensor) -> Tensor:
        return self._users(model, users) @ F.normalize(model.item_emb.weight, dim=1).t()


class ENMFScorer(Scorer):
    """ENMF: a regression on 0 and 1 whose score is read as a logit once a denoiser trains it with cross-entropy."""

    def _users(self, model: Any, users: Tensor) -> Tensor:
        return model.dropout(model.user_embedding(users)) * model.H_i.weight

    def pair_logits(self, model: Any, users: Tensor, items: Tensor, rows: Rows | None = None) -> Tensor:
        return (self._users(model, users) * model.item_embedding(items)).sum(-1)

    def _full(self, model: Any, users: Tensor) -> Tensor:
        return self._users(model, users) @ model.item_embedding.weight.t()


class RowScorer(Scorer):
    """Autoencoders: score the user's whole row once, pick the items.

    Args:
        row_logits: (model, (b,) users) to (b, n_items) logits.
    """

    kind = "row"

    def __init__(self, row_logits: Callable[[Any, Tensor], Tensor]) -> None:
        self.row_logits = row_logits

    def pair_logits(self, model: Any, users: Tensor, items: Tensor, rows: Rows | None = None) -> Tensor:
        distinct, row = torch.unique(users, return_inverse=True) if rows is None else rows
        scores = self.row_logits(model, distinct)
        # index_select's backward is twice as fast as that of scores[row, items]
        return scores.reshape(-1).index_select(0, row * scores.shape[1] + items)

    def _full(self, model: Any, users: Tensor) -> Tensor:
        return self.row_logits(model, users)


_FORWARD, _DOT = ForwardScorer(), DotScorer()
_FIRST_OUTPUT = RowScorer(lambda model, users: model(model.get_rating_matrix(users))[0])
_RECONSTRUCTION = RowScorer(lambda model, users: model.full_sort_predict({model.USER_ID: users}))

SCORERS: dict[str, Scorer] = {
    "MF": _FORWARD,
    "GMF": _FORWARD,
    "NeuMF": _FORWARD,
    "NNCF": _FORWARD,
    "NAIS": AttentionScorer(),
    "ConvNCF": ConvScorer(),
    "LINE": LineScorer(),
    "DMF": DMFScorer(),
    "BPR": _DOT,
    "LightGCN": _DOT,
    "NGCF": NGCFScorer(),
    "SpectralCF": _DOT,
    "DGCF": _DOT,
    "NCL": _DOT,
    "SGL": _DOT,
    "FISM": ProbabilityScorer(),
    "GCMC": TwoClassScorer(),
    "SimpleX": CosineScorer(),
    "ENMF": ENMFScorer(),
    "CDAE": RowScorer(lambda model, users: model(model.get_rating_matrix(users), users)),
    "MultiDAE": RowScorer(lambda model, users: model(model.get_rating_matrix(users))),
    "MultiVAE": _FIRST_OUTPUT,
    "RaCT": _FIRST_OUTPUT,
    "MacridVAE": _FIRST_OUTPUT,
    "RecVAE": RowScorer(lambda model, users: model(model.get_rating_matrix(users), model.dropout_prob)[0]),
    "DiffRec": _RECONSTRUCTION,
    "LDiffRec": _RECONSTRUCTION,
}
"""The scorer of each RecBole model by class name; subclasses are found through their bases."""

NOT_TRAINABLE: dict[str, str] = dict.fromkeys(
    ("Pop", "Random", "ItemKNN", "AsymKNN", "EASE", "SLIMElastic", "ADMMSLIM", "NCEPLRec"),
    "it computes its scores in closed form or by counting, so no gradient reaches a parameter",
)
"""RecBole models that no denoiser can train, and why."""


def supported_models() -> list[str]:
    """Names of the models that a denoiser can train, sorted."""
    return sorted(SCORERS)


def register_scorer(name: str, scorer: Scorer) -> None:
    """Say how models of a class (and its subclasses) are scored.

    Args:
        name: the name of the class.
        scorer: an instance.

    Raises:
        UserError: when ``scorer`` is not an instance of :class:`Scorer`.
    """
    if not isinstance(scorer, Scorer):
        raise UserError(f"The scorer of {name!r} must be an instance of Scorer, got {scorer!r}.")
    SCORERS[name] = scorer


def scorer_for(model: nn.Module | type) -> Scorer:
    """Find how a model is scored: by its own ``pair_logits``, else by the nearest class of its bases in the table.

    Args:
        model: an instance or a class.

    Returns:
        The scorer; its ``kind`` says whether batches should be made of pairs or of whole users.

    Raises:
        UserError: for a model without trainable scores, and for one that is neither in the table nor defines
            ``pair_logits(users, items)``.
    """
    cls = model if isinstance(model, type) else type(model)
    if callable(getattr(model, "pair_logits", None)):
        return OwnRowScorer() if getattr(model, "pair_kind", "pair") == "row" else OwnScorer()
    for base in cls.__mro__:
        if base.__name__ in SCORERS:
            return SCORERS[base.__name__]
        if base.__name__ in NOT_TRAINABLE:
            raise UserError(
                f"{cls.__name__} cannot be trained by a denoiser: {NOT_TRAINABLE[base.__name__]}. "
                f"Models that can: {', '.join(supported_models())}."
            )
    raise UserError(
        f"No scorer is known for {cls.__name__}: define pair_logits(users, items) -> logits on it, or call "
        f"register_scorer({cls.__name__!r}, ...). Models that work as they are: {', '.join(supported_models())}."
    )


def is_autoencoder(model: nn.Module | type) -> bool:
    """Whether a model scores whole users (an autoencoder), so that its batches are users with all their pairs.

    Raises:
        UserError: as :func:`scorer_for`.
    """
    return scorer_for(model).kind == "row"
