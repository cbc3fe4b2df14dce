"""Images to batches and through networks: what a pass asks for is what comes, drawn from the seed alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recdenoise.errors import UserError
from recdenoise.task import Batch, ClassTask, Pass
from tests.toy_images import CLASSES, TinyImages, image_loop, image_task, jitter, network
from vision.embedding import Tap, head_name, without_head
from vision.task import SCAN_IMAGES, ImageTask


def batches(task: ImageTask, sweep: Pass, key: tuple[int, ...] = (0, 0, 0), start: int = 0) -> list[Batch]:
    return list(task.loader(sweep, key).batches(start))


def test_it_is_a_class_task() -> None:
    task = image_task()
    assert isinstance(task, ClassTask)
    assert (task.n_rows, task.n_classes, task.embedding_width()) == (66, CLASSES, 24)


def test_a_network_without_a_last_linear_trains_where_no_embedding_is_read() -> None:
    """No method but those that read an embedding may ask for one, not even by asking what kind of task this is."""

    def convolutional(member: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, CLASSES, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    task = image_task(new_model=convolutional)
    assert isinstance(task, ClassTask)
    loop = image_loop("normal", task, epochs=1)
    loop.run()
    assert loop.denoiser.clean_probability().shape == (66,)
    with pytest.raises(UserError, match=r"no nn\.Linear with 3 outputs"):
        task.embedding_width()


def test_a_pass_goes_over_every_row_at_most_once_in_whole_batches() -> None:
    task = image_task()
    found = batches(task, Pass())
    assert [len(b.label) for b in found] == [16] * 4
    index = torch.cat([b.index for b in found])
    assert len(index.unique()) == 64
    for batch in found:
        assert torch.equal(batch.label, task.labels[batch.index])
        assert batch.groups == (16,)
        assert (batch.weight, batch.views, dict(batch.streams)) == (None, (), {})


def test_epochs_differ_and_a_batch_follows_from_its_place_alone() -> None:
    task = image_task()
    first, again, other = (batches(task, Pass(), (0, epoch, 0)) for epoch in (0, 0, 1))
    late = batches(image_task(), Pass(), (0, 0, 0), start=2)
    assert not torch.equal(first[0].index, other[0].index)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.inputs, b.inputs)
    for a, b in zip(first[2:], late, strict=True):
        assert torch.equal(a.index, b.index)
        assert torch.equal(a.inputs, b.inputs)
    assert not torch.equal(first[0].index, batches(image_task(seed=2), Pass())[0].index)


def test_rows_labels_and_weights_of_a_pass() -> None:
    task = image_task()
    rows = torch.arange(3, 40)
    labels, weights = torch.rand(66, CLASSES), torch.rand(66)
    found = batches(task, Pass(rows=rows, labels=labels, weights=weights))
    assert len(found) == 2
    for batch in found:
        assert set(batch.index.tolist()) <= set(rows.tolist())
        assert torch.equal(batch.label, labels[batch.index])
        assert batch.weight is not None
        assert torch.equal(batch.weight, weights[batch.index])


def test_fewer_rows_than_a_batch_are_one_smaller_batch() -> None:
    (batch,) = batches(image_task(), Pass(rows=torch.tensor([5, 1, 9])))
    assert sorted(batch.index.tolist()) == [1, 5, 9]
    with pytest.raises(UserError, match="has no rows"):
        image_task().loader(Pass(rows=torch.tensor([], dtype=torch.int64)), (0, 0, 0))


def test_views_are_the_same_images_augmented_apart() -> None:
    task = image_task()
    batch = batches(task, Pass(views=3))[0]
    assert len(batch.views) == 3
    assert batch.views[0] is batch.inputs
    raw = task.source("train").images[batch.index].float() / 255 - 0.4
    for view in batch.views:
        assert 0.04 < (view - raw).std() < 0.06
    assert not torch.equal(batch.views[0], batch.views[1])
    plain = batches(task, Pass(augment=False))[0]
    assert torch.equal(plain.inputs, task.source("train").images[plain.index].float() / 255 - 0.4)


def test_streams_go_round_in_new_orders_and_do_not_decide_the_length() -> None:
    task = image_task()
    sweep = Pass(streams={"clean": Pass(source="clean", batch_size=5, views=2), "more": Pass(rows=torch.arange(20))})
    found = batches(task, sweep)
    assert len(found) == 4
    clean = [b.streams["clean"] for b in found]
    assert [len(b.label) for b in clean] == [5] * 4
    for first, second in ((clean[0], clean[1]), (clean[2], clean[3])):  # twelve images are two batches of five
        assert not set(first.index.tolist()) & set(second.index.tolist())
    assert not torch.equal(clean[0].index, clean[2].index)
    assert torch.equal(clean[0].label, TinyImages.draw(12, 0.0, 9).labels[clean[0].index])
    assert all(len(b.streams["more"].label) == 16 for b in found)
    late = batches(task, sweep, start=3)[0]
    assert torch.equal(late.streams["clean"].inputs, found[3].streams["clean"].inputs)


def test_a_paired_stream_brings_each_rows_partner() -> None:
    task = image_task()
    partner = torch.randperm(66)
    for batch in batches(task, Pass(streams={"context": Pass(rows=partner, paired=True)})):
        assert torch.equal(batch.streams["context"].index, partner[batch.index])


def test_a_source_that_was_not_given_is_named() -> None:
    with pytest.raises(UserError, match="needs a 'context' data set"):
        image_task().loader(Pass(source="context"), (0, 0, 0))


def test_scan_is_in_row_order_over_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCAN_IMAGES, "cpu", 7)
    task = image_task()
    raw = task.source("train").images.float() / 255 - 0.4
    torch.testing.assert_close(task.scan(lambda x: x), raw)
    rows = torch.tensor([9, 3, 3, 60])
    torch.testing.assert_close(task.scan(lambda x: x, rows=rows), raw[rows])
    torch.manual_seed(5)
    one = task.scan(lambda x: x, augment=True)
    torch.manual_seed(5)
    assert torch.equal(one, task.scan(lambda x: x, augment=True))
    assert not torch.equal(one, task.scan(lambda x: x, augment=True))
    with pytest.raises(UserError, match="no images"):
        task.scan(lambda x: x, rows=rows[:0])


# Networks


def test_members_are_drawn_apart_and_each_alike() -> None:
    task = image_task()
    a, again, b = task.new_target(0), image_task().new_target(0), task.new_target(1)
    assert torch.equal(a[0].weight, again[0].weight)
    assert not torch.equal(a[0].weight, b[0].weight)
    before = torch.get_rng_state()
    task.new_target(2)
    assert torch.equal(before, torch.get_rng_state())


def test_the_embedding_is_what_the_last_linear_reads() -> None:
    task = image_task()
    model, images = task.new_target(0).eval(), torch.randn(4, 1, 6, 6)
    logits, embedding = task.embed(model, images)
    torch.testing.assert_close(logits, model(images))
    torch.testing.assert_close(embedding, model[:5](images))
    assert embedding.requires_grad
    assert not model[6]._forward_pre_hooks
    encoder, width = task.new_backbone(0)
    assert width == 24
    torch.testing.assert_close(encoder.eval()(images), embedding)


def test_a_named_layers_output_is_the_embedding() -> None:
    task = image_task(embedding="3")
    model, images = task.new_target(0).eval(), torch.randn(4, 1, 6, 6)
    torch.testing.assert_close(task.embed(model, images)[1], model[:4](images).flatten(1))
    assert task.embedding_width() == 24
    with pytest.raises(UserError, match="Unknown layer 'pool'"):
        Tap(network(), CLASSES, "pool")


def test_models_of_others_return_what_they_like() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.extra = network(), nn.Linear(2, 7)

        def forward(self, images: Tensor) -> Any:
            return self.inner(images), None

    task = image_task(new_model=lambda _: Pair())
    assert task.call(task.new_target(0), torch.randn(2, 1, 6, 6)).shape == (2, CLASSES)
    assert head_name(Pair(), CLASSES) == "inner.6"
    single, width = without_head(nn.Linear(5, CLASSES), CLASSES)
    assert (type(single), width) == (nn.Identity, 5)


def test_a_model_without_a_linear_asks_for_a_name() -> None:
    plain = nn.Sequential(nn.Conv2d(1, CLASSES, 6), nn.Flatten())
    task = image_task(new_model=lambda _: plain)
    with pytest.raises(UserError, match=r"no nn\.Linear with 3 outputs"):
        task.embed(plain, torch.randn(2, 1, 6, 6))


def test_other_weights_in_a_models_place() -> None:
    task = image_task()
    model, images = task.new_target(0).eval(), torch.randn(4, 1, 6, 6)
    step = {name: (p.detach() * 2).requires_grad_() for name, p in model.named_parameters()}
    found = task.call_with(model, step, images)
    double = task.new_target(0).eval()
    with torch.no_grad():
        for p in double.parameters():
            p.mul_(2)
    torch.testing.assert_close(found, double(images))
    found.sum().backward()
    assert step["0.weight"].grad is not None
    assert model[0].weight.grad is None


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(36, 10)), r"outputs of shape \(10,\) where the labels have 3 classes"),
        (nn.Sequential(nn.Conv2d(3, 2, 3)), r"does not take images of shape \(1, 6, 6\)"),
        (nn.Conv2d(1, 3, 3), r"outputs of shape \(3, 4, 4\)"),
    ],
)
def test_a_model_that_does_not_fit_the_data(model: nn.Module, message: str) -> None:
    with pytest.raises(UserError, match=message):
        image_task(new_model=lambda _: model)


def test_batches_that_cannot_be() -> None:
    with pytest.raises(UserError, match="There are 66 training images, fewer than one batch of 100"):
        image_task(batch_size=100)
    with pytest.raises(UserError, match="The batch size is 0"):
        image_task(batch_size=0)


def test_bf16_networks_give_float32_logits() -> None:
    task = image_task(precision="bf16")
    model, images = task.new_target(0), torch.randn(4, 1, 6, 6)
    kinds = []
    model[0].register_forward_hook(lambda _, args, out: kinds.append(out.dtype))
    logits, embedding = task.embed(model, images)
    assert (logits.dtype, embedding.dtype, task.call(model, images).dtype) == (torch.float32,) * 3
    assert set(kinds) == {torch.bfloat16}
    assert not torch.is_autocast_enabled("cpu")
    assert image_task().call(network().double(), images.double()).dtype == torch.float64


def test_channels_last_lays_out_images_and_filters() -> None:
    two = lambda _: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(64, CLASSES))  # noqa: E731
    data = TinyImages.draw(66, 0.3, 7)
    data = TinyImages(data.images.repeat(1, 2, 1, 1), data.labels, data.true_labels)
    task = ImageTask(data, new_model=two, augment=jitter, seed=1, batch_size=16, channels_last=True)
    assert batches(task, Pass())[0].inputs.is_contiguous(memory_format=torch.channels_last)
    assert task.new_target(0)[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_only_training_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[nn.Module] = []

    def compiled(module: nn.Module) -> nn.Module:
        made.append(module)
        return module

    monkeypatch.setattr(torch, "compile", compiled)
    task = image_task(compiled=True)
    model, images = task.new_target(0), torch.randn(4, 1, 6, 6)
    model.eval()
    task.call(model, images)
    assert made == []
    model.train()
    for _ in range(2):
        task.call(model, images)
        task.embed(model, images)
    assert [type(m).__name__ for m in made] == ["Sequential", "Tap"]


def test_a_network_of_which_a_part_trains_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[nn.Module] = []
    monkeypatch.setattr(torch, "compile", lambda module: made.append(module) or module)
    task = image_task(compiled=True)
    model = task.new_target(0).eval()
    model.get_submodule("0").train()
    task.call(model, torch.randn(4, 1, 6, 6))
    assert made == [model]


class Lazy:
    """Images that are decoded when they are asked for; counts how."""

    def __init__(self, images: Tensor) -> None:
        self.images, self.shape = images, images.shape
        self.read: list[str] = []

    def __getitem__(self, rows: Tensor) -> Tensor:
        self.read.append("one")
        return self.images[rows]

    def batches(self, orders: list[Tensor]) -> Any:
        for rows in orders:
            self.read.append("ahead")
            yield self.images[rows]


def test_a_folder_that_is_read_as_it_is_needed_gives_the_same_batches() -> None:
    data = TinyImages.draw(66, 0.3, 7)
    lazy = Lazy(data.images)
    task = image_task()
    task.sources["train"] = TinyImages(lazy, data.labels, data.true_labels)  # type: ignore[arg-type]
    for start in (0, 2):
        for a, b in zip(batches(task, Pass(), start=start), batches(image_task(), Pass(), start=start), strict=True):
            assert torch.equal(a.index, b.index)
            assert torch.equal(a.inputs, b.inputs)
    assert set(lazy.read) == {"ahead"}
    torch.testing.assert_close(task.scan(lambda x: x), image_task().scan(lambda x: x))
