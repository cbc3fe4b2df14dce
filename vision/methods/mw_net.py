"""MW-Net: a small network reads an example's loss and says its weight; a clean set teaches it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recdenoise import objectives
from recdenoise.denoisers.base import Clock, Denoiser, DenoiserConfig, Optim, Stage, Update
from recdenoise.errors import UserError
from recdenoise.options import require
from recdenoise.schedules import Schedule
from recdenoise.task import Batch, ClassTask, Pass, Task


@dataclass(frozen=True)
class MWNetConfig(DenoiserConfig):
    """Options of MW-Net. The paper: ResNet-32 or WRN-28-10, SGD 0.1, batch 100, decay 5e-4, 1000 clean images."""

    hidden: int = 100
    """Hidden units of the weight network 1-hidden-1."""

    weight_lr: float = 1e-3
    """Adam's learning rate for the weight network; it follows no schedule."""

    weight_decay: float = 1e-4
    """Weight decay of the weight network."""

    clean_batch: int | None = None
    """Clean images in a step; null takes the run's batch size."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.hidden >= 1, "hidden", self.hidden, "1 or more")
        require(self.weight_lr > 0, "weight_lr", self.weight_lr, "above 0")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "zero or more")
        if self.clean_batch is not None:
            require(self.clean_batch >= 1, "clean_batch", self.clean_batch, "1 or more")


class WeightNet(nn.Module):
    """``(n,)`` losses to ``(n,)`` weights in (0, 1): Linear, ReLU, Linear, sigmoid."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(1, hidden), nn.Linear(hidden, 1)

    def forward(self, loss: Tensor) -> Tensor:
        out = self.last(torch.relu(self.first(loss.unsqueeze(1)))).squeeze(1)
        return torch.sigmoid(out.to(torch.promote_types(out.dtype, torch.float32)))


class MWNet(Denoiser):
    """Meta-Weight-Net (Algorithm 1).

    A step looks one plain gradient step of the classifier ahead, ``w - lr grad mean V(l_i) l_i``, moves the
    weight network V down the gradient of the clean loss there, then the classifier with the new weights.
    """

    name = "mw_net"
    title = "MW-Net"
    summary = "learns a weight from each loss, on a clean set"
    distributed = True
    paper = "Shu et al., Meta-Weight-Net: Learning an Explicit Mapping For Sample Weighting, NeurIPS 2019"
    Config = MWNetConfig
    neutral = None
    neutral_reason = "every weight is a sigmoid, below 1, and is learned"
    needs = ("clean",)

    def build(self, task: Task) -> None:
        if not isinstance(task, ClassTask):
            raise UserError("MW-Net needs a clean set of images to look ahead on; it is for labels of classes.")
        self.target = task.new_target(0)
        self.weigher = task.new_module(lambda: WeightNet(self.config.hidden), "weigher")

    def stages(self) -> list[Stage]:
        return [Stage(train=("target", "weigher"))]

    def optimizers(self, stage: Stage) -> dict[str, Optim]:
        options = self.config
        weigher = Optim(
            {"weigher": 0.0},
            algorithm="adam",
            lr=options.weight_lr,
            weight_decay=options.weight_decay,
            schedule=Schedule(),
        )
        return {"target": Optim({"target": options.l2}), "weigher": weigher}

    def passes(self, stage: Stage, epoch: int) -> list[Pass]:
        return [Pass(streams={"clean": Pass(source="clean", batch_size=self.config.clean_batch)})]

    def clean_slope(self, loss: Tensor, weight: Tensor, rate: float, clean: Batch) -> tuple[Tensor, Tensor]:
        """How the clean loss one step ahead changes with each example's weight.

        Args:
            loss: ``(n,)`` losses, whose graph reaches the classifier.
            weight: ``(n,)`` weights.
            rate: learning rate of the step ahead.
            clean: clean images and labels.

        Returns:
            the derivatives ``(n,)`` and the mean clean loss there, both without gradient.
        """
        assert isinstance(self.task, ClassTask)
        own = {name: p for name, p in self.target.named_parameters() if p.requires_grad}
        weight = weight.detach().requires_grad_()
        moves = torch.autograd.grad((weight * loss).mean(), list(own.values()), create_graph=True, allow_unused=True)
        moved = {name: move for name, move in zip(own, moves, strict=True) if move is not None}
        step = self.parallel.mean(list(moved.values()))  # of the whole batch, as the classifier's own step will be
        ahead = {name: own[name].detach() - rate * g for name, g in zip(moved, step, strict=True)}
        # The look ahead must leave no trace in the statistics of the classifier's norm layers.
        statistics = {name: buffer.clone() for name, buffer in self.target.named_buffers()}
        logits = self.task.call_with(self.target, {**ahead, **statistics}, clean.inputs)
        clean_loss = objectives.classification_loss(logits, clean.label).mean()
        (slope,) = torch.autograd.grad(clean_loss, weight)
        return slope, clean_loss.detach()

    def step(self, stage: Stage, batch: Batch, clock: Clock) -> Iterator[Update]:
        assert isinstance(self.task, ClassTask)
        # Not through task.call: compiled networks have no second derivative.
        logits = self.task.call_with(self.target, dict(self.target.named_parameters()), batch.inputs)
        loss = objectives.classification_loss(logits, batch.label)
        weight = self.task.call(self.weigher, loss.detach())
        slope, clean_loss = self.clean_slope(loss, weight, clock.rates["target"], batch.streams["clean"])
        # Its value is the clean loss; its gradient is that loss's, by the chain rule through the weights.
        ahead = clean_loss + len(loss) * slope * (weight - weight.detach())
        yield Update(ahead, batch.groups, optimizer="weigher", logs={"clean_loss": clean_loss})
        with torch.no_grad():
            weight = self.task.call(self.weigher, loss.detach())
        yield Update(loss, batch.groups, weight, logs={"weight": weight.mean()})
