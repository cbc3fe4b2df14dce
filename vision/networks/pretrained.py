"""torchvision's networks for large images, and weights that a user has on disk."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recdenoise.errors import UserError, unknown_name

PREFIX = "torchvision:"
TARGET = "target."
"""What the names of a method's network begin with in a run's weights."""


def torchvision_names() -> list[str]:
    """Names of torchvision's classifiers, without the prefix."""
    from torchvision import models

    return list(models.list_models(module=models))


def torchvision_network(name: str, n_classes: int, in_channels: int = 3) -> nn.Module:
    """A classifier of torchvision with random weights, its first convolution made for ``in_channels``.

    Raises:
        UserError: unknown name.
    """
    from torchvision import models

    if name not in torchvision_names():
        raise unknown_name("torchvision network", name, torchvision_names())
    extra = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    model = models.get_model(name, weights=None, num_classes=n_classes, **extra)
    if in_channels != 3:
        _replace_stem(model, in_channels)
    return model


def _replace_stem(model: nn.Module, in_channels: int) -> None:
    where, old = next((name, part) for name, part in model.named_modules() if isinstance(part, nn.Conv2d))
    new = nn.Conv2d(
        in_channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        old.dilation,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    model.set_submodule(where, new)


def load_weights(model: nn.Module, path: str | Path) -> tuple[str, ...]:
    """Load a state dict from a file into ``model``.

    A head for other classes stays as it is drawn. A first convolution for 3 channels is summed up for 1.

    Args:
        model: changed in place.
        path: a state dict saved by ``torch.save``, as torchvision publishes them, or a dict with ``state_dict`` or
            ``model`` in it; a finished run's folder, its ``model.pt``, or what ``FitResult.save`` wrote, whose network
            is taken as it predicts. Read without running code.

    Returns:
        Names of the parameters that were not loaded.

    Raises:
        UserError: no such file, not a state dict, or one of another network.
    """
    stored = _state_dict(Path(path))
    own = model.state_dict()
    head = _head(model)
    skipped, taken = [], {}
    for name, value in own.items():
        found = stored.get(name)
        if isinstance(found, Tensor) and found.shape != value.shape and _one_channel(found, value):
            found = found.sum(1, keepdim=True)
        if isinstance(found, Tensor) and found.shape == value.shape:
            taken[name] = found
        elif head is not None and name.startswith(f"{head}."):
            skipped.append(name)
        elif name.endswith("num_batches_tracked"):
            continue
        else:
            has = "lacks it" if found is None else f"has it as {tuple(getattr(found, 'shape', ()))}"
            raise UserError(
                f"{path} holds weights of another network: {type(model).__name__} needs {name} of shape "
                f"{tuple(value.shape)} and the file {has}."
            )
    model.load_state_dict(taken, strict=False)
    return tuple(skipped)


def _state_dict(path: Path) -> Mapping[str, Any]:
    if path.is_dir():
        path = path / "model.pt"
    if not path.is_file():
        raise UserError(f"There is no file {path} with weights.")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{path} is no file of weights that torch reads safely: {str(error).splitlines()[0]}"
        ) from error
    if isinstance(found, Mapping) and isinstance(found.get("modules"), Mapping) and "ends" in found:
        found = _of_run(path, found["modules"])
    for key in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise UserError(f"{path} holds {type(found).__name__}, not weights by name.")
    return {name.removeprefix("module."): value for name, value in found.items()}


def _of_run(path: Path, modules: Mapping[str, Any]) -> Mapping[str, Any]:
    """The network of a run of this library among all that its method has."""
    own = {name.removeprefix(TARGET): value for name, value in modules.items() if name.startswith(TARGET)}
    if not own:
        raise UserError(f"{path} holds several networks and none that is the target: save one as a state dict.")
    return own


def _head(model: nn.Module) -> str | None:
    """The name of the last Linear."""
    linear = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    return linear[-1] if linear else None


def _one_channel(found: Tensor, value: Tensor) -> bool:
    return found.ndim == value.ndim == 4 and found.shape[1] == 3 and value.shape[1] == 1
