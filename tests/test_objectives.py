"""Every formula against a plain loop in float64, and gradients against autograd of the loop."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recdenoise import objectives as o

LOGITS = [-3.0, -0.4, 0.0, 0.7, 2.5, 6.0]
LABELS = [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def f64(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def kl(p: float, q: float) -> float:
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def close(tensor: torch.Tensor, loop: list[float]) -> None:
    torch.testing.assert_close(tensor.detach(), torch.tensor(loop, dtype=torch.float64), rtol=1e-10, atol=1e-10)


def test_classification_loss_binary_and_multi_class() -> None:
    loop = [-math.log(sigmoid(x) if y else 1 - sigmoid(x)) for x, y in zip(LOGITS, LABELS, strict=True)]
    close(o.classification_loss(f64(LOGITS), f64(LABELS)), loop)
    two = torch.stack([torch.zeros(6, dtype=torch.float64), f64(LOGITS).detach()], dim=1)
    close(o.classification_loss(two, torch.tensor(LABELS).long()), loop)


def test_observed_probability_and_reweighting() -> None:
    loop = [sigmoid(x) if y else 1 - sigmoid(x) for x, y in zip(LOGITS, LABELS, strict=True)]
    close(o.observed_probability(f64(LOGITS), f64(LABELS)), loop)
    weight = o.reweighting(f64(LOGITS), f64(LABELS), 0.25)
    close(weight, [p**0.25 for p in loop])
    assert not weight.requires_grad
    two = torch.stack([torch.zeros(6, dtype=torch.float64), f64(LOGITS).detach()], dim=1)
    close(o.observed_probability(two, torch.tensor(LABELS).long()), loop)


def test_truncation_drops_only_the_worst_positives() -> None:
    loss, label = torch.tensor([5.0, 9.0, 1.0, 3.0]), torch.tensor([1.0, 0.0, 1.0, 1.0])
    torch.testing.assert_close(o.truncation(loss, label, 0.5), torch.tensor([0.0, 2.0, 2.0, 0.0]))
    torch.testing.assert_close(o.truncation(loss, label, 0.0), torch.ones(4))


def test_truncation_never_drops_a_negative() -> None:
    loss, label = torch.tensor([5.0, 9.0, 8.0, 7.0]), torch.tensor([1.0, 0.0, 0.0, 0.0])
    kept = o.truncation(loss, label, 0.75)
    torch.testing.assert_close(kept, torch.tensor([0.0, 4 / 3, 4 / 3, 4 / 3]))


@given(st.lists(st.tuples(st.floats(0, 20), st.booleans()), min_size=1, max_size=40), st.floats(0, 0.99))
@settings(max_examples=200, deadline=None)
def test_truncation_is_the_mean_over_the_kept(rows: list[tuple[float, bool]], rate: float) -> None:
    loss = torch.tensor([r[0] for r in rows], dtype=torch.float64)
    label = torch.tensor([float(r[1]) for r in rows], dtype=torch.float64)
    n_drop = int(rate * len(rows))
    order = sorted(range(len(rows)), key=lambda i: -(loss[i] * label[i]).item())[:n_drop]
    kept = [i for i in range(len(rows)) if i not in order or loss[i] * label[i] == 0]
    if kept:
        weight = o.truncation(loss, label, rate)
        assert (weight * loss).mean().item() == pytest.approx(sum(loss[i].item() for i in kept) / len(kept))


def test_truncation_rate_grows_linearly_then_stays() -> None:
    assert [o.truncation_rate(t, 100, 0.2) for t in (0, 50, 100, 500)] == pytest.approx([0, 0.1, 0.2, 0.2])
    assert o.truncation_rate(50, 100, 0.2, 2.0) == pytest.approx(0.05)
    assert o.truncation_rate(0, 0, 0.2) == 0.2


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_agreement_is_the_weighted_sum_of_both_divergences(alpha: float) -> None:
    other = [x * 0.5 + 0.2 for x in LOGITS]
    loop = [
        alpha * kl(sigmoid(g), sigmoid(f)) + (1 - alpha) * kl(sigmoid(f), sigmoid(g))
        for f, g in zip(LOGITS, other, strict=True)
    ]
    target = f64(LOGITS)
    value = o.agreement(target, f64(other), alpha)
    close(value, loop)
    p, q = torch.sigmoid(f64(LOGITS)), torch.sigmoid(f64(other))
    plain = f64(LOGITS)
    p = torch.sigmoid(plain)
    direct = alpha * (q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log())
    direct = direct + (1 - alpha) * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log())
    direct.sum().backward()
    value.sum().backward()
    torch.testing.assert_close(target.grad, plain.grad, rtol=1e-9, atol=1e-9)


def test_agreement_of_equals_is_zero_and_far_logits_stay_finite() -> None:
    assert o.agreement(f64(LOGITS), f64(LOGITS), 0.5).abs().max() < 1e-15
    far = torch.tensor([200.0, -200.0])
    assert torch.isfinite(o.agreement(far, -far, 0.5)).all()


def test_denoise_positives_equals_the_loop() -> None:
    h = [0.3, -1.0, 2.0, 0.1, -0.7, 1.5]
    loop = []
    for f, z, y in zip(LOGITS, h, LABELS, strict=True):
        p, b = sigmoid(f), sigmoid(z)
        e = (1 - p) * math.log(b) if y else (1 - p) * math.log(1 - b) - 100.0 * p
        loop.append(-e)
    close(o.denoise_positives(f64(LOGITS), f64(h), f64(LABELS), 100.0), loop)


def test_denoise_negatives_equals_the_loop() -> None:
    h = [0.3, -1.0, 2.0, 0.1, -0.7, 1.5]
    loop = []
    for f, z, y in zip(LOGITS, h, LABELS, strict=True):
        p, b = sigmoid(f), sigmoid(z)
        e = p * math.log(b) - 10.0 * (1 - p) if y else p * math.log(1 - b)
        loop.append(-e)
    close(o.denoise_negatives(f64(LOGITS), f64(h), f64(LABELS), 10.0), loop)


def test_gradients_of_both_steps_by_finite_differences() -> None:
    label = f64(LABELS).detach()
    h = f64([0.3, -1.0, 2.0, 0.1, -0.7, 1.5])
    assert torch.autograd.gradcheck(lambda a, b: o.denoise_positives(a, b, label, 3.0), (f64(LOGITS), h))
    assert torch.autograd.gradcheck(lambda a, b: o.denoise_negatives(a, b, label, 3.0), (f64(LOGITS), h))


def test_posterior_equals_bayes() -> None:
    h, h_prime = [0.3, -1.0, 2.0, 0.1, -0.7, 1.5], [1.0, 0.5, -0.2, 0.0, 2.0, -1.0]
    loop = []
    for f, a, b in zip(LOGITS, h, h_prime, strict=True):
        top = sigmoid(b) * sigmoid(f)
        loop.append(top / (top + sigmoid(a) * (1 - sigmoid(f))))
    close(o.true_positive_posterior(f64(LOGITS), f64(h), f64(h_prime)), loop)


def test_mean_probability_logits() -> None:
    stacked = torch.stack([f64(LOGITS).detach(), -2 * f64(LOGITS).detach()])
    close(torch.sigmoid(o.mean_probability_logits(stacked)), [(sigmoid(x) + sigmoid(-2 * x)) / 2 for x in LOGITS])
    assert torch.isfinite(o.mean_probability_logits(torch.full((2, 1), 300.0))).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mean_probability_logits_keep_the_order_of_small_and_of_large_logits(dtype: torch.dtype) -> None:
    """Of users whom training never saw all logits are near zero, and rank all the same."""
    for scale in (1e-20, 1e-9, 1e-3, 1.0, 20.0, 300.0):
        rising = scale * torch.linspace(-1, 1, 41, dtype=dtype)
        for members in (1, 3):
            mean = o.mean_probability_logits(rising.expand(members, -1))
            torch.testing.assert_close(mean, rising, rtol=2e-6, atol=0)
            assert (mean.diff() > 0).all(), scale
    one, other = torch.tensor([2e-9, 150.0], dtype=dtype), torch.tensor([4e-9, 151.0], dtype=dtype)
    expected = [3e-9, 150 - math.log((1 + math.exp(-1)) / 2)]
    torch.testing.assert_close(
        o.mean_probability_logits(torch.stack([one, other])), torch.tensor(expected, dtype=dtype), rtol=1e-6, atol=0
    )


def test_paper_code_branches_equal_their_loops() -> None:
    def log(x: float) -> float:
        return math.log(x + 1e-5)

    h, h_prime = [0.3, -1.0, 2.0, 0.1, -0.7, 1.5], [1.0, 0.5, -0.2, 0.0, 2.0, -1.0]
    loops: dict[str, list[float]] = {"dp": [], "dn": [], "mixed": []}
    for f, a, b, y in zip(LOGITS, h, h_prime, LABELS, strict=True):
        p, a, b = sigmoid(f), sigmoid(a), sigmoid(b)
        loops["dp"].append(-(log(a) * (1 - p)) if y else -(log(1 - a) * (1 - p) - p * 7.0))
        loops["dn"].append(-(log(b) * p - 7.0 * (1 - p)) if y else -(log(1 - b) * p))
        loops["mixed"].append(-(log(1 - a) * (1 - p) + log(1 - b) * p))
    for branch, loop in loops.items():
        close(o.paper_code_denoise(f64(LOGITS), f64(h), f64(h_prime), f64(LABELS), branch, 7.0), loop)


def test_paper_code_agreement_equals_the_loop() -> None:
    def one(p: float, q: float) -> float:
        log = [math.log(x + 1e-5) for x in (p, q, 1 - p, 1 - q)]
        return p * (log[0] - log[1]) + (1 - p) * (log[2] - log[3])

    other = [x * 0.5 + 0.2 for x in LOGITS]
    loop = [
        0.3 * one(sigmoid(g), sigmoid(f)) + 0.7 * one(sigmoid(f), sigmoid(g))
        for f, g in zip(LOGITS, other, strict=True)
    ]
    close(o.paper_code_agreement(f64(LOGITS), f64(other), 0.3), loop)
