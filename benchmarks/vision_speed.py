"""Seconds of an epoch of images against the bare step, a DataLoader's epoch, and DeCA(p) against Normal.

Run ``python -m benchmarks.vision_speed``. Images are generated, in CIFAR-10's shape: times mean something, accuracies
do not. Everything is measured in one process; the sides of a ratio take turns, epoch by epoch, and a ratio is that of
their medians. An epoch of ours is the whole loop: shuffling, augmentation (crop and flip), training, summing up losses;
without validation. The bare step is forward, backward and fused SGD on one batch that lies augmented on the device. The
side fed by a DataLoader is the same loop on the batches of torch's DataLoader over PIL images with torchvision's
transforms: pinned memory, persistent workers. On a GPU: bfloat16 autocast, channels last. Exit status: 1 when a
requirement is missed, else 0; ``--quick`` judges nothing.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.turns import Figure, Side, Told, compare, take_turns
from recdenoise import seeds
from recdenoise.denoisers import Denoiser
from recdenoise.loop import Loop, LoopConfig
from recdenoise.task import Batch, Pass
from vision import methods, networks
from vision.augment import Augment
from vision.data import ImageData
from vision.task import ImageTask

SIZES = {"resnet18_small": 128, "resnet32": 100}
"""Networks, each with the batch that its published results were made with."""
STEPS = {"cuda": 390, "cpu": 6}
"""Of an epoch, where ``--steps`` does not say."""
SHARE = {"cuda": 0.6, "cpu": 0.9}
"""Least share of the bare step's speed."""
DECA_P = 1.6
"""Most that an epoch of DeCA(p)'s target takes, in epochs of Normal."""
CLASSES = 10
CONFIG = LoopConfig(lr=0.01, seed=0, algorithm="sgd", momentum=0.9, weight_decay=5e-4, selector="last", patience=None)
"""Of every loop."""


@dataclass(frozen=True)
class Bench:
    """A network, its batch, and generated images on the device."""

    network: str
    batch: int
    device: torch.device
    data: ImageData
    augment: Augment

    @classmethod
    def make(cls, network: str, batch: int, steps: int, device: torch.device) -> Bench:
        """Images for an epoch of so many steps."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (steps * batch, 3, 32, 32), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, CLASSES, (steps * batch,), generator=generator)
        data = ImageData(images, labels, CLASSES, tuple(map(str, range(CLASSES))))
        return cls(network, batch, device, data.to(device), Augment.for_data(data))

    @property
    def steps(self) -> int:
        return len(self.data) // self.batch

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def task(self, kind: type[ImageTask] = ImageTask, **more: Any) -> ImageTask:
        """The library's task on these images."""
        return kind(
            self.data,
            new_model=lambda member: networks.build(self.network, CLASSES, 3),
            augment=self.augment,
            seed=0,
            batch_size=self.batch,
            device=self.device,
            precision="bf16" if self.on_gpu else "fp32",
            channels_last=self.on_gpu,
            **more,
        )

    def denoiser(self, method: str, task: ImageTask, **options: Any) -> Denoiser:
        """A method's networks."""
        return methods.get(method)(task, options).to(self.device)

    def bare(self) -> Side:
        """An epoch of bare steps: the network, a resident batch, forward, backward, fused SGD."""
        torch.manual_seed(0)
        model = networks.build(self.network, CLASSES, 3).to(self.device).train()
        images = self.augment(self.data.images[: self.batch], seeds.generator(self.device, 0, "bare"))
        if self.on_gpu:
            model, images = (
                model.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
                images.contiguous(memory_format=torch.channels_last),
            )
        labels = self.data.labels[: self.batch]
        sgd = torch.optim.SGD(model.parameters(), lr=CONFIG.lr, momentum=0.9, weight_decay=5e-4, fused=True)

        def epoch() -> None:
            for _ in range(self.steps):
                sgd.zero_grad()
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.on_gpu):
                    logits = model(images)
                nn.functional.cross_entropy(logits.float(), labels).backward()
                sgd.step()

        return epoch

    def loop_epoch(self, denoiser: Denoiser) -> Side:
        """An epoch of the loop on what ``denoiser`` is by now, as a side."""

        def epoch() -> None:
            Loop(denoiser, denoiser.task, LoopConfig(**{**vars(CONFIG), "epochs": 1})).run()

        return epoch


class PILImages(Dataset[tuple[Tensor, int, int]]):
    """Images as a script of torchvision has them: one at a time, augmented in the worker."""

    def __init__(self, data: ImageData, augment: Augment) -> None:
        from torchvision import transforms

        assert isinstance(data.images, Tensor)
        self.images = np.ascontiguousarray(data.images.cpu().permute(0, 2, 3, 1).numpy())
        self.labels = data.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=augment.crop_pad),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(augment.mean, augment.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[row])), self.labels[row], row


