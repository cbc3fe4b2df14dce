"""Tuning: equal budgets, validation only, studies that go on; and the statistics of the comparison."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from recdenoise.cli import cli
from recdenoise.errors import TrainingError, UserError
from recdenoise.options import flat_options
from recdenoise.recbole_adapter import experiment
from recdenoise.reports import tuned, tuning
from recdenoise.reports.commands import parse_search
from recdenoise.reports.tuning import StudySpec, make_spec, run_study
from tests.built_folder import change_training


def invoke(*words: str) -> Result:
    return CliRunner().invoke(cli, list(words))


def spec_of(denoiser: str = "deca_p", **more: Any) -> StudySpec:
    return make_spec("GMF", "ml-100k", denoiser, **more)


class FakeTraining:
    """Stands in for training: a value that follows from the options, and a count of how often it was asked."""

    def __init__(self, stop_at: int | None = None, fail: float | None = None) -> None:
        self.calls: list[dict[str, Any]] = []
        self.stop_at, self.fail = stop_at, fail

    def __call__(self, settings: Any, observer: Any = None) -> tuple[float, list[dict[str, Any]]]:
        options = settings.config.to_dict()
        if len(self.calls) == self.stop_at:
            raise KeyboardInterrupt
        self.calls.append(options)
        if options["l2"] == self.fail:
            raise TrainingError("The loss is nan.")
        return 1.0 / (1.0 + abs(options["l2"] - 0.1)), [{"stage": "train", "epoch": 1}]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTraining:
    training = FakeTraining()
    monkeypatch.setattr(tuning, "train_and_validate", training)
    return training


def choices(study: Any) -> list[Mapping[str, Any]]:
    return [trial.params for trial in tuning.counted(study)]


# The space


def test_the_space_is_the_papers_grid() -> None:
    assert dict(spec_of("normal").space) == {"denoiser.l2": (0.0, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)}
    assert dict(spec_of("deca_p").space) == {
        "denoiser.l2": (0.0, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0),
        "denoiser.c_1": (1.0, 10.0, 100.0, 1000.0),
        "denoiser.c_2": (1.0, 10.0, 100.0, 1000.0),
        "denoiser.alpha": (0.0, 0.5, 1.0),
    }
    assert list(spec_of("t_ce").space) == ["denoiser.l2", "denoiser.drop_rate"]


def test_what_is_fixed_is_not_searched_and_more_can_be() -> None:
    spec = spec_of("t_ce", options={"denoiser": {"l2": 0.1}}, search={"learning_rate": [0.001, 0.01]})
    assert list(spec.space) == ["denoiser.drop_rate", "learning_rate"]
    settings = spec.settings({"denoiser.drop_rate": 0.3, "learning_rate": 0.01}, 5)
    assert (settings.config.l2, settings.config.drop_rate, settings.loop.lr) == (0.1, 0.3, 0.01)
    assert settings.loop.selector == "ndcg@20"


def test_every_method_of_a_model_trains_under_the_same_rules() -> None:
    rules = [flat_options(spec_of(method).options) for method in ("normal", "deca_p", "ensemble")]
    assert rules[0] == rules[1] == rules[2]
    assert rules[0]["epochs"] == 300
    assert make_spec("CDAE", "ml-100k", "normal").options["epochs"] == 1000
    assert make_spec("CDAE", "ml-100k", "normal").options["eval_step"] == 10


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"selector": "last"}, "measures nothing"),
        ({"selector": "ndgc@20"}, "ndgc"),
        ({"options": {"denoiser": {"l2": 0.1}}}, "Every option"),
        ({"search": {"denoiser.gamma": [1, 2]}}, "gamma"),
        ({"search": {"denoiser.l2": [0.1, -1]}}, "l2"),
        ({"search": {"learning_rate": [0.1, "fast"]}}, "fast|wrong type"),
    ],
)
def test_a_search_that_cannot_work_is_refused_before_the_first_trial(more: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        spec_of("normal", **more)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model", "GMFF", "--dataset", "ml-100k"], "GMFF"),
        (["--model", "GMF", "--dataset", "ml-100k", "--denoiser", "decca"], "decca"),
        (["--model", "GMF", "--dataset", "ml-100k", "--search", "learning_rate"], "KEY=V1,V2"),
        (["--model", "GMF", "--dataset", "ml-100k", "--search", "learning_rate=[1"], "KEY=V1,V2"),
        (["--model", "GMF", "--dataset", "ml-100k", "--trials", "0"], "trials"),
        (["--dataset", "ml-100k"], "model"),
    ],
)
def test_mistakes_are_told_in_one_line(words: list[str], says: str, here: Path) -> None:
    result = invoke("tune", *words)
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stderr.count("\n") == 1


# Studies


def test_a_killed_study_goes_on_as_one_that_was_not(
    fake: FakeTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_study(spec_of(), tmp_path / "whole.db", 12, log=tmp_path / "whole.csv")
    monkeypatch.setattr(tuning, "train_and_validate", FakeTraining(stop_at=6))
    with pytest.raises(KeyboardInterrupt):
        run_study(spec_of(), tmp_path / "cut.db", 12)
    monkeypatch.setattr(tuning, "train_and_validate", rest := FakeTraining())
    study = run_study(spec_of(), tmp_path / "cut.db", 12, log=tmp_path / "cut.csv")
    assert choices(study) == choices(whole)
    assert len(choices(study)) == 12
    assert len(rest.calls) == len(fake.calls) - 6
    rows = list(csv.DictReader(io.StringIO((tmp_path / "cut.csv").read_text(encoding="utf-8"))))
    expected = list(csv.DictReader(io.StringIO((tmp_path / "whole.csv").read_text(encoding="utf-8"))))
    unlike = {"number", "seconds", "repeats"}  # the interrupted trial used up a number
    assert [{k: v for k, v in r.items() if k not in unlike} for r in rows] == [
        {k: v for k, v in r.items() if k not in unlike} for r in expected
    ]


def test_the_first_trial_is_the_published_setting(fake: FakeTraining, tmp_path: Path) -> None:
    assert spec_of("normal").first == {"denoiser.l2": 0.1}
    published = {"denoiser.l2": 0.1, "denoiser.c_1": 1000.0, "denoiser.c_2": 1000.0, "denoiser.alpha": 1.0}
    assert spec_of().first == published
    assert choices(run_study(spec_of(), tmp_path / "x.db", 3))[0] == published
    assert spec_of("r_ce").first == {}  # nothing is published for it
    assert spec_of(search={"denoiser.c_1": [5.0]}).first == {}  # the published value is not among those searched


def test_a_first_trial_that_was_interrupted_is_tried_again(
    fake: FakeTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "train_and_validate", FakeTraining(stop_at=0))
    with pytest.raises(KeyboardInterrupt):
        run_study(spec_of(), tmp_path / "x.db", 4)
    monkeypatch.setattr(tuning, "train_and_validate", fake)
    found = choices(run_study(spec_of(), tmp_path / "x.db", 4))
    assert found[0] == spec_of().first
    assert found == choices(run_study(spec_of(), tmp_path / "whole.db", 4))


def test_a_process_that_was_killed_leaves_no_trial_behind(fake: FakeTraining, tmp_path: Path) -> None:
    study = tuning.open_study(spec_of(), tmp_path / "x.db")
    study.ask()  # as if the process had died while training
    assert len(choices(run_study(spec_of(), tmp_path / "x.db", 3))) == 3


def test_a_finished_study_is_left_alone_and_can_be_made_longer(fake: FakeTraining, tmp_path: Path) -> None:
    first = choices(run_study(spec_of(), tmp_path / "x.db", 4))
    calls = len(fake.calls)
    assert choices(run_study(spec_of(), tmp_path / "x.db", 4)) == first
    assert len(fake.calls) == calls
    assert choices(run_study(spec_of(), tmp_path / "x.db", 6))[:4] == first


def test_a_choice_is_trained_once_and_the_best_is_the_best(fake: FakeTraining, tmp_path: Path) -> None:
    study = run_study(spec_of("normal"), tmp_path / "x.db", 24)
    assert len(choices(study)) == 24
    assert len(fake.calls) == len({call["l2"] for call in fake.calls}) <= 7
    assert study.best_trial.params == {"denoiser.l2": 0.1}
    assert "repeats" not in study.best_trial.user_attrs


def test_no_trial_is_spent_on_a_repetition_while_choices_are_left(fake: FakeTraining, tmp_path: Path) -> None:
    spec = spec_of(options={"denoiser": {"l2": 0.1, "c_1": 10.0, "alpha": 1.0}})  # 4 choices
    study = run_study(spec, tmp_path / "x.db", 6)
    drawn = [json.dumps(params) for params in choices(study)]
    assert len(set(drawn[:4])) == 4 == len(fake.calls)
    assert set(drawn[4:]) <= set(drawn[:4])


def test_losses_are_minimised(fake: FakeTraining, tmp_path: Path) -> None:
    study = run_study(spec_of("normal", selector="loss"), tmp_path / "x.db", 24)
    assert study.best_value == min(t.value for t in tuning.counted(study))
    assert study.best_trial.params["denoiser.l2"] == max(call["l2"] for call in fake.calls)


def test_a_trial_that_diverges_is_logged_and_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "train_and_validate", FakeTraining(fail=0.01))
    log = tmp_path / "trials.csv"
    study = run_study(spec_of("normal"), tmp_path / "x.db", 10, log=log)
    rows = list(csv.DictReader(io.StringIO(log.read_text(encoding="utf-8"))))
    assert len(rows) == 10
    failed = [row for row in rows if row["state"] == "fail"]
    assert failed
    assert {(row["denoiser.l2"], row["error"]) for row in failed} == {("0.01", "The loss is nan.")}
    assert study.best_trial.params["denoiser.l2"] != 0.01
    monkeypatch.setattr(tuning, "train_and_validate", FakeTraining(fail=1.0))
    with pytest.raises(UserError, match=r"None of the 2 trials .* The loss is nan"):
        run_study(spec_of("normal", options={}, search={"denoiser.l2": [1.0]}), tmp_path / "y.db", 2)


def test_another_studys_file_is_refused(fake: FakeTraining, tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    run_study(spec_of("normal"), path, 1)
    for spec in (spec_of("t_ce"), make_spec("NeuMF", "ml-100k", "normal"), spec_of("normal", protocol="paper")):
        with pytest.raises(UserError, match=r"x\.db holds the study ml-100k-clean-GMF-normal, not"):
            run_study(spec, path, 1)
    for more, key in (({"selector": "recall@20"}, "selector"), ({"seed": 1}, "seed"), ({"epochs": 7}, "options")):
        with pytest.raises(UserError, match=f"holds a study with {key}"):
            run_study(spec_of("normal", **more), path, 1)
    text = tmp_path / "text.db"
    text.write_text("no database at all, but long enough to look at" * 40, encoding="utf-8")
    with pytest.raises(UserError, match=r"text\.db is not a study"):
        run_study(spec_of("normal"), text, 1)


# Real training


def test_a_trial_measures_validation_and_never_tests(built: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a trial looked at the test set")

    monkeypatch.setattr(experiment.Run, "evaluate", refuse)
    for denoiser in ("normal", "ensemble", "deca_p"):
        spec = make_spec("GMF", str(built), denoiser, epochs=4)
        value, history = tuning.train_and_validate(spec.settings({"denoiser.l2": 0.01}, 3))
        assert 0.0 < value <= 1.0
        if denoiser != "ensemble":  # whose copies are validated one by one, and together here
            last = [row["valid_ndcg@20"] for row in history if row["stage"] == history[-1]["stage"]]
            assert value == pytest.approx(max(last))
    loss, history = tuning.train_and_validate(
        make_spec("GMF", str(built), "normal", epochs=3, selector="loss").settings({"denoiser.l2": 0.01}, 3)
    )
    assert loss == pytest.approx(min(row["valid_loss"] for row in history))


def test_tune_from_search_to_test(built: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["tune", "--model", "GMF", "--dataset", str(built), "--denoiser", "t_ce", "--epochs", "2", "--out", "out"]
    result = invoke(*words, "--trials", "3", "--seeds", "2")
    assert result.exit_code == 0, result.output
    record = json.loads((here / "out" / "tuned.json").read_text(encoding="utf-8"))
    assert (record["trials"], record["seeds"]) == (3, [2020, 2021])
    rows = list(csv.DictReader(io.StringIO((here / "out" / "trials.csv").read_text(encoding="utf-8"))))
    assert len(rows) == 3
    assert record["validation"] == max(float(row["valid_ndcg@20"]) for row in rows)
    for run in record["runs"]:
        users = tuning.read_users(here / "out" / run["folder"] / "users.csv", "recall@20")
        assert sum(users.values()) / len(users) == pytest.approx(run["test"]["recall@20"])
        assert (run["selector"], run["protocol"]) == ("ndcg@20", "clean")

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("trained again")

    monkeypatch.setattr(tuning, "train", refuse)
    monkeypatch.setattr(tuning, "train_and_validate", refuse)
    again = invoke(*words, "--trials", "3", "--seeds", "2")
    assert again.exit_code == 0, again.output
    assert json.loads((here / "out" / "tuned.json").read_text(encoding="utf-8")) == record
    other = invoke(*words, "--trials", "3", "--selector", "recall@20")
    assert other.exit_code == 2
    assert "holds a study with selector" in other.stderr


def test_benchmark_tuned_runs_reports_and_does_not_repeat(built: Path, here: Path) -> None:
    words = ["benchmark", "tuned", "--dataset", str(built), "--models", "GMF", "--methods", "normal,t_ce"]
    words += ["--trials", "2", "--seeds", "2", "--epochs", "2", "--out", "out", "--report", "results/tuned"]
    first = invoke(*words)
    assert first.exit_code == 0, first.output
    assert "T-CE is ahead of Normal in R@20 for" in first.output
    report = (here / "results" / "tuned.md").read_text(encoding="utf-8")
    assert "Why protocol clean" in report
    assert "2 trials a model and method" in report
    assert "2 runs, 2 of them finished before" in invoke(*words).output
    trials = list(csv.DictReader(io.StringIO((here / "results" / "tuned-trials.csv").read_text(encoding="utf-8"))))
    assert [row["method"] for row in trials] == ["Normal", "Normal", "T-CE", "T-CE"]
    shutil.rmtree(here / "out")
    empty = invoke(*words, "--report-only")
    assert (empty.exit_code, empty.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize(("protocol", "name"), [("clean", "tuned-ml-100k"), ("paper", "tuned-ml-100k-paper")])
def test_the_report_of_one_protocol_does_not_replace_that_of_another(
    protocol: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []

    def write(_: object, __: Path, report: Path, *___: object) -> tuple[list[Path], list[str]]:
        written.append(report)
        return [report], []

    monkeypatch.setattr(tuned, "write_report", write)
    done = invoke("benchmark", "tuned", "--models", "GMF", "--protocol", protocol, "--report-only")
    assert done.exit_code == 0, done.output
    assert written == [Path("docs") / "results" / name]


# Statistics


def test_holm() -> None:
    assert tuned.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert tuned.holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert tuned.holm([]) == []


def test_signed_rank_by_hand() -> None:
    base = {str(user): 0.1 for user in range(6)}
    # Five of six users gain, all by different amounts: of 2^5 signs of the ranks only two are as extreme, p = 2 / 32.
    other = {str(user): 0.1 + 0.01 * user for user in range(6)}
    test = tuned.signed_rank(base, other)
    assert (test.better, test.worse, test.direction) == (5, 0, 1)
    assert test.p == pytest.approx(0.0625, abs=0.02)
    assert tuned.signed_rank(base, base) == tuned.SignedRank(0, 0, 1.0, 0)
    with pytest.raises(UserError, match="different users"):
        tuned.signed_rank(base, {"1": 0.1})


def fake_study(out: Path, model: str, denoiser: str, per_seed: list[dict[str, float]]) -> StudySpec:
    """A finished study's files with made-up measures of users."""
    spec = make_spec(model, "ml-100k", denoiser)
    folder = out / spec.name
    runs = []
    for place, users in enumerate(per_seed):
        run = folder / f"trial-0-seed-{2020 + place}"
        run.mkdir(parents=True)
        lines = ["user,recall@20,ndcg@20", *(f"{user},{value},{value / 2}" for user, value in users.items())]
        (run / "users.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        mean = sum(users.values()) / len(users)
        more = {"versions": {"torch": "2.9"}, "epochs": {"train": 3}, "seconds": {"train": 2.0}}
        runs.append(
            {"seed": 2020 + place, "folder": run.name, "test": {"recall@20": mean, "ndcg@20": mean / 2}, **more}
        )
    record = {"spec": spec.to_dict(), "trials": 24, "distinct": 7, "best_trial": 0, "validation": 0.2, "runs": runs}
    record |= {"parameters": {"denoiser.l2": 0.1}, "seeds": [2020, 2021]}
    (folder / "tuned.json").write_text(json.dumps(record), encoding="utf-8")
    (folder / "trials.csv").write_text("number,state,valid_ndcg@20,seconds\n0,complete,0.2,1.5\n", encoding="utf-8")
    return spec


def test_the_comparison_by_hand(tmp_path: Path) -> None:
    specs = []
    for model, gain in (("GMF", 0.1), ("NeuMF", -0.05)):
        plain = [{"a": 0.1, "b": 0.3}, {"a": 0.3, "b": 0.5}]
        moved = [{user: value + gain for user, value in users.items()} for users in plain]
        specs += [fake_study(tmp_path, model, "normal", plain), fake_study(tmp_path, model, "deca_p", moved)]
    paths, lines = tuned.write_report(specs, tmp_path, tmp_path / "report" / "tuned", ["recdenoise", "x"])
    assert lines[0].startswith("DeCA(p) is ahead of Normal in R@20 for 1 of 2 models, 0 of them")
    found = tuned.contrasts(tuned.collect(specs, tmp_path), "normal")
    gmf = next(c for c in found if (c.model, c.metric) == ("GMF", "recall@20"))
    assert gmf.difference == pytest.approx(0.1)
    assert (gmf.test.better, gmf.test.worse, gmf.test.p, gmf.adjusted) == (2, 0, 0.5, 1.0)
    assert gmf.base.std == pytest.approx(0.2 / 2**0.5)
    text = paths[0].read_text(encoding="utf-8")
    assert "| GMF | DeCA(p) | 0.3000 ± 0.1414 | 0.4000 ± 0.1414 | +0.1000 | +33.3% | 2 / 0 | 0.5 | 1 |" in text
    assert "| GMF | Normal | l2 0.1 | 0.2000 | 24 (7) | 3, 3 | 2 |" in text
    rows = list(csv.DictReader(io.StringIO(paths[1].read_text(encoding="utf-8"))))
    assert [float(row["recall@20_mean"]) for row in rows] == pytest.approx([0.3, 0.4, 0.3, 0.25])
    with pytest.raises(UserError, match="other settings"):
        tuned.collect([make_spec("GMF", "ml-100k", "normal", selector="loss")], tmp_path)


def test_a_study_of_other_data_is_refused(built: Path, tmp_path: Path) -> None:
    data = shutil.copytree(built, tmp_path / "data")
    spec = make_spec("GMF", str(data), "normal")
    tuning.open_study(spec, tmp_path / "study.db")
    tuning.open_study(spec, tmp_path / "study.db")
    change_training(data)
    with pytest.raises(UserError, match=r"study\.db is of other data of the name 'tiny'"):
        tuning.open_study(spec, tmp_path / "study.db")


def test_values_to_search_are_numbers_however_they_are_written() -> None:
    assert parse_search(["learning_rate=1e-3,0.00001,1e-05"]) == {"learning_rate": [1e-3, 1e-5, 1e-5]}
    assert parse_search(["a=json.dumps,null"]) == {"a": ["json.dumps", None]}


def test_a_validation_value_that_is_no_number_counts_as_a_failed_trial(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec("GMF", str(built), "normal", search={"learning_rate": [0.001, 0.01]})
    values = iter([float("nan"), 0.25])
    monkeypatch.setattr(tuning, "train_and_validate", lambda *given: (next(values), []))
    study = run_study(spec, tmp_path / "study.db", 2)
    states = [(trial.state.name, trial.value) for trial in study.trials]
    assert states == [("FAIL", None), ("COMPLETE", 0.25)]
    assert study.trials[0].user_attrs["error"] == "The validation value is nan."
