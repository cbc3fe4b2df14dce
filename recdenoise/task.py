"""What a backend gives to the core: batches, passes and a :class:`Task` that builds and calls networks.

The core never looks inside ``inputs``: a recommendation backend puts pairs of ids there, an image backend puts images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

Call = Callable[[Any], Tensor]
"""Maps backend inputs to logits."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A step's examples. Groups are contiguous, so that a mean per group is a slice and not a scatter.

    Attributes:
        index: ``(n,)`` int64 row in the training set, -1 for a sampled negative.
        inputs: whatever the backend's :meth:`Task.call` takes.
        label: ``(n,)`` observed labels: 0/1 floats in the binary case, int64 classes otherwise; ``(n, C)`` floats where
            the pass gives soft labels.
        groups: sizes of the contiguous groups, for example ``(2048, 2048)`` positives and negatives. They sum to n.
        weight: ``(n,)`` weights of the pass, or ``None`` where it has none.
        views: every augmented view of the inputs where there are several; the first is ``inputs``.
        streams: the batches that come along, by the names that the pass gave them.
    """

    index: Tensor
    inputs: Any
    label: Tensor
    groups: tuple[int, ...]
    weight: Tensor | None = None
    views: tuple[Any, ...] = ()
    streams: Mapping[str, Batch] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pass:
    """One sweep over the training set.

    Recommendation reads the first three attributes, classification the others.

    Attributes:
        negatives: how a recommendation backend draws the unobserved pair of each observed one; ``None`` draws none.
        beta: exponent on item popularity for ``"popularity"``.
        reject: redraw an item that the user has interacted with. Only ``compat: paper_code`` turns it off.
        rows: ``(m,)`` int64 rows to go over, in an order of their own each epoch; ``None`` goes over all.
        labels: ``(n_rows,)`` int64 or ``(n_rows, C)`` float labels by row, in place of the observed ones.
        weights: ``(n_rows,)`` weights by row, which come as ``batch.weight``: a method multiplies them in.
        views: independently augmented views of each example.
        augment: whether inputs are augmented.
        streams: further passes whose batches come along, by name; each begins again when it is through, so that the
            outer pass alone decides how long an epoch is.
        source: which of the task's data sets the rows are of; ``"train"`` is the training set.
        batch_size: examples in a batch; ``None`` takes the task's.
        steps: of the pass; beyond its rows it goes round again in another order. ``None`` goes over the rows once.
        paired: in a stream: ``rows`` is ``(n_rows,)`` and holds the partner of each row of the outer pass.
    """

    negatives: Literal["uniform", "popularity"] | None = "uniform"
    beta: float = 1.0
    reject: bool = True
    rows: Tensor | None = None
    labels: Tensor | None = None
    weights: Tensor | None = None
    views: int = 1
    augment: bool = True
    streams: Mapping[str, Pass] = field(default_factory=dict, hash=False, compare=False)
    source: str = "train"
    batch_size: int | None = None
    steps: int | None = None
    paired: bool = False


class Loader(Protocol):
    """The batches of one pass. ``batches(start)`` begins at any step, so that a run resumes in mid-epoch."""

    def __len__(self) -> int: ...

    def batches(self, start: int = 0) -> Iterator[Batch]: ...


class Task(Protocol):
    """A data set and a family of networks. Everything random in it follows from ``seed``.

    Attributes:
        n_classes: 2 for implicit feedback.
        n_rows: number of training examples.
        l2_scale: what a penalty ``lambda / 2 ||theta||^2`` is multiplied by; 1 / number of users for recommendation.
        rowwise: the target scores whole users at once (autoencoders), so that a batch is users and not pairs.
    """

    n_classes: int
    n_rows: int
    l2_scale: float
    rowwise: bool

    def new_target(self, member: int) -> nn.Module:
        """A new copy of the model to denoise: the same ``member`` has the same initial weights, another one others."""
        ...

    def new_auxiliary(self, kind: str, member: int) -> nn.Module:
        """A new auxiliary network by name, for example ``"mf"``. Raises ``UserError`` for a name it does not know."""
        ...

    def call(self, module: nn.Module, inputs: Any) -> Tensor:
        """Logits of ``module``: ``(n,)`` for pairs, ``(b, n_items)`` for whole rows, ``(n, C)`` for images."""
        ...

    def begin_step(self, modules: nn.Module) -> None:
        """Drop what networks cached from the last step (propagated embeddings)."""
        ...

    def loader(self, sweep: Pass, key: tuple[int, ...]) -> Loader:
        """Batches of one pass, drawn from the task's seed and ``key`` (stage, epoch, pass) alone."""
        ...

    def scan(self, function: Call) -> Tensor:
        """``function(inputs)`` without gradient for every training row, in row order: ``(n_rows, ...)``."""
        ...


@runtime_checkable
class ClassTask(Task, Protocol):
    """A task whose labels are classes: logits are ``(n, C)``, one augmented input an example.

    Attributes:
        labels: ``(n_rows,)`` int64 observed labels, by row.
    """

    labels: Tensor

    # A method, as ``isinstance`` may evaluate every property of a protocol, and not every network has an embedding.
    def embedding_width(self) -> int:
        """Width of the embedding that the target's last layer reads. Raises ``UserError`` where there is none."""
        ...

    def new_backbone(self, member: int) -> tuple[nn.Module, int]:
        """The target without its last layer, as an encoder, and the width of its embedding."""
        ...

    def new_module(self, build: Callable[[], nn.Module], name: str) -> nn.Module:
        """A network of the method's own on the task's device, its weights drawn from the task's seed and ``name``."""
        ...

    def embed(self, module: nn.Module, inputs: Any) -> tuple[Tensor, Tensor]:
        """Logits ``(n, C)`` and the embedding ``(n, D)`` that the last layer of ``module`` reads, from one forward."""
        ...

    def call_with(self, module: nn.Module, parameters: Mapping[str, Tensor], inputs: Any) -> Tensor:
        """Logits of ``module`` with ``parameters`` (by name) in place of its own; differentiable in them."""
        ...

    def scan(self, function: Call, rows: Tensor | None = None, augment: bool = False) -> Tensor:
        """As :meth:`Task.scan`, of ``rows`` alone where given, each freshly augmented where asked."""
        ...


class Validation(Protocol):
    """Measures a scorer on held-out data."""

    def __call__(self, score: Call, wanted: set[str]) -> dict[str, float]:
        """Values for the names in ``wanted``: ``loss``, ``trimmed_loss``, ``accuracy`` or a metric like ``ndcg@20``."""
        ...
