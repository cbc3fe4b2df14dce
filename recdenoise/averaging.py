"""Exponential moving averages of weights: what is validated, chosen and kept in place of the weights of one step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Averaging:
    """The moving average of some modules' weights and buffers.

    The decay grows as ``(1 + t) / (10 + t)`` up to its value, so that the average soon forgets the initial weights.
    Whole numbers (counters of batch normalisation) are copied.

    Args:
        modules: by name, those that train.
        decay: share of the old average in the new one, in (0, 1).
    """

    def __init__(self, modules: Mapping[str, nn.Module], decay: float) -> None:
        self.decay, self.steps = decay, 0
        live = {f"{name}.{k}": v for name, module in modules.items() for k, v in module.state_dict().items()}
        self.live: dict[str, Tensor] = live  # shares storage with the modules
        self.mean = {key: value.clone() for key, value in live.items()}
        floating = [key for key, value in live.items() if value.is_floating_point()]
        self._live = [self.live[key] for key in floating]
        self._mean = [self.mean[key] for key in floating]
        self._counters = [key for key in live if key not in set(floating)]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        torch._foreach_lerp_(self._mean, self._live, 1.0 - decay)
        for key in self._counters:
            self.mean[key].copy_(self.live[key])

    def of(self, name: str) -> dict[str, Tensor]:
        """The averages of one module by the names of its weights and buffers: what calls it with them in place."""
        start = len(name) + 1
        return {key[start:]: value for key, value in self.mean.items() if key.startswith(f"{name}.")}

    @torch.no_grad()
    def settle(self) -> None:
        """Put the average into the modules for good."""
        for key, value in self.mean.items():
            self.live[key].copy_(value)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The modules hold the average inside the block, and their own weights again after it."""
        own = {key: value.clone() for key, value in self.live.items()}
        self.settle()
        try:
            yield
        finally:
            with torch.no_grad():
                for key, value in own.items():
                    self.live[key].copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors."""
        return {"steps": self.steps, "mean": self.mean}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.steps = state["steps"]
        with torch.no_grad():
            for key, value in state["mean"].items():
                self.mean[key].copy_(value)
