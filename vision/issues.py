"""Labels of a run from the most suspect to the least, how well that finds known mistakes, and a sheet of the worst."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recdenoise import checkpoint, detection
from recdenoise.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from vision.data import ImageData
    from vision.experiment import Prepared
    from vision.run import Run
    from vision.settings import Settings

SHEET_COLUMNS = 8
NAME_LENGTH = 13
"""Letters of a class's name that fit under a picture."""


@dataclass(frozen=True)
class Issues:
    """What a run thinks of every label that it saw, in the order of the data set.

    Attributes:
        row: ``(n,)`` place in the data set's training part.
        held_out: ``(n,)`` whether the label only chose the epoch.
        given, predicted: ``(n,)`` classes.
        clean_probability: ``(n,)`` P(given label is right), by the method.
        label_probability: ``(n,)`` softmax of the given label, by the network.
        true: ``(n,)`` classes, or ``None`` where nobody knows them.
        class_names: or ``None``.
        files: ``(n,)`` names of the image files, or ``None`` where the data are no folder.
    """

    row: NDArray[np.int64]
    held_out: NDArray[np.bool_]
    given: NDArray[np.int64]
    predicted: NDArray[np.int64]
    clean_probability: NDArray[np.float32]
    label_probability: NDArray[np.float32]
    true: NDArray[np.int64] | None = None
    class_names: tuple[str, ...] | None = None
    files: tuple[str, ...] | None = None

    @property
    def order(self) -> NDArray[np.int64]:
        """Places from the most suspect to the least.

        Where the method tells no difference, the network's own probability of the label does; rows that are equal in
        both keep the order of the data set.
        """
        return np.lexsort((self.label_probability, self.clean_probability))

    @property
    def suspicion(self) -> NDArray[np.int64]:
        """``(n,)`` the same as numbers: larger is more suspect, and rows without an order have the same one."""
        pairs = np.stack([self.clean_probability, self.label_probability], axis=1)
        return -np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)

    @property
    def wrong(self) -> NDArray[np.bool_] | None:
        """Which labels are known to be wrong."""
        return None if self.true is None else self.given != self.true

    def name(self, label: int) -> str:
        """A class for people."""
        return str(label) if self.class_names is None else self.class_names[label]

    def table(self) -> pd.DataFrame:
        """Every label, the most suspect first: rank, row, part, given, predicted, p_wrong, and what else is known."""
        import pandas as pd

        order = self.order
        columns: dict[str, Any] = {
            "rank": np.arange(1, len(order) + 1),
            "row": self.row[order],
            "part": np.where(self.held_out[order], "valid", "train"),
            "given": self.given[order],
            "predicted": self.predicted[order],
            "p_wrong": 1.0 - self.clean_probability[order].astype(np.float64),
        }
        if self.class_names is not None:
            columns["given_name"] = [self.name(label) for label in columns["given"]]
            columns["predicted_name"] = [self.name(label) for label in columns["predicted"]]
        if self.true is not None:
            columns["true"] = self.true[order]
            columns["wrong"] = (columns["true"] != columns["given"]).astype(int)
        if self.files is not None:
            columns["file"] = [self.files[place] for place in order]
        return pd.DataFrame(columns)

    def measure(self) -> dict[str, detection.Detection]:
        """How well wrong labels are found, by the method and by the network's probability of the label.

        Raises:
            UserError: the true labels are not known, or no label is wrong, or every one.
        """
        wrong = self.wrong
        if wrong is None:
            raise UserError("No true labels are known: there is nothing to measure against.")
        scores: dict[str, NDArray[Any]] = {
            "this ranking": self.suspicion,
            "by the network's loss": -self.label_probability,
        }
        return {name: detection.measure(score, wrong) for name, score in scores.items()}


