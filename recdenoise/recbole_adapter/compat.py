"""RecBole 1.2 on today's numpy, scipy and torch: every patch in one place, with its reason.

RecBole 1.2.0 and 1.2.1 were written for numpy 1 and torch 1. :func:`apply` repairs what breaks, once; importing
:mod:`recdenoise.recbole_adapter` calls it. Nothing outside RecBole's own modules changes, save the numpy aliases that
RecBole itself sets and scipy's missing ``dok_matrix._update``.
"""

from __future__ import annotations

import copy
import importlib
import pkgutil
import sys
import types
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recdenoise.errors import UserError, unknown_name

_NUMPY_ALIASES: dict[str, type] = {
    "bool": np.bool_,
    "int": np.int_,
    "float": np.float64,
    "complex": np.complex128,
    "object": np.object_,
    "str": np.str_,
    "long": np.int_,
    "unicode": np.str_,
}
_MODEL_PACKAGES = (
    "general_recommender",
    "context_aware_recommender",
    "sequential_recommender",
    "knowledge_aware_recommender",
)
_EXTERNAL_MODELS = ("lightgbm", "xgboost")
_applied = False


def apply() -> None:
    """Repair RecBole in this process; further calls do nothing.

    Raises:
        ModuleNotFoundError: when RecBole is not installed.
    """
    global _applied
    if _applied:
        return
    _numpy_aliases()
    _scipy_dok_update()
    _model_lookup()
    _lenient_loading()
    _quick_start()
    _collector()
    # RecBole's chained fillna still works under the pandas that we ask for; its users cannot act on the warning.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"recbole\.data\..*")
    _applied = True


def _numpy_aliases() -> None:
    """numpy 2 lacks names that every ``Config()`` of RecBole copies (``np.float_``); only missing ones are set."""
    from recbole.config import Config

    def compatibility_settings(self: Any = None) -> None:
        for name, kind in _NUMPY_ALIASES.items():
            if name not in np.__dict__:  # not hasattr: numpy answers that with a warning
                setattr(np, name, kind)

    Config.compatibility_settings = compatibility_settings
    compatibility_settings()


def _scipy_dok_update() -> None:
    """scipy 1.13 removed ``dok_matrix._update``, with which RecBole's graph models fill their adjacency matrix."""
    from scipy.sparse import dok_matrix

    if hasattr(dok_matrix, "_update"):
        return

    def _update(self: Any, data: Mapping[tuple[int, int], Any]) -> None:
        # One dictionary update in C: `matrix[key] = value` for each key takes 200 times as long.
        self._dict.update(data)

    dok_matrix._update = _update


class _LenientTorch(types.ModuleType):
    """``torch`` as a RecBole module sees it: ``load`` reads RecBole's own pickled checkpoints, all else is torch's."""

    def __init__(self) -> None:
        super().__init__("torch")

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def load(*args: Any, **kwargs: Any) -> Any:
        kwargs.setdefault("weights_only", False)
        return torch.load(*args, **kwargs)


_lenient_torch = _LenientTorch()


def _make_lenient(module: types.ModuleType) -> None:
    """Let one RecBole module load pickled checkpoints; the global ``torch.load`` stays strict."""
    if getattr(module, "torch", None) is torch:
        module.__dict__["torch"] = _lenient_torch


def _lenient_loading() -> None:
    """torch 2.6 refuses RecBole's checkpoints, which hold a pickled ``Config``, in the trainer and in pre-training."""
    import recbole.model.general_recommender
    import recbole.trainer.trainer

    _make_lenient(recbole.trainer.trainer)
    package = recbole.model.general_recommender
    for info in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if info.name in sys.modules:
            _make_lenient(sys.modules[info.name])


def _model_lookup() -> None:
    """RecBole seeks an unknown model among lightgbm and xgboost too, and dies of their absence, not of the name."""
    for name in ("recbole.utils.utils", "recbole.utils", "recbole.config.configurator"):
        importlib.import_module(name).get_model = get_model  # type: ignore[attr-defined]


