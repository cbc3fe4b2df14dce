"""Our models against plain recomputations, against RecBole's classes with the same weights, and inside RecBole."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from recdenoise.errors import UserError
from recdenoise.recbole_adapter.models import MODELS, paper_model_config
from recdenoise.recbole_adapter.models.graph import Adjacency, normalised_adjacency, product, propagate
from tests.tiny_recbole import N_ITEMS, N_USERS, build_model, tiny_config, tiny_dataset, write_inter


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    write_inter(path)
    return path


def scrambled(model: Any, std: float = 0.3) -> Any:
    """The model with weights large enough that a mistake shows."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return model


USERS = torch.tensor([1, 1, 2, 30, 7, 7, 7])
ITEMS = torch.tensor([1, 20, 3, 4, 5, 6, 5])


def test_mf_and_gmf_by_hand(folder: Path) -> None:
    mf, gmf = scrambled(build_model(folder, "MF")), scrambled(build_model(folder, "GMF"))
    for user, item, a, b in zip(USERS, ITEMS, mf(USERS, ITEMS), gmf(USERS, ITEMS), strict=True):
        u, i = mf.user_embedding.weight[user], mf.item_embedding.weight[item]
        assert float(a) == pytest.approx(sum(float(x) * float(y) for x, y in zip(u, i, strict=True)), abs=1e-5)
        u, i, w = gmf.user_embedding.weight[user], gmf.item_embedding.weight[item], gmf.predict_layer.weight[0]
        expected = sum(float(x * y * z) for x, y, z in zip(u, i, w, strict=True)) + float(gmf.predict_layer.bias)
        assert float(b) == pytest.approx(expected, abs=1e-5)


def neumf_by_hand(model: Any, user: int, item: int) -> float:
    double = {name: value.double().numpy() for name, value in model.state_dict().items()}
    parts = []
    if model.mf_train:
        parts.append(double["user_mf_embedding.weight"][user] * double["item_mf_embedding.weight"][item])
    if model.mlp_train:
        tables = "user_mlp_embedding.weight", "item_mlp_embedding.weight"
        hidden = np.concatenate([double[tables[0]][user], double[tables[1]][item]])
        for name in (n for n in double if n.startswith("mlp_layers.") and n.endswith("weight")):
            hidden = np.maximum(double[name] @ hidden + double[name.replace("weight", "bias")], 0)
        parts.append(hidden)
    return float(double["predict_layer.weight"][0] @ np.concatenate(parts) + double["predict_layer.bias"][0])


@pytest.mark.parametrize(("mf", "mlp"), [(True, True), (True, False), (False, True)])
def test_neumf_by_hand_and_full_ranking(folder: Path, mf: bool, mlp: bool) -> None:
    sizes = {"mf_embedding_size": 6, "mlp_embedding_size": 10, "mlp_hidden_size": [9, 5], "dropout_prob": 0.0}
    model = scrambled(build_model(folder, "NeuMF", mf_train=mf, mlp_train=mlp, **sizes))
    by_hand = [neumf_by_hand(model, int(u), int(i)) for u, i in zip(USERS, ITEMS, strict=True)]
    assert model(USERS, ITEMS).tolist() == pytest.approx(by_hand, abs=1e-5)
    everyone = torch.arange(N_USERS)
    pairs = model(everyone.repeat_interleave(N_ITEMS), torch.arange(N_ITEMS).repeat(N_USERS)).view(N_USERS, N_ITEMS)
    torch.testing.assert_close(model.full_logits(everyone), pairs, atol=1e-5, rtol=1e-5)
    model(USERS, ITEMS).sum().backward()
    dead = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert dead == []


def test_neumf_equals_recbole_values_and_gradients(folder: Path) -> None:
    ours, theirs = (build_model(folder, "NeuMF", own) for own in (True, False))
    theirs.eval()
    ours.eval()
    theirs.load_state_dict(scrambled(ours).state_dict())
    many = torch.randint(1, N_USERS, (200,)), torch.randint(1, N_ITEMS, (200,))
    for users, items in ((USERS, ITEMS), many):  # distinct rows only, and the whole table
        ours.zero_grad()
        theirs.zero_grad()
        torch.testing.assert_close(ours(users, items), theirs(users, items), atol=1e-5, rtol=1e-5)
        for model in (ours, theirs):
            model(users, items).square().sum().backward()
        for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, atol=1e-4, rtol=1e-4, msg=name)


