"""DeNLL: tell foreground from background, and predict with the given and with an average background."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from recdenoise.averaging import Averaging
from recdenoise.denoisers.base import Clock, Denoiser, DenoiserConfig, Optim, Stage, Update
from recdenoise.errors import UserError
from recdenoise.options import require
from recdenoise.task import Batch, Call, ClassTask, Loader, Pass, Task
from vision.methods.hosting import CrossEntropy, Host
from vision.methods.semi_supervised import at_rest
from vision.networks.denll import DeNLLNetwork
from vision.networks.interaction import class_sums
from vision.networks.localization import Cut, Mask

REBUILD_IMAGES = 8192
"""Rows whose background embeddings are held at once while the memory is rebuilt."""


@dataclass(frozen=True)
class DeNLLConfig(DenoiserConfig):
    """Options of DeNLL. The paper takes the host's network and training as they are in the host's own paper."""

    host: str = "pes"
    """The method that trains the network: ``pes``, ``pes_semi``, ``sop``, ``sop_plus``, or ``ce`` for cross-entropy."""

    host_options: dict | None = None  # type: ignore[type-arg]
    """Options of the host by name, as in ``{warm_epochs: 25}``; null takes the host's own."""

    mask: Mask = "soft"
    """``soft``: image times mask, and times 1 - mask; ``eq5``: as printed, by the median; ``box``: a fixed box."""

    share: bool = False
    """One encoder for foreground and background, in place of two."""

    use_lm: bool = True
    """Find the mask by the localisation module; otherwise it is the fixed box (the paper's "w/o LM")."""

    use_dim: bool = True
    """Predict by the debiased interaction module; otherwise by g1 alone (the paper's "w/o DIM")."""

    memory_momentum: float = 0.99
    """Share of the old class background in the new one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.memory_momentum < 1, "memory_momentum", self.memory_momentum, "at least 0 and below 1")
        self.read_host()

    def read_host(self) -> tuple[type[Host], DenoiserConfig]:
        """The host and its options, checked. Raises ``UserError``."""
        host = find_host(self.host)
        config = host.read_config({"l2": self.l2, **(self.host_options or {})})
        require(config.compat == "none", "host_options.compat", config.compat, "none for images")
        return host, config


def find_host(name: str) -> type[Host]:
    """A host by name: ``ce``, or a method of the table that trains networks of several heads. Raises ``UserError``."""
    if name == CrossEntropy.name:
        return CrossEntropy
    from vision import methods

    table: dict[str, type[Denoiser]] = {each: methods.get(each) for each in methods.names()}
    hosts = [CrossEntropy.name, *(each for each, method in table.items() if issubclass(method, Host))]
    require(name in hosts, "host", name, f"one of {', '.join(hosts)}")
    host = table[name]
    assert issubclass(host, Host)
    return host


class DeNLLTask:
    """A task whose targets are DeNLL's networks, built around the backbone of the targets of another task.

    Args:
        task: an image task.
        config: which parts the networks have.
    """

    def __init__(self, task: Task, config: DeNLLConfig) -> None:
        if not isinstance(task, ClassTask) or not hasattr(task, "source"):
            raise UserError("DeNLL separates what is seen in images; it is for labels of images.")
        self.inner, self.config = task, config
        self.n_classes, self.n_rows, self.labels = task.n_classes, task.n_rows, task.labels
        self.l2_scale, self.rowwise = task.l2_scale, task.rowwise
        self.cut = self._cut()

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # while it is unpickled or copied there is nothing to ask yet
            raise AttributeError(name)
        return getattr(self.inner, name)

    def _cut(self) -> Callable[[], Cut]:
        mode = self.config.mask
        if mode != "eq5":
            return lambda: Cut(mode)
        augment = getattr(self.inner, "augment", None)
        mean, std = (getattr(augment, name, None) for name in ("mean", "std"))
        if mean is None or std is None:
            raise UserError(
                "Option 'mask' is 'eq5', which needs images on the scale 0 to 1: the augmentation must have the "
                "attributes mean and std by which it normalises, as vision.augment.Augment has."
            )
        return lambda: Cut(mode, tuple(mean), tuple(std))

    # Networks

    def new_target(self, member: int) -> nn.Module:
        return self.inner.new_module(lambda: self._network(member), f"denll.{member}")

    def _network(self, member: int) -> DeNLLNetwork:
        options, parallel = self.config, getattr(self.inner, "parallel", None)
        foreground, width = self.inner.new_backbone(2 * member)
        background = None if options.share else self.inner.new_backbone(2 * member + 1)[0]
        gather = {} if parallel is None else {"gather": parallel.gather}
        return DeNLLNetwork(
            foreground,
            background,
            width,
            self.n_classes,
            self.source("train").images.shape[1],
            self.cut(),
            use_lm=options.use_lm and options.mask != "box",
            use_dim=options.use_dim,
            momentum=options.memory_momentum,
            **gather,
        )

    def renewed(self, module: nn.Module) -> dict[str, Tensor] | None:
        """Backbones go back to the weights that they were handed in with; all around them is drawn anew."""
        if not self.pretrained or not isinstance(module, DeNLLNetwork):
            return None
        state: dict[str, Tensor] = self._network(0).state_dict()
        return state

    def new_backbone(self, member: int) -> tuple[nn.Module, int]:
        return self.inner.new_backbone(member)

    def new_auxiliary(self, kind: str, member: int) -> nn.Module:
        return self.inner.new_auxiliary(kind, member)

    def new_module(self, build: Callable[[], nn.Module], name: str) -> nn.Module:
        return self.inner.new_module(build, name)

    def embedding_width(self) -> int:
        return self.inner.embedding_width()

    # Calls

    def call(self, module: nn.Module, inputs: Any) -> Tensor:
        return self.inner.call(module, inputs)

    def heads(self, module: nn.Module, inputs: Any, observed: Tensor | None = None) -> tuple[Tensor, ...]:
        heads: tuple[Tensor, ...] = self.__getattr__("heads")(module, inputs, observed)
        return heads

    def embed(self, module: nn.Module, inputs: Any) -> tuple[Tensor, Tensor]:
        return self.inner.embed(module, inputs)

    def call_with(self, module: nn.Module, parameters: Mapping[str, Tensor], inputs: Any) -> Tensor:
        return self.inner.call_with(module, parameters, inputs)

    def begin_step(self, modules: nn.Module) -> None:
        self.inner.begin_step(modules)

    # Data

    def loader(self, sweep: Pass, key: tuple[int, ...]) -> Loader:
        return self.inner.loader(sweep, key)

    def scan(self, function: Call, rows: Tensor | None = None, augment: bool = False) -> Tensor:
        return self.inner.scan(function, rows, augment)


PREFIX = "host."


class DeNLL(Denoiser):
    """Another method trains a network that separates foreground from background and intervenes on the background."""

    name = "denll"
    title = "DeNLL"
    summary = "separates foreground from background and averages the background out, on top of another method"
    distributed = True
    paper = "Deconfounded Noisy Labels Learning, anonymous authors, under double-blind review"
    Config = DeNLLConfig
    neutral = None
    neutral_reason = "two encoders behind a mask are another network than the host's"
    brief: ClassVar[dict[str, Any]] = {"host": "ce"}

    def build(self, task: Task) -> None:
        host, options = self.config.read_host()
        self.host: Host = host(DeNLLTask(task, self.config), options)

    @property
    def target(self) -> DeNLLNetwork:  # type: ignore[override]
        """The host's network."""
        network = self.host.target
        assert isinstance(network, DeNLLNetwork)
        return network

    @property
    def loss_selector_note(self) -> str:  # type: ignore[override]
        """The host's."""
        return self.host.loss_selector_note

    def networks(self) -> dict[str, DeNLLNetwork]:
        """The host's networks by dotted name in the host."""
        return {name: module for name, module in self.host.named_modules() if isinstance(module, DeNLLNetwork)}

    # What the host declares, under its name here.

    def stages(self) -> list[Stage]:
        return [self._outer(stage) for stage in self.host.stages()]

    def _outer(self, stage: Stage) -> Stage:
        """The host's stage under the names of this method; memories stay with the layers that a stage trains."""
        train = [f"{PREFIX}{name}" for name in stage.train]
        for name, network in self.networks().items():
            if network.memory is not None and any(part.startswith(f"{name}.") for part in stage.train):
                train.append(f"{PREFIX}{name}.memory")
        reset = tuple(f"{PREFIX}{name}" for name in stage.reset)
        return replace(stage, train=tuple(train), watch=f"{PREFIX}{stage.watch}", reset=reset)

    def _inner(self, stage: Stage) -> Stage:
        """Inverse of :meth:`_outer`."""
        memories = {f"{PREFIX}{name}.memory" for name in self.networks()}
        train = tuple(name.removeprefix(PREFIX) for name in stage.train if name not in memories)
        reset = tuple(name.removeprefix(PREFIX) for name in stage.reset)
        return replace(stage, train=train, watch=stage.watch.removeprefix(PREFIX), reset=reset)

    def optimizers(self, stage: Stage) -> dict[str, Optim]:
        declared = self.host.optimizers(self._inner(stage))
        return {
            key: replace(optim, modules={f"{PREFIX}{name}": l2 for name, l2 in optim.modules.items()})
            for key, optim in declared.items()
        }

    def begin_stage(self, stage: Stage) -> None:
        self.host.begin_stage(self._inner(stage))

    def begin_epoch(self, stage: Stage, epoch: int) -> None:
        inner = self._inner(stage)
        self._refresh(inner, epoch)
        self.host.begin_epoch(inner, epoch)

    def _refresh(self, stage: Stage, epoch: int) -> None:
        """Rebuild the memories that an encoder drawn anew, or an epoch of mixed images alone, has left behind."""
        for name, network in self.networks().items():
            memory, place = network.memory, f"{name}.{network.background_place}"
            if memory is None:
                continue
            anew = [part for part in stage.reset if epoch == 0 and overlap(place, part)]
            left = bool(memory.seen.any()) and not memory.moved
            if anew or left:
                self.rebuild(network, fresh_norms(self.host, anew))
            memory.moved.fill_(False)

    def rebuild(self, network: DeNLLNetwork, fresh: Sequence[BatchNorm] = ()) -> None:
        """Set the memory of ``network`` to the exact mean of the training set's background embeddings by label.

        Args:
            network: one of the host's.
            fresh: norms that have seen nothing yet. They normalise by the images at hand, as they will in training,
                since what they would go by otherwise is where statistics start; they come out as they went in.
        """
        assert isinstance(self.task, ClassTask)
        assert network.memory is not None
        task, labels, runner = self.task, self.task.labels, BackgroundEmbedding(network, whole=bool(fresh))
        mean = network.memory.mean
        sums, counts = torch.zeros_like(mean), torch.zeros_like(mean[:, 0])

        def embedded(inputs: Any) -> Tensor:
            for norm in fresh:
                norm.training = len(inputs) > 1  # one image has no variance to go by
            return task.call(runner, inputs)

        with kept_statistics(fresh):
            for rows in torch.arange(task.n_rows, device=mean.device).split(REBUILD_IMAGES):
                found, number = class_sums(task.scan(embedded, rows), labels[rows], len(mean))
                sums, counts = sums + found, counts + number
        network.memory.rebuild(sums, counts)

    def passes(self, stage: Stage, epoch: int) -> list[Pass]:
        return self.host.passes(self._inner(stage), epoch)

    def step(self, stage: Stage, batch: Batch, clock: Clock) -> Iterator[Update]:
        inner, averages = self._inner(stage), None
        if clock.averages is not None:
            averages = HostAverages(clock.averages)
            if clock.sweep == 0 and clock.within == 0:  # the epoch began with the averages in place of the weights
                with at_rest(self.host):
                    self._refresh(inner, clock.epoch)
        yield from self.host.step(inner, batch, replace(clock, averages=averages))

    def edit_gradients(self, optimizer: str, clock: Clock) -> None:
        self.host.edit_gradients(optimizer, clock)

    def score(self, inputs: Any) -> Tensor:
        return self.host.score(inputs)

    def clean_probability(self) -> Tensor:
        return self.host.clean_probability()

    def held_out_probability(self, scan: Callable[[Call], Tensor], label: Tensor) -> Tensor:
        return self.host.held_out_probability(scan, label)

    def row_weights(self) -> Tensor | None:
        return self.host.row_weights()

    def findings(self) -> dict[str, Any]:
        return self.host.findings()

    def renewed(self, name: str) -> dict[str, Tensor] | None:
        return self.host.renewed(name.removeprefix(PREFIX))

    def watched_score(self, stage: Stage) -> Call:
        return self.host.watched_score(self._inner(stage))


