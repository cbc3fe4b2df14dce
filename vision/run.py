"""A run: data, networks and method put together, trained by the one loop, measured at both ends."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recdenoise.denoisers import Denoiser, DenoiserConfig
from recdenoise.errors import TrainingError, UserError
from recdenoise.loop import Loop
from recdenoise.observer import Observer
from recdenoise.parallel import ALONE, Parallel
from recdenoise.selection import Weights, copy_weights, load_weights
from recdenoise.task import Call
from vision.augment import Augment
from vision.bias_views import BIAS, BiasViews
from vision.data import ImageData
from vision.evaluation import Held, bias_of, measure
from vision.isolation import Isolation
from vision.models import Builder, Model
from vision.options import TrainOptions
from vision.task import Augmentation, Images, ImageTask

ENDS = ("last", "best_val")
"""Of a run: the weights of the last epoch, and those that validation chose."""


@dataclass(frozen=True)
class Sets:
    """Data sets of a run, on the device.

    Attributes:
        train: with the labels to learn from.
        valid: chooses an epoch, or ``None``.
        test: measured at the end; never used to choose.
        sources: further sets that methods need, by name: ``clean``, ``context``.
        tests: further test parts by name, such as ``conflicting``; measured as ``test`` is.
    """

    train: Images
    valid: Images | None = None
    test: Images | None = None
    sources: Mapping[str, Images] | None = None
    tests: Mapping[str, Images] = field(default_factory=dict)


class Run:
    """One training.

    Args:
        model: what to train.
        method, config: how.
        options: of the run.
        sets: what on.
        augment: from uint8 to normalised floats.
        seed: everything random follows from it.
        parallel: the processes that train together.

    Raises:
        UserError: anything that cannot work together.
    """

    def __init__(
        self,
        model: Model,
        method: type[Denoiser],
        config: DenoiserConfig,
        options: TrainOptions,
        sets: Sets,
        augment: Augmentation,
        seed: int,
        parallel: Parallel = ALONE,
    ) -> None:
        check_method(method, config, sets)
        self.method, self.config, self.options, self.sets, self.seed = method, config, options, sets, seed
        channels, height, width = sets.train.images.shape[1:]
        device = options.torch_device()
        channels_last = device.type == "cuda" if options.channels_last is None else options.channels_last
        shape = (channels, height, width)
        self.builder = Builder(model, sets.train.n_classes, shape, options.pretrained, options.weights)
        with memory_errors(options.batch_size):
            self.task = ImageTask(
                sets.train,
                new_model=self.builder,
                augment=augment,
                seed=seed,
                batch_size=options.batch_size,
                device=device,
                sources=sets.sources,
                precision=options.precision,
                channels_last=channels_last,
                compiled=options.compile,
                embedding=options.embedding,
                parallel=parallel,
                epoch_images=options.epoch_images,
                further=further_views(augment, options),
                pretrained=self.builder.pretrained,
            )
            self.denoiser = method(self.task, config).to(device).eval()
        if sets.valid is None:
            check_stages(self.denoiser)
        self.task.held_out = tuple(s for s in (sets.valid, sets.test, *sets.tests.values()) if s is not None)
        if self.task.isolation is not None:
            check_masks(self.task.isolation, sets)
        self.ends: dict[str, Weights] = {}
        self.history: list[dict[str, Any]] = []

    @property
    def watched(self) -> nn.Module:
        """The network that the run is for."""
        return self.denoiser.module(self.denoiser.stages()[-1].watch)

    def notes(self) -> list[str]:
        """What its user should know before it trains, in sentences."""
        note, chosen = self.denoiser.loss_selector_note, self.options.selector == "loss" and self.sets.valid is not None
        return [f"{self.method.title}: {note}."] if note and chosen else []

    def loop(
        self,
        *,
        checkpoint_path: Path | None = None,
        identity: dict[str, Any] | None = None,
        observer: Observer | None = None,
        probe: bool = False,
    ) -> Loop:
        """The loop of this run; ``probe`` records the test set's values after every epoch."""
        sets = self.sets
        validate = None if sets.valid is None else Held(self.task, sets.valid)
        return Loop(
            self.denoiser,
            self.task,
            self.options.loop(self.seed, validates=validate is not None),
            validate=validate,
            probe=Held(self.task, sets.test) if probe and sets.test is not None else None,
            examine=BiasViews(self.task, self.denoiser) if BIAS in sets.train.attributes else None,
            checkpoint_path=checkpoint_path,
            identity=identity,
            observer=observer,
            log_values=set() if validate is None else {"accuracy", "loss"},
        )

    def train(self, loop: Loop) -> list[dict[str, Any]]:
        """Train to the end, keep both ends, and put the wanted one into the networks.

        Raises:
            TrainingError: a loss that is not finite, or a GPU without memory.
            UserError: batches too small for batch normalisation.
            KeyboardInterrupt: after a checkpoint was saved.
        """
        size = self.options.batch_size
        with deterministic(self.options.deterministic), memory_errors(size), norm_errors(size):
            self.history = loop.run()
        best = copy_weights(loop.answering)
        self.ends = {"best_val": best, "last": {**best, **loop.last_weights}}
        self.use(self.options.keep)
        return self.history

    def use(self, end: str) -> None:
        """Put the weights of ``last`` or ``best_val`` into the networks."""
        if end not in ENDS:
            raise UserError(f"The weights are {end!r}; they must be one of {', '.join(ENDS)}.")
        weights = self.ends[end]
        load_weights({name: self.denoiser.module(name) for name in weights}, weights)
        self.denoiser.eval()
        self.used = end

    def logits(self, data: Images) -> Tensor:
        """``(N, C)`` on the device."""
        self.denoiser.eval()
        with memory_errors(self.options.batch_size):
            return self.task.scan_data(data, self.denoiser.score)

    def measure(self, data: Images, score: Call | None = None) -> dict[str, dict[str, float]]:
        """``{"last": {"accuracy", "loss", ...}, "best_val": {...}}``; see :func:`vision.evaluation.measure`.

        ``score`` stands in for the method's answer: one of ``partial_scores``, whose inputs carry masks.
        """
        found, used = {}, self.used
        for end in ENDS:
            self.use(end)
            logits = self.logits(data) if score is None else self.task.scan_data(data, score, masked=True)
            found[end] = measure(logits, data.labels.to(self.task.device), bias_of(data))
        self.use(used)
        return found

    def measure_all(self) -> dict[str, Any]:
        """:meth:`measure` of ``test``, ``valid`` and, in ``tests``, every further part, as far as they are there."""
        sets = {"test": self.sets.test, "valid": self.sets.valid}
        found: dict[str, Any] = {name: self.measure(part) for name, part in sets.items() if part is not None}
        tests = {name: self.measure(part) for name, part in self.sets.tests.items()}
        tests |= self._measure_partly()
        return {**found, "tests": tests} if tests else found

    def _measure_partly(self) -> dict[str, Any]:
        """A method's answers to parts of the test images, where it has some and knows the parts."""
        scores: Mapping[str, Call] = getattr(self.denoiser, "partial_scores", dict)()
        isolation, test = self.task.isolation, self.sets.test
        if test is None or (isolation is not None and not isolation.knows(test)):
            return {}
        return {name: self.measure(test, score) for name, score in scores.items()}

    def clean_probability(self) -> tuple[Tensor, Tensor | None]:
        """P(label is right) of the training and of the validation rows, on the CPU.

        The method answers for both by one rule, as far as it can: see ``Denoiser.held_out_probability``.
        """
        self.denoiser.eval()
        with torch.no_grad():
            train = self.denoiser.clean_probability().float().cpu()
            valid = self.sets.valid
            if valid is None:
                return train, None
            labels = valid.labels.to(self.task.device)
            held_out = self.denoiser.held_out_probability(lambda call: self.task.scan_data(valid, call), labels)
        return train, held_out.float().cpu()


