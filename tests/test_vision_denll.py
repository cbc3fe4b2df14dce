"""DeNLL as a method: it trains through any host, remembers backgrounds, resumes, and says what does not fit."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recdenoise import objectives
from recdenoise.averaging import Averaging
from recdenoise.denoisers import Clock, Denoiser, Losses, Stage
from recdenoise.errors import UserError
from recdenoise.loop import Observer
from recdenoise.task import Batch, Pass
from tests.toy_images import CLASSES, TinyImages, build, image_loop, image_task
from vision import methods, networks
from vision.augment import Augment
from vision.heads import answer, layer_places
from vision.methods.denll import DeNLL, DeNLLTask, find_host
from vision.methods.hosting import CrossEntropy, Host
from vision.networks.denll import DeNLLNetwork
from vision.networks.interaction import ClassBackgroundMemory
from vision.task import ImageTask

HOSTS = ["ce", *(name for name in methods.names() if issubclass(methods.get(name), Host))]


def denll(**options: Any) -> DeNLL:
    method = build("denll", image_task(), {"host": "ce", **options}, brief=False)
    assert isinstance(method, DeNLL)
    return method


def first_batch(method: Denoiser) -> Batch:
    (sweep, *_) = method.passes(method.stages()[0], 0)
    return next(iter(method.task.loader(sweep, (0, 0, 0)).batches()))


def remembered(method: DeNLL) -> ClassBackgroundMemory:
    assert method.target.memory is not None
    return method.target.memory


class Redraws(CrossEntropy):
    """A host that draws the first layer of its backbone anew before its second stage."""

    name = "redraws"
    Config = CrossEntropy.Config

    def places(self) -> tuple[str, ...]:
        return tuple(f"target.{name}" for name in layer_places(self.target, "0", "late"))

    def stages(self) -> list[Stage]:
        return [Stage("all", selector="last"), Stage("late", self.places(), reset=self.places(), selector="last")]


@pytest.fixture
def redraws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vision.methods.denll.find_host", lambda name: Redraws)


def test_the_network_is_the_hosts() -> None:
    method = denll()
    assert isinstance(method.target, DeNLLNetwork)
    assert list(method.networks()) == ["target"]
    (stage,) = method.stages()
    assert (stage.train, stage.watch) == (("host.target",), "host.target")
    assert method.module(stage.watch) is method.target
    (optim,) = method.optimizers(stage).values()
    assert dict(optim.modules) == {"host.target": 0.0}
    assert dict(denll(l2=0.5).optimizers(stage)["target"].modules) == {"host.target": 0.5}


def test_everything_that_a_method_declares_is_the_hosts() -> None:
    declared = {name for name, value in vars(Denoiser).items() if callable(value) and not name.startswith("_")}
    own = {"losses", "plain_losses", "cross_entropy", "module"}  # of methods that step by themselves, and a look-up
    assert declared - own <= set(vars(DeNLL))
    sop = denll(host="sop")
    assert sop.loss_selector_note == methods.get("sop").loss_selector_note != ""
    assert sop.findings() == {}
    assert sop.row_weights() is None


def test_the_foregrounds_encoder_starts_as_the_hosts_own_network() -> None:
    method, plain = denll(), build("normal", image_task())
    first = dict(method.target.encoder.named_parameters())
    own = dict(plain.target.named_parameters())
    assert first.keys() < own.keys()
    assert all(torch.equal(value, own[key]) for key, value in first.items())
    assert not torch.equal(first["0.weight"], method.target.background_encoder.get_parameter("0.weight"))  # type: ignore[union-attr]


def test_the_loss_is_the_mean_of_both_heads_and_the_score_the_mean_of_both_softmaxes() -> None:
    method = denll()
    method.eval()
    batch = first_batch(method)
    (update,) = method.step(method.stages()[0], batch, Clock(0, 4, 0, 1))
    o1, o2 = method.target.heads(batch.inputs)
    losses = [objectives.classification_loss(o, batch.label) for o in (o1, o2)]
    torch.testing.assert_close(update.loss, (losses[0] + losses[1]) / 2)
    torch.testing.assert_close(method.score(batch.inputs), answer((o1, o2)))


def test_a_step_moves_the_memory_by_the_observed_labels() -> None:
    method = denll()
    memory = remembered(method)
    assert not memory.seen.any()
    batch = first_batch(method)
    list(method.step(method.stages()[0], batch, Clock(0, 4, 0, 1)))
    z_b = method.target.parts(batch.inputs).z_b
    for c in batch.label.unique():
        torch.testing.assert_close(memory.mean[c], z_b[batch.label == c].mean(0))


@pytest.mark.usefixtures("redraws")
@pytest.mark.parametrize("share", [False, True])
def test_the_memory_is_rebuilt_exactly_after_re_initialisation(share: bool) -> None:
    method = build("denll", image_task(), {"share": share}, brief=False)
    assert isinstance(method, DeNLL)
    first, late = method.stages()
    place = "encoder" if share else "background_encoder"
    assert late.reset[-1] == f"host.target.{place}.0"
    assert set(late.train) == {*late.reset, "host.target.memory"}
    method.eval()
    memory = remembered(method)
    memory.mean.fill_(7.0)
    with torch.no_grad():
        method.begin_epoch(first, 0)
        method.begin_epoch(late, 1)
        assert (memory.mean == 7.0).all()
        method.begin_epoch(late, 0)
    task = method.task
    embedded = task.scan(lambda inputs: method.target.parts(inputs).z_b)
    for c in range(CLASSES):
        torch.testing.assert_close(memory.mean[c], embedded[task.labels == c].mean(0))  # type: ignore[attr-defined]
    assert memory.seen.all()


class RedrawsNorm(Redraws):
    """A host that draws the first layer and its batch norm anew."""

    def places(self) -> tuple[str, ...]:
        return tuple(f"target.{name}" for layer in "01" for name in layer_places(self.target, layer, "late"))


@pytest.mark.parametrize("share", [False, True])
def test_norms_drawn_anew_go_by_the_images_while_the_memory_is_rebuilt(
    share: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vision.methods.denll.find_host", lambda name: RedrawsNorm)
    method = build("denll", image_task(), {"share": share}, brief=False)
    assert isinstance(method, DeNLL)
    method.eval()
    before = {name: buffer.clone() for name, buffer in method.named_buffers()}
    with torch.no_grad():
        method.begin_epoch(method.stages()[1], 0)
    changed = [name for name, buffer in method.named_buffers() if not torch.equal(buffer, before[name])]
    assert {name.split(".memory.")[-1] for name in changed} <= {"mean", "seen", "moved"}
    assert not any(module.training for module in method.modules())
    network, task = method.target, method.task
    assert isinstance(network, DeNLLNetwork)
    images = torch.cat([b.inputs for b in task.loader(Pass(augment=False, batch_size=66), (0, 0, 0)).batches()])
    labels = torch.cat([b.label for b in task.loader(Pass(augment=False, batch_size=66), (0, 0, 0)).batches()])
    for encoder in network.encoders.values():
        encoder.train()
    z_b = network.parts(images).z_b
    for c in range(CLASSES):  # all rows fit one block of the scan: the norms saw the same images
        torch.testing.assert_close(remembered(method).mean[c], z_b[labels == c].mean(0), rtol=1e-4, atol=1e-5)


def test_what_does_nothing_for_images_is_refused_of_a_host() -> None:
    with pytest.raises(UserError, match=r"'host_options.compat' is 'paper_code'; it must be none for images"):
        DeNLL.read_config({"host": "ce", "host_options": {"compat": "paper_code"}})


def test_a_memory_that_no_batch_moved_is_rebuilt_as_the_next_epoch_begins() -> None:
    method = denll()
    (stage,) = method.stages()
    method.eval()
    memory = remembered(method)
    with torch.no_grad():
        method.begin_epoch(stage, 0)
        assert not memory.seen.any()
        list(method.step(stage, first_batch(method), Clock(0, 4, 0, 1)))
        moved = memory()
        method.begin_epoch(stage, 1)
        assert torch.equal(memory(), moved)
        method.begin_epoch(stage, 2)
    task = method.task
    embedded = task.scan(lambda inputs: method.target.parts(inputs).z_b)
    for c in range(CLASSES):
        torch.testing.assert_close(memory.mean[c], embedded[task.labels == c].mean(0))  # type: ignore[attr-defined]


@pytest.mark.usefixtures("redraws")
def test_under_averaged_weights_the_memory_of_the_weights_is_rebuilt() -> None:
    loop = image_loop("denll", image_task(), brief=False, epochs=1, average=0.5)
    method, rebuilt = loop.denoiser, []
    assert isinstance(method, DeNLL)
    rebuild = method.rebuild

    def noted(network: DeNLLNetwork, fresh: Sequence[nn.Module] = ()) -> None:
        rebuild(network, fresh)
        rebuilt.append((network.encoder.get_parameter("0.weight").clone(), network.memory.mean.clone()))  # type: ignore[union-attr]

    method.rebuild = noted  # type: ignore[method-assign]
    loop.run()
    (averaged, _), (own, memory) = rebuilt  # as the epoch begins, with the averages in place, and at its first step
    assert torch.equal(averaged, own)  # nothing has trained yet: the averages begin at the weights
    assert memory.isfinite().all()
    assert memory.any()


@pytest.mark.usefixtures("redraws")
def test_a_whole_run_with_re_initialisation() -> None:
    loop = image_loop("denll", image_task(), brief=False, epochs=2)
    rows = loop.run()
    assert [row["stage"] for row in rows] == ["all", "all", "late", "late"]
    scores = loop.denoiser.task.scan(loop.denoiser.score)
    assert scores.isfinite().all()


@pytest.mark.parametrize("host", HOSTS)
class TestEveryHost:
    def test_it_trains_both_heads(self, host: str) -> None:
        method = denll(host=host, host_options=dict(find_host(host).brief))
        assert method.networks()
        assert all(stage.watch.startswith("host.") for stage in method.stages())
        for stage in method.stages():
            with torch.no_grad():
                method.begin_stage(stage)
                method.begin_epoch(stage, 0)
            sweep = method.passes(stage, 0)[0]
            batch = next(iter(method.task.loader(sweep, (0, 0, 0)).batches()))
            reached: set[str] = set()
            for update in method.step(stage, batch, Clock(0, 4, 0, 1)):
                method.zero_grad()
                update.reduce().backward()
                reached |= {key for key, p in method.named_parameters() if p.grad is not None and p.grad.any()}
            heads = {key for key in reached if ".interaction.head" in key}
            assert len(heads) >= 4

    def test_resumes_bit_for_bit(self, host: str, tmp_path: Path) -> None:
        options = {"host": host, "host_options": dict(find_host(host).brief)}
        whole = image_loop("denll", image_task(dropout=0.3), options, brief=False)
        whole.run()

        class Interrupt(Observer):
            steps = 0

            def on_step(self, clock: Clock, loss: Tensor) -> None:
                self.steps += 1
                if self.steps in (3, 10):
                    signal.raise_signal(signal.SIGINT)

        path, observer = tmp_path / "checkpoint.pt", Interrupt()
        for _ in range(2):
            part = image_loop(
                "denll", image_task(dropout=0.3), options, brief=False, checkpoint_path=path, observer=observer
            )
            part.resume()
            with pytest.raises(KeyboardInterrupt):
                part.run()
            torch.manual_seed(123456)
        last = image_loop("denll", image_task(dropout=0.3), options, brief=False, checkpoint_path=path)
        assert last.resume()
        last.run()
        ours, theirs = last.denoiser.state_dict(), whole.denoiser.state_dict()
        assert ours.keys() == theirs.keys()
        different = [key for key, value in ours.items() if not torch.equal(value, theirs[key])]
        assert not different


def test_a_host_finds_the_averages_of_its_networks_by_their_names() -> None:
    method, seen = denll(), []
    averages = Averaging({"host.target": method.target}, 0.5)

    def losses(batch: Batch, clock: Clock) -> Losses:
        assert clock.averages is not None
        seen.append(clock.averages.of("target"))
        return Losses(torch.zeros(len(batch.label)))

    method.host.losses = losses  # type: ignore[method-assign]
    list(method.step(method.stages()[0], first_batch(method), Clock(0, 4, 0, 1, averages=averages, within=0.5)))
    assert seen[0].keys() == method.target.state_dict().keys()
    assert all(value is averages.mean[f"host.target.{key}"] for key, value in seen[0].items())


@pytest.mark.parametrize(
    "options",
    [{"share": True}, {"use_lm": False}, {"use_dim": False}, {"mask": "box"}, {"use_lm": False, "use_dim": False}],
)
def test_every_variant_trains(options: dict[str, Any]) -> None:
    loop = image_loop("denll", image_task(), {"host": "ce", **options}, brief=False, epochs=1)
    loop.run()
    method = loop.denoiser
    assert isinstance(method, DeNLL)
    network = method.target
    fixed = options.get("mask") == "box" or not options.get("use_lm", True)
    assert (network.localization is None) == fixed
    assert (network.memory is None) == (not options.get("use_dim", True))
    assert method.clean_probability().shape == (66,)


def test_eq5_brings_images_back_to_the_scale_0_to_1() -> None:
    augment = Augment((0.4,), (0.2,), crop_pad=0, flip=False)
    method = build("denll", image_task(augment=augment), {"mask": "eq5", "host": "ce"}, brief=False)
    assert isinstance(method, DeNLL)
    raw = method.task.source("train").images[:3]  # type: ignore[attr-defined]
    inputs = augment(raw, torch.Generator(), train=False)
    parts = method.target.parts(inputs)
    masked = parts.mask * raw / 255
    median = masked.flatten(2).median(2).values.view(3, 1, 1, 1)
    torch.testing.assert_close(parts.foreground, (masked - median).clamp_min(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts.background, (median - masked).clamp_min(0), rtol=1e-4, atol=1e-5)


REFUSED: Mapping[str, tuple[dict[str, Any], str]] = {
    "host": ({"host": "normal"}, "Option 'host' is 'normal'; it must be one of ce"),
    "no such host": ({"host": "pess"}, "Option 'host' is 'pess'; it must be one of ce"),
    "host's option": ({"host_options": {"temperature": 1}}, "option of denoiser pes"),
    "host's value": ({"host_options": {"l2": -1}}, "Option 'l2' is -1.0; it must be zero or more"),
    "options": ({"host_options": 3}, "it must be a mapping or null"),
    "mask": ({"mask": "hard"}, "it must be one of soft, eq5, box"),
    "momentum": ({"memory_momentum": 1.0}, "Option 'memory_momentum' is 1.0; it must be at least 0 and below 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_options_are_one_sentence(case: str) -> None:
    options, sentence = REFUSED[case]
    with pytest.raises(UserError) as caught:
        DeNLL.read_config(options)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_eq5_needs_to_know_how_images_were_normalised() -> None:
    with pytest.raises(UserError, match="must have the attributes mean and std"):
        build("denll", image_task(), {"mask": "eq5", "host": "ce"}, brief=False)


def test_a_network_without_a_last_linear_is_refused() -> None:
    def convolutional(member: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, CLASSES, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    with pytest.raises(UserError, match=r"no nn\.Linear with 3 outputs"):
        build("denll", image_task(new_model=convolutional), {"host": "ce"}, brief=False)


def test_it_is_for_images() -> None:
    class Other:
        n_classes, n_rows = 2, 3

    with pytest.raises(UserError, match="it is for labels of images"):
        DeNLLTask(Other(), DeNLL.read_config({}))  # type: ignore[arg-type]


SMALL = ["convnet2", "resnet20", "resnet18_small", "preact18", "torchvision:mobilenet_v3_small"]
LARGE = ["resnet34_small", "resnet50_small", "torchvision:resnet18", "cnn9", "inception_small"]


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_any_backbone_with_a_spatial_stem(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 32, 32), generator=generator, dtype=torch.uint8)

    task = ImageTask(
        TinyImages(images, torch.arange(4) % 3, torch.arange(4) % 3),
        new_model=lambda _: networks.build(name, 3, 3, image_size=(32, 32)),
        augment=Augment((0.5,) * 3, (0.25,) * 3),
        seed=0,
        batch_size=4,
    )
    late = {"host_options": {"late": ["classifier"]}} if "mobilenet" in name else {}
    method = methods.get("denll")(task, {"host": "pes", **late})
    assert {"host.target.interaction"} < {name for stage in method.stages() for name in stage.reset}
    batch = first_batch(method)
    (update,) = method.step(method.stages()[0], batch, Clock(0, 1, 0, 1))
    update.reduce().backward()
    method.eval()
    assert method.score(batch.inputs).shape == (4, 3)


def test_representations_are_read_from_the_network() -> None:
    method = denll()
    method.eval()
    inputs = first_batch(method).inputs
    logits, representation = method.task.embed(method.target, inputs)  # type: ignore[attr-defined]
    torch.testing.assert_close(logits, method.score(inputs))
    torch.testing.assert_close(representation, method.target.parts(inputs).representation)
    assert representation.shape == (16, method.task.embedding_width())  # type: ignore[attr-defined]
