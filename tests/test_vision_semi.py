"""DivideMix, ELR+ and PES (semi): every formula against a plain loop, and what each does with rows that it divides."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from recdenoise.averaging import Averaging
from recdenoise.denoisers import Clock, Denoiser, Update
from recdenoise.errors import UserError
from recdenoise.task import Batch
from tests.toy_images import build, image_loop, image_task, network
from vision.heads import Headed
from vision.methods import gaussian_mixture
from vision.methods.class_balance import balance_loss
from vision.methods.dividemix import DivideMix
from vision.methods.elr_plus import weighed
from vision.methods.mixup import draw_larger_share
from vision.task import ImageTask


def plain_task(**options: Any) -> ImageTask:
    """Networks without norm layers: what they give for an image does not depend on the others."""
    return image_task(new_model=lambda _: network(norm=False), **options)


def batch_of(denoiser: Denoiser, task: ImageTask, stage: int = -1, epoch: int = 0, sweep: int = 0) -> Batch:
    """The first batch of a pass."""
    declared = denoiser.passes(denoiser.stages()[stage], epoch)[sweep]
    return next(iter(task.loader(declared, (0, epoch, sweep)).batches()))


def begin(denoiser: Denoiser, stage: int = -1, epoch: int = 0) -> None:
    denoiser.eval()
    with torch.no_grad():
        denoiser.begin_epoch(denoiser.stages()[stage], epoch)
    denoiser.train()


def first_update(denoiser: Denoiser, batch: Batch, stage: int = -1, **clock: Any) -> Update:
    at = {"step": 0, "steps": 12, "epoch": 0, "epochs": 3, **clock}
    return next(iter(denoiser.step(denoiser.stages()[stage], batch, Clock(**at))))


def softmax(logits: Tensor) -> Tensor:
    return torch.softmax(logits, 1)


def sharp(p: Tensor, temperature: float) -> Tensor:
    powers = p ** (1 / temperature)
    return powers / powers.sum(1, keepdim=True)


def mixed_by_hand(inputs: Tensor, target: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """One example after the other, from the draws that the method takes."""
    share, partners = draw_larger_share(alpha), torch.randperm(len(target))
    pairs = [(i, int(j)) for i, j in enumerate(partners)]
    return (
        torch.stack([share * inputs[i] + (1 - share) * inputs[j] for i, j in pairs]),
        torch.stack([share * target[i] + (1 - share) * target[j] for i, j in pairs]),
    )


# DivideMix


def test_each_network_divides_the_rows_for_the_other() -> None:
    task = plain_task()
    denoiser = build("dividemix", task, {"threshold": 0.5})
    begin(denoiser)
    logits = [task.scan(lambda x, m=m: task.call(m, x)) for m in (denoiser.target, denoiser.second)]
    trust = []
    for each in logits:
        loss = F.cross_entropy(each, task.labels, reduction="none")
        trust.append(gaussian_mixture.fit(loss).small(loss).float())
    torch.testing.assert_close(denoiser.trust, torch.stack(trust), atol=1e-5, rtol=1e-4)
    for sweep, judge in ((0, 1), (1, 0)):
        declared = denoiser.passes(denoiser.stages()[-1], 0)[sweep]
        clean = denoiser.trust[judge] > 0.5
        assert torch.equal(clean, denoiser.clean[judge])
        assert declared.rows is not None
        assert declared.rows.tolist() == clean.nonzero().squeeze(1).tolist()
        others = declared.streams["unlabelled"].rows
        assert others is not None
        assert others.tolist() == (~clean).nonzero().squeeze(1).tolist()


def test_a_step_of_dividemix_is_a_plain_loop() -> None:
    task = plain_task()
    denoiser = build("dividemix", task, {"lambda_u": 7.0, "ramp_epochs": 4.0, "balance": 0.5})
    denoiser.trust.copy_(torch.rand(2, 66, generator=torch.Generator().manual_seed(1)))
    denoiser.clean.copy_(denoiser.trust > 0.5)
    batch = batch_of(denoiser, task, sweep=1)
    torch.manual_seed(5)
    update = first_update(denoiser, batch, epoch=1, sweep=1, within=0.5)
    assert update.optimizer == "second"

    own, peer = denoiser.second, denoiser.target  # the second pass trains the second network
    others = batch.streams["unlabelled"].views
    predicted = (softmax(own(batch.views[0])) + softmax(own(batch.views[1]))) / 2
    trust = denoiser.trust[0][batch.index].unsqueeze(1)
    observed = F.one_hot(batch.label, 3).float()
    label = sharp(trust * observed + (1 - trust) * predicted, 0.5).detach()
    guess = sharp(sum(softmax(m(v)) for m in (own, peer) for v in others) / 4, 0.5).detach()  # type: ignore[arg-type]
    torch.manual_seed(5)
    inputs, target = mixed_by_hand(torch.cat([*batch.views, *others]), torch.cat([label, label, guess, guess]), 4.0)
    logits, n = own(inputs), 2 * len(label)
    fit = F.cross_entropy(logits[:n], target[:n], reduction="none")
    apart = (softmax(logits[n:]) - target[n:]).pow(2).mean(1)
    prior = torch.full((3,), 1 / 3)
    mean = softmax(logits).mean(0)
    balance = (prior * (prior / mean).log()).sum()
    wanted = torch.cat([fit + 0.5 * balance, 7.0 * 1.5 / 4 * apart])
    torch.testing.assert_close(update.loss, wanted, rtol=1e-4, atol=1e-5)
    assert update.groups == (n, len(logits) - n)
    torch.testing.assert_close(update.reduce(), fit.mean() + 0.5 * balance + 7.0 * 1.5 / 4 * apart.mean())


def test_the_warm_up_penalises_confidence() -> None:
    task = plain_task()
    denoiser = build("dividemix", task, {"confidence_penalty": 2.0})
    for sweep, module in enumerate((denoiser.target, denoiser.second)):
        batch = batch_of(denoiser, task, 0, sweep=sweep)
        update = first_update(denoiser, batch, 0, sweep=sweep)
        p = softmax(module(batch.inputs))
        wanted = F.nll_loss(p.log(), batch.label, reduction="none") + 2.0 * (p * p.log()).sum(1)
        torch.testing.assert_close(update.loss, wanted)


def test_losses_of_several_epochs_are_averaged_before_they_are_divided() -> None:
    task = plain_task()
    denoiser = build("dividemix", task, {"loss_epochs": 2})
    seen = []
    for epoch in range(3):
        with torch.no_grad():
            for p in denoiser.parameters():
                p.add_(0.3 * torch.randn_like(p))
        seen.append(torch.stack([gaussian_mixture.normalised(each) for each in denoiser.row_losses()]))
        begin(denoiser, epoch=epoch)
        mean = torch.stack(seen[-2:]).float().mean(0)
        wanted = torch.stack([gaussian_mixture.fit(each).small(each) for each in mean])
        torch.testing.assert_close(denoiser.trust, wanted.float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("threshold", "equal"), [(1.0 - 1e-9, False), (0.0, False), (0.5, True)])
def test_one_sided_divisions_train_on_all_labels(
    threshold: float, equal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No row is trusted, every row is, and a network that gives the same loss to every row."""
    if equal:
        monkeypatch.setattr(DivideMix, "row_losses", lambda self: torch.full((2, 66), math.log(3)))
    loop = image_loop("dividemix", image_task(), {"threshold": threshold})
    denoiser = loop.denoiser
    if threshold > 0.9:
        monkeypatch.setattr(gaussian_mixture.GaussianMixture, "small", lambda self, loss: 0.4 + 0 * loss)
    loop.run()
    assert all(torch.isfinite(p).all() for p in denoiser.parameters())
    for declared in denoiser.passes(denoiser.stages()[-1], 0):
        assert declared.rows is not None
        assert len(declared.rows) == 66
        assert not declared.streams
    if threshold > 0:
        assert (denoiser.trust == 1).all()


