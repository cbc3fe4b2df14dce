"""Tables 2, 3, 5, 6: runs under print's names; kept files; ties; cold users; paired tests against hand-made numbers."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from recdenoise.cli import cli
from recdenoise.errors import UserError
from recdenoise.recbole_adapter.settings import resolve
from recdenoise.reports import grid, markdown, published, significance, table_report
from recdenoise.reports.comparison import collect, table_rows
from recdenoise.reports.run_folder import result_of
from recdenoise.reports.runs import InTokenOrder, run_one, token_order
from tests.built_folder import change_training, write_built
from tests.test_grid import fake


def plan(name: str, **more: Any) -> tuple[grid.TableSpec, list[grid.Cell]]:
    table = grid.read_table(name)
    return table, grid.plan(table, **more)


# Planning


@pytest.mark.parametrize(
    ("name", "dataset"),
    [
        *(("table2", "ml-100k"), ("table2", "modcloth"), ("table3", "adressa"), ("table3", "electronics")),
        *(("table5", "modcloth"), ("table6", "modcloth")),
    ],
)
def test_every_printed_cell_has_its_run(name: str, dataset: str) -> None:
    table = grid.read_table(name)
    assert table.printed is not None
    printed = [key for key in published.load_numbers(table.printed, "mean") if key[0] == dataset]
    cells = grid.plan(table, datasets=[dataset], n_seeds=1, compared_only=True)
    planned = [(c.dataset, c.settings.model, c.title) for c in cells]
    assert len(planned) == len(set(planned))  # one run answers to a printed number
    assert set(planned) == {key[:3] for key in printed}
    for metric in table.required_for(dataset):
        assert {key[:3] for key in printed if key[3] == metric} == set(planned)


def test_table5_runs_sub_tasks_and_table6_networks() -> None:
    _, cells = plan("table5", n_seeds=1)
    tasks = {(c.title, c.settings.config.subtask) for c in cells if c.settings.model == "GMF"}
    assert tasks == {
        *(("DeCA", "both"), ("DeCA-DP", "dp"), ("DeCA-DN", "dn")),
        *(("DeCA(p)", "both"), ("DeCA(p)-DP", "dp"), ("DeCA(p)-DN", "dn")),
    }
    assert {c.settings.config.compat for c in cells if c.settings.model == "CDAE"} == {"paper_code"}
    table, cells = plan("table6", n_seeds=1)
    assert [(c.title, getattr(c.settings.config, "h_model", None)) for c in cells] == [
        *(("Normal", None), ("DeCA", "mf"), ("DeCA, h GMF", "gmf"), ("DeCA, h NeuMF", "neumf")),
        *(("DeCA(p)", "mf"), ("DeCA(p), h GMF", "gmf"), ("DeCA(p), h NeuMF", "neumf")),
    ]
    assert table.keeps == ("users", "ties")


def test_compared_only_leaves_out_what_is_shown_beside() -> None:
    table, every = plan("table2", n_seeds=1)
    kept = grid.plan(table, n_seeds=1, compared_only=True)
    assert {c.name for c in kept} == {c.name for c in every if c.variant.compared}
    assert len(kept) == 24 < len(every)


def test_figures_take_published_settings_where_there_are_none() -> None:
    _, cells = plan("figure1", n_seeds=1)
    settings = {c.settings.model: c.settings for c in cells}
    assert settings["MF"].loop == settings["GMF"].loop
    assert (settings["MF"].config, settings["MF"].preset) == (settings["GMF"].config, None)
    _, cells = plan("figure3", methods=["deca_p"], n_seeds=1, datasets=["ml-100k"])
    config = cells[0].settings.config
    assert (cells[0].settings.loop.selector, cells[0].settings.loop.epochs) == ("last", 100)
    assert (config.prior_epochs, config.prior_selector) == (20, "loss")
    _, cells = plan("figure5", n_seeds=1)
    assert len({(c.settings.config.c_1, c.settings.config.c_2) for c in cells}) == len(cells) == 16


def test_cut_offs_follow_print() -> None:
    table = grid.read_table("table2")
    assert table.shown_for("ml-100k") == ("recall@3", "recall@20", "ndcg@3", "ndcg@20")
    assert table.shown_for("modcloth") == ("recall@5", "recall@20", "ndcg@5", "ndcg@20")
    assert grid.read_table("table3").required_for("electronics") == ("recall@10", "ndcg@10")


# One run


def test_one_run_leaves_users_and_ties_and_is_not_repeated(built: Path, here: Path) -> None:
    words = ["benchmark", "run", "--model", "GMF", "--dataset", str(built), "--denoiser", "normal", "--set", "epochs=1"]
    words += ["--out", "run", "--keep", "users", "--keep", "ties"]
    first = CliRunner().invoke(cli, words)
    assert first.exit_code == 0, first.output
    result = json.loads((here / "run" / "result.json").read_text(encoding="utf-8"))
    users = significance.mean_users([here / "run" / "users.csv"], "recall@20")
    assert sum(users.values()) / len(users) == pytest.approx(result["test"]["recall@20"])
    ties = json.loads((here / "run" / "ties.json").read_text(encoding="utf-8"))
    assert (ties["all"], ties["cold"], ties["n_tied"]) == (
        result["test"],
        None,
        None,
    )  # no user is new: not ranked again
    written = (here / "run" / "result.json").stat().st_mtime_ns
    (here / "run" / "users.csv").unlink()
    assert CliRunner().invoke(cli, words).exit_code == 0
    assert (here / "run" / "users.csv").is_file()
    assert (here / "run" / "result.json").stat().st_mtime_ns == written
    for extra, says in ((["--keep", "letters"], "letters"), (["--keep", "test_curve"], "was not watched")):
        refused = CliRunner().invoke(cli, [*words, *extra])
        assert refused.exit_code == 2
        assert says in refused.stderr
    assert "epochs = 1, here it is 2" in CliRunner().invoke(cli, [*words, "--set", "epochs=2"]).stderr


def test_items_in_the_order_of_their_tokens() -> None:
    assert token_order(np.array(["[PAD]", "10", "9", "100"])).tolist() == [2, 1, 3, 0]
    assert token_order(np.array(["[PAD]", "b", "a10", "a9"])).tolist() == [2, 3, 1, 0]


def test_ties_are_broken_by_token_and_nothing_else_moves(trained: Path) -> None:
    from recdenoise.recbole_adapter.experiment import load

    run = load(trained)
    users = torch.arange(1, 6)
    scores = torch.randint(0, 3, (5, run.task.n_items)).float()  # many ties
    ordered = InTokenOrder(run.settings, run.data, run.task, run.denoiser, run.validation, 0.0)
    ordered.denoiser.score = lambda inputs: scores  # type: ignore[method-assign]
    ranks = ordered.score_block(users)
    tokens = [str(token) for token in run.data.item_tokens]
    for user in range(5):
        expected = sorted(range(1, run.task.n_items), key=lambda i: (-scores[user, i].item(), tokens[i]))
        found = [i for i in ranks[user].argsort(descending=True).tolist() if i != 0]
        assert found == expected
    ordered.denoiser.score = lambda inputs: 1e-9 * scores  # type: ignore[method-assign]
    by_token = sorted(range(1, run.task.n_items), key=lambda i: tokens[i])
    assert [i for i in ordered.score_block(users)[0].argsort(descending=True).tolist() if i != 0] == by_token
    assert ordered.tied - 5 == sum(
        scores[u].sort(descending=True).values[19] == scores[u].sort(descending=True).values[20] for u in range(5)
    )


def test_new_users_are_ranked_again_with_ties_broken(tmp_path: Path) -> None:
    """Under ``paper`` a user without training rows counts. Large steps keep probabilities apart: nothing is tied."""

    def forget(parts: dict[str, Any]) -> None:
        train = parts["train"]
        parts["train"] = train.take(np.flatnonzero(~np.isin(train.users, ["u1", "u2"])))

    folder = write_built(tmp_path / "data", ("paper",), forget)
    settings = resolve("GMF", str(folder), "normal", overrides={"epochs": 1, "learning_rate": 0.1})
    run_one(settings, tmp_path / "run", ["users", "ties"])
    result = result_of(tmp_path / "run")
    assert result is not None
    ties = json.loads((tmp_path / "run" / "ties.json").read_text(encoding="utf-8"))
    assert (ties["n_tied"], result["counts"]["n_unseen_users"]) == (0, 2)
    assert ties["all"] == pytest.approx(result["test"])
    assert ties["cold"] == pytest.approx(result["counts"]["cold"])


# Paired tests and populations


def write_users(folder: Path, values: dict[str, float]) -> None:
    lines = ["user,recall@20,ndcg@20", *(f"{user},{value},{value / 2}" for user, value in values.items())]
    (folder / "users.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


METRICS = {"recall@3": 0.02, "recall@5": 0.05, "recall@20": 0.1, "ndcg@3": 0.03, "ndcg@5": 0.03, "ndcg@20": 0.06}


def test_paired_tests_average_seeds_first_and_stay_within_their_rules(tmp_path: Path) -> None:
    table, cells = plan("table2", models=["GMF", "CDAE"], methods=["normal", "wbpr", "deca"], n_seeds=2)
    for cell in cells:
        if cell.settings.model == "CDAE" and cell.method == "deca":
            continue
        fake(tmp_path / cell.name, cell, {"test": METRICS})
        gain = {"normal": 0.0, "wbpr": 0.0, "deca": 0.2}[cell.method]
        noise = 0.1 if cell.settings.seed == 2020 else -0.1  # of every seed; gone in the mean over seeds
        shift = 0.05 if cell.variant.name == "paper_code" else 0.0
        write_users(tmp_path / cell.name, {str(u): 0.3 + shift + noise + gain * (0.9 + u / 100) for u in range(20)})
    tests = significance.paired_tests(table, collect(cells, tmp_path))
    names = [(t.model, t.method, t.variant, t.metric) for t in tests]
    assert names == [
        *(("GMF", "wbpr", "", "recall@20"), ("GMF", "deca", "", "recall@20")),
        *(("GMF", "wbpr", "", "ndcg@20"), ("GMF", "deca", "", "ndcg@20")),
        *(("CDAE", "wbpr", "paper_code", "recall@20"), ("CDAE", "wbpr", "", "recall@20")),
        *(("CDAE", "wbpr", "paper_code", "ndcg@20"), ("CDAE", "wbpr", "", "ndcg@20")),
    ]
    same, better = tests[:2]
    assert (same.better, same.worse, same.verdict) == (0, 0, "no difference")
    assert (better.better, better.worse, better.n_users, better.verdict) == (20, 0, 20, "better")
    assert better.difference == pytest.approx(0.2 * (0.9 + 9.5 / 100))
    assert better.p == pytest.approx(2 / 2**20)  # of 2^20 signs two are as extreme
    assert better.adjusted == pytest.approx(4 * 2 / 2**20)  # four tests of recall
    assert [t.base_label for t in tests[4:6]] == ["Normal (paper_code)", "Normal"]


def test_table5_compares_with_the_plain_run(tmp_path: Path) -> None:
    table, cells = plan("table5", models=["GMF"], methods=["deca"], n_seeds=1)
    for cell in cells:
        fake(tmp_path / cell.name, cell, {"test": METRICS})
        gain = -0.1 if cell.variant.name == "dn" else 0.0
        write_users(tmp_path / cell.name, {str(u): 0.5 + gain * (1 + u / 10) for u in range(12)})
    tests = significance.paired_tests(table, collect(cells, tmp_path))
    recalls = [(t.label, t.base_label, t.verdict) for t in tests if t.metric == "recall@20"]
    assert recalls == [("DeCA-DP", "DeCA", "no difference"), ("DeCA-DN", "DeCA", "worse")]


def test_cold_users_stand_apart_with_and_without_ties(tmp_path: Path) -> None:
    table, cells = plan("table2", datasets=["modcloth"], models=["GMF"], methods=["normal"], n_seeds=2)
    for cell, warm in zip(cells, (0.2, 0.3), strict=True):
        counts = {"n_users": 10, "n_unseen_users": 4, "warm": {**METRICS, "recall@20": warm}, "cold": METRICS}
        fake(tmp_path / cell.name, cell, {"test": METRICS, "counts": counts, "protocol": "paper"})  # type: ignore[dict-item]
        ties = {"all": METRICS, "warm": METRICS, "cold": {**METRICS, "recall@20": 0.22}, "n_users": 10, "n_tied": 4}
        (tmp_path / cell.name / "ties.json").write_text(json.dumps(ties), encoding="utf-8")
    runs = collect(cells, tmp_path)
    rows = table_rows(table, cells, runs)
    row = next(r for r in rows if r.metric == "recall@20")
    assert row.warm is not None
    assert row.warm.mean == pytest.approx(0.25)
    assert row.clean == (0.175, 0.175)
    shown = markdown.population_rows(table, rows)
    assert shown[0][3:] == [
        "0.1000 ± 0.0000",
        "0.2500 ± 0.0707",
        "0.1000 ± 0.0000",
        "0.2200 ± 0.0000",
        "0.1000 ± 0.0000",
        "0.225 ± 0.008",
    ]
    notes = " ".join(markdown.population_notes(runs))
    assert "modcloth: 6 warm, 4 cold" in notes
    assert "4 to 4 users a run" in notes
    paths, _ = table_report.write_report(table, cells, tmp_path, tmp_path / "report", ["recdenoise", "x"])
    text = paths[0].read_text(encoding="utf-8")
    assert "| modcloth GMF | Normal | R@20 | 0.1000 ± 0.0000 | 0.2500 ± 0.0707 |" in text
    assert "|  | clean run | – | 0.175 | – | 0.077 |" in text
    assert "0.1277" in next(line for line in text.splitlines() if line.startswith("|  | public code |"))
    (note,) = table.notes_on["modcloth"]
    assert note in text
    assert "Two things decide" in paths[-1].read_text(encoding="utf-8")


def test_different_users_are_refused() -> None:
    with pytest.raises(UserError, match="different users"):
        significance.signed_rank({"1": 0.0}, {"2": 0.0})


def test_equal_changes_share_a_rank_whatever_their_last_bit() -> None:
    base = {"a": 0.2, "b": 0.4, "c": 0.1, "d": 0.3, "e": 0.5}
    other = {"a": 0.4, "b": 0.6, "c": 0.3, "d": 0.1, "e": 0.5 + 1e-17}
    assert len({round(other[user] - base[user], 18) for user in "abcd"}) > 2  # .2 in several ways
    exact = significance.signed_rank(dict.fromkeys("abcde", 0.0), {"a": 2.0, "b": 2.0, "c": 2.0, "d": -2.0, "e": 0.0})
    assert significance.signed_rank(base, other) == exact
    assert (exact.better, exact.worse, exact.direction) == (3, 1, 1)


@pytest.mark.parametrize(
    ("gain", "p", "verdict"), [(0.4, 1e-4, "mixed"), (0.001, 1e-4, "worse"), (0.4, 0.2, "no difference")]
)
def test_a_mean_that_few_users_carry_is_no_verdict(gain: float, p: float, verdict: str) -> None:
    base = {str(user): 0.5 for user in range(200)}
    other = {user: 0.48 if int(user) < 150 else 0.5 + gain * (int(user) < 170) for user in base}
    test = significance.signed_rank(base, other)
    assert (test.better, test.worse, test.direction) == (20, 150, -1)
    assert test.p < 1e-3
    difference = sum(other.values()) / 200 - 0.5
    names = ("d", "m", "x", "", "recall@20", "X", "Normal")
    found = significance.PairedTest(*names, difference, test.better, test.worse, 200, p, test.direction, p)
    assert found.verdict == verdict


# Other data, other protocols, damage


def test_numbers_of_another_protocol_are_not_compared_with_print(tmp_path: Path) -> None:
    table, cells = plan("table2", models=["GMF"], methods=["normal"], n_seeds=1, protocol="clean")
    fake(tmp_path / cells[0].name, cells[0], {"test": {"recall@20": 0.2, "ndcg@20": 0.1}})
    rows = table_rows(table, cells, collect(cells, tmp_path))
    assert {(r.printed, r.code, r.clean, r.required, r.reached) for r in rows} == {(None,) * 5}
    paths, lines = table_report.write_report(table, cells, tmp_path, tmp_path / "r", ["recdenoise"])
    assert lines == ["0 of 0 required cells reached"]
    for path in (paths[0], paths[-1]):
        text = path.read_text(encoding="utf-8")
        assert (
            "Not compared with print (DeCA paper (TORS 2023), Table 2), which has protocol paper and not clean" in text
        )
        assert "missed" not in text


def test_runs_of_other_data_are_not_taken_for_ones_own(built: Path, here: Path) -> None:
    data = shutil.copytree(built, here / "data")
    words = ["benchmark", "run", "--model", "GMF", "--dataset", str(data), "--denoiser", "normal", "--out", "run"]
    assert CliRunner().invoke(cli, [*words, "--set", "epochs=1", "--keep", "users"]).exit_code == 0
    change_training(data)
    refused = CliRunner().invoke(cli, [*words, "--set", "epochs=1", "--keep", "ties"])
    assert refused.exit_code == 2
    assert "run is of other data of the name 'tiny'" in refused.stderr
    for command in (["evaluate", "run"], ["find-noise", "run"], ["recommend", "run", "--users", "u1"]):
        refused = CliRunner().invoke(cli, command)
        assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
        assert "run was trained on other files than" in refused.stderr


def test_two_data_sets_of_one_name_are_refused(built: Path, tmp_path: Path) -> None:
    other = shutil.copytree(built, tmp_path / "noisy")
    table = dataclasses.replace(grid.read_table("table2"), preset=None)
    with pytest.raises(UserError, match="are both called 'tiny'"):
        grid.plan(table, datasets=[str(built), str(other)], models=["GMF"], methods=["normal"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("result.json", "{"),
        ("result.json", '{"test": 1, "seconds": {}, "seed": 1, "versions": {}, "epochs": {}, "selector": "x"}'),
        ("result.json", '{"test": {}, "seconds": {}, "seed": 1}'),
        ("job.json", "[]"),
        ("job.json", '{"seconds": 1}'),
        ("ties.json", '{"all": '),
        ("users.csv", "user,recall@20,ndcg@20\nu1,0.5"),
        ("users.csv", "user,recall@20,ndcg@20\nu1,0.5,half"),
        ("metrics.csv", "stage,epoch,loss\ntrain,1,high"),
        ("metrics.csv", "epoch,loss\n1,0.5"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(tmp_path: Path, name: str, content: str) -> None:
    table, cells = plan("table2", models=["GMF"], methods=["normal", "r_ce"], n_seeds=1)
    for cell in cells:
        fake(tmp_path / cell.name, cell, {"test": {"recall@20": 0.2, "ndcg@20": 0.1}})
        (tmp_path / cell.name / "users.csv").write_text("user,recall@20,ndcg@20\nu1,0.5,0.5\n")
    (tmp_path / cells[0].name / name).write_text(content)
    with pytest.raises(UserError, match=f"{name} is damaged; delete the folder"):
        table_report.write_report(table, cells, tmp_path, tmp_path / "r", ["recdenoise"])


def test_a_report_without_a_run_does_not_take_the_place_of_one(tmp_path: Path) -> None:
    table, cells = plan("table2", models=["GMF"], methods=["normal"], n_seeds=1)
    (tmp_path / "r.md").write_text("numbers")
    with pytest.raises(UserError, match="has finished: there is nothing to report"):
        table_report.write_report(table, cells, tmp_path / "out", tmp_path / "r", ["recdenoise"])
    assert (tmp_path / "r.md").read_text() == "numbers"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--report", "."], "--report . is a folder"),
        (["--out", "file"], "file/ml-100k-paper-GMF-normal-2020 cannot be"),
    ],
)
def test_places_that_cannot_be_written_to(words: list[str], says: str, cache: Path, here: Path) -> None:
    (here / "file").write_text("")
    given = ["--models", "GMF", "--methods", "normal", "--seeds", "1"]
    result = CliRunner().invoke(cli, ["benchmark", "table2", *given, *words])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
    assert says in result.stderr
