"""Networks from whatever a user names: a name of ours, a function that builds one, or a module at hand."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn
from torch.nn.parameter import is_lazy

from recdenoise.errors import UserError
from recdenoise.resets import redraws
from vision.embedding import head_name

Model = str | nn.Module | Callable[[], nn.Module]
"""What :func:`vision.fit` trains."""


class Builder:
    """Builds the members of a method: copies of one network with weights of their own.

    Member 0 of a module at hand is a copy of it, weights and all; further members have their weights drawn anew, or,
    where it is ``pretrained``, only those of the last layer.

    Args:
        model: a name of :mod:`vision.networks`, a function without arguments, or a module.
        n_classes: outputs.
        shape: ``(C, H, W)`` of an image, for a name.
        pretrained: whether the weights of a module at hand, or of what the function returns, are worth keeping.
        weights: file of weights that a named network begins with.

    Raises:
        UserError: an unknown name, something that is no model, or a module with weights that have no size yet.
    """

    def __init__(
        self,
        model: Model,
        n_classes: int,
        shape: tuple[int, int, int],
        pretrained: bool = False,
        weights: str | None = None,
    ) -> None:
        self.model, self.n_classes, self.shape = model, n_classes, shape
        self.pretrained, self.weights = pretrained or weights is not None, weights
        if not isinstance(model, str | nn.Module) and not callable(model):
            raise UserError(
                f"The model is {model!r}; it must be a network's name, a torch.nn.Module or a function that builds one."
            )
        if weights is not None and not isinstance(model, str):
            raise UserError("Option 'weights' is for named networks; load the weights into the model that you give.")

    @property
    def name(self) -> str:
        """What the model is called in results."""
        if isinstance(self.model, str):
            return self.model
        return (
            type(self.model).__name__ if isinstance(self.model, nn.Module) else getattr(self.model, "__name__", "model")
        )

    def __call__(self, member: int) -> nn.Module:
        """A member, drawn from the global generator where something is drawn."""
        if isinstance(self.model, nn.Module):
            self._check_sizes(self.model)
        if isinstance(self.model, str):
            from vision import networks

            channels, *size = self.shape
            model = networks.build(
                self.model, self.n_classes, channels, image_size=(size[0], size[1]), weights=self.weights
            )
        elif isinstance(self.model, nn.Module):
            model = copy.deepcopy(self.model)
            if member and not self.pretrained:
                self._redraw(model, "The model")
        else:
            model = self.model()
            if not isinstance(model, nn.Module):
                raise UserError(f"The function {self.name} returned {type(model).__name__}, not a torch.nn.Module.")
            self._check_sizes(model)
        if member and self.pretrained:
            head = head_name(model, self.n_classes)
            if head is None:
                raise UserError(f"{self.name} has no nn.Linear with {self.n_classes} outputs to draw anew.")
            self._redraw(model.get_submodule(head), "The last layer")
        return model

    def _check_sizes(self, model: nn.Module) -> None:
        """Refuse weights that the first batch would size: until then they can be neither copied anew nor trained."""
        lazy = [name for name, values in (*model.named_parameters(), *model.named_buffers()) if is_lazy(values)]
        if lazy:
            raise UserError(
                f"{self.name} has weights without a size yet ({lazy[0]}): call it on a batch of images of shape "
                f"{self.shape} once before it is given, or name the size of every layer."
            )

    @staticmethod
    def _redraw(model: nn.Module, what: str) -> None:
        try:
            parts = list(redraws(model, what))
        except UserError as error:
            raise UserError(f"{error} Give a function that builds the model in place of the model itself.") from error
        for part in parts:
            part()
