"""``recdenoise vision benchmark deca-table4``: its order, its settings, its restarts, and what its report says."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import yaml

from recdenoise.reports import workers
from recdenoise.reports.workers import Active, Expectation, Job
from tests.command import environment, mistake, output
from tests.command import run as run_command
from tests.test_html_report import Reader
from vision.tables import jobs, plan, report
from vision.tables.plan import Cell, Part
from vision.tables.rows import collect, rows_of
from vision.tables.table import read_table

TABLE = read_table("deca-table4")
METHODS = ("normal", "deca_p")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images whose class is a bright row."""
    draws, parts = np.random.default_rng(0), dict[str, Any]()
    for part, n in (("", 60), ("_test", 30)):
        labels = np.arange(n) % 3
        images = draws.integers(0, 60, (n, 6, 6), dtype=np.uint8)
        images[np.arange(n), 2 * labels] += 150
        parts |= {f"images{part}": images, f"labels{part}": labels}
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    np.savez(path, **parts)
    return path


def words(tiny: Path, *more: str | Path) -> list[str | Path]:
    base = ["vision", "benchmark", "deca-table4", "--datasets", tiny, "--network", "mlp", "--clean", "6"]
    return [*base, "--set", "epochs=2", "--set", "batch_size=16", "--set", "device=cpu", *more]


@pytest.fixture(scope="module")
def grid(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Cell], Path]:
    """Sixteen finished runs: two methods, two ratios, two seeds, two rates. No processes of their own."""
    out = tmp_path_factory.mktemp("runs")
    options = {"epochs": 2, "batch_size": 16, "device": "cpu"}
    common: dict[str, Any] = {"datasets": (str(tiny),), "network": "mlp", "methods": METHODS, "options": options}
    cells = plan.plan(TABLE, Part(**common, conditions=(0.4, 0.2), seeds=2, rates=(0.1, 0.01)))
    for job in jobs.jobs_of(cells, out):
        result = run_command(*job.arguments)
        assert result.exit_code == 0, result.stderr
        assert job.finished
    return cells, out


def test_the_grid_begins_with_what_decides_most() -> None:
    cells = plan.plan(TABLE, Part())
    assert len(cells) == 2 * 5 * 4 * 3
    assert [c.group for c in cells[:4]] == [("fashion-mnist", 0.4, m) for m in ("normal", "mw_net", "itlm", "deca_p")]
    assert {(c.dataset, c.condition.key, c.turn) for c in cells[4:8]} == {("cifar10", 0.4, 1)}
    assert list(dict.fromkeys(c.condition.key for c in cells)) == [0.4, 0.5, 0.3, 0.2, 0.1]
    assert [c.settings.seed for c in cells] == sorted(c.settings.seed for c in cells)
    assert [c.turn for c in cells] == sorted(c.turn for c in cells)
    assert len({c.name for c in cells}) == len(cells)


def test_every_cell_has_the_published_settings() -> None:
    cells = plan.plan(TABLE, Part())
    assert {(*c.group, "accuracy") for c in cells} == set(TABLE.printed)
    for cell in cells:
        s = cell.settings
        assert (s.network, s.valid, s.noise) == ("resnet32", 10000, f"symmetric-any:{cell.condition.key}")
        assert (s.options.epochs, s.options.batch_size, s.options.rate) == (120, 100, 0.1)
        assert (s.options.optimizer, s.options.schedule) == ("sgd", "step")
        assert [round(m * 120) for m in s.options.milestones] == [80, 100]
        assert s.clean == (1000 if cell.method == "mw_net" else 0)
    (deca_p,) = {str(c.settings.config) for c in cells if c.method == "deca_p"}
    assert "c_1=1.0, c_2=1.0, alpha=0.0" in deca_p


def test_options_reach_the_runs_they_are_for(grid: tuple[list[Cell], Path], tiny: Path) -> None:
    shared, own = plan.split_options(["epochs=3", "deca_p.c_1=7", "deca_p.prior_epochs=1"], METHODS)
    part = Part((str(tiny),), (0.3,), METHODS, 1, network="mlp", options=shared, of_method=own)
    normal, deca_p = plan.plan(TABLE, part)
    assert (normal.settings.options.epochs, deca_p.settings.options.epochs) == (3, 3)
    assert deca_p.settings.config.to_dict().items() >= {"c_1": 7.0, "c_2": 1.0, "prior_epochs": 1}.items()
    cells, out = grid
    for cell in cells:  # what the command line was told is what was planned
        saved = yaml.safe_load((out / cell.name / "config.yaml").read_text(encoding="utf-8"))
        assert saved == cell.settings.to_dict()


