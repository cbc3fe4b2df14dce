"""From what a person typed to the settings of a run: presets, files and ``--set``, checked before any data is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from recdenoise import denoisers, presets, seeds
from recdenoise.denoisers import Denoiser, DenoiserConfig
from recdenoise.errors import UserError, unknown_name
from recdenoise.loop import LoopConfig
from recdenoise.recbole_adapter.dataset import check_protocol, dataset_name, default_protocol
from recdenoise.recbole_adapter.flag import PREFIX, denoiser_options, loop_config, read, validates
from recdenoise.recbole_adapter.models import MODELS
from recdenoise.recbole_adapter.option_names import RESERVED, check_names, check_types
from recdenoise.recbole_adapter.recbole_config import parse_yaml, read_yaml, resolve_model
from recdenoise.recbole_adapter.scorers import scorer_for
from recdenoise.recbole_adapter.trainer import check_auxiliary

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

FIRST_SEED = 2020


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
        place, *inner = key.strip().split(".")
        if not equals or not place:
            raise UserError(f"--set {text!r} must read KEY=VALUE, for example --set epochs=5 or denoiser.alpha=1.")
        if inner and (place != "denoiser" or len(inner) > 1 or not inner[0]):
            raise UserError(f"--set {text!r}: only denoiser.OPTION goes one level down.")
        try:
            parsed = parse_yaml(value)
        except ValueError:
            raise UserError(f"--set {text!r}: the value {value!r} is not a number, a word or a YAML list.") from None
        if inner:
            parsed = {inner[0]: parsed}
        if place == "denoiser":
            parsed = {**options.get("denoiser", {}), **denoiser_options({"denoiser": parsed})}
        options[place] = parsed
    return options


def resolve(
    model: str,
    dataset: str,
    denoiser: str | Mapping[str, Any] | None = None,
    *,
    protocol: str | None = None,
    seed: int | None = None,
    preset: str | None = None,
    config_files: Sequence[str | Path] = (),
    overrides: Mapping[str, Any] | None = None,
    compared: bool = False,
) -> Settings:
    """Merge what is known about a run, later sources winning: model sizes, preset, files, overrides, arguments.

    Args:
        model: a model's name.
        dataset: a recipe's name or a folder that one built.
        denoiser: a name or a mapping; ``None`` takes it from the files, else plain training.
        protocol: ``paper`` or ``clean``; ``None`` takes it from the files, else see
            :func:`recdenoise.recbole_adapter.dataset.default_protocol`.
        seed: everything random follows from it; ``None`` takes it from the files, else 2020.
        preset: ``paper``, or ``None``.
        config_files: RecBole YAML files.
        overrides: options with RecBole's keys and a nested ``denoiser``.
        compared: the run stands beside another method's: of denoiser options that name no method only those that every
            method has are meant for it.

    Raises:
        UserError: anything that cannot work.
    """
    cls = resolve_model(model)
    scorer_for(cls)
    files = [read_yaml(path) for path in config_files]
    layers = [*files, dict(overrides or {})]
    name, spec = _denoiser(layers, denoiser, compared)
    method = denoisers.get(name)
    options: dict[str, Any] = {**DEFAULTS, **(MODELS[model].paper_config if model in MODELS else {})}
    if preset is not None:
        cell = presets.load(preset, dataset_name(dataset), model, name)
        published, quirks = cell.pop("denoiser", {}), cell.pop("denoiser_under_paper_code", {})
        if spec.get("compat") == "paper_code":
            published |= quirks
        spec = {**published, **spec}
        options |= cell
    given: dict[str, Any] = {}
    for layer, place in [*zip(files, config_files, strict=True), (layers[-1], "--set")]:
        check_names(layer, cls.__name__, str(place))
        given |= {k: v for k, v in layer.items() if k != "denoiser" and not k.startswith(PREFIX)}
    config = method.read_config(spec)
    check_auxiliary(config)
    options |= given
    if "valid_metric" in given and "valid_selector" not in given:
        options["valid_selector"] = str(given["valid_metric"]).lower()
    if "valid_selector" not in given and not validates(options):
        options["valid_selector"] = "last"  # config.yaml says what happens
    if config.compat == "paper_code":
        if options["valid_selector"] in ("last", "loss"):  # a metric is nothing that the published code knows
            options |= {k: v for k, v in PAPER_CODE.items() if k not in given}
        if model == "CDAE":
            options["input_norm"] = given.get("input_norm", "paper_code")
    protocol = check_protocol(
        options.pop("protocol", None) or default_protocol(dataset) if protocol is None else protocol
    )
    options["seed"] = seed = read(options, "seed", int, FIRST_SEED) if seed is None else seeds.whole(seed)
    for reserved in RESERVED:
        options.pop(reserved, None)
    loop = loop_config(options, validation_data=True)
    check_types(given, cls.__name__)
    return Settings(model, dataset, protocol, seed, method, config, options, loop, preset)


def _denoiser(
    layers: Sequence[Mapping[str, Any]], denoiser: str | Mapping[str, Any] | None, compared: bool
) -> tuple[str, dict[str, Any]]:
    """The method's name and the options meant for it: not those that a layer gives under another method's name."""
    specs = [denoiser_options(layer) for layer in layers]
    specs.append({"name": denoiser} if isinstance(denoiser, str) else dict(denoiser or {}))
    name = next((spec["name"] for spec in reversed(specs) if "name" in spec), "normal")
    everyones = {field.name for field in fields(DenoiserConfig)}
    options: dict[str, Any] = {}
    for spec in specs:
        if "name" not in spec and compared:
            spec = {key: value for key, value in spec.items() if key in everyones}
        if spec.get("name", name) == name:
            options |= spec
    options.pop("name", None)
    return name, options


def from_dict(saved: Mapping[str, Any]) -> Settings:
    """Read back :meth:`Settings.to_dict`. Raises ``UserError`` for a mapping that is not one."""
    values = dict(saved)
    kinds = {"model": str, "dataset": str, "protocol": str, "seed": int, "train_batch_size": int, "denoiser": dict}
    for key, kind in kinds.items():
        if type(values.get(key)) is not kind:
            raise UserError(
                f"The run's config.yaml has no usable {key!r} ({values.get(key)!r}): recdenoise did not write it so."
            )
    names = {key: values.pop(key, None) for key in ("model", "dataset", "protocol", "seed", "preset", "denoiser")}
    values["seed"] = names["seed"]
    spec = names.pop("denoiser")
    if spec.get("name") not in denoisers.names():
        raise UserError(f"{unknown_name('denoiser', spec.get('name'), denoisers.names())} Is a --plugin missing?")
    method, config = denoisers.parse(spec)
    check_protocol(names["protocol"])
    loop = loop_config(values, validation_data=True)
    return Settings(**names, method=method, config=config, options=values, loop=loop)


def read_settings(run: Path) -> Settings:
    """The settings of a run's folder. Raises ``UserError`` where it is none, or its ``config.yaml`` was cut short."""
    path = run / "config.yaml"
    if not path.is_file():
        raise UserError(f"{run} is not a run: it has no config.yaml.")
    return from_dict(read_yaml(path))
