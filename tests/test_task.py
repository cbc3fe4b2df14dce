"""The RecBole task: seeds, sizes, order of scans, caches; and validation against plain loops."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recdenoise import denoisers, ranking
from recdenoise.errors import TrainingError, UserError
from recdenoise.interactions import Interactions
from recdenoise.loop import Loop, LoopConfig
from recdenoise.recbole_adapter import task as task_module
from recdenoise.recbole_adapter import validation as validation_module
from recdenoise.recbole_adapter.loaders import PairLoader, Pairs, RowLoader, WholeRows
from recdenoise.recbole_adapter.task import RecBoleTask
from recdenoise.recbole_adapter.trainer import model_builder, training_pairs
from recdenoise.recbole_adapter.validation import PairValidation
from recdenoise.task import Pass
from tests.tiny_recbole import N_ITEMS, N_USERS, tiny_config, tiny_dataset, write_inter


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    write_inter(path)
    return path


def make_task(folder: Path, model: str, own_models: bool = True, **options: Any) -> RecBoleTask:
    keywords = {name: options.pop(name) for name in ("seed", "batch_size", "first_target") if name in options}
    config = tiny_config(folder, model, own_models, **options)
    dataset = tiny_dataset(config)
    return RecBoleTask(
        *training_pairs(dataset),
        dataset.user_num,
        dataset.item_num,
        new_model=model_builder(config, dataset, config.model_class),
        device="cpu",
        **{"seed": 11, "batch_size": 16, **keywords},
    )


def weights(module: torch.nn.Module) -> Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in module.parameters()])


# Networks


@pytest.mark.parametrize("model", ["GMF", "NeuMF", "CDAE", "LightGCN", "BPR"])
def test_targets_follow_seed_and_member_alone(folder: Path, model: str) -> None:
    task = make_task(folder, model)
    torch.manual_seed(1)
    first = task.new_target(0)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again, other = task.new_target(0), task.new_target(1)
    assert torch.equal(torch.get_rng_state(), state), "building a network moved the global generator"
    assert first is not again
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(other))
    assert not torch.equal(weights(first), weights(make_task(folder, model, seed=12).new_target(0)))


def test_member_0_is_the_model_that_recbole_was_handed(folder: Path) -> None:
    handed = make_task(folder, "GMF").new_target(0)
    task = make_task(folder, "GMF", first_target=handed)
    assert task.new_target(0) is handed
    assert task.new_target(1) is not handed


def test_auxiliaries_have_the_papers_sizes_whatever_the_targets(folder: Path) -> None:
    task = make_task(folder, "GMF", embedding_size=4)
    assert task.new_target(0).state_dict()["user_embedding.weight"].shape[1] == 4
    mf, gmf, neumf = (task.new_auxiliary(kind, 100) for kind in ("mf", "gmf", "neumf"))
    assert [type(module).__name__ for module in (mf, gmf, neumf)] == ["MF", "GMF", "NeuMF"]
    assert mf.user_embedding.weight.shape == gmf.user_embedding.weight.shape == (N_USERS, 32)
    assert neumf.user_mf_embedding.weight.shape == (N_USERS, 32)
    assert neumf.user_mlp_embedding.weight.shape == (N_USERS, 128)
    graph = task.new_auxiliary("LightGCN", 102)
    assert graph.user_embedding.weight.shape == (N_USERS, 64)
    assert not torch.equal(weights(task.new_auxiliary("mf", 100)), weights(task.new_auxiliary("mf", 101)))
    assert torch.equal(weights(task.new_auxiliary("mf", 100)), weights(mf))


def test_unknown_auxiliary_lists_the_models(folder: Path) -> None:
    with pytest.raises(UserError, match=r"Unknown model 'gfm'. Did you mean .*NeuMF"):
        make_task(folder, "GMF").new_auxiliary("gfm", 100)


@pytest.mark.parametrize(
    ("model", "options"),
    [("NeuMF", {"dropout_prob": 3.0}), ("GMF", {"embedding_size": -3}), ("CDAE", {"hid_activation": 5})],
)
def test_options_that_a_model_refuses(folder: Path, model: str, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{model} cannot be built with the options it is given: "):
        make_task(folder, model, **options)


def test_l2_is_shared_among_real_users(folder: Path) -> None:
    assert make_task(folder, "GMF").l2_scale == 1 / (N_USERS - 1)


@pytest.mark.parametrize(
    ("model", "rowwise"), [("GMF", False), ("LightGCN", False), ("CDAE", True), ("MultiVAE", True)]
)
def test_loaders_by_kind_of_model(folder: Path, model: str, rowwise: bool) -> None:
    task = make_task(folder, model)
    assert task.rowwise is rowwise
    assert type(task.loader(Pass(), (0, 0, 0))) is (RowLoader if rowwise else PairLoader)


@pytest.mark.parametrize(("n", "batch_size", "message"), [(0, 4, "empty"), (3, 0, "batch size is 0")])
def test_nothing_to_train_on(n: int, batch_size: int, message: str) -> None:
    pairs = torch.ones(n, dtype=torch.int64)
    with pytest.raises(UserError, match=message):
        RecBoleTask(
            pairs, pairs, 5, 5, new_model=lambda _: torch.nn.Linear(1, 1), seed=1, batch_size=batch_size, device="cpu"
        )


# Scans


@pytest.mark.parametrize("model", ["GMF", "LightGCN", "CDAE", "MultiVAE"])
def test_scan_equals_a_plain_loop_in_the_order_of_the_rows(
    folder: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_module, "SCAN_PAIRS", 7)
    monkeypatch.setattr(task_module, "SCAN_ROWS", 4)
    task = make_task(folder, model)
    module = task.new_target(0).eval()
    seen: list[int] = []

    def function(inputs: Pairs) -> Tensor:
        seen.append(len(inputs.users))
        if task.rowwise:
            distinct, row = inputs.rows or pytest.fail("an autoencoder was not told its users")
            assert len(distinct) <= 4
            assert torch.equal(distinct[row], inputs.users)
        return task.call(module, inputs)

    generator = torch.Generator().manual_seed(2)
    order = torch.randperm(task.n_rows, generator=generator)
    users, items = task.data.users[order], task.data.items[order]
    found = task.scan_pairs(function, users, items)
    assert len(seen) > 3
    assert not found.requires_grad
    with torch.no_grad():
        for place in range(0, task.n_rows, 5):
            one = Pairs(users[place : place + 1], items[place : place + 1])
            assert found[place].item() == pytest.approx(task.call(module, one).item(), abs=1e-5)
    assert torch.allclose(task.scan(function)[order], found, atol=1e-5)


def test_scan_keeps_further_dimensions(folder: Path) -> None:
    task = make_task(folder, "CDAE")
    found = task.scan(lambda inputs: torch.stack([inputs.users, inputs.items], dim=1))
    assert torch.equal(found, torch.stack([task.data.users, task.data.items], dim=1))


def test_whole_rows_hold_the_scores_of_the_pairs(folder: Path) -> None:
    for model in ("GMF", "CDAE"):
        task = make_task(folder, model)
        module = task.new_target(0).eval()
        users = torch.tensor([3, 1, 8])
        full = task.call(module, WholeRows(users))
        assert full.shape == (3, N_ITEMS)
        items = torch.arange(N_ITEMS)
        pairs = task.scan_pairs(
            lambda inputs, module=module, task=task: task.call(module, inputs),
            users.repeat_interleave(N_ITEMS),
            items.repeat(3),
        )
        assert torch.allclose(full.reshape(-1), pairs, atol=1e-5)


# Caches


def test_a_step_begins_without_cached_embeddings(folder: Path) -> None:
    task = make_task(folder, "NGCF")
    denoiser = denoisers.get("normal")(task)
    denoiser.eval()
    with torch.no_grad():
        stale = denoiser.score(WholeRows(torch.tensor([1])))
        assert denoiser.target.restore_user_e is not None  # RecBole caches here
        for parameter in denoiser.parameters():
            parameter.add_(0.5)
        assert torch.equal(denoiser.score(WholeRows(torch.tensor([1]))), stale)
        task.begin_step(denoiser)
        assert not torch.allclose(denoiser.score(WholeRows(torch.tensor([1]))), stale)


@pytest.mark.parametrize("model", ["NGCF", "LightGCN"])
def test_validation_follows_training(folder: Path, model: str) -> None:
    """RecBole's cached embeddings would give one and the same metric for every epoch."""
    task = make_task(folder, model)
    denoiser = denoisers.get("normal")(task)
    held_out = torch.arange(1, N_USERS), torch.arange(1, N_USERS) % (N_ITEMS - 1) + 1
    validation = PairValidation(task, *held_out)
    config = LoopConfig(epochs=4, lr=0.05, selector="last", seed=3)
    history = Loop(denoiser, task, config, validate=validation, log_values={"ndcg@5", "loss"}).run()
    for name in ("valid_ndcg@5", "valid_loss"):
        values = [row[name] for row in history]
        assert len(set(values)) == len(values), f"{name} stands still: {values}"
    task.begin_step(denoiser)
    assert validation(denoiser.score, {"ndcg@5"})["ndcg@5"] == pytest.approx(history[-1]["valid_ndcg@5"])


