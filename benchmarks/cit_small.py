"""Does CIT keep what it should where frames mislead? Framed sets V2, V3 and V4 of a small training set, on one core.

Run ``python -m benchmarks.cit_small``. Every version gives each image a frame whose colour follows a property A of the
class, which several classes share, and a bias B, which belongs to the class in training and not in the test (Qin et
al., 2023, section V). Each seed draws the training images anew, the same for all versions and methods; the test images
are all of the test part, or the first so many. CIT trains by both terms of Eq. 12, and, as Algorithm 1 is printed, by
that of the drawn context alone. Accuracy is that of the last epoch's weights. A run is a file under ``--runs``: a
finished one is not repeated, and one with other settings is refused. ``REPORT.md`` and ``REPORT.csv`` (a row a run) are
written after every run. A claim holds where it holds for means over seeds. Exit status: 1 where every run was made and
a claim does not hold, else 0.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.pages import ADAM, facts, percent, seeds_of, told, write
from recdenoise import checkpoint
from recdenoise.errors import UserError
from recdenoise.reports.report_text import markdown_table
from recdenoise.seeds import generator
from vision import fit
from vision.data import ImageData, load
from vision.data.frames import framed, plan
from vision.networks.layers import pooled

VERSIONS = ("v2", "v3", "v4")
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "normal": ("Normal", {"name": "normal"}),
    "stratify_b": ("CIT, stratify B", {"name": "cit", "contexts": "stratify_b"}),
    "stratify_c_given_a": ("CIT, stratify C given A", {"name": "cit"}),
    "stratify_b_drawn": ("CIT, stratify B, Algorithm 1", {"name": "cit", "contexts": "stratify_b", "own_term": False}),
    "stratify_c_given_a_drawn": ("CIT, stratify C given A, Algorithm 1", {"name": "cit", "own_term": False}),
}
"""What is compared on every version: how the table calls it, and the method."""
LOSSES = {"Eq. 12": ("stratify_b", "stratify_c_given_a")}
LOSSES["Algorithm 1"] = ("stratify_b_drawn", "stratify_c_given_a_drawn")
"""The two forms of CIT under either of its losses: with the own context's term, and with the drawn context's alone."""
PLAIN = "plain"
"""Version of the images without frames, on which Normal alone is run."""

RUN: dict[str, Any] = {**ADAM, "schedule": "step", "crop_pad": 2, "channels_last": True, "keep": "last"}
"""The run's options, the same for all."""
CHANNELS = (16, 32, 64)
NEAR, BELOW, AGREE = 0.1, 0.03, 0.02
"""Points: how near to the share of A the baseline must come; how far below the plain images CIT may stay; how far apart
its two forms may be."""


