"""P(the click is real) for every training interaction: a table on disk and the picture of its mean per rating."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recdenoise import checkpoint
from recdenoise.errors import UserError
from recdenoise.reports.charts import drawing

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from recdenoise.recbole_adapter.experiment import Run

FORMATS = (".parquet", ".csv")
LEVELS = 20
"""So many different ratings are told one by one."""
GROUPS = 10
"""Groups of more."""


def probability_table(run: Run) -> pd.DataFrame:
    """One row a training interaction: user, item, rating (where known, else NaN) and ``p_clean``, P(y = 1 | observed).

    DeCA computes it by Eq. 25; every other method reports the probability that it gives the pair (Eq. 11).

    Raises:
        UserError: the method says nothing about single labels.
    """
    import pandas as pd

    probability = run.denoiser.clean_probability()
    if probability is None:
        raise UserError(f"{run.denoiser.title} does not tell which labels are right.")
    users, items = run.data.train
    columns: dict[str, Any] = {
        "user": run.data.user_tokens[users.numpy()],
        "item": run.data.item_tokens[items.numpy()],
    }
    if run.data.rating is not None:
        columns["rating"] = run.data.rating.numpy()
    return pd.DataFrame({**columns, "p_clean": probability.cpu().numpy()})


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write Parquet or CSV, by the name's ending, all or nothing. Raises ``UserError`` for another ending."""
    if path.suffix not in FORMATS:
        raise UserError(f"{path} must end in {' or '.join(FORMATS)}.")
    with checkpoint.atomic_file(path) as file:
        if path.suffix == ".parquet":
            table.to_parquet(file, index=False)
        else:
            table.to_csv(file, index=False)


def mean_per_rating(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and count of ``p_clean`` per rating, ascending; rows without one do not count.

    More than :data:`LEVELS` different ratings, as dwell times are, come in at most :data:`GROUPS` groups of about as
    many rows each; equal ratings stay together.

    Returns:
        One row a rating or group: ``rating`` (text: ``4``, or the least and the greatest of a group, ``12.5 to 30``),
        ``mean`` and ``count``.

    Raises:
        UserError: there are no ratings.
    """
    if "rating" not in table:
        raise UserError("The data set has no ratings to compare with.")
    rated = table[table["rating"].notna()]
    ratings = rated["rating"].to_numpy()
    # Each group ends with a rating that is there, so a rating that many rows have is a group of its own.
    ends = np.unique(ratings)
    if len(ends) > LEVELS:
        ends = np.unique(np.quantile(ratings, np.arange(1, GROUPS + 1) / GROUPS, method="inverted_cdf"))
    grouped = rated.groupby(np.searchsorted(ends, ratings))
    told = grouped["p_clean"].agg(["mean", "count"])
    bounds = grouped["rating"].agg(["min", "max"]).itertuples(index=False, name=None)
    told.insert(0, "rating", [f"{low:g}" if low == high else f"{low:g} to {high:g}" for low, high in bounds])
    return told.reset_index(drop=True)


def plot_per_rating(table: pd.DataFrame, title: str, path: Path) -> None:
    """The paper's Figure 6 for one run: bars of the mean probability per rating, as a PNG.

    Args:
        table: from :func:`probability_table`, with ratings.
        title: names the run; stands above the bars.
        path: where the picture goes.

    Raises:
        UserError: no ratings, or the file cannot be written.
    """
    means = mean_per_rating(table)
    labels = [f"{r.rating}\nn = {r.count:,}" for r in means.itertuples(index=False, name="Row")]
    longest = max((len(line) for label in labels for line in label.split("\n")), default=0)
    width = max(0.95, 0.09 * longest) * len(means)  # in inches; a letter needs less than 0.09
    with drawing() as plt:
        figure, axes = plt.subplots(figsize=(max(5.6, width), 3.4), layout="constrained")
        _draw_bars(axes, means["mean"].to_numpy(), labels, title)
        with checkpoint.atomic_file(path) as file:
            figure.savefig(file, dpi=120, format="png", metadata={"Software": None})


def _draw_bars(axes: Any, means: NDArray[Any], labels: list[str], title: str) -> None:
    """Bars of ``means``, ``(n,)``, with so many ``labels`` under them."""
    places = np.arange(len(means))
    axes.bar(places, means, width=0.62, color="#4a7ba6", zorder=2)
    for place, mean in zip(places, means, strict=True):
        axes.annotate(
            f"{mean:.3f}", (place, mean), (0, 3), textcoords="offset points", ha="center", va="bottom", fontsize=9
        )
    axes.set_xticks(places, labels, fontsize=9)
    axes.set_xlabel("rating that the user gave, hidden in training")
    axes.set_ylabel("mean P(y = 1 | observed)")
    axes.set_ylim(0, 1.08)
    axes.set_yticks(np.arange(0, 1.01, 0.2))
    axes.set_title(title, fontsize=10, loc="left", pad=8)
    axes.grid(axis="y", color="#d9d9d9", linewidth=0.7, zorder=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