def test_neumf_blocks_cover_a_catalogue_larger_than_a_block(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recdenoise.recbole_adapter.models import neumf

    model = scrambled(build_model(folder, "NeuMF")).eval()
    expected = model.full_logits(USERS)
    for size in (7, 50):
        monkeypatch.setattr(neumf, "_PAIRS_PER_BLOCK", size)
        torch.testing.assert_close(model.full_logits(USERS), expected, atol=1e-5, rtol=1e-5)


def dense_adjacency(users: torch.Tensor, items: torch.Tensor, n_users: int, n_items: int) -> torch.Tensor:
    adjacency = torch.zeros(n_users + n_items, n_users + n_items, dtype=torch.float64)
    adjacency[users, n_users + items] = 1
    adjacency = adjacency + adjacency.t()
    degree = adjacency.sum(1)
    scale = torch.where(degree > 0, degree.rsqrt(), 0.0)
    return scale[:, None] * adjacency * scale


def as_dense(matrix: Adjacency, n: int) -> torch.Tensor:
    return torch.sparse_csr_tensor(matrix.crow, matrix.col, matrix.value, (n, n)).to_dense()


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.integers(1, 7), st.integers(0, 25), st.integers(0, 4), st.integers(0, 10**6))
def test_propagation_equals_dense_powers(n_users: int, n_items: int, n: int, layers: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    users = torch.randint(n_users, (n,), generator=generator)
    items = torch.randint(n_items, (n,), generator=generator)
    nodes = n_users + n_items
    matrix = normalised_adjacency(users, items, n_users, n_items)
    dense = dense_adjacency(users, items, n_users, n_items)
    torch.testing.assert_close(as_dense(matrix, nodes).double(), dense, atol=1e-6, rtol=1e-6)
    # the values in double precision, so that the comparison is sharp
    row = torch.repeat_interleave(torch.arange(nodes), matrix.crow.diff().long())
    exact = Adjacency(matrix.crow, matrix.col, dense[row, matrix.col.long()])
    x = torch.randn(nodes, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    expected = sum(torch.linalg.matrix_power(dense, k) @ x for k in range(layers + 1)) / (layers + 1)
    target = torch.randn(nodes, 3, generator=generator, dtype=torch.float64)
    out = propagate(exact, x, layers)
    torch.testing.assert_close(out, expected, atol=1e-9, rtol=1e-9)
    (ours,) = torch.autograd.grad((out.sigmoid() * target).sum(), x)
    (theirs,) = torch.autograd.grad((expected.sigmoid() * target).sum(), x)
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)
    single = product(matrix, x.detach().float())  # the single-precision kernel
    torch.testing.assert_close(single.double(), dense @ x.detach(), atol=1e-5, rtol=1e-5)


def test_propagation_gradients_of_first_and_second_order() -> None:
    users, items = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 0])
    matrix = normalised_adjacency(users, items, 3, 3)
    matrix = matrix._replace(value=matrix.value.double())
    # float32 roundings of the values would make A differ from its transpose: here they are equal by construction
    x = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: propagate(matrix, y, 3), (x,))
    assert torch.autograd.gradgradcheck(lambda y: propagate(matrix, y, 3).tanh(), (x,))


