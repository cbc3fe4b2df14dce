"""The runs that answer to a published table: settings of every cell, and the order in which they begin."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recdenoise.errors import UserError, unknown_name
from vision.tables.table import Entry, Key, Table, per_cent

if TYPE_CHECKING:
    from vision.settings import Settings

SHARE_OF_OTHERS = 1 / 6
"""Validation share of data of one's own, as 10,000 of Fashion-MNIST's 60,000."""


@dataclass(frozen=True)
class Part:
    """Which part of a table is run, and what is different in it.

    Attributes:
        datasets, conditions, methods: keys; empty for the table's.
        seeds: 0 and so many after it; ``None`` for the table's number.
        rates: learning rates tried; validation chooses one a cell. Empty for the table's.
        epochs: of every run; options that count epochs shrink alike.
        network, valid, clean, images, root, masks, image_size, readers: in place of the table's; ``None`` keeps it.
        options: of every run, over the table's.
        of_method: of a method, over the table's.
    """

    datasets: tuple[str, ...] = ()
    conditions: tuple[Key, ...] = ()
    methods: tuple[str, ...] = ()
    seeds: int | None = None
    rates: tuple[float, ...] = ()
    epochs: int | None = None
    network: str | None = None
    valid: float | int | None = None
    clean: int | None = None
    images: int | None = None
    root: str | None = None
    masks: str | None = None
    image_size: int | None = None
    readers: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    of_method: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One run for one cell of the table.

    Attributes:
        dataset: its key, or the file's name.
        condition: the entry.
        entry: of the method.
        rate: the learning rate.
        settings: resolved and checked.
        turn: its place in the grid's order; cells of one turn may begin in any order.
    """

    dataset: str
    condition: Entry
    entry: Entry
    rate: float
    settings: Settings
    turn: int

    @property
    def method(self) -> str:
        """Key of the method, which need not be the name of one."""
        return str(self.entry.key)

    @property
    def group(self) -> tuple[str, Key, str]:
        """What its seeds and its learning rates have in common: data set, condition, method."""
        return self.dataset, self.condition.key, self.method

    @property
    def name(self) -> str:
        """The folder's name. Cells that one run answers to share it."""
        condition = "" if self.entry.once else word_of(self.condition.key)
        words = (self.dataset, condition, self.entry.runs_of or self.method, f"lr{self.rate:g}", self.settings.seed)
        return "-".join(re.sub(r"[^\w.+-]+", "-", str(word)) for word in words if word != "")


def word_of(key: Key) -> str:
    """A key as it is typed."""
    return f"{key:g}" if isinstance(key, int | float) else key


