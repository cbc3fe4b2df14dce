"""``run_recbole`` and RecBole's own scripts: without the flag RecBole's results, with it a denoiser's, on any split."""

from __future__ import annotations

import logging
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from recdenoise import UserError, ranking, run_recbole
from recdenoise.interactions import Interactions
from recdenoise.recbole_adapter import DenoisingTrainer, RecBoleResult, atomic_files, compat, quick_start
from recdenoise.recbole_adapter.loaders import WholeRows
from recdenoise.recbole_adapter.trainer import training_pairs
from tests.own_data import SPLIT, prepared, short_run, write_mine


@pytest.fixture(scope="module")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A person's own .inter file."""
    return write_mine(tmp_path_factory.mktemp("mine"))


@pytest.fixture
def options(data_path: Path, here: Path) -> dict[str, Any]:
    """RecBole options of a short run that writes below an empty working folder."""
    return short_run(data_path, here)


# Without the flag


@pytest.mark.parametrize("model", ["BPR", "NeuMF", "MultiVAE"])
def test_without_a_denoiser_the_result_is_recboles(options: dict[str, Any], model: str) -> None:
    from recbole.trainer import Trainer

    found = run_recbole(model=model, dataset="mine", config_dict=options)
    config, network, (train, valid, test) = prepared(model, options, own_models=False)
    trainer = Trainer(config, network)
    score, result = trainer.fit(train, valid, saved=True, show_progress=False)
    assert found["best_valid_score"] == score
    assert found["best_valid_result"] == result
    assert found["test_result"] == trainer.evaluate(test)
    assert found["test_result"]["recall@10"] > 0
    assert type(found.model).__module__.startswith("recbole.")
    assert type(found.trainer).__name__ != "DenoisingTrainer"
    assert found.denoiser is None
    assert found.history == []


def test_a_model_that_recbole_cannot_train_either(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"Unknown model 'BRP'\. Did you mean 'BPR'"):
        run_recbole(model="BRP", dataset="mine", config_dict=options)


def test_looking_a_model_up_changes_nothing_else() -> None:
    """One of RecBole's sequential models turns torch's anomaly detection on, for good, when it is imported."""
    for model in ("GMF", "SINE", "SASRec"):
        compat.get_model(model)
        assert not torch.is_anomaly_enabled()
    with torch.autograd.set_detect_anomaly(True):
        compat.get_model("BPR")
        assert torch.is_anomaly_enabled()


# The flag


def test_file_dictionary_and_flat_keys_mean_the_same(options: dict[str, Any], here: Path) -> None:
    spec = {"name": "deca", "c_1": 10, "c_2": 100, "alpha": 0.0}
    file = here / "mine.yaml"
    file.write_text(yaml.safe_dump({**options, "denoiser": spec}), encoding="utf-8")
    results = [
        run_recbole("GMF", "mine", config_file_list=[str(file)]),
        run_recbole("GMF", "mine", config_dict={**options, "denoiser": spec}),
        run_recbole("GMF", "mine", config_dict={**options, **{f"denoiser_{key}": v for key, v in spec.items()}}),
        run_recbole(
            "GMF",
            "mine",
            config_dict={**options, "denoiser": "deca", "denoiser_c_1": 10, "denoiser_c_2": 100, "denoiser_alpha": 0},
        ),
        run_recbole("GMF", "mine", config_file_list=[str(file)], config_dict={"denoiser_c_1": 10}),
    ]
    for other in results[1:]:
        assert dict(other) == dict(results[0])
        assert [row["loss"] for row in other.history] == [row["loss"] for row in results[0].history]
    read = results[0].denoiser.config.to_dict()
    assert {key: read[key] for key in spec if key != "name"} == {key: v for key, v in spec.items() if key != "name"}
    changed = run_recbole("GMF", "mine", config_file_list=[str(file)], config_dict={"denoiser_c_1": 1000})
    assert [row["loss"] for row in changed.history] != [row["loss"] for row in results[0].history]


def test_return_shape_and_typed_result(options: dict[str, Any]) -> None:
    from queue import Queue

    queue: Queue[dict[str, Any]] = Queue()
    result = run_recbole("GMF", "mine", config_dict={**options, "denoiser": "normal", "seed": 5}, queue=queue)
    keys = ["best_valid_score", "valid_score_bigger", "best_valid_result", "test_result"]
    assert isinstance(result, dict)
    assert isinstance(result, RecBoleResult)
    assert list(result) == keys
    assert queue.get_nowait() == dict(result)
    assert (
        result.best_valid_score
        == result["best_valid_result"]["ndcg@10"]
        == max(round(row["valid_ndcg@10"], 4) for row in result.history)
    )
    assert result["valid_score_bigger"] is True
    assert set(result.test_result) == {
        f"{m}@{k}" for m in ("recall", "mrr", "ndcg", "hit", "precision") for k in (5, 10)
    }
    assert result.denoiser.name == "normal"
    assert [row["epoch"] for row in result.history] == [1, 2]
    assert result.config["seed"] == 5
    assert Path(result.trainer.saved_model_file).is_file()


