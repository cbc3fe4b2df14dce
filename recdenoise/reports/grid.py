"""A grid of runs, one process and one folder each: planned, run in parallel, stopped and gone on with."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recdenoise import denoisers, presets
from recdenoise.errors import UserError
from recdenoise.options import flat_options
from recdenoise.recbole_adapter.dataset import find_folder
from recdenoise.recbole_adapter.settings import Settings, resolve
from recdenoise.reports import published
from recdenoise.reports.run_folder import check_folder, folder_name
from recdenoise.reports.workers import Job

FIRST_SEED = 2020
"""Of a grid; the others follow it."""

KEPT = {
    "users": "users.csv",
    "ties": "ties.json",
    "predictions": "predictions.npz",
    "test_curve": "test_curve.csv",
    "detection": "detection.json",
}
"""What a run can leave for reports: measures of every test user, the test with equal scores in the order of the items'
tokens, probabilities of every training pair, the test after every epoch, how well it finds known noise."""


@dataclass(frozen=True)
class Variant:
    """A way of running a method.

    Attributes:
        name: empty for the plain one.
        compared: with print, or shown beside it.
        options: set in its runs.
        title: what print calls the method when it runs so; ``{}`` stands for the method's title.
        kind: the model's variant that it belongs to: paired tests stay within one.
    """

    name: str = ""
    compared: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    title: str = "{}"
    kind: str = ""


@dataclass(frozen=True)
class TableSpec:
    """A published table or figure and the runs that answer to it.

    Attributes:
        name, title, source: of the table.
        datasets, models, methods, protocol, preset: what its runs are.
        report: ``table``, or the kind of figure.
        keeps: what its runs leave behind besides their result: names of :data:`KEPT`.
        printed, public_code, clean_run: CSV files of :mod:`recdenoise.reports.published`, each possibly missing.
        shown, required: metrics in the report, and those that must reach a minimum.
        shown_on, required_on: others for some data sets.
        notes_on: what a reader of some data sets' numbers must know, a paragraph each.
        deviations, share: how far below print a required cell may be, in standard deviations and as a share.
        base: what paired tests compare with: ``normal``, or ``plain`` for the plain run of the same method.
        variants: per model; a model without an entry has the plain one.
        method_variants: per method, further ways of running it.
        axes: option in dotted form to values; every combination is a variant, in place of the plain run.
        set, set_on: options of every run, and of those on some data sets.
        preset_of: models without published settings, and the model whose settings they take.
        published_prior: whether DeCA(p)'s prior keeps the preset's number of epochs.
    """

    name: str
    title: str
    source: str
    datasets: tuple[str, ...]
    models: tuple[str, ...]
    methods: tuple[str, ...]
    protocol: str
    preset: str | None
    report: str = "table"
    keeps: tuple[str, ...] = ("users", "ties")
    printed: str | None = None
    public_code: str | None = None
    clean_run: str | None = None
    shown: tuple[str, ...] = ("recall@20", "ndcg@20")
    required: tuple[str, ...] = ()
    shown_on: Mapping[str, Sequence[str]] = field(default_factory=dict)
    required_on: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes_on: Mapping[str, Sequence[str]] = field(default_factory=dict)
    deviations: float = 2
    share: float = 0.05
    base: str = "normal"
    variants: Mapping[str, tuple[Variant, ...]] = field(default_factory=dict)
    method_variants: Mapping[str, tuple[Variant, ...]] = field(default_factory=dict)
    axes: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    set: Mapping[str, Any] = field(default_factory=dict)
    set_on: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    preset_of: Mapping[str, str] = field(default_factory=dict)
    published_prior: bool = False

    def variants_of(self, model: str, method: str) -> tuple[Variant, ...]:
        """Kinds of runs of a model through a method."""
        kinds = self.variants.get(model, (Variant(),))
        extras = self.method_variants.get(method, ()) or axis_variants(self.axes)
        combined = tuple(
            Variant(
                "-".join(n for n in (kind.name, extra.name) if n),
                extra.compared,
                merge(kind.options, extra.options),
                extra.title,
                kind.name,
            )
            for extra in extras
            for kind in kinds
            if kind.compared
        )
        return combined if self.axes else kinds + combined

    def shown_for(self, dataset: str) -> tuple[str, ...]:
        """Metrics that the report shows of a data set."""
        return tuple(self.shown_on.get(dataset, self.shown))

    def required_for(self, dataset: str) -> tuple[str, ...]:
        """Metrics that must reach a minimum on a data set."""
        return tuple(self.required_on.get(dataset, self.required))

    def options_for(self, dataset: str, model: str, method: str) -> tuple[str | None, dict[str, Any]]:
        """Preset of a run, and the options that the table itself sets in it."""
        preset, options = self.preset, merge(self.set, self.set_on.get(dataset, {}))
        if preset is None:
            return None, options
        if self.published_prior and "prior_epochs" in denoisers.get(method).Config().to_dict():
            cell = presets.load(preset, dataset, self.preset_of.get(model, model), method)
            selector = cell["denoiser"].get("prior_selector") or cell["valid_selector"]
            prior = {"prior_epochs": cell["epochs"], "prior_selector": selector}
            options = merge(options, {"denoiser": prior})
        if model not in self.preset_of:
            return preset, options
        return None, merge(presets.load(preset, dataset, self.preset_of[model], method), options)


def axis_variants(axes: Mapping[str, Sequence[Any]]) -> tuple[Variant, ...]:
    """Every combination of the options' values, none without options: ``c_1_10-c_2_100``."""
    combinations = itertools.product(*axes.values()) if axes else ()
    return tuple(
        Variant(
            "-".join(f"{key.rpartition('.')[2]}_{value}" for key, value in zip(axes, values, strict=True)),
            True,
            nested_options(dict(zip(axes, values, strict=True))),
        )
        for values in combinations
    )


