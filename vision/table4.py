"""Table 4 of the DeCA paper as a grid of runs: what each cell is trained with, in which order, and what came of it."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from recdenoise.errors import UserError
from recdenoise.reports.workers import Job

if TYPE_CHECKING:
    from vision.settings import Settings

SHARE_OF_OTHERS = 1 / 6
"""Validation share of data of one's own, as 10,000 of Fashion-MNIST's 60,000."""


@dataclass(frozen=True)
class Table:
    """The published table and the settings of its cells, as ``published/deca_table_4.yaml`` explains them.

    Attributes:
        title, source: of the table.
        printed: (data set, method's title, ratio) to mean and standard deviation in per cent.
        datasets, ratios, methods, network, noise, valid: of the runs; ratios in the order of the grid.
        options: of every run; ``of_method``: of a method; ``clean``: trusted images of a method.
        sweeps, cost: epochs and time of a method's run, in those of ``normal``.
        points: how far below print a cell may be.
        ahead: the method that must be above all others, and at which ratios.
    """

    title: str
    source: str
    printed: Mapping[tuple[str, str, float], tuple[float, float]]
    datasets: tuple[str, ...]
    ratios: tuple[float, ...]
    methods: tuple[str, ...]
    network: str
    noise: str
    valid: int
    options: Mapping[str, Any]
    of_method: Mapping[str, Mapping[str, Any]]
    clean: Mapping[str, int]
    sweeps: Mapping[str, float]
    cost: Mapping[str, float]
    points: float
    ahead: Mapping[str, Any]


def read_table() -> Table:
    """Table 4."""
    folder = resources.files("vision.published")
    content = yaml.safe_load((folder / "deca_table_4.yaml").read_text(encoding="utf-8"))
    rows = csv.DictReader(io.StringIO((folder / content.pop("printed")).read_text(encoding="utf-8")))
    printed = {
        (row["dataset"], row["method"], float(row["noise_ratio"])): (float(row["accuracy"]), float(row["std"]))
        for row in rows
    }
    for name in ("datasets", "ratios", "methods"):
        content[name] = tuple(content[name])
    return Table(printed=printed, **content)


@dataclass(frozen=True)
class Part:
    """Which part of the table is run, and what is different in it.

    Attributes:
        datasets, ratios, methods: empty for the table's.
        seeds: 0 and so many after it.
        rates: learning rates tried; validation chooses one a cell. Empty for the table's.
        network, valid, clean, images, root: in place of the table's; ``None`` keeps it.
        options: of every run, over the table's.
        of_method: of a method, over the table's.
    """

    datasets: tuple[str, ...] = ()
    ratios: tuple[float, ...] = ()
    methods: tuple[str, ...] = ()
    seeds: int = 3
    rates: tuple[float, ...] = ()
    network: str | None = None
    valid: float | int | None = None
    clean: int | None = None
    images: int | None = None
    root: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    of_method: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One run of the grid.

    Attributes:
        dataset: its name in print, or the file's.
        ratio: share of the labels drawn anew.
        rate: the learning rate.
        settings: resolved and checked.
        turn: its place in the grid's order; cells of one turn may begin in any order.
    """

    dataset: str
    ratio: float
    rate: float
    settings: Settings
    turn: int

    @property
    def method(self) -> str:
        """Its name."""
        return self.settings.method.name

    @property
    def group(self) -> tuple[str, float, str]:
        """What its seeds and its learning rates have in common: data set, ratio, method."""
        return self.dataset, self.ratio, self.method

    @property
    def name(self) -> str:
        """The folder's name."""
        return f"{self.dataset}-{self.ratio:g}-{self.method}-lr{self.rate:g}-{self.settings.seed}"


def split_options(assignments: Sequence[str], methods: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """``["epochs=5", "deca_p.c_1=10"]`` as options of every run, and of methods by name.

    Raises:
        UserError: an assignment that cannot be read, or to a method that is not in the grid.
    """
    from vision.settings import parse_assignments

    shared: dict[str, Any] = {}
    of_method: dict[str, Any] = {}
    for text in assignments:
        owner, dot, rest = text.partition("=")[0].strip().partition(".")
        if not dot:
            shared |= parse_assignments([text])[0]
            continue
        if owner not in methods:
            raise UserError(f"--set {text}: say METHOD.OPTION=VALUE with a method of the grid: {', '.join(methods)}.")
        _, found = parse_assignments([f"method.{rest}={text.partition('=')[2]}"])
        of_method.setdefault(owner, {}).update(found)
    return shared, of_method


def plan(table: Table, part: Part) -> list[Cell]:
    """Every run, in the order in which they begin: seed by seed, what decides most first within a seed.

    Raises:
        UserError: anything that cannot work, before the first run begins.
    """
    from vision.noise import parse

    ratios = part.ratios or table.ratios
    for ratio in ratios:
        if not 0 <= ratio < 1:
            raise UserError(f"--ratios {ratio:g}: a ratio is 0 or more and below 1.")
    order = [r for r in table.ratios if r in ratios] + [r for r in ratios if r not in table.ratios]
    if part.rates and "lr" in part.options:
        raise UserError("Give learning rates either by --lr or by --set lr=..., not both.")
    first_rate = part.options.get("lr", table.options["lr"])
    resolved: dict[tuple[str, str, float], tuple[str, Settings]] = {}
    for dataset, method in itertools.product(part.datasets or table.datasets, part.methods or table.methods):
        for rate in part.rates or (first_rate,):
            resolved[dataset, method, rate] = resolve_cell(table, part, dataset, method, rate)
    cells = []
    turns = itertools.product(range(part.seeds), dict.fromkeys(order), dict.fromkeys(d for d, _, _ in resolved))
    for turn, (seed, ratio, dataset) in enumerate(turns):
        noise = str(parse(f"{table.noise}:{ratio:g}"))
        for (owner, _, _), (name, settings) in resolved.items():
            if owner == dataset:
                chosen = replace(settings, seed=seed, noise=noise)
                cells.append(Cell(name, ratio, settings.options.rate, chosen, turn))
    check_names(cells)
    return cells


def resolve_cell(table: Table, part: Part, dataset: str, method: str, rate: float) -> tuple[str, Settings]:
    """A data set's name and the settings of a method on it, before noise and seed. Raises ``UserError``."""
    from vision.data import named
    from vision.settings import resolve

    known = named.canonical(dataset)
    where = known or str(Path(dataset).resolve())
    settings = resolve(
        where,
        part.network or table.network,
        method,
        run_options={**table.options, **part.options, "lr": rate},
        method_options={**table.of_method.get(method, {}), **part.of_method.get(method, {})},
        clean=None if method not in table.clean else part.clean or table.clean[method],
        valid=part.valid if part.valid is not None else table.valid if known else SHARE_OF_OTHERS,
        root=part.root,
        images=part.images,
    )
    return known or Path(where).stem, settings


def check_names(cells: Sequence[Cell]) -> None:
    """Refuse two files of one name. Raises ``UserError``."""
    owners: dict[str, str] = {}
    for cell in cells:
        if owners.setdefault(cell.dataset, cell.settings.dataset) != cell.settings.dataset:
            raise UserError(f"Two data sets are called {cell.dataset}: their runs would share folders. Rename one.")


def check_data(cells: Sequence[Cell]) -> None:
    """Read, or fetch, each data set once before several runs would do so at the same time. Raises ``UserError``."""
    from vision import data

    for dataset, root in dict.fromkeys((cell.settings.dataset, cell.settings.root) for cell in cells):
        for split in ("train", "test"):
            data.load(dataset, split=split, root=root)


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
    options = {key: value for key, value in settings.options.to_dict().items() if value is not None}
    options |= {f"method.{key}": value for key, value in settings.config.to_dict().items() if value is not None}
    words += [word for key, value in options.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    return (*words, *(word for plugin in plugins for word in ("--plugin", plugin)))


def share_done(sweeps: float, folder: Path) -> float | None:
    """How much of ``sweeps`` epochs the run's ``metrics.csv`` has."""
    path = folder / "metrics.csv"
    if not path.is_file():
        return None
    return min(0.99, (len(path.read_text(encoding="utf-8").splitlines()) - 1) / sweeps)


def jobs_of(table: Table, cells: Sequence[Cell], out: Path, plugins: Sequence[str] = ()) -> list[Job]:
    """The cells as processes. A finished run stays as it is; an interrupted one goes on from its checkpoint.

    Raises:
        UserError: a folder under ``out`` holds a run with other settings.
    """
    jobs = []
    for cell in cells:
        folder = out / cell.name
        check_folder(cell, folder)
        sweeps = table.sweeps.get(cell.method, 1) * cell.settings.options.epochs
        job = Job(
            cell.name,
            folder,
            (*words_of(cell, plugins), "--out", str(folder), "--resume", "--quiet"),
            "result.json",
            (cell.dataset, cell.method),
            table.cost.get(cell.method, 1) * cell.settings.options.epochs,
            turn=cell.turn,
            share=partial(share_done, sweeps),
        )
        jobs.append(job)
    return jobs


def describe_job(job: Job) -> str:
    """A job at work with how far it is."""
    share = job.share(job.folder) if job.share is not None else None
    return job.name if share is None else f"{job.name} {share:.0%}"
