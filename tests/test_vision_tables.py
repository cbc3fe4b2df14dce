"""Published tables of images: every declaration is whole, and what the harness makes of one."""

from __future__ import annotations

import csv
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_recipes.images import IMAGE_RECIPES
from recdenoise.errors import UserError
from tests.command import mistake, output, run
from tests.test_html_report import Reader
from vision.tables import jobs, plan, report
from vision.tables.plan import Cell, Part
from vision.tables.rows import collect, rows_of
from vision.tables.table import Table, names, parse_table, read_table

TABLES = names()


@pytest.mark.parametrize("name", TABLES)
def test_every_printed_value_belongs_to_a_cell_and_every_cell_can_be_made(name: str) -> None:
    table = read_table(name)
    cells = plan.plan(table, Part(seeds=1))
    assert cells
    runnable = {entry.key for entry in (*table.datasets, *table.methods) if not entry.absent}
    groups = {cell.group for cell in cells}
    for dataset, condition, method, measure in table.printed:
        assert measure in {m.name for m in table.measures}
        assert (dataset, condition, method) in groups or not {dataset, method} <= runnable
    for cell in cells:
        for option in cell.entry.in_epochs:
            assert counted(cell, option) >= 1, f"{cell.method}: state {option} in the table"


def counted(cell: Cell, option: str) -> Any:
    """An option that counts epochs, a dot one level down."""
    value: Any = cell.settings.config.to_dict()
    for step in option.split("."):
        value = value[step]
    return value


@pytest.mark.parametrize("name", TABLES)
def test_every_table_has_a_command_with_help(name: str) -> None:
    told = output("vision", "benchmark", name, "--help")
    table = read_table(name)
    assert table.axis["option"] in told or len(table.conditions) == 1
    for hint in table.hints:
        assert hint.startswith(f"recdenoise vision benchmark {name}")


@pytest.mark.parametrize("name", TABLES)
def test_a_shorter_trial_keeps_its_shape(name: str) -> None:
    table = read_table(name)
    whole, short = (plan.plan(table, Part(seeds=1, epochs=epochs)) for epochs in (None, 2))
    for long, brief in zip(whole, short, strict=True):
        assert brief.settings.options.epochs == 2
        assert brief.settings.options.milestones == long.settings.options.milestones
        share = 2 / long.settings.options.epochs
        for option in brief.entry.in_epochs:
            was, now = counted(long, option), counted(brief, option)
            assert now == max(1, round(share * was))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small images under the names of the published sets: a class is a bright row."""
    folder, draws = tmp_path_factory.mktemp("named"), np.random.default_rng(0)
    truth = {}
    for name, channels in (("cifar10", 3), ("cifar100", 3), ("mnist", 1), ("fashion-mnist", 1)):
        for split, n in (("train", 80), ("test", 100)):
            labels = np.arange(n) % 10
            images = draws.integers(0, 60, (n, 12, 12, channels), dtype=np.uint8)
            images[np.arange(n), labels] += 150
            truth[name, split] = labels
            write(folder / name / f"{split}.npz", images=images if channels > 1 else images[..., 0], labels=labels)
    for name, base in (("cifar10n", "cifar10"), ("cifar100n", "cifar100")):
        clean = truth[base, "train"]
        noisy = np.where(draws.random(len(clean)) < 0.2, (clean + 1) % 10, clean)
        write(folder / name / "labels.npz", clean_label=clean, **dict.fromkeys(HUMAN[name], noisy))
    folders(folder, draws)
    return folder


def folders(folder: Path, draws: np.random.Generator) -> None:
    """Image files in the layouts of ImageNet and of Clothing1M."""

    def picture(path: Path, label: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = draws.integers(0, 60, (12, 12, 3), dtype=np.uint8)
        pixels[label % 12, 3:9] += 150
        Image.fromarray(pixels).save(path)

    for part, n in (("train", 8), ("test", 4)):
        for label, i in itertools.product(range(4), range(n)):
            picture(folder / "imagenet" / part / f"n{label}" / f"{i}.png", label)
    lists: dict[str, list[str]] = {}
    for part, n in (("noisy_train", 84), ("clean_val", 14), ("clean_test", 28)):
        for i in range(n):
            key = f"images/0/{i:02d}/{part}.png"
            picture(folder / "clothing1m" / key, i % 14)
            lists.setdefault(f"{part}_key_list", []).append(key)
            lists.setdefault(f"{'noisy' if part == 'noisy_train' else 'clean'}_label_kv", []).append(f"{key} {i % 14}")
    for name, lines in lists.items():
        (folder / "clothing1m" / f"{name}.txt").write_text("\n".join(lines) + "\n")


HUMAN = {name: list(IMAGE_RECIPES[name].label_sets.values()) for name in ("cifar10n", "cifar100n")}


def write(path: Path, **arrays: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)


SMALL: dict[str, tuple[str, ...]] = {
    "deca-table4": ("normal",),
    "biaswap-split": ("biaswap",),
    "cit-table1": ("cit", "sal_img", "2x_baseline"),
    "cit-table2": ("cit",),
    "cit-table4": ("original", "stratify_b", "stratify_c"),
    "denll-table1": ("pes", "denll"),
    "denll-table2": ("dividemix", "dividemix_reported"),
    "denll-table3": ("sop_plus", "denll"),
    "denll-table4": ("denll_no_lm",),
    "denll-table5": ("denll", "sop"),
    "dfa": ("disentangled", "scheduled"),
    "lff": ("lff",),
}
"""Of every table, the methods whose runs are tried; all other options are the table's."""


