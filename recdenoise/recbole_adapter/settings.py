"""From what a person typed to the settings of a run: presets, files and ``--set``, checked before any data is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from recdenoise import denoisers, presets
from recdenoise.denoisers import Denoiser, DenoiserConfig
from recdenoise.errors import UserError
from recdenoise.loop import LoopConfig
from recdenoise.recbole_adapter.flag import denoiser_spec, loop_config
from recdenoise.recbole_adapter.models import MODELS
from recdenoise.recbole_adapter.recbole_config import read_yaml, resolve_model
from recdenoise.recbole_adapter.scorers import scorer_for

DEFAULTS: dict[str, Any] = {
    "epochs": 300,
    "train_batch_size": 2048,
    "learning_rate": 1e-3,
    "stopping_step": 10,
    "eval_step": 1,
    "valid_selector": "ndcg@20",
}
"""Without a preset: RecBole's rhythm and patience, and a ranking metric to choose the epoch by."""

PAPER_CODE = {"eval_steps": 500, "stopping_step": 2, "paper_code_stopping": True}
"""How the published code stops early: its own rhythm, its own rule."""


@dataclass(frozen=True)
class Settings:
    """A run, resolved and checked.

    Attributes:
        model, dataset, protocol, seed: as typed, the data set possibly a folder.
        method, config: the denoiser and its options.
        options: RecBole options, without the denoiser.
        loop: how to train.
        preset: where the options came from, or ``None``.
    """

    model: str
    dataset: str
    protocol: str
    seed: int
    method: type[Denoiser]
    config: DenoiserConfig
    options: dict[str, Any]
    loop: LoopConfig
    preset: str | None = None

    @property
    def batch_size(self) -> int:
        """Observed pairs, or users, in a step."""
        return int(self.options["train_batch_size"])

    def to_dict(self) -> dict[str, Any]:
        """Plain types: what ``config.yaml`` holds. :func:`from_dict` reads it back."""
        return {
            "model": self.model,
            "dataset": self.dataset,
            "protocol": self.protocol,
            "seed": self.seed,
            "preset": self.preset,
            "denoiser": {"name": self.method.name, **self.config.to_dict()},
            **self.options,
        }

    def identity(self, version: str) -> dict[str, Any]:
        """What a checkpoint must share with a run to be continued by it."""
        flat = {f"option {key}": value for key, value in self.options.items()}
        flat |= {f"option denoiser.{key}": value for key, value in self.config.to_dict().items()}
        names = ("model", "dataset", "protocol", "seed")
        return {"version": version, **{n: getattr(self, n) for n in names}, **flat}


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """``["epochs=5", "denoiser.alpha=1"]`` as nested options; values are read as YAML.

    Raises:
        UserError: an assignment without ``=`` or with a value that is no YAML.
    """
    options: dict[str, Any] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {text!r} must read KEY=VALUE, for example --set epochs=5 or denoiser.alpha=1.")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"--set {text!r}: the value {value!r} is not a number, a word or a YAML list.") from None
        place, *inner = key.strip().split(".")
        if inner:
            nested = options.setdefault(place, {})
            if len(inner) > 1 or not isinstance(nested, dict):
                raise UserError(f"--set {text!r}: only denoiser.OPTION goes one level down.")
            nested[inner[0]] = parsed
        else:
            options[place] = parsed
    return options


def resolve(
    model: str,
    dataset: str,
    denoiser: str | Mapping[str, Any] | None = None,
    *,
    protocol: str = "paper",
    seed: int = 2020,
    preset: str | None = None,
    config_files: Sequence[str | Path] = (),
    overrides: Mapping[str, Any] | None = None,
) -> Settings:
    """Merge what is known about a run, later sources winning: model sizes, preset, files, overrides.

    Args:
        model: a model's name.
        dataset: a recipe's name or a folder that one built.
        denoiser: a name or a mapping; ``None`` takes it from the files, else plain training.
        protocol: ``paper`` or ``clean``.
        seed: everything random follows from it.
        preset: ``paper``, or ``None``.
        config_files: RecBole YAML files.
        overrides: options with RecBole's keys and a nested ``denoiser``.

    Raises:
        UserError: anything that cannot work.
    """
    scorer_for(resolve_model(model))
    layers = [read_yaml(path) for path in config_files] + [dict(overrides or {})]
    spec: dict[str, Any] = {}
    for layer in layers:
        given = layer.get("denoiser")
        if isinstance(given, Mapping) and "name" not in given:
            spec |= given  # --set denoiser.alpha=1 adds to what a file or the preset says
        else:
            spec |= denoiser_spec(layer) or {}
    chosen = {"name": denoiser} if isinstance(denoiser, str) else dict(denoiser or {})
    name = chosen.get("name") or spec.get("name") or "normal"
    method = denoisers.get(name)
    if spec.get("name") not in (None, name):
        spec = {}  # the files speak of another method than the one asked for
    options: dict[str, Any] = {**DEFAULTS, **(MODELS[model].paper_config if model in MODELS else {})}
    if preset is not None:
        cell = presets.load(preset, Path(dataset).name if Path(dataset).is_dir() else dataset, model, name)
        spec = {**cell.pop("denoiser", {}), **spec}
        options |= cell
    for layer in layers:
        options |= {k: v for k, v in layer.items() if k != "denoiser" and not k.startswith("denoiser_")}
    spec = {**spec, **chosen}
    spec.pop("name", None)
    config = method.read_config(spec)
    options["seed"] = seed
    if config.compat == "paper_code":
        if options["valid_selector"] in ("last", "loss"):  # a metric is nothing that the published code knows
            options = {**options, **PAPER_CODE}
        if model == "CDAE":
            options["input_norm"] = "paper_code"
    for reserved in ("model", "dataset", "protocol", "benchmark_filename", "data_path"):
        options.pop(reserved, None)
    return Settings(model, dataset, protocol, seed, method, config, options, _loop(options), preset)


def _loop(options: Mapping[str, Any]) -> LoopConfig:
    try:
        size = int(options["train_batch_size"])
        loop = loop_config(options, validates=True)
    except (TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"A training option has the wrong type: {error}.") from error
    if size < 1:
        raise UserError(f"Option 'train_batch_size' is {size}; it must be 1 or more.")
    return loop


def from_dict(saved: Mapping[str, Any]) -> Settings:
    """Read back :meth:`Settings.to_dict`. Raises ``UserError`` for a file that is not one."""
    values = dict(saved)
    try:
        names = {key: values.pop(key) for key in ("model", "dataset", "protocol", "seed", "preset", "denoiser")}
    except KeyError as error:
        raise UserError(f"The run's config.yaml lacks {error.args[0]!r}; it was not written by recdenoise.") from None
    method, config = denoisers.parse(names.pop("denoiser"))
    return Settings(**names, method=method, config=config, options=values, loop=_loop(values))