def read_variants(entries: Sequence[Mapping[str, Any]], of_model: bool) -> tuple[Variant, ...]:
    """Variants as a table's file lists them."""
    return tuple(
        Variant(v["name"], v["compared"], v.get("set") or {}, v.get("title", "{}"), kind=v["name"] if of_model else "")
        for v in entries
    )


def read_table(name: str) -> TableSpec:
    """The table or figure called ``name``. Raises ``UserError`` that lists those there are."""
    content = published.load_table(name)
    for key in ("variants", "method_variants"):
        content[key] = {
            owner: read_variants(entries, key == "variants") for owner, entries in (content.get(key) or {}).items()
        }
    tolerance = content.pop("tolerance", {})
    lists = {key: tuple(value) for key, value in content.items() if isinstance(value, list)}
    return TableSpec(name=name, **tolerance, **{**content, **lists})


@dataclass(frozen=True)
class Cell:
    """One run of a grid: what it is called, its settings, how the command line is told.

    Attributes:
        dataset: the data set's name; ``settings.dataset`` may be a folder.
        variant: see :class:`Variant`.
        settings: resolved and checked.
        arguments: of ``recdenoise train``, without ``--out``.
    """

    dataset: str
    variant: Variant
    settings: Settings
    arguments: tuple[str, ...]

    @property
    def method(self) -> str:
        return self.settings.method.name

    @property
    def title(self) -> str:
        """The method's, as print has it."""
        return self.variant.title.format(self.settings.method.title)

    def label_of(self, variant: str | None = None) -> str:
        """The title, with the variant (of the run, or of one of its tests) where the title does not name it."""
        own = self.variant
        variant = own.name if variant is None else variant
        rest = variant if own.title == "{}" else variant.replace(own.name, own.kind, 1)
        return self.title + (f" ({rest})" if rest else "")

    @property
    def group(self) -> tuple[str, str, str, str]:
        """What its seeds have in common: data set, model, method, variant."""
        return self.dataset, self.settings.model, self.method, self.variant.name

    @property
    def name(self) -> str:
        """The folder's name."""
        s = self.settings
        parts = [self.dataset, s.protocol, s.model, self.method, self.variant.name, str(s.seed)]
        return "-".join(part for part in parts if part)