@pytest.mark.parametrize("name", TABLES)
def test_every_table_runs_small(name: str, root: Path, tmp_path: Path) -> None:
    """One condition, two epochs, in this process: trained, measured and put beside print."""
    table = read_table(name)
    network = {"lff": "mlp", "dfa": "mlp", "cit-table1": "resnet20", "cit-table2": "resnet20"}.get(name, "convnet2")
    options = {"batch_size": 20, "device": "cpu", "weights": None}
    options |= {"epoch_images": 20} if "epoch_images" in table.gives["options"] else {}
    common: dict[str, Any] = {"network": network, "options": options, "root": str(root), "epochs": 2, "seeds": 1}
    held, first = 0.25 if table.gives["valid"] else None, table.datasets[0]
    common |= {"image_size": 12, "readers": 0} if first.folder else {}
    place = str(root / str(first.key)) if first.folder else str(first.key)
    common |= {"of_method": {"biaswap": {"width": 8, "patch_largest": 0.5}}} if name == "biaswap-split" else {}
    part = Part(datasets=(place,), methods=SMALL[name], valid=held, **common)
    condition = plan.plan(table, part)[0].condition.key
    cells = plan.plan(table, replace(part, conditions=(condition,)))
    jobs.check_data(table, cells)
    for job in jobs.jobs_of(cells, tmp_path / "out"):
        result = run(*job.arguments)
        assert result.exit_code == 0, result.stderr
        assert job.finished
    assert len(collect(cells, tmp_path / "out")) == len(cells)
    paths, _ = report.write(table, part, cells, tmp_path / "out", tmp_path / "report", ["recdenoise"])
    with paths[2].open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    ran = [row for row in rows if row["seeds"]]
    assert {row["method"] for row in ran} == set(SMALL[name])
    assert len(ran) == len(SMALL[name]) * len(table.measures)
    assert all(row["printed"] and row[table.compared.end] for row in ran)


