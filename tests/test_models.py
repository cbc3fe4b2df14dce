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
from recdenoise.recbole_adapter.models import graph as graphs
from recdenoise.recbole_adapter.models.graph import (
    BipartiteGraph,
    CompressedRows,
    bipartite_graph,
    product,
    propagate,
    propagate_pairs,
)
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


def as_dense(matrix: CompressedRows, n_columns: int) -> torch.Tensor:
    return torch.sparse_csr_tensor(*matrix, (matrix.n_rows, n_columns)).to_dense()


def as_double(graph: BipartiteGraph) -> BipartiteGraph:
    """In double precision, computed anew from the degrees, so that comparisons are sharp and R^T is R's transpose."""

    def exact(matrix: CompressedRows, other: CompressedRows) -> CompressedRows:
        row = torch.repeat_interleave(torch.arange(matrix.n_rows), matrix.crow.diff().long())
        degrees = matrix.crow.diff().double()[row] * other.crow.diff().double()[matrix.col.long()]
        return matrix._replace(value=degrees.rsqrt())

    by_user, by_item = exact(graph.by_user, graph.by_item), exact(graph.by_item, graph.by_user)
    overlap = graph.overlap
    if overlap is not None:
        small, large = (by_item, by_user) if graph.items_are_fewer else (by_user, by_item)
        squared = as_dense(small, large.n_rows) @ as_dense(small, large.n_rows).t()
        row = torch.repeat_interleave(torch.arange(overlap.n_rows), overlap.crow.diff().long())
        overlap = overlap._replace(value=squared[row, overlap.col.long()])
    return BipartiteGraph(by_user, by_item, overlap)


@settings(deadline=None, max_examples=80)
@given(
    st.integers(1, 7), st.integers(1, 7), st.integers(0, 25), st.integers(0, 5), st.integers(0, 10**6), st.booleans()
)
def test_propagation_equals_dense_powers(
    n_users: int, n_items: int, n: int, layers: int, seed: int, overlap: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    users = torch.randint(n_users, (n,), generator=generator)
    items = torch.randint(n_items, (n,), generator=generator)
    nodes = n_users + n_items
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "_OVERLAP_WORK", 10**4 if overlap else -1)
        graph = bipartite_graph(users, items, n_users, n_items)
    dense = dense_adjacency(users, items, n_users, n_items)
    forth, back = dense[:n_users, n_users:], dense[n_users:, :n_users]
    torch.testing.assert_close(as_dense(graph.by_user, n_items).double(), forth, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(as_dense(graph.by_item, n_users).double(), back, atol=1e-6, rtol=1e-6)
    if graph.overlap is not None:
        squared = back @ forth if n_items <= n_users else forth @ back
        torch.testing.assert_close(as_dense(graph.overlap, len(squared)).double(), squared, atol=1e-6, rtol=1e-6)
    exact = as_double(graph)
    x = torch.randn(nodes, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    expected = sum(torch.linalg.matrix_power(dense, k) @ x for k in range(layers + 1)) / (layers + 1)
    target = torch.randn(nodes, 3, generator=generator, dtype=torch.float64)
    out = torch.cat(propagate(exact, *x.split([n_users, n_items]), layers))
    torch.testing.assert_close(out, expected, atol=1e-9, rtol=1e-9)
    (ours,) = torch.autograd.grad((out.sigmoid() * target).sum(), x, retain_graph=True)
    (theirs,) = torch.autograd.grad((expected.sigmoid() * target).sum(), x, retain_graph=True)
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)
    # pairs, some of them twice, some nodes without an edge: the rows of the whole, and the gradient of those rows
    m = int(torch.randint(1, 6, (), generator=generator))
    of = torch.randint(n_users, (m,), generator=generator), torch.randint(n_items, (m,), generator=generator)
    pairs = propagate_pairs(exact, *x.split([n_users, n_items]), layers, of)
    rows = expected[of[0]], expected[n_users + of[1]]
    for a, b in zip(pairs, rows, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)
    (ours,) = torch.autograd.grad((pairs[0] * pairs[1]).sum(-1).sigmoid().sum(), x, retain_graph=True)
    (theirs,) = torch.autograd.grad((rows[0] * rows[1]).sum(-1).sigmoid().sum(), x, retain_graph=True)
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)
    single = product(graph.by_user, x.detach()[n_users:].float())  # the single-precision kernel
    torch.testing.assert_close(single.double(), forth @ x.detach()[n_users:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("sides", [(3, 4), (4, 3)])
def test_propagation_gradients_of_first_and_second_order(
    overlap: bool, sides: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "_OVERLAP_WORK", 10**4 if overlap else -1)
    users, items = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 0])
    graph = as_double(bipartite_graph(users, items, *sides))
    assert (graph.overlap is not None) == overlap
    x = torch.randn(sum(sides), 2, dtype=torch.float64, requires_grad=True)
    of = torch.tensor([0, 2, 0, 1]), torch.tensor([1, 1, 2, 0])

    def whole(y: torch.Tensor) -> torch.Tensor:
        return torch.cat(propagate(graph, *y.split(list(sides)), 3))

    def pairs(y: torch.Tensor) -> torch.Tensor:
        return torch.cat(propagate_pairs(graph, *y.split(list(sides)), 3, of))

    for function in (whole, pairs):
        assert torch.autograd.gradcheck(function, (x,))
        assert torch.autograd.gradgradcheck(lambda y, f=function: f(y).tanh(), (x,))


