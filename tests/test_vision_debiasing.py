"""LfF, DFA and Group DRO: every formula against a plain loop in float64, whose gradient reaches what."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import vision
from recdenoise.denoisers import Clock, Denoiser, Stage
from recdenoise.errors import UserError
from recdenoise.task import Batch
from tests.toy_images import TinyImages, build, cross_entropies, image_loop, image_task, jitter, network
from vision.methods import dfa
from vision.methods.relative_difficulty import RelativeDifficulty
from vision.task import ImageTask

CLOCK = Clock(0, 12, 0, 3)


def plain_task(**options: Any) -> ImageTask:
    """Networks without norm layers: what they give for an image does not depend on the others."""
    return image_task(new_model=lambda _: network(norm=False), **options)


def first_batch(denoiser: Denoiser, task: ImageTask) -> Batch:
    """The first batch of a run, in float64."""
    (sweep,) = denoiser.passes(Stage(), 0)
    batch = next(iter(task.loader(sweep, (0, 0, 0)).batches()))
    return dataclasses.replace(batch, inputs=batch.inputs.double())


def gce(logits: Tensor, label: Tensor, q: float) -> list[float]:
    return [(1 - math.exp(-q * ce)) / q for ce in cross_entropies(logits, label)]


# Relative difficulty


def test_losses_are_smoothed_by_row_from_their_first_value_and_divided_by_the_maximum_of_their_class() -> None:
    labels = torch.tensor([0, 1, 0, 1, 2])
    memory = RelativeDifficulty(labels, 3, 0.7).double()
    steps = [([0, 1], [1.0, 4.0], [2.0, 1.0]), ([1, 2], [2.0, 0.5], [3.0, 8.0]), ([2, 0], [1.5, 0.1], [4.0, 0.2])]
    averages: dict[int, tuple[float, float]] = {}
    for rows, biased, debiased in steps:
        memory.remember(torch.tensor(rows), torch.tensor(biased).double(), torch.tensor(debiased).double())
        for row, *new in zip(rows, biased, debiased, strict=True):
            old = averages.get(row)
            averages[row] = tuple(new if old is None else [0.7 * a + 0.3 * b for a, b in zip(old, new, strict=True)])
    expected = []
    for row, label in enumerate(labels.tolist()):
        if row not in averages:
            expected.append(0.0)
            continue
        of_class = [averages[r] for r in averages if labels[r] == label]
        b, d = (averages[row][i] / max(each[i] for each in of_class) for i in range(2))
        expected.append(b / (b + d))
    found = memory.weights()
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=1e-6, atol=1e-8)
    assert torch.equal(memory.weights(torch.tensor([4, 2])), found[[4, 2]])
    assert {"losses", "seen"} == set(memory.state_dict())  # the labels are the data's, not the run's


def test_a_row_that_both_networks_know_by_heart_has_a_finite_weight() -> None:
    memory = RelativeDifficulty(torch.tensor([0, 0, 1]), 2, 0.0)
    memory.remember(torch.arange(3), torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.0, 1.0, 0.0]))
    assert torch.equal(memory.weights(), torch.tensor([0.0, 0.5, 0.0]))


# LfF


def test_lff_steps_the_biased_network_by_gce_and_the_other_by_weighted_cross_entropy() -> None:
    task = plain_task()
    method = build("lff", task, {"q": 0.6, "decay": 0.5}).double()
    batch = first_batch(method, task)
    first, second = method.step(Stage(), batch, CLOCK)
    biased, debiased = (task.call(net, batch.inputs) for net in (method.biased, method.target))
    torch.testing.assert_close(first.loss.tolist(), gce(biased, batch.label, 0.6))
    b, d = cross_entropies(biased, batch.label), cross_entropies(debiased, batch.label)
    torch.testing.assert_close(second.loss.tolist(), d)
    assert second.weight is not None
    labels = batch.label.tolist()
    for i, label in enumerate(labels):
        same = [j for j, each in enumerate(labels) if each == label]
        x, y = b[i] / max(b[j] for j in same), d[i] / max(d[j] for j in same)
        assert float(second.weight[i]) == pytest.approx(x / (x + y), rel=1e-6)
    assert (first.optimizer, second.optimizer) == ("biased", "target")


def test_lff_sends_each_loss_to_its_own_network() -> None:
    task = plain_task()
    method = build("lff", task).double()
    for update in method.step(Stage(), first_batch(method, task), CLOCK):
        method.zero_grad()
        update.reduce().backward()
        reached = {name.split(".")[0] for name, p in method.named_parameters() if p.grad is not None}
        assert reached == {update.optimizer}


def test_lff_answers_with_the_debiased_network_and_tells_its_weights() -> None:
    task = image_task()
    loop = image_loop("lff", task)
    loop.run()
    method = loop.denoiser.eval()
    inputs = jitter(task.source("train").images[:5], torch.Generator(), False)
    assert torch.equal(method.score(inputs), task.call(method.target, inputs))
    weights = method.row_weights()
    assert weights is not None
    assert weights.shape == (task.n_rows,)
    assert ((weights >= 0) & (weights <= 1)).all()


# DFA


def features(method: Denoiser, batch: Batch) -> tuple[Tensor, Tensor]:
    return method.target.target_encoder(batch.inputs), method.target.bias_encoder(batch.inputs)


def total_by_hand(method: Denoiser, batch: Batch, partners: list[int] | None, own: bool = False) -> list[float]:
    """The loss of each row at the first step, one row after the other."""
    options, (z, b) = method.config, features(method, batch)
    labels = batch.label.tolist()

    def heads(i: int, j: int) -> tuple[Tensor, Tensor]:
        both = torch.cat([z[i], b[j]])
        return method.target.target_head(both), method.target.bias_head(both)

    def ce(logits: Tensor, label: int) -> float:
        return float(-torch.log_softmax(logits.detach(), 0)[label])

    def amplified(logits: Tensor, label: int) -> float:
        return (1 - math.exp(-options.q * ce(logits, label))) / options.q

    d, a = zip(*((ce(t, y), ce(s, y)) for i, y in enumerate(labels) for t, s in [heads(i, i)]), strict=True)
    total = []
    for i, y in enumerate(labels):
        same = [j for j, each in enumerate(labels) if each == y]
        hard, easy = a[i] / max(a[j] for j in same), d[i] / max(d[j] for j in same)
        weight = hard / (hard + easy)
        value = weight * d[i] + options.lambda_dis * amplified(heads(i, i)[1], y)
        if partners is not None:
            j = partners[i]
            target, bias = heads(i, j)
            learned = y if own else labels[j]
            value += options.lambda_swap * (
                weight * ce(target, y) + options.lambda_swap_align * amplified(bias, learned)
            )
        total.append(value)
    return total


@pytest.mark.parametrize("swap_label", ["source", "own"])
def test_dfa_adds_both_heads_and_swapped_bias_features(swap_label: str) -> None:
    task = plain_task()
    options = {"swap_from": 0, "lambda_dis": 3, "lambda_swap": 0.5, "lambda_swap_align": 2, "swap_label": swap_label}
    method = build("dfa", task, options).double()
    batch = first_batch(method, task)
    torch.manual_seed(5)
    partners = torch.randperm(len(batch.label)).tolist()
    torch.manual_seed(5)
    (update,) = method.step(Stage(), batch, CLOCK)
    by_hand = total_by_hand(method, batch, partners, swap_label == "own")
    torch.testing.assert_close(update.loss.tolist(), by_hand, rtol=1e-6, atol=1e-8)
    assert any(batch.label[i] != batch.label[j] for i, j in enumerate(partners))


def test_dfa_begins_to_swap_at_a_step_or_share_of_the_run() -> None:
    assert dfa.swap_begins(None, 100) == math.inf
    assert dfa.swap_begins(0.25, 100) == 25
    assert dfa.swap_begins(10_000, 100) == 10_000
    task = plain_task()
    for swap_from, step, swaps in ((0.5, 5, False), (0.5, 6, True), (4, 3, False), (4, 4, True), (None, 11, False)):
        method = build("dfa", task, {"swap_from": swap_from}).double()
        batch = first_batch(method, task)
        torch.manual_seed(5)
        (update,) = method.step(Stage(), batch, Clock(step, 12, 0, 3))
        torch.manual_seed(5)
        partners = torch.randperm(len(batch.label)).tolist() if swaps else None
        torch.testing.assert_close(update.loss.tolist(), total_by_hand(method, batch, partners), rtol=1e-6, atol=1e-8)


def test_each_head_of_dfa_reaches_its_own_half_alone() -> None:
    task = plain_task()
    method = build("dfa", task).double()
    z, b = (each.detach().requires_grad_() for each in features(method, first_batch(method, task)))
    target, bias = method.heads(z, b)
    on_target = torch.autograd.grad(target.sum(), [z, b], allow_unused=True)
    on_bias = torch.autograd.grad(bias.sum(), [z, b], allow_unused=True)
    assert on_target[0] is not None
    assert on_target[1] is None
    assert on_bias[0] is None
    assert on_bias[1] is not None


def test_what_the_bias_head_learns_moves_nothing_of_the_target() -> None:
    """With and without the bias head's losses, the target's encoder and head get the same gradient."""
    task = plain_task()
    gradients = []
    for align in (0.0, 10.0):
        method = build("dfa", task, {"swap_from": 0, "lambda_dis": align, "lambda_swap_align": align}).double()
        torch.manual_seed(3)
        (update,) = method.step(Stage(), first_batch(method, task), CLOCK)
        update.reduce().backward()
        named = method.target.named_parameters()
        gradients.append({k: None if p.grad is None else p.grad.clone() for k, p in named})
    for key, gradient in gradients[0].items():
        if key.startswith("target"):
            torch.testing.assert_close(gradient, gradients[1][key])
        else:
            assert gradient is None or not gradient.any()
            assert gradients[1][key].any()


def test_dfa_swaps_whole_rows_and_learns_the_label_that_came_with_them() -> None:
    """A swapped row's bias loss is that of its partner's own features and label, where the target half is the same."""
    task = plain_task()
    method = build("dfa", task, {"swap_from": 0, "lambda_dis": 1.0, "lambda_swap_align": 1.0}).double()
    with torch.no_grad():
        width = method.target.bias_head.in_features // 2
        method.target.bias_head.weight[:, :width] = 0.0  # the bias head looks at the bias half alone
        method.target.target_head.weight.zero_()
        method.target.target_head.bias.zero_()
    batch = first_batch(method, task)
    torch.manual_seed(8)
    partners = torch.randperm(len(batch.label))
    torch.manual_seed(8)
    (update,) = method.step(Stage(), batch, CLOCK)
    weight = method.difficulty.weights(batch.index)
    _, bias = method.heads(*features(method, batch))
    own = torch.tensor(gce(bias, batch.label, 0.7), dtype=torch.float64)
    rest = update.loss.detach() - 2 * weight * math.log(3) - own
    torch.testing.assert_close(rest, own[partners], rtol=1e-6, atol=1e-8)


# Group DRO


def test_group_weights_move_by_hand() -> None:
    task = plain_task()
    method = build("group_dro", task, {"step_size": 0.5, "adjustment": 2.0, "sampling": "rows"}).double()
    batch = first_batch(method, task)
    out = method.losses(batch, CLOCK)
    losses = cross_entropies(task.call(method.target, batch.inputs), batch.label)
    bias = task.source("train").attributes["bias"]
    of_row = [int(label) * 2 + int(bias[row]) for row, label in enumerate(task.labels.tolist())]
    groups = [of_row[int(row)] for row in batch.index]
    q = []
    for group in range(6):
        members = [x for x, g in zip(losses, groups, strict=True) if g == group]
        mean = sum(members) / len(members) if members else None
        adjusted = 0.0 if mean is None else mean + 2.0 / math.sqrt(of_row.count(group))
        q.append(math.exp(0.5 * adjusted) / 6)
    q = [each / sum(q) for each in q]
    torch.testing.assert_close(method.group_weights.tolist(), q, rtol=1e-6, atol=1e-8)
    robust = sum(q[g] * x / groups.count(g) for x, g in zip(losses, groups, strict=True))
    assert out.weight is not None
    assert float((out.loss.detach() * out.weight).mean()) == pytest.approx(robust, rel=1e-6)


@pytest.mark.parametrize("adjust_absent", [True, False])
def test_a_group_that_a_batch_lacks_keeps_its_weight_but_for_what_the_authors_code_adds(adjust_absent: bool) -> None:
    method = build("group_dro", image_task(), {"adjustment": 3.0, "step_size": 0.1, "adjust_absent": adjust_absent})
    sums, present = torch.zeros(6), torch.zeros(6, dtype=torch.int64)
    sums[1], present[1] = 4.0, 2
    counts = method.counts.tolist()
    factors = [math.exp(0.1 * 3.0 / math.sqrt(n)) if adjust_absent else 1.0 for n in counts]
    factors[1] = math.exp(0.1 * (2.0 + 3.0 / math.sqrt(counts[1])))
    expected = [each / sum(factors) for each in factors]
    torch.testing.assert_close(method.moved(sums, present).tolist(), expected, rtol=1e-5, atol=1e-7)


def test_groups_are_drawn_equally_often() -> None:
    task = image_task(n=660)
    bias = torch.zeros(660, dtype=torch.int64)
    bias[:30] = 1  # ten of each class
    method = build("group_dro", rebiased(task, bias))
    torch.manual_seed(0)
    method.begin_epoch(Stage(), 0)
    (sweep,) = method.passes(Stage(), 0)
    shares = torch.bincount(method.groups[sweep.rows], minlength=6) / 660
    assert shares.min() > 0.11
    assert build("group_dro", task, {"sampling": "rows"}).passes(Stage(), 0)[0].rows.tolist() == list(range(660))


def rebiased(task: ImageTask, bias: Tensor) -> ImageTask:
    task.sources["train"] = dataclasses.replace(task.sources["train"], attributes={"bias": bias})  # type: ignore[type-var]
    return task


def test_an_empty_group_has_no_weight() -> None:
    task = image_task()
    method = build("group_dro", rebiased(task, task.labels.clone()))
    assert torch.equal(method.group_weights > 0, torch.eye(3, dtype=torch.bool).flatten())
    weights = method.row_weights()
    assert weights is not None
    assert float(weights.mean()) == pytest.approx(1.0)


def test_group_dro_without_known_bias_says_what_it_needs() -> None:
    data = TinyImages.draw(40, 0.0, 1)
    with pytest.raises(UserError, match="attribute 'bias'"):
        vision.fit("mlp", (data.images, data.labels), method="group_dro", epochs=1, batch_size=8, device="cpu")
