"""Label noise that is known: names that say which kind, seeded draws, the transition matrix, the realised rate.

==========================  ========================================================================================
``none``                    the labels as they are
``symmetric-any:0.4``       40% of the labels become a random class, the own one INCLUDED, so that 36% of ten
                            classes end wrong (MW-Net, DivideMix, ELR, SOP, Table 4 of DeCA);
                            ``symmetric`` is short for this
``symmetric-other:0.4``     40% become another class (PES, Table 1 of DeNLL)
``pairflip:0.45``           45% become the next class, the last one the first (Co-teaching)
``asymmetric-cifar10:0.4``  40% of some classes become a class like them, see :data:`ASYMMETRIC`; also for ``cifar100``,
                            ``mnist``, ``fashion-mnist``; ``asymmetric`` goes by the data's name
``instance:0.4``            a rate of its own for every image, towards classes that the image chooses
``human:cifar10n-worse``    what people wrote: a set of CIFAR-N, or ``human:FILE#ARRAY``
==========================  ========================================================================================

Exactly the nearest whole number of rows is chosen, and every class gives its share to within a row. With
``,count=binomial`` behind the rate each row is chosen by itself instead, as some public code does. Draws come from a
bit stream, so that a seed gives the same labels on every machine; only ``instance`` multiplies matrices on the way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from data_recipes.images_names import CIFAR100_CLASSES, CIFAR100_SUPERCLASSES
from recdenoise.errors import UserError, unknown_name
from recdenoise.noise import Draw, uniform_draws
from vision import human_labels
from vision.data.images import ImageData, LazyImages, check_labels
from vision.instance_noise import instance_noise

KINDS = ("none", "symmetric-any", "symmetric-other", "pairflip", "asymmetric", "instance", "human")
"""Every kind; ``asymmetric`` also as ``asymmetric-<data set>``."""


def _next_in_superclass() -> dict[int, int]:
    number = {name: i for i, name in enumerate(CIFAR100_CLASSES)}
    groups = [[number[name] for name in names] for names in CIFAR100_SUPERCLASSES.values()]
    return {each: group[(place + 1) % len(group)] for group in groups for place, each in enumerate(group)}


ASYMMETRIC: dict[str, tuple[int, dict[int, int]]] = {
    "cifar10": (10, {9: 1, 2: 0, 3: 5, 5: 3, 4: 7}),
    "cifar100": (100, _next_in_superclass()),
    "mnist": (10, {7: 1, 2: 7, 5: 6, 6: 5, 3: 8}),
    "fashion-mnist": (10, {9: 7, 7: 5, 2: 6, 4: 3, 3: 4}),
}
"""Data set -> number of classes, and which class becomes which. CIFAR-10: truck -> automobile, bird -> airplane,
cat <-> dog, deer -> horse; CIFAR-100: the next class of the superclass; MNIST: 7 -> 1, 2 -> 7, 5 <-> 6, 3 -> 8 (Patrini
et al., CVPR 2017). Fashion-MNIST: boot -> sneaker, sneaker -> sandal, pullover -> shirt, coat <-> dress (Zhang &
Sabuncu, NeurIPS 2018)."""


@dataclass(frozen=True)
class NoiseSpec:
    """A kind of label noise with its strength; ``str`` gives the name that :func:`parse` reads.

    Raises:
        UserError: an unknown kind, or options that do not belong to it.
    """

    kind: str
    """One of :data:`KINDS`."""
    rate: float = 0.0
    """Share of labels that are chosen, 0 to below 1; of the classes that change, for ``asymmetric``."""
    dataset: str | None = None
    """Of ``asymmetric``: whose classes; ``None`` goes by the data's name."""
    source: str | None = None
    """Of ``human``: ``cifar10n-worse`` and so on, or ``FILE#ARRAY``."""
    count: Literal["exact", "binomial"] = "exact"
    """Whether the number of chosen labels is fixed or drawn."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown_name("kind of label noise", self.kind, _typed_names())
        if isinstance(self.rate, bool) or not isinstance(self.rate, int | float) or not 0 <= self.rate < 1:
            raise UserError(f"The noise rate is {self.rate!r}; it must be 0 or more and below 1.")
        if self.dataset is not None and (self.kind != "asymmetric" or self.dataset not in ASYMMETRIC):
            raise unknown_name("asymmetric noise of", self.dataset, ASYMMETRIC)
        if (self.kind == "human") != (self.source is not None):
            raise UserError("Human label noise needs its set, as in human:cifar10n-worse, and no other kind has one.")
        if self.count not in ("exact", "binomial"):
            raise UserError(f"The noise's count is {self.count!r}; it must be exact or binomial.")

    def __str__(self) -> str:
        if self.kind == "none":
            return "none"
        if self.kind == "human":
            return f"human:{self.source}"
        name = self.kind if self.dataset is None else f"{self.kind}-{self.dataset}"
        return f"{name}:{self.rate:g}" + ("" if self.count == "exact" else f",count={self.count}")


@dataclass(frozen=True, eq=False)
class NoisyLabels:
    """Labels after noise.

    Attributes:
        labels: ``(N,)`` int64 observed labels.
        true_labels: ``(N,)`` int64 labels before.
        transition: ``(C, C)`` float64, P(observed j | true i) of the kind of noise: row i, column j. For ``instance``
            the mean over the images of a class, for ``human`` what was counted.
        rate: share of labels that are wrong now.
        spec: what was done.
    """

    labels: Tensor
    true_labels: Tensor
    transition: Tensor
    rate: float
    spec: NoiseSpec

    def realised(self) -> Tensor:
        """``(C, C)`` float64: the shares that were drawn. A class without images keeps its labels."""
        return counted(self.true_labels, self.labels, len(self.transition))


def _typed_names() -> list[str]:
    return [*KINDS, "symmetric", *(f"asymmetric-{name}" for name in ASYMMETRIC)]


def symmetric(rate: float, include_self: bool = True) -> NoiseSpec:
    """Random classes for a share of the labels: any class, or any other class."""
    return NoiseSpec("symmetric-any" if include_self else "symmetric-other", rate)


def pairflip(rate: float) -> NoiseSpec:
    """The next class for a share of the labels."""
    return NoiseSpec("pairflip", rate)


def asymmetric(rate: float, dataset: str | None = None) -> NoiseSpec:
    """A similar class for a share of some classes; see :data:`ASYMMETRIC`."""
    return NoiseSpec("asymmetric", rate, dataset=dataset)


def instance(rate: float) -> NoiseSpec:
    """Noise that depends on the image; see :func:`vision.instance_noise.instance_noise`."""
    return NoiseSpec("instance", rate, count="binomial")


def human(source: str) -> NoiseSpec:
    """Labels that people gave: a set of CIFAR-N or ``FILE#ARRAY``."""
    return NoiseSpec("human", source=source)