def get_model(model_name: str) -> type:
    """Find a model class by name: RecBole's, or one of ours that RecBole lacks.

    Args:
        model_name: the name of the class, for example ``"NeuMF"``.

    Returns:
        The class. RecBole's own where RecBole has one of that name; :data:`recdenoise.recbole_adapter.models.MODELS`
        holds the faster subclasses.

    Raises:
        UserError: when no model has that name; it lists those that exist.
        ModuleNotFoundError: for lightgbm and xgboost, when that package is absent.
    """
    import recbole.model

    folder = Path(recbole.model.__path__[0])
    packages = list(_MODEL_PACKAGES)
    if str(model_name).lower() in _EXTERNAL_MODELS:
        packages.append("exlib_recommender")
    for package in packages if str(model_name).isidentifier() else ():
        # Looked up as a file: finding a module imports its package, and so every model in it.
        if not (folder / package / f"{model_name.lower()}.py").is_file():
            continue
        # One of RecBole's models (SINE) turns anomaly detection on for the whole process, which slows training down.
        anomalies = torch.is_anomaly_enabled()
        try:
            module = importlib.import_module(f"recbole.model.{package}.{model_name.lower()}")
        finally:
            torch.autograd.set_detect_anomaly(anomalies)
        _make_lenient(module)  # models outside the general package load pre-training too
        found = getattr(module, model_name, None)
        if isinstance(found, type):
            return found
    from recdenoise.recbole_adapter.models import MODELS

    if model_name in MODELS:
        return MODELS[model_name].cls
    raise unknown_name("model", model_name, valid_models())


def valid_models() -> list[str]:
    """Names of the general recommenders: ours and every one of RecBole's, sorted."""
    import recbole.model.general_recommender as general

    from recdenoise.recbole_adapter.models import MODELS

    own = {name for name, value in vars(general).items() if isinstance(value, type)}
    return sorted(own | set(MODELS))


def _quick_start() -> None:
    """``recbole.quick_start`` imports ray for one call, and the ray it asks for imports neither on numpy 2 nor on 3.12.

    While it is imported, a module stands in for ray, whose ``tune.report`` passes on to the real one when it is called
    and, as ray outside a tuning session, does nothing when there is none. The stand-in is gone afterwards, so that
    other packages still find ray as it is.
    """
    if "recbole.quick_start" not in sys.modules:
        stand_in = "ray" not in sys.modules
        if stand_in:
            ray, tune = types.ModuleType("ray"), types.ModuleType("ray.tune")
            ray.tune, tune.report = tune, _report  # type: ignore[attr-defined]
            sys.modules.update({"ray": ray, "ray.tune": tune})
        try:
            importlib.import_module("recbole.quick_start")
        finally:
            if stand_in:
                sys.modules.pop("ray", None)
                sys.modules.pop("ray.tune", None)
    package, module = sys.modules["recbole.quick_start"], sys.modules["recbole.quick_start.quick_start"]
    module.get_model = get_model  # type: ignore[attr-defined]
    for target in (package, module):
        target.load_data_and_model = load_data_and_model  # type: ignore[attr-defined]


def _collector() -> None:
    """RecBole asks a number and a Counter for their ``cpu()``: no metric of items (ItemCoverage, ...) could be had."""
    from recbole.evaluator.collector import Collector

    def get_data_struct(self: Any) -> Any:
        held = self.data_struct._data_dict
        held.update({key: value.cpu() for key, value in held.items() if isinstance(value, torch.Tensor)})
        result = copy.deepcopy(self.data_struct)
        for key in ("rec.topk", "rec.meanrank", "rec.score", "rec.items", "data.label"):
            if key in self.data_struct:
                del self.data_struct[key]
        return result

    Collector.get_data_struct = get_data_struct


def _report(*args: Any, **metrics: Any) -> None:
    """``ray.tune.report``, when there is a ray that imports."""
    try:
        from ray import tune
    except Exception:  # an old ray fails on new packages in many ways; none of them is the caller's business
        return
    tune.report(*args, **metrics)


def load_data_and_model(model_file: str) -> tuple[Any, Any, Any, Any, Any, Any]:
    """RecBole's function of the same name; its ``torch`` is local, so no proxy reaches it and it is written anew.

    Args:
        model_file: a checkpoint saved by RecBole. It is unpickled, which can run code: load only files you trust.

    Returns:
        ``(config, model, dataset, train_data, valid_data, test_data)``.

    Raises:
        UserError: a checkpoint without a config, such as a denoiser's.
    """
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import init_logger, init_seed

    checkpoint = _lenient_torch.load(model_file, map_location=None if torch.cuda.is_available() else "cpu")
    if "config" not in checkpoint:
        raise UserError(
            f"{model_file} is no checkpoint of RecBole's. One that a denoiser left holds weights alone: hand it to "
            "DenoisingTrainer.evaluate(model_file=...), or train by `recdenoise train`, whose runs can be loaded."
        )
    config = checkpoint["config"]
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    dataset = create_dataset(config)
    parts = data_preparation(config, dataset)
    init_seed(config["seed"], config["reproducibility"])
    model_class = getattr(config, "model_class", None) or get_model(config["model"])
    model = model_class(config, parts[0]._dataset).to(config["device"])
    model.load_state_dict(checkpoint["state_dict"])
    model.load_other_parameter(checkpoint.get("other_parameter"))
    return (config, model, dataset, *parts)
