"""Progressive early stopping: which layers are late, what each stage trains, which rows it keeps; resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recdenoise.denoisers import Clock, Stage
from recdenoise.errors import UserError
from recdenoise.loop import Loop
from recdenoise.observer import Observer
from tests.toy_images import CLASSES, build, image_loop, image_task, network
from tests.toy_runs import Stop, same, weights
from vision import networks
from vision.heads import Headed
from vision.late_layers import split_layers
from vision.methods.pes import PES
from vision.methods.progressive import class_weights

OPTIONS: dict[str, Any] = {"warm_epochs": 2, "refit_epochs": 2, "head_epochs": 2, "refit_lr": 0.01}


def chain(classes: int = CLASSES) -> nn.Module:
    """Three layers with weights and norms: early, late and the head."""
    layers: list[nn.Module] = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(20, classes))


EARLY, LATE, HEAD = ("target.0", "target.1"), ("target.3", "target.4"), ("target.7",)


class TwoBackbones(Headed):
    """Two encoders and two heads on both of their embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.front, self.back = (nn.Sequential(*list(chain())[:-1]) for _ in range(2))
        self.last = nn.ModuleList(nn.Linear(40, CLASSES) for _ in range(2))

    def heads(self, images: Tensor, observed: Tensor | None = None) -> tuple[Tensor, ...]:
        both = torch.cat([self.front(images), self.back(images)], dim=1)
        return tuple(head(both) for head in self.last)

    def places(self, layer: str) -> tuple[str, ...]:
        return f"front.{layer}", f"back.{layer}"

    def head_places(self) -> tuple[str, ...]:
        return ("last",)


def loop_of(options: dict[str, Any] | None = None, new_model: Any = None, task: dict[str, Any] | None = None, **c: Any):  # type: ignore[no-untyped-def]
    task_options = {"new_model": new_model or (lambda _: chain()), **(task or {})}
    settings = {"epochs": 4, "selector": "last", **c}
    return image_loop("pes", image_task(**task_options), {**OPTIONS, **(options or {})}, brief=False, **settings)


# Late layers


@pytest.mark.parametrize(
    ("name", "late", "head"),
    [
        ("resnet20", ("layer3",), "fc"),
        ("resnet18_small", ("layer4",), "fc"),
        ("preact18", ("layer4",), "fc"),
        ("torchvision:resnet18", ("layer4",), "fc"),
        ("cnn9", ("features.conv9", "features.bn9"), "fc"),
        ("convnet2", ("hidden",), "fc"),
        ("mlp", ("layers.4",), "fc"),
        ("inception_small", ("features.10",), "fc"),
    ],
)
def test_late_layers_of_networks_by_name(name: str, late: tuple[str, ...], head: str) -> None:
    model = networks.build(name, 10, 3, **({"image_size": 32} if name in ("convnet2", "mlp") else {}))
    layers = split_layers(model, 10)
    assert (layers.late, layers.head) == (late, (head,))
    parts = [model.get_submodule(part) for part in (*layers.early, *layers.late, *layers.head)]
    assert sum(p.numel() for part in parts for p in part.parameters()) == networks.parameters(model)


def test_a_norm_behind_the_last_stage_is_late_too() -> None:
    assert split_layers(networks.build("preact18", 10, final_norm=True), 10).late == ("layer4", "norm")


