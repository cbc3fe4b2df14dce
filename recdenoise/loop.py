"""The one loop: stages, passes, updates, optimisers, precision, selection, checkpoints, resume."""

from __future__ import annotations

import contextlib
import math
import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from recdenoise import checkpoint
from recdenoise.denoisers.base import Clock, Denoiser, Stage
from recdenoise.errors import TrainingError, UserError
from recdenoise.interrupts import stop_requests
from recdenoise.optimizers import add_norm_penalty, build_optimizer
from recdenoise.options import require
from recdenoise.seeds import derive
from recdenoise.selection import Selection, check_selector
from recdenoise.task import Task, Validation


@dataclass(frozen=True)
class LoopConfig:
    """How to train, whatever the method."""

    epochs: int = 20
    """Sweeps over the training set in each stage."""

    lr: float = 1e-3
    """Learning rate."""

    seed: int = 2020
    """Everything random follows from it."""

    selector: str = "loss"
    """Which epoch is kept: last, loss, trimmed or a metric such as ndcg@20."""

    patience: int | None = 10
    """Stop after so many evaluations without a new best; null trains all epochs."""

    eval_every: int = 1
    """Epochs between evaluations."""

    eval_steps: int | None = None
    """Evaluate every so many steps in place of epochs (the published code's rhythm)."""

    paper_code_stopping: bool = False
    """Stop as the published code does: at ``patience`` rises over the previous loss; keep the last weights."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 runs networks under autocast; losses and updates stay in fp32."""

    clip_grad_norm: float | None = None
    """Largest gradient norm over all parameters of an optimiser."""

    weight_decay: float = 0.0
    """Decay of every trained parameter by the optimiser, on top of the method's own L2."""

    checkpoint_seconds: float = 20.0
    """Least time between two checkpoints within a stage."""

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "epochs", self.epochs, "1 or more")
        require(math.isfinite(self.lr) and self.lr > 0, "lr", self.lr, "above 0")
        require(self.eval_every >= 1, "eval_every", self.eval_every, "1 or more")
        require(self.eval_steps is None or self.eval_steps >= 1, "eval_steps", self.eval_steps, "1 or more, or null")
        require(self.patience is None or self.patience >= 1, "patience", self.patience, "1 or more, or null")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "zero or more")
        check_selector(self.selector)


class Observer:
    """Told how training goes; the base is silent. Progress bars, logs and result files subclass it."""

    def on_note(self, text: str) -> None:
        """Something about the run that its user should know, in one sentence."""

    def on_stage(self, stage: Stage, epochs: int, steps_per_epoch: int, first_epoch: int) -> None:
        """A stage begins (or goes on at ``first_epoch``)."""

    def on_step(self, clock: Clock, loss: Tensor) -> None:
        """A step is done. ``loss`` is detached and stays on its device: reading it waits for the device."""

    def on_epoch(self, row: dict[str, Any]) -> None:
        """An epoch is done; ``row`` holds stage, epoch, loss, seconds and validation values."""


@dataclass
class Position:
    """Where the next step is: indices of stage, epoch and pass, steps done in the pass and in the stage."""

    stage: int = 0
    epoch: int = 0
    sweep: int = 0
    step: int = 0
    stage_step: int = 0

    def next_epoch(self) -> None:
        self.epoch, self.sweep, self.step = self.epoch + 1, 0, 0

    def next_stage(self) -> None:
        self.stage, self.epoch, self.sweep, self.step, self.stage_step = self.stage + 1, 0, 0, 0, 0


@dataclass
class EpochTotals:
    """Sums over the epoch in progress, part of a checkpoint so that a resumed epoch reports its whole mean."""

    loss: Tensor
    steps: int = 0
    seconds: float = 0.0
    values: dict[str, float] = field(default_factory=dict)


