"""A run from settings to files: data and noise, training, both ends measured and saved; and back to a classifier."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import recdenoise
from recdenoise import checkpoint, seeds
from recdenoise.errors import UserError
from recdenoise.observer import Observer
from recdenoise.parallel import ALONE, Parallel
from recdenoise.run_files import RunFiles, check_out, versions
from vision import data as image_data
from vision import distributed
from vision import noise as label_noise
from vision.data import ImageData, bias
from vision.fitting import augmentation, in_order, load_set
from vision.run import Run, Sets, on_device
from vision.settings import Settings, read_settings


@dataclass(frozen=True)
class Prepared:
    """Data of a run, before it goes to a device.

    Attributes:
        train, valid, clean: parts of the training file; ``valid`` and ``clean`` may be ``None``.
        test: held out by the data set, with trusted labels; ``None`` where it has no such part.
        tests: further test parts by name: those of the data set's source, and the ``aligned`` and ``conflicting``
            images of ``test`` where their bias is known.
        rows: where ``train`` and ``valid`` stand in the training file.
        rate: share of the training and validation labels that are wrong, where the true ones are known.
        transition: ``(C, C)`` P(given | true) that the noise was drawn from, or ``None``.
    """

    train: ImageData
    valid: ImageData | None
    clean: ImageData | None
    test: ImageData | None
    rows: tuple[np.ndarray, np.ndarray]
    rate: float | None
    transition: torch.Tensor | None
    tests: dict[str, ImageData] = field(default_factory=dict)


@dataclass(frozen=True)
class RunResult:
    """A finished run: its folder, and what ``result.json`` holds."""

    path: Path | None
    record: dict[str, Any]


def prepare(settings: Settings) -> Prepared:
    """Read the data set, add the noise, and divide it.

    Raises:
        UserError: data that is absent or broken, or parts that leave nothing to train on.
    """
    whole = image_data.load(settings.dataset, **settings.reading)
    rows = torch.arange(len(whole))
    if settings.images is not None:
        if settings.images > len(whole):
            raise UserError(f"images is {settings.images}, but {whole.name or 'the data'} has {len(whole)}.")
        generator = seeds.generator("cpu", settings.seed, "images used")
        rows = torch.randperm(len(whole), generator=generator)[: settings.images].sort().values
    part = whole.subset(rows) if settings.images is not None else whole
    transition = None
    if settings.noise is not None:
        noisy, drawn = label_noise.make_noisy(part, settings.noise, settings.seed, settings.root)
        truth = part.labels if part.true_labels is None else part.true_labels
        part, transition = replace(noisy, true_labels=truth), drawn.transition
    train, valid = image_data.split(len(part), part.labels, settings.valid, settings.seed)
    clean = None
    if settings.clean:
        clean, train = trusted(part, train, settings)
        if part.true_labels is None and image_data.named.canonical(settings.dataset) is None:
            note = f"No true labels are known: the given ones of {settings.clean} images, drawn at random, are trusted."
            part = replace(part, notes=(*part.notes, note))
    rate = None
    if part.true_labels is not None:
        rate = float((part.labels != part.true_labels).double().mean())
    test, tests = test_parts(settings, whole)
    return Prepared(
        part.subset(train),
        part.subset(valid) if len(valid) else None,
        clean,
        test,
        (rows[train].numpy(), rows[valid].numpy()),
        rate,
        transition,
        tests,
    )


def trusted(part: ImageData, train: torch.Tensor, settings: Settings) -> tuple[ImageData, torch.Tensor]:
    """Some training images with their true labels, and the rows that are left to train on."""
    if settings.clean >= len(train):
        raise UserError(f"clean is {settings.clean}, which leaves none of {len(train)} images to train on.")
    generator = seeds.generator("cpu", settings.seed, "clean")
    order = torch.randperm(len(train), generator=generator)
    chosen = part.subset(train[order[: settings.clean]])
    truth = chosen.labels if chosen.true_labels is None else chosen.true_labels
    return replace(chosen, labels=truth, true_labels=None, notes=()), train[order[settings.clean :]].sort().values


def test_parts(settings: Settings, whole: ImageData) -> tuple[ImageData | None, dict[str, ImageData]]:
    """The data set's test part, where it has one, and further ones by name: its aligned and conflicting images, and
    what the source calls ``test_NAME``."""
    found = {}
    for split in image_data.test_splits(settings.dataset):
        part = image_data.load(settings.dataset, split=split, n_classes=whole.n_classes, **settings.reading)
        found[split] = load_set(part, split, whole)
    test = found.pop("test", None)
    named = {split.removeprefix("test_"): part for split, part in found.items()}
    return test, {**({} if test is None else bias.parts(test)), **named}


def build(settings: Settings, prepared: Prepared, parallel: Parallel = ALONE) -> Run:
    """Networks and method on the device. Raises ``UserError`` for what does not fit together."""
    device = settings.options.torch_device()
    augment = augmentation(prepared.train, settings.options)
    moved = {
        name: None if part is None else on_device(part, device)
        for name, part in (("valid", prepared.valid), ("test", prepared.test), ("clean", prepared.clean))
    }
    sources = {} if moved["clean"] is None else {"clean": moved["clean"]}
    tests = {name: on_device(part, device) for name, part in prepared.tests.items()}
    sets = Sets(on_device(prepared.train, device), moved["valid"], moved["test"], sources, tests)
    options, seed = settings.options, settings.seed
    return Run(settings.network, settings.method, settings.config, options, sets, augment, seed, parallel)


def train(
    settings: Settings,
    out: Path | None,
    *,
    resume: bool = False,
    probe: bool = False,
    observer: Observer | None = None,
    parallel: Parallel = ALONE,
) -> RunResult:
    """Train and test; writes ``config.yaml``, ``metrics.csv``, ``checkpoint.pt``, ``model.pt``, ``labels.npz`` and
    ``result.json``.

    Args:
        settings: from :func:`vision.settings.resolve`.
        out: the run's folder, or ``None`` to save nothing.
        resume: go on from the folder's checkpoint where there is one; a finished run stays as it is.
        probe: record the test accuracy of every epoch; it never chooses.
        observer: told about progress.
        parallel: the processes that train this run together, each of which calls this; the main one alone writes.

    Raises:
        UserError: the folder holds another run, or ``resume`` is off and it holds one.
        TrainingError: a loss is not finite, or a GPU has no memory left.
        KeyboardInterrupt: after a checkpoint was saved.
    """
    distributed.check(settings, parallel)
    if out is not None and parallel.main:
        check_out(out, resume)
    started = time.perf_counter()
    placed = distributed.place(settings, parallel)
    prepared = prepare(placed)
    run = build(placed, prepared, parallel)
    distributed.check_same(run, parallel)
    inner = observer or Observer()
    path = None if out is None else out / "checkpoint.pt"
    identity = settings.identity(recdenoise.__version__)
    loop = run.loop(checkpoint_path=path, identity=identity, observer=inner, probe=probe)
    if resume and loop.resume() and loop.finished and out is not None:
        record = read_record(out)
        if record is not None:
            return RunResult(out, record)
    if out is not None and parallel.main:
        # Only now: a checkpoint of another run was refused, so its config.yaml is still its own.
        checkpoint.write_text(out / "config.yaml", yaml.safe_dump(settings.to_dict(), sort_keys=False))
        loop.observer = RunFiles(out, inner, loop.history)
    for note in (*prepared.train.notes, *run.notes()):
        inner.on_note(note)
    prepare_seconds = time.perf_counter() - started
    run.train(loop)
    record = describe(settings, prepared, run, prepare_seconds)
    if out is not None:
        write_end(out, settings, prepared, run, record)
    return RunResult(out, record)


def write_end(out: Path, settings: Settings, prepared: Prepared, run: Run, record: dict[str, Any]) -> None:
    """Weights of both ends, what the method thinks of every label, and the result; the result last."""
    order = np.argsort(np.concatenate(prepared.rows), kind="stable")
    # in_order wants places among the rows used; the file's own row numbers stand beside them
    places = np.argsort(order, kind="stable")
    cut = len(prepared.rows[0])
    probability = in_order(run, (places[:cut], places[cut:]))
    if not run.task.parallel.main:  # it has helped to look at the data
        return
    identity = settings.identity(recdenoise.__version__)
    state = {"identity": identity, "modules": run.denoiser.state_dict(), "ends": run.ends, "used": run.used}
    checkpoint.save(out / "model.pt", state)
    part = [prepared.train] + ([prepared.valid] if prepared.valid is not None else [])
    columns = {
        "row": np.concatenate(prepared.rows)[order],
        "given": np.concatenate([p.labels.cpu().numpy() for p in part])[order],
        "clean_probability": probability,
    }
    if all(p.true_labels is not None for p in part):
        truth = [p.true_labels.cpu().numpy() for p in part if p.true_labels is not None]
        columns["true"] = np.concatenate(truth)[order]
    with checkpoint.atomic_file(out / "labels.npz") as file:
        np.savez_compressed(file, **columns)  # type: ignore[arg-type]
    checkpoint.write_json(out / "result.json", record)


def describe(settings: Settings, prepared: Prepared, run: Run, prepare_seconds: float) -> dict[str, Any]:
    """Test a trained run and put everything about it in one record."""
    started = time.perf_counter()
    measured = run.measure_all()
    stages = dict.fromkeys(row["stage"] for row in run.history)
    return {
        "dataset": settings.dataset,
        "network": settings.network,
        "method": settings.method.name,
        "seed": settings.seed,
        "noise": {"spec": settings.noise, "rate": prepared.rate},
        "images": {"train": len(prepared.train), "valid": len(prepared.rows[1]), "clean": settings.clean},
        **measured,
        "findings": run.denoiser.findings(),
        "used": run.used,
        "epochs": {stage: sum(r["stage"] == stage for r in run.history) for stage in stages},
        "seconds": {
            "prepare": prepare_seconds,
            "train": sum(row["seconds"] for row in run.history),
            "evaluate": time.perf_counter() - started,
        },
        "parameters": sum(p.numel() for p in run.watched.parameters()),
        "versions": versions(("torch", "torchvision", "numpy")),
        "device": device_name(run.task.device),
        "processes": run.task.parallel.size,
    }


def device_name(device: torch.device) -> str:
    """The device as people call it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def read_record(out: Path) -> dict[str, Any] | None:
    """What a finished run's ``result.json`` holds, or ``None`` where it is missing or broken."""
    try:
        record = json.loads((out / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(record, dict) and {"method", "seconds"} <= record.keys() and (out / "model.pt").is_file()
    return record if whole else None


def load(folder: Path, device: str | None = None) -> tuple[Settings, Prepared, Run]:
    """Load a finished run, ready to classify.

    Raises:
        UserError: not a run, an unfinished one, or weights of another run.
    """
    settings = read_settings(folder)
    path = folder / "model.pt"
    if not path.is_file():
        raise UserError(
            f"The run in {folder} has not finished; continue it with: recdenoise vision train --resume {folder}"
        )
    if device is not None:
        settings = replace(settings, options=replace(settings.options, device=device))
    prepared = prepare(settings)
    run = build(replace(settings, options=replace(settings.options, weights=None)), prepared)
    state = checkpoint.load(path, run.task.device)
    checkpoint.require_same(path, state["identity"], settings.identity(state["identity"].get("version", "")))
    checkpoint.require_keys(path, state, ("ends", "used"), "a finished run")
    checkpoint.load_modules(path, run.denoiser.load_state_dict, state["modules"])
    run.ends = state["ends"]
    run.use(state["used"])
    return settings, prepared, run
