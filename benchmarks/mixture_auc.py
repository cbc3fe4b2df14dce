"""How well DivideMix's mixtures separate wrong labels from right ones on 5,000 images of Fashion-MNIST.

Run ``python -m benchmarks.mixture_auc``. Two small networks warm up on labels of which 40% were drawn anew; from then
on a mixture of two Gaussians on each one's losses divides the rows. The measure is the area under the ROC curve of the
posterior of small losses, against whether a label is right: the share of pairs of a right and a wrong label that the
posterior puts in order. The mean over both networks after the warm-up is judged; ``--divisions`` goes on training and
measures later ones too. ``REPORT.md`` and ``REPORT.csv`` (a row a network and a division) are written at the end. Exit
status: 1 where the first division of a seed is not above 0.9, else 0.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.pages import ADAM, facts, told, write
from recdenoise.denoisers import Stage
from recdenoise.detection import auc
from recdenoise.reports.report_text import markdown_table
from vision.methods.dividemix import DivideMix

LEAST = 0.9
"""What the area must be above, after the warm-up."""
IMAGES, NOISE, NETWORK, WARM = 5000, "symmetric-any:0.4", "convnet2", 3
RUN: dict[str, Any] = dict(ADAM)
"""The run's options."""


@dataclass(frozen=True)
class Division:
    """What one network's mixture says of the labels at the beginning of an epoch.

    Attributes:
        seed, epoch, network: which; epochs count from 1, those of the warm-up included.
        auc: area under the ROC curve of the posterior, right against wrong labels.
        labelled: share of the rows that are labelled.
        right: share of right labels among them.
        wrong: share of wrong labels among all rows.
    """

    seed: int
    epoch: int
    network: str
    auc: float
    labelled: float
    right: float
    wrong: float


class Enough(Exception):
    """The last division that was asked for has been made: what the epoch would learn from it is not needed."""


class Watched(DivideMix):
    """DivideMix that hands on what it has divided as soon as that is done."""

    handed: Callable[[int, DivideMix], None]

    def begin_epoch(self, stage: Stage, epoch: int) -> None:
        super().begin_epoch(stage, epoch)
        if stage.name == "train":
            self.handed(epoch, self)


def one_seed(seed: int, dataset: str, images: int | None, warm: int, divisions: int) -> list[Division]:
    """Train with one seed until so many divisions are made; both networks' of each."""
    from vision.experiment import build, prepare
    from vision.settings import resolve

    places: dict[str, Any] = {"noise": NOISE, "seed": seed, "valid": 0, "images": images}
    options: dict[str, Any] = {
        "run_options": {**RUN, "epochs": warm + divisions},
        "method_options": {"warm_epochs": float(warm)},
    }
    settings = resolve(dataset, NETWORK, "dividemix", **options, **places)
    prepared = prepare(settings)
    assert prepared.train.true_labels is not None
    right = (prepared.train.labels == prepared.train.true_labels).cpu()
    found: list[Division] = []

    def look(epoch: int, denoiser: DivideMix) -> None:
        for place, network in enumerate(("first", "second")):
            found.append(division(seed, warm + epoch + 1, network, denoiser.trust[place], denoiser.clean[place], right))
        if epoch + 1 == divisions:
            raise Enough

    run = build(replace(settings, method=Watched), prepared)
    assert isinstance(run.denoiser, Watched)
    run.denoiser.handed = look
    with contextlib.suppress(Enough):
        run.train(run.loop())
    return found


def division(seed: int, epoch: int, network: str, trust: Tensor, clean: Tensor, right: Tensor) -> Division:
    """Measure one mixture: ``(n,)`` posteriors, who is labelled, and whose label is right."""
    trust, clean = trust.cpu(), clean.cpu()
    area = auc((1.0 - trust.double()).numpy(), (~right).numpy())
    shares = [float(values.double().mean()) for values in (clean, right[clean], ~right)]
    return Division(seed, epoch, network, area, *shares)


def firsts(found: Sequence[Division], warm: int) -> dict[int, float]:
    """The area after the warm-up by seed, the mean of both networks'."""
    seeds = dict.fromkeys(division.seed for division in found)
    return {seed: statistics.fmean(d.auc for d in found if d.seed == seed and d.epoch == warm + 1) for seed in seeds}


def page(found: Sequence[Division], typed: argparse.Namespace, words: Sequence[str], seconds: float) -> str:
    """The report in Markdown."""
    rows = [
        [str(d.seed), str(d.epoch), d.network, f"{d.auc:.4f}", f"{d.labelled:.3f}", f"{d.right:.3f}", f"{d.wrong:.3f}"]
        for d in found
    ]
    columns = ["seed", "at the beginning of epoch", "network", "AUC", "labelled", "right among them", "wrong in all"]
    areas = firsts(found, typed.warm)
    each = ", ".join(f"{area:.4f} (seed {seed})" for seed, area in areas.items())
    return "\n".join(
        [
            f"# {typed.dataset}: how DivideMix's mixtures separate wrong labels from right ones",
            "",
            "The area under the ROC curve of the posterior of small losses, right against wrong labels, as an epoch "
            "begins: the first one after the warm-up, and later ones where they were asked for. Shares: of the rows "
            "that are labelled, of right labels among these, and of "
            "wrong labels in all rows.",
            "",
            f"After the warm-up, mean of both networks: {each}; required above {LEAST:g}.",
            "",
            *markdown_table(columns, rows),
            "",
            *facts(
                "mixture_auc",
                f"{typed.images} images, noise `{NOISE}`, network `{NETWORK}`, warm-up of {typed.warm} epochs, "
                f"{told(RUN)}",
                f"{seconds:.0f} s of processor time in all",
                packages=("torch", "scikit-learn", "numpy"),
                typed=words,
            ),
            "",
        ]
    )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """What was typed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mixture_auc", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ... (default 3)")
    parser.add_argument("--warm", type=int, default=WARM, help=f"epochs of the warm-up (default {WARM})")
    parser.add_argument("--divisions", type=int, default=1, help="to be measured, an epoch each (default 1)")
    parser.add_argument("--images", type=int, default=IMAGES, help=f"training images, drawn by the seed ({IMAGES})")
    parser.add_argument("--dataset", default="fashion-mnist")
    parser.add_argument("--report", type=Path, default=Path("docs/results/mixture-auc"))
    typed = parser.parse_args(arguments)
    if min(typed.seeds, typed.warm, typed.divisions) < 1:
        parser.error("--seeds, --warm and --divisions must be 1 or more")
    return typed


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, print, write the report and return the exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    typed = parse(words)
    torch.set_num_threads(1)
    found: list[Division] = []
    started = time.process_time()
    for seed in range(typed.seeds):
        found += one_seed(seed, typed.dataset, typed.images, typed.warm, typed.divisions)
        for d in found[-2 * typed.divisions :]:
            print(
                f"seed {d.seed}, epoch {d.epoch}, {d.network:6}: AUC {d.auc:.4f}, labelled {d.labelled:.3f}, "
                f"right among them {d.right:.3f}",
                flush=True,
            )
    areas = firsts(found, typed.warm)
    write(typed.report, page(found, typed, words, time.process_time() - started), rows=found)
    met = all(area > LEAST for area in areas.values())
    print(f"After the warm-up: {', '.join(f'{area:.4f}' for area in areas.values())}; required above {LEAST:g}.")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
