"""The ``denoiser`` flag in a RecBole config, and RecBole's training settings as a :class:`LoopConfig`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from recdenoise import denoisers
from recdenoise.denoisers import Denoiser, DenoiserConfig
from recdenoise.errors import UserError
from recdenoise.loop import LoopConfig
from recdenoise.options import convert, describe, require
from recdenoise.selection import check_selector

PREFIX = "denoiser_"


def denoiser_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Whatever a config says about the denoiser, as one mapping; it may lack the ``name``, or everything.

    ``denoiser: deca_p``, ``denoiser: {name: deca_p, alpha: 1}`` and flat keys such as ``denoiser_alpha: 1`` mean the
    same; flat keys win, because hyper-parameter searches set them on top of a file.

    Raises:
        UserError: a flag that is neither a name nor a mapping.
    """
    flat = {key.removeprefix(PREFIX): value for key, value in config.items() if key.startswith(PREFIX)}
    nested = config.get("denoiser")
    if nested is None:
        return flat
    if isinstance(nested, str):
        nested = {"name": nested}
    if not isinstance(nested, Mapping):
        raise UserError(f"denoiser is {nested!r}; it must be a name or a mapping with a name.")
    return {**nested, **flat}


def denoiser_spec(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The flag of a config as one mapping with a name, or ``None`` where there is none.

    Raises:
        UserError: options without a denoiser, or what :func:`denoiser_options` refuses.
    """
    spec = denoiser_options(config)
    if spec and "name" not in spec:
        keys = ", ".join(PREFIX + str(key) for key in sorted(spec, key=str))
        raise UserError(f"The config sets {keys} but no denoiser; add denoiser: NAME.")
    return spec or None


def read_flag(config: Mapping[str, Any]) -> tuple[type[Denoiser], DenoiserConfig] | None:
    """The method and its checked options, or ``None`` where the config has no denoiser. Raises ``UserError``."""
    spec = denoiser_spec(config)
    return None if spec is None else denoisers.parse(spec)


def validates(config: Mapping[str, Any]) -> bool:
    """Whether a config asks for validation while training: ``eval_step`` above 0. Raises ``UserError``."""
    return bool(read(config, "eval_step", int, 0) > 0)


def loop_config(config: Mapping[str, Any], *, validation_data: bool) -> LoopConfig:
    """RecBole's settings for the loop.

    ``valid_selector`` (``last``, ``loss``, ``trimmed`` or a metric) chooses the epoch; without it RecBole's
    ``valid_metric`` does, or the last one is kept where nothing is validated. ``stopping_step`` is the patience,
    ``eval_step`` the rhythm.

    Args:
        config: anything with RecBole's keys.
        validation_data: whether there is any.

    Raises:
        UserError: a learner that the loop does not have, a value out of range, or a ``valid_selector`` that nothing is
            validated for.
    """
    learner = str(config.get("learner") or "adam").lower()
    if learner != "adam":
        raise UserError(f"learner is {learner!r}; denoisers declare their optimisers and train with adam.")
    rhythm = read(config, "eval_step", int, 0)
    selector = check_selector(str(config.get("valid_selector") or config.get("valid_metric") or "last"))
    if not validation_data or rhythm <= 0:
        if config.get("valid_selector") and selector != "last":
            lack = f"eval_step is {rhythm}" if validation_data else "there is no validation data"
            raise UserError(f"valid_selector is {selector!r}, but {lack}: nothing is validated. Use last.")
        selector, rhythm = "last", 1
    size = read(config, "train_batch_size", int, 2048)
    require(size >= 1, "train_batch_size", size, "1 or more")
    epochs, rate = read(config, "epochs", int, 300), read(config, "learning_rate", float, 1e-3)
    require(epochs >= 1, "epochs", epochs, "1 or more")
    require(0 < rate < math.inf, "learning_rate", rate, "above 0")
    seed = read(config, "seed", int, 2020)
    require(0 <= seed < 1 << 32, "seed", seed, "from 0 to 4294967295")
    patience = read(config, "stopping_step", int, None)
    clip = config.get("clip_grad_norm")
    if isinstance(clip, Mapping):
        usual = set(clip) <= {"max_norm", "norm_type"} and clip.get("norm_type", 2) == 2
        require(usual, "clip_grad_norm", dict(clip), "a number, or max_norm with norm_type 2")
        clip = clip.get("max_norm")
    options: dict[str, Any] = {
        "epochs": epochs,
        "lr": rate,
        "seed": seed,
        "selector": selector,
        "patience": None if patience is None else max(1, patience),
        "eval_every": rhythm,
        "precision": "bf16" if read(config, "enable_amp", bool, False) else "fp32",
        "clip_grad_norm": read({"clip_grad_norm": clip}, "clip_grad_norm", float, None),
        "weight_decay": read(config, "weight_decay", float, 0.0),
    }
    for name, kind in (("eval_steps", int), ("paper_code_stopping", bool), ("checkpoint_seconds", float)):
        if config.get(name) is not None:
            options[name] = read(config, name, kind, None)
    return LoopConfig(**options)


def read(config: Mapping[str, Any], name: str, kind: Any, default: Any) -> Any:
    """One option as ``kind``, ``default`` where it is absent or null. Raises ``UserError`` for another type."""
    value = config.get(name)
    if value is None:
        return default
    try:
        return convert(value, kind)
    except TypeError:
        raise UserError(f"Option {name!r} is {value!r}; it must be {describe(kind)}.") from None
