"""What tests/test_second_device.py looks at, in a process of its own: a run of every method on a second device.

``python -m tests.second_device_runs images|commands|recommenders|checks FOLDER`` prints a line of JSON for every run:
its name, and what went wrong, or ``null``.
"""

from __future__ import annotations

import json
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests import second_device
from tests.second_device import Refused, Second, waiting

Runs = Iterator[tuple[str, Callable[[], None]]]


def images(device: torch.device, folder: Path) -> Runs:
    """Every method for images on the toy images, which live on the device: interrupted, and resumed."""
    from recdenoise.loop import Loop, Observer
    from tests.toy_images import TinyImages, held, image_loop, image_task
    from vision import methods
    from vision.loader import ImageLoader

    class Stops(Observer):
        steps = 0

        def on_step(self, clock: Any, loss: torch.Tensor) -> None:
            self.steps += 1
            if self.steps == 6:
                signal.raise_signal(signal.SIGINT)

    def moved(data: TinyImages) -> TinyImages:
        fields = {name: getattr(data, name).to(device) for name in ("images", "labels", "true_labels")}
        return replace(data, **fields, attributes={name: v.to(device) for name, v in data.attributes.items()})

    def run(name: str) -> None:
        def loop() -> Loop:
            task = image_task(dropout=0.1, device=device, move=moved)
            return image_loop(
                name, task, validate=held(task, move=moved), checkpoint_path=folder / f"{name}.pt", observer=Stops()
            )

        try:
            loop().run()
        except KeyboardInterrupt:
            pass
        else:
            raise AssertionError("it was not interrupted")
        second = loop()
        assert second.resume()
        second.observer = Observer()
        second.run()
        assert not waiting.found, waiting.found
        assert isinstance(second.task.scan(second.denoiser.score), Second)
        second.denoiser.clean_probability()

    for owner, step in ((Loop, "_step"), (ImageLoader, "batch")):  # what every step does asks nothing of the device
        setattr(owner, step, waiting.watching(getattr(owner, step)))
    for name in methods.names():
        waiting.found.clear()
        yield name, lambda name=name: run(name)  # type: ignore[misc]


def commands(_: torch.device, folder: Path) -> Runs:
    """Runs of the command line with everything around a method: augmentation, checkpoints, evaluation, pictures."""
    from tests.command import output

    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for end, n in (("", 60), ("_test", 30)):
        labels = np.arange(n) % 3
        pixels = rng.integers(0, 90, (n, 12, 12, 3), dtype=np.uint8)
        for image, label in zip(pixels, labels, strict=True):
            image[4:8, 4:8, label] += 100
        arrays |= {f"images{end}": pixels, f"labels{end}": labels}
    np.savez(folder / "squares.npz", **arrays)
    train = f"vision train --dataset {folder}/squares.npz --network convnet2 --epochs 3 --noise symmetric:0.4"
    train += " --set batch_size=15"
    average = "--set average=0.9 --set clip_grad_norm=1 --set channels_last=true"
    on = f"--device {second_device.NAME}"
    lines = [
        f"{train} --method normal --set policy=randaugment --set cutout=3 --out {folder}/normal {on}",
        f"{train} --method elr {average} --out {folder}/elr {on}",
        f"{train} --method dividemix --set method.warm_epochs=1 --out {folder}/dividemix {on}",
        f"{train} --method cit --out {folder}/cit {on}",
        f"{train} --method denll --set method.mask=eq5 --out {folder}/denll {on}",
        f"vision evaluate {folder}/elr {on}",
        f"vision find-issues {folder}/normal {on}",
        f"vision find-issues {folder}/dividemix {on}",
        f"vision picture losses {folder}/normal {folder}/denll --out {folder} {on}",
        f"vision picture cam {folder}/denll {folder}/normal --out {folder} --images 3 {on}",
        f"vision picture correlation {folder}/normal {folder}/denll --out {folder} --mask {folder}/denll {on}",
        f"vision picture masks {folder}/denll --out {folder} --images 3 {on}",
    ]
    for line in lines:
        yield line.replace(f"{folder}/", "").replace(f" {on}", ""), lambda line=line: output(*line.split()) and None  # type: ignore[misc]


