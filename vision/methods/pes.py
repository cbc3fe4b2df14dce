"""PES: late layers stop early; then the network learns from the labels that it agrees with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from vision.methods.progressive import Progressive, ProgressiveConfig


@dataclass(frozen=True)
class PESConfig(ProgressiveConfig):
    """Options of PES. The paper: ResNet-18 or, for CIFAR-100, ResNet-34 with a 3x3 stem; 200 epochs of SGD 0.1, times
    0.1 at 100 and 150, batch 128, decay 1e-4, a tenth of the images for validation."""


class PES(Progressive):
    """Progressive early stopping (Algorithm 1), then training on the rows whose label the network agrees with.

    ``warm``: everything, from all labels. ``refit``: late layers and head drawn anew, the rest frozen. ``head``: the
    same with the head alone. ``refine``: everything, from the rows kept as each epoch begins, weighted by class.
    """

    name = "pes"
    title = "PES"
    summary = "stops early layers late and late layers early, then learns from labels it agrees with"
    distributed = True
    paper = "Bai et al., Understanding and Improving Early Stopping for Learning with Noisy Labels, NeurIPS 2021"
    Config = PESConfig
    neutral = None
    neutral_reason = "it draws layers anew and learns from the rows that it agrees with"
    brief: ClassVar[dict[str, Any]] = {
        "warm_epochs": 1.0,
        "refit_epochs": 1,
        "head_epochs": 1,
        "refit_lr": 0.02,
        "refit_rows": "all",
        "late": ["1"],
    }
