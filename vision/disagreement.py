"""Figure 2 of the DeCA paper: on which images do networks disagree, those with right or with wrong labels?

All networks learn from the same images and the same noisy labels: the data are drawn once and kept in a file, so that
seeds differ in weights and order alone.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recdenoise import checkpoint, seeds
from recdenoise.errors import UserError
from recdenoise.observer import Observer

if TYPE_CHECKING:
    from vision.settings import Settings

Key = tuple[str, int]
"""Network, seed."""
Watch = Callable[[Key, "Settings"], AbstractContextManager[Observer]]
Array = np.ndarray[Any, Any]

CLEAN, NOISY = "right label", "wrong label"
PARTS = {"train": "images that they learned from", "test": "images that no network has seen"}

RUN: dict[str, Any] = {
    "epochs": 20,
    "optimizer": "adam",
    "lr": 1e-3,
    "weight_decay": 0.0,
    "schedule": "constant",
    "crop_pad": 0,
    "flip": False,
}
"""Options of every run. The paper names none; these train all four networks."""


@dataclass(frozen=True)
class Spec:
    """What is compared.

    Attributes:
        dataset: a named data set with a test part, or an ``.npz`` or folder with one.
        networks: by name.
        noise: of the training labels, and of the test labels too, as in the paper.
        seeds: of weights and order, from 0.
        images: training images used; ``None`` for all.
        options: of the run, over :data:`RUN`.
        root: folder of data sets.
    """

    dataset: str
    networks: tuple[str, ...]
    noise: str
    seeds: int
    images: int | None
    options: Mapping[str, Any]
    root: str | None = None


def write_data(spec: Spec, path: Path) -> None:
    """The images and noisy labels of every run, drawn from seed 0, as one ``.npz``. Raises ``UserError``."""
    from vision import data, noise

    train = data.load(spec.dataset, root=spec.root)
    test = data.load(spec.dataset, split="test", root=spec.root, n_classes=train.n_classes)
    if not (isinstance(train.images, torch.Tensor) and isinstance(test.images, torch.Tensor)):
        raise UserError(f"{spec.dataset} does not fit into memory; take --images of it as an .npz.")
    if spec.images is not None:
        if spec.images > len(train):
            raise UserError(f"--images is {spec.images}, but {spec.dataset} has {len(train)}.")
        order = torch.randperm(len(train), generator=seeds.generator("cpu", 0, "images used"))
        train = train.subset(order[: spec.images].sort().values)
    noisy, _ = noise.make_noisy(train, spec.noise, 0, spec.root)
    of_test, _ = noise.make_noisy(test, spec.noise, 1, spec.root)
    assert isinstance(train.images, torch.Tensor)
    columns = {"images": train.images.numpy(), "labels": noisy.labels.numpy(), "true_labels": train.labels.numpy()}
    columns |= {"images_test": test.images.numpy(), "labels_test": test.labels.numpy()}
    with checkpoint.atomic_file(path) as file:
        np.savez_compressed(file, **columns)  # type: ignore[arg-type]
    groups = {"train": noisy.labels != train.labels, "test": of_test.labels != test.labels}
    with checkpoint.atomic_file(path.with_name("wrong.npz")) as file:
        np.savez_compressed(file, **{name: flags.numpy() for name, flags in groups.items()})  # type: ignore[arg-type]


def unwatched(key: Key, settings: Settings) -> AbstractContextManager[Observer]:
    """No progress."""
    return nullcontext(Observer())


def train_all(spec: Spec, out: Path, watch: Watch = unwatched) -> Iterator[tuple[Key, dict[str, Any]]]:
    """Train what is missing under ``out`` and yield each network's key and record; finished runs are only read.

    Args:
        spec: what to train.
        out: a folder for the data and for every run.
        watch: gives a run's observer.

    Raises:
        UserError: ``out`` holds runs with other settings.
    """
    from vision.experiment import load, train
    from vision.settings import resolve

    path = out / "data.npz"
    note = out / "data.txt"  # written last: it says that the data are whole, and which
    told = f"{spec.dataset}, {spec.noise}, {spec.images or 'all'} images\n"
    if note.is_file():
        if note.read_text(encoding="utf-8") != told:
            raise UserError(f"{out} holds the figure of other data: {note.read_text('utf-8').strip()}.")
    else:
        out.mkdir(parents=True, exist_ok=True)
        write_data(spec, path)
        checkpoint.write_text(note, told)
    for seed, network in itertools.product(range(spec.seeds), spec.networks):
        folder = out / f"{network}-{seed}"
        settings = resolve(
            str(path.resolve()), network, "normal", run_options={**RUN, **spec.options}, seed=seed, valid=0
        )
        with watch((network, seed), settings) as observer:
            record = train(settings, folder, resume=True, observer=observer).record
        if not (folder / "predicted.npz").is_file():
            _, prepared, run = load(folder, settings.options.device)
            parts = {"train": prepared.train, "test": prepared.test}
            found = {n: run.logits(p.to(run.task.device)).argmax(1).cpu().numpy() for n, p in parts.items() if p}
            with checkpoint.atomic_file(folder / "predicted.npz") as file:
                np.savez_compressed(file, **found)  # type: ignore[arg-type]
        yield (network, seed), record


def read_arrays(path: Path) -> dict[str, Array]:
    """Every array of an ``.npz``."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def disagreement(first: Array, second: Array) -> float:
    """Share of images that two networks give to different classes; NaN of no images."""
    return float(np.mean(first != second)) if len(first) else float("nan")


