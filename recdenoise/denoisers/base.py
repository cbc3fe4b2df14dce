"""The contract between a denoiser and the loop.

A denoiser turns the observed labels of a batch into a loss (and a weight) for whatever model scores that batch. It
declares stages, optimisers and passes; the loop trains. So everything resumes, and no method is a special case.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from recdenoise import objectives
from recdenoise.errors import UserError
from recdenoise.options import read_options, require
from recdenoise.task import Batch, Call, Pass, Task


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of training.

    Attributes:
        name: shown in progress bars and logs.
        train: dotted names of the modules that learn; all others are frozen and in eval mode.
        watch: dotted name of the module that validation scores and that the stage is for.
        selector: overrides the run's way of choosing an epoch, for example ``"loss"`` for a prior.
        epochs: overrides the run's number of epochs.
    """

    name: str = "train"
    train: tuple[str, ...] = ("target",)
    watch: str = "target"
    selector: str | None = None
    epochs: int | None = None


@dataclass(frozen=True, slots=True)
class Optim:
    """An optimiser by declaration: the loop builds it.

    Attributes:
        modules: dotted names of the modules whose parameters it moves, each with its L2 coefficient lambda.
        algorithm: ``"adam"`` or ``"sgd"``.
        lr: learning rate; ``None`` takes the run's.
        norm_penalty: penalise ``lambda * sum ||theta||`` in place of ``lambda * l2_scale / 2 * ||theta||^2``.
    """

    modules: Mapping[str, float]
    algorithm: Literal["adam", "sgd"] = "adam"
    lr: float | None = None
    norm_penalty: bool = False


@dataclass(frozen=True, slots=True)
class Clock:
    """Where training stands: zero-based ``step`` and ``epoch`` of the stage, with the totals it was planned for."""

    step: int
    steps: int
    epoch: int
    epochs: int


@dataclass(frozen=True, slots=True)
class Losses:
    """Per-example losses ``(n,)``, optional weights ``(n,)`` without gradient, and scalars to log."""

    loss: Tensor
    weight: Tensor | None = None
    logs: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Update:
    """One optimiser step. The loop minimises the sum over groups of the group's mean of ``weight * loss``."""

    loss: Tensor
    groups: tuple[int, ...]
    weight: Tensor | None = None
    optimizer: str = "target"
    logs: dict[str, Tensor] = field(default_factory=dict)

    def reduce(self) -> Tensor:
        """The scalar to differentiate."""
        loss = self.loss if self.weight is None else self.loss * self.weight
        if len(set(self.groups)) == 1:
            return loss.sum() / self.groups[0]
        return torch.stack([part.mean() for part in loss.split(self.groups) if len(part)]).sum()


@dataclass(frozen=True)
class DenoiserConfig:
    """Options that every denoiser has."""

    l2: float = 0.0
    """lambda of the penalty ``lambda / (2 n_users) ||theta||^2`` on the target."""

    compat: Literal["none", "paper_code"] = "none"
    """``paper_code`` reproduces the quirks of the DeCA authors' public code that change numbers."""

    def __post_init__(self) -> None:
        require(self.l2 >= 0, "l2", self.l2, "zero or more")

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for YAML and checkpoints."""
        return dataclasses.asdict(self)


class Denoiser(nn.Module):
    """Base of every method. A simple method writes :meth:`losses` and nothing else.

    Class attributes:
        name: what the config flag says. title: the name in papers. paper: the reference. Config: its options.
        neutral: options at which training equals ``normal``, or ``None``; ``neutral_reason`` then says why.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    Config: ClassVar[type[DenoiserConfig]] = DenoiserConfig
    neutral: ClassVar[dict[str, Any] | None] = {}
    neutral_reason: ClassVar[str] = ""
    loss_selector_note: ClassVar[str] = ""
    """Why the validation loss cannot choose an epoch of this method; empty where it can."""

    def __init__(self, task: Task, config: DenoiserConfig | Mapping[str, Any] | None = None) -> None:
        super().__init__()
        if not isinstance(config, DenoiserConfig):
            config = self.read_config(config or {})
        if type(config) is not self.Config:
            raise UserError(f"Denoiser {self.name} takes {self.Config.__name__}, not {type(config).__name__}.")
        self.config: Any = config
        self.task = task
        self.build(task)

    @classmethod
    def read_config(cls, options: Mapping[str, Any]) -> DenoiserConfig:
        """Check ``options`` and return them as this method's config. Raises ``UserError``."""
        return read_options(cls.Config, options, f"denoiser {cls.name}")

    # What a method may declare, in the order in which the loop asks.

    def build(self, task: Task) -> None:
        """Create every network as an attribute."""
        self.target = task.new_target(0)

    def stages(self) -> list[Stage]:
        """Stretches of training, in order."""
        return [Stage()]

    def optimizers(self, stage: Stage) -> dict[str, Optim]:
        """Optimisers of a stage by name. Only the module that is watched carries the L2 penalty."""
        modules = {name: self.config.l2 if name == stage.watch else 0.0 for name in stage.train}
        return {"target": Optim(modules, norm_penalty=self.config.compat == "paper_code" and self.task.rowwise)}

    def passes(self, stage: Stage, epoch: int) -> list[Pass]:
        """Sweeps over the data in one epoch."""
        return [Pass(reject=self.config.compat == "none")]

    def losses(self, batch: Batch, clock: Clock) -> Losses:
        """Per-example losses of the watched module; the simple case."""
        return self.plain_losses(self.target, batch)

    def plain_losses(self, module: nn.Module, batch: Batch) -> Losses:
        """Cross-entropy of one module with the observed labels."""
        return Losses(self.cross_entropy(self.task.call(module, batch.inputs), batch))

    def cross_entropy(self, logits: Tensor, batch: Batch) -> Tensor:
        """``(n,)`` losses. The published code sums them for autoencoders, against a penalty that it does not scale."""
        loss = objectives.classification_loss(logits, batch.label)
        if self.config.compat == "paper_code" and self.task.rowwise:
            return loss * batch.groups[0]
        return loss

    def step(self, stage: Stage, batch: Batch, clock: Clock) -> Iterator[Update]:
        """Updates of one step, in order."""
        out = self.losses(batch, clock)
        yield Update(out.loss, batch.groups, out.weight, logs=out.logs)

    # What a trained method answers.

    def score(self, inputs: Any) -> Tensor:
        """Logits to rank or classify with."""
        return self.task.call(self.target, inputs)

    def clean_probability(self) -> Tensor:
        """P(the observed label is right) for every training row: ``(n_rows,)``, by default as DeCA Eq. 11.

        Training rows of implicit feedback are all observed positives, so this is the sigmoid of :meth:`score`.
        """
        return torch.sigmoid(self.task.scan(self.score))

    # For the loop.

    def module(self, name: str) -> nn.Module:
        """A network by its dotted attribute name."""
        return self.get_submodule(name)

    def watched_score(self, stage: Stage) -> Call:
        """What validation scores during ``stage``."""
        watched = self.module(stage.watch)
        return lambda inputs: self.task.call(watched, inputs)
