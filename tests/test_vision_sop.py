"""SOP and SOP+: their formulas and the moves of u and v against plain loops, dense tables and autograd in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from recdenoise.denoisers import Clock, Stage
from recdenoise.errors import UserError
from recdenoise.objectives import class_kl
from recdenoise.task import Batch
from tests.test_vision_pes import TwoBackbones
from tests.toy_images import CLASSES, build, image_loop, image_task, network
from vision.methods.class_balance import balance_loss, balance_of_mean
from vision.methods.sop import FLOOR, SOP, noise_of, squared_error, with_noise
from vision.methods.sop_plus import SOPPlus

DRAWS = torch.Generator().manual_seed(5)
N, C = 7, 4
LOGITS = 2 * torch.randn(N, C, generator=DRAWS, dtype=torch.float64)
LABEL = torch.randint(0, C, (N,), generator=DRAWS)
ONE_HOT = F.one_hot(LABEL, C).double()
U = torch.rand(N, 1, generator=DRAWS, dtype=torch.float64) * 1.2 - 0.1
V = torch.rand(N, C, generator=DRAWS, dtype=torch.float64) - 0.5


def squares(row: int) -> tuple[list[float], list[float]]:
    u, label = float(U[row]), int(LABEL[row])
    more = [min(u * u, 1.0) if c == label else 0.0 for c in range(C)]
    less = [0.0 if c == label else min(float(V[row, c]) ** 2, 1.0) for c in range(C)]
    return more, less


def test_network_and_noise_together_equal_a_plain_loop() -> None:
    more, less = noise_of(U, V, ONE_HOT)
    together = with_noise(LOGITS, more, less)
    for row in range(N):
        plus, minus = squares(row)
        p = [math.exp(x) for x in LOGITS[row].tolist()]
        raised = [max(p[c] / sum(p) + plus[c] - minus[c], FLOOR) for c in range(C)]
        wanted = [min(max(value / sum(raised), FLOOR), 1.0) for value in raised]
        assert together[row].tolist() == pytest.approx(wanted)


def test_squared_error_equals_a_plain_loop() -> None:
    more, less = noise_of(U, V, ONE_HOT)
    error = squared_error(LOGITS, more, less, ONE_HOT)
    for row in range(N):
        plus, minus = squares(row)
        best = max(range(C), key=lambda c: float(LOGITS[row, c]))
        gaps = [(c == best) + plus[c] - minus[c] - (c == int(LABEL[row])) for c in range(C)]
        assert float(error[row]) == pytest.approx(sum(gap * gap for gap in gaps))


def test_gradients_in_double_precision_reach_what_they_should() -> None:
    logits, u, v = (values.clone().requires_grad_() for values in (LOGITS, U, V))

    def loss(logits: Tensor, u: Tensor) -> Tensor:
        more, less = noise_of(u, v.detach(), ONE_HOT)
        return -with_noise(logits, more, less).gather(1, LABEL.unsqueeze(1)).log()

    def error(v: Tensor) -> Tensor:
        more, less = noise_of(U, v, ONE_HOT)
        return squared_error(LOGITS, more, less, ONE_HOT)

    torch.autograd.gradcheck(loss, (logits, u))
    torch.autograd.gradcheck(error, (v,))
    more, less = noise_of(u, v, ONE_HOT)
    of_v = torch.autograd.grad(with_noise(logits, more, less).log().sum(), v, allow_unused=True)[0]
    assert of_v is None or not of_v.any()
    assert torch.autograd.grad(squared_error(logits, more, less, ONE_HOT).sum(), logits, allow_unused=True)[0] is None


def batch_of(index: Tensor, labels: Tensor, images: Tensor | None = None) -> Batch:
    inputs = torch.zeros(len(index), 1) if images is None else images
    return Batch(index, inputs, labels[index], (len(index),))


class Table(torch.nn.Module):
    """A network without a network: logits by row, in double precision."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(logits.clone())


def method_on_tables(cls: type[SOP], options: dict[str, Any], logits: Tensor) -> SOP:
    task = image_task()
    method = cls(task, options)
    method.noise.double()
    method.noise.u, method.noise.v = U.clone(), V.clone()
    method.target = Table(logits)
    return method