def test_the_reported_metrics_are_those_of_the_scores(options: dict[str, Any]) -> None:
    """RecBole's evaluator on our scores, against our own ranking with train and valid masked."""
    result = run_recbole("NeuMF", "mine", config_dict={**options, "denoiser": "r_ce"})
    _, _, (train, valid, test) = prepared("NeuMF", options)
    task = result.trainer.task
    sets = [
        Interactions.from_pairs(*training_pairs(part._dataset), task.n_users, task.n_items)
        for part in (train, valid, test)
    ]
    assert len(sets[0]) == task.n_rows
    with torch.no_grad():
        expected = ranking.evaluate(
            lambda users: result.denoiser.score(WholeRows(users)),
            sets[2],
            topk=[5, 10],
            metrics=["recall", "ndcg", "mrr", "hit", "precision"],
            mask=sets[0].union(sets[1]),
            first_item=1,
        )
    assert result.test_result == pytest.approx(expected.mean, abs=5.1e-5)


@pytest.mark.parametrize("model", ["BPR", "LightGCN"])
def test_pairwise_models_are_trained_pointwise_and_the_log_says_so(
    options: dict[str, Any], model: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    result = run_recbole(model, "mine", config_dict={**options, "denoiser": "deca"})
    assert f"{model} is a pairwise model: DeCA trains it pointwise" in caplog.text
    assert "A batch holds 512 observed pairs and as many sampled ones." in caplog.text
    assert "epoch 1 training" in caplog.text.replace("\x1b[1;32m", "").replace("\x1b[0m", "")
    # One sampled pair for each observed one, and every observed pair once an epoch: five steps of 512.
    assert {row["steps"] for row in result.history} == {math.ceil(result.trainer.task.n_rows / 512)}
    caplog.clear()
    run_recbole("GMF", "mine", config_dict={**options, "denoiser": "deca", "epochs": 1})
    assert "is a pairwise model" not in caplog.text


@pytest.mark.parametrize("denoiser", ["deca", "deca_p"])
@pytest.mark.parametrize("model", ["GMF", "NeuMF", "CDAE", "LightGCN", "BPR", "MultiVAE"])
def test_every_model_trains_and_learns(options: dict[str, Any], model: str, denoiser: str) -> None:
    settings = {"denoiser": {"name": denoiser, "c_1": 10, "c_2": 10}, "epochs": 1}
    if model in ("CDAE", "MultiVAE"):
        settings["train_batch_size"] = 50
    result = run_recbole(model, "mine", config_dict={**options, **settings})
    assert [row["stage"] for row in result.history] == ["train"] if denoiser == "deca" else ["prior", "train"]
    assert all(math.isfinite(row["loss"]) for row in result.history)
    assert 0 <= result.test_result["recall@10"] <= 1
    probability = result.denoiser.clean_probability()
    assert probability.shape == (result.trainer.task.n_rows,)
    assert bool(((probability >= 0) & (probability <= 1)).all())


@pytest.mark.parametrize(
    "split",
    [
        {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
        {"split": {"RS": [0.7, 0.2, 0.1]}, "order": "TO", "group_by": "none", "mode": "full"},
        {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": "user", "mode": "uni20"},
        {
            "split": {"RS": [0.8, 0.1, 0.1]},
            "order": "RO",
            "group_by": "user",
            "mode": {"valid": "full", "test": "pop20"},
        },
    ],
    ids=["leave one out", "by time over all", "uniform sampled", "popular sampled"],
)
def test_any_split_that_recbole_makes(options: dict[str, Any], split: dict[str, Any]) -> None:
    result = run_recbole("GMF", "mine", config_dict={**options, "eval_args": split, "denoiser": "deca_p"})
    assert 0 < result.test_result["recall@10"] <= 1
    assert len(result.history) == 4


@pytest.mark.parametrize("mode", ["full", "uni20"])
@pytest.mark.parametrize("model", ["BPR", "MultiVAE"])
def test_evaluation_is_recboles_for_the_same_weights(options: dict[str, Any], model: str, mode: str) -> None:
    from recbole.trainer import Trainer
    from recbole.utils import init_seed

    options["eval_args"] = {**SPLIT, "mode": mode}
    config, network, (train, valid, test) = prepared(model, {**options, "denoiser": "normal"})
    trainer = DenoisingTrainer(config, network)
    trainer.fit(train, valid, saved=False)
    found = []
    for judge in (trainer, Trainer(config, network)):
        judge.eval_collector.data_collect(train)
        init_seed(7, True)  # both draw the same items to compare with
        found.append(judge.evaluate(test, load_best_model=False))
    assert found[0] == found[1]


def test_pointwise_values_such_as_auc(options: dict[str, Any]) -> None:
    options |= {"metrics": ["AUC", "LogLoss"], "eval_args": {**SPLIT, "mode": "uni10"}, "valid_selector": "loss"}
    result = run_recbole(
        "GMF", "mine", config_dict={**options, "denoiser": "normal", "valid_metric": "AUC", "epochs": 20}
    )
    assert 0.55 < result.test_result["auc"] < 1
    assert result.test_result["logloss"] < math.log(2)


def test_selectors(options: dict[str, Any]) -> None:
    for selector, name in (("loss", "valid_loss"), ("trimmed", "valid_trimmed_loss"), ("NDCG@5", "valid_ndcg@5")):
        result = run_recbole(
            "GMF", "mine", config_dict={**options, "denoiser": "normal", "valid_selector": selector, "epochs": 3}
        )
        assert all(name in row for row in result.history)
    with pytest.raises(UserError, match=r"do not give ndcg@20; add it there\. They give: .*ndcg@10"):
        run_recbole("GMF", "mine", config_dict={**options, "denoiser": "normal", "valid_selector": "ndcg@20"})


def test_the_best_epoch_is_what_stays(options: dict[str, Any]) -> None:
    result = run_recbole(
        "GMF",
        "mine",
        config_dict={**options, "denoiser": "normal", "epochs": 30, "stopping_step": 2, "learning_rate": 0.2},
    )
    values = [row["valid_ndcg@10"] for row in result.history]
    assert len(values) < 30
    assert values.index(max(values)) == len(values) - 3
    assert result.best_valid_score == pytest.approx(max(values), abs=5e-5)


# Refused before data is read


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"denoiser": "decap"}, "Unknown denoiser 'decap'. Did you mean 'deca_p'"),
        ({"denoiser": {"name": "deca", "alpha": 7}}, "'alpha' is 7.0; it must be from 0 to 1"),
        ({"denoiser": {"name": "deca", "alpa": 7}}, "Did you mean 'alpha'"),
        ({"denoiser": {"name": "deca", "auxiliary": "NeuFM"}}, "Unknown model 'NeuFM'"),
        ({"denoiser": {"alpha": 1}}, "no denoiser"),
        ({"denoiser": 3}, "must be a name or a mapping"),
        ({"denoiser_alpha": 1}, "sets denoiser_alpha but no denoiser"),
        ({"denoiser": "deca", "epochs": 0}, "'epochs' is 0"),
        ({"denoiser": "deca", "learner": "sgd"}, "learner is 'sgd'"),
        ({"denoiser": "deca", "valid_selector": "best"}, "none of last, loss, trimmed"),
        ({"denoiser": "deca_p", "denoiser_prior_selector": "ndgc@5"}, "Unknown metric 'ndgc@5'"),
        ({"metrics": ["Recall", "Foo"]}, "Unknown metric 'Foo'"),
    ],
)
def test_mistakes_answer_before_data_is_read(
    options: dict[str, Any], more: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quick_start, "create_dataset", lambda _: pytest.fail("data was read"))
    with pytest.raises(UserError, match=message):
        run_recbole("GMF", "mine", config_dict={**options, **more})