def test_a_few_rows_on_either_side_are_small_batches() -> None:
    task = image_task()
    denoiser = build("dividemix", task)
    for lone in (True, False):
        denoiser.clean.fill_(not lone)
        denoiser.clean[:, 3] = lone
        batch = batch_of(denoiser, task)
        other = batch.streams["unlabelled"]
        assert (len(batch.label), len(other.label)) == ((1, 16) if lone else (16, 1))
        assert torch.isfinite(first_update(denoiser, batch).loss).all()


def test_a_run_shorter_than_the_warm_up_is_refused() -> None:
    with pytest.raises(UserError, match="'train' begins after 10 epochs and the run has 3"):
        image_loop("dividemix", image_task(), brief=False)


# ELR+


@pytest.mark.parametrize("averaged", [True, False])
@pytest.mark.parametrize("weigh", [True, False])
def test_a_step_of_elr_plus_is_a_plain_loop(averaged: bool, weigh: bool) -> None:
    task = plain_task()
    options = {"beta": 0.6, "strength": 2.0, "weigh_labels": weigh, "ramp_epochs": 2.0}
    denoiser = build("elr_plus", task, options).double()
    denoiser.memory.copy_(torch.rand(2, 66, 3, generator=torch.Generator().manual_seed(2)) / 3)
    before = denoiser.memory.clone()
    averages = None
    if averaged:
        averages = Averaging({"target": denoiser.target, "second": denoiser.second}, 0.9)
        for value in averages.mean.values():
            value += 0.1
    batch = batch_of(denoiser, task)
    batch = Batch(batch.index, batch.inputs.double(), batch.label, batch.groups)
    torch.manual_seed(8)
    update = first_update(denoiser, batch, epoch=0, within=0.5, averages=averages)

    peer = build("elr_plus", task).double().second
    if averages is not None:
        peer.load_state_dict(averages.of("second"))
    p = softmax(peer(batch.inputs)).detach().clamp(1e-4, 1 - 1e-4)
    memory = 0.6 * before[0, batch.index] + 0.4 * p / p.sum(1, keepdim=True)
    torch.testing.assert_close(denoiser.memory[0, batch.index], memory)
    assert torch.equal(denoiser.memory[1], before[1])
    torch.manual_seed(8)
    joined = torch.cat([F.one_hot(batch.label, 3).double(), memory], 1)
    inputs, both = mixed_by_hand(batch.inputs, joined, 1.0)
    label, held = both[:, :3], both[:, 3:]
    strength = 2.0 * math.exp(-5 * (1 - 0.25) ** 2)
    for i, row in enumerate(denoiser.target(inputs)):
        q = torch.softmax(row, 0)
        y = label[i] * held[i] / (label[i] * held[i]).sum() if weigh else label[i]
        wanted = -(y * q.log()).sum() + strength * torch.log(1 - (q * held[i]).sum())
        torch.testing.assert_close(update.loss[i], wanted)