# Validation


@pytest.fixture(scope="module")
def judged(folder: Path) -> tuple[RecBoleTask, PairValidation, Tensor]:
    """A task, ten held-out pairs, and a table of made-up scores."""
    task = make_task(folder, "GMF")
    known = set(zip(task.data.users.tolist(), task.data.items.tolist(), strict=True))
    free = [(u, i) for u in range(1, N_USERS) for i in range(1, N_ITEMS) if (u, i) not in known]
    users, items = torch.tensor(free[::37]).T.contiguous()
    table = torch.randn(N_USERS, N_ITEMS, generator=torch.Generator().manual_seed(4))
    return task, PairValidation(task, users, items), table


def from_table(table: Tensor) -> Any:
    return lambda inputs: table[inputs.users] if isinstance(inputs, WholeRows) else table[inputs.users, inputs.items]


def test_validation_losses_equal_a_plain_loop(judged: tuple[RecBoleTask, PairValidation, Tensor]) -> None:
    task, validation, table = judged
    known = set(zip(task.data.users.tolist(), task.data.items.tolist(), strict=True))
    held_out = list(zip(validation.users.tolist(), validation.items.tolist(), strict=True))
    drawn = list(zip(validation.users.tolist(), validation.negatives[1].tolist(), strict=True))
    assert not set(drawn) & (known | set(held_out))
    assert min(item for _, item in drawn) >= 1
    positive = [math.log1p(math.exp(-table[pair].item())) for pair in held_out]
    negative = [math.log1p(math.exp(table[pair].item())) for pair in drawn]
    kept = sorted(positive)[: len(positive) - int(0.2 * len(positive))]
    assert 0 < len(kept) < len(positive)
    mean = sum(negative) / len(negative)
    found = validation(from_table(table), {"loss", "trimmed_loss"})
    assert found["loss"] == pytest.approx(sum(positive) / len(positive) + mean)
    assert found["trimmed_loss"] == pytest.approx(sum(kept) / len(kept) + mean)
    assert found["trimmed_loss"] < found["loss"]