def comparisons(keys: Sequence[Key]) -> dict[tuple[str, str], list[tuple[Key, Key]]]:
    """(kind, label) -> pairs: two networks of one seed, or two seeds of one network."""
    networks, numbers = list(dict.fromkeys(n for n, _ in keys)), list(dict.fromkeys(s for _, s in keys))
    found: dict[tuple[str, str], list[tuple[Key, Key]]] = {}
    for a, b in itertools.combinations(networks, 2):
        found["two networks", f"{a}, {b}"] = [((a, s), (b, s)) for s in numbers if (a, s) in keys and (b, s) in keys]
    for network in networks:
        found["two seeds", network] = list(itertools.combinations([key for key in keys if key[0] == network], 2))
    return {place: pairs for place, pairs in found.items() if pairs}


def figure_rows(predicted: Mapping[Key, Mapping[str, Array]], wrong: Mapping[str, Array]) -> list[dict[str, Any]]:
    """A row for each part (train, test), comparison and group of labels.

    Args:
        predicted: class of every image, by part, of every network.
        wrong: which labels are wrong, by part.
    """
    rows: list[dict[str, Any]] = []
    for part, (place, pairs) in itertools.product(PARTS, comparisons(list(predicted)).items()):
        for group, chosen in ((CLEAN, ~wrong[part]), (NOISY, wrong[part])):
            values = [disagreement(predicted[a][part][chosen], predicted[b][part][chosen]) for a, b in pairs]
            row: dict[str, Any] = {"part": part, "kind": place[0], "pair": place[1], "labels": group}
            row |= {"images": int(chosen.sum()), "disagreement": statistics.fmean(values)}
            row["std"] = statistics.stdev(values) if len(values) > 1 else None
            rows.append({**row, "comparisons": len(values)})
    return rows


def accuracy_rows(
    predicted: Mapping[Key, Mapping[str, Array]], wrong: Mapping[str, Array], data: Mapping[str, Array]
) -> list[dict[str, Any]]:
    """What each network learned and memorised: accuracy on the test, shares of right and of wrong labels fitted."""
    rows: list[dict[str, Any]] = []
    for (network, seed), classes in predicted.items():
        given = classes["train"] == data["labels"]
        row: dict[str, Any] = {"network": network, "seed": seed}
        row["test"] = float(np.mean(classes["test"] == data["labels_test"]))
        row["right labels fitted"] = float(np.mean(given[~wrong["train"]]))
        rows.append({**row, "wrong labels fitted": float(np.mean(given[wrong["train"]]))})
    return rows
