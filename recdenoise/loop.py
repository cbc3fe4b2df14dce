"""The one loop: stages, passes, updates, optimisers, precision, selection, checkpoints, resume."""

from __future__ import annotations

import contextlib
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recdenoise import checkpoint
from recdenoise.averaging import Averaging
from recdenoise.denoisers.base import Clock, Denoiser, Stage
from recdenoise.errors import TrainingError, UserError
from recdenoise.interrupts import stop_requests
from recdenoise.loop_config import LoopConfig
from recdenoise.loop_state import EpochTotals, Position
from recdenoise.observer import Observer
from recdenoise.optimizers import add_norm_penalty, build_optimizer, set_rates
from recdenoise.resets import check_resets, reset
from recdenoise.schedules import Schedule
from recdenoise.seeds import derive
from recdenoise.selection import Selection, Weights, copy_weights, load_weights
from recdenoise.task import Task, Validation

KEPT = ("position", "optimizers", "selection", "averaging", "totals", "random", "history")
"""Parts of a checkpoint without which no run goes on."""


class Loop:
    """Trains a denoiser.

    Args:
        denoiser: the method, with its networks built.
        task: the data and how to call networks on it.
        config: how to train.
        validate: measures a scorer on held-out data; needed unless every selector is ``last``.
        probe: measures it on other data, a test set for example, whenever validation does; recorded, and never used to
            choose or to stop.
        examine: further values of the stage whenever validation looks; recorded, and never used to choose.
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
        probe: Validation | None = None,
        examine: Callable[[Stage], dict[str, float]] | None = None,
        checkpoint_path: Path | None = None,
        identity: dict[str, Any] | None = None,
        observer: Observer | None = None,
        log_values: set[str] | None = None,
    ) -> None:
        self.denoiser, self.task, self.config = denoiser, task, config
        self.parallel = denoiser.parallel
        self.validate, self.path, self.observer = validate, checkpoint_path, observer or Observer()
        self.probe, self.examine = probe, examine
        self.identity = {"denoiser": denoiser.name, **(identity or {})}
        self.log_values = log_values or set()
        self.stages = denoiser.stages()
        self.position = Position()
        self.history: list[dict[str, Any]] = []
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.selection = Selection("last", None)
        self.last_weights: Weights = {}
        self._averaging: Averaging | None = None
        self._rates: dict[str, float] = {}
        self._schedules: dict[str, Schedule] = {}
        self._totals = EpochTotals(torch.zeros(()))
        self._statistics: list[Tensor] = []  # of norm layers: each process has those of its part of a batch
        self._last_save = time.monotonic()
        self._resumed: dict[str, Any] | None = None
        # A model may hold parameters that never learn (pre-trained or unused tables): they stay frozen in every stage.
        self._learnable = {name for name, p in denoiser.named_parameters() if p.requires_grad}
        for stage in self.stages:
            check_resets(denoiser, stage)
            stage.span(config.epochs)
            if (stage.selector or config.selector) != "last" and validate is None:
                raise UserError(f"Selector {stage.selector or config.selector!r} needs validation data; use last.")

    @property
    def finished(self) -> bool:
        """Whether every stage is done."""
        return self.position.stage >= len(self.stages)

    @property
    def answering(self) -> dict[str, nn.Module]:
        """The networks that the trained method answers with, by name: those with two ends, last and chosen."""
        stages = [stage for stage in self.stages if stage.answers or stage is self.stages[-1]]
        return {name: module for stage in stages for name, module in self._trained(stage).items()}

    # Running

    def run(self) -> list[dict[str, Any]]:
        """Train every stage to its end and leave the selected weights in the denoiser; returns a row per epoch.

        Raises:
            TrainingError: a loss is not finite.
            KeyboardInterrupt: after a checkpoint was saved.
        """
        before = checkpoint.random_state()  # a caller's own draws go on where they stood
        try:
            # A terminal's interrupt reaches a launched process twice: from the terminal, and from what launched it.
            with stop_requests(forgiving=0.0 if self.parallel.size == 1 else 5.0) as stop:
                while not self.finished:
                    stage = self.stages[self.position.stage]
                    self._begin_stage(stage)
                    self._train_stage(stage, stop)
                    self._end_stage(stage)
                    self._save()
        finally:
            checkpoint.restore_random_state(before)
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
        seed = derive(self.config.seed, "stage", self.position.stage)
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # models may draw from any global generator
        random.seed(seed)
        if self._resumed is None:
            with self._at_rest(stage):
                self.denoiser.begin_stage(stage)
            reset(self.denoiser, stage)
        config = self.config
        shared: dict[str, Any] = {"l2_scale": self.task.l2_scale, "lr": config.lr, "weight_decay": config.weight_decay}
        shared |= {"algorithm": config.algorithm, "momentum": config.momentum, "nesterov": config.nesterov}
        declared = self.denoiser.optimizers(stage)
        self.optimizers = {name: build_optimizer(self.denoiser, o, **shared) for name, o in declared.items()}
        self._schedules = {name: o.schedule or config.schedule for name, o in declared.items()}
        self._rates = {}  # those of the stage before would stand in the history
        decay = config.average if stage.average is None else stage.average
        self._averaging = Averaging(self._trained(stage), decay) if decay else None
        self.selection = Selection(stage.selector or config.selector, config.patience, config.paper_code_stopping)
        modules = self._trained(stage).values()
        self._statistics = [b for m in modules for b in m.buffers() if b.is_floating_point()]
        for module in modules:
            module.train()
        self.task.begin_step(self.denoiser)
        self._reset_totals()
        if self._resumed is not None:
            self._resume_stage(self._resumed)
            self._resumed = None

    def _end_stage(self, stage: Stage) -> None:
        """Leave the chosen weights in the networks; the last ones of those that answer are kept beside them."""
        if self._averaging is not None:
            self._averaging.settle()
        trained = self._trained(stage)
        if (stage.answers or self.position.stage + 1 == len(self.stages)) and self.selection.best_weights:
            self.last_weights = {**self.last_weights, **copy_weights(trained)}
        self.selection.restore(trained)
        self.position.next_stage()
        self.optimizers, self.selection, self._averaging = {}, Selection("last", None), None

    def use_last(self) -> None:
        """Put the weights of the last epoch into the networks that answer, in place of the chosen ones."""
        load_weights({name: self.denoiser.module(name) for name in self.last_weights}, self.last_weights)
        self.task.begin_step(self.denoiser)

    @contextlib.contextmanager
    def _at_rest(self, stage: Stage) -> Iterator[None]:
        """Everything in eval mode, without gradients, with the averaged weights where there are some."""
        modules = self._trained(stage).values()
        for module in modules:
            module.eval()
        self.task.begin_step(self.denoiser)
        averaged = contextlib.nullcontext() if self._averaging is None else self._averaging.in_place()
        with torch.no_grad(), averaged:
            yield
        self.task.begin_step(self.denoiser)
        for module in modules:
            module.train()

    def _reset_totals(self) -> None:
        device = next(self.denoiser.parameters()).device
        self._totals = EpochTotals(torch.zeros((), device=device))

    def _train_stage(self, stage: Stage, stop: threading.Event) -> None:
        span = stage.span(self.config.epochs)
        epochs, first = span.epochs, self.position.epoch
        while self.position.epoch < epochs and not self.selection.exhausted:
            started = time.perf_counter()  # before the loaders: drawing negatives is part of an epoch
            self._begin_epoch(stage)
            sweeps = self.denoiser.passes(stage, self.position.epoch)
            keys = [(self.position.stage, self.position.epoch, i) for i in range(len(sweeps))]
            loaders = [self.task.loader(sweep, key) for sweep, key in zip(sweeps, keys, strict=True)]
            per_epoch = sum(len(loader) for loader in loaders)
            if self.position.epoch == first:
                self.observer.on_stage(stage, epochs, per_epoch, first)
            while self.position.sweep < len(loaders):
                loader = loaders[self.position.sweep]
                for batch in loader.batches(self.position.step):
                    at = self.position
                    steps, within = per_epoch * epochs, at.step / len(loader)
                    places = (at.sweep, within, span.first, self._averaging)
                    clock = Clock(at.stage_step, steps, at.epoch, epochs, self._rates, *places)
                    self._step(stage, batch, clock)
                    at.step += 1
                    at.stage_step += 1
                    every = self.config.eval_steps
                    if every is not None and clock.step and clock.step % every == 0 and self._evaluate(stage):
                        break
                    late = time.monotonic() - self._last_save > self.config.checkpoint_seconds
                    stopping, saving = self.parallel.agree(at.stage_step, stop.is_set(), late)
                    if stopping or saving:
                        self._totals.seconds += time.perf_counter() - started
                        started = time.perf_counter()
                        self._save()
                        if stopping:
                            raise KeyboardInterrupt
                self._totals.seconds += time.perf_counter() - started
                started = time.perf_counter()
                self.position.sweep, self.position.step = self.position.sweep + 1, 0
                if self.selection.exhausted:
                    break
            self._end_epoch(stage, epochs)

    def _begin_epoch(self, stage: Stage) -> None:
        at, span = self.position, stage.span(self.config.epochs)
        for name, optimizer in self.optimizers.items():
            factor = self._schedules[name].factor(span.first + at.epoch, span.scheduled)
            self._rates[name] = set_rates(optimizer, factor)
        if at.sweep == 0 and at.step == 0:  # a resumed epoch finds in buffers what its beginning put there
            with self._at_rest(stage):
                self.denoiser.begin_epoch(stage, at.epoch)

    def _step(self, stage: Stage, batch: Any, clock: Clock) -> None:
        for name in stage.train:  # what a frozen network has cached stays right
            self.task.begin_step(self.denoiser.module(name))
        with self._autocast(batch.label.device.type):
            for update in self.denoiser.step(stage, batch, clock):
                loss = update.reduce()
                optimizer = self.optimizers[update.optimizer]
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                detached, logs = self.parallel.combine(optimizer, loss.detach().float(), update.logs)
                if detached.device.type == "cpu":  # on a GPU this would wait for the device: checked by the epoch
                    self._require_finite(stage, detached, clock.step)
                add_norm_penalty(optimizer)
                if self.config.clip_grad_norm is not None:
                    parameters = [p for group in optimizer.param_groups for p in group["params"]]
                    nn.utils.clip_grad_norm_(parameters, self.config.clip_grad_norm)
                self.denoiser.edit_gradients(update.optimizer, clock)
                optimizer.step()
                self._totals.loss += detached
                for name, value in logs.items():
                    self._totals.logs[name] = self._totals.logs.get(name, 0) + value.detach().float()
        self.parallel.level(self._statistics)
        if self._averaging is not None:
            self._averaging.update()
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
        if (self.validate is None or not wanted) and self.probe is None and self.examine is None:
            return False
        if self.config.eval_steps is not None:
            self._require_finite_parameters(stage)
        with self._at_rest(stage):
            score = self.denoiser.watched_score(stage)
            if self.validate is not None and wanted:
                self._totals.values = values = self.validate(score, wanted)
                if self.selection.wanted:
                    value = values[self.selection.wanted]
                    self.selection.observe(value, self.position.epoch, self._trained(stage))
            if self.probe is not None:
                self._totals.probed = self.probe(score, set())
            if self.examine is not None:
                self._totals.examined = self.examine(stage)
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
        if self.config.schedule.kind != "constant":
            row["lr"] = next(iter(self._rates.values()))
        row |= {name: value.item() / self._totals.steps for name, value in sorted(self._totals.logs.items())}
        row |= self._totals.examined
        row |= {f"valid_{name}": value for name, value in sorted(self._totals.values.items())}
        row |= {f"test_{name}": value for name, value in sorted(self._totals.probed.items())}
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
            "averaging": None if self._averaging is None else self._averaging.state_dict(),
            "last_weights": self.last_weights,
            "totals": vars(self._totals),
            "random": checkpoint.random_state(),
            "history": self.history,
        }
        if self.parallel.main:
            checkpoint.save(self.path, state)
        self.parallel.wait()

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
        checkpoint.require_keys(self.path, state, KEPT, "a run that can go on")
        checkpoint.load_modules(self.path, self.denoiser.load_state_dict, state["modules"])
        self.position = Position(**state["position"])
        self.history, self.last_weights = state["history"], state.get("last_weights", {})
        self._resumed = state if state["optimizers"] and not self.finished else None
        return True

    def _resume_stage(self, state: dict[str, Any]) -> None:
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.selection.load_state_dict(state["selection"])
        if self._averaging is not None:
            self._averaging.load_state_dict(state["averaging"])
        self._totals = EpochTotals(**state["totals"])
        checkpoint.restore_random_state(state["random"])
