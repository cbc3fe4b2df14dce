"""Does DeNLL look at the object where labels go with the background? Its host, DeNLL, and DeNLL without its parts.

Run ``python -m benchmarks.denll_background``. The data are made of Fashion-MNIST, or MNIST: each object, at half its
size, stands at a random place of a 28 x 28 image of one of ten hues, drawn whatever the class is. A share of the
training labels is replaced by the number of the hue, so that noisy labels correlate with the background; the test
labels are true. A variant and seed is a run of its own under ``--runs``: a finished one is not repeated and an
interrupted one goes on.
``REPORT.md`` and ``REPORT.csv`` (a row a run) are written after every run.

Accuracy is that of the last epoch's weights on the clean test set. The correlation is Pearson's, between the network's
representation of a test image and that of its background alone (the object taken away), or of its foreground alone
(the background made the mean colour): over the features of each image, mean over images, and over the images for each
feature, mean over features. A claim holds where it holds for the mean over the seeds that both sides have. Exit status
0 whatever is found.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from benchmarks.pages import ADAM, facts, percent, seeds_of, told, write
from recdenoise import checkpoint
from recdenoise.errors import UserError
from recdenoise.reports.report_text import markdown_table
from recdenoise.seeds import generator
from vision import fit
from vision.data import ImageData, load
from vision.fitting import FitResult
from vision.networks.denll import DeNLLNetwork
from vision.networks.layers import pooled
from vision.pictures.correlation import pearson

SIZE, CLASSES = 28, 10
CHANNELS = (16, 32, 32)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "ce": ("CE, the host", {"name": "normal"}),
    "denll": ("DeNLL", {"name": "denll", "host": "ce"}),
    "without-lm": ("w/o LM", {"name": "denll", "host": "ce", "use_lm": False}),
    "without-dim": ("w/o DIM", {"name": "denll", "host": "ce", "use_dim": False}),
}
"""What is compared: how the table calls it, and the method."""

RUN: dict[str, Any] = {**ADAM, "channels_last": True, "keep": "last"}
"""The run's options, the same for all variants."""

POINTS = 0.05
"""Least that DeNLL must be ahead of its host by."""


@dataclass(frozen=True)
class Result:
    """One finished run; accuracy is a share, the correlations lie within -1 and 1. ``mask_object`` and
    ``mask_elsewhere`` are the mean of the mask over pixels of the object and over the others; not a number where there
    is no mask."""

    variant: str
    seed: int
    accuracy: float
    background: float
    foreground: float
    background_over_images: float
    foreground_over_images: float
    train_seconds: float
    processor_seconds: float
    mask_object: float = math.nan
    mask_elsewhere: float = math.nan


@dataclass(frozen=True)
class Scenes:
    """Objects in front of hues.

    Attributes:
        data: the images, with labels that are partly the hue's number.
        foregrounds, backgrounds: ``(N, 3, SIZE, SIZE)`` uint8, the same objects on the mean colour, and the same images
            without objects.
        objects: ``(N, 1, SIZE, SIZE)`` bool, the pixels of the object.
    """

    data: ImageData
    foregrounds: Tensor
    backgrounds: Tensor
    objects: Tensor


def hues() -> Tensor:
    """``(CLASSES, 3)`` colours at even distances around the circle, floats of 0 to 1."""
    angle = torch.arange(CLASSES) / CLASSES * 6
    offsets = torch.tensor([0.0, 4.0, 2.0])
    distance = ((angle.unsqueeze(1) + offsets) % 6 - 3).abs() - 1
    return 0.2 + 0.6 * distance.clamp(0, 1)


