"""What DivideMix's bookkeeping costs: everything in its epoch but the networks' forward and backward.

Run ``python -m benchmarks.dividemix_cost``. Images are generated, in CIFAR-10's shape: times mean something, accuracies
do not. The parts of an epoch after the warm-up are timed inside the loop as it runs, each without the parts in it:
forwards (scans of the training set, pseudo-labels, training), backwards, reading and augmenting images, the mixtures,
the optimisers, and the rest (mixing, labels, losses, the loop). On a CPU seconds are processor time of the one thread,
which other work on the machine does not lengthen; on a GPU the device is waited for around each part, which shows as
bookkeeping what else would hide behind the device's work. The mixture's time is also measured on 50,000 losses. Exit
status: 1 where bookkeeping takes more than its share, else 0; ``--quick`` judges nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.turns import Figure, Told, wait
from recdenoise.loop import Loop, LoopConfig, Observer
from vision import methods, networks
from vision.augment import Augment
from vision.data import ImageData
from vision.loader import ImageLoader
from vision.methods import gaussian_mixture
from vision.task import ImageTask

LIMIT = 0.05
"""Most of an epoch that is neither forward nor backward."""
CLASSES = 10
NETS = ("forward", "backward")
PARTS = (*NETS, "images", "mixtures", "optimisers", "rest")
CONFIG = LoopConfig(lr=0.02, seed=0, algorithm="sgd", momentum=0.9, weight_decay=5e-4, selector="last", patience=None)


class Stopwatch(Observer):
    """Seconds of the parts of every epoch after the warm-up, each part without those inside it."""

    def __init__(self, on_gpu: bool) -> None:
        self.on_gpu = on_gpu
        self.open: list[str] = ["rest"]
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.epochs: list[dict[str, float]] = []
        self.since = self.now()

    def now(self) -> float:
        if self.on_gpu:
            wait()
            return time.perf_counter()
        return time.process_time()

    def turn(self) -> None:
        """Give the time since the last turn to the part that is open."""
        now = self.now()
        self.seconds[self.open[-1]] += now - self.since
        self.since = now

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, its time counted for a part."""

        def call(*given: Any, **named: Any) -> Any:
            self.turn()
            self.open.append(part)
            try:
                return function(*given, **named)
            finally:
                self.turn()
                self.open.pop()

        return call

    def on_epoch(self, row: dict[str, Any]) -> None:
        self.turn()
        if row["stage"] == "train":
            self.epochs.append(self.seconds)
        self.seconds = dict.fromkeys(PARTS, 0.0)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Time what the loop calls inside the block."""
        places = [
            (ImageTask, "call", "forward"),
            (torch.Tensor, "backward", "backward"),
            (ImageTask, "fetch", "images"),
            (ImageTask, "augmented", "images"),
            (ImageLoader, "batch", "images"),
            (gaussian_mixture, "fit", "mixtures"),
            (torch.optim.SGD, "step", "optimisers"),
        ]
        with contextlib.ExitStack() as stack:
            for owner, name, part in places:
                timed = self.timed(part, getattr(owner, name))
                stack.enter_context(
                    mock.patch.object(owner, name, timed if owner is gaussian_mixture else method(timed))
                )
            self.since = self.now()
            yield


def method(function: Callable[..., Any]) -> Callable[..., Any]:
    """A plain function that binds as a method does, whatever ``function`` is."""

    def bound(self: Any, *given: Any, **named: Any) -> Any:
        return function(self, *given, **named)

    return bound


def measure(network: str, batch: int, images: int, epochs: int, device: torch.device) -> list[dict[str, float]]:
    """Seconds of the parts of ``epochs`` epochs, after a warm-up of one and an epoch that is not counted."""
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, CLASSES, (images,), generator=generator)
    data = ImageData(raw, labels, CLASSES, tuple(map(str, range(CLASSES))))
    on_gpu = device.type == "cuda"
    task = ImageTask(
        data.to(device),
        new_model=lambda member: networks.build(network, CLASSES, 3),
        augment=Augment.for_data(data),
        seed=0,
        batch_size=batch,
        device=device,
        precision="bf16" if on_gpu else "fp32",
        channels_last=on_gpu,
    )
    denoiser = methods.get("dividemix")(task, {"warm_epochs": 1.0}).to(device)
    watch = Stopwatch(on_gpu)
    config = LoopConfig(**{**vars(CONFIG), "epochs": epochs + 2})
    with watch.watching():
        Loop(denoiser, task, config, observer=watch).run()
    return watch.epochs[1:]


def mixture_seconds(rows: int = 50_000) -> float:
    """Seconds to fit a mixture to so many losses and to take their posteriors, the best of three."""
    generator = torch.Generator().manual_seed(0)
    loss = torch.rand(rows, generator=generator) ** 2 + 2.0 * (torch.rand(rows, generator=generator) < 0.4)
    taken = []
    for _ in range(3):
        begin = time.process_time()
        gaussian_mixture.fit(loss).small(loss)
        taken.append(time.process_time() - begin)
    return min(taken)


def figures(epochs: Sequence[dict[str, float]]) -> list[Figure]:
    """A figure for each part and one for all that is not a network's, of all counted epochs together."""
    total = {part: sum(epoch[part] for epoch in epochs) / len(epochs) for part in PARTS}
    whole = sum(total.values())
    found = [Figure(f"{part} / epoch", seconds, whole, seconds / whole, digits=4) for part, seconds in total.items()]
    books = whole - sum(total[part] for part in NETS)
    found.append(Figure("bookkeeping / epoch", books, whole, books / whole, LIMIT, digits=4))
    seconds = mixture_seconds()
    return [*found, Figure("a mixture on 50,000 losses", seconds, None, seconds)]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dividemix_cost", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--network", choices=networks.names(), default="preact18", metavar="NETWORK")
    parser.add_argument("--batch", type=int, default=64, help="images in a batch of each part (default 64)")
    parser.add_argument("--images", type=int, default=256, help="training images (default 256)")
    parser.add_argument("--epochs", type=int, default=1, help="counted ones (default 1)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="judge nothing")
    parser.add_argument("--report", type=Path, help="write what is printed to this file as well")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    options = parser.parse_args(arguments)
    for name in ("batch", "images", "epochs"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be 1 or more")
    if options.images < options.batch:
        parser.error(f"--images {options.images} is less than one batch of {options.batch}")
    try:
        options.device = torch.device(options.device)
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError) as error:
        parser.error(f"--device {options.device}: {str(error).splitlines()[0]}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and return the exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    typed = parse(arguments)
    torch.set_num_threads(1)
    on_gpu = typed.device.type == "cuda"
    precision = "bfloat16 autocast, channels last" if on_gpu else "float32, processor time"
    size = (typed.network, f"batch {typed.batch}", f"{typed.images} images", precision)
    told = Told("dividemix_cost", words, typed.device, *size)
    for figure in figures(measure(typed.network, typed.batch, typed.images, typed.epochs, typed.device)):
        told.add(figure)
    return told.judge(typed.quick, typed.report, typed.json)


if __name__ == "__main__":
    sys.exit(main())