def parse(text: str | NoiseSpec) -> NoiseSpec:
    """Read the name of a noise, as in the table above.

    Raises:
        UserError: unknown kind, a rate outside [0, 1) or none, an unknown option.
    """
    if isinstance(text, NoiseSpec):
        return text
    name, colon, rest = str(text).strip().partition(":")
    name = name.strip().lower().replace("_", "-")
    if name == "human":
        return NoiseSpec("human", source=rest.strip() or None)
    kind, dataset = {"symmetric": "symmetric-any"}.get(name, name), None
    if kind.startswith("asymmetric-"):
        kind, dataset = "asymmetric", kind.removeprefix("asymmetric-")
    if kind not in KINDS:
        raise unknown_name("kind of label noise", name, _typed_names())
    if kind == "none":
        if colon:
            raise UserError(f"The noise is {text!r}; none takes no rate.")
        return NoiseSpec("none")
    rate, *options = rest.split(",")
    values = dict(each.strip().partition("=")[::2] for each in options)
    for option in values.keys() - {"count"}:
        raise unknown_name(f"option of noise {name}:", option, ["count"])
    default = "binomial" if kind == "instance" else "exact"
    count: Any = values.get("count", default)
    if kind == "instance" and count == "exact":
        raise UserError("Instance noise draws every image by itself: its count is binomial.")
    return NoiseSpec(kind, _number(rate, text), dataset=dataset, count=count)


def _number(rate: str, text: str) -> float:
    try:
        return float(rate)
    except ValueError:
        raise UserError(f"The noise is {text!r}; it needs its rate, as in {text.partition(':')[0]}:0.4.") from None


def transition_matrix(spec: NoiseSpec, n_classes: int, dataset: str = "") -> Tensor:
    """``(C, C)`` float64 P(observed j | true i) of a kind that depends on the class alone.

    Raises:
        UserError: ``instance`` or ``human``, or ``asymmetric`` for other classes.
    """
    rate, own = spec.rate, torch.eye(n_classes, dtype=torch.float64)
    if spec.kind == "none":
        return own
    if spec.kind == "symmetric-any":
        return (1 - rate) * own + rate / n_classes
    if spec.kind == "symmetric-other":
        return (1 - rate) * own + rate / (n_classes - 1) * (1 - own)
    if spec.kind not in ("pairflip", "asymmetric"):
        raise UserError(f"Noise {spec} has no transition matrix before it meets the data.")
    target = torch.from_numpy(_targets(spec, n_classes, dataset))
    return (1 - rate) * own + rate * own[target]


def _targets(spec: NoiseSpec, n_classes: int, dataset: str) -> np.ndarray:
    """``(C,)`` the class that each class becomes; its own where it never changes."""
    if spec.kind == "pairflip":
        return (np.arange(n_classes) + 1) % n_classes
    name = spec.dataset or dataset
    if name not in ASYMMETRIC:
        raise UserError(
            f"Asymmetric noise depends on the classes and these are of {name or 'unnamed data'}; say which it shall "
            f"be: {', '.join(f'asymmetric-{each}' for each in ASYMMETRIC)}."
        )
    classes, pairs = ASYMMETRIC[name]
    if classes != n_classes:
        raise UserError(f"Noise asymmetric-{name} is for {classes} classes; the data has {n_classes}.")
    return np.array([pairs.get(each, each) for each in range(classes)])