def scenes(source: ImageData, rate: float, draw: torch.Generator) -> Scenes:
    """Objects at half their size, white, at random places on random hues.

    Args:
        source: grey images ``(N, 1, 28, 28)``.
        rate: share of the labels that are replaced by the hue's number.
        draw: source of all draws.
    """
    n = len(source)
    assert isinstance(source.images, Tensor)
    small = functional.avg_pool2d(source.images.float() / 255, 2)
    side = small.shape[2]
    top, left = (torch.randint(0, SIZE - side + 1, (n,), generator=draw) for _ in range(2))
    objects = torch.zeros(n, 1, SIZE, SIZE)
    each, along = torch.arange(n).view(n, 1, 1), torch.arange(side)
    rows, columns = top.view(n, 1, 1) + along.view(1, side, 1), left.view(n, 1, 1) + along.view(1, 1, side)
    objects[each, 0, rows, columns] = small[:, 0]
    hue = torch.randint(0, CLASSES, (n,), generator=draw)
    backgrounds = hues()[hue].view(n, 3, 1, 1).expand(n, 3, SIZE, SIZE)
    images = torch.lerp(backgrounds, torch.ones(()), objects)
    foregrounds = torch.lerp(hues().mean(0).view(1, 3, 1, 1), torch.ones(()), objects)
    replaced = torch.rand(n, generator=draw) < rate
    labels = torch.where(replaced, hue, source.labels)
    data = ImageData(to_bytes(images), labels, CLASSES, true_labels=source.labels, name="scenes")
    return Scenes(data, to_bytes(foregrounds), to_bytes(backgrounds), objects > 0)


def to_bytes(images: Tensor) -> Tensor:
    """Floats of 0 to 1 as uint8."""
    return images.mul(255).round().to(torch.uint8)


class SmallNet(nn.Module):
    """Four convolutions with norms, the mean over the image, a Linear."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for outputs, stride in zip((*CHANNELS, CHANNELS[-1]), (1, 2, 2, 1), strict=True):
            layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            inputs = outputs
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(inputs, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n, CLASSES)`` of ``(n, 3, SIZE, SIZE)``."""
        return self.fc(pooled(self.features(x)))


@torch.no_grad()
def correlations(fitted: FitResult, test: Scenes) -> dict[str, float]:
    """Mean correlation of the representations of test images with those of their parts."""
    run = fitted.run
    run.denoiser.eval()

    def embedded(raw: Tensor) -> Tensor:
        return run.task.embed(run.watched, run.task.augmented(raw, torch.Generator(), train=False))[1]

    images = test.data.images
    assert isinstance(images, Tensor)
    looks = {"whole": images, "background": test.backgrounds, "foreground": test.foregrounds}
    found = {name: torch.cat([embedded(part) for part in raw.split(500)]) for name, raw in looks.items()}
    values = {}
    for part in ("background", "foreground"):
        values[part] = pearson(found["whole"], found[part], 1).nanmean().item()
        values[f"{part}_over_images"] = pearson(found["whole"], found[part], 0).nanmean().item()
    return values


@torch.no_grad()
def masks(fitted: FitResult, test: Scenes) -> dict[str, float]:
    """Mean of DeNLL's mask over the pixels of the objects, and over the others; nothing where there is no mask."""
    run = fitted.run
    if not isinstance(run.watched, DeNLLNetwork):
        return {}
    run.denoiser.eval()
    images = test.data.images
    assert isinstance(images, Tensor)
    parts = [run.task.augmented(raw, torch.Generator(), train=False) for raw in images.split(500)]
    mask = torch.cat([run.watched.mask(part).expand(len(part), -1, -1, -1) for part in parts])
    return {"mask_object": mask[test.objects].mean().item(), "mask_elsewhere": mask[~test.objects].mean().item()}


