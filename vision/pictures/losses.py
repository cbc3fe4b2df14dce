"""Losses of right and of wrong labels: what the small-loss trick lives on (DeNLL, Figure 1c)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recdenoise import checkpoint, detection, objectives, seeds
from recdenoise.errors import UserError
from recdenoise.reports import charts
from vision.pictures.runs import Opened, open_runs

CLEAN, WRONG = "label right", "label wrong"


@dataclass(frozen=True)
class LossRecord:
    """The losses of one run's training images.

    Attributes:
        name: of the run in pictures.
        end: whose weights: ``last`` or ``best_val``.
        loss: ``(n,)`` float64 cross-entropy of the given label, in nats, images not augmented.
        wrong: ``(n,)`` whether the given label is known to be wrong.
    """

    name: str
    end: str
    loss: NDArray[np.float64]
    wrong: NDArray[np.bool_]

    @property
    def auc(self) -> float:
        """Chance that a wrong label has a larger loss than a right one; 0.5 by guessing."""
        return detection.auc(self.loss, self.wrong)

    @property
    def scaled(self) -> NDArray[np.float64]:
        """``(n,)`` losses on a scale from the least, 0, to the largest, 1, which data sets can be compared on."""
        low, high = self.loss.min(), self.loss.max()
        return np.zeros_like(self.loss) if high == low else (self.loss - low) / (high - low)

    def drawn(self, number: int) -> LossRecord:
        """``number`` right labels and ``number`` times the share of wrong ones wrong labels, as print draws them.

        Fewer where there are not so many.
        """
        rng = np.random.default_rng(seeds.derive(0, "losses drawn"))
        keep = []
        for flag, wanted in ((False, number), (True, round(number * float(self.wrong.mean())))):
            places = np.flatnonzero(self.wrong == flag)
            keep.append(rng.permutation(places)[: max(1, wanted)])
        rows = np.sort(np.concatenate(keep))
        return LossRecord(self.name, self.end, self.loss[rows], self.wrong[rows])

    def histogram(self, bins: int) -> tuple[NDArray[np.float64], dict[str, NDArray[np.int64]]]:
        """Edges ``(bins + 1,)`` on the scale of :attr:`scaled`, and images ``(bins,)`` of each kind between them."""
        edges = np.linspace(0.0, 1.0, bins + 1)
        kinds = {CLEAN: ~self.wrong, WRONG: self.wrong}
        return edges, {kind: np.histogram(self.scaled[mask], edges)[0] for kind, mask in kinds.items()}


def losses_of(opened: Opened) -> LossRecord:
    """Losses of the images that a run learned from.

    Raises:
        UserError: which labels are wrong is not known, or none is, or all are.
    """
    train, run = opened.prepared.train, opened.run
    if train.true_labels is None:
        raise UserError(f"{opened.folder}: which labels are wrong is not known; true labels must stand beside them.")
    wrong = (train.labels != train.true_labels).cpu().numpy()
    if wrong.all() or not wrong.any():
        raise UserError(f"{opened.folder}: {'every' if wrong.any() else 'no'} label is wrong, nothing to compare.")
    logits = run.logits(train.to(run.task.device)).double().cpu()
    loss = objectives.classification_loss(logits, train.labels.cpu())
    if not bool(torch.isfinite(loss).all()):
        raise UserError(f"{opened.folder}: a loss is not finite; the network's answers are broken.")
    return LossRecord(opened.name, run.used, loss.numpy(), wrong)


def write_losses(
    folders: Sequence[Path],
    out: Path,
    *,
    names: Sequence[str] = (),
    ends: Sequence[str] = ("last",),
    bins: int = 40,
    sample: int | None = None,
    device: str | None = None,
) -> tuple[list[LossRecord], list[Path]]:
    """Histograms of the losses of right and of wrong labels: ``losses.png`` and ``losses.csv``.

    Runs may be of different data: losses are scaled to 0..1 within each run, as in print.

    Args:
        folders: of finished runs.
        out: folder to write to.
        names: one a run; see :func:`vision.pictures.runs.open_runs`.
        ends: weights to look with: ``last``, ``best_val``, or both.
        bins: of a histogram.
        sample: draw so many right labels and a matching number of wrong ones (print: 1000); ``None`` takes all.
        device: where networks answer.

    Returns:
        A record for every run and end, and the paths.

    Raises:
        UserError: see :func:`losses_of`; a folder that is no finished run.
    """
    if bins < 2 or (sample is not None and sample < 1):
        raise UserError(f"There are {bins} bins and a sample of {sample}; give 2 bins or more and 1 image or more.")
    records = []
    for opened in open_runs(folders, names, device=device):
        for end in ends:
            opened.run.use(end)
            record = losses_of(opened)
            records.append(record if sample is None else record.drawn(sample))
    picture, table = out / "losses.png", out / "losses.csv"
    checkpoint.write_text(table, _csv(records, bins))
    several = len(ends) > 1
    charts.write_png([panel(record, bins, several) for record in records], picture, len(ends) if several else 2)
    return records, [picture, table]


def panel(record: LossRecord, bins: int, tell_end: bool = True) -> charts.Panel:
    """One histogram: filled for right labels, an outline with stripes for wrong ones."""
    edges, counts = record.histogram(bins)

    def draw(axes: Any) -> None:
        axes.stairs(counts[CLEAN], edges, fill=True, color=charts.PALETTE[4], alpha=0.55, label=CLEAN)
        style = {"facecolor": "none", "edgecolor": charts.PALETTE[2], "linewidth": 1.4, "hatch": "////"}
        axes.stairs(counts[WRONG], edges, fill=True, label=WRONG, **style)
        axes.set_xlim(0, 1)
        axes.set_xlabel("loss, scaled to 0..1")
        axes.set_ylabel("images")
        axes.set_title(f"{record.name}{f', {record.end}' if tell_end else ''}\nAUC {record.auc:.3f}")
        charts.legend_below(axes, 2)

    right = int((~record.wrong).sum())
    words = f"{record.name}, {record.end}: AUC {record.auc:.4f} of {right} right and {record.wrong.sum()} wrong labels"
    return charts.Panel(draw, words, height=2.9)


def _csv(records: Sequence[LossRecord], bins: int) -> str:
    from vision.disagreement_report import as_csv

    rows = []
    for record in records:
        low, high = float(record.loss.min()), float(record.loss.max())
        edges, counts = record.histogram(bins)
        for kind, numbers in counts.items():
            for place, count in enumerate(numbers.tolist()):
                ends = {"from": low + (high - low) * edges[place], "to": low + (high - low) * edges[place + 1]}
                scaled = {"scaled_from": edges[place], "scaled_to": edges[place + 1]}
                rows.append(
                    {
                        "run": record.name,
                        "weights": record.end,
                        "auc": record.auc,
                        "labels": kind.removeprefix("label "),
                        **scaled,
                        **ends,
                        "images": count,
                    }
                )
    return as_csv(rows)
