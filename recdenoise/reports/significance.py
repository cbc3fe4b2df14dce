"""Paired tests over users: Wilcoxon's signed-rank test, each user averaged over seeds first, Holm's correction."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recdenoise.errors import UserError
from recdenoise.reports.grid import KEPT, TableSpec
from recdenoise.reports.runs import read_users

if TYPE_CHECKING:
    from recdenoise.reports.comparison import Finished

LEVEL = 0.05
"""A corrected p below it is called a difference."""


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p-values that control the chance of any false finding among them."""
    adjusted = [0.0] * len(p)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, p[index] * (len(p) - rank)))
        adjusted[index] = largest
    return adjusted


@dataclass(frozen=True)
class SignedRank:
    """Wilcoxon's signed-rank test of one method against another.

    Attributes:
        better, worse: users whose measure is higher or lower.
        p: two-sided.
        direction: 1 where the ranks of the gains outweigh those of the losses, -1 where it is the other way round.
    """

    better: int
    worse: int
    p: float
    direction: int


def signed_rank(base: Mapping[str, float], other: Mapping[str, float]) -> SignedRank:
    """Compare ``other`` with ``base``, pairs by user.

    Raises:
        UserError: the two were tested on different users.
    """
    from scipy.stats import rankdata, wilcoxon

    if base.keys() != other.keys():
        raise UserError("The two methods were tested on different users; their runs are of different data.")
    # Rounded: .4 - .2 and .6 - .4 differ in the last bit, and would get two ranks where they share one.
    differences = np.array([other[user] - base[user] for user in base]).round(12)
    changed = differences[differences != 0]
    p = float(wilcoxon(differences).pvalue) if len(changed) else 1.0
    direction = np.sign((np.sign(changed) * rankdata(np.abs(changed))).sum())
    return SignedRank(int((changed > 0).sum()), int((changed < 0).sum()), p, int(direction))


def mean_users(files: Sequence[Path], metric: str) -> dict[str, float]:
    """Every user's measure, its mean over the files ``users.csv`` of several seeds."""
    values: dict[str, list[float]] = {}
    for file in files:
        for user, value in read_users(file, metric).items():
            values.setdefault(user, []).append(value)
    return {user: statistics.fmean(per_seed) for user, per_seed in values.items()}


@dataclass(frozen=True)
class PairedTest:
    """One cell of a table against the cell that it is compared with, on one metric.

    Attributes:
        dataset, model, method, variant, metric: which.
        label, base_label: what reports call the cell, and what it is compared with.
        difference: mean over users of the cell's measure less the base's.
        better, worse: users whose measure, averaged over seeds, is higher or lower. n_users: all of them.
        p, direction: of Wilcoxon's signed-rank test. adjusted: p after Holm's correction over the cells of a data set
            and metric.
    """

    dataset: str
    model: str
    method: str
    variant: str
    metric: str
    label: str
    base_label: str
    difference: float
    better: int
    worse: int
    n_users: int
    p: float
    direction: int
    adjusted: float

    @property
    def verdict(self) -> str:
        """``better``, ``worse`` or ``no difference`` by the corrected p; ``mixed`` where mean and ranks disagree.

        That happens where many users lose a little and few gain much: the test is of the many.
        """
        if self.adjusted >= LEVEL or self.direction == 0:
            return "no difference"
        if self.direction * self.difference <= 0:
            return "mixed"
        return "better" if self.difference > 0 else "worse"


def paired_tests(table: TableSpec, runs: Sequence[Finished]) -> list[PairedTest]:
    """Every cell against its base: the table's ``base`` on the same model, under the same rules.

    Cells whose runs left no ``users.csv`` are left out; so are those whose base did not run.
    """
    files: dict[tuple[str, str, str, str], list[Path]] = {}
    cells = {}
    for run in runs:
        if (run.folder / KEPT["users"]).is_file():
            files.setdefault(run.cell.group, []).append(run.folder / KEPT["users"])
            cells[run.cell.group] = run.cell
    found: list[PairedTest] = []
    for dataset, metric in dict.fromkeys((g[0], metric) for g in cells for metric in tested_metrics(table, g[0])):
        tests = []
        users = {group: mean_users(files[group], metric) for group in cells if group[0] == dataset}
        for group, cell in cells.items():
            _, model, method, _ = group
            base = (dataset, model, method if table.base == "plain" else "normal", cell.variant.kind)
            if group[0] != dataset or base == group or base not in users:
                continue
            test = signed_rank(users[base], users[group])
            difference = statistics.fmean(users[group].values()) - statistics.fmean(users[base].values())
            names = (*group, metric, cell.label_of(), cells[base].label_of())
            counts = (test.better, test.worse, len(users[base]))
            tests.append(PairedTest(*names, difference, *counts, test.p, test.direction, test.p))
        adjusted = holm([test.p for test in tests])
        found += [replace(test, adjusted=value) for test, value in zip(tests, adjusted, strict=True)]
    places = list(dict.fromkeys((test.dataset, test.model) for test in found))
    return sorted(found, key=lambda test: places.index((test.dataset, test.model)))


def tested_metrics(table: TableSpec, dataset: str) -> tuple[str, ...]:
    """What paired tests look at: the required metrics, else recall and NDCG at 20."""
    return table.required_for(dataset) or ("recall@20", "ndcg@20")


def explanation(tests: Sequence[PairedTest]) -> str:
    """What the tests are, in one paragraph."""
    n = sorted({test.n_users for test in tests})
    return (
        f"Paired over {' or '.join(f'{k:,}' for k in n)} users: each user's measure is averaged over seeds, then "
        "Wilcoxon's signed-rank test, two-sided. p, Holm: corrected over all rows of a data set and metric. The test "
        "says nothing about seeds that were not run. It ranks the changes of users that changed; where these weigh "
        "otherwise than the mean, the verdict is mixed."
    )
