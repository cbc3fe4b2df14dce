"""What a checkpoint of RecBole's trainer must share with the run that goes on from it."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

import recdenoise
from recdenoise.errors import UserError
from recdenoise.loop import LoopConfig
from recdenoise.recbole_adapter.flag import read_flag

_ADDED = {"worker", "local_rank", "wandb_project", "checkpoint_seconds", "dataset", "model", "single_spec"}
"""What stands in every config besides RecBole's own categories and the options of models."""


def identity(
    config: Any, model: nn.Module, dataset: str, pairs: tuple[Tensor, Tensor], settings: LoopConfig
) -> dict[str, Any]:
    """One plain value for everything that the outcome follows from, so that a message can name the one that differs.

    Args:
        config: RecBole's, with a denoiser.
        model: what is trained.
        dataset: its name.
        pairs: ``(users, items)`` of training, ``(n,)`` int64 each: a checkpoint of another split has learned rows that
            are in the test here.
        settings: of the loop.
    """
    view = dict(config.final_config_dict)
    flag = read_flag(view)
    if flag is None:
        raise UserError("The config names no denoiser.")
    method, options = flag
    digest = hashlib.blake2b(torch.stack(pairs).cpu().numpy().tobytes(), digest_size=8).hexdigest()
    others = {name for names in config.parameters.values() for name in names} | _ADDED
    of_model = {
        key: repr(value)
        for key, value in sorted(view.items())
        if key not in others
        and not key.startswith("denoiser")
        and isinstance(value, bool | int | float | str | list | None)
    }
    of_loop = {key: value for key, value in asdict(settings).items() if key != "checkpoint_seconds"}
    of_loop["train_batch_size"] = int(config["train_batch_size"])
    return {
        "version": recdenoise.__version__,
        "model": type(model).__name__,
        "dataset": dataset,
        "training interactions": f"{len(pairs[0])}, {digest}",
        "denoiser": method.name,
        **{f"option {key}": value for key, value in {**of_model, **of_loop}.items()},
        **{f"option denoiser.{key}": value for key, value in options.to_dict().items()},
    }
