"""The ``denoiser`` flag in a RecBole config, and RecBole's training settings as a :class:`LoopConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recdenoise import denoisers
from recdenoise.denoisers import Denoiser, DenoiserConfig
from recdenoise.errors import UserError
from recdenoise.loop import LoopConfig
from recdenoise.selection import check_selector

PREFIX = "denoiser_"


def denoiser_spec(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The flag of a config as one mapping, or ``None`` where there is none.

    ``denoiser: deca_p``, ``denoiser: {name: deca_p, alpha: 1}`` and flat keys such as ``denoiser_alpha: 1`` mean the
    same; flat keys win, because hyper-parameter searches set them on top of a file.

    Raises:
        UserError: flat keys without a denoiser, or a flag that is neither a name nor a mapping.
    """
    flat = {key.removeprefix(PREFIX): value for key, value in config.items() if key.startswith(PREFIX)}
    nested = config.get("denoiser")
    if nested is None:
        if flat.keys() - {"name"}:
            keys = ", ".join(PREFIX + key for key in sorted(flat))
            if "name" not in flat:
                raise UserError(f"The config sets {keys} but no denoiser; add denoiser: NAME.")
        return flat or None
    if isinstance(nested, str):
        nested = {"name": nested}
    if not isinstance(nested, Mapping):
        raise UserError(f"denoiser is {nested!r}; it must be a name or a mapping with a name.")
    return {**nested, **flat}


def read_flag(config: Mapping[str, Any]) -> tuple[type[Denoiser], DenoiserConfig] | None:
    """The method and its checked options, or ``None`` where the config has no denoiser. Raises ``UserError``."""
    spec = denoiser_spec(config)
    return None if spec is None else denoisers.parse(spec)


def loop_config(config: Mapping[str, Any], *, validates: bool) -> LoopConfig:
    """RecBole's settings for the loop.

    ``valid_selector`` (``last``, ``loss``, ``trimmed`` or a metric) chooses the epoch; without it RecBole's
    ``valid_metric`` does. ``stopping_step`` is the patience, ``eval_step`` the rhythm.

    Args:
        config: anything with RecBole's keys.
        validates: whether there is validation data.

    Raises:
        UserError: a learner that the loop does not have, or a value out of range.
    """
    learner = str(config.get("learner") or "adam").lower()
    if learner != "adam":
        raise UserError(f"learner is {learner!r}; denoisers declare their optimisers and train with adam.")
    rhythm = int(config.get("eval_step") or 0)
    selector = config.get("valid_selector") or str(config.get("valid_metric") or "last").lower()
    if not validates or rhythm <= 0:
        selector, rhythm = "last", 1
    clip = config.get("clip_grad_norm")
    options: dict[str, Any] = {
        "epochs": int(config["epochs"]),
        "lr": float(config["learning_rate"]),
        "seed": int(config["seed"]),
        "selector": check_selector(str(selector)),
        "patience": None if config.get("stopping_step") is None else max(1, int(config["stopping_step"])),
        "eval_every": rhythm,
        "precision": "bf16" if config.get("enable_amp") else "fp32",
        "clip_grad_norm": float(clip["max_norm"]) if isinstance(clip, Mapping) else clip,
        "weight_decay": float(config.get("weight_decay") or 0.0),
    }
    for name in ("eval_steps", "paper_code_stopping", "checkpoint_seconds"):
        if config.get(name) is not None:
            options[name] = config[name]
    return LoopConfig(**options)