def test_validation_negatives_are_drawn_once(judged: tuple[RecBoleTask, PairValidation, Tensor]) -> None:
    task, validation, table = judged
    again = PairValidation(task, validation.users, validation.items)
    assert torch.equal(validation.negatives[1], again.negatives[1])
    assert validation(from_table(table), {"loss"}) == validation(from_table(table), {"loss"})


def test_validation_ranks_with_training_pairs_masked(
    judged: tuple[RecBoleTask, PairValidation, Tensor],
) -> None:
    task, validation, table = judged
    known = set(zip(task.data.users.tolist(), task.data.items.tolist(), strict=True))
    held_out = set(zip(validation.users.tolist(), validation.items.tolist(), strict=True))
    recalls = []
    for user in sorted({u for u, _ in held_out}):
        order = sorted(range(1, N_ITEMS), key=lambda item, user=user: -table[user, item].item())
        listed = [item for item in order if (user, item) not in known][:3]
        mine = {i for u, i in held_out if u == user}
        recalls.append(len(mine & set(listed)) / len(mine))
    found = validation(from_table(table), {"recall@3", "ndcg@5", "loss"})
    assert set(found) == {"recall@3", "ndcg@5", "loss"}
    assert found["recall@3"] == pytest.approx(sum(recalls) / len(recalls))
    truth = Interactions.from_pairs(validation.users, validation.items, N_USERS, N_ITEMS)
    expected = ranking.evaluate(
        lambda users: table[users], truth, topk=[5], metrics=["ndcg"], mask=task.data.lists, first_item=1
    )
    assert found["ndcg@5"] == expected.mean["ndcg@5"]