def further_views(augment: Augmentation, options: TrainOptions) -> Augmentation | None:
    """What augments every view but the first, where it is another policy. Raises ``UserError`` for an unknown one."""
    if options.second_policy is None:
        return None
    if not isinstance(augment, Augment):
        raise UserError(f"Option 'second_policy' cannot change {type(augment).__name__}, an augmentation of your own.")
    return replace(augment, policy=options.second_policy)


def check_method(method: type[Denoiser], config: DenoiserConfig, sets: Sets) -> None:
    """Refuse a method that lacks what it needs. Raises ``UserError``."""
    for need in method.needs:
        if need not in (sets.sources or {}):
            raise UserError(f"{method.name} needs a {need} set: give {need}=(images, labels).")
    if config.compat != "none":
        raise UserError(f"Option 'compat' is {config.compat!r}; only recommenders have published code to follow.")


def check_stages(denoiser: Denoiser) -> None:
    """Refuse, where nothing is held out, a stage whose epoch validation chooses. Raises ``UserError``."""
    for stage in denoiser.stages():
        if stage.selector not in (None, "last"):
            option = next((n for n in denoiser.config.__dataclass_fields__ if n.endswith("_selector")), "selector")
            raise UserError(
                f"{denoiser.name} stops its {stage.name} by validation {stage.selector}: "
                f"hold some images out (valid=0.2), or say {option}: last."
            )