def test_lightgcn_equals_recbole(folder: Path) -> None:
    ours, theirs = (build_model(folder, "LightGCN", own, n_layers=3) for own in (True, False))
    theirs.load_state_dict(ours.state_dict())
    for a, b in zip(ours(), theirs(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    batch = {ours.USER_ID: USERS, ours.ITEM_ID: ITEMS, ours.NEG_ITEM_ID: ITEMS.flip(0)}
    losses = [model.calculate_loss(batch) for model in (ours, theirs)]
    torch.testing.assert_close(*losses, atol=1e-6, rtol=1e-5)
    for loss in losses:
        loss.backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-4)


def test_lightgcn_copies_and_forgets(folder: Path) -> None:
    model = build_model(folder, "LightGCN").eval()
    users = torch.tensor([1, 2])
    before = model.full_logits(users)
    assert model.restore_user_e is not None
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin.full_logits(users), before)
    model.load_state_dict({key: value * 2 for key, value in model.state_dict().items()})
    torch.testing.assert_close(model.full_logits(users), 4 * before)
    model.train()
    assert model.restore_user_e is None
    assert set(model.state_dict()) == {"user_embedding.weight", "item_embedding.weight"}
    assert {part.data_ptr() for part in twin.graph}.isdisjoint(part.data_ptr() for part in model.graph)