class HostAverages(Averaging):
    """The run's averages of weights, by the names that the host's modules have in the host."""

    def __init__(self, averages: Averaging) -> None:
        vars(self).update(vars(averages))  # a view: nothing is averaged twice

    def of(self, name: str) -> dict[str, Tensor]:
        return super().of(f"{PREFIX}{name}")


class BackgroundEmbedding(nn.Module):
    """Calls a network for the embeddings ``(n, D)`` of the backgrounds.

    Args:
        network: the network.
        whole: embed foregrounds as well: a shared encoder that normalises by what it sees sees both in training.
    """

    def __init__(self, network: DeNLLNetwork, whole: bool = False) -> None:
        super().__init__()
        self.network, self.whole = network, whole
        self.training = False  # of this wrapper alone

    def forward(self, images: Tensor) -> Tensor:
        if self.whole and self.network.background_encoder is None:
            return self.network.embeddings(*self.network.cut(images, self.network.mask(images)))[1].float()
        return self.network.embed_background(images)


def fresh_norms(host: nn.Module, parts: Sequence[str]) -> list[BatchNorm]:
    """The batch norms in parts of ``host``, by dotted name."""
    return [m for part in parts for m in host.get_submodule(part).modules() if isinstance(m, BatchNorm)]


@contextlib.contextmanager
def kept_statistics(norms: Sequence[BatchNorm]) -> Iterator[None]:
    """Inside the block norms may train; afterwards their statistics and modes are those of before."""
    before = [({name: b.clone() for name, b in norm.named_buffers()}, norm.training) for norm in norms]
    try:
        yield
    finally:
        for norm, (buffers, training) in zip(norms, before, strict=True):
            for name, buffer in norm.named_buffers():
                buffer.copy_(buffers[name])
            norm.training = training


def overlap(a: str, b: str) -> bool:
    """Whether one of two dotted names lies in the other."""
    return a == b or a.startswith(f"{b}.") or b.startswith(f"{a}.")
