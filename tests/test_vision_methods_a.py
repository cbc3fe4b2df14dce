"""MAE, GCE, ELR, mixup, Co-teaching, JoCoR, CDR, CORES: formulas against plain loops in float64, and what they do."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recdenoise import objectives as o
from recdenoise.denoisers import Clock, Stage
from recdenoise.errors import UserError
from tests.test_class_objectives import C, N, close, draw, kl, labels, softmax
from tests.toy_images import build, image_loop, image_task
from vision import methods
from vision.methods import cdr, co_teaching, cores, elr, gce, jocor, mixup, small_loss

CLOCK = Clock(0, 10, 0, 5)


def rows(values: Tensor) -> list[list[float]]:
    return values.detach().tolist()


def first_batch(task: Any) -> Any:
    return next(iter(task.loader(methods.get("normal")(task).passes(Stage(), 0)[0], (0, 0, 0)).batches()))


# GCE and MAE


@pytest.mark.parametrize("q", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("k", [0.2, 0.5])
def test_gce_and_its_truncation(q: float, k: float) -> None:
    logits, label = draw(1, N, C), labels()

    def loop_gce(p: float) -> float:
        return -math.log(p) if q == 0 else (1 - p**q) / q

    p = [softmax(row)[y] for row, y in zip(rows(logits), label.tolist(), strict=True)]
    assert min(p) < k < max(p)
    close(o.generalized_cross_entropy(logits, label, q), [loop_gce(x) for x in p])
    close(o.truncated_generalized_cross_entropy(logits, label, q, k), [loop_gce(max(x, k)) for x in p])
    assert gce.loss_at(k, q) == pytest.approx(loop_gce(k), rel=1e-14)


def test_mae_is_the_l1_distance_to_the_label() -> None:
    logits, label = draw(1, N, C), labels()
    loop = [
        sum(abs((j == y) - x) for j, x in enumerate(softmax(row)))
        for row, y in zip(rows(logits), label.tolist(), strict=True)
    ]
    close(o.mean_absolute_error(logits, label), loop)


def test_mae_trains_with_the_printed_loss() -> None:
    task = image_task()
    method, batch = build("mae", task), first_batch(task)
    loss = method.losses(batch, CLOCK).loss
    p = torch.softmax(task.call(method.target, batch.inputs), 1)
    hot = nn.functional.one_hot(batch.label, 3)
    torch.testing.assert_close(loss, (hot - p).abs().sum(1))


def test_gce_prunes_at_its_epochs_by_what_the_network_says_without_augmentation() -> None:
    task = image_task()
    method = build("gce", task, {"prune_from": 3, "prune_every": 2, "k": 0.34}).eval()
    probability = o.observed_probability(task.scan(method.score), task.labels)
    for epoch in range(3):
        method.begin_epoch(Stage(), epoch)
    assert (method.kept == 1).all()
    method.begin_epoch(Stage(), 3)
    assert torch.equal(method.kept, (probability > 0.34).float())
    assert 0 < method.kept.sum() < task.n_rows
    method.kept.fill_(1)
    method.begin_epoch(Stage(), 4)
    assert (method.kept == 1).all()
    method.begin_epoch(Stage(), 5)
    assert not (method.kept == 1).all()


def test_gce_does_not_prune_every_row() -> None:
    loop = image_loop("gce", image_task(), {"k": 0.99})
    rows = loop.run()
    assert [row["kept"] for row in rows] == [1, 1, 1]


def test_gce_gives_pruned_rows_no_gradient_and_the_loss_of_k() -> None:
    task = image_task()
    method = build("gce", task, {"k": 0.4, "q": 0.7})
    method.kept.copy_(torch.arange(task.n_rows) % 2)
    (sweep,) = method.passes(Stage(), 5)
    batch = next(iter(task.loader(sweep, (0, 5, 0)).batches()))
    (update,) = method.step(Stage(), batch, CLOCK)
    logits = task.call(method.target, batch.inputs)
    p = o.observed_probability(logits, batch.label)
    expected = torch.where(batch.index % 2 == 1, (1 - p**0.7) / 0.7 - (1 - 0.4**0.7) / 0.7, 0.0)
    torch.testing.assert_close(update.reduce(), expected.mean())


# ELR


def test_elr_memory_and_loss() -> None:
    logits, memory, label, beta = draw(1, N, C, scale=6.0), torch.softmax(draw(2, N, C), 1).detach(), labels(), 0.7
    expected, losses = [], []
    for x, t, y in zip(rows(logits), rows(memory), label.tolist(), strict=True):
        p = softmax(x)
        clamped = [min(max(a, 1e-4), 1 - 1e-4) for a in p]
        now = [beta * b + (1 - beta) * a / sum(clamped) for a, b in zip(clamped, t, strict=True)]
        expected.append(now)
        inner = min(sum(a * b for a, b in zip(p, now, strict=True)), 1 - 1e-4)
        losses.append(-math.log(p[y]) + 3.0 * math.log(1 - inner))
    found = elr.remembered(memory, logits, beta)
    assert not found.requires_grad
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-10)
    close(o.classification_loss(logits, label) + 3.0 * o.early_learning(logits, found), losses)


def test_elr_remembers_the_rows_of_the_batch_alone() -> None:
    task = image_task()
    method, batch = build("elr", task, {"beta": 0.9}), first_batch(task)
    loss = method.losses(batch, CLOCK).loss
    touched = method.memory.sum(1) > 0
    assert set(touched.nonzero().squeeze(1).tolist()) == set(batch.index.tolist())
    torch.testing.assert_close(method.memory[batch.index].sum(1), torch.full((16,), 0.1))
    logits = task.call(method.target, batch.inputs)
    expected = o.classification_loss(logits, batch.label) + 3 * o.early_learning(logits, method.memory[batch.index])
    torch.testing.assert_close(loss, expected)


# mixup


def test_mixup_mixes_images_and_the_losses_of_their_labels() -> None:
    values, partners, share = draw(1, N, 2, 3), torch.randperm(N, generator=torch.Generator().manual_seed(1)), 0.3
    mixed = mixup.mixed(values, partners, share)
    for i, j in enumerate(partners.tolist()):
        torch.testing.assert_close(mixed[i], 0.3 * values[i] + 0.7 * values[j], rtol=1e-12, atol=1e-12)


def test_mixup_loss_is_cross_entropy_with_the_mixed_label() -> None:
    task = image_task()
    method, batch = build("mixup", task, {"alpha": 2.0}).eval(), first_batch(task)
    torch.manual_seed(3)
    loss = method.losses(batch, CLOCK).loss
    torch.manual_seed(3)
    share, partners = mixup.draw_share(2.0), torch.randperm(16)
    assert 0 < share < 1
    inputs = share * batch.inputs + (1 - share) * batch.inputs[partners]
    hot = nn.functional.one_hot(batch.label, 3).float()
    soft = share * hot + (1 - share) * hot[partners]
    log_p = torch.log_softmax(task.call(method.target, inputs), 1)
    torch.testing.assert_close(loss, -(soft * log_p).sum(1))


def test_mixing_shares_follow_the_beta_distribution() -> None:
    torch.manual_seed(0)
    for alpha in (0.5, 4.0):
        shares = torch.tensor([mixup.draw_share(alpha) for _ in range(2000)])
        assert shares.mean() == pytest.approx(0.5, abs=0.02)
        assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)
    assert mixup.draw_share(0.0) == 1.0


# Small losses


def test_kept_share_is_the_printed_schedule() -> None:
    config = co_teaching.CoTeachingConfig(noise_rate=0.4, gradual_epochs=10, exponent=2.0)
    for epoch in range(15):
        assert small_loss.kept_share(epoch, config) == pytest.approx(1 - 0.4 * min((epoch / 10) ** 2, 1))
    at_once = co_teaching.CoTeachingConfig(noise_rate=0.4, gradual_epochs=0)
    assert small_loss.kept_share(0, at_once) == pytest.approx(0.6)


@given(st.lists(st.floats(0, 10, width=32), min_size=1, max_size=30), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_smallest_rows_are_no_larger_than_the_others(values: list[float], share: float) -> None:
    loss = torch.tensor(values)
    kept = small_loss.smallest_rows(loss, share)
    assert len(kept) == max(1, round(share * len(values)))
    others = torch.ones(len(values), dtype=torch.bool)
    others[kept] = False
    assert len(set(kept.tolist())) == len(kept)
    assert not others.any() or loss[kept].max() <= loss[others].min()


def test_co_teaching_learns_from_what_the_other_network_chose() -> None:
    task = image_task()
    method, batch = build("co_teaching", task, {"noise_rate": 0.5, "gradual_epochs": 0}), first_batch(task)
    losses = [o.classification_loss(task.call(m, batch.inputs), batch.label) for m in (method.target, method.second)]
    chosen = [sorted(range(16), key=lambda i, x=x: x[i].item())[:8] for x in losses]  # type: ignore[misc]
    assert set(chosen[0]) != set(chosen[1])
    steps = method.step(method.stages()[0], batch, CLOCK)
    for number, update in enumerate(steps):
        assert update.optimizer == ("target", "second")[number]
        expected = sum(losses[number][i].item() for i in chosen[1 - number]) / 8
        assert update.reduce().item() == pytest.approx(expected, rel=1e-6)
        method.zero_grad()
        update.reduce().backward()
        moved = method.second if number else method.target
        still = method.target if number else method.second
        assert all(p.grad is not None for p in moved.parameters())
        assert all(p.grad is None for p in still.parameters())


def test_jocor_loss() -> None:
    first, second, label, lam = draw(1, N, C), draw(2, N, C), labels(), 0.3
    loop = []
    for a, b, y in zip(rows(first), rows(second), label.tolist(), strict=True):
        p, q = softmax(a), softmax(b)
        loop.append((1 - lam) * (-math.log(p[y]) - math.log(q[y])) + lam * (kl(p, q) + kl(q, p)))
    close(jocor.joint_loss(first, second, label, lam), loop)


def test_jocor_chooses_by_the_joint_loss() -> None:
    task = image_task()
    method = build("jocor", task, {"noise_rate": 0.25, "gradual_epochs": 0, "co_lambda": 0.5})
    batch = first_batch(task)
    joint = jocor.joint_loss(*method.logits(batch.inputs), batch.label, 0.5)
    (update,) = method.step(method.stages()[0], batch, CLOCK)
    assert update.reduce().item() == pytest.approx(sum(sorted(joint.tolist())[:12]) / 12)


@pytest.mark.parametrize("name", ["co_teaching", "jocor"])
def test_two_networks_answer_as_told(name: str) -> None:
    task = image_task()
    inputs = first_batch(task).inputs
    first, both = build(name, task).eval(), build(name, task, {"answer": "mean"}).eval()
    assert torch.equal(first.score(inputs), task.call(first.target, inputs))
    p = [torch.softmax(task.call(m, inputs), 1) for m in (both.target, both.second)]
    assert not torch.allclose(p[0], p[1])
    torch.testing.assert_close(both.score(inputs).exp(), (p[0] + p[1]) / 2)
    torch.testing.assert_close(both.watched_score(Stage())(inputs), both.score(inputs))


# CDR


@pytest.mark.parametrize("share", [0.01, 0.3, 0.75, 1.0])
def test_critical_weights_have_the_largest_products(share: float) -> None:
    weights = [draw(1, 4, 3).detach(), draw(2, 2, 2, 3, 3).detach()]
    gradients = [draw(3, 4, 3).detach(), draw(4, 2, 2, 3, 3).detach()]
    flat = [abs(a * b) for w, g in zip(weights, gradients, strict=True)
            for a, b in zip(w.flatten().tolist(), g.flatten().tolist(), strict=True)]  # fmt: skip
    keep = max(1, int(share * len(flat)))
    threshold = sorted(flat, reverse=True)[keep - 1]
    found = torch.cat([m.flatten() for m in cdr.critical(weights, gradients, share)]).tolist()
    assert found == [value >= threshold for value in flat]
    assert sum(found) == keep


def test_cdr_may_come_gradually() -> None:
    config = cdr.CDRConfig(noise_rate=0.4, gradual_epochs=5)
    found = [cdr.critical_share(epoch, config) for epoch in range(7)]
    assert found == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6, 0.6, 0.6])
    for epochs in (0, 1):
        assert cdr.critical_share(0, cdr.CDRConfig(noise_rate=0.4, gradual_epochs=epochs)) == pytest.approx(0.6)
    task = image_task()
    method, batch = build("cdr", task, {"noise_rate": 0.4, "gradual_epochs": 5}), first_batch(task)
    method.losses(batch, CLOCK).loss.mean().backward()
    before = [p.grad.clone() for p in method.target.parameters()]  # type: ignore[union-attr]
    method.edit_gradients("target", Clock(0, 1, 0, 9))
    assert all(torch.equal(p.grad, g) for p, g in zip(method.target.parameters(), before, strict=True))
    method.edit_gradients("target", Clock(0, 1, 2, 9))
    assert not all(torch.equal(p.grad, g) for p, g in zip(method.target.parameters(), before, strict=True))


def test_cdr_moves_critical_weights_alone() -> None:
    task = image_task()
    method, batch = build("cdr", task, {"noise_rate": 0.4, "l1": 0.01}), first_batch(task)
    (update,) = method.step(Stage(), batch, CLOCK)
    update.reduce().backward()
    before = {k: p.grad.clone() for k, p in method.target.named_parameters() if p.grad is not None}
    method.edit_gradients("target", CLOCK)
    matter = {k for k, p in method.target.named_parameters() if p.dim() >= 2}
    parameters = dict(method.target.named_parameters())
    masks = cdr.critical([parameters[k] for k in sorted(matter)], [before[k] for k in sorted(matter)], 0.6)
    for key, mask in zip(sorted(matter), masks, strict=True):
        expected = 0.6 * before[key] * mask + 0.01 * parameters[key].sign()
        torch.testing.assert_close(parameters[key].grad, expected)
        assert 0 < mask.sum() < mask.numel()
    for key in before.keys() - matter:
        assert torch.equal(parameters[key].grad, before[key])  # type: ignore[arg-type]


# CORES


def test_beta_of_cores_waits_and_grows() -> None:
    config = cores.CORESConfig()
    assert [cores.grown(e, config) for e in (0, 9, 10, 25, 40, 99)] == [0, 0, 0, 1, 2, 2]
    assert cores.grown(10, cores.CORESConfig(ramp_epochs=0)) == 2


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
def test_cores_loss_and_sieve(beta: float) -> None:
    logits, label, prior = draw(1, N, C), labels(), torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    losses, kept = [], []
    for x, y in zip(rows(logits), label.tolist(), strict=True):
        ce = [-math.log(p) for p in softmax(x)]
        regulariser = -beta * sum(a * b for a, b in zip(prior.tolist(), ce, strict=True))
        losses.append(ce[y] + regulariser)
        kept.append(ce[y] + regulariser <= sum(ce) / C + regulariser)
    close(cores.confidence_regularized(logits, label, prior, beta), losses)
    assert 0 < sum(kept) < N
    assert cores.passes_sieve(logits, label).tolist() == kept


def test_cores_has_a_lower_bound() -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    loss = cores.confidence_regularized(logits, torch.tensor([0]), torch.full((3,), 1 / 3, dtype=torch.float64), 2.0)
    close(loss, [-2 * 2 / 3 * -math.log(1e-8)])
    loss.sum().backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-12


def test_cores_sieves_from_its_epoch_on_and_keeps_the_shares_of_labels() -> None:
    task = image_task()
    method = build("cores", task, {"sieve_from": 2, "prior": "kept", "star": False}).eval()
    (stage,) = method.stages()
    torch.testing.assert_close(method.prior, torch.bincount(task.labels, minlength=3) / task.n_rows)
    method.begin_epoch(stage, 1)
    assert method.kept.all()
    method.begin_epoch(stage, 2)
    kept = cores.passes_sieve(task.scan(method.score), task.labels)
    assert torch.equal(method.kept, kept)
    assert 0 < kept.sum() < task.n_rows
    torch.testing.assert_close(method.prior, torch.bincount(task.labels[kept], minlength=3) / kept.sum())
    (sweep,) = method.passes(stage, 2)
    assert sweep.rows is not None
    assert sweep.rows.tolist() == kept.nonzero().squeeze(1).tolist()


def test_cores_star_trains_both_parts_from_new_weights() -> None:
    task = image_task()
    method = build("cores", task, {"consistency": 0.4, "unlabelled_batch": 8}).eval()
    sieve, consistency = method.stages()
    assert (sieve.name, consistency.reset) == ("sieve", ("target",))
    method.kept.copy_(torch.arange(task.n_rows) % 3 > 0)
    (sweep,) = method.passes(consistency, 0)
    batch = next(iter(task.loader(sweep, (1, 0, 0)).batches()))
    others = batch.streams["others"]
    assert (batch.index % 3 > 0).all()
    assert (others.index % 3 == 0).all()
    (update,) = method.step(consistency, batch, CLOCK)
    fit = o.classification_loss(task.call(method.target, batch.inputs), batch.label).mean()
    first, second = (task.call(method.target, view) for view in others.views)
    torch.testing.assert_close(update.reduce(), fit + 0.4 * o.class_kl(first.detach(), second).mean())
    assert update.groups == (16, 8)
    method.kept.fill_(True)
    (sweep,) = method.passes(consistency, 0)
    assert not sweep.streams


def test_cores_does_not_empty_the_training_set() -> None:
    task = image_task(noise=0.0)
    method = build("cores", task, {"star": False}).eval()
    with torch.no_grad():
        head = method.target[-1]
        head.weight.zero_()
        head.bias.copy_(torch.tensor([0.0, 0.0, 9.0]))
    task.labels = torch.zeros_like(task.labels)  # all doubted
    method.begin_epoch(method.stages()[0], 2)
    assert method.kept.all()


@pytest.mark.parametrize("prior", ["observed", "kept"])
def test_cores_without_star_trains(prior: str) -> None:
    loop = image_loop("cores", image_task(), {"star": False, "prior": prior, "scale_rate": True})
    assert len(loop.run()) == 3


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("gce", "q", 1.5),
        ("gce", "k", 0),
        ("gce", "prune_every", 0),
        ("gce", "truncation", "some"),
        ("elr", "beta", 1),
        ("elr", "strength", -1),
        ("mixup", "alpha", -1),
        ("co_teaching", "noise_rate", 1),
        ("co_teaching", "gradual_epochs", -1),
        ("co_teaching", "exponent", 0),
        ("jocor", "co_lambda", 1),
        ("cdr", "noise_rate", 1.0),
        ("cdr", "l1", -1),
        ("cores", "beta", -1),
        ("cores", "sieve_from", -1),
        ("cores", "unlabelled_batch", 0),
    ],
)
def test_options_out_of_range_are_refused(name: str, option: str, value: Any) -> None:
    with pytest.raises(UserError, match=option):
        methods.get(name).read_config({option: value})
