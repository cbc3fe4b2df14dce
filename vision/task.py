"""The image backend's :class:`~recdenoise.task.ClassTask`: images on the device, networks, augmentation, precision."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from recdenoise import seeds
from recdenoise.errors import UserError, unknown_name
from recdenoise.parallel import ALONE, Parallel
from recdenoise.task import Call, Pass
from vision.embedding import Tap, as_logits, without_head
from vision.heads import Headed
from vision.isolation import Isolation
from vision.loader import ImageLoader

SCAN_IMAGES = {"cpu": 128, "cuda": 512}
"""Images scored at once when going over a data set, by device: more than a CPU's caches hold take it twice as long."""


class Images(Protocol):
    """What a task needs of a data set; :class:`vision.data.ImageData` gives it.

    Attributes:
        images: ``(N, C, H, W)`` uint8.
        labels: ``(N,)`` int64.
        n_classes: number of classes.
        attributes: further whole numbers of every image by name, ``(N,)`` int64, such as ``bias``.
    """

    @property
    def images(self) -> Any: ...
    @property
    def labels(self) -> Tensor: ...
    @property
    def n_classes(self) -> int: ...
    @property
    def attributes(self) -> Mapping[str, Tensor]: ...
    def __len__(self) -> int: ...


class Augmentation(Protocol):
    """Turns a uint8 batch into a normalised float batch; :class:`vision.augment.Augment` is one."""

    def __call__(self, images: Tensor, generator: torch.Generator, train: bool) -> Tensor: ...


@runtime_checkable
class PartialAugmentation(Augmentation, Protocol):
    """One that can also augment a part of a batch as it would be augmented inside the whole one."""

    def part(self, images: Tensor, generator: torch.Generator, train: bool, n: int, share: slice) -> Tensor: ...


@runtime_checkable
class MaskedAugmentation(Augmentation, Protocol):
    """One that can also move masks of the images as it moves the images."""

    def masked(
        self, images: Tensor, masks: Tensor, generator: torch.Generator, train: bool, n: int, share: slice
    ) -> tuple[Tensor, Tensor]: ...


