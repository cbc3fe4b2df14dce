"""Models in RecBole's form: two of ours, three of RecBole's made faster; one line each in :data:`MODELS`.

The subclasses keep RecBole's class names, because RecBole finds defaults and trainers by the name of the class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from recdenoise.errors import unknown_name
from recdenoise.recbole_adapter.models.cdae import CDAE
from recdenoise.recbole_adapter.models.factorisation import GMF, MF
from recdenoise.recbole_adapter.models.lightgcn import LightGCN
from recdenoise.recbole_adapter.models.neumf import NeuMF

__all__ = ["CDAE", "GMF", "MF", "MODELS", "LightGCN", "ModelEntry", "NeuMF", "model_class", "paper_model_config"]


@dataclass(frozen=True)
class ModelEntry:
    """A model as ``recdenoise models`` lists it."""

    cls: type
    """The class, built by RecBole's ``(config, dataset)``."""
    family: str
    """factorisation, neural, autoencoder or graph."""
    paper: str
    """Where it was published."""
    summary: str
    """One line on what it computes."""
    paper_config: dict[str, Any]
    """RecBole config keys at the sizes of the DeCA paper (its Section 5.1)."""


MODELS: dict[str, ModelEntry] = {
    "MF": ModelEntry(
        MF,
        "factorisation",
        "Koren et al., Computer 2009",
        "dot product of a user's and an item's embedding",
        {"embedding_size": 32},
    ),
    "GMF": ModelEntry(
        GMF,
        "factorisation",
        "He et al., WWW 2017",
        "weighted element-wise product of the two embeddings",
        {"embedding_size": 32},
    ),
    "NeuMF": ModelEntry(
        NeuMF,
        "neural",
        "He et al., WWW 2017",
        "GMF and a multi-layer perceptron, joined in one head",
        {
            "mf_embedding_size": 32,
            "mlp_embedding_size": 128,
            "mlp_hidden_size": [128, 64, 32],
            "dropout_prob": 0.0,
            "mf_train": True,
            "mlp_train": True,
        },
    ),
    "CDAE": ModelEntry(
        CDAE,
        "autoencoder",
        "Wu et al., WSDM 2016",
        "denoising autoencoder over a user's items, with a vector per user",
        {
            "embedding_size": 32,
            "corruption_ratio": 0.5,
            "hid_activation": "tanh",
            "out_activation": "sigmoid",
            "loss_type": "BCE",
            "input_norm": "none",
        },
    ),
    "LightGCN": ModelEntry(
        LightGCN,
        "graph",
        "He et al., SIGIR 2020",
        "embeddings averaged over three hops of the user-item graph",
        {"embedding_size": 64, "n_layers": 3},
    ),
}


def model_class(name: str) -> type:
    """The class of one of our models.

    Args:
        name: a name of :data:`MODELS`.

    Raises:
        UserError: when it is not one; it lists those that are.
    """
    if name not in MODELS:
        raise unknown_name("model", name, MODELS)
    return MODELS[name].cls


def paper_model_config(model: str | type | object) -> dict[str, Any]:
    """The sizes of the DeCA paper for one model.

    Args:
        model: a name of :data:`MODELS`, a class, or an instance.

    Returns:
        A fresh dictionary of RecBole config keys.

    Raises:
        UserError: when the paper does not use this model.
    """
    name = model if isinstance(model, str) else (model if isinstance(model, type) else type(model)).__name__
    if name not in MODELS:
        raise unknown_name("model", name, MODELS)
    config = MODELS[name].paper_config
    return {key: list(value) if isinstance(value, list) else value for key, value in config.items()}
