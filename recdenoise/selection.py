"""Which epoch of a stage is kept: the last one, or the best by a validation value."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from recdenoise.errors import UserError
from recdenoise.ranking import parse_metric

LOSSES = {"loss": "loss", "trimmed": "trimmed_loss"}
"""Selectors that minimise a validation loss, and the name of the value that validation gives for them.

``trimmed`` leaves out the 20% of validation positives with the largest loss (ERM_RE).
"""


ACCURACY = "accuracy"
"""Share of held-out examples whose label is predicted: the higher, the better. Only classifiers have it."""


def check_selector(name: str, *, accuracy: bool = False) -> str:
    """Return ``name`` in lower case if it is ``last``, ``loss``, ``trimmed`` or a metric such as ``ndcg@20``.

    Args:
        name: what a user wrote.
        accuracy: whether ``accuracy`` is one too.

    Raises:
        UserError: it is none of them.
    """
    name = name.strip().lower()
    if name == "last" or name in LOSSES or (accuracy and name == ACCURACY):
        return name
    try:
        cut = parse_metric(name)[1]
    except UserError as error:
        raise UserError(
            f"Selector {name!r} is none of last, {', '.join(LOSSES)}, nor a metric such as ndcg@20: {error}"
        ) from None
    if cut is None:
        raise UserError(f"Selector {name!r} needs a cut-off, as in {name}@20.")
    return name


def check_class_selector(name: str) -> str:
    """Return ``name`` in lower case if it is a way of choosing an epoch of a classifier. Raises ``UserError``."""
    valid = ("last", "loss", ACCURACY)
    if name.strip().lower() not in valid:
        raise UserError(f"Selector {name!r} is none of {', '.join(valid)}.")
    return name.strip().lower()


Weights = dict[str, dict[str, Tensor]]
"""State of some modules, by their names."""


def copy_weights(modules: dict[str, nn.Module]) -> Weights:
    """A copy of the modules' weights and buffers."""
    return {
        name: {key: tensor.detach().clone() for key, tensor in module.state_dict().items()}
        for name, module in modules.items()
    }


def load_weights(modules: dict[str, nn.Module], weights: Weights) -> None:
    """Put weights that :func:`copy_weights` took back; modules that ``weights`` does not name stay as they are."""
    for name, state in weights.items():
        modules[name].load_state_dict(state)


class Selection:
    """Watches one stage's validation values, keeps the best weights and says when to stop.

    Args:
        selector: ``last``, ``loss``, ``trimmed``, ``accuracy`` or a metric name.
        patience: stop after so many evaluations without a new best; ``None`` never stops.
        paper_code: the published code's rule: count every evaluation whose loss exceeds the previous one's, stop at
            ``patience`` of them, keep the last weights.
    """

    def __init__(self, selector: str, patience: int | None, paper_code: bool = False) -> None:
        self.selector = check_selector(selector, accuracy=True)
        self.patience = patience
        self.paper_code = paper_code
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.best_weights: Weights = {}
        self.bad = 0
        self.previous: float | None = None

    @property
    def wanted(self) -> str | None:
        """Name of the value to ask validation for, or ``None``."""
        return None if self.selector == "last" else LOSSES.get(self.selector, self.selector)

    def observe(self, value: float, epoch: int, modules: dict[str, nn.Module]) -> bool:
        """Take in one validation value; returns whether it is the best so far (always for the published rule)."""
        signed = value if self.selector in LOSSES else -value
        if self.paper_code:
            self.bad += int(self.previous is not None and signed > self.previous)
            self.previous = signed
            return True
        if not math.isfinite(signed) or (self.best is not None and signed >= self.best):
            self.bad += 1
            return False
        self.best, self.best_epoch, self.bad = signed, epoch, 0
        self.best_weights = copy_weights(modules)
        return True

    @property
    def exhausted(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.bad >= self.patience

    def restore(self, modules: dict[str, nn.Module]) -> None:
        """Put the best weights back, where a best one was seen."""
        load_weights(modules, self.best_weights)

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors."""
        return {k: getattr(self, k) for k in ("best", "best_epoch", "best_weights", "bad", "previous")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        for key, value in state.items():
            setattr(self, key, value)