class ImageTask:
    """Images with observed labels, and networks to train on them.

    Args:
        train: the training set, on ``device``.
        new_model: builds the network of a member (0, 1, ...) under whatever seed is set.
        augment: from uint8 to floats.
        seed: everything random follows from it.
        batch_size: images in a step.
        device: where everything lives.
        sources: further data sets that a pass may name, for example ``{"clean": ...}``.
        precision: ``bf16`` runs networks under autocast; logits come back as float32, so that losses do not.
        channels_last: lay out images and filters with the channels last.
        compiled: compile the networks that train.
        embedding: dotted name of the layer whose output is the embedding; ``None`` takes the last Linear's input.
        parallel: the processes that share every batch and every look at the data.
        epoch_images: rows that a sweep over the training set goes over, drawn anew for each and balanced by observed
            class; ``None`` takes all.
        further: augments every view of an image but the first; ``None`` takes ``augment``.
        pretrained: the networks begin with weights that are worth keeping, see :meth:`renewed`.

    Raises:
        UserError: fewer images than a batch, a label outside the classes, or a model that does not fit the data.
    """

    l2_scale = 1.0
    rowwise = False

    def __init__(
        self,
        train: Images,
        *,
        new_model: Callable[[int], nn.Module],
        augment: Augmentation,
        seed: int,
        batch_size: int,
        device: torch.device | str = "cpu",
        sources: Mapping[str, Images] | None = None,
        precision: Literal["fp32", "bf16"] = "fp32",
        channels_last: bool = False,
        compiled: bool = False,
        embedding: str | None = None,
        parallel: Parallel = ALONE,
        epoch_images: int | None = None,
        further: Augmentation | None = None,
        pretrained: bool = False,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"The batch size is {batch_size}; it must be 1 or more.")
        if len(train) < batch_size:
            raise UserError(f"There are {len(train)} training images, fewer than one batch of {batch_size}.")
        self.device, self.parallel = torch.device(device), parallel
        self.sources: dict[str, Images] = {"train": train, **(sources or {})}
        self.labels, self.n_classes, self.n_rows = train.labels.to(self.device), train.n_classes, len(train)
        self.augment, self.seed, self.batch_size = augment, seed, batch_size
        self.epoch_images, self.further, self.pretrained = epoch_images, further, pretrained
        self.held_out: tuple[Images, ...] = ()  # sets that are scored again and again: what is found of them is kept
        self.precision, self.channels_last, self.compiled, self.embedding = (
            precision,
            channels_last,
            compiled,
            embedding,
        )
        if parallel.size > 1 and not isinstance(augment, PartialAugmentation):
            raise UserError(f"{type(augment).__name__} cannot augment a part of a batch, as several processes need.")
        self.isolation: Isolation | None = None
        self._new_model = new_model
        self._runners: dict[tuple[int, bool, bool], tuple[nn.Module, Callable[..., Any]]] = {}
        self._head_runners: dict[int, tuple[nn.Module, Callable[..., Any]]] = {}
        self._check_model()

    # Networks

    def _seeded(self, build: Callable[[], nn.Module], *key: int | str) -> nn.Module:
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seeds.derive(self.seed, *key))
            module = build().to(self.device)
        return module.to(memory_format=torch.channels_last) if self.channels_last else module

    def new_target(self, member: int) -> nn.Module:
        return self._seeded(lambda: self._new_model(member), "target", member)

    def renewed(self, module: nn.Module) -> dict[str, Tensor] | None:
        """The weights that a target was handed in with, its last layer's drawn anew by the global generator.

        ``None`` where they are not worth keeping, and for what is no whole target, such as a part of one.
        """
        if not self.pretrained:
            return None
        before = torch.get_rng_state()
        own, fresh = module.state_dict(), self._new_model(1).state_dict()  # of members beyond 0 the last layer is drawn
        if own.keys() == fresh.keys() and all(own[name].shape == value.shape for name, value in fresh.items()):
            return fresh
        torch.set_rng_state(before)  # a part is drawn as if nobody had asked
        return None

    def new_backbone(self, member: int) -> tuple[nn.Module, int]:
        return without_head(self.new_target(member), self.n_classes)

    def new_module(self, build: Callable[[], nn.Module], name: str) -> nn.Module:
        return self._seeded(build, "module", name)

    def embedding_width(self) -> int:
        """Width of the embedding. Raises ``UserError`` where it cannot be found."""
        with torch.no_grad():
            return int(self.embed(self.new_target(0).eval(), self._first_images())[1].shape[1])

    def new_auxiliary(self, kind: str, member: int) -> nn.Module:
        """Images have no auxiliary networks by name: a method builds its own."""
        raise unknown_name("auxiliary model", kind, [])

    def _first_images(self) -> Tensor:
        raw = self.fetch(self.source("train"), torch.arange(min(2, self.n_rows), device=self.device))
        return self.augmented(raw, seeds.generator(self.device, self.seed, "probe"), train=False)

    def _check_model(self) -> None:
        model = self.new_target(0).eval()
        with torch.no_grad():
            inputs = self._first_images()
            try:
                logits = self.call(model, inputs)
            except (torch.OutOfMemoryError, UserError):  # nothing is wrong with the model, or it has been said
                raise
            except Exception as error:  # a model of one's own may fail in any way
                said = str(error).strip().splitlines()[:1]
                kind = [] if said and isinstance(error, RuntimeError) else [type(error).__name__]
                shape, first = tuple(inputs.shape[1:]), ": ".join(kind + said)
                raise UserError(f"{type(model).__name__} does not take images of shape {shape}: {first}") from error
        if logits.shape != (len(inputs), self.n_classes):
            raise UserError(
                f"{type(model).__name__} gives outputs of shape {tuple(logits.shape[1:])} where the labels have "
                f"{self.n_classes} classes; build it with {self.n_classes} outputs."
            )

    def _runner(self, module: nn.Module, tapped: bool) -> Callable[..., Any]:
        """What runs a network, with its embedding where ``tapped``; compiled while it trains, where that is asked."""
        compiled = self._compiles(module)
        if not (compiled or tapped):
            return module
        key = (id(module), tapped, compiled)
        if key not in self._runners:  # the module is kept beside it, so that its id stays its own
            runner: Callable[..., Any] = Tap(module, self.n_classes, self.embedding, compiled) if tapped else module
            self._runners[key] = (module, torch.compile(runner) if compiled else runner)
        return self._runners[key][1]

    def _compiles(self, module: nn.Module) -> bool:
        """Whether a network, or a part of it, trains; the last block of a scan has a size of its own, not worth it."""
        return self.compiled and any(part.training for part in module.modules())

    def _head_runner(self, module: Headed) -> Callable[..., tuple[Tensor, ...]]:
        """What runs a network head by head; compiled while it trains, where that is asked."""
        if not self._compiles(module):
            return module.heads
        if id(module) not in self._head_runners:
            self._head_runners[id(module)] = (module, torch.compile(module.heads))
        return self._head_runners[id(module)][1]

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def call(self, module: nn.Module, inputs: Any) -> Tensor:
        with self._autocast():
            logits = as_logits(self._runner(module, tapped=False)(inputs))
        return _at_least_float(logits)

    def heads(self, module: nn.Module, inputs: Any, observed: Tensor | None = None) -> tuple[Tensor, ...]:
        """Logits ``(n, C)`` of every head of ``module``, from one forward; see :class:`vision.heads.Headed`."""
        if not isinstance(module, Headed):
            return (self.call(module, inputs),)
        with self._autocast():
            heads = self._head_runner(module)(inputs, observed)
        return tuple(_at_least_float(head) for head in heads)

    def embed(self, module: nn.Module, inputs: Any) -> tuple[Tensor, Tensor]:
        with self._autocast():
            runner = module.embedded if isinstance(module, Headed) else self._runner(module, tapped=True)
            logits, embedding = runner(inputs)
        return _at_least_float(logits), _at_least_float(embedding)

    def call_with(self, module: nn.Module, parameters: Mapping[str, Tensor], inputs: Any) -> Tensor:
        with self._autocast():
            logits = as_logits(torch.func.functional_call(module, dict(parameters), (inputs,)))
        return _at_least_float(logits)

    def begin_step(self, modules: nn.Module) -> None:
        """Image models cache nothing."""

    # Images

    def source(self, name: str) -> Images:
        """A data set by name. Raises ``UserError`` for one that was not given."""
        try:
            return self.sources[name]
        except KeyError:
            raise UserError(f"The method needs a {name!r} data set and none was given.") from None

    def fetch(self, data: Images, rows: Tensor) -> Tensor:
        """The uint8 images of some rows, on the device."""
        images = data.images
        if isinstance(images, Tensor):
            return images.index_select(0, rows.to(images.device)).to(self.device, non_blocking=True)
        return images[rows].to(self.device, non_blocking=True)

    def isolate(self, splitter: str, training: bool = True, scoring: bool = True) -> None:
        """From now on inputs carry the mask of their content as a last channel, 0 to 1, moved with the image.

        Args:
            splitter: a name of :mod:`vision.splitters` other than ``pattern``.
            training: whether the batches of passes do.
            scoring: whether the inputs of :meth:`scan_data` do, where it is not told otherwise.

        Raises:
            UserError: an unknown splitter, or an augmentation that cannot move masks.
        """
        if training and not isinstance(self.augment, MaskedAugmentation):
            raise UserError(f"{type(self.augment).__name__} cannot move masks as it moves images: it has no 'masked'.")
        self.isolation = Isolation(splitter, training, scoring)

    def augmented(
        self,
        raw: Tensor,
        generator: torch.Generator,
        train: bool,
        of: int | None = None,
        masks: Tensor | None = None,
        view: int = 0,
    ) -> Tensor:
        """Floats, laid out as the networks want them.

        Args:
            raw: uint8 images.
            generator: of all draws.
            train: whether to augment.
            of: size of the batch that ``raw`` is this process's share of; ``None`` where it is whole.
            masks: ``(n, 1, H, W)`` uint8, which become the last channel.
            view: of the same images; the first is 0.
        """
        augment = self.further if view and self.further is not None else self.augment
        if masks is not None and not train:
            images = torch.cat([augment(raw, generator, False), masks.to(torch.float32) / 255], 1)
        elif masks is not None:
            assert isinstance(augment, MaskedAugmentation)
            n = len(raw) if of is None else of
            share = slice(0, n) if n == len(raw) else self.parallel.share(n)
            images = torch.cat(augment.masked(raw, masks, generator, train, n, share), 1)
        elif of is None or of == len(raw):
            images = augment(raw, generator, train)
        else:
            assert isinstance(augment, PartialAugmentation)
            images = augment.part(raw, generator, train, of, self.parallel.share(of))
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images

    def loader(self, sweep: Pass, key: tuple[int, ...]) -> ImageLoader:
        return ImageLoader(self, sweep, key)

    def scan(self, function: Call, rows: Tensor | None = None, augment: bool = False) -> Tensor:
        return self.scan_data(self.source("train"), function, rows, augment)

    @torch.no_grad()
    def scan_data(
        self,
        data: Images,
        function: Call,
        rows: Tensor | None = None,
        augment: bool = False,
        masked: bool | None = None,
    ) -> Tensor:
        """``function(inputs)`` for the images of any data set, in blocks, in the order of ``rows``.

        ``masked`` says whether inputs carry masks; ``None`` leaves it to :meth:`isolate`.
        """
        rows = torch.arange(len(data), device=self.device) if rows is None else rows.to(self.device)
        n = len(rows)
        if n == 0:
            raise UserError("There are no images to go over.")
        size = SCAN_IMAGES.get(self.device.type, SCAN_IMAGES["cuda"])
        # Fresh augmentation draws from the global generator, which a checkpoint holds.
        seed = int(torch.randint(2**62, ())) if augment else 0
        generator = torch.Generator(device=self.device).manual_seed(seed)

        isolation, own = self.isolation, any(data is each for each in (*self.sources.values(), *self.held_out))
        if isolation is not None and not (isolation.scoring if masked is None else masked):
            isolation = None

        def values(part: Tensor, of: int) -> Tensor:
            raw = self.fetch(data, part)
            masks = None if isolation is None else isolation.masks(data, part, raw, keep=own)
            return function(self.augmented(raw, generator, augment, of, masks))

        def shared(block: Tensor) -> Tensor:
            """The draws are those of the whole block, so that several processes see the images that one would."""
            if len(block) < self.parallel.size:  # too few to share: every process looks at all
                return values(block, len(block))
            mine = block[self.parallel.share(len(block))]
            return self.parallel.gather(values(mine, len(block)), len(block))

        if augment or n < self.parallel.size:
            return torch.cat([shared(block) for block in rows.split(size)])
        mine = rows[self.parallel.share(n)]
        return self.parallel.gather(torch.cat([values(part, len(part)) for part in mine.split(size)]), n)


def _at_least_float(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