@pytest.mark.parametrize("u_loss", ["ce", "both"])
def test_sparse_moves_equal_a_dense_loop_over_rows(u_loss: str) -> None:
    """Dense tables as parameters of torch's SGD, one backward of the whole loss, as in the published description."""
    index = torch.tensor([5, 0, 3])
    method = method_on_tables(SOP, {"lr_u": 0.7, "lr_v": 1.9, "u_loss": u_loss}, LOGITS)
    logits = method.target.logits[index]
    method.update(batch_of(index, LABEL), logits, None).reduce().backward()

    theta, u, v = (torch.nn.Parameter(values.clone()) for values in (LOGITS, U, V))
    optimizers = [torch.optim.SGD([u], lr=0.7), torch.optim.SGD([v], lr=1.9)]
    more, less = noise_of(u[index], v[index], ONE_HOT[index])
    loss = F.nll_loss(with_noise(theta[index], more, less).log(), LABEL[index])
    kept = more if u_loss == "both" else more.detach()
    (loss + squared_error(theta[index], kept, less, ONE_HOT[index]).mean()).backward()
    for optimizer in optimizers:
        optimizer.step()
    torch.testing.assert_close(method.target.logits.grad, theta.grad)
    torch.testing.assert_close(method.noise.u[index], u.detach()[index].clamp(-1, 1))
    torch.testing.assert_close(method.noise.v[index], v.detach()[index].clamp(-1, 1))
    others = torch.tensor([1, 2, 4, 6])
    assert torch.equal(method.noise.u[others], U[others])
    assert torch.equal(method.noise.v[others], V[others])
    assert not torch.equal(method.noise.u[index], U[index])


def test_moves_are_projected() -> None:
    method = method_on_tables(SOP, {"lr_u": 1e6, "lr_v": 1e6}, LOGITS)
    index = torch.arange(N)
    method.update(batch_of(index, LABEL), method.target.logits[index], None)
    assert float(method.noise.u.abs().max()) == float(method.noise.v.abs().max()) == 1.0