def test_late_layers_of_small_chains_and_of_two_backbones() -> None:
    assert split_layers(chain(), CLASSES).late == ("3", "4")
    two_layers = split_layers(network(), CLASSES)
    assert (two_layers.early, two_layers.late, two_layers.head) == (("0", "1"), (), ("6",))
    layers = split_layers(TwoBackbones(), CLASSES)
    assert layers.late == ("front.3", "front.4", "back.3", "back.4")
    assert (layers.early, layers.head) == (("front.0", "front.1", "back.0", "back.1"), ("last",))
    assert split_layers(TwoBackbones(), CLASSES, ["3"]).late == ("front.3", "back.3")


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.out = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 5, 3), nn.Linear(20, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.out(self.body(self.stem(images)).flatten(1))


def test_late_layers_of_a_network_of_ones_own_must_be_named() -> None:
    with pytest.raises(UserError, match=r"which layers of Own are late.*'late'.*stem, body"):
        split_layers(Own(), CLASSES)
    layers = split_layers(Own(), CLASSES, ["body"])
    assert (layers.early, layers.late, layers.head) == (("stem",), ("body",), ("out",))
    assert split_layers(Own(), CLASSES, []).early == ("stem", "body")


@pytest.mark.parametrize(
    ("late", "message"),
    [(["boddy"], "boddy"), (["out"], "the last layer"), (["stem", "body"], "leaves no layer of Own")],
)
def test_late_layers_that_cannot_be(late: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        split_layers(Own(), CLASSES, late)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warm_epochs": 0}, "warm_epochs"),
        ({"head_epochs": -1}, "head_epochs"),
        ({"refit_lr": 0.0}, "refit_lr"),
        ({"late": [3]}, "late"),
        ({"late": ["body"], "refit_epochs": 0}, "refit_epochs: 0 leaves as they are"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PES.read_config(options)


def test_a_run_that_ends_before_the_warm_up_does_is_refused() -> None:
    with pytest.raises(UserError, match="begins after 9 epochs and the run has 4"):
        loop_of({"warm_epochs": 9})


# Stages


def test_stages_and_their_epochs() -> None:
    rows = loop_of(epochs=6).run()
    assert [row["stage"] for row in rows] == ["warm"] * 2 + ["refit"] * 2 + ["head"] * 2 + ["refine"] * 4
    assert [s.name for s in build("pes", image_task(), {"late": []}, brief=False).stages()] == [
        "warm",
        "head",
        "refine",
    ]
    without = build("pes", image_task(), {"refit_epochs": 0, "head_epochs": 0}, brief=False)
    assert [stage.name for stage in without.stages()] == ["warm", "refine"]
    assert without.stages()[0].span(200).epochs == 25
    assert without.stages()[1].span(200).epochs == 175


class Snapshots(Observer):
    """The weights after every epoch, and after the first step of a stage."""

    def __init__(self) -> None:
        self.loop: Loop
        self.seen: dict[str, dict[str, Tensor]] = {}

    def on_step(self, clock: Clock, loss: Tensor) -> None:
        name = self.loop.stages[self.loop.position.stage].name
        self.seen.setdefault(f"{name} begun", weights(self.loop))
        self.seen[name] = weights(self.loop)


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Parts of the network that are not as they were."""
    changed = {key for key in after if key.startswith("target.") and not torch.equal(before[key], after[key])}
    return {".".join(key.split(".")[:2]) for key in changed}


@pytest.mark.parametrize("refine_late", [True, False])
def test_each_stage_trains_its_layers_and_leaves_the_others_as_they_were(refine_late: bool) -> None:
    watch = Snapshots()
    watch.loop = loop = loop_of({"refine_late": refine_late}, observer=watch, lr=0.05)
    loop.run()
    seen = watch.seen
    assert moved(seen["warm begun"], seen["warm"]) == {*EARLY, *LATE, *HEAD}
    assert moved(seen["warm"], seen["refit"]) == {*LATE, *HEAD}  # statistics of frozen norms stay too
    assert moved(seen["refit"], seen["head"]) == {*HEAD}
    trains = moved(seen["head"], seen["refine"])
    assert trains >= {*EARLY}
    parameters = [f"{name}.weight" for name in (*LATE, *HEAD)]
    stayed = [torch.equal(seen["head"][key], seen["refine"][key]) for key in parameters]
    assert stayed == [not refine_late] * 3


def test_layers_are_drawn_anew_as_the_refits_begin() -> None:
    watch = Snapshots()
    watch.loop = loop = loop_of({"refit_lr": 1e-9}, observer=watch)
    loop.run()
    for before, after, layer in (("warm", "refit begun", "3"), ("warm", "refit begun", "7"), ("refit", "head", "7")):
        old, new = (watch.seen[at][f"target.{layer}.weight"] for at in (before, after))
        assert (old - new).abs().mean() > 0.01
    for name in ("weight", "bias"):
        assert torch.allclose(watch.seen["refit begun"][f"target.4.{name}"], torch.full((5,), float(name == "weight")))


def test_optimisers_of_the_refits_are_adam_at_a_constant_rate() -> None:
    denoiser = loop_of().denoiser
    by_name = {stage.name: denoiser.optimizers(stage)["target"] for stage in denoiser.stages()}
    for name in ("refit", "head"):
        optim = by_name[name]
        assert (optim.algorithm, optim.lr, optim.weight_decay) == ("adam", 0.01, 0.0)
        assert optim.schedule is not None
        assert optim.schedule.kind == "constant"
    for name in ("warm", "refine"):
        assert (by_name[name].algorithm, by_name[name].schedule, tuple(by_name[name].modules)) == (
            None,
            None,
            ("target",),
        )


# Rows


def test_class_weights_equal_a_plain_loop() -> None:
    label = torch.tensor([0, 0, 0, 2, 2, 4])
    counts = [sum(int(value) == c for value in label) for c in range(5)]
    mean = sum(counts) / sum(count > 0 for count in counts)
    wanted = [mean / count if count else 0.0 for count in counts]
    torch.testing.assert_close(class_weights(label, 5), torch.tensor(wanted))
    torch.testing.assert_close(class_weights(label, 5, most=1.5), torch.tensor([2 / 3, 0.0, 1.0, 0.0, 1.5]))
    assert float(class_weights(label, 5)[label].mean()) == pytest.approx(1.0)


def test_rows_are_kept_where_two_augmented_views_agree_with_the_label() -> None:
    denoiser = build("pes", image_task(), brief=False).eval()
    task = denoiser.task
    torch.manual_seed(3)
    with torch.no_grad():
        denoiser.begin_epoch(Stage("refine"), 0)
    kept = denoiser.kept.clone()
    torch.manual_seed(3)
    views = [task.scan(lambda x: x, augment=True) for _ in range(2)]
    assert not torch.equal(*views)
    for row in range(task.n_rows):
        mean = torch.zeros(CLASSES)
        for view in views:
            mean += F.softmax(denoiser.target(view[row : row + 1])[0], dim=0) / 2
        assert bool(kept[row]) == (int(mean.argmax()) == int(task.labels[row]))
    assert 0 < int(kept.sum()) < task.n_rows


def test_a_network_that_agrees_with_no_label_keeps_the_rows_it_had() -> None:
    denoiser = build("pes", image_task(), brief=False).eval()
    denoiser.kept[:7] = False
    labels = denoiser.task.labels.clone()
    with torch.no_grad():
        denoiser.target[-1].weight.zero_()
        denoiser.target[-1].bias.copy_(torch.tensor([0.0, 0.0, 9.0]))
        denoiser.task.labels = labels.clamp_max(1)
        denoiser.select()
    assert int(denoiser.kept.sum()) == denoiser.task.n_rows - 7


class Rows(Observer):
    """Rows that every stage steps on."""

    def __init__(self) -> None:
        self.by_stage: dict[str, set[int]] = {}
        self.kept: dict[str, list[set[int]]] = {}

    def watch(self, loop: Loop) -> None:
        inner, losses = loop.denoiser, loop.denoiser.losses

        def noted(batch: Any, clock: Clock) -> Any:
            name = loop.stages[loop.position.stage].name
            self.by_stage.setdefault(name, set()).update(batch.index.tolist())
            self.kept.setdefault(name, []).append(set(inner.kept.nonzero().squeeze(1).tolist()))
            return losses(batch, clock)

        loop.denoiser.losses = noted


@pytest.mark.parametrize("refit_rows", ["agreed", "all"])
def test_refits_and_refinement_learn_from_the_rows_that_are_kept(refit_rows: str) -> None:
    rows = Rows()
    loop = loop_of({"refit_rows": refit_rows, "refit_epochs": 6, "head_epochs": 6}, epochs=12, lr=0.05)
    rows.watch(loop)
    loop.run()
    assert len(rows.by_stage["warm"]) == 66
    for name in ("refit", "head"):
        if refit_rows == "all":
            assert len(rows.by_stage[name]) == 66
        else:
            assert rows.by_stage[name] <= rows.kept[name][0]
            assert 0 < len(rows.by_stage[name]) < 66
            assert all(kept == rows.kept[name][0] for kept in rows.kept[name])
    assert rows.by_stage["refine"] <= set.union(*rows.kept["refine"])
    assert len({frozenset(kept) for kept in rows.kept["refine"]}) > 1  # chosen anew for every epoch


def test_losses_are_weighted_by_class_as_torch_weighs_them() -> None:
    denoiser = build("pes", image_task(), brief=False)
    denoiser.kept[::3] = False
    (sweep,) = denoiser.passes(Stage("refine"), 0)
    rows = denoiser.kept.nonzero().squeeze(1)
    by_class = class_weights(denoiser.task.labels[rows], CLASSES)
    for batch in denoiser.task.loader(sweep, (0, 0, 0)).batches():
        out = denoiser.losses(batch, Clock(0, 1, 0, 1))
        assert out.weight is not None
        wanted = F.cross_entropy(denoiser.target(batch.inputs), batch.label, weight=by_class)
        torch.testing.assert_close((out.weight * out.loss).mean(), wanted)
    (whole,) = denoiser.passes(Stage("warm"), 0)
    assert (whole.rows, whole.weights) == (None, None)


def test_every_head_of_a_network_with_two_backbones_learns_in_every_stage() -> None:
    watch = Snapshots()
    watch.loop = loop = loop_of(new_model=lambda _: TwoBackbones(), observer=watch, lr=0.05)
    loop.run()
    changed = {key for key in watch.seen["head"] if not torch.equal(watch.seen["refit"][key], watch.seen["head"][key])}
    assert {key for key in changed if key.startswith("target.")} == {
        f"target.last.{number}.{name}" for number in range(2) for name in ("weight", "bias")
    }
    refitted = {
        key
        for key in watch.seen["refit"]
        if key.startswith("target.") and not torch.equal(watch.seen["warm"][key], watch.seen["refit"][key])
    }
    assert {key.split(".")[1] + "." + key.split(".")[2] for key in refitted} == {
        "front.3", "front.4", "back.3", "back.4", "last.0", "last.1",
    }  # fmt: skip


# Resume


def test_resumed_in_every_stage_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    def start(**options: Any) -> Loop:
        return loop_of(task={"n": 100}, selector="accuracy", lr=0.05, **options)

    whole = start()
    history = whole.run()
    steps = [row["steps"] for row in history]
    stops = [sum(steps[:at]) + 1 for at in range(len(steps))]
    stages = {row["stage"] for row in history}
    assert stages == {"warm", "refit", "head", "refine"}
    for stop in stops:
        path = tmp_path / f"{stop}.pt"
        with pytest.raises(KeyboardInterrupt):
            start(checkpoint_path=path, observer=Stop(stop)).run()
        torch.manual_seed(stop)
        again = start(checkpoint_path=path)
        assert again.resume()
        rows = again.run()
        assert [{**row, "seconds": 0} for row in rows] == [{**row, "seconds": 0} for row in history]
        assert same(weights(again), weights(whole))
