"""The last layer of any image classifier, and the embedding that it reads."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from recdenoise.errors import UserError, unknown_name


def as_logits(output: Any) -> Tensor:
    """A model's logits ``(n, C)``, also from models that return a tuple or an object with ``logits``.

    Raises:
        UserError: there is no tensor in what the model returned.
    """
    output = getattr(output, "logits", output)
    if isinstance(output, Tensor):
        return output
    try:
        first = output[0]
    except (TypeError, LookupError):
        first = None
    if not isinstance(first, Tensor):
        raise UserError(f"The model returns {type(output).__name__}; it must return its logits (n, C), a tensor.")
    return first


def head_name(model: nn.Module, n_classes: int) -> str | None:
    """Dotted name of the last ``nn.Linear`` with ``n_classes`` outputs, or ``None`` where there is none."""
    named = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and m.out_features == n_classes]
    return named[-1] if named else None


def check_layer(model: nn.Module, layer: str | None, n_classes: int) -> None:
    """Refuse a model whose embedding cannot be found.

    Raises:
        UserError: ``layer`` names no part of the model, or is ``None`` and the model ends in no ``nn.Linear``.
    """
    if layer is not None:
        names = [name for name, _ in model.named_modules() if name]
        if layer not in names:
            raise unknown_name("layer", layer, names)
    elif head_name(model, n_classes) is None:
        raise UserError(
            f"{type(model).__name__} has no nn.Linear with {n_classes} outputs to take the embedding from: "
            f"name the layer whose output it is, as in embedding='avgpool'."
        )


class Tap(nn.Module):
    """A model that also returns its embedding, from one forward.

    Args:
        model: used as it is, its weights are not copied.
        n_classes: outputs of the last layer.
        layer: dotted name of the module whose output is the embedding; ``None`` takes the input of the last Linear.
        stays: hook the layer once and for all, as a compiled forward needs; otherwise for each forward alone.
    """

    def __init__(self, model: nn.Module, n_classes: int, layer: str | None = None, stays: bool = False) -> None:
        super().__init__()
        check_layer(model, layer, n_classes)
        self.model = model
        name = layer or head_name(model, n_classes) or ""
        self._reads_input, self._layer, self._stays = layer is None, model.get_submodule(name), stays
        self._seen: dict[str, Tensor] = {}
        if stays:
            self._hook()

    def _hook(self) -> RemovableHandle:
        if self._reads_input:
            return self._layer.register_forward_pre_hook(self._keep_input)
        return self._layer.register_forward_hook(self._keep_output)

    def _keep_input(self, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._seen["embedding"] = args[0]

    def _keep_output(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self._seen["embedding"] = output

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(n, C)`` and embeddings ``(n, D)``."""
        if self._stays:
            logits = as_logits(self.model(images))
        else:
            handle = self._hook()
            try:
                logits = as_logits(self.model(images))
            finally:
                handle.remove()
        return logits, self._seen.pop("embedding").flatten(1)


def without_head(model: nn.Module, n_classes: int) -> tuple[nn.Module, int]:
    """A copy of ``model`` whose last Linear is gone, and the width of what it gives.

    Raises:
        UserError: it has no ``nn.Linear`` with ``n_classes`` outputs.
    """
    check_layer(model, None, n_classes)
    name = head_name(model, n_classes) or ""
    model = copy.deepcopy(model)
    head = model.get_submodule(name)
    assert isinstance(head, nn.Linear)
    if not name:
        return nn.Identity(), head.in_features
    model.set_submodule(name, nn.Identity())
    return model, head.in_features