@pytest.mark.parametrize("seed", range(12))
def test_users_beaten_by_popular_items_are_not_ranked_and_nothing_changes(
    judged: tuple[RecBoleTask, PairValidation, Tensor], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    task, _, _ = judged
    monkeypatch.setattr(task, "ranks_by_pairs", True)
    monkeypatch.setattr(validation_module, "RIVALS", 5)
    monkeypatch.setattr(task_module, "SCAN_PAIRS", 25)
    draw = torch.Generator().manual_seed(seed)
    users = torch.randint(1, N_USERS, (3 * N_USERS,), generator=draw)
    items = torch.randint(1, N_ITEMS, (3 * N_USERS,), generator=draw)  # some of them masked, some twice
    popularity = task.data.lists.item_popularity()
    table = torch.randn(N_USERS, N_ITEMS, generator=draw) + seed / 4 * popularity
    if seed % 3 == 0:
        table = table.round()  # ties, which are never beaten
    scored: list[int] = []

    def score(inputs: Any) -> Tensor:
        if isinstance(inputs, WholeRows):
            scored.extend(inputs.users.tolist())
        return from_table(table)(inputs)

    validation = PairValidation(task, users, items)
    metrics = ["recall@3", "ndcg@2", "mrr@3", "hit@1"]
    found = validation(score, set(metrics))
    lists = task.data.lists
    expected = ranking.evaluate(
        lambda some: table[some], validation.truth, topk=[], metrics=metrics, mask=lists, first_item=1
    )
    assert found == expected.mean
    hit = set(expected.users[expected.per_user["recall@3"] > 0].tolist())
    rivals = popularity[1:].sort(descending=True).values[:5]
    assert validation.rivals is not None
    assert popularity[validation.rivals].tolist() == rivals.tolist()
    assert 0 not in validation.rivals
    known = set(zip(task.data.users.tolist(), task.data.items.tolist(), strict=True))
    for user in set(users.tolist()):
        mine = [i for u, i in zip(users.tolist(), items.tolist(), strict=True) if u == user and (u, i) not in known]
        best = max((table[user, i].item() for i in mine), default=-math.inf)
        free = [table[user, i].item() for i in validation.rivals.tolist() if (user, i) not in known]
        ahead = sum(not mine or value > best + 1e-4 * (1 + abs(best)) for value in free)
        assert (user in scored) == (ahead < 3)
    assert hit <= set(scored)
    assert len(scored) == len(set(scored)) < len(set(users.tolist()))


def test_a_cut_off_beyond_the_popular_items_ranks_everybody(
    judged: tuple[RecBoleTask, PairValidation, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    task, given, table = judged
    expected = given(from_table(table), {"recall@6"})
    monkeypatch.setattr(task, "ranks_by_pairs", True)
    monkeypatch.setattr(validation_module, "RIVALS", 5)
    validation = PairValidation(task, given.users, given.items)
    assert validation.rivals is not None

    def whole_rows_alone(inputs: Any) -> Tensor:
        assert isinstance(inputs, WholeRows), "rivals were scored in vain"
        return table[inputs.users]

    assert validation(whole_rows_alone, {"recall@6"}) == expected


def test_a_model_that_diverged_is_not_taken_for_one_without_hits(
    judged: tuple[RecBoleTask, PairValidation, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    task, given, table = judged
    monkeypatch.setattr(task, "ranks_by_pairs", True)
    monkeypatch.setattr(validation_module, "RIVALS", 5)
    validation = PairValidation(task, given.users, given.items)
    assert validation.rivals is not None
    for broken in (given.items[:1], validation.rivals[:4], torch.arange(N_ITEMS)):
        scores = table.clone()
        scores[given.users[0], broken] = torch.nan
        with pytest.raises(TrainingError, match="NaN"):
            validation(from_table(scores), {"recall@3"})
    scores = table.clone()
    scores[:, validation.rivals] = 1e3  # everybody is behind them, but one of them is broken
    scores[:, validation.rivals[0]] = torch.nan
    with pytest.raises(TrainingError, match="NaN"):
        validation(from_table(scores), {"recall@3"})


def test_a_user_who_has_everything_between_the_sets_lends_no_negative(folder: Path) -> None:
    task = make_task(folder, "GMF")
    whole, other = 5, 6
    free = [
        item
        for item in range(1, N_ITEMS)
        if not bool(task.data.lists.contains(torch.tensor(whole), torch.tensor(item)))
    ]
    users = torch.tensor([whole] * len(free) + [other])
    absent = next(
        i for i in range(1, N_ITEMS) if not bool(task.data.lists.contains(torch.tensor(other), torch.tensor(i)))
    )
    validation = PairValidation(task, users, torch.tensor([*free, absent]))
    table = torch.randn(N_USERS, N_ITEMS, generator=torch.Generator().manual_seed(4))
    drawn_for, drawn = validation.negatives
    assert drawn_for.tolist() == [other]
    positive = torch.nn.functional.softplus(-table[users, validation.items]).mean()
    negative = torch.nn.functional.softplus(table[other, drawn[0]])
    assert validation(from_table(table), {"loss"})["loss"] == pytest.approx((positive + negative).item())
    alone = PairValidation(task, users[:-1], validation.items[:-1])
    assert alone(from_table(table), {"loss"})["loss"] == pytest.approx(
        torch.nn.functional.softplus(-table[users[:-1], alone.items]).mean().item()
    )


def test_scans_go_by_the_network_that_takes_the_fewest_pairs(folder: Path) -> None:
    assert make_task(folder, "GMF").scan_pairs_at_once == task_module.SCAN_PAIRS
    task = make_task(folder, "ConvNCF", own_models=False, embedding_size=64)
    assert task.scan_pairs_at_once == 1024
    task = make_task(folder, "GMF")
    task.new_auxiliary("FISM", 0)
    assert task.scan_pairs_at_once < task_module.SCAN_PAIRS


@pytest.mark.parametrize(
    ("model", "own_models", "options", "by_pairs"),
    [
        ("NeuMF", True, {}, True),
        ("NeuMF", True, {"mlp_train": False}, False),
        ("NeuMF", False, {}, True),
        ("NNCF", False, {}, True),
        ("GMF", True, {}, False),
        ("LightGCN", True, {}, False),
        ("BPR", False, {}, False),
        ("CDAE", True, {}, False),
    ],
)
def test_models_that_rank_by_pairs(
    folder: Path, model: str, own_models: bool, options: dict[str, Any], by_pairs: bool
) -> None:
    assert make_task(folder, model, own_models, **options).ranks_by_pairs is by_pairs


@pytest.mark.parametrize("model", ["GMF", "CDAE"])
def test_logits_under_bfloat16_have_single_precision(folder: Path, model: str) -> None:
    task = make_task(folder, model)
    network, (users, items) = task.new_target(0), (task.data.users[:8], task.data.items[:8])
    seen: list[torch.dtype] = []

    def look(inputs: Pairs) -> Tensor:
        seen.append(task.call(network, inputs).dtype)
        return torch.zeros(len(inputs.users))

    with torch.autocast("cpu", torch.bfloat16):
        task.scan_pairs(look, users, items)
        seen.append(task.call(network, WholeRows(users)).dtype)
    assert seen == [torch.float32, torch.float32]