class FedTask(ImageTask):
    """The library's task, its batches made by a DataLoader's workers."""

    workers = 8

    def __init__(self, train: ImageData, **given: Any) -> None:
        super().__init__(train, **given)
        images = PILImages(train, given["augment"])
        self.fed = DataLoader(
            images,
            self.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            persistent_workers=self.workers > 0,
        )

    def loader(self, sweep: Pass, key: tuple[int, ...]) -> Any:
        return FedLoader(self)


class FedLoader:
    """One pass of :class:`FedTask`."""

    def __init__(self, task: FedTask) -> None:
        self.task = task

    def __len__(self) -> int:
        return len(self.task.fed)

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """All batches; the benchmark begins at the first."""
        task = self.task
        for images, labels, rows in task.fed:
            inputs = images.to(task.device, non_blocking=True)
            if task.channels_last:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            label, index = (values.to(task.device, non_blocking=True) for values in (labels, rows))
            yield Batch(index, inputs, label, (len(index),))


def figures(bench: Bench, repeats: int, workers: int) -> Iterator[Figure]:
    """Everything about one network."""
    name, share = f"{bench.network}, batch {bench.batch}", SHARE[bench.device.type]
    task = bench.task()
    taken = take_turns(bench.denoiser("normal", task), CONFIG, [bench.bare()], repeats)
    against = compare("", taken.ours, taken.theirs[0])
    yield Figure(
        f"{name}: bare steps / epoch", against.ours, against.yardstick, 1 / against.ratio, share, at_least=True
    )
    images = bench.steps * bench.batch / against.ours
    yield Figure(f"{name}: images a second", images, None, images, unit="/s")
    FedTask.workers = workers
    plain = bench.loop_epoch(bench.denoiser("normal", task))
    fed = bench.denoiser("normal", bench.task(FedTask))
    taken = take_turns(fed, CONFIG, [plain], repeats)
    by_loader = compare("", taken.theirs[0], taken.ours)
    yield Figure(
        f"{name}: DataLoader, {workers} workers / epoch", by_loader.ours, by_loader.yardstick, 1 / by_loader.ratio
    )
    # The prior is there to be called: how good it is changes no time.
    robust = bench.denoiser("deca_p", task, prior_epochs=1, prior_selector="last")
    taken = take_turns(robust, CONFIG, [plain], repeats)
    yield compare(f"{name}: DeCA(p)'s target / Normal", taken.ours, taken.theirs[0], DECA_P)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.vision_speed", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--networks", nargs="+", choices=networks.names(), default=list(SIZES), metavar="NETWORK")
    parser.add_argument("--batch", type=int, help="images in a step (default 128, 100 for resnet32)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, help="of an epoch (default 390 on a GPU, 6 on a CPU)")
    parser.add_argument("--repeats", type=int, default=5, help="counted epochs of every side (default 5)")
    parser.add_argument("--workers", type=int, default=8, help="of the DataLoader (default 8)")
    parser.add_argument("--quick", action="store_true", help="one epoch of every side; ratios are not judged")
    parser.add_argument("--report", type=Path, help="write what is printed to this file as well")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    options = parser.parse_args(arguments)
    for least, names in ((1, ("batch", "steps", "repeats")), (0, ("workers",))):
        for name in names:
            if getattr(options, name) is not None and getattr(options, name) < least:
                parser.error(f"--{name} must be {least} or more")
    try:
        options.device = torch.device(options.device)
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError) as error:
        parser.error(f"--device {options.device}: {str(error).splitlines()[0]}")
    if options.device.type not in STEPS:
        parser.error(f"--device {options.device}: one of {', '.join(STEPS)}")
    return options


def head(module: str, typed: Sequence[str], device: torch.device) -> Told:
    """What was run where, with the precision of :meth:`Bench.task`."""
    return Told(module, typed, device, "bfloat16 autocast, channels last" if device.type == "cuda" else "float32")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and return the exit status."""
    options = parse(arguments)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*worker processes.*")  # more workers than cores: asked for
    device = options.device
    told = head("vision_speed", sys.argv[1:] if arguments is None else arguments, device)
    for network in options.networks:
        batch, steps = options.batch or SIZES.get(network, 128), options.steps or STEPS[device.type]
        for figure in figures(
            Bench.make(network, batch, steps, device), 1 if options.quick else options.repeats, options.workers
        ):
            told.add(figure)
    return told.judge(options.quick, options.report, options.json)


if __name__ == "__main__":
    sys.exit(main())
