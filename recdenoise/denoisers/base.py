"""The contract between a denoiser and the loop.

A denoiser turns the observed labels of a batch into a loss (and a weight) for whatever model scores that batch. It
declares stages, optimisers and passes; the loop trains. So everything resumes, and no method is a special case.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from recdenoise import objectives
from recdenoise.averaging import Averaging
from recdenoise.errors import UserError
from recdenoise.options import read_options, require
from recdenoise.parallel import ALONE, Parallel
from recdenoise.schedules import Schedule, moment
from recdenoise.task import Batch, Call, ClassTask, Pass, Task


@dataclass(frozen=True, slots=True)
class Span:
    """The epochs of a stage.

    Attributes:
        epochs: how many.
        first: where on its schedule the first one lies.
        scheduled: epochs that the schedule is made for.
    """

    epochs: int
    first: int
    scheduled: int


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of training.

    Attributes:
        name: shown in progress bars and logs.
        train: dotted names of the modules that learn; all others are frozen and in eval mode.
        watch: dotted name of the module that validation scores and that the stage is for.
        selector: overrides the run's way of choosing an epoch, for example ``"loss"`` for a prior.
        epochs: overrides the run's number of epochs; a share of it where below 1.
        reset: dotted names of the modules whose weights are drawn anew at the start.
        lr: overrides the run's learning rate.
        answers: the trained method answers with these modules: their last weights are kept beside the chosen ones, as
            those of the last stage always are.
        average: decay of the moving average of the weights of what trains, which is validated and kept in their place;
            overrides the run's, and 0 keeps the weights.
        begin: the stage is a stretch of the run's own epochs and begins at this zero-based one, or at that share of
            them where below 1: learning rates follow the run's schedule from there, and without ``epochs`` it lasts
            until the run's end. ``None``: it has a schedule of its own, from its beginning to its end.
    """

    name: str = "train"
    train: tuple[str, ...] = ("target",)
    watch: str = "target"
    selector: str | None = None
    epochs: float | None = None
    reset: tuple[str, ...] = ()
    lr: float | None = None
    answers: bool = False
    average: float | None = None
    begin: float | None = None

    def span(self, run: int) -> Span:
        """Where the stage lies in a run of ``run`` epochs: a share to begin at leaves it one epoch at least.

        Raises:
            UserError: it begins after the run's end.
        """
        first = moment(self.begin, run) if self.begin else 0
        if self.begin is not None and self.begin < 1:
            first = min(first, run - 1)
        elif first >= run:
            raise UserError(
                f"Stage {self.name!r} begins after {first} epochs and the run has {run}: let the run have more, or the "
                "stages before it fewer."
            )
        epochs = run - first if self.epochs is None else moment(self.epochs, run)
        return Span(epochs, first, epochs if self.begin is None else run)


@dataclass(frozen=True, slots=True)
class Optim:
    """An optimiser by declaration: the loop builds it. What is ``None`` is the run's.

    Attributes:
        modules: dotted names of the modules whose parameters it moves, each with its L2 coefficient lambda.
        algorithm: ``"adam"`` or ``"sgd"``.
        lr: learning rate before the schedule.
        norm_penalty: penalise ``lambda * sum ||theta||`` in place of ``lambda * l2_scale / 2 * ||theta||^2``.
        momentum: of sgd.
        weight_decay: of every parameter, in place of the run's.
        schedule: what the rate is multiplied by in each epoch of the stage.
    """

    modules: Mapping[str, float]
    algorithm: Literal["adam", "sgd"] | None = None
    lr: float | None = None
    norm_penalty: bool = False
    momentum: float | None = None
    weight_decay: float | None = None
    schedule: Schedule | None = None


@dataclass(frozen=True, slots=True)
class Clock:
    """Where training stands: zero-based ``step`` and ``epoch`` of the stage, with the totals it was planned for.

    ``rates`` are this epoch's learning rates by optimiser, for methods that step by themselves (one-step look-ahead).
    ``sweep`` is the pass of the epoch, counted from zero, and ``within`` the share of its steps that are done.
    ``begun`` is the number of the run's epochs before a stage that is a stretch of them.
    ``averages`` are those of the weights, before this step, where the run or the stage has some.
    """

    step: int
    steps: int
    epoch: int
    epochs: int
    rates: Mapping[str, float] = field(default_factory=dict)
    sweep: int = 0
    within: float = 0.0
    begun: int = 0
    averages: Averaging | None = None


