"""P(the click is real) for every training interaction: a table on disk and the picture of its mean per rating."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recdenoise import checkpoint
from recdenoise.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from recdenoise.recbole_adapter.experiment import Run

FORMATS = (".parquet", ".csv")


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

    Raises:
        UserError: there are no ratings.
    """
    if "rating" not in table:
        raise UserError("The data set has no ratings to compare with.")
    grouped = table.groupby("rating")["p_clean"].agg(["mean", "count"])
    return grouped.reset_index()


def plot_per_rating(table: pd.DataFrame, title: str, path: Path) -> None:
    """The paper's Figure 6 for one run: bars of the mean probability per rating, as a PNG.

    Args:
        table: from :func:`probability_table`, with ratings.
        title: names the run; stands above the bars.
        path: where the picture goes.

    Raises:
        UserError: no ratings, or the file cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    means = mean_per_rating(table)
    figure, axes = plt.subplots(figsize=(min(max(5.6, 0.95 * len(means)), 16), 3.4), layout="constrained")
    places = np.arange(len(means))
    axes.bar(places, means["mean"], width=0.62, color="#4a7ba6", zorder=2)
    for place, mean in zip(places, means["mean"], strict=True):
        axes.annotate(
            f"{mean:.3f}", (place, mean), (0, 3), textcoords="offset points", ha="center", va="bottom", fontsize=9
        )
    labels = [f"{r.rating:g}\nn = {r.count:,}" for r in means.itertuples(index=False, name="Row")]
    axes.set_xticks(places, labels, fontsize=9)
    axes.set_xlabel("rating that the user gave, hidden in training")
    axes.set_ylabel("mean P(y = 1 | observed)")
    axes.set_ylim(0, 1.08)
    axes.set_yticks(np.arange(0, 1.01, 0.2))
    axes.set_title(title, fontsize=10, loc="left", pad=8)
    axes.grid(axis="y", color="#d9d9d9", linewidth=0.7, zorder=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    with checkpoint.atomic_file(path) as file:
        figure.savefig(file, dpi=120, format="png", metadata={"Software": None})
    plt.close(figure)