def check_masks(isolation: Isolation, sets: Sets) -> None:
    """Refuse sets that lack masks which training or scoring will need. Raises ``UserError``."""
    if isolation.training:
        isolation.stored(sets.train)
    if isolation.scoring:
        for data in (sets.valid, sets.test, *sets.tests.values()):
            if data is not None:
                isolation.stored(data)


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Inside the block torch refuses what may differ from run to run, where that is ``wanted``.

    Raises:
        UserError: it has refused something.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(wanted or before)
    try:
        yield
    except RuntimeError as error:
        operation = refused_operation(str(error))
        if not wanted or operation is None:
            raise
        raise UserError(
            f"Option 'deterministic' is true, and {operation}: leave the option out, or train another network, by "
            "another method or on the CPU."
        ) from error
    finally:
        torch.use_deterministic_algorithms(before)


def refused_operation(said: str) -> str | None:
    """What torch's message says of an operation that is not deterministic; ``None`` of any other message."""
    name, found, _ = said.partition(" does not have a deterministic implementation")
    if found:
        return f"the operation {name.split()[-1]} has no deterministic form here"
    if "CUBLAS_WORKSPACE_CONFIG" in said:
        return "matrix products are deterministic only where CUBLAS_WORKSPACE_CONFIG=:4096:8 is in the environment"
    return None


def on_device(data: ImageData, device: torch.device) -> ImageData:
    """A data set on the device. Raises ``TrainingError`` where a GPU has not enough memory for its images."""
    try:
        return data.to(device)
    except torch.OutOfMemoryError as error:
        size = math.prod(data.images.shape) / 2**30
        raise TrainingError(
            f"The GPU has no memory left for {len(data):,} images of {size:.1f} GiB: use fewer images, a smaller "
            "image_size, or a folder, which is read as it is needed."
        ) from error


@contextlib.contextmanager
def memory_errors(batch_size: int) -> Iterator[None]:
    """A GPU that runs out of memory becomes a sentence that says what to lower."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"The GPU has no memory left at batch_size {batch_size}: lower batch_size, or set precision to bf16."
        ) from error


@contextlib.contextmanager
def norm_errors(batch_size: int) -> Iterator[None]:
    """A batch with one value for each channel, which batch normalisation refuses, becomes a sentence.

    Whether there is one follows from the layers before and from what the method takes of a batch: torch finds it out.
    """
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("Expected more than 1 value per channel when training"):
            raise
        raise UserError(
            f"Batch normalisation cannot train on one value for each channel: raise batch_size, which is {batch_size}."
        ) from error