@pytest.mark.parametrize("model", ["Pop", "ItemKNN"])
def test_models_without_gradient(options: dict[str, Any], model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick_start, "create_dataset", lambda _: pytest.fail("data was read"))
    with pytest.raises(UserError, match=f"{model} cannot be trained by a denoiser"):
        run_recbole(model, "mine", config_dict={**options, "denoiser": "deca"})


def test_options_that_a_model_refuses(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="GMF cannot be built with the options it is given: "):
        run_recbole("GMF", "mine", config_dict={**options, "denoiser": "deca", "embedding_size": "wide"})


def test_a_data_set_that_is_not_there(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"Unknown data set 'mien'\. Did you mean 'mine'"):
        run_recbole("GMF", "mien", config_dict=options)


def test_the_command_line_of_the_process_is_left_alone(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["somebody", "--epochs=1", "--denoiser=foo"])
    assert len(run_recbole("GMF", "mine", config_dict={**options, "denoiser": "normal"}).history) == 2


# A person's own file


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda rows: [*rows[:5], rows[5] + "\t9", *rows[6:]], r"mine\.inter, line 6: .* the 4 columns of line 1"),
        (lambda rows: [*rows[:5], "user 7", *rows[6:]], r"mine\.inter, line 6: .* the 4 columns of line 1"),
        (lambda rows: [*rows, "user 7\titem 5\t3"], r"mine\.inter, line 2313: .* the 4 columns of line 1"),
        (lambda rows: [*rows[:5], "user 7\titem 5\tgreat\t1", *rows[6:]], r"mine\.inter, line 6: .* no number"),
        (lambda rows: rows[1:], r"mine\.inter, line 1: a header such as user_id:token .* not 'user 0\\titem"),
        (
            lambda rows: [rows[0].replace("user_id", "who"), *rows[1:]],
            r"mine\.inter, line 1: the header names no user_id",
        ),
        (lambda rows: [], r"mine\.inter is empty"),
        (lambda rows: rows[:1], "RecBole cannot read the data set 'mine': Some feat is empty"),
    ],
)
def test_bad_rows_are_named(options: dict[str, Any], here: Path, spoil: Any, said: str) -> None:
    good = (Path(options["data_path"]) / "mine" / "mine.inter").read_text().splitlines()
    path = here / "data" / "mine" / "mine.inter"
    path.parent.mkdir(parents=True)
    path.write_text("".join(f"{line}\n" for line in spoil(good)))
    with pytest.raises(UserError, match=said):
        run_recbole("GMF", "mine", config_dict={**options, "data_path": str(here / "data"), "denoiser": "normal"})


