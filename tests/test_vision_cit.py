"""CIT: what the network sees in every setting, the loss by hand, blocks that keep still, and runs from end to end."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vision
from recdenoise import checkpoint
from recdenoise.denoisers import Clock, Stage
from recdenoise.errors import UserError
from recdenoise.loop import Loop, LoopConfig, Observer
from recdenoise.objectives import classification_loss
from recdenoise.task import Batch
from tests.toy_contexts import TinyResNet, data, method, parts, task
from tests.toy_images import CLASSES, build, image_loop, image_task
from vision import methods, networks
from vision.augment import Augment
from vision.methods import cit, mixup
from vision.methods.cut_mix import Box, draw_box, pasted
from vision.models import Builder
from vision.networks.double_branch import DoubleBranch, high_blocks
from vision.task import ImageTask

CLOCK = Clock(0, 10, 0, 5)
FRAMED = {"splitter": "pattern", "frame": 1}
SETTINGS = ("cit", "baseline", "obj_bg", "sal_img", "2x_baseline", "only_obj", "only_bg", "obj_all_bg")


def one_batch(denoiser: cit.CIT, epoch: int = 0) -> Batch:
    with torch.no_grad():
        denoiser.begin_epoch(denoiser.stages()[0], epoch)
    (sweep, *_) = denoiser.passes(denoiser.stages()[0], epoch)
    return next(iter(denoiser.task.loader(sweep, (0, epoch, 0)).batches()))


# What the network sees


@pytest.mark.parametrize("setting", SETTINGS)
def test_views_of_every_setting(setting: str) -> None:
    denoiser = method(setting=setting)
    batch = one_batch(denoiser)
    views = denoiser.views(batch)
    plain = setting in ("baseline", "2x_baseline")
    assert batch.inputs.shape[1] == (1 if plain else 2)
    if plain:
        assert len(views) == 1
        assert views[0] is batch.inputs or torch.equal(views[0], batch.inputs)
        return
    content, context, mask = parts(batch.inputs)
    image = batch.inputs[:, :1]
    if setting == "only_obj":
        wanted = [content]
    elif setting == "only_bg":
        wanted = [context]
    elif setting == "obj_bg":
        wanted = [torch.cat([content, context], 1)]
    elif setting == "sal_img":
        wanted = [torch.cat([image, 2 * batch.inputs[:, 1:] - 1], 1)]
    else:
        lent = parts(batch.streams["context"].inputs)[1]
        if setting == "cit":
            wanted = [content + (1 - mask) * lent, image]
        else:
            wanted = [torch.cat([content, lent], 1), torch.cat([content, context], 1)]
    assert len(views) == len(wanted)
    for view, expected in zip(views, wanted, strict=True):
        torch.testing.assert_close(view, expected)


def test_the_own_context_gives_the_image_itself() -> None:
    for config in ({}, FRAMED, {"branches": "double"}):
        denoiser = method(**config)
        batch = one_batch(denoiser)
        own = replace(batch, streams={"context": batch})
        drawn, seen = denoiser.views(own)
        assert torch.equal(drawn, seen)


def test_framed_images_keep_their_content_and_take_the_others_frame() -> None:
    denoiser = method(**FRAMED)
    batch = one_batch(denoiser)
    drawn, own = denoiser.views(batch)
    assert torch.equal(own, batch.inputs)
    expected = batch.streams["context"].inputs.clone()
    expected[:, :, 1:-1, 1:-1] = batch.inputs[:, :, 1:-1, 1:-1]
    assert torch.equal(drawn, expected)


def test_shares_and_means_fill_as_asked() -> None:
    denoiser = method(threshold=None, fill="mean", branches="double")
    batch = one_batch(denoiser)
    image, mask = batch.inputs[:, :1], batch.inputs[:, 1:]
    assert ((mask > 0) & (mask < 1)).any()
    _, own = denoiser.views(batch)
    for seen, share in ((own[:, :1], mask), (own[:, 1:], 1 - mask)):
        mean = (image * share).sum((2, 3), keepdim=True) / share.sum((2, 3), keepdim=True).clamp_min(1e-6)
        torch.testing.assert_close(seen, image * share + (1 - share) * mean)


# Contexts


def test_contexts_are_drawn_anew_each_epoch_and_come_with_the_rows() -> None:
    labels = data().labels
    denoiser = method()
    first = one_batch(denoiser, 0)
    partner = denoiser.partner.clone()
    assert torch.equal(labels[partner], labels)
    assert torch.equal(first.streams["context"].index, partner[first.index])
    one_batch(denoiser, 1)
    assert not torch.equal(partner, denoiser.partner)


@pytest.mark.parametrize(
    ("config", "same"),
    [
        ({}, ("a",)),
        ({"common_sense": "class"}, ("class",)),
        ({"common_sense": "odd"}, ("odd",)),
        ({"common_sense": "none"}, ()),
        ({"setting": "obj_all_bg"}, ()),
        ({"contexts": "stratify_b"}, ("a",)),
        ({"contexts": "stratify_b", "bias": "odd", "common_sense": "class", "prior": [1.0, 0.0]}, ("class",)),
    ],
)
def test_who_lends_a_context(config: dict[str, Any], same: tuple[str, ...]) -> None:
    n = 240
    number = torch.arange(n)
    images = data(n, a=number % 4 // 2, b=number // 4 % 3, odd=number // 5 % 2)
    denoiser = method(images, **config)
    one_batch(denoiser)
    columns = {**images.attributes, "class": images.labels}
    for name, values in columns.items():
        if name in same:
            assert torch.equal(values[denoiser.partner], values)
        elif "prior" in config and name == "odd":
            assert (values[denoiser.partner] == 0).all()
        else:
            assert not torch.equal(values[denoiser.partner], values)


def test_attributes_that_are_not_there_and_images_that_stand_alone_are_refused() -> None:
    with pytest.raises(UserError, match=r"attribute for A .*'colour'.*class"):
        one_batch(method(common_sense="colour"))
    with pytest.raises(UserError, match=r"attribute for B .*'b'"):
        one_batch(method(contexts="stratify_b"))
    with pytest.raises(UserError, match="Every training image is alone with its A"):
        one_batch(method(data(24, a=torch.arange(24))))


# The loss


def test_the_loss_is_that_of_both_contexts_from_one_forward() -> None:
    denoiser = method()
    batch = one_batch(denoiser)
    drawn, own = denoiser.views(batch)
    calls: list[int] = []
    denoiser.target.register_forward_hook(lambda *each: calls.append(len(each[1][0])))
    out = denoiser.losses(batch, CLOCK)
    assert calls == [16]
    denoiser.target.train()
    logits = denoiser.target(torch.cat([drawn, own]))
    by_hand = [
        -torch.log_softmax(logits[i], 0)[y] - torch.log_softmax(logits[8 + i], 0)[y] for i, y in enumerate(batch.label)
    ]
    torch.testing.assert_close(out.loss, torch.stack(by_hand))
    alone = method(own_term=False)
    assert len(alone.views(one_batch(alone))) == 1


def test_twice_the_baseline_goes_over_the_images_twice_an_epoch() -> None:
    denoiser = method(setting="2x_baseline")
    assert len(denoiser.passes(denoiser.stages()[0], 0)) == 2
    loop = image_loop("cit", image_task(), {"setting": "2x_baseline"}, epochs=1)
    assert loop.run()[0]["steps"] == 8


@pytest.mark.parametrize("branches", ["single", "double"])
@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_mixing_by_hand(mix: str, branches: str) -> None:
    denoiser = method(mix=mix, branches=branches)
    batch = one_batch(denoiser)
    views = denoiser.views(batch)
    torch.manual_seed(5)
    out = denoiser.losses(batch, CLOCK)
    torch.manual_seed(5)
    torch.rand(())
    share = mixup.draw_share(1.0)
    partners = mixup.draw_partners(8)
    if mix == "mixup":
        seen = [share * view + (1 - share) * view[partners] for view in views]
    else:
        box = draw_box(6, 6, share)
        seen, share = [view.clone() for view in views], box.share
        for new, view in zip(seen, views, strict=True):
            for i, j in enumerate(partners.tolist()):
                for y in range(box.top, box.bottom):
                    for x in range(box.left, box.right):
                        new[i, :, y, x] = view[j, :, y, x]
    logits = denoiser.target(torch.cat(seen)).chunk(2)
    loss = sum(
        share * classification_loss(each, batch.label) + (1 - share) * classification_loss(each, batch.label[partners])
        for each in logits
    )
    torch.testing.assert_close(out.loss, loss)


def test_batches_are_mixed_as_often_as_asked() -> None:
    denoiser = method(mix="mixup", mix_probability=0.25)
    mixed: list[int] = []
    whole = denoiser._mix
    denoiser._mix = lambda views: mixed.append(1) or whole(views)  # type: ignore[method-assign, func-returns-value]
    batch = one_batch(denoiser)
    torch.manual_seed(0)
    for _ in range(200):
        denoiser.losses(batch, CLOCK)
    assert 30 < len(mixed) < 70


def test_a_box_is_cut_at_the_edges_and_its_share_is_that_of_the_pixels() -> None:
    torch.manual_seed(0)
    for _ in range(200):
        box = draw_box(8, 12, 0.5)
        assert 0 <= box.top <= box.bottom <= 8
        assert 0 <= box.left <= box.right <= 12
        kept = torch.ones(8, 12)
        kept[box.top : box.bottom, box.left : box.right] = 0
        assert box.share == pytest.approx(kept.mean().item())
    assert draw_box(8, 12, 1.0).share == 1.0
    whole = Box(0, 8, 0, 12, 8, 12)
    images = torch.randn(3, 2, 8, 12)
    assert torch.equal(pasted(images, torch.tensor([1, 2, 0]), whole), images[[1, 2, 0]])


# Two branches


def test_branches_begin_as_the_single_network_and_give_its_features(tmp_path: Path) -> None:
    torch.manual_seed(0)
    single = networks.build("resnet18_small", 4, 1)
    path = tmp_path / "single.pt"
    torch.save(single.state_dict(), path)
    images = data(12)
    builder = Builder("resnet18_small", CLASSES, (1, 6, 6), weights=str(path))
    made = ImageTask(images, new_model=builder, augment=Augment((0.4,), (0.25,)), seed=1, batch_size=4)
    denoiser = methods.get("cit")(made, {"branches": "double", "train_blocks": 2, "splitter": "dark part"}).eval()
    target = denoiser.target
    assert isinstance(target, DoubleBranch)
    assert target.fc.in_features == 1024
    one, two = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8)
    seen: list[Tensor] = []
    target.fc.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    single.eval().fc = nn.Identity()
    target(torch.cat([one, two], 1))
    assert torch.equal(seen[0], torch.cat([single(one), single(two)], 1))
    assert denoiser.stages()[0].train == (
        "target.content.layer3",
        "target.content.layer4",
        "target.context.layer3",
        "target.context.layer4",
        "target.fc",
    )


def test_weights_come_from_a_run_of_this_library(tmp_path: Path) -> None:
    images = data(30)
    result = vision.fit("resnet20", images, method="normal", epochs=1, batch_size=8, valid=0, device="cpu")
    path = tmp_path / "result.pt"
    result.save(path)
    fresh = networks.build("resnet20", CLASSES, 1, weights=path)
    assert all(
        torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), result.model.state_dict().values(), strict=True)
    )
    other = networks.build("resnet20", 5, 1)
    assert networks.load_weights(other, path) == ("fc.weight", "fc.bias")
    state = checkpoint.load(path)
    checkpoint.save(path, {**state, "modules": {"members.0.fc.bias": torch.zeros(3)}})
    with pytest.raises(UserError, match="holds several networks and none that is the target"):
        networks.load_weights(other, path)


@pytest.mark.parametrize("branches", ["single", "double"])
def test_frozen_blocks_stay_bit_for_bit(branches: str) -> None:
    denoiser = method(branches=branches, train_blocks=2).eval()
    before = {name: value.clone() for name, value in denoiser.state_dict().items()}
    Loop(denoiser, denoiser.task, LoopConfig(epochs=2, lr=0.1, selector="last")).run()
    for name, value in denoiser.state_dict().items():
        moves = any(name.startswith(f"{part}.") for part in denoiser.stages()[0].train) or name == "partner"
        assert torch.equal(before[name], value) != moves, name


def test_networks_without_blocks_are_refused_where_blocks_should_train() -> None:
    with pytest.raises(
        UserError, match=r"train_blocks is 2, but Sequential has 0 blocks called layer1.*Conv|its parts"
    ):
        build("cit", image_task(), {**FRAMED, "train_blocks": 2})
    assert high_blocks(TinyResNet(), 2) == ("layer2", "layer3")
    with pytest.raises(UserError, match="train_blocks is 4"):
        high_blocks(TinyResNet(), 4)


@pytest.mark.parametrize(
    "options",
    [
        {"branches": "double", "splitter": "dark part", "train_blocks": 1, "mix": "cutmix", "contexts": "stratify_b"},
        {"setting": "obj_all_bg", "splitter": "saliency", "mix": "mixup"},
        {"setting": "sal_img", "splitter": "saliency", "threshold": None},
        {"setting": "2x_baseline"},
    ],
)
def test_other_settings_resume_bit_for_bit(options: dict[str, Any], tmp_path: Path) -> None:
    images = data(40, a=torch.arange(40) % 3, b=torch.arange(40) // 3 % 2)

    def loop(observer: Observer | None = None, path: Path | None = None) -> Loop:
        denoiser = methods.get("cit")(task(images), options).eval()
        config = LoopConfig(epochs=3, lr=0.02, selector="last")
        return Loop(denoiser, denoiser.task, config, checkpoint_path=path, observer=observer)

    class Interrupt(Observer):
        steps = 0

        def on_step(self, clock: Clock, loss: Tensor) -> None:
            self.steps += 1
            if self.steps == 7:
                signal.raise_signal(signal.SIGINT)

    whole = loop()
    whole.run()
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        loop(Interrupt(), path).run()
    torch.manual_seed(99)
    again = loop(path=path)
    assert again.resume()
    again.run()
    for (name, one), two in zip(whole.denoiser.state_dict().items(), again.denoiser.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"setting": "obj_bg", "branches": "single"},
            "'branches' is 'single'; the setting obj_bg needs double or null",
        ),
        ({"setting": "only_bg", "branches": "double"}, "the setting only_bg needs single or null"),
        ({"frame": 0}, "'frame' is 0; it must be 1 or more"),
        ({"threshold": 1.0}, "'threshold' is 1.0; it must be at least 0 and below 1"),
        ({"train_blocks": -1}, "'train_blocks' is -1"),
        ({"mix_alpha": 0.0}, "'mix_alpha' is 0.0"),
        ({"mix_probability": 0.0}, "'mix_probability' is 0.0"),
        ({"splitter": "pattern"}, "come with no frame: say how many pixels wide it is"),
        ({"splitter": "patern"}, "patern"),
        ({"setting": "cti"}, "one of cit, baseline"),
        ({"prior": "even"}, "'prior' of denoiser cit is 'even'"),
        ({"prior": "observed"}, "'prior' is 'observed', which only contexts: stratify_b"),
        ({"prior": "observed", "contexts": "stratify_b", "setting": "obj_all_bg"}, "with setting: cit reads"),
    ],
)
def test_bad_options_get_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        methods.get("cit")(task(data()), options)


def test_a_stage_trains_the_whole_network_by_default() -> None:
    assert method().stages() == [Stage()]