def one_run(variant: str, seed: int, typed: argparse.Namespace) -> Result:
    """Train, or read what is finished."""
    folder: Path = typed.runs / f"{variant}-{seed}"
    done, asked = folder / "result.json", ("dataset", "images", "test", "rate", "epochs", "schedule")
    settings = {name: getattr(typed, name) for name in asked}
    settings |= {"method": VARIANTS[variant][1], "run": RUN}
    if done.is_file():
        record = json.loads(done.read_text("utf-8"))
        if {**settings, **record["settings"]} != settings:  # early runs name neither method nor run
            raise UserError(f"{done} is of a run with {record['settings']}; name another folder by --runs.")
        return Result(**record["result"])
    folder.mkdir(parents=True, exist_ok=True)
    draw = generator("cpu", seed, "scenes")
    whole, held = load(typed.dataset, root=typed.root), load(typed.dataset, root=typed.root, split="test")
    train = scenes(whole.subset(torch.randperm(len(whole), generator=draw)[: typed.images]), typed.rate, draw)
    test = scenes(held.subset(torch.randperm(len(held), generator=draw)[: typed.test]), 0.0, draw)
    started, used = time.perf_counter(), time.process_time()
    fitted = fit(
        SmallNet,
        train.data,
        method=VARIANTS[variant][1],
        valid=0,
        test=test.data,
        seed=seed,
        epochs=typed.epochs,
        checkpoint_path=folder / "checkpoint.pt",
        **{**RUN, "schedule": typed.schedule},
    )
    spent, processed = time.perf_counter() - started, time.process_time() - used
    accuracy = fitted.measured["test"]["last"]["accuracy"]
    result = Result(
        variant,
        seed,
        accuracy,
        **correlations(fitted, test),
        train_seconds=spent,
        processor_seconds=processed,
        **masks(fitted, test),
    )
    known = {name: value for name, value in asdict(result).items() if value == value}  # JSON has no NaN
    checkpoint.write_json(done, {"settings": settings, "result": known})
    return result


def mean_of(results: Sequence[Result], variant: str, value: str) -> float:
    """The mean over seeds of a value; NaN where there is no run."""
    found = [getattr(result, value) for result in results if result.variant == variant]
    return statistics.fmean(found) if found else math.nan


def difference(results: Sequence[Result], first: str, second: str, value: str) -> float:
    """The mean of ``first`` less ``second`` over the seeds that both have; NaN where there are none."""
    by_seed = [{r.seed: getattr(r, value) for r in results if r.variant == variant} for variant in (first, second)]
    shared = by_seed[0].keys() & by_seed[1].keys()
    return statistics.fmean(by_seed[0][seed] - by_seed[1][seed] for seed in shared) if shared else math.nan


def claims(results: Sequence[Result]) -> list[tuple[str, bool]]:
    """What is said of the means over shared seeds, and whether it holds."""
    gain = difference(results, "denll", "ce", "accuracy")
    found = [(f"DeNLL is at least {100 * POINTS:g} points ahead of its host: {100 * gain:+.1f}", gain >= POINTS)]
    for value, words in (("background", "over features"), ("background_over_images", "over images")):
        change = difference(results, "denll", "ce", value)
        found.append((f"Its correlation with the background is lower, {words}: {change:+.3f}", change < 0))
    for variant in ("without-lm", "without-dim"):
        lost = difference(results, variant, "denll", "accuracy")
        found.append((f"{VARIANTS[variant][0]} is behind DeNLL: {100 * lost:+.1f} points", lost < 0))
    return [claim for claim in found if "nan" not in claim[0]]