class Loop:
    """Trains a denoiser.

    Args:
        denoiser: the method, with its networks built.
        task: the data and how to call networks on it.
        config: how to train.
        validate: measures a scorer on held-out data; needed unless every selector is ``last``.
        checkpoint_path: where to save; ``None`` saves nothing.
        identity: plain values that a checkpoint must share with this run to be resumed.
        observer: told about progress.
        log_values: further validation values to record with every evaluation, for example ``{"ndcg@20"}``.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        task: Task,
        config: LoopConfig,
        *,
        validate: Validation | None = None,
        checkpoint_path: Path | None = None,
        identity: dict[str, Any] | None = None,
        observer: Observer | None = None,
        log_values: set[str] | None = None,
    ) -> None:
        self.denoiser, self.task, self.config = denoiser, task, config
        self.validate, self.path, self.observer = validate, checkpoint_path, observer or Observer()
        self.identity = {"denoiser": denoiser.name, **(identity or {})}
        self.log_values = log_values or set()
        self.stages = denoiser.stages()
        self.position = Position()
        self.history: list[dict[str, Any]] = []
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.selection = Selection("last", None)
        self._totals = EpochTotals(torch.zeros(()))
        self._last_save = time.monotonic()
        self._resumed: dict[str, Any] | None = None
        # A model may hold parameters that never learn (pre-trained or unused tables): they stay frozen in every stage.
        self._learnable = {name for name, p in denoiser.named_parameters() if p.requires_grad}
        for stage in self.stages:
            if (stage.selector or config.selector) != "last" and validate is None:
                raise UserError(f"Selector {stage.selector or config.selector!r} needs validation data; use last.")

    @property
    def finished(self) -> bool:
        """Whether every stage is done."""
        return self.position.stage >= len(self.stages)

    # Running

    def run(self) -> list[dict[str, Any]]:
        """Train every stage to its end and leave the selected weights in the denoiser; returns a row per epoch.

        Raises:
            TrainingError: a loss is not finite.
            KeyboardInterrupt: after a checkpoint was saved.
        """
        with stop_requests() as stop:
            while not self.finished:
                stage = self.stages[self.position.stage]
                self._begin_stage(stage)
                self._train_stage(stage, stop)
                self.selection.restore(self._trained(stage))
                self.position.next_stage()
                self.optimizers, self.selection = {}, Selection("last", None)
                self._save()
        self.denoiser.eval()
        for name, parameter in self.denoiser.named_parameters():
            parameter.requires_grad_(name in self._learnable)
        return self.history

    def _trained(self, stage: Stage) -> dict[str, nn.Module]:
        return {name: self.denoiser.module(name) for name in stage.train}

    def _begin_stage(self, stage: Stage) -> None:
        self.denoiser.requires_grad_(False)
        self.denoiser.eval()
        for name, module in self._trained(stage).items():
            for key, parameter in module.named_parameters(prefix=name):
                parameter.requires_grad_(key in self._learnable)
            module.train()
        declared = self.denoiser.optimizers(stage)
        shared: dict[str, float] = {"l2_scale": self.task.l2_scale, "lr": self.config.lr}
        shared["weight_decay"] = self.config.weight_decay
        self.optimizers = {name: build_optimizer(self.denoiser, o, **shared) for name, o in declared.items()}
        self.selection = Selection(
            stage.selector or self.config.selector, self.config.patience, self.config.paper_code_stopping
        )
        seed = derive(self.config.seed, "stage", self.position.stage)
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # models may draw from any global generator
        random.seed(seed)
        self.task.begin_step(self.denoiser)
        self._reset_totals()
        if self._resumed is not None:
            self._resume_stage(self._resumed)
            self._resumed = None

    def _reset_totals(self) -> None:
        device = next(self.denoiser.parameters()).device
        self._totals = EpochTotals(torch.zeros((), device=device))

    def _train_stage(self, stage: Stage, stop: threading.Event) -> None:
        epochs = stage.epochs or self.config.epochs
        first = self.position.epoch
        while self.position.epoch < epochs and not self.selection.exhausted:
            started = time.perf_counter()  # before the loaders: drawing negatives is part of an epoch
            sweeps = self.denoiser.passes(stage, self.position.epoch)
            keys = [(self.position.stage, self.position.epoch, i) for i in range(len(sweeps))]
            loaders = [self.task.loader(sweep, key) for sweep, key in zip(sweeps, keys, strict=True)]
            per_epoch = sum(len(loader) for loader in loaders)
            if self.position.epoch == first:
                self.observer.on_stage(stage, epochs, per_epoch, first)
            while self.position.sweep < len(loaders):
                for batch in loaders[self.position.sweep].batches(self.position.step):
                    at = self.position
                    clock = Clock(at.stage_step, per_epoch * epochs, at.epoch, epochs)
                    self._step(stage, batch, clock)
                    at.step += 1
                    at.stage_step += 1
                    every = self.config.eval_steps
                    if every is not None and clock.step and clock.step % every == 0 and self._evaluate(stage):
                        break
                    if stop.is_set() or time.monotonic() - self._last_save > self.config.checkpoint_seconds:
                        self._totals.seconds += time.perf_counter() - started
                        started = time.perf_counter()
                        self._save()
                        if stop.is_set():
                            raise KeyboardInterrupt
                self._totals.seconds += time.perf_counter() - started
                started = time.perf_counter()
                self.position.sweep, self.position.step = self.position.sweep + 1, 0
                if self.selection.exhausted:
                    break
            self._end_epoch(stage, epochs)

    def _step(self, stage: Stage, batch: Any, clock: Clock) -> None:
        for name in stage.train:  # what a frozen network has cached stays right
            self.task.begin_step(self.denoiser.module(name))
        with self._autocast(batch.label.device.type):
            for update in self.denoiser.step(stage, batch, clock):
                loss = update.reduce()
                detached = loss.detach().float()
                if detached.device.type == "cpu":  # on a GPU this would wait for the device: checked by the epoch
                    self._require_finite(stage, detached, clock.step)
                optimizer = self.optimizers[update.optimizer]
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                add_norm_penalty(optimizer)
                if self.config.clip_grad_norm is not None:
                    parameters = [p for group in optimizer.param_groups for p in group["params"]]
                    nn.utils.clip_grad_norm_(parameters, self.config.clip_grad_norm)
                optimizer.step()
                self._totals.loss += detached
        self._totals.steps += 1
        self.observer.on_step(clock, detached)

    def _autocast(self, device: str) -> contextlib.AbstractContextManager[Any]:
        if self.config.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(device, torch.bfloat16)

    def _require_finite(self, stage: Stage, loss: Tensor, step: int) -> None:
        if not math.isfinite(loss.item()):
            raise self._diverged(f"The loss is {loss.item()}", stage, step)

    def _require_finite_parameters(self, stage: Stage) -> None:
        """A step may break the weights while its own loss was still finite: nothing broken is ranked or saved."""
        for name, module in self._trained(stage).items():
            if not all(bool(p.isfinite().all()) for p in module.parameters()):
                raise self._diverged(f"A weight of {name} is not finite", stage, self.position.stage_step - 1)

    def _diverged(self, what: str, stage: Stage, step: int) -> TrainingError:
        kept = f" The last good checkpoint is {self.path}." if self.path and self.path.is_file() else ""
        return TrainingError(
            f"{what} at step {step} of stage {stage.name!r}: training stopped.{kept} "
            f"A lower learning rate (now {self.config.lr}) usually helps."
        )

    # Epochs and validation

    def _evaluate(self, stage: Stage) -> bool:
        """Validate and tell the selection; returns whether training should stop."""
        wanted = self.log_values | ({self.selection.wanted} if self.selection.wanted else set())
        if self.validate is None or not wanted:
            return False
        if self.config.eval_steps is not None:
            self._require_finite_parameters(stage)
        modules = self._trained(stage)
        for module in modules.values():
            module.eval()
        self.task.begin_step(self.denoiser)
        values = self.validate(self.denoiser.watched_score(stage), wanted)
        self.task.begin_step(self.denoiser)
        for module in modules.values():
            module.train()
        self._totals.values = values
        if self.selection.wanted:
            self.selection.observe(values[self.selection.wanted], self.position.epoch, modules)
        return self.selection.exhausted

    def _end_epoch(self, stage: Stage, epochs: int) -> None:
        mean = self._totals.loss / max(self._totals.steps, 1)
        self._require_finite(stage, mean, self.position.stage_step - 1)
        self._require_finite_parameters(stage)
        last = self.position.epoch + 1 == epochs
        if self.config.eval_steps is None and ((self.position.epoch + 1) % self.config.eval_every == 0 or last):
            self._evaluate(stage)
        row = {"stage": stage.name, "epoch": self.position.epoch + 1, "loss": mean.item()}
        row |= {"seconds": self._totals.seconds, "steps": self._totals.steps}
        row |= {f"valid_{name}": value for name, value in sorted(self._totals.values.items())}
        self.history.append(row)
        self.position.next_epoch()
        self._reset_totals()
        self.observer.on_epoch(row)

    # Checkpoints

    def _save(self) -> None:
        self._last_save = time.monotonic()
        if self.path is None:
            return
        if not self.finished:  # what went wrong since the last look must not replace the last good checkpoint
            stage = self.stages[self.position.stage]
            self._require_finite(stage, self._totals.loss, self.position.stage_step - 1)
            self._require_finite_parameters(stage)
        state = {
            "identity": self.identity,
            "position": vars(self.position),
            "modules": self.denoiser.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "selection": self.selection.state_dict(),
            "totals": vars(self._totals),
            "random": checkpoint.random_state(),
            "history": self.history,
        }
        checkpoint.save(self.path, state)

    def resume(self) -> bool:
        """Go on from the checkpoint at ``checkpoint_path``; returns False when there is none.

        Raises:
            UserError: the checkpoint is unreadable or belongs to another run.
        """
        if self.path is None or not self.path.is_file():
            return False
        device = next(self.denoiser.parameters()).device
        state = checkpoint.load(self.path, device)
        checkpoint.require_same(self.path, state["identity"], self.identity)
        checkpoint.load_modules(self.path, self.denoiser.load_state_dict, state["modules"])
        self.position = Position(**state["position"])
        self.history = state["history"]
        self._resumed = state if state["optimizers"] and not self.finished else None
        return True

    def _resume_stage(self, state: dict[str, Any]) -> None:
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.selection.load_state_dict(state["selection"])
        self._totals = EpochTotals(**state["totals"])
        checkpoint.restore_random_state(state["random"])