def split_options(assignments: Sequence[str], methods: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """``["epochs=5", "deca_p.c_1=10"]`` as options of every run, and of methods by key.

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
    conditions = chosen_conditions(table, part.conditions)
    methods = [entry for entry in chosen_methods(table, part.methods) if not entry.absent]
    if not methods:
        raise UserError(f"Nothing of {table.name} can be run: the methods chosen are shown as printed only.")
    if part.rates and "lr" in part.options:
        raise UserError("Give learning rates either by --lr or by --set lr=..., not both.")
    if part.epochs is not None and "epochs" in part.options:
        raise UserError("Give epochs either by --epochs or by --set epochs=..., not both.")
    known: dict[str, Settings] = {}
    cells = []
    seeds = range(table.seeds if part.seeds is None else part.seeds)
    datasets = dict.fromkeys(part.datasets or (entry.key for entry in table.datasets if not entry.absent))
    for turn, (seed, condition, dataset) in enumerate(itertools.product(seeds, conditions, datasets)):
        place = dataset_of(table, str(dataset))
        if place.absent:
            raise UserError(f"{place.title} is shown as printed only: {place.absent}.")
        for entry, rate in itertools.product(methods, part.rates or (None,)):
            if table.has(place, condition, entry):
                name, settings = resolve_cell(table, part, place, condition, entry, rate, known)
                settings = replace(settings, seed=seed)
                cells.append(Cell(name, condition, entry, settings.options.rate, settings, turn))
    if not cells:
        raise UserError(f"{table.name} has no cells for these data sets, {table.axis['title']} and methods together.")
    check_names(cells)
    blind = [cell for cell in cells if not cell.settings.valid]
    if len(set(part.rates)) > 1 and blind:
        raise UserError(
            f"Validation chooses among several learning rates, and {blind[0].entry.title} on {blind[0].dataset} holds "
            "nothing out: give one --lr, or hold images out by --valid."
        )
    return cells


def chosen_conditions(table: Table, keys: Sequence[Key]) -> list[Entry]:
    """The conditions asked for, in the table's order, then others. Raises ``UserError`` for an unknown one."""
    chosen: list[Key] = []
    for key in keys:
        if table.axis.get("share"):
            try:
                key = float(key)
            except ValueError:
                raise UserError(f"{table.axis['option']} {key}: all must be numbers, for example 0.4.") from None
            if not 0 <= key < 1:
                raise UserError(f"{table.axis['option']} {key:g}: a ratio is 0 or more and below 1.")
        elif key not in table.keys("conditions"):
            raise unknown_name(f"{table.axis['name']} of {table.name}:", key, map(str, table.keys("conditions")))
        chosen.append(key)
    if not chosen:
        return list(table.conditions)
    others = [key for key in dict.fromkeys(chosen) if key not in table.keys("conditions")]
    found = [entry for entry in table.conditions if entry.key in chosen]
    return [*found, *(Entry(key, per_cent(float(key)), (word_of(key),)) for key in others)]


def chosen_methods(table: Table, keys: Iterable[str]) -> list[Entry]:
    """The table's methods asked for, and any other one of the library by its name.

    Raises:
        UserError: an unknown name, or a method that the library does not run.
    """
    from vision import methods

    found = []
    for key in dict.fromkeys(keys):
        entry = table.entry("methods", key)
        if entry is None and key in methods.names():
            entry = Entry(key, methods.get(key).title, (methods.get(key).title,))
        if entry is None:
            own = map(str, table.keys("methods"))
            raise unknown_name("method", key, dict.fromkeys([*own, *methods.names()]))
        if entry.absent:
            raise UserError(f"{entry.title} is shown as printed only: {entry.absent}.")
        found.append(entry)
    return found or list(table.methods)


def said_of(table: Table, dataset: Entry, condition: Entry, method: Entry) -> dict[str, Any]:
    """What the table makes of a cell: the file's own, then its entries', the later over the earlier."""
    own = method.runs_of or method.key
    here = {"datasets": dataset.key, "conditions": condition.key, "methods": own}
    said: dict[str, Any] = {"options": {}, "method_options": {}}
    parts: list[Mapping[str, Any]] = [table.gives]
    for entry in (dataset, condition, method):
        parts += [gives for only, gives in entry.gives if all(here[axis] in keys for axis, keys in only.items())]
    for gives in parts:
        said = merged(said, gives)
    return {"method": str(own), **said}


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Both mappings in one, the second's values over the first's; mappings within are merged alike."""
    both = {key: (first[key], second[key]) for key in first if key in second}
    inner = {key: merged(*pair) for key, pair in both.items() if all(isinstance(each, Mapping) for each in pair)}
    return {**first, **second, **inner}


def dataset_of(table: Table, name: str) -> Entry:
    """The table's data set of that name, or another one, or a file: its key is what a run is told."""
    from vision.data import derived, named

    path = Path(name)
    for each in table.datasets:
        if each.folder and path.is_dir() and path.name.lower() == each.key:
            return replace(each, gives=(*each.gives, ({}, {"dataset": str(path.resolve())})))
    known = name if table.entry("datasets", name) else named.canonical(name)
    entry = table.entry("datasets", known) if known else None
    if entry is not None or known:
        return entry or Entry(str(known), str(known), ())
    # A set made from a file is no path itself, only its base is.
    place = str(path.resolve()) if derived.parse(name) is None else derived.absolute(name)
    return Entry(place, derived.title(name), ())


def resolve_cell(
    table: Table,
    part: Part,
    dataset: Entry,
    condition: Entry,
    method: Entry,
    rate: float | None,
    known: dict[str, Settings],
) -> tuple[str, Settings]:
    """A data set's name and the settings of a method on it, before the seed. Raises ``UserError``.

    Args:
        known: settings resolved before, by what they were resolved from.
    """
    from vision.data import named
    from vision.noise import parse
    from vision.settings import resolve

    own_data = table.entry("datasets", dataset.key) is None
    said = said_of(table, dataset, condition, method)
    if part.masks is not None:
        said = merged(said, table.with_masks)
    names = {"dataset": str(dataset.key), "condition": word_of(condition.key)}
    where = str(said.get("dataset", "{dataset}")).format(**names)
    epochs, options = said["options"].get("epochs"), {**said["options"], **part.options}
    if part.epochs is not None:
        options["epochs"] = part.epochs
    options |= {} if rate is None else {"lr": rate}
    own = {**said["method_options"]}
    if epochs and options["epochs"] != epochs:
        own = shortened(own, method.in_epochs, options["epochs"] / epochs)
    own |= part.of_method.get(method.runs_of or str(method.key), {})
    valid = part.valid if part.valid is not None else said.get("valid", 0)
    if part.valid is None and own_data and named.canonical(where) is None and valid:
        valid = SHARE_OF_OTHERS
    clean = None if "clean" not in said else part.clean or said["clean"]
    words = (where, part.network or said["network"], said["method"], sorted(options.items()), sorted(own.items()))
    asked = repr((*words, clean, valid, said.get("image_size"), said.get("masks")))
    if asked not in known:
        known[asked] = resolve(
            words[0],
            words[1],
            words[2],
            run_options=options,
            method_options=own,
            clean=clean,
            valid=valid,
            root=part.root,
            images=part.images,
            masks=part.masks or said.get("masks"),
            image_size=part.image_size or said.get("image_size"),
            workers=said.get("workers", 0) if part.readers is None else part.readers,
        )
    told = known[asked]
    if said.get("noise"):
        spec = parse(str(said["noise"]).format(**names))
        told = replace(told, noise=None if spec.kind == "none" else str(spec))
    return dataset.title if own_data else str(dataset.key), told


def shortened(options: Mapping[str, Any], counted: Iterable[str], share: float) -> dict[str, Any]:
    """Options with a share of the epochs that some of them count; a dot goes one level down."""
    found = dict(options)
    for name in counted:
        outer, dot, inner = name.partition(".")
        if dot:
            found[outer] = shortened(found.get(outer) or {}, [inner], share)
        elif isinstance(found.get(name), int):
            found[name] = max(1, round(found[name] * share))
    return found


def check_names(cells: Sequence[Cell]) -> None:
    """Refuse two files of one name, or two runs of one folder. Raises ``UserError``."""
    owners: dict[str, Settings] = {}
    for cell in cells:
        other = owners.setdefault(cell.name, cell.settings)
        if other.dataset != cell.settings.dataset:
            raise UserError(f"Two data sets are called {cell.dataset}: their runs would share folders. Rename one.")
        if other != cell.settings:
            raise UserError(f"Two different runs are called {cell.name}: they would share a folder.")


def departures(table: Table, part: Part, cells: Sequence[Cell]) -> list[str]:
    """What is not as the table has it, a sentence an option: shorter trials, other networks, fewer images."""

    def identity(settings: Settings) -> dict[str, Any]:
        free = ("seed", "noise", "dataset", "option precision", "option compile", "option channels_last")
        return {
            key: value for key, value in settings.identity("").items() if key not in (*free, "option deterministic")
        }

    known: dict[str, Settings] = {}
    plain = Part(root=part.root, masks=part.masks, readers=part.readers)
    conditions = {cell.condition.key: cell.condition for cell in cells}
    found: dict[tuple[str, str, str], list[str]] = {}
    groups = {(c.dataset, c.condition.key, c.method): c for c in reversed(cells)}
    total = dict.fromkeys(c.entry.title for c in cells)
    for cell in groups.values():
        place = table.entry("datasets", cell.dataset) or Entry(cell.settings.dataset, cell.dataset, ())
        _, wanted = resolve_cell(table, plain, place, conditions[cell.condition.key], cell.entry, None, known)
        was, now = identity(wanted), identity(cell.settings)
        for key in now:
            if now[key] != was.get(key) and not (key == "option lr" and part.rates):
                name = key.removeprefix("option ").removeprefix("method.")
                found.setdefault((name, short(now[key]), short(was.get(key))), []).append(cell.entry.title)
    lines = []
    for (name, now_, was_), titles in found.items():
        whose = [t for t in total if t in titles]
        of = "" if len(whose) == len(total) else f" of {', '.join(whose)}"
        lines.append(f"{name}{of} is {now_} in place of {was_}")
    return lines


def short(value: Any) -> str:
    """A value of an option for people."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(short, value)) + "]"
    return "all" if value is None else str(value)
