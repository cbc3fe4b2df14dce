"""Figures 1 and 6: what models say about training pairs of known rating."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from recdenoise.errors import UserError
from recdenoise.reports import charts, markdown
from recdenoise.reports.comparison import Finished, Numbers
from recdenoise.reports.figure_content import Content, TableText, by_place
from recdenoise.reports.grid import TableSpec
from recdenoise.reports.runs import read_predictions
from recdenoise.reports.table_page import band

CLEAN, NOISY = "clean (rating 4, 5)", "noisy (rating 1, 2)"
MARKERS = ("o", "s", "^", "D")

Array = np.ndarray[Any, Any]
Key = tuple[str, int]
"""Model, seed."""


def predictions_of(table: TableSpec, runs: Sequence[Finished]) -> list[dict[str, Array]]:
    """``predictions.npz`` of every run. Raises ``UserError`` where the training rows have no ratings."""
    found = [read_predictions(run.folder) for run in runs]
    for run, arrays in zip(runs, found, strict=True):
        if "rating" not in arrays:
            raise UserError(f"{table.title}: the training rows of {run.cell.dataset} have no ratings.")
    return found


def disagreement(first: Array, second: Array) -> float:
    """Mean of |I(p >= 1/2) - I(p' >= 1/2)| over pairs: the share on which two models decide differently."""
    return float(np.mean((first >= 0.5) != (second >= 0.5)))


def comparisons(known: Mapping[Key, Array]) -> dict[tuple[str, str], list[tuple[Key, Key]]]:
    """(kind, label) -> pairs of runs: two models of one seed, or two seeds of one model."""
    models, seeds = list(dict.fromkeys(m for m, _ in known)), list(dict.fromkeys(s for _, s in known))
    found: dict[tuple[str, str], list[tuple[Key, Key]]] = {}
    for a, b in itertools.combinations(models, 2):
        both = [((a, s), (b, s)) for s in seeds if (a, s) in known and (b, s) in known]
        found["two models", f"{a}, {b}"] = both
    for model in models:
        found["two seeds", model] = list(itertools.combinations([key for key in known if key[0] == model], 2))
    return found


def difference_rows(dataset: str, known: Mapping[Key, Array], rating: Array) -> list[dict[str, Any]]:
    """A row for every comparison and group of pairs."""
    rows: list[dict[str, Any]] = []
    for (kind, label), keys in comparisons(known).items():
        for name, chosen in ((CLEAN, rating >= 4), (NOISY, rating <= 2)):
            if not keys or not chosen.any():
                continue
            numbers = Numbers.of([disagreement(known[a][chosen], known[b][chosen]) for a, b in keys])
            row: dict[str, Any] = {"dataset": dataset, "kind": kind, "pair": label, "group": name}
            row |= {"interactions": int(chosen.sum()), "mean": numbers.mean, "std": numbers.std}
            rows.append({**row, "comparisons": numbers.n})
    return rows


def differences(table: TableSpec, runs: Sequence[Finished]) -> Content:
    """Figure 1: on which share of clean and of noisy training pairs two models, or two seeds of one, disagree.

    Raises:
        UserError: training rows without ratings.
    """
    rows: list[dict[str, Any]] = []
    for dataset in dict.fromkeys(run.cell.dataset for run in runs):
        chosen = [run for run in runs if run.cell.dataset == dataset]
        found = predictions_of(table, chosen)
        keys = [(run.cell.settings.model, int(run.result["seed"])) for run in chosen]
        known = {key: arrays["p"] for key, arrays in zip(keys, found, strict=True)}
        rows += difference_rows(dataset, known, found[0]["rating"])
    panels, lines = [], []
    tables: list[TableText] = []
    for dataset, kind in dict.fromkeys((r["dataset"], r["kind"]) for r in rows):
        here = {(r["pair"], r["group"]): r for r in rows if (r["dataset"], r["kind"]) == (dataset, kind)}
        labels = list(dict.fromkeys(pair for pair, _ in here))
        bars = {
            name: [
                (here[label, name]["mean"], here[label, name]["std"]) if (label, name) in here else None
                for label in labels
            ]
            for name in (CLEAN, NOISY)
        }
        panels.append(charts.grouped_bars(f"{dataset}: {kind}", "share of pairs decided differently", labels, bars))
        texts, more = [], 0
        for label, clean, noisy in zip(labels, bars[CLEAN], bars[NOISY], strict=True):
            ratio = f"{noisy[0] / clean[0]:.2f}" if clean and noisy and clean[0] else "–"
            shown = ["–" if v is None else markdown.show(Numbers(v[0], v[1], 0)) for v in (clean, noisy)]
            texts.append([label, *shown, ratio])
            more += bool(clean and noisy and noisy[0] > clean[0])
        tables.append((f"{dataset}: {kind}", ("pair", "clean", "noisy", "noisy / clean"), texts, 1))
        lines.append(f"{dataset}: {kind} disagree more on noisy than on clean pairs in {more} of {len(labels)} cases")
    notes = [
        "Every model is trained plainly. For each training pair a model decides I(p ≥ 0.5). Shown: the share of pairs "
        "on which two models (same seed), or two seeds of one model, decide differently. Clean: rating 4 or 5; noisy: "
        "rating 1 or 2; rating 3 is left out, as in the paper.",
        "Mean ± standard deviation over seeds (two models) and over pairs of seeds (two seeds).",
    ]
    return Content(rows, panels, notes, tables, lines)


def means_by_rating(arrays: Mapping[str, Array]) -> tuple[dict[float, float], dict[float, int]]:
    """Mean of ``p_clean`` and number of pairs for every rating, ascending; pairs without a rating do not count."""
    rated = ~np.isnan(arrays["rating"])
    levels, place = np.unique(arrays["rating"][rated], return_inverse=True)
    counts = np.bincount(place)
    means = np.bincount(place, weights=arrays["p_clean"][rated].astype(np.float64)) / counts
    names = levels.tolist()
    return dict(zip(names, means.tolist(), strict=True)), dict(zip(names, counts.tolist(), strict=True))


def network(name: str) -> str:
    """``NeuMF`` for ``neumf``, ``GMF`` for ``gmf``."""
    return {"neumf": "NeuMF"}.get(name, name.upper())


def ratings(table: TableSpec, runs: Sequence[Finished]) -> Content:
    """Figure 6: mean P(y = 1 | observed) of training pairs by their rating, for every network h.

    Raises:
        UserError: training rows without ratings.
    """
    rows: list[dict[str, Any]] = []
    drawn: dict[tuple[str, str, str], list[charts.Line]] = {}
    for (dataset, model, _, _), members in by_place(runs).items():
        title = members[0].cell.settings.method.title
        h = network(str(members[0].config["denoiser"].get("h_model", "–")))
        per_seed = [means_by_rating(arrays) for arrays in predictions_of(table, members)]
        for level, n in per_seed[0][1].items():
            numbers = Numbers.of([means[level] for means, _ in per_seed])
            row: dict[str, Any] = {"dataset": dataset, "model": model, "method": title, "h_model": h, "rating": level}
            row |= {"interactions": n, "mean": numbers.mean, "std": numbers.std, "seeds": numbers.n}
            rows.append(row)
        there = drawn.setdefault((dataset, model, title), [])
        place = len(there) % 4
        line = band(f"h: {h}", [(list(m), list(m.values())) for m, _ in per_seed], charts.PALETTE[(4, 2, 5, 3)[place]])
        # Curves that lie on each other stay visible: markers of growing size, dashes.
        there.append(replace(line, marker=MARKERS[place], size=4.0 + 3 * place, style=("-", "--", ":", "-.")[place]))
    panels, lines = [], []
    tables: list[TableText] = []
    for (dataset, model, title), curves in drawn.items():
        here = [r for r in rows if (r["dataset"], r["model"], r["method"]) == (dataset, model, title)]
        levels, networks = (list(dict.fromkeys(r[key] for r in here)) for key in ("rating", "h_model"))
        name = f"{model} + {title} on {dataset}"
        unit = "mean P(y = 1 | observed)"
        panels.append(charts.lines(name, "rating (hidden in training)", unit, curves, 0.0, levels))
        texts = []
        for level in levels:
            of_level = {r["h_model"]: r for r in here if r["rating"] == level}
            shown = [markdown.show(Numbers(of_level[h]["mean"], of_level[h]["std"], 0)) for h in networks]
            texts.append([f"{level:g}", f"{of_level[networks[0]]['interactions']:,}", *shown])
        tables.append((name, ("rating", "interactions", *(f"h: {h}" for h in networks)), texts, 1))
        for h in networks:
            means = [r["mean"] for r in here if r["h_model"] == h]
            rising = all(b > a for a, b in itertools.pairwise(means))
            told = "rises with every rating" if rising else "does not rise with every rating"
            lines.append(f"{name}, h {h}: {told}, from {means[0]:.3f} to {means[-1]:.3f}")
        if len(networks) > 1:
            by_level = [[r["mean"] for r in here if r["rating"] == level] for level in levels]
            widest = max(max(means) - min(means) for means in by_level)
            lines.append(f"{name}: networks for h differ by {widest:.2g} at most at any rating")
    notes = [
        "P(y = 1 | observed) of every training interaction: by Eq. 25 for DeCA, the model's own probability for "
        "DeCA(p). Training never saw the rating. Mean over seeds; the band reaches from the lowest seed to the highest."
    ]
    return Content(rows, panels, notes, tables, lines)
