"""A published table, read from ``published/NAME.yaml``: what is printed, and what each of its cells is trained with.

A cell is a data set, a condition (a noise, a set of labels, a version, ...) and a method. Each of the three is an entry
of an axis, and an entry says what it makes of a run; so does the file itself, for all cells:

=================  ===================================================================================================
``dataset``        name of the data set; ``{dataset}`` and ``{condition}`` stand for the cell's own
``method``         name of the method, where the entry's key is not it
``network``        name of the network
``noise``          name of the label noise; ``{condition}`` as above
``valid``          share or number of the training images that choose the epoch
``clean``          trusted images
``image_size``     side that the images of a folder are brought to
``masks``          of their contents
``workers``        processes of a run that decode them ahead
``options``        of the run, by name
``method_options`` of the method, by name
``for``            a list of further such mappings for some cells, named by ``datasets``, ``conditions``, ``methods``
=================  ===================================================================================================

The file's own come first, then those of the data set, the condition and the method, each followed by its ``for``; what
comes later wins. Other keys of an entry are fields of :class:`Entry`, other keys of the file fields of :class:`Table`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any

import yaml

from recdenoise.errors import UserError, unknown_name

Key = str | float
AXES = ("datasets", "conditions", "methods")
PLACES = ("dataset", "method", "network", "noise", "valid", "clean", "image_size", "masks", "workers")
"""What a mapping says of a run by one value; ``options`` and ``method_options`` are merged."""
SUFFIX = ".yaml"


@dataclass(frozen=True)
class Entry:
    """One place on an axis.

    Attributes:
        key: its name on the command line, in folders and in files.
        title: its name for people.
        printed: its name in the columns of print.
        gives: what it makes of a run, and for which cells: pairs of a filter by axis and a mapping.
        only: the cells that there are, as a filter by axis; all of them by default.
        absent: of a data set or a method: why this library does not run it; it is shown as printed.
        folder: of a data set that comes as a folder: what that holds. Any folder of the key's name stands for it.
        runs_of: of a method: another one, whose runs answer to this line of print too.
        once: of a method: its runs are the same under every condition.
        sweeps: epochs of a run, in units of its option ``epochs``.
        cost: time of a run beside one of ``normal`` of the same number of epochs.
        in_epochs: options of the method that count epochs, and shrink with ``epochs`` in a shorter trial.
    """

    key: Key
    title: str
    printed: tuple[str, ...]
    gives: tuple[tuple[Mapping[str, tuple[Key, ...]], Mapping[str, Any]], ...] = ()
    only: Mapping[str, tuple[Key, ...]] = field(default_factory=dict)
    absent: str = ""
    folder: str = ""
    runs_of: str = ""
    once: bool = False
    sweeps: float = 1.0
    cost: float = 1.0
    in_epochs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measure:
    """A value that is compared.

    Attributes:
        name: in the printed file's column of measures and in reports.
        title: for people: what it is.
        path: where ``result.json`` has it, as a share; ``{end}`` stands for ``last`` or ``best_val``.
        paths: the path for some data sets, by key.
        end: which of the two print is compared with.
    """

    name: str
    title: str = "accuracy on the clean test set"
    path: str = "test.{end}.accuracy"
    paths: tuple[tuple[Key, str], ...] = ()
    end: str = "best_val"

    def of(self, dataset: str) -> str:
        """The path for a data set."""
        return dict(self.paths).get(dataset, self.path)

    @property
    def ends(self) -> tuple[str, ...]:
        """The compared end, then the other one; one alone where the value has no ends."""
        other = "last" if self.end == "best_val" else "best_val"
        return (self.end, other) if "{end}" in self.path else (self.end,)


@dataclass(frozen=True)
class Required:
    """What is asked of our numbers; each part may be left out.

    Attributes:
        points: how far below print a cell may be.
        above: the method that all others of the table must be above.
        ahead: ``method`` must be above ``over`` (all others by default) at ``conditions`` (all by default).
    """

    points: float | None = None
    above: str = ""
    ahead: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A published table.

    Attributes:
        name: of its command.
        title, source: of the table.
        summary: one sentence about the command.
        printed: (data set, condition, method, measure), as entries' keys, to mean and deviation in per cent.
        datasets, conditions, methods: the axes, in the order of the grid: what decides most comes first.
        gives: what every run is made of; ``with_masks`` what it is made of besides, where masks are given.
        measures: what is compared.
        axis: of the conditions: ``name`` (a column of reports), ``title``, ``option`` of the command, ``share`` (its
            keys are shares, and others than the table's may be asked for), ``label`` of a plot, ``told`` of the help.
        seeds: of the published numbers, and so many are run.
        required: what is asked of our numbers.
        notes: how the runs are made and what else a reader must know, a paragraph each.
        hints: commands worth trying, for the command's help.
    """

    name: str
    title: str
    source: str
    summary: str
    printed: Mapping[tuple[Key, Key, Key, str], tuple[float, float | None]]
    datasets: tuple[Entry, ...]
    conditions: tuple[Entry, ...]
    methods: tuple[Entry, ...]
    gives: Mapping[str, Any]
    with_masks: Mapping[str, Any]
    measures: tuple[Measure, ...]
    axis: Mapping[str, Any]
    seeds: int
    required: Required
    notes: tuple[str, ...]
    hints: tuple[str, ...]

    def keys(self, axis: str) -> tuple[Any, ...]:
        """Keys of ``datasets``, ``conditions`` or ``methods``, in order."""
        return tuple(entry.key for entry in getattr(self, axis))

    def has(self, dataset: Entry, condition: Entry, method: Entry) -> bool:
        """Whether there is such a cell."""
        here = dict(zip(AXES, (dataset.key, condition.key, method.key), strict=True))
        filters = [each.only for each in (dataset, condition, method)]
        return all(here[axis] in keys for only in filters for axis, keys in only.items())

    def entry(self, axis: str, key: Key) -> Entry | None:
        """The entry of that key, or ``None``."""
        return next((entry for entry in getattr(self, axis) if entry.key == key), None)

    def called(self, dataset: str) -> str:
        """A data set's name for people, by its key."""
        entry = self.entry("datasets", dataset)
        return dataset if entry is None else entry.title

    @property
    def compared(self) -> Measure:
        """The measure that comes first."""
        return self.measures[0]


