"""Every general recommender of RecBole is scored, differentiably and consistently, or refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from recdenoise.errors import UserError
from recdenoise.recbole_adapter import compat, scorers
from recdenoise.recbole_adapter.models import MODELS
from tests.tiny_recbole import N_ITEMS, N_USERS, build_model, write_inter

SMALL: dict[str, dict[str, Any]] = {
    "NNCF": {"neigh_num": 10, "num_conv_kernel": 4, "neigh_info_method": "random"},
    "ConvNCF": {"embedding_size": 64},
    "NAIS": {"split_to": 0},
    "FISM": {"split_to": 0},
    "LDiffRec": {"n_cate": 1, "dims_dnn": [16], "in_dims": [16], "out_dims": []},
    "DiffRec": {"dims_dnn": [16]},
    "NCL": {"num_clusters": 3},
    "SLIMElastic": {"hide_item": False},
}


def general_models() -> list[str]:
    import recbole.model.general_recommender as general

    return sorted(name for name, value in vars(general).items() if isinstance(value, type))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scorers")
    write_inter(path)
    return path


def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randint(1, N_USERS, (40,), generator=generator),
        torch.randint(1, N_ITEMS, (40,), generator=generator),
    )


def agree(scorer: scorers.Scorer, model: nn.Module) -> None:
    """Pair logits equal the picked full logits, in eval mode, without leaving a stale cache behind."""
    model.eval()
    users, items = pairs()
    distinct, row = torch.unique(users, return_inverse=True)
    with torch.no_grad():
        by_pair = scorer.pair_logits(model, users, items)
        by_row = scorer.pair_logits(model, users, items, (distinct, row))
        full = scorer.full_logits(model, distinct)
    assert full.shape == (distinct.numel(), N_ITEMS)
    torch.testing.assert_close(full[row, items], by_pair, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(by_row, by_pair, atol=1e-6, rtol=1e-6)


def differentiable(scorer: scorers.Scorer, model: nn.Module) -> None:
    """Two training steps in a row, then an evaluation that sees the new weights."""
    users, items = pairs()
    for _ in range(2):
        model.train()
        scorers.clear_caches(model)
        model.zero_grad()
        logits = scorer.pair_logits(model, users, items)
        assert logits.shape == users.shape
        assert logits.isfinite().all()
        (logits * torch.linspace(-1, 1, logits.numel())).sum().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert gradients
        assert all(g.isfinite().all() for g in gradients)
        assert any(g.abs().sum() > 0 for g in gradients)
    model.eval()
    before = scorer.full_logits(model, users[:3]).clone()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    scorers.clear_caches(model)
    assert not torch.allclose(before, scorer.full_logits(model, users[:3]), atol=1e-4)
    agree(scorer, model)


@pytest.mark.parametrize(
    ("name", "own"), [*((name, False) for name in general_models()), *((name, True) for name in MODELS)]
)
def test_every_general_model_is_scored_or_refused(folder: Path, name: str, own: bool) -> None:
    torch.manual_seed(0)
    if name in scorers.NOT_TRAINABLE:
        with pytest.raises(UserError, match=f"{name} cannot be trained by a denoiser.*NeuMF"):
            scorers.scorer_for(compat.get_model(name))
        return
    assert name in scorers.SCORERS, f"{name} is neither supported nor refused"
    try:
        model = build_model(folder, name, own, **SMALL.get(name, {}))
    except ModuleNotFoundError as error:
        pytest.skip(f"{name} needs the optional package {error.name}")
    scorer = scorers.scorer_for(model)
    agree(scorer, model)
    differentiable(scorer, model)


def test_refused_models_have_no_gradient(folder: Path) -> None:
    users, items = pairs()
    for name in ("EASE", "ItemKNN", "NCEPLRec"):
        model = build_model(folder, name)
        assert not model.predict({model.USER_ID: users, model.ITEM_ID: items}).requires_grad


def test_subclass_is_scored_as_its_base(folder: Path) -> None:
    from recbole.model.general_recommender import BPR

    class Mine(BPR):
        pass

    assert scorers.scorer_for(Mine) is scorers.SCORERS["BPR"]


def test_model_from_outside_scores_itself() -> None:
    class Outside(nn.Module):
        n_items = N_ITEMS

        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(N_USERS, N_ITEMS))

        def pair_logits(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
            return self.table[users, items]

    model = Outside()
    scorer = scorers.scorer_for(model)
    agree(scorer, model)
    torch.testing.assert_close(scorer.full_logits(model, torch.tensor([3, 5])), model.table[[3, 5]].detach())
    assert scorer.kind == "pair"


def test_unknown_model_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorers, "SCORERS", dict(scorers.SCORERS))
    with pytest.raises(UserError, match=r"No scorer is known for Linear.*pair_logits.*register_scorer.*LightGCN"):
        scorers.scorer_for(nn.Linear(1, 1))
    scorers.register_scorer("Linear", scorers.ForwardScorer())
    assert isinstance(scorers.scorer_for(nn.Linear(1, 1)), scorers.ForwardScorer)
    with pytest.raises(UserError, match="instance of Scorer"):
        scorers.register_scorer("Linear", scorers.ForwardScorer)  # type: ignore[arg-type]


def test_cosine_scale(folder: Path) -> None:
    model = build_model(folder, "SimpleX").eval()
    users, items = pairs()
    cosine = model.predict({model.USER_ID: users, model.ITEM_ID: items})
    scorer = scorers.scorer_for(model)
    torch.testing.assert_close(scorer.pair_logits(model, users, items), 10 * cosine)
    model.cosine_scale = 4.0
    torch.testing.assert_close(scorer.pair_logits(model, users, items), 4 * cosine)
    with pytest.raises(UserError, match="positive"):
        scorers.CosineScorer(0.0)


def test_logits_are_those_of_the_models_own_probabilities(folder: Path) -> None:
    users, items = pairs()
    batch = {"user_id": users, "item_id": items}
    for name in ("GCMC", "FISM", "NAIS", "DMF", "NeuMF", "CDAE", "BPR", "MultiVAE"):
        model = build_model(folder, name, own_models=False, **SMALL.get(name, {})).eval()
        logits = scorers.scorer_for(model).pair_logits(model, users, items)
        if name == "GCMC":
            classes = model(model.user_features, model.item_features, users, items)
            expected = classes.softmax(1)[:, 1]
        elif name == "FISM":  # its predict applies the sigmoid twice
            expected = model(users, items)
        else:
            expected = model.predict(batch)
        got = logits if name in ("BPR", "MultiVAE") else logits.sigmoid()
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5, msg=name)


def test_kinds() -> None:
    autoencoders = {"CDAE", "MultiDAE", "MultiVAE", "RecVAE", "RaCT", "MacridVAE", "DiffRec", "LDiffRec"}
    assert {n for n in scorers.SCORERS if scorers.SCORERS[n].kind == "row"} == autoencoders
    from recdenoise.recbole_adapter.models import CDAE, GMF

    assert scorers.is_autoencoder(CDAE)
    assert not scorers.is_autoencoder(GMF)


def test_no_users() -> None:
    class Outside(nn.Module):
        n_items = N_ITEMS

        def pair_logits(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
            return users.float() + items

    model = Outside()
    assert scorers.scorer_for(model).full_logits(model, torch.empty(0, dtype=torch.long)).shape == (0, N_ITEMS)


@pytest.mark.parametrize(
    ("name", "options"), [("NAIS", {}), ("NAIS", {"beta": 1.0}), ("FISM", {}), ("FISM", {"alpha": 0.5})]
)
def test_a_user_without_history_has_the_biases(folder: Path, name: str, options: dict[str, Any]) -> None:
    model = build_model(folder, name, split_to=0, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
        model.history_lens[3], model.mask_mat[3], model.history_item_matrix[3] = 0, 0, 0
        users, items = torch.tensor([2, 3, 3]), torch.tensor([4, 4, 7])
        logits = scorers.scorer_for(model).pair_logits(model, users, items)
        bias = model.bias[items] if name == "NAIS" else model.user_bias[users] + model.item_bias[items]
    assert logits.isfinite().all()
    assert logits[0] != bias[0]
    torch.testing.assert_close(logits[1:], bias[1:])


@pytest.mark.parametrize("name", ["FISM", "NAIS", "ConvNCF", "NeuMF"])
def test_blocks_of_pairs_are_as_large_as_a_model_can_take(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model(folder, name, **SMALL.get(name, {})).eval()
    scorer = scorers.scorer_for(model)
    users = torch.arange(1, 9)
    whole = scorer.full_logits(model, users) if name != "NeuMF" else None
    history = getattr(model, "history_item_matrix", None)
    cells = 2**18 // (1 if history is None else history.shape[1])
    assert scorer.pairs_at_once(model) == (1024 if name == "ConvNCF" else cells)
    if whole is not None:
        sizes: list[int] = []
        pair_logits = type(scorer).pair_logits

        def counted(self: Any, model: Any, users: Any, items: Any, rows: Any = None) -> torch.Tensor:
            sizes.append(len(users))
            return pair_logits(self, model, users, items, rows)

        monkeypatch.setattr(type(scorer), "pair_logits", counted)
        for most in (7, N_ITEMS, 3 * N_ITEMS):
            monkeypatch.setattr(type(scorer), "pairs_at_once", lambda self, model, most=most: most)
            torch.testing.assert_close(scorer.full_logits(model, users), whole, atol=1e-5, rtol=1e-5)
            assert max(sizes) == most
            sizes.clear()


@pytest.mark.parametrize(
    ("pair", "full", "said"), [(2, 1, "pair_logits of Own gives .*40, 1"), (1, 2, "full_logits of Own")]
)
def test_a_models_own_logits_of_another_shape_are_refused(pair: int, full: int, said: str) -> None:
    class Own(nn.Module):
        n_items = N_ITEMS

        def pair_logits(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(users), 1)[:, 0] if pair == 1 else torch.zeros(len(users), 1)

        def full_logits(self, users: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(users), N_ITEMS + full - 1)

    scorer = scorers.scorer_for(Own())
    users, items = pairs()
    with pytest.raises(UserError, match=said):
        torch.cat([scorer.pair_logits(Own(), users, items), scorer.full_logits(Own(), users)[:, 0]])