def test_learning_rates_by_the_kind_of_noise() -> None:
    assert SOP.read_config({}).rates == (1.0, 10.0)  # type: ignore[attr-defined]
    assert SOP.read_config({"noise": "asymmetric"}).rates == (0.1, 100.0)  # type: ignore[attr-defined]
    assert SOP.read_config({"noise": "asymmetric", "lr_u": 3}).rates == (3.0, 100.0)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("method", "options"),
    [(SOP, {"lr_u": -1}), (SOP, {"init_std": -1e-3}), (SOPPlus, {"consistency": -0.1}), (SOPPlus, {"balance": -1})],
)
def test_options_out_of_range(method: type[SOP], options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        method.read_config(options)


def test_initial_values_follow_the_seed_and_the_deviation() -> None:
    noises = [build("sop", image_task(seed=seed), brief=False).noise for seed in (1, 1, 2)]  # type: ignore[union-attr]
    assert torch.equal(noises[0].v, noises[1].v)
    assert not torch.equal(noises[0].v, noises[2].v)
    assert noises[0].u.shape == (66, 1)
    assert float(noises[0].v.std()) == pytest.approx(1e-8, rel=0.2)


def test_without_noise_it_is_cross_entropy() -> None:
    nothing = torch.zeros(N, C, dtype=torch.float64)
    theta = LOGITS.clone().requires_grad_()
    (ours,) = torch.autograd.grad(with_noise(theta, nothing, nothing).gather(1, LABEL.unsqueeze(1)).log().sum(), theta)
    (theirs,) = torch.autograd.grad(-F.cross_entropy(theta, LABEL, reduction="sum"), theta)
    torch.testing.assert_close(ours, theirs)


def test_noise_grows_where_labels_are_wrong() -> None:
    """In a run, the noise of wrong labels outgrows that of right ones."""
    task = image_task(n=132)
    loop = image_loop("sop", task, {"lr_u": 5.0, "lr_v": 20.0, "init_std": 1e-3}, epochs=20, lr=0.02, brief=False)
    rows = loop.run()
    wrong = task.labels != task.source("train").true_labels  # type: ignore[attr-defined]
    u = loop.denoiser.noise.u.abs().squeeze(1)  # type: ignore[union-attr]
    assert float(u[wrong].median()) > 2 * float(u[~wrong].median())
    assert rows[-1]["noise"] > rows[0]["noise"]


# SOP+


@pytest.mark.parametrize("balance_of", ["network", "together"])
def test_the_loss_of_two_views_equals_the_sum_of_its_terms(balance_of: str) -> None:
    second = LOGITS.flip(0)
    options = {"consistency": 0.9, "balance": 0.1, "balance_of": balance_of, "lr_u": 0.0, "lr_v": 0.0}
    method = method_on_tables(SOPPlus, options, LOGITS)
    method.prior = method.prior.new_full((C,), 1 / C, dtype=torch.float64)
    update = method.update(batch_of(torch.arange(N), LABEL), LOGITS, second)
    more, less = noise_of(U, V, ONE_HOT)
    together = with_noise(LOGITS, more, less)
    wanted = F.nll_loss(together.log(), LABEL)
    for row in range(N):
        p, q = torch.softmax(LOGITS[row], 0), torch.softmax(second[row], 0)
        wanted = wanted + 0.9 * float(sum(p[c] * (p[c] / q[c]).log() for c in range(C))) / N
    mean = (torch.softmax(LOGITS, 1) if balance_of == "network" else together).mean(0)
    wanted = wanted + 0.1 * sum(1 / C * (1 / C / mean[c]).log() for c in range(C))
    torch.testing.assert_close(update.reduce(), wanted)


def test_two_balances_agree_on_the_same_mean_and_no_gradient_passes_the_first_view() -> None:
    prior = torch.full((C,), 1 / C, dtype=torch.float64)
    mean = torch.softmax(LOGITS, 1).mean(0)
    torch.testing.assert_close(balance_of_mean(mean, prior), balance_loss(LOGITS, prior))
    first, second = LOGITS.clone().requires_grad_(), LOGITS.flip(1).requires_grad_()
    method = method_on_tables(SOPPlus, {"balance": 0.0}, LOGITS)
    added = method.regularizers(first, second, first)
    torch.testing.assert_close(added, 0.9 * class_kl(LOGITS, LOGITS.flip(1)))
    of_first, of_second = torch.autograd.grad(added.sum(), (first, second), allow_unused=True)
    assert of_first is None
    assert of_second is not None


def test_both_views_pass_the_network_together() -> None:
    seen: list[int] = []

    class Counts(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, images: Tensor) -> Tensor:
            seen.append(len(images))
            return self.inner(images)

    task = image_task(new_model=lambda _: Counts())
    for options, size in (({}, 32), ({"consistency": 0.0}, 16)):
        denoiser = build("sop_plus", task, options)
        (sweep,) = denoiser.passes(Stage(), 0)
        batch = next(iter(task.loader(sweep, (0, 0, 0)).batches()))
        seen.clear()
        list(denoiser.step(Stage(), batch, Clock(0, 1, 0, 1)))
        assert seen == [size]


@pytest.mark.parametrize("name", ["sop", "sop_plus"])
def test_several_heads_have_one_loss_on_their_mean(name: str) -> None:
    task = image_task(new_model=lambda _: TwoBackbones())
    denoiser = build(name, task, {"lr_u": 0.0, "lr_v": 0.0})
    (sweep,) = denoiser.passes(Stage(), 0)
    batch = next(iter(task.loader(sweep, (0, 0, 0)).batches()))
    (update,) = denoiser.step(Stage(), batch, Clock(0, 1, 0, 1))
    assert update.loss.shape == (16,)
    update.reduce().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in denoiser.target.parameters())
    if name == "sop":
        logits = torch.stack(denoiser.target.heads(batch.inputs)).mean(0)
        observed = F.one_hot(batch.label, CLASSES).float()
        noise = denoiser.noise
        together = with_noise(logits, *noise_of(noise.u[batch.index], noise.v[batch.index], observed))
        torch.testing.assert_close(update.loss, -together.gather(1, batch.label.unsqueeze(1)).squeeze(1).log())
