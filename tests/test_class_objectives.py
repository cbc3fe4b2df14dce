"""Every formula of the multi-class losses against a plain loop in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recdenoise import objectives as o

N, C = 7, 4


def draw(seed: int, *shape: int, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).requires_grad_()


def labels(seed: int = 3, n: int = N, classes: int = C) -> Tensor:
    return torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed))


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    parts = [math.exp(x - top) for x in row]
    return [x / sum(parts) for x in parts]


def close(found: Tensor, loop: list[float]) -> None:
    torch.testing.assert_close(found.detach(), torch.tensor(loop, dtype=torch.float64), rtol=1e-10, atol=1e-10)


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def test_cross_entropy_of_mixed_labels() -> None:
    logits, target = draw(1, N, C), torch.softmax(draw(2, N, C), 1).detach()
    loop = [
        -sum(t * math.log(p) for t, p in zip(row, softmax(x), strict=True))
        for x, row in zip(logits.tolist(), target.tolist(), strict=True)
    ]
    close(o.classification_loss(logits, target), loop)
    hard = torch.nn.functional.one_hot(labels(), C).double()
    torch.testing.assert_close(o.classification_loss(logits, hard), o.classification_loss(logits, labels()))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_agreement_weighs_the_prior_first(alpha: float) -> None:
    target, prior = draw(1, N, C), draw(2, N, C)
    loop = []
    for t, q in zip(target.tolist(), prior.tolist(), strict=True):
        loop.append(alpha * kl(softmax(q), softmax(t)) + (1 - alpha) * kl(softmax(t), softmax(q)))
    close(o.class_agreement(target, prior, alpha), loop)


@pytest.mark.parametrize("k", range(C))
def test_a_step_for_one_class(k: int) -> None:
    """Eq. 22, one example at a time."""
    target, h, label = draw(1, N, C), draw(2, N, C, scale=6.0), labels()
    loop = []
    for x, row, y in zip(target.tolist(), h.tolist(), label.tolist(), strict=True):
        p, conditional = softmax(x), softmax(row)
        e = p[k] * max(math.log(conditional[y]), math.log(1e-5))
        e += -2.0 * (1 - p[k]) if y == k else -3.0 * (1 - p[k] - p[y])
        loop.append(-e)
    assert min(softmax(row)[y] for row, y in zip(h.tolist(), label.tolist(), strict=True)) < 1e-5, "the clamp is tried"
    close(o.denoise_class(target, h, label, torch.tensor(k), 2.0, 3.0), loop)


@pytest.mark.parametrize("keep_label", [True, False])
@pytest.mark.parametrize("k", range(C))
def test_a_step_under_all_conditionals(k: int, keep_label: bool) -> None:
    """Eq. 24, one example at a time; only class k's conditional gets a gradient."""
    target, h, label = draw(1, N, C), draw(2, N, C, C), labels()
    loop = []
    for x, table, y in zip(target.tolist(), h.tolist(), label.tolist(), strict=True):
        p = softmax(x)
        counted = [c for c in range(C) if keep_label or c == k or c != y]
        loop.append(-sum(p[c] * max(math.log(softmax(table[c])[y]), math.log(1e-5)) for c in counted))
    found = o.denoise_every_class(target, h, label, torch.tensor(k), keep_label)
    close(found, loop)
    found.sum().backward()
    assert h.grad is not None
    assert h.grad[:, k].abs().sum() > 0
    assert all(not h.grad[:, c].any() for c in range(C) if c != k)


@pytest.mark.parametrize("k", [0, 1])
def test_two_classes_are_the_binary_steps(k: int) -> None:
    """Eq. 22 with |C| = 2 is the DP step for k = 0 and the DN step for k = 1."""
    f, h = draw(1, N), draw(2, N)
    label = labels(classes=2)
    zero = torch.zeros_like(f)
    found = o.denoise_class(torch.stack([zero, f], 1), torch.stack([zero, h], 1), label, torch.tensor(k), 5.0, 5.0)
    binary = (o.denoise_positives, o.denoise_negatives)[k](f, h, label.double(), 5.0)
    torch.testing.assert_close(found, binary, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("q", [0.0, 0.3, 0.7, 1.0])
def test_generalized_cross_entropy_and_its_truncation(q: float) -> None:
    logits, label = draw(1, N, C), labels()
    p = [softmax(x)[y] for x, y in zip(logits.tolist(), label.tolist(), strict=True)]

    def loss(value: float) -> float:
        return -math.log(value) if q == 0 else (1 - value**q) / q

    close(o.generalized_cross_entropy(logits, label, q), [loss(x) for x in p])
    truncated = o.truncated_generalized_cross_entropy(logits, label, q, 0.5)
    close(truncated, [loss(x) if x > 0.5 else loss(0.5) for x in p])
    truncated.sum().backward()
    assert logits.grad is not None
    assert [bool(row.any()) for row in logits.grad] == [x > 0.5 for x in p]


def test_mean_absolute_error() -> None:
    logits, label = draw(1, N, C), labels()
    loop = []
    for x, y in zip(logits.tolist(), label.tolist(), strict=True):
        loop.append(sum(abs((c == y) - p) for c, p in enumerate(softmax(x))))
    close(o.mean_absolute_error(logits, label), loop)


def test_early_learning() -> None:
    logits, memory = draw(1, N, C), torch.softmax(draw(2, N, C), 1).detach()
    loop = [
        math.log(1 - sum(p * t for p, t in zip(softmax(x), row, strict=True)))
        for x, row in zip(logits.tolist(), memory.tolist(), strict=True)
    ]
    close(o.early_learning(logits, memory), loop)
    sure = torch.tensor([[40.0, 0.0]], dtype=torch.float64)
    assert o.early_learning(sure, torch.tensor([[1.0, 0.0]]).double()).item() == pytest.approx(math.log(1e-4))


def test_mean_of_members() -> None:
    logits = draw(1, 3, N, C)
    members = [[softmax(row) for row in member] for member in logits.tolist()]
    mean = [[sum(m[i][c] for m in members) / 3 for c in range(C)] for i in range(N)]
    torch.testing.assert_close(o.mean_class_logits(logits).exp().detach(), torch.tensor(mean, dtype=torch.float64))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 80.0))
def test_nothing_overflows_and_divergences_are_not_negative(seed: int, scale: float) -> None:
    target, other = draw(seed, N, C, scale=scale).float(), draw(seed + 1, N, C, scale=scale).float()
    h, label, k = draw(seed + 2, N, C, C, scale=scale).float(), labels(seed), torch.tensor(seed % C)
    assert (o.class_kl(target, other) > -1e-4).all()
    for value in (
        o.class_kl(target, other),
        o.denoise_class(target, h[:, 0], label, k, 10.0, 10.0),
        o.denoise_every_class(target, h, label, k),
        o.early_learning(target, torch.softmax(other, 1)),
    ):
        assert value.shape == (N,)
        assert value.isfinite().all()


def test_half_precision_logits_are_raised() -> None:
    assert o.class_kl(torch.randn(2, 3).bfloat16(), torch.randn(2, 3).bfloat16()).dtype == torch.float32