CONTENT: dict[str, Any] = {
    "title": "A table",
    "source": "nowhere",
    "summary": "A table.",
    "columns": {"datasets": "data", "conditions": ["noise", "ratio"], "methods": "method"},
    "seeds": 2,
    "datasets": {"mnist": {}, "cifar10": {"network": "resnet20"}},
    "axis": {"name": "noise", "title": "noise", "option": "--noise"},
    "conditions": {
        "sym-0.2": {
            "printed": ["symmetric", 0.2],
            "title": "symmetric 20%",
            "noise": "symmetric-other:0.2",
            "for": [{"methods": ["co"], "method_options": {"noise_rate": 0.2}}],
        },
        "worse": {"printed": ["human", ""], "noise": "none"},
    },
    "measures": [{"name": "test", "end": "last"}],
    "network": "mlp",
    "valid": 0.1,
    "options": {"epochs": 20, "lr": 0.1},
    "methods": {
        "plain": {"title": "CE", "method": "normal"},
        "co": {
            "title": "Co",
            "method": "co_teaching",
            "method_options": {"gradual_epochs": 10},
            "in_epochs": ["gradual_epochs"],
        },
        "co_again": {"title": "Co*", "runs_of": "co"},
        "once": {"title": "Once", "method": "gce", "once": True, "noise": "none"},
        "other": {"title": "Other", "absent": "its code was never published"},
    },
    "required": {"points": 2.0, "ahead": {"method": "co", "over": ["plain"]}},
}
PRINT = [
    {"data": data, "noise": noise, "ratio": ratio, "method": method, "accuracy": str(value), "std": "0.5"}
    for data in ("mnist", "cifar10")
    for noise, ratio in (("symmetric", "0.20"), ("human", ""))
    for method, value in (("CE", 80.0), ("Co", 90.0), ("Co*", 91.0), ("Once", 70.0), ("Other", 60.0))
]


def made(**changes: Any) -> Table:
    return parse_table("a-table", {**CONTENT, **changes}, PRINT)


def test_entries_add_up_and_the_later_wins() -> None:
    cells = {cell.group: cell for cell in plan.plan(made(), Part(seeds=1))}
    assert len(cells) == 2 * 2 * 4
    co = cells["cifar10", "sym-0.2", "co"].settings
    assert (co.method.name, co.network, co.noise, co.valid) == ("co_teaching", "resnet20", "symmetric-other:0.2", 0.1)
    assert (co.config.to_dict()["noise_rate"], co.options.epochs, co.options.rate) == (0.2, 20, 0.1)
    assert cells["mnist", "worse", "co"].settings.config.to_dict()["noise_rate"] == 0.2  # the method's own default
    assert cells["mnist", "worse", "plain"].settings.noise is None
    assert cells["mnist", "sym-0.2", "plain"].name == "mnist-sym-0.2-plain-lr0.1-0"


def test_one_run_answers_to_several_cells() -> None:
    cells = plan.plan(made(), Part(datasets=("mnist",), seeds=1))
    of = {method: {c.name for c in cells if c.method == method} for method in ("co", "co_again", "once")}
    assert of["co"] == of["co_again"]
    assert of["once"] == {"mnist-once-lr0.1-0"}
    assert len(jobs.jobs_of(cells, Path("nowhere"))) == 2 + 2 + 1  # plain and co by noise, once


def fake(cells: list[Cell], out: Path, accuracy: dict[str, float]) -> None:
    """What runs leave that a report reads."""
    for cell in cells:
        ends = {"best_val": {"accuracy": accuracy[cell.method] - 0.1}, "last": {"accuracy": accuracy[cell.method]}}
        record = {"method": cell.method, "seed": cell.settings.seed, "test": ends, "device": "a GPU", "valid": ends}
        record |= {"noise": {"rate": 0.2}, "seconds": {"train": 10.0}, "versions": {"torch": "9"}}
        record |= {"images": {"train": 100, "valid": 10}, "dataset": cell.settings.dataset}
        folder = out / cell.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result.json").write_text(json.dumps(record))
        (folder / "model.pt").write_bytes(b"")


