"""Networks of several heads: one answer, one loss over all heads, and where the backbone's layers are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from recdenoise.denoisers import Clock
from recdenoise.errors import UserError
from recdenoise.objectives import classification_loss
from recdenoise.task import Pass
from tests.toy_images import CLASSES, SIZE, image_task, network
from vision.embedding import without_head
from vision.heads import Headed, answer, head_places, layer_places
from vision.methods.hosting import CrossEntropy, Host


class TwoHeads(Headed):
    """A backbone of the toy network with two Linears, which counts its forwards and keeps the labels it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, width = without_head(network(), CLASSES)
        self.first, self.second = nn.Linear(width, CLASSES), nn.Linear(width, CLASSES)
        self.forwards = 0
        self.told: Tensor | None = None

    def heads(self, images: Tensor, observed: Tensor | None = None) -> tuple[Tensor, ...]:
        self.forwards, self.told = self.forwards + 1, observed
        embedding = self.encoder(images)
        return self.first(embedding), self.second(embedding)

    def places(self, layer: str) -> tuple[str, ...]:
        return (f"encoder.{layer}",)

    def head_places(self) -> tuple[str, ...]:
        return ("first", "second")


def two_headed() -> CrossEntropy:
    return CrossEntropy(image_task(new_model=lambda _: TwoHeads()))


def test_the_answer_is_the_log_of_the_mean_softmax() -> None:
    first, second = torch.randn(5, 3), torch.randn(5, 3)
    wanted = ((first.softmax(1) + second.softmax(1)) / 2).log()
    torch.testing.assert_close(answer((first, second)), wanted)
    assert answer((first,)) is first


def test_a_task_calls_a_network_of_two_heads_as_any_other() -> None:
    host = two_headed()
    images = torch.randn(4, 1, SIZE, SIZE)
    host.eval()
    logits = host.task.call(host.target, images)
    first, second = host.heads(host.target, images)
    torch.testing.assert_close(logits, ((first.softmax(1) + second.softmax(1)) / 2).log())
    assert logits.shape == (4, CLASSES)


def test_a_plain_network_has_one_head() -> None:
    host = CrossEntropy(image_task())
    host.eval()
    images = torch.randn(4, 1, SIZE, SIZE)
    (logits,) = host.heads(host.target, images, torch.zeros(4, dtype=torch.int64))
    assert torch.equal(logits, host.task.call(host.target, images))
    assert torch.equal(host.over_heads((logits,), lambda x: x.sum(1)), logits.sum(1))


def square(logits: Tensor) -> Tensor:
    return logits.square().sum(1)


class OneLoss(CrossEntropy):
    one_loss = True


@pytest.mark.parametrize(("method", "of"), [(CrossEntropy, "losses"), (OneLoss, "logits")])
def test_a_loss_over_heads(method: Callable[..., Host], of: str) -> None:
    host = method(image_task())
    a, b = torch.randn(5, 3), torch.randn(5, 3)
    wanted = (square(a) + square(b)) / 2 if of == "losses" else square((a + b) / 2)
    torch.testing.assert_close(host.over_heads((a, b), square), wanted)


def test_a_step_is_one_forward_whose_loss_reaches_both_heads() -> None:
    host = two_headed()
    target = host.target
    assert isinstance(target, TwoHeads)
    batch = next(iter(host.task.loader(Pass(), (0, 0, 0)).batches()))
    target.forwards = 0
    (update,) = host.step(host.stages()[0], batch, Clock(0, 4, 0, 1))
    assert target.forwards == 1
    assert target.told is batch.label
    update.reduce().backward()
    assert all(p.grad is not None and p.grad.any() for p in (target.first.weight, target.second.weight))
    host.zero_grad()
    first, second = host.heads(target, batch.inputs)
    wanted = (classification_loss(first, batch.label) + classification_loss(second, batch.label)) / 2
    torch.testing.assert_close(update.loss, wanted)


def test_layers_are_found_in_plain_and_in_composed_networks() -> None:
    plain, composed = network(), TwoHeads()
    assert layer_places(plain, "0", "late") == ("0",)
    assert layer_places(composed, "0", "late") == ("encoder.0",)
    assert head_places(plain, CLASSES, "last") == ("6",)
    assert head_places(composed, CLASSES, "last") == ("first", "second")
    with pytest.raises(UserError, match=r"layer \(option 'late'\)"):
        layer_places(composed, "layer9", "late")
    with pytest.raises(UserError, match=r"no nn\.Linear with 7 outputs.*option 'last'"):
        head_places(plain, 7, "last")