def test_both_networks_learn_in_every_step_from_batches_of_their_own() -> None:
    task = plain_task()
    denoiser = build("elr_plus", task)
    batch = batch_of(denoiser, task)
    assert set(batch.index.tolist()) != set(batch.streams["second"].index.tolist())
    updates = list(denoiser.step(denoiser.stages()[0], batch, Clock(0, 12, 0, 3)))
    assert [update.optimizer for update in updates] == ["target", "second"]


def test_elr_plus_keeps_the_averages_of_its_weights() -> None:
    found = {}
    for average in (0.0, 0.9):
        loop = image_loop("elr_plus", image_task(), {"weight_average": average}, epochs=1, selector="last")
        seen: list[Averaging | None] = []
        update = loop.denoiser._update  # type: ignore[operator]

        def noted(network: int, batch: Batch, clock: Clock, seen: Any = seen, update: Any = update) -> Update:
            seen.append(clock.averages)
            return update(network, batch, clock)

        loop.denoiser._update = noted  # type: ignore[assignment]
        loop.run()
        found[average] = (seen[-1], loop.denoiser.target.state_dict())
    assert found[0.0][0] is None
    averages, kept = found[0.9]
    assert averages is not None
    assert all(torch.equal(value, kept[key]) for key, value in averages.of("target").items())
    assert not torch.equal(kept["6.weight"], found[0.0][1]["6.weight"])


def test_a_label_that_the_memory_never_met_stays() -> None:
    label = torch.tensor([[0.0, 1.0], [0.25, 0.75]])
    memory = torch.tensor([[1.0, 0.0], [0.3, 0.1]])
    torch.testing.assert_close(weighed(label, memory), torch.tensor([[0.0, 1.0], [0.5, 0.5]]))


# PES (semi)