def names() -> list[str]:
    """Every table that there is, by name of its command."""
    files = (file.name for file in resources.files("vision.published").iterdir())
    return sorted(name.removesuffix(SUFFIX).replace("_", "-") for name in files if name.endswith(SUFFIX))


def read_table(name: str) -> Table:
    """A table by the name of its command. Raises ``UserError`` for an unknown one."""
    if name not in names():
        raise unknown_name("table", name, names())
    folder = resources.files("vision.published")
    content = yaml.safe_load((folder / (name.replace("-", "_") + SUFFIX)).read_text(encoding="utf-8"))
    text = (folder / content.pop("printed")).read_text(encoding="utf-8")
    return parse_table(name, content, list(csv.DictReader(io.StringIO(text))))


def parse_table(name: str, content: dict[str, Any], rows: Sequence[Mapping[str, str]]) -> Table:
    """A table from its declaration and the rows of print.

    Raises:
        UserError: a key that no table has, or a row of print that belongs to no cell or to two.
    """
    said = dict(content)
    datasets, conditions, methods = (read_entries(axis, said.pop(axis, {"": {"title": ""}})) for axis in AXES)
    measures = tuple(read_measure(each) for each in said.pop("measures", [{"name": "accuracy"}]))
    axes = dict(zip(AXES, (datasets, conditions, methods), strict=True))
    try:
        table = Table(
            name=name,
            title=said.pop("title"),
            source=said.pop("source"),
            summary=said.pop("summary"),
            printed=printed_values(name, axes, measures, said.pop("columns", {}), rows),
            datasets=datasets,
            conditions=conditions,
            methods=methods,
            gives=take_gives(said),
            with_masks=said.pop("with_masks", {}),
            measures=measures,
            axis={"name": "condition", "title": "condition", "option": "--conditions", **said.pop("axis", {})},
            seeds=said.pop("seeds"),
            required=Required(**said.pop("required", {})),
            notes=tuple(said.pop("notes", ())),
            hints=tuple(said.pop("hints", ())),
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"The table {name} cannot be read: {error}.") from error
    if said:
        raise UserError(f"The table {name} has the unknown key {min(said)!r}.")
    return table


