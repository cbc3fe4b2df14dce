"""Mixtures on losses and the parts of semi-supervised methods, against plain loops and hand-made data."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.mixture import GaussianMixture as Estimator
from torch import Tensor, nn

from recdenoise.averaging import Averaging
from recdenoise.denoisers import Clock, Denoiser, Stage, Update
from recdenoise.errors import TrainingError
from recdenoise.parallel import Parallel
from recdenoise.task import Batch, Pass
from tests.toy_images import build, image_loop, image_task
from vision.methods import gaussian_mixture
from vision.methods import semi_supervised as semi


def draw(seed: int, *shape: int) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Mixtures


def two_heaps(n: int = 600, share: float = 0.7) -> tuple[Tensor, Tensor]:
    """Losses of a heap of right labels around 0.3 and one of wrong labels around 3, and which are right."""
    generator = torch.Generator().manual_seed(4)
    right = torch.arange(n) < round(share * n)
    heap = torch.where(right, 0.3, 3.0)
    return (heap + 0.2 * torch.randn(n, generator=generator)).clamp_min(0), right


def test_two_heaps_are_found_with_their_means_shares_and_rows() -> None:
    loss, right = two_heaps()
    mixture = gaussian_mixture.fit(loss)
    for component, chosen in enumerate((right, ~right)):
        on_scale = mixture.place(loss[chosen])
        assert float(mixture.mean[component]) == pytest.approx(float(on_scale.mean()), abs=0.01)
        assert float(mixture.variance[component]) == pytest.approx(float(on_scale.var()) + 5e-4, rel=0.15)
    assert mixture.weight.tolist() == pytest.approx([0.7, 0.3], abs=0.01)
    small = mixture.small(loss)
    assert small.dtype == torch.float64
    assert ((small > 0.5) == right).all()


def test_posteriors_are_those_of_the_library_that_fits() -> None:
    loss, _ = two_heaps(300, 0.5)
    loss = loss + 1.5 * torch.rand(300, generator=torch.Generator().manual_seed(1))
    low, high = float(loss.min()), float(loss.max())
    x = ((loss.double() - low) / (high - low)).numpy().reshape(-1, 1)
    estimator = Estimator(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0).fit(x)
    wanted = estimator.predict_proba(x)[:, int(np.argmin(estimator.means_))]
    np.testing.assert_allclose(gaussian_mixture.fit(loss).small(loss), wanted, atol=1e-10)


def test_equal_losses_are_one_population() -> None:
    for loss in (torch.full((9,), 2.3), torch.tensor([0.7]), 1e4 + 1e-4 * torch.rand(5)):
        assert gaussian_mixture.fit(loss).small(loss).tolist() == [1.0] * len(loss)
        assert gaussian_mixture.normalised(loss).tolist() == [0.0] * len(loss)


def test_what_is_not_finite_is_left_out_and_never_called_right() -> None:
    loss, right = two_heaps(60)
    broken = torch.cat([torch.tensor([math.nan, math.inf]), loss])
    small = gaussian_mixture.fit(broken).small(broken)
    assert small[:2].tolist() == [0.0, 0.0]
    assert torch.equal(small[2:], gaussian_mixture.fit(loss).small(loss))
    assert ((small[2:] > 0.5) == right).all()
    with pytest.raises(TrainingError, match="No training loss is finite"):
        gaussian_mixture.fit(torch.full((4,), math.nan))


@given(st.lists(st.floats(0, 50), min_size=1, max_size=30))
@settings(max_examples=25, deadline=None)
def test_any_losses_give_probabilities(values: list[float]) -> None:
    loss = torch.tensor(values)
    small = gaussian_mixture.fit(loss).small(loss)
    assert ((small >= 0) & (small <= 1)).all()


def test_fitting_leaves_the_global_generators_alone() -> None:
    loss, _ = two_heaps(100)
    before, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    first = gaussian_mixture.fit(loss)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpys).all()  # type: ignore[index]
    assert torch.equal(first.mean, gaussian_mixture.fit(loss).mean)


# Pseudo-labels


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(value) for value in row]
    return [power / sum(powers) for power in powers]


def test_pseudo_labels_are_a_plain_loop() -> None:
    first, second, trust, t = draw(1, 5, 3), draw(2, 5, 3), torch.rand(5, dtype=torch.float64), 0.4
    label = torch.tensor([0, 2, 1, 1, 0])
    observed = nn.functional.one_hot(label, 3).double()
    guess, refinement = semi.guessed([first, second], t), semi.refined(observed, [first, second], trust, t)
    for i in range(5):
        pairs = zip(softmax(first[i].tolist()), softmax(second[i].tolist()), strict=True)
        mean = [(a + b) / 2 for a, b in pairs]
        powers = [m ** (1 / t) for m in mean]
        assert guess[i].tolist() == pytest.approx([p / sum(powers) for p in powers])
        blend = [float(trust[i]) * float(c == label[i]) + (1 - float(trust[i])) * m for c, m in enumerate(mean)]
        powers = [b ** (1 / t) for b in blend]
        assert refinement[i].tolist() == pytest.approx([p / sum(powers) for p in powers])


def test_sharpening_keeps_a_distribution_where_powers_vanish() -> None:
    p = torch.softmax(torch.randn(3, 200), 1)
    assert torch.isfinite(semi.sharpened(p, 0.01)).all()
    torch.testing.assert_close(semi.sharpened(p, 1.0), p)
    torch.testing.assert_close(semi.sharpened(p, 0.01).sum(1), torch.ones(3))


def test_the_weight_grows_in_a_straight_line() -> None:
    assert [semi.ramp(at, 10, 4) for at in (0, 9.9, 10, 11, 13.5, 14, 99)] == [0, 0, 0, 0.25, 0.875, 1, 1]
    assert [semi.ramp(at, 10, 0) for at in (9, 10)] == [0, 1]


def test_consistency_is_a_divergence_without_gradient_of_the_first_view() -> None:
    first, second = draw(1, 4, 3).requires_grad_(), draw(2, 4, 3).requires_grad_()
    value = semi.consistency(first, second)
    p, q = torch.softmax(first, 1), torch.softmax(second, 1)
    torch.testing.assert_close(value, (p * (p / q).log()).sum(1))
    value.sum().backward()
    assert first.grad is None
    assert second.grad is not None


# MixMatch


def test_the_loss_is_a_plain_loop() -> None:
    logits, target = draw(1, 6, 3), torch.softmax(draw(2, 6, 3), 1)
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    found = semi.mixmatch_loss(logits, target, 4, 7.0, weight)
    for i in range(6):
        p, t = softmax(logits[i].tolist()), target[i].tolist()
        if i < 4:
            wanted = -sum(w * t_c * math.log(p_c) for w, t_c, p_c in zip(weight.tolist(), t, p, strict=True))
        else:
            wanted = 7.0 * sum((p_c - t_c) ** 2 for p_c, t_c in zip(p, t, strict=True)) / 3
        assert float(found[i]) == pytest.approx(wanted)
    alone = semi.mixmatch_loss(logits, target, 6, 7.0)
    torch.testing.assert_close(alone, nn.functional.cross_entropy(logits, target, reduction="none"))


def test_images_and_labels_are_mixed_alike_and_each_stays_mostly_itself() -> None:
    torch.manual_seed(3)
    label, guess = torch.eye(4)[:2], torch.eye(4)[2:]
    # The images are their labels, so that what was done to one is seen in the other.
    mixed = semi.mix([label, label], label, [guess, guess], guess, alpha=4.0)
    assert mixed.labelled == 4
    assert mixed.groups == (4, 4)
    assert 0.5 <= mixed.share < 1
    torch.testing.assert_close(mixed.inputs, mixed.target)
    own = torch.cat([label, label, guess, guess])
    assert ((mixed.target * own).sum(1) >= mixed.share - 1e-6).all()
    assert not torch.equal(mixed.target, own)


def test_without_mixing_or_without_unlabelled_images() -> None:
    label = torch.eye(3)
    plain = semi.mix([label], label, [], None, alpha=0.0)
    assert plain.groups == (3,)
    assert torch.equal(plain.target, label)
    assert semi.mix([label], label, [], None, alpha=4.0).groups == (3,)


class Rank(Parallel):
    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


def test_processes_draw_the_partners_that_one_would() -> None:
    streams = [list(range(6)), list(range(10, 14)), list(range(20, 22))]
    torch.manual_seed(5)
    every = [value for part in streams for value in part]
    alone = [every[k] for k in semi.draw_stream_partners([6, 4, 2])]
    shares = [[part[rank * len(part) // 2 : (rank + 1) * len(part) // 2] for part in streams] for rank in range(2)]
    gathered = [value for share in shares for part in share for value in part]
    found: list[list[list[int]]] = []
    for rank in range(2):
        torch.manual_seed(5)
        places = semi.draw_stream_partners([3, 2, 1], Rank(rank, 2))
        mine = torch.tensor(gathered)[places]
        found.append([part.tolist() for part in mine.split([3, 2, 1])])
    together = [value for i in range(3) for rank in range(2) for value in found[rank][i]]
    assert together == alone


def test_at_rest_gives_back_every_mode_and_no_gradient() -> None:
    module = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2)).train()
    module[1].eval()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with semi.at_rest(module):
        assert not module(torch.ones(3, 2)).requires_grad
        assert not module[0].training
    assert [part.training for part in module.modules()] == [True, True, False]
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


# What the loop tells a method


class TwoPasses(Denoiser):
    """Notes what the clock says."""

    name = "two_passes"
    title = summary = paper = "a test"

    def build(self, task: object) -> None:
        super().build(task)  # type: ignore[arg-type]
        self.seen: list[tuple[int, float]] = []
        self.averages: list[Averaging | None] = []

    def stages(self) -> list[Stage]:
        return [Stage(average=0.5)]

    def passes(self, stage: Stage, epoch: int) -> list[Pass]:
        return [Pass(), Pass(rows=torch.arange(32))]

    def step(self, stage: Stage, batch: Batch, clock: Clock):  # type: ignore[no-untyped-def]
        self.seen.append((clock.sweep, clock.within))
        self.averages.append(clock.averages)
        yield Update(self.plain_losses(self.target, batch).loss, batch.groups)


def test_a_method_knows_its_pass_its_place_in_it_and_the_averaged_weights() -> None:
    task = image_task()
    loop = image_loop("normal", task, epochs=1)
    loop.denoiser = TwoPasses(task)
    loop.stages = loop.denoiser.stages()
    loop.run()
    assert isinstance(loop.denoiser, TwoPasses)
    assert loop.denoiser.seen == [(0, 0.0), (0, 0.25), (0, 0.5), (0, 0.75), (1, 0.0), (1, 0.5)]
    (averages,) = set(loop.denoiser.averages)
    assert averages is not None
    assert averages.decay == 0.5  # the stage's: the run has none
    kept = averages.of("target")
    assert kept.keys() == loop.denoiser.target.state_dict().keys()
    inputs = torch.randn(2, 1, 6, 6)
    settled = task.call(loop.denoiser.target, inputs)  # the loop leaves the averages in the network
    torch.testing.assert_close(task.call_with(build("normal", task).target.eval(), kept, inputs), settled)