def find(folder: Path, settings: Settings, prepared: Prepared, run: Run) -> Issues:
    """What a finished run thinks of its labels.

    Args:
        folder: of the run; its ``labels.npz`` is read.
        settings, prepared, run: as :func:`vision.experiment.load` gives them.

    Raises:
        UserError: ``labels.npz`` is missing, broken, or of other data.
    """
    saved = read_labels(folder / "labels.npz")
    rows = np.concatenate(prepared.rows)
    order = np.argsort(rows, kind="stable")
    parts = [part for part in (prepared.train, prepared.valid) if part is not None]
    given = np.concatenate([part.labels.cpu().numpy() for part in parts])[order]
    if not (np.array_equal(saved["row"], rows[order]) and np.array_equal(saved["given"], given)):
        raise UserError(f"{folder}/labels.npz is of other labels than {settings.dataset} holds now.")
    logits = torch.cat([run.logits(part.to(run.task.device)) for part in parts]).float()[torch.from_numpy(order)]
    probability = torch.softmax(logits, dim=1).cpu().numpy()
    return Issues(
        row=rows[order],
        held_out=np.isin(rows[order], prepared.rows[1]),
        given=given,
        predicted=probability.argmax(1),
        clean_probability=saved["clean_probability"],
        label_probability=probability[np.arange(len(given)), given],
        true=saved.get("true"),
        class_names=prepared.train.class_names,
        files=file_names(settings, rows[order]),
    )


def read_labels(path: Path) -> dict[str, NDArray[Any]]:
    """The columns of ``labels.npz``. Raises ``UserError`` where it is missing or broken."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise UserError(f"{path} is missing; finish the run with: recdenoise vision train --resume RUN.") from None
    except Exception as error:  # zipfile, zlib and numpy each raise their own
        raise UserError(f"{path} cannot be read: {error}.") from error
    if missing := {"row", "given", "clean_probability"} - found.keys():
        raise UserError(f"{path} has no {', '.join(sorted(missing))}: recdenoise did not write it.")
    return found


def file_names(settings: Settings, rows: NDArray[np.int64]) -> tuple[str, ...] | None:
    """Names of the image files of these rows, within the folder; ``None`` for data that are no folder."""
    from vision import data
    from vision.data.folders import FolderImages

    folder = Path(settings.dataset)
    if not folder.is_dir():
        return None
    images = data.load(settings.dataset, memory=0, **settings.reading).images  # looks at the files' heads alone
    assert isinstance(images, FolderImages)
    return tuple(str(images.paths[row].relative_to(folder)) for row in rows)


def pictures(prepared: Prepared, rows: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
    """``(H, W)`` or ``(H, W, 3)`` pixels of some rows of the data set."""
    parts: tuple[ImageData | None, ImageData | None] = (prepared.train, prepared.valid)
    found: dict[int, NDArray[np.uint8]] = {}
    for part, numbers in zip(parts, prepared.rows, strict=True):
        places = np.flatnonzero(np.isin(numbers, rows))
        if part is None or len(places) == 0:
            continue
        images = part.images[torch.from_numpy(places)].cpu().permute(0, 2, 3, 1).numpy()
        found |= dict(zip(numbers[places].tolist(), images, strict=True))
    return [found[row][..., 0] if found[row].shape[2] == 1 else found[row][..., :3] for row in rows.tolist()]


def write_sheet(issues: Issues, prepared: Prepared, path: Path, number: int, title: str) -> None:
    """A PNG of the most suspect images, each with its given and its predicted label.

    Where true labels are known, a red frame marks a label that is wrong and a grey one a label that is right.

    Args:
        issues: what to show.
        prepared: holds the images.
        path: of the PNG.
        number: images at most.
        title: above them.
    """
    from recdenoise.reports.charts import FAINT, drawing

    chosen = issues.order[:number]
    shown = pictures(prepared, issues.row[chosen])
    columns = min(SHEET_COLUMNS, len(chosen))
    rows = -(-len(chosen) // columns)
    wrong = issues.wrong
    with drawing() as plt:
        size = (max(1.25 * columns, 5.2), 1.72 * rows + 0.5)
        figure, grid = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
        for axes in grid.flat[len(chosen) :]:
            axes.set_axis_off()
        for axes, place, pixels in zip(grid.flat, chosen, shown, strict=False):
            axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            given, predicted = (short(issues.name(int(v[place]))) for v in (issues.given, issues.predicted))
            axes.set_xlabel(f"given: {given}\npred.: {predicted}", fontsize=7.5, loc="left")
            axes.set_title(f"row {issues.row[place]}", fontsize=6.5, pad=2)
            for spine in axes.spines.values():
                spine.set_visible(True)
                spine.set_color("#c2291e" if wrong is not None and wrong[place] else FAINT)
                spine.set_linewidth(2.0 if wrong is not None else 0.8)
        figure.suptitle(title, fontsize=9, x=0.01, ha="left")
        with checkpoint.atomic_file(path) as file:
            figure.savefig(file, dpi=140, format="png", metadata={"Software": None})


def short(name: str) -> str:
    """A class's name, cut to what fits under a picture."""
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…"