@dataclass(frozen=True, slots=True)
class Losses:
    """Per-example losses ``(n,)``, optional weights ``(n,)`` without gradient, and scalars to log."""

    loss: Tensor
    weight: Tensor | None = None
    logs: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Update:
    """One optimiser step. The loop minimises the sum over groups of the group's mean of ``weight * loss``.

    ``loss`` is ``(n,)`` with ``n = sum(groups)``: ``batch.groups`` in most methods, ``(n,)`` of its own where a method
    puts streams together. ``logs`` are scalars whose means over an epoch are recorded.
    """

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
        brief: options at which everything that the method does happens within three epochs of a few steps.
        needs: data that the method cannot do without besides the training set, for example ``("clean",)``.
        distributed: whether it can train in several processes, each with its part of every batch. A loss of each
            example by itself can; what is chosen or remembered over a batch goes through ``self.parallel`` first.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    Config: ClassVar[type[DenoiserConfig]] = DenoiserConfig
    neutral: ClassVar[dict[str, Any] | None] = {}
    neutral_reason: ClassVar[str] = ""
    brief: ClassVar[dict[str, Any]] = {}
    needs: ClassVar[tuple[str, ...]] = ()
    distributed: ClassVar[bool] = False
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
        self.parallel: Parallel = getattr(task, "parallel", ALONE)
        self.check_processes(self.parallel.size)
        self.build(task)

    @classmethod
    def read_config(cls, options: Mapping[str, Any]) -> DenoiserConfig:
        """Check ``options`` and return them as this method's config. Raises ``UserError``."""
        return read_options(cls.Config, options, f"denoiser {cls.name}")

    @classmethod
    def check_processes(cls, size: int) -> None:
        """Raise ``UserError`` where the method cannot train in so many processes."""
        if size > 1 and not cls.distributed:
            raise UserError(
                f"{cls.name} trains in one process only; there are {size}. A method whose loss is one of each example "
                "by itself, or that gathers what it needs, says so by distributed = True in its class."
            )

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
        norm_penalty = self.config.compat == "paper_code" and self.task.rowwise
        return {"target": Optim(modules, lr=stage.lr, norm_penalty=norm_penalty)}

    def begin_stage(self, stage: Stage) -> None:
        """Look at the data once when a stage truly starts, before ``stage.reset`` is carried out.

        Called in eval mode and without gradients, and not again when a run is resumed: what it finds goes into buffers.
        """

    def begin_epoch(self, stage: Stage, epoch: int) -> None:
        """The same when an epoch truly starts, after resets: scan losses, fit mixtures, choose rows and labels."""

    def passes(self, stage: Stage, epoch: int) -> list[Pass]:
        """Sweeps over the data in one epoch.

        A resumed epoch asks again: the answer may depend on the arguments, the options, and on buffers that only
        :meth:`begin_stage` and :meth:`begin_epoch` write.
        """
        return [Pass(reject=self.config.compat == "none")]

    def losses(self, batch: Batch, clock: Clock) -> Losses:
        """Per-example losses of the watched module; the simple case."""
        return self.plain_losses(self.target, batch)

    def plain_losses(self, module: nn.Module, batch: Batch) -> Losses:
        """Cross-entropy of one module with the observed labels."""
        return Losses(self.cross_entropy(self.task.call(module, batch.inputs), batch), batch.weight)

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

    def edit_gradients(self, optimizer: str, clock: Clock) -> None:
        """Change the gradients of an update, in place, before its optimiser moves."""

    # What a trained method answers.

    def score(self, inputs: Any) -> Tensor:
        """Logits to rank or classify with."""
        return self.task.call(self.target, inputs)

    def clean_probability(self) -> Tensor:
        """P(the observed label is right) for every training row: ``(n_rows,)``, by default as DeCA Eq. 11.

        Training rows of implicit feedback are all observed positives, so this is the sigmoid of :meth:`score`.
        """
        logits = self.task.scan(self.score)
        if isinstance(self.task, ClassTask):
            return objectives.observed_probability(logits, self.task.labels)
        return torch.sigmoid(logits)

    def held_out_probability(self, scan: Callable[[Call], Tensor], label: Tensor) -> Tensor:
        """The same for examples that were not learned from, by the same rule, so that both can be ranked together.

        Args:
            scan: ``function(inputs)`` without gradient for every one of them, in order.
            label: ``(n,)`` int64 observed labels.

        Returns:
            ``(n,)`` probabilities: of the label, unless the method has a rule of its own.
        """
        return objectives.observed_probability(scan(self.score), label)

    def row_weights(self) -> Tensor | None:
        """How much every training row counts at the moment, ``(n_rows,)``; ``None`` where no row is weighted."""
        return None

    def findings(self) -> dict[str, Any]:
        """What the method has found out about the training rows, as plain values for a run's result."""
        return {}

    # For the loop.

    def module(self, name: str) -> nn.Module:
        """A network by its dotted attribute name."""
        return self.get_submodule(name)

    def renewed(self, name: str) -> dict[str, Tensor] | None:
        """What a network goes back to where a stage draws it anew; ``None`` where all of its weights are drawn.

        A task that was handed weights to keep may say ``renewed(module)``: they stay, all but the last layer's.
        """
        ask = getattr(self.task, "renewed", None)
        return None if ask is None else ask(self.module(name))

    def watched_score(self, stage: Stage) -> Call:
        """What validation scores during ``stage``."""
        watched = self.module(stage.watch)
        return lambda inputs: self.task.call(watched, inputs)