@pytest.mark.parametrize("activation", ["tanh", "relu", "sigmoid"])
def test_cdae_equals_recbole(folder: Path, activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from recdenoise.recbole_adapter.models import cdae

    ours, theirs = (build_model(folder, "CDAE", own, hid_activation=activation) for own in (True, False))
    theirs.load_state_dict(scrambled(ours).state_dict())
    ours.eval()
    theirs.eval()
    everyone = torch.arange(N_USERS)
    rows = theirs.get_rating_matrix(everyone)
    torch.testing.assert_close(ours.get_rating_matrix(everyone), rows, atol=0, rtol=0)
    expected = theirs(rows, everyone)
    torch.testing.assert_close(ours(rows, everyone), expected)
    batch = {ours.USER_ID: USERS, ours.ITEM_ID: ITEMS}
    torch.testing.assert_close(ours.full_sort_predict(batch), theirs.full_sort_predict(batch), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.predict(batch), theirs.predict(batch), atol=1e-5, rtol=1e-5)
    distinct, where = torch.unique(USERS, return_inverse=True)
    gradients = []
    for cells in (0, 10**9):  # the sparse and the dense way, in the encoder and in the decoder
        monkeypatch.setattr(cdae, "_CELLS_PER_PAIR", cells)
        ours.zero_grad()
        torch.testing.assert_close(ours.row_logits(everyone), expected, atol=1e-5, rtol=1e-5)
        logits = ours.pair_logits(USERS, ITEMS, (distinct, where))
        torch.testing.assert_close(logits, expected[USERS, ITEMS], atol=1e-5, rtol=1e-5)
        logits.square().sum().backward()
        gradients.append([p.grad.clone() for p in ours.parameters()])
    expected[USERS, ITEMS].square().sum().backward()
    gradients.append([p.grad for p in theirs.parameters()])
    for sparse, dense, recbole in zip(*gradients, strict=True):
        torch.testing.assert_close(sparse, recbole, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(dense, recbole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cells", [0, 10**9])
def test_cdae_corrupts_half_of_the_ones_and_keeps_the_mean(
    folder: Path, cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recdenoise.recbole_adapter.models import cdae

    monkeypatch.setattr(cdae, "_CELLS_PER_PAIR", cells)
    model = scrambled(build_model(folder, "CDAE", hid_activation="tanh"))
    model.h_act = nn.Identity()  # so that the mean over corruptions is the clean value
    users = torch.arange(1, 9)
    clean = model.eval().encode(users)
    torch.manual_seed(0)
    drawn = torch.stack([model.train().encode(users) for _ in range(3000)])
    assert drawn.std(0).min() > 0.1
    torch.testing.assert_close(drawn.mean(0), clean, atol=0.1, rtol=0)


def test_cdae_paper_norm(folder: Path) -> None:
    model = scrambled(build_model(folder, "CDAE", input_norm="paper_code", corruption_ratio=0.0)).train()
    users = torch.arange(1, N_USERS)
    ones = model.get_rating_matrix(users)
    row_norm, column_norm = ones.norm(dim=1, keepdim=True), ones.norm(dim=0, keepdim=True)
    scaled = torch.where(ones > 0, ones / (row_norm * column_norm).sqrt(), 0.0)
    expected = model.out_layer(model.h_act(model.h_user(users) + model.h_item(scaled)))
    torch.testing.assert_close(model.row_logits(users), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(ones, users), expected, atol=1e-5, rtol=1e-5)
    model.eval()  # the batch held everybody, so evaluation agrees with it, for any subset
    torch.testing.assert_close(model.row_logits(users[3:6]), expected[3:6], atol=1e-5, rtol=1e-5)
    half = users[::2]
    fresh = scrambled(build_model(folder, "CDAE", input_norm="paper_code", corruption_ratio=0.0)).train()
    fresh.row_logits(half)
    assert int(fresh.batch_users) == half.numel()
    assert int(fresh.state_dict()["batch_users"]) == half.numel()
    with pytest.raises(UserError, match=r"input_norm of CDAE 'papercode'.*paper_code"):
        build_model(folder, "CDAE", input_norm="papercode")


def test_cdae_user_without_history(folder: Path) -> None:
    model = build_model(folder, "CDAE").eval()
    padding = torch.tensor([0])
    assert model.row_logits(padding).isfinite().all()
    assert model.get_rating_matrix(padding).sum() == 0


def test_initialisation_is_the_papers(folder: Path) -> None:
    torch.manual_seed(0)
    wide = {"embedding_size": 512}
    for name, std in (("MF", 0.01), ("GMF", 0.01), ("LightGCN", 0.1)):
        model = build_model(folder, name, **wide)
        for table in (model.user_embedding, model.item_embedding):
            assert float(table.weight.detach().std()) == pytest.approx(std, rel=0.05)
    sizes = {"mf_embedding_size": 256, "mlp_embedding_size": 256, "mlp_hidden_size": [128, 256], "dropout_prob": 0.0}
    neumf = build_model(folder, "NeuMF", **sizes)
    assert float(neumf.user_mlp_embedding.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
    first = neumf.mlp_layers.mlp_layers[1]
    assert float(first.weight.detach().std()) == pytest.approx(math.sqrt(2 / (512 + 128)), rel=0.05)
    bound = math.sqrt(3 / 512)  # Kaiming uniform, a = 1, gain of the sigmoid 1
    head = neumf.predict_layer.weight.detach().abs()
    assert float(head.max()) == pytest.approx(bound, rel=0.05)
    assert float(head.max()) <= bound
    assert float(neumf.predict_layer.bias.detach()) == 0


def test_paper_sizes(folder: Path) -> None:
    assert paper_model_config("NeuMF")["mlp_hidden_size"] == [128, 64, 32]
    paper_model_config("NeuMF")["mlp_hidden_size"].append(1)
    assert paper_model_config("NeuMF")["mlp_hidden_size"] == [128, 64, 32]
    for name, entry in MODELS.items():
        model = build_model(folder, name, **paper_model_config(name))
        assert type(model) is entry.cls
        assert paper_model_config(model) == paper_model_config(entry.cls) == entry.paper_config
    with pytest.raises(UserError, match=r"Unknown model 'BPR'.*GMF"):
        paper_model_config("BPR")


@pytest.mark.parametrize("name", sorted(MODELS))
def test_recbole_trains_and_evaluates_it(folder: Path, name: str) -> None:
    from recbole.data import create_dataset, data_preparation
    from recbole.trainer import Trainer
    from recbole.utils import init_seed

    config = tiny_config(folder, name, epochs=2, show_progress=False, eval_batch_size=64)
    init_seed(0, True)
    train, valid, test = data_preparation(config, create_dataset(config))
    model = config.model_class(config, train._dataset).to(config["device"])
    trainer = Trainer(config, model)
    best, _ = trainer.fit(train, valid, saved=True, show_progress=False)
    result = trainer.evaluate(test, load_best_model=True, show_progress=False)
    assert 0 <= best <= 1
    assert 0 <= result["recall@10"] <= 1


def tiny_dataset_raw(config: Any) -> Any:
    from recbole.data import create_dataset

    return create_dataset(config)


def test_tiny_dataset_holds_everybody(folder: Path) -> None:
    dataset = tiny_dataset(tiny_config(folder, "MF"))
    assert (dataset.user_num, dataset.item_num) == (N_USERS, N_ITEMS)
