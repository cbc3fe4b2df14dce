"""From what was typed to a run's settings: who outranks whom, what is refused, and that everything reads back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recbole
import yaml

from recdenoise import presets, seeds
from recdenoise.errors import UserError
from recdenoise.recbole_adapter.flag import denoiser_spec, loop_config
from recdenoise.recbole_adapter.models import MODELS
from recdenoise.recbole_adapter.settings import (
    PAPER_CODE,
    Settings,
    from_dict,
    parse_assignments,
    read_settings,
    resolve,
)


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def typed(*assignments: str, **given: Any) -> Settings:
    """As the command line resolves ``--set`` words."""
    return resolve(
        given.pop("model", "GMF"),
        "ml-100k",
        given.pop("denoiser", None),
        overrides=parse_assignments(assignments),
        **given,
    )


# Precedence


def test_sizes_then_preset_then_files_then_set(tmp_path: Path) -> None:
    first = write(tmp_path, "a.yaml", "epochs: 41\nlearning_rate: 0.2\nweight_decay: 0.01\nembedding_size: 16\n")
    second = write(tmp_path, "b.yaml", "learning_rate: 0.3\n")
    cell = presets.load("paper", "ml-100k", "GMF", "deca_p")

    sizes = resolve("GMF", "ml-100k")
    assert sizes.options["embedding_size"] == MODELS["GMF"].paper_config["embedding_size"] == 32
    assert sizes.loop.epochs == 300

    preset = resolve("GMF", "ml-100k", "deca_p", preset="paper")
    assert preset.loop.epochs == cell["epochs"] != 300
    assert preset.config.to_dict()["c_1"] == cell["denoiser"]["c_1"]
    assert preset.preset == "paper"

    files = resolve("GMF", "ml-100k", "deca_p", preset="paper", config_files=[first, second])
    assert (files.loop.epochs, files.loop.lr, files.loop.weight_decay) == (41, 0.3, 0.01)
    assert files.options["embedding_size"] == 16
    assert files.options["valid_selector"] == cell["valid_selector"]

    last = resolve(
        "GMF", "ml-100k", "deca_p", preset="paper", config_files=[first, second], overrides={"learning_rate": 0.4}
    )
    assert (last.loop.lr, last.loop.epochs) == (0.4, 41)


def test_denoiser_options_by_the_same_order(tmp_path: Path) -> None:
    file = write(tmp_path, "a.yaml", "denoiser: {name: deca_p, alpha: 0.25, c_1: 7}\n")
    cell = presets.load("paper", "ml-100k", "GMF", "deca_p")["denoiser"]
    settings = resolve(
        "GMF", "ml-100k", preset="paper", config_files=[file], overrides=parse_assignments(["denoiser.c_1=8"])
    )
    assert settings.method.name == "deca_p"
    options = settings.config.to_dict()
    assert (options["c_1"], options["alpha"], options["c_2"], options["l2"]) == (8, 0.25, cell["c_2"], cell["l2"])


def test_the_argument_outranks_the_files_method(tmp_path: Path) -> None:
    file = write(tmp_path, "a.yaml", "denoiser: {name: deca_p, c_1: 7}\nepochs: 3\n")
    settings = resolve("GMF", "ml-100k", "t_ce", config_files=[file], overrides={"denoiser": {"drop_rate": 0.1}})
    assert settings.method.name == "t_ce"
    assert settings.config.to_dict()["drop_rate"] == 0.1  # what belongs to deca_p is left behind, this is not
    assert settings.loop.epochs == 3
    # A file that names the same method is heard.
    assert resolve("GMF", "ml-100k", "deca_p", config_files=[file]).config.to_dict()["c_1"] == 7


def test_a_mapping_as_the_denoiser() -> None:
    settings = resolve("GMF", "ml-100k", {"name": "deca", "alpha": 1}, overrides={"denoiser": {"alpha": 0, "c_1": 3}})
    assert (settings.config.to_dict()["alpha"], settings.config.to_dict()["c_1"]) == (1.0, 3.0)


@pytest.mark.parametrize(
    "text",
    [
        "denoiser: r_ce\ndenoiser_alpha: 0.5\n",
        "denoiser: {name: r_ce, alpha: 0.5}\n",
        "denoiser_name: r_ce\ndenoiser_alpha: 0.5\n",
        "denoiser: {name: r_ce, alpha: 0.1}\ndenoiser_alpha: 0.5\n",
        "denoiser: {alpha: 0.5, name: r_ce}\n",
    ],
)
def test_flat_keys_and_the_nested_form_mean_the_same(tmp_path: Path, text: str) -> None:
    settings = resolve("GMF", "ml-100k", config_files=[write(tmp_path, "a.yaml", text)])
    assert settings.method.name == "r_ce"
    assert settings.config.to_dict()["alpha"] == 0.5
    assert not [key for key in settings.options if key.startswith("denoiser")]
    assert denoiser_spec(yaml.safe_load(text)) == {"name": "r_ce", "alpha": 0.5}


def test_flat_keys_beside_a_name_from_elsewhere(tmp_path: Path) -> None:
    assert typed("denoiser_alpha=0.5", denoiser="r_ce").config.to_dict()["alpha"] == 0.5
    file = write(tmp_path, "a.yaml", "denoiser: {l2: 2}\ndenoiser_alpha: 0.5\n")
    assert resolve("GMF", "ml-100k", "r_ce", config_files=[file]).config.to_dict() == {
        "l2": 2.0,
        "compat": "none",
        "alpha": 0.5,
    }
    with pytest.raises(UserError, match="sets denoiser_alpha but no denoiser"):
        denoiser_spec({"denoiser_alpha": 0.5})


def test_compared_methods_take_shared_options_alone() -> None:
    given = ("denoiser.alpha=1", "denoiser.l2=0.5", "epochs=7")
    assert typed(*given, denoiser="deca_p").config.to_dict()["alpha"] == 1
    beside = typed(*given, denoiser="normal", compared=True)
    assert (beside.config.to_dict()["l2"], beside.loop.epochs) == (0.5, 7)
    # alpha of R-CE is another thing than alpha of DeCA(p)
    assert typed(*given, denoiser="r_ce", compared=True).config.to_dict()["alpha"] == 0.25


def test_seed_protocol_and_selector_from_a_file(tmp_path: Path) -> None:
    file = write(tmp_path, "a.yaml", "seed: 7\nprotocol: clean\nvalid_metric: Recall@10\nmodel: other\n")
    settings = resolve("GMF", "ml-100k", config_files=[file])
    assert (settings.seed, settings.loop.seed, settings.options["seed"]) == (7, 7, 7)
    assert settings.protocol == "clean"
    assert settings.loop.selector == "recall@10"
    assert not {"protocol", "model", "dataset"} & settings.options.keys()
    given = resolve("GMF", "ml-100k", config_files=[file], seed=8, protocol="paper")
    assert (given.seed, given.loop.seed, given.protocol) == (8, 8, "paper")


def test_defaults() -> None:
    settings = resolve("GMF", "ml-100k")
    assert settings.method.name == "normal"
    assert (settings.seed, settings.protocol, settings.preset) == (2020, "paper", None)
    assert (settings.loop.selector, settings.loop.patience, settings.batch_size) == ("ndcg@20", 10, 2048)


# Words


def test_assignments() -> None:
    assert parse_assignments(
        ["a=1", "b=1e-3", "c=[1, 2]", "d=word", "e=", "f=a=b", "g=true", "denoiser.alpha=0.5", "denoiser.name=deca"]
    ) == {
        "a": 1,
        "b": 0.001,
        "c": [1, 2],
        "d": "word",
        "e": None,
        "f": "a=b",
        "g": True,
        "denoiser": {"alpha": 0.5, "name": "deca"},
    }


@pytest.mark.parametrize(
    "words",
    [
        ("denoiser=deca", "denoiser.alpha=1"),
        ("denoiser.alpha=1", "denoiser=deca"),
        ("denoiser={name: deca, alpha: 1}",),
    ],
)
def test_a_name_and_options_in_any_order(words: tuple[str, ...]) -> None:
    assert parse_assignments(words) == {"denoiser": {"name": "deca", "alpha": 1}}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("epochs", "must read KEY=VALUE"),
        ("=5", "must read KEY=VALUE"),
        ("a.b=1", "only denoiser.OPTION"),
        ("denoiser.a.b=1", "only denoiser.OPTION"),
        ("denoiser.=1", "only denoiser.OPTION"),
        ("epochs=[1", r"value '\[1' is not"),
        ("epochs=!!python/object:os.system 1", "is not a number, a word or a YAML list"),
        ("denoiser=5", "must be a name or a mapping"),
    ],
)
def test_assignments_that_cannot_be_read(word: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_assignments([word])


# Refused


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["epoch=5"], r"--set: unknown option 'epoch'\. Did you mean 'epochs'\? Valid for GMF: .*train_batch_size"),
        (["n_layers=3"], "unknown option 'n_layers'"),  # LightGCN's, not GMF's
        (["topk=[5]"], "--set topk has no effect: .* recdenoise evaluate measures others"),
        (["eval_args={}"], "--set eval_args has no effect: the data set's folder says"),
        (["load_col=x"], "--set load_col has no effect"),
        (["train_neg_sample_args={}"], "denoisers draw their negatives themselves"),
        (["embedding_size=wide"], "'embedding_size' is 'wide'; it must be a whole number"),
        (["embedding_size=2.5"], "'embedding_size' is 2.5; it must be a whole number"),
        (["embedding_size=0"], "'embedding_size' is 0; it must be 1 or more"),
        (["use_gpu=maybe"], "'use_gpu' is 'maybe'; it must be true or false"),
        (["model=NeuMF"], "--model"),
        (["epochs=-1"], "'epochs' is -1; it must be 1 or more"),
        (["epochs=0"], "'epochs' is 0"),
        (["epochs=2.5"], "'epochs' is 2.5; it must be a whole number"),
        (["epochs=many"], "'epochs' is 'many'; it must be a whole number"),
        (["epochs=.inf"], "'epochs' is inf; it must be a whole number"),
        (["train_batch_size=0"], "'train_batch_size' is 0; it must be 1 or more"),
        (["train_batch_size=big"], "'train_batch_size' is 'big'"),
        (["learning_rate=fast"], "'learning_rate' is 'fast'; it must be a number"),
        (["learning_rate=0"], "'learning_rate' is 0.0; it must be above 0"),
        (["learning_rate=.nan"], "'learning_rate' is nan"),
        (["learner=sgd"], "learner is 'sgd'"),
        (["valid_selector=ndcg"], "Selector 'ndcg' needs a cut-off, as in ndcg@20"),
        (["valid_selector=best"], "Selector 'best' is none of last, loss, trimmed"),
        (["valid_selector=foo@5"], "Unknown metric 'foo@5'"),
        (["stopping_step=soon"], "'stopping_step' is 'soon'"),
        (["eval_steps=0"], "'eval_steps' is 0"),
        (["weight_decay=-1"], "'weight_decay' is -1"),
        (["clip_grad_norm=x"], "'clip_grad_norm' is 'x'"),
        (["seed=x"], "'seed' is 'x'"),
        (["protocol=dirty"], "Unknown protocol 'dirty'. Valid: paper, clean"),
        (["denoiser.alpha=2"], "Option 'alpha' is 2.0; it must be from 0 to 1"),
        (["denoiser.alpha=high"], "Option 'alpha' of denoiser deca is 'high'; it must be a number"),
        (["denoiser.alfa=1"], r"Unknown option of denoiser deca: 'alfa'\. Did you mean 'alpha'\? Valid: .*c_1"),
        (["denoiser.subtask=dq"], "must be one of both, dp, dn"),
        (["denoiser.auxiliary=gfm"], "Unknown model 'gfm'. Did you mean 'GMF'"),
        (["denoiser.auxiliary=Pop"], "Pop cannot be trained by a denoiser"),
        (["denoiser.compat=paper"], "must be one of none, paper_code"),
        (["denoiser.iterative=false"], "only the published code"),
    ],
)
def test_options_that_cannot_work(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        typed(*words, denoiser="deca")


@pytest.mark.parametrize("model", ["Pop", "ItemKNN", "EASE"])
def test_models_that_no_denoiser_can_train(model: str) -> None:
    with pytest.raises(UserError, match=rf"{model} cannot be trained by a denoiser: .* Models that can: .*NeuMF"):
        resolve(model, "ml-100k", "deca")


def test_unknown_names() -> None:
    with pytest.raises(UserError, match=r"Unknown model 'gmf'\. Did you mean 'GMF'\?"):
        resolve("gmf", "ml-100k")
    with pytest.raises(
        UserError, match=r"Unknown denoiser 'deca-p'\. Did you mean 'deca_p'\? Valid: deca, deca_p, ens"
    ):
        resolve("GMF", "ml-100k", "deca-p")
    with pytest.raises(UserError, match=r"Unknown preset 'papers'\. Did you mean 'paper'\?"):
        resolve("GMF", "ml-100k", preset="papers")
    with pytest.raises(UserError, match=r"no settings for BPR on ml-100k\. It has: .*GMF on ml-100k"):
        resolve("BPR", "ml-100k", preset="paper")


def test_a_file_may_serve_several_models_but_not_hold_typing_mistakes(tmp_path: Path) -> None:
    shared = write(tmp_path, "shared.yaml", "n_layers: 3\nmlp_hidden_size: [8]\ntopk: [10]\ngpu_id: '0'\nworker: 2\n")
    assert resolve("GMF", "ml-100k", config_files=[shared]).options["n_layers"] == 3
    wrong = write(tmp_path, "wrong.yaml", "learning_rte: 0.1\n")
    with pytest.raises(UserError, match=rf"{wrong}: unknown option 'learning_rte'\. Did you mean 'learning_rate'\?"):
        resolve("GMF", "ml-100k", config_files=[wrong])


def test_recboles_own_files_are_known_whole() -> None:
    properties = Path(recbole.__file__).parent / "properties"
    assert typed("gpu_id=0", "state=INFO", "checkpoint_dir=x", "reproducibility=false").loop.epochs == 300
    resolve("GMF", "ml-100k", config_files=[properties / "overall.yaml"])
    for model in ("BPR", "NeuMF", "CDAE", "LightGCN", "NCL", "MultiVAE"):
        resolve(model, "ml-100k", config_files=[properties / "model" / f"{model}.yaml"])


@pytest.mark.parametrize(
    ("model", "word", "message"),
    [
        ("NeuMF", "mlp_hidden_size=64", r"'mlp_hidden_size' is 64; it must be a list such as \[128, 64, 32\]"),
        ("NeuMF", "mf_train=perhaps", "'mf_train' is 'perhaps'; it must be true or false"),
        ("BPR", "embedding_size=-1", "'embedding_size' is -1; it must be 1 or more"),
        ("MultiVAE", "dropout_prob=often", "'dropout_prob' is 'often'; it must be a number"),
    ],
)
def test_options_of_models_have_types(model: str, word: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        typed(word, model=model)


# Reading back


@pytest.mark.parametrize(
    ("model", "denoiser", "words"),
    [
        ("GMF", "deca_p", ["denoiser.c_1=12.5", "learning_rate=1e-05"]),
        ("NeuMF", "t_ce", ["stopping_step=", "seed=3"]),
        ("CDAE", "deca", ["denoiser.compat=paper_code", "denoiser.auxiliary=LightGCN"]),
        ("BPR", "ensemble", ["denoiser.members=3", "embedding_size=8"]),
    ],
)
def test_settings_read_back_as_they_were(tmp_path: Path, model: str, denoiser: str, words: list[str]) -> None:
    settings = typed(*words, model=model, denoiser=denoiser)
    text = yaml.safe_dump(settings.to_dict(), sort_keys=False)
    write(tmp_path, "config.yaml", text)
    assert read_settings(tmp_path) == settings
    assert from_dict(yaml.safe_load(text)) == settings
    assert read_settings(tmp_path).identity("1") == settings.identity("1")
    # The file also serves as --config for a run of its own.
    again = resolve(model, "ml-100k", config_files=[tmp_path / "config.yaml"])
    assert again == settings


def test_identity_tells_runs_apart() -> None:
    base = typed("denoiser.alpha=1", denoiser="deca").identity("1")
    for other in (
        typed("denoiser.alpha=0", denoiser="deca"),
        typed("denoiser.alpha=1", "epochs=3", denoiser="deca"),
        typed("denoiser.alpha=1", denoiser="deca", seed=1),
        typed("denoiser.alpha=1", denoiser="deca", protocol="clean"),
    ):
        assert other.identity("1") != base
    assert typed("denoiser.alpha=1", denoiser="deca").identity("2") != base


@pytest.mark.parametrize("lacking", ["model", "dataset", "protocol", "seed", "denoiser", "train_batch_size"])
def test_a_config_that_was_cut_short(lacking: str) -> None:
    saved = resolve("GMF", "ml-100k").to_dict()
    del saved[lacking]
    with pytest.raises(UserError, match=f"config.yaml has no usable {lacking!r}"):
        from_dict(saved)


@pytest.mark.parametrize(("key", "value"), [("seed", "x"), ("denoiser", "deca"), ("train_batch_size", None)])
def test_a_config_with_wrong_types(key: str, value: object) -> None:
    with pytest.raises(UserError, match=f"config.yaml has no usable {key!r}"):
        from_dict({**resolve("GMF", "ml-100k").to_dict(), key: value})


# compat


def test_compat_brings_the_published_rhythm_unless_it_is_typed() -> None:
    words = ["denoiser.compat=paper_code", "valid_selector=loss"]
    settings = typed(*words, denoiser="normal")
    assert {key: settings.options[key] for key in PAPER_CODE} == PAPER_CODE
    assert (settings.loop.eval_steps, settings.loop.patience, settings.loop.paper_code_stopping) == (500, 2, True)
    assert typed(*words, "stopping_step=4", denoiser="normal").loop.patience == 4
    assert typed("denoiser.compat=paper_code", denoiser="normal").loop.eval_steps is None  # a metric chooses


def test_compat_normalises_the_inputs_of_cdae_alone() -> None:
    assert typed("denoiser.compat=paper_code", model="CDAE").options["input_norm"] == "paper_code"
    assert typed(model="CDAE").options["input_norm"] == "none"
    assert "input_norm" not in typed("denoiser.compat=paper_code").options
    assert typed("denoiser.compat=paper_code", "input_norm=none", model="CDAE").options["input_norm"] == "none"


def test_compat_takes_the_published_branch_where_the_preset_has_it() -> None:
    cell = {"model": "LightGCN", "dataset": "adressa", "denoiser": "deca_p", "preset": "paper"}
    assert resolve(**cell).config.iterative
    assert not resolve(**cell, overrides={"denoiser": {"compat": "paper_code"}}).config.iterative
    typed_in = resolve(**cell, overrides={"denoiser": {"compat": "paper_code", "iterative": True}})
    assert typed_in.config.iterative


# RecBole's keys for the loop


def test_recboles_defaults_choose_by_its_valid_metric() -> None:
    config = {
        "epochs": 3,
        "learning_rate": 0.1,
        "seed": 1,
        "eval_step": 2,
        "stopping_step": 10,
        "valid_metric": "MRR@10",
        "clip_grad_norm": {"max_norm": 5, "norm_type": 2},
        "learner": "Adam",
    }
    loop = loop_config(config, validation_data=True)
    assert (loop.selector, loop.eval_every, loop.patience, loop.clip_grad_norm) == ("mrr@10", 2, 10, 5.0)
    assert loop_config(config, validation_data=False).selector == "last"
    assert loop_config({**config, "eval_step": 0}, validation_data=True).selector == "last"
    assert loop_config({**config, "valid_selector": "loss"}, validation_data=True).selector == "loss"
    assert loop_config({**config, "stopping_step": 0}, validation_data=True).patience == 1
    assert loop_config({**config, "enable_amp": True}, validation_data=True).precision == "bf16"


def test_a_selector_that_nothing_is_validated_for_is_refused() -> None:
    with pytest.raises(UserError, match=r"valid_selector is 'recall@20', but eval_step is 0: nothing is validated"):
        typed("eval_step=0", "valid_selector=recall@20")
    with pytest.raises(UserError, match="but there is no validation data"):
        loop_config({"eval_step": 1, "valid_selector": "loss"}, validation_data=False)
    assert typed("eval_step=0").options["valid_selector"] == "last"
    assert typed("eval_step=0", "valid_selector=last").loop.selector == "last"


@pytest.mark.parametrize("clip", [{"max_norm": 1, "norm_type": 1}, {"max_norm": 1, "foreach": True}])
def test_only_the_usual_norm_of_gradients_is_clipped(clip: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"'clip_grad_norm' is .*max_norm with norm_type 2"):
        loop_config({"eval_step": 1, "clip_grad_norm": clip}, validation_data=True)


def test_a_seed_of_numpys_is_the_plain_one() -> None:
    settings = resolve("GMF", "ml-100k", seed=np.int64(3))  # type: ignore[arg-type]
    assert type(settings.seed) is int
    assert from_dict(yaml.safe_load(yaml.safe_dump(settings.to_dict()))) == resolve("GMF", "ml-100k", seed=3)
    with pytest.raises(UserError, match=r"The seed is 1\.5; it must be a whole number"):
        resolve("GMF", "ml-100k", seed=1.5)  # type: ignore[arg-type]


def test_draws_follow_from_the_number_and_not_from_its_type() -> None:
    assert seeds.derive(3, "stage", 0) == 322039290313410644
    assert seeds.derive(np.int32(3), np.str_("stage"), np.int64(0)) == seeds.derive(3, "stage", 0)  # type: ignore[arg-type]
