"""The runs of a table as processes: each fills one folder, a finished one stays, an interrupted one goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from recdenoise.errors import UserError
from recdenoise.reports.workers import Job
from vision.tables.plan import Cell
from vision.tables.table import Table


def check_data(table: Table, cells: Sequence[Cell]) -> None:
    """Read, or fetch, each data set once before several runs would do so at the same time.

    Raises:
        UserError: data that is absent or broken, or a file of weights that is not there.
    """
    from vision import data

    for file in dict.fromkeys(cell.settings.options.weights for cell in cells):
        if file is not None and not Path(file).is_file():
            raise UserError(f"There is no file of weights {file}: put it there, or name another by --set weights=FILE.")
    places = {(cell.settings.dataset, cell.settings.root): cell for cell in cells}
    for (dataset, root), cell in places.items():
        entry = table.entry("datasets", cell.dataset)
        known = data.named.canonical(dataset) is not None  # it may lie among the named sets
        if entry is not None and entry.folder and not known and not Path(dataset).is_dir():
            where = f"--datasets PATH/{entry.key}"
            raise UserError(f"{entry.title} is not at hand: say where it lies by {where}. It is {entry.folder}.")
        for split in ("train", "test"):
            data.load(dataset, split=split, root=root, image_size=cell.settings.image_size)


def check_folder(cell: Cell, folder: Path) -> None:
    """Refuse a folder whose run has other settings: its numbers would stand in the wrong place.

    Raises:
        UserError: it names the first option that differs.
    """
    from vision.settings import read_settings

    if not (folder / "config.yaml").is_file():
        return
    saved, wanted = read_settings(folder).identity(""), cell.settings.identity("")
    for key, value in wanted.items():
        # Where the files lie may differ from machine to machine.
        if key != "dataset" and saved.get(key) != value:
            name = key.removeprefix("option ")
            raise UserError(
                f"{folder} holds a run with {name} = {saved.get(key)!r}, here it is {value!r}; choose another --out, "
                "or delete that folder."
            )


def words_of(cell: Cell, plugins: Sequence[str] = ()) -> tuple[str, ...]:
    """The cell as arguments of ``recdenoise``, without its folder."""
    settings = cell.settings
    words = ["vision", "train", "--dataset", settings.dataset, "--network", settings.network]
    words += ["--method", settings.method.name, "--noise", settings.noise or "none", "--seed", str(settings.seed)]
    words += ["--valid", repr(settings.valid), "--clean", str(settings.clean)]
    words += ["--images", str(settings.images)] if settings.images is not None else []
    words += ["--root", settings.root] if settings.root is not None else []
    words += ["--masks", settings.masks] if settings.masks is not None else []
    words += ["--image-size", str(settings.image_size)] if settings.image_size is not None else []
    words += ["--workers", str(settings.workers)] if settings.workers else []
    options = {key: value for key, value in settings.options.to_dict().items() if value is not None}
    options |= {f"method.{key}": value for key, value in settings.config.to_dict().items()}
    words += [word for key, value in options.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    return (*words, *(word for plugin in plugins for word in ("--plugin", plugin)))


def share_done(sweeps: float, folder: Path) -> float | None:
    """How much of ``sweeps`` epochs the run's ``metrics.csv`` has."""
    path = folder / "metrics.csv"
    if not path.is_file():
        return None
    return min(0.99, (len(path.read_text(encoding="utf-8").splitlines()) - 1) / sweeps)


def jobs_of(cells: Sequence[Cell], out: Path, plugins: Sequence[str] = ()) -> list[Job]:
    """The cells as processes, one a folder. A finished run stays as it is; an interrupted one goes on.

    Raises:
        UserError: a folder under ``out`` holds a run with other settings.
    """
    jobs: dict[str, Job] = {}
    for cell in cells:
        if cell.name in jobs:
            continue
        folder, epochs = out / cell.name, cell.settings.options.epochs
        check_folder(cell, folder)
        jobs[cell.name] = Job(
            cell.name,
            folder,
            (*words_of(cell, plugins), "--out", str(folder), "--resume", "--quiet"),
            "result.json",
            (cell.dataset, cell.method),
            cell.entry.cost * epochs,
            turn=cell.turn,
            share=partial(share_done, cell.entry.sweeps * epochs),
        )
    return list(jobs.values())


def describe_job(job: Job) -> str:
    """A job at work with how far it is."""
    share = job.share(job.folder) if job.share is not None else None
    return job.name if share is None else f"{job.name} {share:.0%}"