def recommenders(device: torch.device, folder: Path) -> Runs:
    """Every denoiser around every model of ours, trained, tested and asked, on a folder as a recipe builds it."""
    from recdenoise import denoisers
    from recdenoise.loop import Loop
    from recdenoise.recbole_adapter import experiment
    from recdenoise.recbole_adapter.settings import resolve
    from tests.built_folder import write_built

    built, load_split = write_built(folder / "tiny"), experiment.load_split

    def load(*args: Any, **kwargs: Any) -> Any:
        data = load_split(*args, **kwargs)
        data.config["device"] = device
        return data

    def run(model: str, denoiser: str) -> None:
        out = folder / f"{model}-{denoiser}"
        waiting.found.clear()
        settings = resolve(model, str(built), denoiser, seed=1, overrides={"epochs": 1, "valid_selector": "ndcg@20"})
        experiment.train(settings, out)
        if model != "CDAE":  # whose batch has as many numbers as its users have items, which the device knows
            assert not waiting.found, waiting.found
        experiment.load(out).recommend(["u1"], 3)

    experiment.load_split = load
    Loop._step = waiting.watching(Loop._step)  # type: ignore[method-assign]
    for model in ("MF", "GMF", "NeuMF", "CDAE", "LightGCN"):
        for denoiser in denoisers.names():
            yield f"{model} {denoiser}", lambda model=model, denoiser=denoiser: run(model, denoiser)  # type: ignore[misc]


def checks(device: torch.device, _: Path) -> Runs:
    """What must be refused is."""
    here, there = torch.ones(3, device=device), torch.ones(3)

    def refused(call: Callable[[], Any]) -> None:
        try:
            call()
        except Refused:
            return
        raise AssertionError("nothing was refused")

    calls: dict[str, Callable[[], Any]] = {
        "sum": lambda: here + there,
        "cat": lambda: torch.cat([here, there]),
        "value": lambda: torch.index_put(here, (torch.tensor([0]),), there[:1]),
        "index": lambda: there[torch.zeros(1, dtype=torch.int64, device=device)],
        "array": lambda: np.asarray(here),
        "draw": lambda: torch.rand(3, device=device, generator=torch.Generator().manual_seed(0)),
        "draw of the CPU": lambda: torch.rand(3, generator=torch.Generator(device=device).manual_seed(0)),
    }
    for name, call in calls.items():
        yield name, lambda call=call: refused(call)  # type: ignore[misc]

    def waited(call: Callable[[], Any], times: int) -> None:
        waiting.found.clear()
        waiting.watching(call)()
        assert len(waiting.found) == times, waiting.found

    asked: dict[str, tuple[Callable[[], Any], int]] = {
        "number": (lambda: here.sum().item(), 1),
        "mask": (lambda: here[here > 0], 1),
        "copy": (lambda: here.cpu(), 1),
        "nothing asked": (
            lambda: torch.where(here > 0, here, 0.0).index_fill_(0, torch.tensor([0]).to(device), 1.0),
            0,
        ),
    }
    for name, (call, times) in asked.items():
        yield name, lambda call=call, times=times: waited(call, times)  # type: ignore[misc]


def main() -> None:
    """Print what every run came to."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a process in the background may have lost
    kinds = {run.__name__: run for run in (images, commands, recommenders, checks)}
    with second_device.device() as device:
        for name, run in kinds[sys.argv[1]](device, Path(sys.argv[2])):
            error = None
            try:
                run()
            except BaseException:  # the next run is looked at all the same
                error = traceback.format_exc()
            print(json.dumps({"name": name, "error": error}), flush=True)


if __name__ == "__main__":
    main()
