"""What every registered denoiser must do, on a task that knows nothing of RecBole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from recdenoise import denoisers
from recdenoise.denoisers import Clock, Denoiser, Losses, Stage
from recdenoise.loop import Loop, LoopConfig, Observer
from recdenoise.objectives import classification_loss
from tests.toy import ToyTask

METHODS = ["normal", "wbpr", "t_ce", "r_ce", "ensemble", "deca", "deca_p"]
FAST = LoopConfig(epochs=3, lr=0.05, selector="last")


def train(name: str, task: ToyTask, config: LoopConfig = FAST, options: dict[str, Any] | None = None) -> Denoiser:
    denoiser = denoisers.get(name)(task, options)
    Loop(denoiser, task, config, validate=task.validate).run()
    return denoiser


def assert_same_weights(a: Denoiser, b: Denoiser) -> None:
    for (name, x), (_, y) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        assert torch.equal(x, y), name


def test_the_table_is_the_list_that_is_tested() -> None:
    assert denoisers.names()[: len(METHODS)] == METHODS


@pytest.mark.parametrize("name", denoisers.names())
class TestEveryMethod:
    def test_config_round_trip(self, name: str) -> None:
        method = denoisers.get(name)
        config = method.read_config({"l2": 0.5, "compat": "paper_code"})
        assert method.read_config(config.to_dict()) == config
        assert config.l2 == 0.5

    def test_is_described(self, name: str) -> None:
        method = denoisers.get(name)
        assert all(len(text) > 3 for text in (method.title, method.summary, method.paper, method.__doc__ or ""))

    def test_gradients_are_finite_and_reach_what_trains(self, name: str) -> None:
        task = ToyTask()
        denoiser = denoisers.get(name)(task)
        for stage in denoiser.stages():
            reached: set[str] = set()
            for step in range(2):
                batch = next(task.loader(denoiser.passes(stage, 0)[0], (0, 0, step)).batches())
                for update in denoiser.step(stage, batch, Clock(step, 10, 0, 1)):
                    denoiser.zero_grad()
                    assert update.loss.shape == batch.label.shape
                    assert update.weight is None or (update.weight.isfinite().all() and (update.weight >= 0).all())
                    update.reduce().backward()
                    for key, parameter in denoiser.named_parameters():
                        if parameter.grad is not None:
                            assert parameter.grad.isfinite().all()
                            if parameter.grad.abs().sum() > 0:
                                reached.add(key)
            wanted = {k for k, _ in denoiser.named_parameters() if any(k.startswith(f"{m}.") for m in stage.train)}
            assert reached == wanted

    def test_equals_normal_at_neutral(self, name: str) -> None:
        method = denoisers.get(name)
        if method.neutral is None:
            assert method.neutral_reason
            return
        plain = train("normal", ToyTask(), options={"l2": 0.3})
        neutral = train(name, ToyTask(), options={"l2": 0.3, **method.neutral})
        inputs = (ToyTask().users, ToyTask().items)
        torch.testing.assert_close(neutral.score(inputs), plain.score(inputs), rtol=1e-5, atol=1e-6)

    def test_same_seed_same_result_and_another_seed_another(self, name: str) -> None:
        assert_same_weights(train(name, ToyTask(dropout=0.2)), train(name, ToyTask(dropout=0.2)))
        one, other = train(name, ToyTask(seed=1)), train(name, ToyTask(seed=2))
        assert not torch.equal(
            one.score((one.task.users, one.task.items)), other.score((one.task.users, one.task.items))
        )

    @pytest.mark.parametrize("stop_after", [1, 7, 13, 29, 40])
    def test_resume_equals_no_interruption(self, name: str, stop_after: int, tmp_path: Path) -> None:
        config = LoopConfig(epochs=3, lr=0.05, selector="loss", patience=2)
        task = ToyTask(dropout=0.3, batch_size=4)
        whole = denoisers.get(name)(task)
        history = Loop(whole, task, config, validate=task.validate).run()

        class Interrupt(Observer):
            steps = 0

            def on_step(self, clock: Clock, loss: torch.Tensor) -> None:
                self.steps += 1
                if self.steps == stop_after:
                    import signal

                    signal.raise_signal(signal.SIGINT)

        path = tmp_path / "checkpoint.pt"
        task = ToyTask(dropout=0.3, batch_size=4)
        first = denoisers.get(name)(task)
        with pytest.raises(KeyboardInterrupt):
            Loop(first, task, config, validate=task.validate, checkpoint_path=path, observer=Interrupt()).run()
        torch.manual_seed(123456)  # a new process starts from another state
        task = ToyTask(dropout=0.3, batch_size=4)
        second = denoisers.get(name)(task)
        loop = Loop(second, task, config, validate=task.validate, checkpoint_path=path)
        assert loop.resume()
        resumed = loop.run()
        assert_same_weights(whole, second)
        drop = {"seconds"}
        assert [{k: v for k, v in row.items() if k not in drop} for row in resumed] == [
            {k: v for k, v in row.items() if k not in drop} for row in history
        ]

    def test_learns_the_tastes_behind_the_noise(self, name: str) -> None:
        task = ToyTask()
        denoiser = train(name, task, LoopConfig(epochs=60, lr=0.05, selector="last"))
        users = torch.arange(12).repeat_interleave(10)
        items = torch.arange(10).repeat(12)
        with torch.no_grad():
            score = denoiser.score((users, items))
        right = task.taste.reshape(-1)
        # A pair of matching taste should outrank one of the other taste: the area under the ROC curve.
        auc = (score[right].unsqueeze(1) > score[~right].unsqueeze(0)).float().mean()
        assert auc > 0.85

    def test_clean_probability_is_one_value_a_row(self, name: str) -> None:
        task = ToyTask()
        probability = train(name, task, LoopConfig(epochs=60, lr=0.05, selector="last")).clean_probability()
        assert probability.shape == (task.n_rows,)
        assert ((probability >= 0) & (probability <= 1)).all()
        clean = task.taste[task.users, task.items]
        assert probability[clean].mean() > probability[~clean].mean()

    def test_runs_under_the_published_codes_quirks(self, name: str) -> None:
        denoiser = train(name, ToyTask(), options={"compat": "paper_code", "l2": 0.1})
        assert all(p.isfinite().all() for p in denoiser.parameters())


def test_a_denoiser_of_ones_own_is_a_class_and_one_call() -> None:
    class Huberised(Denoiser):
        name = "huberised"
        title, summary, paper = "Huberised", "caps the loss of each example", "none"

        def losses(self, batch: Any, clock: Clock) -> Losses:
            loss = classification_loss(self.task.call(self.target, batch.inputs), batch.label)
            return Losses(loss.clamp(max=2.0))

    denoisers.register(Huberised)
    denoisers.register(Huberised)  # a notebook cell that runs twice
    method, config = denoisers.parse("huberised")
    assert method is Huberised
    assert config == Huberised.Config()
    train("huberised", ToyTask())


def test_register_refuses_what_is_not_a_denoiser_and_a_name_that_is_taken() -> None:
    with pytest.raises(ValueError, match="subclass"):
        denoisers.register(int)  # type: ignore[type-var]

    class Normal(Denoiser):
        name = "normal"

    with pytest.raises(ValueError, match="taken"):
        denoisers.register(Normal)

    class Nameless(Denoiser):
        pass

    with pytest.raises(ValueError, match="name is None"):
        denoisers.register(Nameless)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("deca_q", "Did you mean 'deca"),
        ({"name": "deca_p", "c1": 3}, "Did you mean 'c_1'"),
        ({"name": "deca_p", "c_1": "many"}, "must be a number"),
        ({"name": "deca_p", "alpha": 1.5}, "from 0 to 1"),
        ({"name": "deca_p", "subtask": "dpdn"}, "one of both, dp, dn"),
        ({"name": "t_ce", "drop_rate": 1.0}, "below 1"),
        ({"name": "ensemble", "members": 0}, "1 or more"),
        ({"name": "ensemble", "members": 2.5}, "a whole number"),
        ({"name": "wbpr", "beta": -1}, "zero or more"),
        ({"name": "normal", "l2": -1}, "zero or more"),
        ({"name": "deca", "iterative": False}, "paper_code"),
        ({"c_1": 3}, "with a name"),
        (3, "must be a name or a mapping"),
    ],
)
def test_a_wrong_flag_is_one_sentence_with_the_valid_choices(spec: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        denoisers.parse(spec)


def test_numbers_may_come_as_text() -> None:
    assert denoisers.parse({"name": "deca_p", "c_1": "1e3", "h_model": "gmf"})[1].c_1 == 1000.0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("subtask", "expected"), [("both", [True, False, True]), ("dp", [True] * 3), ("dn", [False] * 3)]
)
def test_subtasks_choose_the_steps(subtask: str, expected: list[bool]) -> None:
    denoiser = denoisers.get("deca")(ToyTask(), {"subtask": subtask})
    assert [denoiser.denoises_positives(step) for step in range(3)] == expected  # type: ignore[attr-defined]


def test_deca_step_equals_the_formulas_added_by_hand() -> None:
    """Eq. 9 + 10 + 22 for one batch, by a loop over pairs."""
    import math

    task = ToyTask()
    options = {"c_1": 5.0, "c_2": 3.0, "alpha": 0.3}
    denoiser = denoisers.get("deca")(task, options).double()
    stage = denoiser.stages()[0]
    batch = next(task.loader(denoiser.passes(stage, 0)[0], (0, 0, 0)).batches())
    values: dict[str, list[float]] = {
        name: torch.sigmoid(denoiser.module(name)(*batch.inputs)).tolist()
        for name in ("target", "auxiliary", "h", "h_prime")
    }
    for step in (0, 1):
        total = 0.0
        n = batch.groups[0]
        for i, y in enumerate(batch.label.tolist()):
            p, g, h, hp = (values[k][i] for k in ("target", "auxiliary", "h", "h_prime"))
            if step == 0:
                e = (1 - p) * math.log(h) if y else (1 - p) * math.log(1 - h) - 5.0 * p
            else:
                e = p * math.log(hp) - 3.0 * (1 - p) if y else p * math.log(1 - hp)
            kl = lambda a, b: a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b))  # noqa: E731
            total += (-e + 0.3 * kl(g, p) + 0.7 * kl(p, g)) / n
        update = next(iter(denoiser.step(stage, batch, Clock(step, 10, 0, 1))))
        assert update.reduce().item() == pytest.approx(total, rel=1e-10)


def test_deca_p_prior_is_frozen_and_comes_from_another_seed() -> None:
    task = ToyTask()
    denoiser = denoisers.get("deca_p")(task)
    assert not torch.equal(denoiser.target.user.weight, denoiser.prior.user.weight)  # type: ignore[union-attr]
    copied = denoisers.get("deca_p")(task, {"compat": "paper_code"})
    assert torch.equal(copied.target.user.weight, copied.prior.user.weight)  # type: ignore[union-attr]
    prior_stage, main_stage = denoiser.stages()
    assert (prior_stage.selector, prior_stage.watch) == (None, "prior")
    assert "prior" not in main_stage.train


def test_l2_is_the_gradient_of_the_printed_penalty() -> None:
    """One step of plain SGD with the penalty written out equals the loop's weight decay."""
    task = ToyTask()
    denoiser = denoisers.get("normal")(task, {"l2": 2.0})
    stage = Stage()
    from recdenoise.optimizers import build_optimizer

    denoiser.requires_grad_(True)
    optimizer = build_optimizer(denoiser, denoiser.optimizers(stage)["target"], l2_scale=task.l2_scale, lr=0.1)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {2.0 / 12}
    theta = torch.tensor([1.0, -3.0], requires_grad=True)
    (2.0 / (2 * 12) * theta.square().sum()).backward()
    torch.testing.assert_close(theta.grad, 2.0 / 12 * theta.detach())


def test_parameters_that_a_model_froze_stay_frozen() -> None:
    task = ToyTask()
    denoiser = denoisers.get("deca_p")(task)
    denoiser.target.item.weight.requires_grad_(False)  # type: ignore[union-attr]
    before = denoiser.target.item.weight.clone()  # type: ignore[union-attr]
    Loop(denoiser, task, FAST, validate=task.validate).run()
    assert torch.equal(denoiser.target.item.weight, before)  # type: ignore[union-attr]
    assert denoiser.target.user.weight.requires_grad  # type: ignore[union-attr]
    assert denoiser.prior.user.weight.requires_grad  # type: ignore[union-attr]