class Network(nn.Module):
    """Three convolutions of stride 2, each with a norm; mean pooling; a Linear.

    Args:
        in_channels: of the images.
        n_classes: outputs.
    """

    def __init__(self, in_channels: int, n_classes: int) -> None:
        super().__init__()
        widths, layers = (in_channels, *CHANNELS), []
        for inputs, outputs in zip(widths, CHANNELS, strict=False):
            layers += [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.features, self.fc = nn.Sequential(*layers), nn.Linear(CHANNELS[-1], n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n, n_classes)``."""
        return self.fc(pooled(self.features(x)))


@dataclass(frozen=True)
class Result:
    """One finished run.

    Attributes:
        version: of the frames, or ``plain``.
        method: a key of :data:`METHODS`.
        seed: of the images, the weights and all else.
        accuracy: on the test images, a share.
        object_only, background_only: the same with only the content, or only the frame; -1 for Normal.
        seconds: of the processor, for the whole run.
    """

    version: str
    method: str
    seed: int
    accuracy: float
    object_only: float
    background_only: float
    seconds: float


def part(data: ImageData, images: int, seed: int | None) -> ImageData:
    """So many images, drawn by the seed, or the first."""
    if images >= len(data):
        return data
    order = torch.arange(len(data))
    if seed is not None:
        order = torch.randperm(len(data), generator=generator("cpu", seed, "images used"))
    return data.subset(order[:images].sort().values)


def one_run(version: str, method: str, seed: int, typed: argparse.Namespace) -> Result:
    """Train, or read what is finished. Raises ``UserError`` where that has other settings."""
    name = Path(typed.dataset).name  # a path would lead out of the folder
    file = Path(typed.runs) / f"{name}-{typed.images}-{typed.epochs}-{version}-{method}-{seed}.json"
    settings = {option: getattr(typed, option) for option in ("dataset", "images", "test_images", "epochs")}
    settings |= {"method": METHODS[method][1], "run": RUN, "channels": list(CHANNELS)}
    if file.is_file():
        record = json.loads(file.read_text(encoding="utf-8"))
        if record.get("settings") != settings:
            there = record.get("settings", "settings that it does not name")
            raise UserError(f"{file} is of a run with {there}; name another folder by --runs.")
        return Result(**record["result"])
    started = time.process_time()
    train = part(load(typed.dataset), typed.images, seed)
    test = part(load(typed.dataset, split="test"), typed.test_images, None)
    if version != PLAIN:
        train, test = framed(train, version), framed(test, version, "test")
    channels, classes = train.shape[0], train.n_classes
    result = fit(
        lambda: Network(channels, classes),
        train,
        method=METHODS[method][1],
        valid=0,
        test=test,
        seed=seed,
        epochs=typed.epochs,
        **RUN,
    )
    tests = result.measured.get("tests", {})
    content, frame = (
        tests[name]["last"]["accuracy"] if name in tests else -1.0 for name in ("object_only", "background_only")
    )
    accuracy, seconds = result.measured["test"]["last"]["accuracy"], time.process_time() - started
    found = Result(version, method, seed, accuracy, content, frame, round(seconds, 1))
    file.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write_json(file, {"settings": settings, "result": asdict(found)})
    return found


def mean(results: Sequence[Result], version: str, method: str, value: str = "accuracy") -> float | None:
    """Over the seeds that were run, or ``None``."""
    found = [getattr(each, value) for each in results if (each.version, each.method) == (version, method)]
    return statistics.fmean(found) if found else None


def claims(results: Sequence[Result], n_classes: int) -> list[tuple[str, bool]]:
    """What the paper says, as far as it was run, and whether it holds here."""
    said: list[tuple[str, bool]] = []
    plain = mean(results, PLAIN, "normal")
    for version in VERSIONS:
        base, name = mean(results, version, "normal"), version.upper()
        if base is not None and version == "v4":
            chance = 1 / n_classes
            said.append(
                (f"{name}: Normal at {100 * base:.1f} % is at or below chance, {100 * chance:g} %", base <= chance)
            )
        elif base is not None:
            share = (int(plan(version, n_classes).a.max()) + 1) / n_classes
            text = f"{name}: Normal at {100 * base:.1f} % is within {100 * NEAR:g} points of |A|/C, {100 * share:g} %"
            said.append((text, abs(base - share) <= NEAR))
        for loss, methods in LOSSES.items():
            forms = [form for form in (mean(results, version, method) for method in methods) if form is not None]
            if plain is None or len(forms) < 2:
                continue
            both = " and ".join(f"{100 * form:.1f} %" for form in forms)
            text = (
                f"{name}: both forms of CIT by {loss}, {both}, reach Normal without frames, {100 * plain:.1f} %, less "
            )
            said.append((f"{text}{100 * BELOW:g} points", min(forms) >= plain - BELOW))
            text = f"{name}: by {loss} they are within {100 * AGREE:g} points of each other"
            said.append((text, max(forms) - min(forms) <= AGREE))
    return said


def page(results: Sequence[Result], typed: argparse.Namespace, n_classes: int) -> str:
    """The report in Markdown."""
    columns = ["frames", "method", "accuracy", "content alone", "frame alone", "processor s a run"]
    rows = []
    for version, method in dict.fromkeys((each.version, each.method) for each in results):
        runs = [each for each in results if (each.version, each.method) == (version, method)]
        cells = []
        for value in ("accuracy", "object_only", "background_only"):
            shares = [getattr(each, value) for each in runs]
            cells.append("–" if shares[0] < 0 else percent(shares))
        seconds = statistics.fmean(each.seconds for each in runs)
        rows.append(["none" if version == PLAIN else version.upper(), METHODS[method][0], *cells, f"{seconds:.0f}"])
    return "\n".join(
        [
            f"# {typed.dataset}: training through misleading frames",
            "",
            "Accuracy on the test images in percent, mean and standard deviation over seeds, of the last epoch's "
            "weights. In training the frame tells the class; in the test its bias does not.",
            "",
            *markdown_table(columns, rows),
            "",
            *[f"- {'Holds' if held else '**Does not hold**'}: {text}." for text, held in claims(results, n_classes)],
            "",
            *facts(
                "cit_small",
                f"Seeds: {seeds_of(results)}; {typed.images} training images, drawn by the seed; {typed.test_images} "
                "test images",
                f"Network: three convolutions of stride 2 with {', '.join(map(str, CHANNELS))} channels",
                f"Run: {told({'epochs': typed.epochs, **RUN})}",
            ),
            "",
        ]
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What was typed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cit_small", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--versions", nargs="+", choices=VERSIONS, default=list(VERSIONS), metavar="VERSION")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="METHOD")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ...")
    parser.add_argument("--epochs", type=int, default=60, help="of every run (default 60)")
    parser.add_argument("--images", type=int, default=2000, help="training images, drawn by the seed")
    parser.add_argument("--test-images", type=int, default=2000, help="at most; the first of the test part")
    parser.add_argument("--dataset", default="fashion-mnist", help="a name or a file that vision.data.load reads")
    parser.add_argument("--runs", type=Path, default=Path("runs/cit-small"), help="folder of the runs")
    parser.add_argument("--report", type=Path, default=Path("docs/results/cit-framed-fashion-2000"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, seed by seed, and write the report after each run."""
    typed = parse(arguments)
    torch.set_num_threads(1)
    results: list[Result] = []
    try:
        n_classes = load(typed.dataset).n_classes
        for seed in range(typed.seeds):
            for version, method in [(PLAIN, "normal"), *((v, m) for v in typed.versions for m in typed.methods)]:
                results.append(one_run(version, method, seed, typed))
                write(typed.report, page(results, typed, n_classes), rows=results)
                last = results[-1]
                print(f"{version:6} {method:20} seed {seed}  {last.accuracy:.4f}  {last.seconds:.0f} s", flush=True)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    found = claims(results, n_classes)
    for text, held in found:
        print(f"{'holds' if held else 'does not hold'}: {text}")
    return 0 if all(held for _, held in found) else 1


if __name__ == "__main__":
    sys.exit(main())