def nested_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of :func:`flat_options`."""
    nested: dict[str, Any] = {}
    for key, value in options.items():
        place, dot, inner = key.partition(".")
        nested = merge(nested, {place: {inner: value}} if dot else {key: value})
    return nested


def assignments(options: Mapping[str, Any]) -> list[str]:
    """Options as ``--set`` arguments."""
    return [word for key, value in flat_options(options).items() for word in ("--set", f"{key}={json.dumps(value)}")]


def to_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """A CSV file's text."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def merge(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Both options, the second winning, one level down too."""
    merged = dict(first)
    for key, value in second.items():
        old = merged.get(key)
        merged[key] = {**old, **value} if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def plan(
    table: TableSpec,
    *,
    datasets: Sequence[str] = (),
    models: Sequence[str] = (),
    methods: Sequence[str] = (),
    protocol: str | None = None,
    n_seeds: int = 3,
    options: Mapping[str, Any] | None = None,
    plugins: Sequence[str] = (),
    compared_only: bool = False,
) -> list[Cell]:
    """Every run of a table, or of a part of it, checked before the first begins.

    Args:
        table: what is published.
        datasets, models, methods: a part of it or more than it has; empty takes the table's.
        protocol: the table's by default.
        n_seeds: seeds 2020, 2021, ...
        options: set in every run, with RecBole's keys and a nested ``denoiser``.
        plugins: imported by every run first.
        compared_only: leave out runs that are only shown beside.

    Raises:
        UserError: anything that cannot work.
    """
    if n_seeds < 1:
        raise UserError(f"--seeds is {n_seeds}; it must be 1 or more.")
    protocol = protocol or table.protocol
    models, methods, datasets = models or table.models, methods or table.methods, datasets or table.datasets
    for method in methods:
        denoisers.get(method)
    known: dict[str, str] = {}
    for dataset in dict.fromkeys(datasets):
        other = known.setdefault(folder_name(dataset), dataset)
        if other != dataset:
            raise UserError(
                f"{other} and {dataset} are both called {folder_name(dataset)!r}, and so would their runs be: give "
                "them to two commands, each with its own --out and --report."
            )
    cells = []
    for dataset, model, method in itertools.product(*map(dict.fromkeys, (datasets, models, methods))):
        name = folder_name(dataset)
        preset, fixed = table.options_for(name, model, method)
        for variant, seed in itertools.product(
            table.variants_of(model, method), range(FIRST_SEED, FIRST_SEED + n_seeds)
        ):
            if compared_only and not variant.compared:
                continue
            overrides = merge(merge(fixed, variant.options), options or {})
            settings = resolve(model, dataset, method, protocol=protocol, seed=seed, preset=preset, overrides=overrides)
            words = ["--model", model, "--dataset", dataset, "--denoiser", method, "--protocol", protocol]
            words += ["--seed", str(seed), *(["--preset", preset] if preset else [])]
            words += [*assignments(overrides), *(word for plugin in plugins for word in ("--plugin", plugin))]
            cells.append(Cell(name, variant, settings, tuple(words)))
    return cells


def published_seconds(file: str | None, dataset: str, model: str, title: str) -> float:
    """Seconds of the public code's run: a first guess of which runs are long. Unknown ones are taken to be longest."""
    if file is None:
        return 1.0
    known = {(r["dataset"], r["model"], r["method"]): float(r["run_seconds"]) for r in published.load_rows(file)}
    plain = known.get((dataset, model, "Normal"), max(known.values()))
    return known.get((dataset, model, title), plain)


def jobs_of(cells: Sequence[Cell], table: TableSpec, out: Path) -> list[Job]:
    """The cells as processes to run. A finished run stays one; an interrupted one goes on from its checkpoint.

    Raises:
        UserError: a folder under ``out`` holds a run with other settings.
    """
    jobs = []
    for cell in cells:
        folder = out / cell.name
        check_folder(cell.settings, folder)
        guess = published_seconds(table.public_code, cell.dataset, cell.settings.model, cell.settings.method.title)
        keeps = (word for name in table.keeps for word in ("--keep", name))
        words = ("benchmark", "run", *cell.arguments, "--out", str(folder), *keeps)
        also = tuple(KEPT[name] for name in table.keeps)
        jobs.append(Job(cell.name, folder, words, "result.json", cell.group, guess, also=also))
    return jobs


def prepare_data(cells: Sequence[Cell]) -> None:
    """Build every data set once, before several runs would build it at the same time."""
    for dataset, protocol in dict.fromkeys((c.settings.dataset, c.settings.protocol) for c in cells):
        find_folder(dataset, protocol)