def page(results: Sequence[Result], typed: argparse.Namespace) -> str:
    """The report in Markdown."""
    measures = [field.name for field in fields(Result) if field.name.startswith(("background", "foreground"))]
    rows = []
    for variant, (title, method) in VARIANTS.items():
        runs = [result for result in results if result.variant == variant]
        if not runs:
            continue
        values = [f"{mean_of(runs, variant, name):.3f}" for name in measures]
        of_mask = [mean_of(runs, variant, name) for name in ("mask_object", "mask_elsewhere")]
        values += ["–" if math.isnan(value) else f"{value:.2f}" for value in of_mask]
        seconds = f"{mean_of(runs, variant, 'processor_seconds'):.0f}"
        accuracy = percent([result.accuracy for result in runs])
        rows.append([title, told(method), str(len(runs)), accuracy, *values, seconds])
    columns = [
        "variant",
        "method",
        "seeds",
        "accuracy",
        *(name.replace("_", " ") for name in measures),
        "mask on the object",
        "elsewhere",
        "processor s a run",
    ]
    return "\n".join(
        [
            "# DeNLL where noisy labels go with the background",
            "",
            f"{typed.images} images: {typed.dataset} objects of half their size at random places of 28 x 28 pixels, on "
            f"ten hues; {100 * typed.rate:g}% of the training labels are replaced by the number of the hue. Accuracy "
            f"in percent on {typed.test} test images with true labels, last epoch, mean and deviation over seeds. The "
            "other columns are mean correlations of the image's representation with that of its background alone and "
            "of its foreground alone: over the features of each image, and over the images for each feature; and the "
            "mean of the mask over pixels of the object and over all others.",
            "",
            *markdown_table(columns, rows),
            "",
            *(f"- {'Holds' if held else '**Does not hold**'}: {words}." for words, held in claims(results)),
            "",
            *facts(
                "denll_background",
                f"Seeds: {seeds_of(results)}; each draws images, hues, places, replaced labels and weights, the same "
                "for all variants",
                f"Network: four 3x3 convolutions of {', '.join(map(str, (*CHANNELS, CHANNELS[-1])))} channels, with "
                "norms",
                f"Run: {told({'epochs': typed.epochs, **RUN, 'schedule': typed.schedule})}",
            ),
            "",
        ]
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.denll_background", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ... (default 3)")
    parser.add_argument(
        "--dataset",
        choices=["fashion-mnist", "mnist"],
        default="fashion-mnist",
        help="whose objects: clothes, or digits, which are easier to tell apart (default fashion-mnist)",
    )
    parser.add_argument("--images", type=int, default=3000, help="training images (default 3000)")
    parser.add_argument("--test", type=int, default=2000, help="test images (default 2000)")
    parser.add_argument("--rate", type=float, default=0.3, help="share of replaced labels (default 0.3)")
    parser.add_argument("--epochs", type=int, default=12, help="of every run (default 12)")
    parser.add_argument(
        "--schedule",
        choices=["constant", "cosine"],
        default=RUN["schedule"],
        help="of the learning rate (default constant); a cosine to zero makes the last epoch less a matter of chance",
    )
    parser.add_argument("--finished", action="store_true", help="train nothing: report the runs that are finished")
    parser.add_argument("--root", help="folder of data sets (default the usual places)")
    parser.add_argument("--runs", type=Path, default=Path("runs/denll-background"), help="folder of the runs")
    parser.add_argument("--report", type=Path, default=Path("docs/results/denll-background"))
    options = parser.parse_args(arguments)
    for name in ("seeds", "images", "test", "epochs"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be 1 or more")
    if not 0 <= options.rate <= 1:
        parser.error("--rate must be 0 to 1")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, seed by seed, and write the report after each run."""
    typed = parse(arguments)
    torch.set_num_threads(1)
    results: list[Result] = []
    for seed in range(typed.seeds):
        for variant in typed.variants:
            if typed.finished and not (typed.runs / f"{variant}-{seed}" / "result.json").is_file():
                continue
            try:
                result = one_run(variant, seed, typed)
            except UserError as error:
                print(error, file=sys.stderr)
                return 2
            results.append(result)
            write(typed.report, page(results, typed), rows=results)
            print(
                f"{variant:12} seed {seed}  accuracy {result.accuracy:.4f}  background {result.background:.3f} "
                f"{result.background_over_images:.3f}  foreground {result.foreground:.3f} "
                f"{result.foreground_over_images:.3f}  {result.processor_seconds:.0f} s of processor",
                flush=True,
            )
    for words, held in claims(results):
        print(f"{'holds' if held else 'does not hold'}: {words}")
    print(f"{typed.report}.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