def test_print_stands_beside_ours_also_where_nothing_is_run(tmp_path: Path) -> None:
    table, part = made(), Part(datasets=("mnist",), seeds=2, epochs=5)
    cells = plan.plan(table, part)
    fake(cells, tmp_path / "out", {"plain": 0.79, "co": 0.78, "co_again": 0.78, "once": 0.9})
    rows = {(r.condition, r.method): r for r in rows_of(table, collect(cells, tmp_path / "out"))}
    assert rows["worse", "plain"].difference == pytest.approx(-1.0)  # of the last epoch, as the table compares
    assert (rows["worse", "plain"].missed, rows["worse", "plain"].required) == ((), 1)
    assert rows["worse", "co"].missed == ("12.00 points below print, 2 allowed", "not above our CE, 79.00")
    assert (rows["worse", "other"].ours, rows["worse", "other"].seeds) == (None, ())
    assert rows["worse", "once"].best_val == rows["sym-0.2", "once"].best_val
    paths, lines = report.write(table, part, cells, tmp_path / "out", tmp_path / "report", ["recdenoise"])
    text = paths[1].read_text(encoding="utf-8")
    assert "Shown as printed only, not run here: Other: its code was never published." in text
    assert "epochs is 5 in place of 20" in text
    assert "gradual_epochs of Co, Co* is 2 in place of 10" in text
    assert "| worse | Other | – | 60.00 ± 0.50 | – | – | – | printed only |" in text
    assert "| CE | 79.00 / 80.00 | 79.00 / 80.00 |" in text
    page = Reader(paths[0].read_text(encoding="utf-8"))
    assert [link for link in page.loads if not link.startswith("#")] == []
    assert "10 / 10" in page.text  # folders, not cells
    assert lines[0] == "4 of 8 cells reach what is required of them"


def test_declarations_that_cannot_be_are_refused() -> None:
    for changes, said in (
        ({"colour": 1}, "unknown key 'colour'"),
        ({"datasets": ["mnist"]}, "none of its cells"),
        ({"methods": {"plain": {"title": "CE", "colour": 1}}}, "colour"),
        ({"conditions": {"sym-0.2": {"for": [{"colour": 1}]}}}, "unknown key 'colour'"),
        ({"measures": [{"name": "x", "colour": 1}]}, "colour"),
    ):
        with pytest.raises((UserError, TypeError), match=said):
            made(**changes)
    with pytest.raises(UserError, match="twice"):
        parse_table("a-table", CONTENT, [*PRINT, PRINT[0]])


def test_a_set_made_from_a_file_keeps_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "g.npz", images=np.zeros((4, 12, 12), np.uint8), labels=np.arange(4))
    monkeypatch.chdir(tmp_path)
    for given, wanted in (("colored-g.npz:0.9", f"colored-{tmp_path}/g.npz:0.9"), ("g.npz", f"{tmp_path}/g.npz")):
        cell = plan.plan(made(), Part(datasets=(given,), methods=("plain",), conditions=("sym-0.2",), seeds=1))[0]
        assert cell.settings.dataset == wanted
        assert cell.dataset == given.replace(".npz", "")


def test_what_cannot_be_asked_for_is_one_sentence() -> None:
    table = made()
    for part, said in (
        (Part(methods=("other",)), "shown as printed only: its code was never published"),
        (Part(methods=("plane",)), "Did you mean 'plain'"),
        (Part(conditions=("worst",)), "Did you mean 'worse'"),
        (Part(epochs=3, options={"epochs": 4}), "not both"),
        (Part(rates=(0.1, 0.01), valid=0), "several learning rates, and CE on mnist holds nothing out: give one --lr"),
    ):
        with pytest.raises(UserError, match=said):
            plan.plan(table, part)
    for part in (Part(rates=(0.1,), valid=0), Part(rates=(0.1, 0.01), valid=0.1)):
        assert plan.plan(table, part)
    assert "Did you mean 'deca-table4'" in mistake("vision", "benchmark", "deca-tabel4")


def test_data_and_weights_that_are_not_there_are_told_before_the_first_run(tmp_path: Path) -> None:
    base = ["vision", "benchmark", "denll-table5", "--out", tmp_path / "out", "--report", tmp_path / "report"]
    assert "There is no file of weights resnet50.pth" in mistake(*base)
    told = mistake(*base, "--set", "weights=null")
    assert "Clothing1M is not at hand: say where it lies by --datasets PATH/clothing1m." in told
    assert not (tmp_path / "out").exists()