def apply(
    spec: str | NoiseSpec,
    labels: Tensor,
    n_classes: int,
    images: Tensor | LazyImages | None = None,
    seed: int = 0,
    *,
    dataset: str = "",
    root: str | None = None,
) -> NoisyLabels:
    """Make labels noisy.

    Args:
        spec: a name, or what :func:`parse` made of it.
        labels: ``(N,)`` int64 true labels.
        n_classes: number of classes.
        images: ``(N, C, H, W)`` uint8, which ``instance`` reads.
        seed: everything follows from it, and nothing from the global generator.
        dataset: name of the data, for ``asymmetric``.
        root: where label files are looked for, for ``human``; see :func:`vision.data.named.load_named`.

    Returns:
        The labels, on the device of ``labels``.

    Raises:
        UserError: labels that do not fit, or a noise that does not fit the data.
    """
    spec = parse(spec)
    check_labels(labels, len(labels), n_classes, "label")
    true = labels.detach().cpu()
    if spec.kind == "human":
        noisy = human_labels.read(spec.source or "", true, n_classes, root)
        matrix = counted(true, noisy, n_classes)
    elif spec.rate == 0:
        noisy, matrix = true.clone(), torch.eye(n_classes, dtype=torch.float64)
    elif spec.kind == "instance":
        if images is None or len(images) != len(labels):
            raise UserError("Instance noise depends on the images; hand over one for each label.")
        noisy, matrix = instance_noise(images, true, n_classes, spec.rate, seed)
    else:
        matrix = transition_matrix(spec, n_classes, dataset)
        noisy = torch.from_numpy(_flipped(spec, true.numpy(), n_classes, seed, dataset))
    rate = float((noisy != true).double().mean())
    return NoisyLabels(noisy.to(labels.device), labels, matrix, rate, spec)


def make_noisy(
    data: ImageData, spec: str | NoiseSpec, seed: int = 0, root: str | None = None
) -> tuple[ImageData, NoisyLabels]:
    """``data`` with noisy labels, its own kept as the true ones; and what was done. Raises ``UserError``."""
    noisy = apply(spec, data.labels, data.n_classes, data.images, seed, dataset=data.name, root=root)
    return dataclasses.replace(data, labels=noisy.labels, true_labels=data.labels), noisy


def _flipped(spec: NoiseSpec, true: np.ndarray, n_classes: int, seed: int, dataset: str) -> np.ndarray:
    def stream(purpose: str) -> Draw:
        return uniform_draws(seed, "labels", spec.kind, purpose)

    new: Callable[[np.ndarray], np.ndarray]
    eligible = np.ones(n_classes, dtype=bool)
    if spec.kind in ("pairflip", "asymmetric"):
        targets = _targets(spec, n_classes, dataset)
        eligible = targets != np.arange(n_classes)

        def new(old: np.ndarray) -> np.ndarray:
            return targets[old]

    elif spec.kind == "symmetric-any":

        def new(old: np.ndarray) -> np.ndarray:
            return (stream("classes")(len(old)) * n_classes).astype(np.int64)

    else:

        def new(old: np.ndarray) -> np.ndarray:
            return (old + 1 + (stream("classes")(len(old)) * (n_classes - 1)).astype(np.int64)) % n_classes

    noisy = true.copy()
    chosen = choose_rows(true, n_classes, spec.rate, eligible, spec.count, stream("rows"))
    noisy[chosen] = new(true[chosen])
    return noisy


def choose_rows(
    labels: np.ndarray, n_classes: int, rate: float, eligible: np.ndarray, count: str, draw: Draw
) -> np.ndarray:
    """Rows to change, ascending: a share ``rate`` of the rows of every eligible class.

    Args:
        labels: ``(N,)`` classes.
        eligible: ``(C,)`` whether a class changes at all.
        count: ``exact``: the whole number nearest to the share, and of every class to within a row; ``binomial``: each
            row by itself.
        draw: source of randomness; one number a row.
    """
    numbers = draw(len(labels))
    may = eligible[labels]
    if count == "binomial":
        return np.flatnonzero(may & (numbers < rate))
    sizes = np.bincount(labels[may], minlength=n_classes)
    # Rounding goes over the running total, so that the whole is exact and no class is a row off.
    wanted = np.diff((np.cumsum(sizes) * rate + 0.5).astype(np.int64), prepend=0)
    order = np.lexsort((numbers, labels))
    order = order[may[order]]
    place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[place < wanted[labels[order]]])


def counted(true: Tensor, noisy: Tensor, n_classes: int) -> Tensor:
    """``(C, C)`` float64 shares of observed labels among the images of each true class; the identity where none are."""
    pairs = torch.bincount(true.cpu() * n_classes + noisy.cpu(), minlength=n_classes**2).view(n_classes, n_classes)
    sizes = pairs.sum(1, keepdim=True)
    return torch.where(sizes > 0, pairs.double() / sizes.clamp_min(1), torch.eye(n_classes, dtype=torch.float64))