def test_a_finished_grid_is_only_read(grid: tuple[list[Cell], Path], tiny: Path, tmp_path: Path) -> None:
    _, out = grid
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/*")}
    more = ("--methods", "normal,deca_p", "--ratios", "0.2", "0.4", "--seeds", "2", "--lr", "0.1", "0.01")
    printed = output(*words(tiny, *more, "--out", out, "--report", tmp_path / "report"))
    assert "16 runs, 16 of them finished before" in printed
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/*")} == before
    again = output(*words(tiny, *more, "--out", out, "--report", tmp_path / "again", "--report-only"))
    assert "runs," not in again
    assert (tmp_path / "again.csv").read_text() == (tmp_path / "report.csv").read_text()


def test_the_report_says_what_the_runs_say(grid: tuple[list[Cell], Path], tmp_path: Path) -> None:
    cells, out = grid
    paths, lines = report.write(TABLE, Part(), cells, out, tmp_path / "report", ["recdenoise", "vision"])
    assert [path.suffix for path in paths] == [".html", ".md", ".csv", ".csv"]
    with (tmp_path / "report.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["ratio"], row["method"]) for row in rows] == [(r, m) for r in ("0.2", "0.4") for m in METHODS]
    for row in rows:
        found: dict[float, list[dict[str, Any]]] = {}
        for cell in cells:
            if (str(cell.condition.key), cell.method) == (row["ratio"], row["method"]):
                record = json.loads((out / cell.name / "result.json").read_text(encoding="utf-8"))
                found.setdefault(cell.rate, []).append(record)
        valid = {rate: np.mean([r["valid"]["best_val"]["accuracy"] for r in of]) for rate, of in found.items()}
        rate = max(valid, key=lambda r: valid[r])
        assert float(row["rate"]) == rate
        for end in ("best_val", "last"):
            values = [100 * r["test"][end]["accuracy"] for r in found[rate]]
            assert float(row[end]) == pytest.approx(np.mean(values))
            assert float(row[f"{end}_std"]) == pytest.approx(np.std(values, ddof=1))
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert f"| 20% | Normal | {float(rows[0]['best_val']):.2f} ± {float(rows[0]['best_val_std']):.2f} | – |" in text
    for wanted in ("Device: cpu", "Learning rates 0.1, 0.01", "torch ", "Seeds 0, 1", "`epochs: 2`"):
        assert wanted in text
    page = Reader((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert [link for link in page.loads if not link.startswith("#")] == []
    assert "script" not in page.tags
    assert "16 / 16" in page.text
    assert lines[0].endswith("reach what is required of them")


def fake(cell: Cell, folder: Path, test: float, valid: float = 0.5) -> None:
    """What a run leaves that a report reads."""
    ends = {"best_val": {"accuracy": test}, "last": {"accuracy": test - 0.1}}
    record = {
        "method": cell.method,
        "seed": cell.settings.seed,
        "test": ends,
        "device": "a GPU",
        "noise": {"rate": 0.36},
    }
    record |= {"valid": {"best_val": {"accuracy": valid}}, "seconds": {"train": 10.0}, "versions": {"torch": "9"}}
    record |= {"images": {"train": 50000, "valid": 10000}, "dataset": cell.settings.dataset}
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(record))
    (folder / "model.pt").write_bytes(b"")


def test_cells_are_held_against_print_and_against_each_other(tmp_path: Path) -> None:
    cells = plan.plan(TABLE, Part(datasets=("fashion-mnist",), conditions=(0.4, 0.1), seeds=2))
    print_less = {"normal": 0.02, "mw_net": -0.0099, "itlm": -0.0101, "deca_p": 0.0}
    for cell in cells:
        if (cell.condition.key, cell.settings.seed) == (0.1, 1):
            continue  # not finished
        mean = TABLE.printed[(*cell.group, "accuracy")][0] / 100 + print_less[cell.method]
        fake(cell, tmp_path / "out" / cell.name, mean + (0.002 if cell.settings.seed else -0.002))
    runs = collect(cells, tmp_path / "out")
    rows = {(row.condition, row.method): row for row in rows_of(TABLE, runs)}
    assert rows[0.4, "normal"].difference == pytest.approx(2.0)
    assert rows[0.4, "deca_p"].best_val.std == pytest.approx(0.2 * 2**0.5)
    assert rows[0.1, "normal"].best_val.std is None
    assert rows[0.4, "normal"].missed == ()
    # 86.18 - 0.99 and 87.10 - 1.01 against Normal's 84.89 + 2
    assert rows[0.4, "mw_net"].missed == ("not above our own normal, 86.89",)
    assert rows[0.4, "itlm"].missed == ("1.01 points below print, 1 allowed", "not above our own normal, 86.89")
    assert (rows[0.4, "deca_p"].missed, rows[0.4, "deca_p"].required) == ((), 3)
    assert rows[0.1, "deca_p"].required == 2
    paths, lines = report.write(TABLE, Part(), cells, tmp_path / "out", tmp_path / "report", ["recdenoise"])
    assert "fashion-mnist, 10%: not finished: Normal seed 1, MW-Net seed 1, ITLM seed 1, DeCA(p) seed 1" in lines
    text = paths[1].read_text(encoding="utf-8")
    assert "MW-Net learns from 1,000 trusted images besides" in text
    assert "| 40% | DeCA(p) | 88.72 ± 0.28 | 88.72 ± 0.06 | +0.00 | 78.72 ± 0.28 | 2 |" in text
    assert "10,000 images are held out" in text
    behind = [c for c in cells if c.group == ("fashion-mnist", 0.4, "itlm")]
    for cell in behind:
        for file in (tmp_path / "out" / cell.name).iterdir():
            file.unlink()
        (tmp_path / "out" / cell.name).rmdir()
        fake(cell, tmp_path / "out" / cell.name, 0.95)
    rows = {(r.condition, r.method): r for r in rows_of(TABLE, collect(cells, tmp_path / "out"))}
    assert rows[0.4, "deca_p"].missed == ("not above our ITLM, 95.00",)


def test_mistakes_are_one_sentence(grid: tuple[list[Cell], Path], tiny: Path, tmp_path: Path) -> None:
    _, out = grid

    def said(*more: str | Path) -> str:
        return mistake(*words(tiny, "--out", tmp_path / "x", "--report", tmp_path / "r", *more))

    assert "a ratio is 0 or more and below 1" in said("--ratios", "40")
    assert "all must be numbers" in said("--ratios", "some")
    assert "Did you mean 'normal'" in said("--methods", "nomal")
    assert "say METHOD.OPTION=VALUE with a method of the grid" in said("--set", "method.c_1=2")
    assert "Did you mean 'c_1'" in said("--set", "deca_p.c1=2")
    assert "not both" in said("--lr", "0.1", "--set", "lr=1")
    assert "has no finished run" in said("--report-only")
    assert "some images must choose" in said("--valid", "0")
    assert not (tmp_path / "x").exists()
    told = said("--out", out, "--methods", "normal", "--ratios", "0.4", "--seeds", "1", "--set", "epochs=5")
    assert "holds a run with epochs = 2, here it is 5" in told


BLOCKER = """
import sys

class Without:
    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def find_spec(self, name, path=None, target=None):
        absent = name.partition(".")[0] in ("recbole", "torch_geometric", "pandas", "pyarrow", "optuna")
        return None if absent else self.inner.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""


def test_a_machine_without_recbole_runs_the_grid_and_writes_its_report(tiny: Path, tmp_path: Path) -> None:
    """In processes of their own, the runs' included: none of them can import a recommender's packages."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKER, encoding="utf-8")
    known = environment()
    known["PYTHONPATH"] = os.pathsep.join([str(tmp_path), known["PYTHONPATH"]])
    todo = words(tiny, "--methods", "normal", "--ratios", "0.4", "--seeds", "1", "--workers", "2")
    todo += ["--out", tmp_path / "out", "--report", tmp_path / "report"]
    program = [sys.executable, "-c", "from recdenoise.cli import main; main()", *map(str, todo)]
    done = subprocess.run(program, env=known, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1/1  tiny-0.4-normal-lr0.1-0" in done.stdout
    assert "1 / 1" in (tmp_path / "report.html").read_text(encoding="utf-8")
    job = json.loads((tmp_path / "out" / "tiny-0.4-normal-lr0.1-0" / "job.json").read_text(encoding="utf-8"))
    assert job["command"][:3] == ["recdenoise", "vision", "train"]
    missing = subprocess.run([sys.executable, "-c", "import recbole"], env=known, capture_output=True, text=True)
    assert "No module named 'recbole'" in missing.stderr  # the blocker works at all


def test_time_left_is_known_before_anything_has_finished(tmp_path: Path) -> None:
    shares = {"a": 0.5, "b": None}
    jobs = [
        Job(name, tmp_path / name, (), "result.json", (name,), guess, share=lambda folder: shares[folder.name])
        for name, guess in (("a", 1.0), ("b", 2.0))
    ]
    began = time.monotonic() - 10
    active = [Active(job, cast(Any, None), began, "") for job in jobs]
    # a takes 20 s, so b, twice as long by its guess, 40
    assert Expectation().left([], active[:1], 1) == pytest.approx(10, abs=0.5)
    assert Expectation().left([], active, 1) == pytest.approx(10 + 30, abs=0.5)
    assert Expectation().left([jobs[1]], active[:1], 2) == pytest.approx(25, abs=0.5)
    resumed = Active(jobs[0], cast(Any, None), began, "", share=0.4)  # a tenth in 10 s, five tenths to go
    assert Expectation().left([], [resumed], 1) == pytest.approx(50, abs=0.5)
    shares["a"] = 0.01
    assert Expectation().left([], active, 1) is None


def test_jobs_begin_turn_by_turn_and_longest_first_within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []

    class Ended:
        returncode = 0

        def poll(self) -> int:
            return 0

    def start(job: Job) -> Active:
        begun.append(job.name)
        job.folder.mkdir()
        (job.folder / "done").touch()
        return Active(job, cast(Any, Ended()), time.monotonic(), "")

    monkeypatch.setattr(workers, "start", start)
    monkeypatch.setattr(workers, "POLL_SECONDS", 0.0)
    plans = (("late", 1, 9.0), ("short", 0, 1.0), ("long", 0, 2.0))
    jobs = [Job(name, tmp_path / name, (), "done", (name,), guess, turn=turn) for name, turn, guess in plans]
    assert workers.run_all(jobs, 1, lambda *_: None) == {}
    assert begun == ["long", "short", "late"]
