"""`benchmark detection`: its plan, its runs in this process, and its report against the files of the runs."""

from __future__ import annotations

import csv
import json
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import data_recipes
from recdenoise import own_data_commands
from recdenoise.reports import detection
from recdenoise.reports.workers import Job
from tests.command import mistake, output, run

OPTIONS = ("--set", "epochs=2", "--set", "train_batch_size=64", "--set", "embedding_size=8")


def run_here(jobs: Sequence[Job], workers: int) -> dict[str, str]:
    """The jobs one after the other, as their processes would run them."""
    failed = {}
    for job in jobs:
        if not job.finished:
            job.folder.mkdir(parents=True, exist_ok=True)
            result = run(*job.arguments)
            if result.exit_code:
                failed[job.name] = result.stderr
    return failed


@pytest.fixture(scope="module")
def finished(built: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of an experiment with two methods and two seeds, and what the command printed."""
    out = tmp_path_factory.mktemp("detection")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_data_commands, "run_with_progress", run_here)
        patch.chdir(out)
        words = ("--dataset", built, "--models", "GMF", "--methods", "normal", "deca_p", "--seeds", "2")
        return out, output("benchmark", "detection", *words, *OPTIONS, "--out", "d")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_run_is_there_twice(finished: tuple[Path, str]) -> None:
    out, _ = finished
    names = [f"tiny-clean-GMF-{method}-{seed}" for method in ("normal", "deca_p") for seed in (2020, 2021)]
    for half in ("as-it-is", "random-0.2"):
        assert sorted(path.name for path in (out / "d" / half).iterdir()) == sorted(names)
    for seed in (2020, 2021):
        copy = out / "d" / "data" / f"tiny-clean-random-0.2-{seed}" / "clean" / "tiny"
        assert data_recipes.load_manifest(copy)["derived"]["seed"] == seed
        for method in ("normal", "deca_p"):
            config = (out / "d" / "random-0.2" / f"tiny-clean-GMF-{method}-{seed}" / "config.yaml").read_text()
            assert f"tiny-clean-random-0.2-{seed}" in config


def test_the_report_is_what_the_files_say(finished: tuple[Path, str]) -> None:
    out, printed = finished
    report = out / "docs" / "results" / "detection-tiny-random-0.2"
    assert f"report: {report.relative_to(out)}.md" in printed
    (normal, deca_p) = rows(report.with_name(report.name + ".csv"))
    assert (normal["method"], deca_p["method"], deca_p["seeds"]) == ("Normal", "DeCA(p)", "2")
    folders = [out / "d" / "random-0.2" / f"tiny-clean-GMF-deca_p-{seed}" for seed in (2020, 2021)]
    found = [read_json(folder / "detection.json") for folder in folders]
    for name in detection.FOUND:
        values = [record[name] for record in found]
        assert float(deca_p[f"{name}_mean"]) == pytest.approx(statistics.fmean(values))
        assert float(deca_p[f"{name}_std"]) == pytest.approx(statistics.stdev(values))
        rarest = [record["rarest_first"][name] for record in found]
        assert float(normal[f"rarest_first_{name}_mean"]) == pytest.approx(statistics.fmean(rarest))
    for metric in detection.TESTED:
        noisy = [read_json(folder / "result.json")["test"][metric] for folder in folders]
        plain = [read_json(out / "d" / "as-it-is" / f.name / "result.json")["test"][metric] for f in folders]
        assert float(deca_p[f"{metric}_noisy_mean"]) == pytest.approx(statistics.fmean(noisy))
        assert float(deca_p[f"{metric}_plain_mean"]) == pytest.approx(statistics.fmean(plain))
        kept = [a / b for a, b in zip(noisy, plain, strict=True)]
        assert float(deca_p[f"{metric}_kept_mean"]) == pytest.approx(statistics.fmean(kept))
    text = report.with_name(report.name + ".md").read_text()
    assert f"| DeCA(p) | {float(deca_p['auc_mean']):.4f} ± {float(deca_p['auc_std']):.4f} |" in text
    assert f"{float(deca_p['recall@20_kept_mean']):.1%}" in text
    difference = float(deca_p["auc_mean"]) - float(normal["auc_mean"])
    assert (
        f"against Normal {float(normal['auc_mean']):.4f} ± {float(normal['auc_std']):.4f} ({difference:+.4f})" in text
    )
    assert "Settings are the defaults" in text
    assert len(rows(report.with_name(report.name + "-runs.csv"))) == 8
    page = report.with_name(report.name + ".html").read_text()
    assert page.count("<svg") == 3
    for name in ("auc", "average_precision"):
        drawn = f"Normal {float(normal[f'{name}_mean']):.4f}; DeCA(p) {float(deca_p[f'{name}_mean']):.4f}; "
        drawn += f"{detection.RAREST} {float(normal[f'rarest_first_{name}_mean']):.4f}"
        assert f"{detection.FOUND[name]}: {drawn}" in page
    assert f"DeCA(p), with noise {float(deca_p['recall@20_noisy_mean']):.4f}" in page


def test_finished_runs_and_copies_stay(
    finished: tuple[Path, str], built: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished[0] / "d", "d")
    monkeypatch.setattr(own_data_commands, "run_with_progress", run_here)
    stamps = {path: path.stat().st_mtime_ns for path in Path("d").rglob("*.json")}
    words = ("--dataset", built, "--models", "GMF", "--methods", "normal", "deca_p", "--seeds", "2")
    shutil.rmtree("d/random-0.2/tiny-clean-GMF-normal-2021")
    incomplete = output("benchmark", "detection", *words, *OPTIONS, "--out", "d", "--report", "r", "--report-only")
    assert "1 of 8 runs have not finished" in incomplete
    assert "have not finished" not in output("benchmark", "detection", *words, *OPTIONS, "--out", "d", "--report", "r")
    again = {path: stamp for path, stamp in stamps.items() if "normal-2021" not in str(path)}
    assert {path: path.stat().st_mtime_ns for path in again} == again
    other = ("--set", "epochs=3", "--set", "train_batch_size=64", "--set", "embedding_size=8")
    assert "holds a run with epochs = 2, here it is 3" in mistake(
        "benchmark", "detection", *words, *other, "--out", "d", "--report", "r"
    )


def test_the_published_settings_and_both_schedules_of_t_ce() -> None:
    table = detection.make_table(detection.Noise("ml-100k", "clean", 0.2, "random"), (), ())
    assert (table.preset, table.models, len(table.methods)) == ("paper", detection.MODELS, 7)
    assert [variant.name for variant in table.variants_of("GMF", "t_ce")] == ["", "default_growth"]
    own = detection.make_table(detection.Noise("ml-100k", "clean", 0.2, "random"), ("BPR",), ("t_ce",))
    assert (own.preset, len(own.variants_of("BPR", "t_ce"))) == (None, 1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--rate", "1.5"), "The noise rate is 1.5"),
        (("--kind", "loud"), "Unknown kind of noise 'loud'"),
        (("--models", "GFM"), "Unknown model 'GFM'"),
        (("--methods", "deca_q"), "Did you mean 'deca_p'?"),
        (("--protocol", "dirty"), "Unknown protocol 'dirty'"),
        (("--dataset", "nowhere"), "nowhere"),
        (("--models", "GMF", "--seeds", "0"), "0 is not in the range"),
        (("--rate", "0.99"), "The catalogue is too small"),
        (("--report-only",), "There is no noisy copy"),
        (("--set", "epochs"), "KEY=VALUE"),
    ],
)
def test_mistakes_are_told_before_anything_runs(built: Path, here: Path, words: tuple[str, ...], said: str) -> None:
    given: list[str | Path] = [*words]
    given += [] if "--dataset" in words else ["--dataset", built]
    given += [] if "--models" in words else ["--models", "GMF", "--seeds", "1"]
    assert said in mistake("benchmark", "detection", "--out", "d", *given)
    assert not (here / "d").exists()


def test_a_run_that_fails_is_named(built: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_noisy(jobs: Sequence[Job], workers: int) -> dict[str, str]:
        run_here([job for job in jobs if "2020" in job.name], workers)
        return {job.name: "it broke" for job in jobs if "2021" in job.name}

    monkeypatch.setattr(own_data_commands, "run_with_progress", fail_noisy)
    words = (
        "--dataset",
        built,
        "--models",
        "GMF",
        "--methods",
        "normal",
        "--seeds",
        "2",
        "--out",
        "d",
        "--report",
        "r",
    )
    said = mistake("benchmark", "detection", *words, *OPTIONS)
    assert "2 of the runs failed" in said
    assert "random-0.2/tiny-clean-GMF-normal-2021: it broke" in said
    assert "2 of 4 runs have not finished" in Path("r.md").read_text()