def test_few_rows_of_a_large_graph() -> None:
    """The rows of a batch are multiplied alone where they are few, and all of them where they are many."""
    generator = torch.Generator().manual_seed(0)
    users = torch.randint(300, (900,), generator=generator)
    items = (torch.rand(900, generator=generator).square() * 40).long()
    graph = bipartite_graph(users, items, 300, 40)
    tables = torch.randn(300, 8, generator=generator), torch.randn(40, 8, generator=generator)
    everything = propagate(graph, *tables, 3)
    for n in (1, 20, 50, 900):
        of = users[:n], items[:n]
        expected = [side.index_select(0, ids) for side, ids in zip(everything, of, strict=True)]
        for a, b in zip(propagate_pairs(graph, *tables, 3, of), expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_overlap_is_kept_where_it_pays() -> None:
    some = torch.arange(1000)
    assert bipartite_graph(some, some % 10, 1000, 10).overlap is not None  # 10 entries against 1,000
    wide = torch.cat([torch.zeros(50, dtype=torch.long), torch.arange(1, 350)])  # one user with 50 of 60 items
    assert bipartite_graph(wide, torch.arange(399) % 60, 350, 60).overlap is None  # 2,500 entries against 399
    dense = torch.cartesian_prod(torch.arange(40), torch.arange(30))
    assert bipartite_graph(*dense.t(), 40, 30).overlap is None  # more work than twenty products
    loose = torch.arange(6)
    assert bipartite_graph(loose // 3, loose, 2, 6).overlap is not None
    assert bipartite_graph(loose // 3, loose, 10, 6).overlap is None  # 18 entries against 6


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
    addresses = [
        {part.data_ptr() for matrix in m.graph if matrix is not None for part in matrix} for m in (model, twin)
    ]
    assert addresses[0].isdisjoint(addresses[1])


def test_lightgcn_without_layers_keeps_its_parameters(folder: Path) -> None:
    model = build_model(folder, "LightGCN", n_layers=0).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    logits = model.full_logits(USERS)
    assert set(model.state_dict()) == set(before)
    model.load_state_dict(before)
    torch.testing.assert_close(model.pair_logits(USERS, ITEMS), logits[torch.arange(len(USERS)), ITEMS])


def test_lightgcn_trains_what_a_subclass_embeds(folder: Path) -> None:
    model = build_model(folder, "LightGCN")

    class Gated(type(model)):  # type: ignore[misc]
        def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
            users, items = super().forward()
            return 3 * users, items

    plain = model.pair_logits(USERS, ITEMS)
    model.__class__ = Gated
    torch.testing.assert_close(model.pair_logits(USERS, ITEMS), 3 * plain)


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
    with torch.no_grad():  # the published code's test in training mode: whole users at once, but no batch
        fresh.row_logits(users)
    assert int(fresh.batch_users) == half.numel()
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
