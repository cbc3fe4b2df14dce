"""What a stage and an epoch may do besides steps: look at the data, reset, log, be probed; and two ends of a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recdenoise import objectives
from recdenoise.denoisers import Clock, Denoiser, Losses, Optim, Stage, Update
from recdenoise.errors import UserError
from recdenoise.loop import Loop, LoopConfig
from recdenoise.resets import redraws
from recdenoise.task import Batch, Pass
from tests.toy_images import TinyImages, held, image_loop, image_task
from tests.toy_runs import Stop, same, weights
from vision.evaluation import Held


class Looker(Denoiser):
    """Looks at the data wherever it may, draws random numbers there, and lets what it saw decide what comes."""

    name, title, summary, paper = "looker", "Looker", "looks at the data", "nobody"

    def build(self, task: Any) -> None:
        self.target = task.new_target(0)
        self.calls: list[str] = []
        self.register_buffer("kept", torch.ones(task.n_rows, dtype=torch.bool))
        self.register_buffer("seen", torch.zeros(task.n_rows, task.n_classes))

    def stages(self) -> list[Stage]:
        return [Stage("first", epochs=2), Stage("again", reset=("target.0", "target.6"))]

    def begin_stage(self, stage: Stage) -> None:
        self.calls.append(f"stage {stage.name}")
        assert not torch.is_grad_enabled()
        assert not self.target.training
        self.before = {key: value.clone() for key, value in self.target.state_dict().items()}

    def begin_epoch(self, stage: Stage, epoch: int) -> None:
        self.calls.append(f"epoch {stage.name} {epoch}")
        assert not torch.is_grad_enabled()
        assert not self.target.training
        probability = self.task.scan(self.score, augment=True).softmax(1)  # type: ignore[call-arg]
        self.kept.copy_(torch.rand(len(self.kept)) < 0.5 + 0.5 * probability[:, 0])

    def passes(self, stage: Stage, epoch: int) -> list[Pass]:
        return [Pass(rows=self.kept.nonzero().squeeze(1))]

    def losses(self, batch: Batch, clock: Clock) -> Losses:
        logits = self.task.call(self.target, batch.inputs)
        self.seen.index_copy_(0, batch.index, logits.detach().softmax(1))
        loss = objectives.classification_loss(logits, batch.label)
        return Losses(loss, logs={"kept": self.kept.float().mean()})


def looker(**options: Any) -> Loop:
    task = image_task(dropout=0.3)
    config = LoopConfig(epochs=3, lr=0.02, selector="accuracy", patience=None)
    return Loop(Looker(task), task, config, validate=held(task), **options)


ORDER = ["stage first", "epoch first 0", "epoch first 1", "stage again"] + [f"epoch again {e}" for e in range(3)]


def test_looks_come_once_and_in_order_and_logs_are_recorded() -> None:
    loop = looker()
    rows = loop.run()
    assert loop.denoiser.calls == ORDER
    assert all(0 < row["kept"] <= 1 for row in rows)


def test_a_resumed_epoch_finds_what_its_beginning_found(tmp_path: Path) -> None:
    whole = looker()
    history = whole.run()
    steps = sum(row["steps"] for row in history)
    for after in range(1, steps):
        path = tmp_path / f"{after}.pt"
        cut = looker(checkpoint_path=path, observer=Stop(after))
        with pytest.raises(KeyboardInterrupt):
            cut.run()
        rest = looker(checkpoint_path=path)
        assert rest.resume()
        rows = rest.run()
        assert cut.denoiser.calls + rest.denoiser.calls == ORDER, "a look was repeated or left out"
        assert same(weights(whole), weights(rest))
        assert [{**row, "seconds": 0} for row in rows] == [{**row, "seconds": 0} for row in history]


def test_reset_draws_what_it_names_and_nothing_else() -> None:
    loop = looker()
    found: dict[str, dict[str, Tensor]] = {}
    begin = loop.denoiser.begin_epoch

    def watch(stage: Stage, epoch: int) -> None:
        if epoch == 0:
            found[stage.name] = {key: value.clone() for key, value in loop.denoiser.target.state_dict().items()}
        begin(stage, epoch)

    loop.denoiser.begin_epoch = watch  # type: ignore[method-assign]
    loop.run()
    before, after = loop.denoiser.before, found["again"]
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"0.weight", "0.bias", "6.weight", "6.bias"}


class Fixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(3))


def test_a_reset_that_cannot_be_is_refused_before_training() -> None:
    with pytest.raises(UserError, match=r"a\.0 \(Fixed\) has weights and no reset_parameters"):
        list(redraws(nn.Sequential(Fixed()), "a"))

    class Bad(Looker):
        def build(self, task: Any) -> None:
            super().build(task)
            self.table = Fixed()

        def stages(self) -> list[Stage]:
            return [Stage(reset=("table",))]

    task = image_task()
    with pytest.raises(UserError, match="cannot be drawn anew"):
        Loop(Bad(task), task, LoopConfig(selector="last"))


def test_a_networks_own_initialisation_comes_before_that_of_its_layers() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def reset_parameters(self) -> None:
            nn.init.constant_(self.layer.weight, 3.0)

    own = Own()
    for redraw in redraws(own, "own"):
        redraw()
    assert (own.layer.weight == 3).all()


# Two ends of a run


def test_both_ends_are_there_and_survive_a_resume(tmp_path: Path) -> None:
    """The second epoch is the best by what validation says; the last one is kept beside it."""

    def scripted(loop: Loop) -> list[dict[str, Tensor]]:
        states: list[dict[str, Tensor]] = []

        def validate(score: Any, wanted: set[str]) -> dict[str, float]:
            states.append(weights(loop))
            return {"accuracy": [0.3, 0.9, 0.5, 0.4][loop.position.epoch]}

        loop.validate = validate
        return states

    path = tmp_path / "c.pt"
    loop = image_loop("normal", image_task(), epochs=4, checkpoint_path=path)
    states = scripted(loop)
    loop.run()
    assert same(weights(loop), states[1])
    again = image_loop("normal", image_task(), epochs=4, checkpoint_path=path)
    assert again.resume()
    assert again.finished
    for each in (loop, again):
        each.use_last()
        assert same(weights(each), states[3])


def test_the_last_end_of_an_ensemble_is_that_of_every_member(tmp_path: Path) -> None:
    """Each member is a stage of its own: none of them may stay at what validation chose."""
    seen: list[dict[str, Tensor]] = []
    path = tmp_path / "c.pt"
    loop = image_loop("ensemble", image_task(), epochs=3, checkpoint_path=path)

    def validate(score: Any, wanted: set[str]) -> dict[str, float]:
        seen.append(weights(loop))
        return {"accuracy": [0.9, 0.5, 0.4][loop.position.epoch]}

    loop.validate = validate
    loop.run()
    again = image_loop("ensemble", image_task(), epochs=3, checkpoint_path=path)
    assert again.resume()
    for each in (loop, again):
        for member, (best, last) in enumerate([(0, 2), (3, 5)]):
            prefix = f"members.{member}."
            chosen, final = ({k: v for k, v in seen[i].items() if k.startswith(prefix)} for i in (best, last))
            assert same({k: v for k, v in weights(each).items() if k.startswith(prefix)}, chosen)
            assert same({prefix + k: v for k, v in each.last_weights[prefix[:-1]].items()}, final)
        each.use_last()
        assert same(weights(each), {**seen[5], **{k: v for k, v in seen[2].items() if k.startswith("members.0.")}})


def test_a_probe_is_recorded_and_never_chooses() -> None:
    plain, asked = image_loop("normal", image_task(), epochs=5), []
    task = image_task()
    probe = Held(task, TinyImages.draw(30, 0.0, 5))

    def watch(score: Any, wanted: set[str]) -> dict[str, float]:
        asked.append(wanted)
        return probe(score, wanted)

    probed = image_loop("normal", task, epochs=5, probe=watch)
    rows, probed_rows = plain.run(), probed.run()
    assert same(weights(plain), weights(probed))
    assert asked == [set()] * 5
    assert all({"test_accuracy", "test_loss"} <= row.keys() for row in probed_rows)
    drop = {"test_accuracy", "test_loss", "seconds"}
    for row, other in zip(rows, probed_rows, strict=True):
        assert {k: v for k, v in row.items() if k not in drop} == {k: v for k, v in other.items() if k not in drop}


def test_only_accuracy_chooses_by_the_highest() -> None:
    loop = image_loop("normal", image_task(), epochs=4)
    rows = loop.run()
    best = max(row["valid_accuracy"] for row in rows)
    assert held(image_task())(loop.denoiser.score, {"accuracy"})["accuracy"] == pytest.approx(best)


# Two networks, each teaching the other


class Peers(Denoiser):
    """Two networks, two optimisers; each learns on what the other finds easy, with soft labels from a stream."""

    name, title, summary, paper = "peers", "Peers", "two networks", "nobody"

    def build(self, task: Any) -> None:
        self.first, self.second = task.new_target(0), task.new_target(1)

    def stages(self) -> list[Stage]:
        return [Stage(train=("first", "second"), watch="first")]

    def optimizers(self, stage: Stage) -> dict[str, Optim]:
        return {name: Optim({name: 0.0}) for name in ("first", "second")}

    def passes(self, stage: Stage, epoch: int) -> list[Pass]:
        return [Pass(streams={"more": Pass(views=2, batch_size=5)})]

    def step(self, stage: Stage, batch: Batch, clock: Clock) -> Iterator[Update]:
        a, b = (self.task.call(net, batch.inputs) for net in (self.first, self.second))
        loss_a, loss_b = (objectives.classification_loss(x, batch.label) for x in (a, b))
        easy_a, easy_b = (objectives.smallest(x, 0.5).float() for x in (loss_a, loss_b))
        more = batch.streams["more"]
        soft = self.task.call(self.first, more.views[1]).softmax(1).detach()
        extra = objectives.classification_loss(self.task.call(self.first, more.inputs), soft)
        weight = torch.cat([easy_b, torch.ones(5)])
        yield Update(torch.cat([loss_a, extra]), (*batch.groups, 5), weight, "first")
        yield Update(loss_b, batch.groups, easy_a, "second")

    def score(self, inputs: Any) -> Tensor:
        return objectives.mean_class_logits(torch.stack([self.task.call(n, inputs) for n in (self.first, self.second)]))

    def watched_score(self, stage: Stage) -> Any:
        return self.score


def test_two_networks_and_a_stream_train_and_resume(tmp_path: Path) -> None:
    def peers(**options: Any) -> Loop:
        task = image_task(dropout=0.2)
        config = LoopConfig(epochs=2, lr=0.02, selector="accuracy", patience=None)
        return Loop(Peers(task), task, config, validate=held(task), **options)

    whole = peers()
    before = weights(whole)
    whole.run()
    assert all(not torch.equal(before[f"{n}.6.weight"], weights(whole)[f"{n}.6.weight"]) for n in ("first", "second"))
    cut = peers(checkpoint_path=tmp_path / "c.pt", observer=Stop(5))
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    rest = peers(checkpoint_path=tmp_path / "c.pt")
    assert rest.resume()
    rest.run()
    assert same(weights(whole), weights(rest))


def test_gradients_may_be_edited_before_a_step() -> None:
    class Half(Looker):
        def stages(self) -> list[Stage]:
            return [Stage()]

        def edit_gradients(self, optimizer: str, clock: Clock) -> None:
            assert optimizer == "target"
            head = self.target[6]
            head.bias.grad.zero_()

    task = image_task()
    bias = Half(task).target[6].bias.clone()
    denoiser = Half(task)
    Loop(denoiser, task, LoopConfig(epochs=1, lr=0.1, selector="last", algorithm="sgd")).run()
    assert torch.equal(denoiser.target[6].bias, bias)


class Wrapped(Denoiser):
    """Trains a network of its own around the one that was given, and begins again with all of it."""

    name, title, summary, paper = "wrapped", "Wrapped", "wraps the network", "nobody"

    def build(self, task: Any) -> None:
        self.target = nn.Sequential(task.new_target(0), nn.Linear(task.n_classes, task.n_classes))

    def stages(self) -> list[Stage]:
        return [Stage("first"), Stage("again", reset=("target",))]


def test_weights_worth_keeping_are_not_lost_silently() -> None:
    for pretrained in (False, True):
        task = image_task(pretrained=pretrained)
        config = LoopConfig(epochs=1, lr=0.02, selector="last")
        if pretrained:
            with pytest.raises(UserError, match=r"wrapped draws target anew, and Sequential is another network.*leave"):
                Loop(Wrapped(task), task, config)
        else:
            Loop(Wrapped(task), task, config).run()