def test_good_files_pass_in_every_form(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic_files, "_BLOCK", 64)  # many blocks, lines across their borders
    rows = [f"u{n}\ti{n}\t{n}" for n in range(50)]
    path = here / "a.inter"
    for text in ("\n".join(rows), "\n".join(rows) + "\n", "\r\n".join(rows) + "\r\n\r\n", "\n\n".join(rows)):
        path.write_bytes(f"user_id:token\titem_id:token\trating:float\n{text}".encode())
        assert atomic_files.bad_row(path, b"\t", 3) is None
    for number in (0, 1, 20, 49):
        spoiled = [*rows[:number], "short\trow", *rows[number:]]
        path.write_text("\n".join(["user_id:token\titem_id:token\trating:float", *spoiled]))
        assert atomic_files.bad_row(path, b"\t", 3) == number + 2
    path.write_text('user_id:token\titem_id:token\n"a\tb"\tc\n')
    assert atomic_files.bad_row(path, b"\t", 2) is None  # a quoted cell may hold anything


def test_an_empty_training_split_is_named(options: dict[str, Any], here: Path) -> None:
    path = here / "data" / "mine" / "mine.inter"
    path.parent.mkdir(parents=True)
    rows = [f"u{user}\ti{(user + step) % 20}\t1\t{step}" for user in range(20) for step in range(6)]
    path.write_text("\n".join(["user_id:token\titem_id:token\trating:float\ttimestamp:float", *rows]))
    options |= {"data_path": str(here / "data"), "eval_args": {**SPLIT, "split": {"RS": [0.0, 0.5, 0.5]}}}
    with pytest.raises(UserError, match=r"The train split of 'mine' is empty: eval_args.split gives it 0.0"):
        run_recbole("GMF", "mine", config_dict={**options, "denoiser": "normal"})


def test_a_cut_off_beyond_the_catalogue(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="topk holds 61, but only 60 items can be ranked"):
        run_recbole("GMF", "mine", config_dict={**options, "denoiser": "normal", "topk": [10, 61]})


@pytest.mark.parametrize("shares", [[0.9, 0.0, 0.1], [0.9, 0.1, 0.0]])
def test_no_validation_or_no_test(options: dict[str, Any], shares: list[float]) -> None:
    options["eval_args"] = {**SPLIT, "split": {"RS": shares}}
    result = run_recbole("GMF", "mine", config_dict={**options, "denoiser": "normal"})
    assert len(result.history) == 2
    assert bool(result.test_result) == (shares[2] > 0)
    assert bool(result.best_valid_result) == (shares[1] > 0)


def test_files_that_benchmark_filename_names(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"There is no file .*mine\.train\.inter, though benchmark_filename names it"):
        run_recbole(
            "GMF",
            "mine",
            config_dict={**options, "denoiser": "normal", "benchmark_filename": ["train", "valid", "test"]},
        )
