"""What tests/test_vision_distributed.py looks at: everything that needs several processes, in one launch of torchrun.

Each process leaves a file ``RANK.pt`` in the folder that it is given; the test compares with one process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recdenoise import checkpoint, parallel
from recdenoise.denoisers import Clock
from recdenoise.errors import TrainingError
from recdenoise.loop import Observer
from recdenoise.parallel import Parallel, Processes, from_environment
from tests.toy_images import TinyImages, image_loop, image_task, network
from vision import experiment, methods
from vision.augment import Augment
from vision.data import ImageData
from vision.methods import co_teaching
from vision.run import Run
from vision.settings import Settings, read_settings, resolve

AUGMENT = Augment((0.3,), (0.25,), crop_pad=1, flip=False, cutout=2)
LOGITS = torch.arange(24, dtype=torch.float64).reshape(8, 3).sin()


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """Images, networks and losses in float64: what two processes sum in another order than one stays far below a bound.

    In float32 it does not on every processor: gates behind gates and Adam's division stretch the last bits.
    """
    apply = Augment.apply
    Augment.apply = lambda *given, **named: apply(*given, **named).double()  # type: ignore[method-assign]
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        Augment.apply = apply  # type: ignore[method-assign]
        torch.set_default_dtype(torch.float32)


class Counts(Augment):
    """Notes how many images it is given while training."""

    seen: set[int]

    def part(self, images: Tensor, generator: torch.Generator, train: bool, n: int, share: slice) -> Tensor:
        if train:
            self.seen.add(len(images))
        return super().part(images, generator, train, n, share)


@double_precision()
def trained(name: str, processes: Parallel, norm: bool = False, **config: Any) -> dict[str, Any]:
    """Three short epochs of a method on the toy images; its whole state, history, and rows kept by Co-teaching."""
    kept: list[Tensor] = []
    choose = co_teaching.smallest_rows

    def noted(loss: Tensor, share: float) -> Tensor:
        kept.append(choose(loss, share).sort().values)
        return kept[-1]

    co_teaching.smallest_rows = noted  # type: ignore[assignment]
    augment = Counts(AUGMENT.mean, AUGMENT.std, crop_pad=1, flip=False, cutout=2)
    object.__setattr__(augment, "seen", set())
    task = image_task(
        augment=augment, new_model=lambda _: network(norm=norm), parallel=processes, n=72 if name == "cores" else 66
    )
    loop = image_loop(name, task, **config)
    history = loop.run()
    co_teaching.smallest_rows = choose
    probability = loop.denoiser.clean_probability()
    return {
        "state": loop.denoiser.state_dict(),
        "history": [{k: v for k, v in row.items() if k != "seconds"} for row in history],
        "kept": kept,
        "clean_probability": probability,
        "seen": sorted(augment.seen),
    }


def primitives(processes: Processes) -> dict[str, Any]:
    """A loss of a whole batch, a mean that is differentiated, and rows that do not divide."""
    weight = torch.eye(3, dtype=torch.float64, requires_grad=True)
    every = processes.whole(LOGITS[processes.share(8)] @ weight)
    loss = torch.linalg.det(every.t() @ every) + every.exp().sum(0).prod()
    optimizer = torch.optim.SGD([weight], lr=0.1)
    loss.backward()
    processes.combine(optimizer, loss.detach(), {})
    inner = torch.full((2,), processes.rank + 1.0, requires_grad=True)
    (mean,) = processes.mean([inner])
    (mean * torch.tensor([1.0, 10.0]) * (processes.rank + 1)).sum().backward()
    return {
        "whole": weight.grad,
        "mean": mean.detach(),
        "mean_gradient": inner.grad,
        "uneven": processes.gather(torch.arange(7)[processes.share(7)], 7),
        "mine": processes.mine(torch.tensor([6, 0, 3, 5]), 8),
        "agree": [processes.agree(step, processes.rank == 1, False) for step in (0, 1, parallel.AGREE_STEPS)],
    }


class StopOne(Observer):
    """Asks the second process alone to stop, after some steps."""

    def __init__(self, rank: int, after: int) -> None:
        self.rank, self.left = rank, after

    def on_step(self, clock: Clock, loss: Tensor) -> None:
        self.left -= 1
        if self.left == 0 and self.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def settings(small: Path, **changes: Any) -> Settings:
    options = {"batch_size": 16, "optimizer": "adam", "crop_pad": 1, "epochs": 3, "device": "cpu", **changes}
    return resolve(str(small), "mlp", "elr", run_options=options, noise="symmetric:0.3", seed=1)


@double_precision()
def runs(folder: Path, processes: Processes) -> dict[str, Any]:
    """A run with files, and one that is stopped in its second epoch and goes on; what this process wrote."""
    written: list[str] = []
    atomic = checkpoint.atomic_file

    def noted(path: Path) -> Any:
        written.append(path.name)
        return atomic(path)

    checkpoint.atomic_file = noted
    plan = settings(folder / "small.npz")
    whole = experiment.train(plan, folder / "whole", parallel=processes)
    stopped = False
    try:
        experiment.train(plan, folder / "cut", parallel=processes, observer=StopOne(processes.rank, 9))
    except KeyboardInterrupt:
        stopped = True
    saved = checkpoint.load(folder / "cut" / "checkpoint.pt")["position"]
    experiment.train(read_settings(folder / "cut"), folder / "cut", resume=True, parallel=processes)
    checkpoint.atomic_file = atomic
    return {"written": written, "stopped": stopped, "position": saved, "record": whole.record}


def broken(processes: Processes) -> str:
    """The sentence about a loss that one process alone finds not to be finite."""

    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network(norm=False)

        def forward(self, images: Tensor) -> Tensor:
            poison = float("nan") if self.training and processes.rank == 1 else 1.0
            return self.inner(images) * poison

    task = image_task(augment=AUGMENT, new_model=lambda _: Breaks(), parallel=processes)
    try:
        image_loop("normal", task).run()
    except TrainingError as error:
        return str(error)
    return ""


def other_data(processes: Processes) -> str:
    """The sentence about labels that differ between processes."""
    images = TinyImages.draw(48, 0.0, processes.rank)
    labels = images.labels.roll(processes.rank)
    data = ImageData(images.images, labels, images.n_classes)
    plan = settings(Path("unused.npz"))
    sets = experiment.Sets(data)
    run = Run("mlp", plan.method, plan.config, plan.options, sets, AUGMENT, 1, processes)
    try:
        experiment.distributed.check_same(run, processes)
    except experiment.UserError as error:
        return str(error)
    return ""


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    processes = from_environment()
    assert isinstance(processes, Processes)
    processes.start(torch.device("cpu"))
    found: dict[str, Any] = {"primitives": primitives(processes)}
    parallel.AGREE_STEPS = 4
    found["methods"] = {name: trained(name, processes) for name in methods.names()}
    found["norm"] = trained("normal", processes, norm=True, average=0.5)
    found["broken"], found["other_data"] = broken(processes), other_data(processes)
    found["runs"] = runs(folder, processes)
    torch.save(found, folder / f"{processes.rank}.pt")
    processes.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
