"""How to train an image classifier, whatever the method: every option of a run, typed and checked when it is read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from recdenoise.errors import UserError
from recdenoise.loop_config import LoopConfig
from recdenoise.options import read_options, require
from recdenoise.schedules import Schedule

RATES = {"sgd": 0.1, "adam": 1e-3}
"""Learning rate of an optimiser where none is given."""


@dataclass(frozen=True)
class TrainOptions:
    """Options of a run. The defaults are those of the DeCA paper's image experiments, with its optimiser settled."""

    epochs: int = 120
    """Sweeps over the training set in each stage that names no number of its own."""

    batch_size: int = 128
    """Images in a step."""

    epoch_images: int | None = None
    """Images of a sweep, drawn anew for each, as many of every observed class as of another; null goes over all."""

    optimizer: Literal["sgd", "adam"] = "sgd"
    """Optimiser, where the method declares none."""

    lr: float | None = None
    """Learning rate; null takes 0.1 for sgd and 0.001 for adam."""

    momentum: float = 0.9
    """Of sgd."""

    nesterov: bool = False
    """Nesterov's momentum for sgd."""

    weight_decay: float = 5e-4
    """Decay of every trained parameter."""

    schedule: Literal["constant", "step", "cosine", "linear"] = "step"
    """Learning rate over the epochs of a stage."""

    milestones: tuple[float, ...] = (2 / 3, 5 / 6)
    """Epochs, or shares of the stage where below 1, at which ``step`` multiplies by ``gamma``."""

    gamma: float = 0.1
    """Factor at a milestone."""

    linear_start: float = 0.0
    """Epoch, or share of the stage where below 1, at which ``linear`` begins to fall."""

    lr_floor: float = 0.0
    """Share of the learning rate that ``cosine`` and ``linear`` fall to."""

    average: float = 0.0
    """Decay of a moving average of the weights that is validated and kept in their place; 0 keeps the weights."""

    clip_grad_norm: float | None = None
    """Largest gradient norm over all parameters of an optimiser."""

    selector: Literal["accuracy", "loss"] = "accuracy"
    """Validation value, on noisy labels, by which ``best_val`` is chosen."""

    keep: Literal["best_val", "last"] = "best_val"
    """Which weights the result predicts with; both are measured and saved."""

    patience: int | None = None
    """Stop a stage after so many evaluations without a new best; null trains all epochs."""

    eval_every: int = 1
    """Epochs between evaluations."""

    crop_pad: int | None = None
    """Pixels that random crops may move an image; null takes an eighth of its height."""

    flip: bool | None = None
    """Mirror images left to right at random; null does, but for digits of a named data set."""

    cutout: int = 0
    """Side of a square that is blanked at a random place; 0 blanks none."""

    policy: str | None = None
    """An augmentation policy of torchvision: autoaugment, randaugment or trivialaugment."""

    second_policy: str | None = None
    """Policy of every view but the first, where a method compares weak and strong views; null takes `policy`."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 runs networks under autocast; losses stay in float32."""

    channels_last: bool | None = None
    """Memory layout of images and filters; null lays channels last on a GPU."""

    compile: bool = False
    """Compile the networks that train."""

    device: str | None = None
    """Where to train, for example cpu or cuda:1; null takes a GPU where there is one."""

    deterministic: bool = False
    """Refuse operations whose result may differ from run to run on a GPU."""

    embedding: str | None = None
    """Layer whose output is the embedding; null takes what the last Linear reads."""

    pretrained: bool = False
    """The given model's weights are worth keeping: further copies, and a network that a method begins again with, have
    them, with a last layer of their own."""

    weights: str | None = None
    """File of weights that a named network begins with, the last layer excepted where its size differs."""

    checkpoint_seconds: float = 20.0
    """Least time between two checkpoints within a stage."""

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        valid = self.epoch_images is None or self.epoch_images >= self.batch_size
        require(valid, "epoch_images", self.epoch_images, "null, or a batch or more")
        require(self.crop_pad is None or self.crop_pad >= 0, "crop_pad", self.crop_pad, "zero or more, or null")
        require(self.cutout >= 0, "cutout", self.cutout, "zero or more")
        require(math.isfinite(self.weight_decay), "weight_decay", self.weight_decay, "a number")
        self.loop(seed=0, validates=True)

    @property
    def rate(self) -> float:
        """The learning rate."""
        return RATES[self.optimizer] if self.lr is None else self.lr

    def loop(self, seed: int, validates: bool) -> LoopConfig:
        """What the loop is told. Raises ``UserError`` for a value out of range."""
        schedule = Schedule(self.schedule, self.milestones, self.gamma, self.linear_start, self.lr_floor)
        return LoopConfig(
            epochs=self.epochs,
            lr=self.rate,
            seed=seed,
            selector=self.selector if validates else "last",
            patience=self.patience,
            eval_every=self.eval_every,
            clip_grad_norm=self.clip_grad_norm,
            weight_decay=self.weight_decay,
            checkpoint_seconds=self.checkpoint_seconds,
            algorithm=self.optimizer,
            momentum=self.momentum,
            nesterov=self.nesterov,
            schedule=schedule,
            average=self.average,
        )

    def torch_device(self) -> torch.device:
        """Where to train. Raises ``UserError`` for a device that is not there."""
        if self.device is None:
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            first = str(error).strip().splitlines()[0]
            raise UserError(f"Option 'device' is {self.device!r}, which cannot be used here: {first}") from error
        return device

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for YAML and checkpoints."""
        values = dataclasses.asdict(self)
        for name in ("epoch_images", "second_policy"):  # a run without is the one that it was before the option
            if values[name] is None:
                values.pop(name)
        return {**values, "milestones": list(self.milestones)}


NAMES = tuple(field.name for field in dataclasses.fields(TrainOptions))


def read_train_options(options: Mapping[str, Any]) -> TrainOptions:
    """Check ``options`` and return them typed. Raises ``UserError``."""
    return read_options(TrainOptions, options, "training")
