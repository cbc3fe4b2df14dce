"""RecBole's ``Config`` without its surprises: no stray command line, no evaluated strings, errors in one sentence."""

from __future__ import annotations

import ast
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from recdenoise.errors import UserError, unknown_name
from recdenoise.recbole_adapter import compat
from recdenoise.recbole_adapter.compat import valid_models

__all__ = ["build_config", "parse_yaml", "read_yaml", "resolve_model", "valid_models"]


class _Loader(yaml.SafeLoader):
    """Plain values only, with ``1e-3`` a number as everywhere but in YAML 1.1."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a configuration file.

    Args:
        path: a YAML file that holds one mapping; an empty file is an empty mapping.

    Returns:
        Its keys and values, plain types only.

    Raises:
        UserError: naming the file, and the line where there is one, when it is missing, unreadable, not YAML, or not a
            mapping with text keys.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"Configuration file {path} does not exist.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Configuration file {path} cannot be read: {error}.") from error
    try:
        content = yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"Configuration file {path}{where}: {error.problem or error.context}.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"Configuration file {path} is not YAML: {error}.") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"Configuration file {path} must hold a mapping of option names to values.")
    return content


def parse_yaml(text: str) -> Any:
    """One value as YAML has it, plain types only. Raises ``ValueError`` for what is no YAML."""
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(f"{text!r} is not YAML.") from error


def resolve_model(model: str | type, own_models: bool = True) -> type:
    """Find the class of a model.

    Args:
        model: a name or a class; a class is returned as it is.
        own_models: take our faster subclass where there is one, else RecBole's own class.

    Returns:
        The class.

    Raises:
        UserError: when no model has that name; it lists those that exist.
    """
    if isinstance(model, type):
        return model
    from recdenoise.recbole_adapter.models import MODELS

    if own_models and model in MODELS:
        return MODELS[model].cls
    return compat.get_model(model)


def build_config(
    model: str | type | None = None,
    dataset: str | None = None,
    config_file_list: Sequence[str | Path] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    *,
    read_command_line: bool = False,
    own_models: bool = True,
) -> Any:
    """Build RecBole's configuration; arguments as in RecBole's ``Config``, and the same precedence.

    ``use_gpu: False`` is honoured (RecBole itself heeds only an empty ``gpu_id``) and CUDA_VISIBLE_DEVICES, where set,
    decides the GPU unless ``gpu_id`` is given. Strings are read as Python literals (``"[64, 32]"``), never evaluated.

    Args:
        model: a name or class; None takes ``model`` from the files or the dictionary.
        dataset: a name; None takes ``dataset`` from the files or the dictionary.
        config_file_list: YAML files, later ones first in rank.
        config_dict: options that outrank the files.
        read_command_line: let ``--key=value`` arguments of the process outrank everything, as RecBole always does.
        own_models: give our faster subclass where there is one, see :func:`resolve_model`.

    Returns:
        A ``recbole.config.Config``; its ``device`` is the CPU when there is no usable GPU.

    Raises:
        UserError: for a file that cannot be read, an unknown model, data set or metric, or whatever else RecBole
            refuses.
    """
    compat.apply()
    from recbole.config import Config

    options: dict[str, Any] = {}
    for path in config_file_list or ():
        options.update(read_yaml(path))
    options.update(config_dict or {})
    options = {key: _literal(value) for key, value in options.items()}
    model = model if model is not None else options.get("model")
    dataset = dataset if dataset is not None else options.get("dataset")
    if not isinstance(model, str | type) or not model:
        raise UserError(f"Name a model. Valid: {', '.join(valid_models())}.")
    if not isinstance(dataset, str) or not dataset:
        raise UserError("Name a data set: 'ml-100k', or a folder of RecBole files below data_path.")
    cls = resolve_model(model, own_models)
    _choose_device(options)
    with _isolated(Config, read_command_line):
        try:
            config = Config(model=cls, dataset=dataset, config_dict=options)
        except UserError:
            raise
        except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
            raise _explained(e, options) from e
    _check_dataset(config)
    return config


def _literal(value: Any) -> Any:
    """A string that spells a Python literal becomes it, as RecBole does for search spaces; others stay strings."""
    if not isinstance(value, str):
        return value
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    try:
        read = ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value
    return value if read is None or isinstance(read, bytes | complex | set) else read


def _choose_device(options: dict[str, Any]) -> None:
    """Say by ``gpu_id``, the one option that RecBole heeds, what ``use_gpu`` and the environment ask for."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if options.get("use_gpu") is False:
        options["gpu_id"] = ""
    elif "gpu_id" not in options and visible is not None:
        options["gpu_id"] = visible


@contextmanager
def _isolated(config_class: Any, read_command_line: bool) -> Iterator[None]:
    """While RecBole builds a ``Config``: no command line, no ``eval``, and CUDA_VISIBLE_DEVICES kept from a CPU run."""
    with _ONE_AT_A_TIME:
        arguments, convert = sys.argv, config_class._convert_config_dict
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if not read_command_line:
            sys.argv = arguments[:1] or [""]
        config_class._convert_config_dict = lambda self, values: {key: _literal(value) for key, value in values.items()}
        try:
            yield
        finally:
            sys.argv, config_class._convert_config_dict = arguments, convert
            if os.environ.get("CUDA_VISIBLE_DEVICES") == "":  # RecBole hides every GPU from the whole process
                os.environ.pop("CUDA_VISIBLE_DEVICES")
                if visible is not None:
                    os.environ["CUDA_VISIBLE_DEVICES"] = visible


_ONE_AT_A_TIME = threading.RLock()
"""What :func:`_isolated` puts aside belongs to the whole process: threads wait for each other."""


def _explained(error: Exception, options: Mapping[str, Any]) -> UserError:
    """One sentence for what RecBole refused."""
    from recbole.evaluator import metric_types

    metrics = options.get("metrics", [])
    for metric in [metrics] if isinstance(metrics, str) else metrics if isinstance(metrics, list) else []:
        if not isinstance(metric, str) or metric.lower() not in metric_types:
            return unknown_name("metric", metric, metric_types)
    said = str(error.args[0]) if error.args else type(error).__name__
    return UserError(f"RecBole refuses the configuration: {said.strip()}")


def _check_dataset(config: Any) -> None:
    """A data set is a folder with an .inter file, or one that RecBole can download; anything else fails here."""
    import recbole

    name, folder = config["dataset"], Path(config["data_path"])
    if (folder / f"{name}.inter").is_file() or config["benchmark_filename"] or config["url"]:
        return
    properties = Path(recbole.__file__).parent / "properties" / "dataset"
    known = set(read_yaml(properties / "url.yaml")) if (properties / "url.yaml").is_file() else set()
    if name in known and not folder.exists():
        return
    if folder.is_dir():
        raise UserError(f"Data set {name!r}: {folder} has no file {name}.inter.")
    near = {path.parent.name for path in folder.parent.glob("*/*.inter")} if folder.parent.is_dir() else set()
    error = unknown_name("data set", name, near | {"ml-100k"})
    raise UserError(f"{error} Or one of the {len(known)} that RecBole downloads; looked for a folder {folder}.")
