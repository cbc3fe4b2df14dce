"""An image task small enough to know: each class lights another corner, and some labels are wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from recdenoise.denoisers import Denoiser
from recdenoise.loop import Loop, LoopConfig
from vision import methods
from vision.evaluation import Held
from vision.task import ImageTask

CLASSES, SIZE = 3, 6


@dataclass(frozen=True)
class TinyImages:
    """``n`` grey images of ``CLASSES`` classes; ``noise`` of the labels are another class's."""

    images: Tensor
    labels: Tensor
    true_labels: Tensor
    n_classes: int = CLASSES
    attributes: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    @staticmethod
    def draw(n: int, noise: float, seed: int) -> TinyImages:
        generator = torch.Generator().manual_seed(seed)
        truth = torch.arange(n) % CLASSES
        images = torch.randint(0, 120, (n, 1, SIZE, SIZE), generator=generator, dtype=torch.uint8)
        for c, corner in enumerate((slice(0, 3), slice(3, 6))):
            images[truth == c, :, corner, corner] += 60
        images[truth == 2, :, :3, 3:] += 60
        wrong = torch.rand(n, generator=generator) < noise
        shift = torch.randint(1, CLASSES, (n,), generator=generator)
        return TinyImages(images, torch.where(wrong, (truth + shift) % CLASSES, truth), truth)


def jitter(images: Tensor, generator: torch.Generator, train: bool) -> Tensor:
    """Floats around zero, with a little noise in training: an augmentation that a test can see."""
    values = images.float() / 255 - 0.4
    if train:
        values = values + 0.05 * torch.randn(values.shape, generator=generator, device=values.device)
    return values


def network(dropout: float = 0.0, norm: bool = True) -> nn.Module:
    """A small convolutional network with what makes training hard to resume."""
    layers: list[nn.Module] = [nn.Conv2d(1, 6, 3)]
    layers += [nn.BatchNorm2d(6)] if norm else []
    layers += [nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Dropout(dropout), nn.Linear(24, CLASSES)]
    return nn.Sequential(*layers)


Move = Callable[[TinyImages], TinyImages]


def stay(data: TinyImages) -> TinyImages:
    """Images remain where they are."""
    return data


def image_task(
    seed: int = 1, dropout: float = 0.0, noise: float = 0.3, n: int = 66, move: Move = stay, **options: Any
) -> ImageTask:
    """Sixty-six noisy images in batches of sixteen, and twelve clean ones for methods that need some.

    ``move`` brings data where the task wants it.
    """
    settings: dict[str, Any] = {"batch_size": 16, "augment": jitter, "new_model": lambda _: network(dropout), **options}
    settings.setdefault("sources", {"clean": move(TinyImages.draw(12, 0.0, 9))})
    train = TinyImages.draw(n, noise, 7)
    biased = replace(train, attributes={"bias": torch.arange(n) // CLASSES % 2})
    return ImageTask(move(biased), seed=seed, **settings)


def held(task: ImageTask, noise: float = 0.3, move: Move = stay) -> Held:
    """Thirty further images, as noisy as the training set unless said otherwise."""
    return Held(task, move(TinyImages.draw(30, noise, 8)))


def image_loop(name: str, task: ImageTask, options: dict[str, Any] | None = None, **config: Any) -> Loop:
    """A loop over the toy images."""
    keywords = {k: config.pop(k) for k in ("checkpoint_path", "observer", "probe") if k in config}
    denoiser, validate = build(name, task, options, config.pop("brief", True)), config.pop("validate", None)
    settings = LoopConfig(**{"epochs": 3, "lr": 0.02, "selector": "accuracy", "patience": None, **config})
    return Loop(denoiser, task, settings, validate=validate or held(task), **keywords)


def build(name: str, task: ImageTask, options: dict[str, Any] | None = None, brief: bool = True) -> Denoiser:
    """A method by name; ``brief`` adds the options at which three epochs show everything it does."""
    method = methods.get(name)
    return method(task, {**(method.brief if brief else {}), **(options or {})}).to(task.device)


def cross_entropies(logits: Tensor, label: Tensor) -> list[float]:
    """Of every row with its label, one by one."""
    return [float(-torch.log_softmax(row, 0)[y]) for row, y in zip(logits.detach(), label.tolist(), strict=True)]