def read_measure(said: Mapping[str, Any]) -> Measure:
    """A measure. Raises ``TypeError`` for a key that none has."""
    return Measure(**{**said, "paths": tuple(said.get("paths", {}).items())})


def take_gives(content: dict[str, Any]) -> dict[str, Any]:
    """What a mapping makes of a run; these keys leave it."""
    return {key: content.pop(key) for key in (*PLACES, "options", "method_options") if key in content}


def read_entries(axis: str, content: Any) -> tuple[Entry, ...]:
    """The entries of an axis: a list of keys, or a mapping from key to what it says."""
    found = []
    for key, said in content.items() if isinstance(content, dict) else ((key, None) for key in content):
        said = dict(said or {})
        gives: list[tuple[Mapping[str, tuple[Key, ...]], Mapping[str, Any]]] = [({}, take_gives(said))]
        for more in said.pop("for", ()):
            more = dict(more)
            filters = {name: tuple(more.pop(name)) for name in AXES if name in more}
            gives.append((filters, take_gives(more)))
            if more:
                raise UserError(f"{axis} {key}: a part under 'for' has the unknown key {min(more)!r}.")
        title = str(said.pop("title", per_cent(key) if isinstance(key, float) else key))
        printed = said.pop("printed", title if axis == "methods" else key)
        names = tuple(normal(each) for each in (printed if isinstance(printed, list) else [printed]))
        counted = tuple(said.pop("in_epochs", ()))
        only = {name: tuple(keys) for name, keys in said.pop("only", {}).items()}
        try:
            found.append(Entry(key, title, names, tuple(gives), in_epochs=counted, only=only, **said))
        except TypeError as error:
            raise UserError(f"{axis} {key} cannot be read: {error}.") from error
    return tuple(sharing(entry, found) for entry in found)


def sharing(entry: Entry, entries: Sequence[Entry]) -> Entry:
    """An entry whose runs are another one's, with that one's fields. Raises ``UserError`` where there is none such."""
    if not entry.runs_of:
        return entry
    for other in entries:
        if other.key == entry.runs_of:
            return replace(other, key=entry.key, title=entry.title, printed=entry.printed, runs_of=entry.runs_of)
    raise unknown_name("method whose runs are shared", entry.runs_of, [str(other.key) for other in entries])


def per_cent(share: float) -> str:
    """``0.995`` as ``99.5%``."""
    return f"{100 * share:g}%"


def normal(value: Any) -> str:
    """A printed name or number in one form: ``0.20`` is ``0.2``."""
    try:
        return f"{float(value):g}"
    except ValueError:
        return str(value).strip()


def printed_values(
    name: str,
    axes: Mapping[str, Sequence[Entry]],
    measures: Sequence[Measure],
    columns: Mapping[str, Any],
    rows: Sequence[Mapping[str, str]],
) -> dict[tuple[Key, Key, Key, str], tuple[float, float | None]]:
    """Mean and deviation by cell and measure.

    Args:
        columns: for ``datasets``, ``conditions`` and ``methods`` the columns that name them, one or a list; none where
            the axis has one entry.
        rows: of the printed file: ``accuracy``, perhaps ``std``, perhaps ``measure``, and these columns.

    Raises:
        UserError: a row that belongs to no cell, or two that belong to one.
    """
    places: list[dict[tuple[str, ...], Key]] = []
    wanted: list[list[str]] = []
    for axis in AXES:
        of = columns.get(axis, [])
        wanted.append(of if isinstance(of, list) else [of])
        places.append({entry.printed if wanted[-1] else (): entry.key for entry in axes[axis]})
    known = {measure.name for measure in measures}
    found: dict[tuple[Key, Key, Key, str], tuple[float, float | None]] = {}
    for row in rows:
        keys = [tuple(normal(row[column]) for column in of) for of in wanted]
        measure = row.get("measure") or measures[0].name
        lost = [key for key, place in zip(keys, places, strict=True) if key not in place]
        if lost or measure not in known:
            raise UserError(f"The table {name} prints {dict(row)}, which is none of its cells: {lost or measure}.")
        cell = tuple(place[key] for key, place in zip(keys, places, strict=True))
        if (*cell, measure) in found:
            raise UserError(f"The table {name} prints {dict(row)} twice.")
        std = row.get("std")
        found[cell[0], cell[1], cell[2], measure] = (float(row["accuracy"]), float(std) if std else None)
    return found