class TwoHeads(Headed):
    """A network that answers twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = network(norm=False), network(norm=False)

    def heads(self, images: Tensor, observed: Tensor | None = None) -> tuple[Tensor, ...]:
        return self.first(images), self.second(images)

    def head_places(self) -> tuple[str, ...]:
        return ("first.5", "second.5")

    def places(self, layer: str) -> tuple[str, ...]:
        return (f"first.{layer}", f"second.{layer}")


@pytest.mark.parametrize("headed", [False, True])
def test_a_step_of_pes_semi_is_a_plain_loop(headed: bool) -> None:
    task = image_task(new_model=lambda _: TwoHeads() if headed else network(norm=False))
    denoiser = build("pes_semi", task, {"lambda_u": 3.0, "ramp_epochs": 2.0, "mixup_alpha": 2.0})
    denoiser.kept.copy_(torch.arange(66) % 3 > 0)
    denoiser.class_weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
    batch = batch_of(denoiser, task)
    others = batch.streams["unlabelled"].views
    assert (len(batch.label), len(others[0])) == (11, 5)  # a third of sixteen
    torch.manual_seed(4)
    update = first_update(denoiser, batch, epoch=0, within=0.5, begun=1, epochs=8)

    target = denoiser.target
    guess = sharp(sum(softmax(target(v)) for v in others) / 2, 0.5).detach()  # type: ignore[arg-type]
    label = F.one_hot(batch.label, 3).float()
    torch.manual_seed(4)
    inputs, wanted = mixed_by_hand(torch.cat([*batch.views, *others]), torch.cat([label, label, guess, guess]), 2.0)
    losses = []
    for logits in target.heads(inputs) if headed else (target(inputs),):
        log_p = torch.log_softmax(logits, 1)
        fit = -(torch.tensor([0.5, 1.0, 2.0]) * wanted * log_p).sum(1)[:22]
        apart = 3.0 * 0.25 * (log_p.exp() - wanted).pow(2).mean(1)[22:]
        losses.append(torch.cat([fit, apart]))
    torch.testing.assert_close(update.loss, torch.stack(losses).mean(0), rtol=1e-4, atol=1e-5)
    assert update.groups == (22, 10)


@pytest.mark.parametrize(
    ("rows", "sizes"), [((60, 6), (15, 1)), ((33, 33), (8, 8)), ((6, 60), (8, 8)), ((65, 1), (15, 1))]
)
def test_a_batch_is_shared_as_the_rows_are(rows: tuple[int, int], sizes: tuple[int, int]) -> None:
    denoiser = build("pes_semi", image_task())
    assert denoiser.batch_sizes(*rows, 16) == sizes  # type: ignore[operator]


def test_mixtures_are_of_another_kind_from_the_middle_of_the_run() -> None:
    denoiser = build("pes_semi", image_task(), {"late_alpha": 0.75})
    alpha = [denoiser._alpha(Clock(0, 1, epoch, 8, begun=2)) for epoch in range(8)]  # type: ignore[operator]
    assert alpha == [4.0] * 3 + [0.75] * 5


def test_rows_and_class_weights_are_chosen_together_as_an_epoch_begins() -> None:
    task = image_task()
    denoiser = build("pes_semi", task)
    denoiser.believed = lambda: F.one_hot((task.labels + (torch.arange(66) < 20)) % 3, 3).float()  # type: ignore
    begin(denoiser)
    assert denoiser.kept.tolist() == [False] * 20 + [True] * 46
    count = torch.bincount(task.labels[20:], minlength=3).double()
    torch.testing.assert_close(denoiser.class_weight, (count.mean() / count).float())
    (declared,) = denoiser.passes(denoiser.stages()[-1], 0)
    loader = task.loader(declared, (0, 0, 0))
    assert len(loader) == 4  # as many as over all rows
    seen = [int(row) for batch in loader.batches() for row in batch.index]
    assert (len(seen), len(set(seen[:36]))) == (48, 36)  # twelve of 46 in each step; the fourth begins anew
    denoiser.kept.copy_(torch.arange(66) < 9)
    (declared,) = denoiser.passes(denoiser.stages()[-1], 0)
    loader = task.loader(declared, (0, 0, 0))
    assert [len(batch.index) for batch in loader.batches()] == [8] * 4  # eight of nine rows, four times
    denoiser.believed = lambda: F.one_hot((task.labels + 1) % 3, 3).float()  # type: ignore[assignment]
    begin(denoiser)
    assert int(denoiser.kept.sum()) == 9  # a network that agrees with nobody has nothing to say
    denoiser.believed = lambda: F.one_hot(task.labels, 3).float()  # type: ignore[assignment]
    begin(denoiser)
    (declared,) = denoiser.passes(denoiser.stages()[-1], 0)
    assert not declared.streams
    assert torch.isfinite(first_update(denoiser, batch_of(denoiser, task)).loss).all()


def test_the_balance_term_of_dividemix_is_that_of_joint_optim() -> None:
    logits = torch.randn(5, 3)
    prior = torch.full((3,), 1 / 3)
    wanted = (prior * (prior / softmax(logits).mean(0)).log()).sum()
    torch.testing.assert_close(balance_loss(logits, prior), wanted)
