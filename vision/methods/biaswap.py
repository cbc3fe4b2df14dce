"""BiaSwap: images of the many that go along with the bias get the bias of the few that do not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recdenoise import objectives
from recdenoise.denoisers.base import Clock, Denoiser, DenoiserConfig, Optim, Stage, Update
from recdenoise.errors import TrainingError, UserError
from recdenoise.options import require
from recdenoise.schedules import Schedule
from recdenoise.task import Batch, Pass, Task
from vision.bias_views import split_quality
from vision.data.bias import BIAS, aligned
from vision.methods.activation_map import activation_maps, last_map, places
from vision.methods.swapping_autoencoder import Discriminator, PatchDiscriminator, SwappingAutoencoder, crop
from vision.task import ImageTask


@dataclass(frozen=True)
class BiaSwapConfig(DenoiserConfig):
    """Options of BiaSwap. There is no public code; what the paper leaves open is the swapping autoencoder's."""

    q: float = 0.7
    """Exponent of the biased network's generalised cross-entropy."""

    biased_epochs: int | None = None
    """Epochs of the biased network; null takes the run's."""

    swap_epochs: int | None = None
    """Epochs of the swapping autoencoder; null takes the run's."""

    cam_class: Literal["predicted", "label"] = "predicted"
    """Whose activation map patches are drawn by: that of the class which the biased network sees in the image, or the
    observed label's, which an image that conflicts with the bias hardly shows."""

    lambda_swap: float = 1.0
    """Weight of the classifier's loss on swapped images; at 0 there are none, and nothing is trained to make them."""

    lambda_content: float = 1.0
    """Weight of the squared error of rebuilt images, a mean over pixels and channels."""

    lambda_rebuilt: float = 0.5
    """Weight of the discriminator's say on rebuilt images."""

    lambda_swapped: float = 0.5
    """Weight of the discriminator's say on swapped images."""

    lambda_style: float = 1.0
    """Weight of the patch discriminator's say on swapped images."""

    r1: float = 10.0
    """Penalty ``r1 / 2 ||grad D||^2`` on real images."""

    patch_r1: float = 1.0
    """The same of the patch discriminator."""

    r1_every: int = 16
    """Steps between two penalties, which then count so many times."""

    patches: int = 8
    """Patches cut from an image."""

    patch_smallest: float = 0.125
    """Least side of a patch as a share of the image's."""

    patch_largest: float = 0.25
    """Largest side."""

    width: int = 32
    """Channels after the first convolution of every part of the autoencoder."""

    structure: int = 8
    """Channels of the structure code."""

    texture: int = 128
    """Length of the texture code."""

    down: int = 2
    """Times that the structure code's height and width are halved; the original's 4 are for 256 pixels."""

    gan_lr: float = 2e-3
    """Adam's learning rate of the autoencoder and both discriminators; it follows no schedule."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.q <= 1, "q", self.q, "from 0 to 1")
        for name in (n for n in self.__dataclass_fields__ if n.startswith("lambda_") or n in ("r1", "patch_r1")):
            require(getattr(self, name) >= 0, name, getattr(self, name), "zero or more")
        for name in ("biased_epochs", "swap_epochs"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "1 or more, or null")
        for name in ("r1_every", "patches", "width", "structure", "texture"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        require(self.down >= 0, "down", self.down, "zero or more")
        require(0 < self.patch_smallest <= 1, "patch_smallest", self.patch_smallest, "above 0 and at most 1")
        least = self.patch_smallest
        require(least <= self.patch_largest <= 1, "patch_largest", self.patch_largest, f"from {least} to 1")
        require(self.gan_lr > 0, "gan_lr", self.gan_lr, "above 0")


def bias_score(logits: Tensor, label: Tensor) -> Tensor:
    """``|1[the prediction is the label] - confidence|`` of ``(n, C)`` logits; small where bias leads to the label."""
    confidence, predicted = torch.softmax(logits, 1).max(1)
    return ((predicted == label).to(confidence.dtype) - confidence).abs()


class BiaSwap(Denoiser):
    """Three stages: a biased network by GCE, which splits the rows at its mean score; a swapping autoencoder, whose
    patch discriminator looks where the biased network looks; a classifier on real and on swapped images.

    A swapped image has the structure of a bias-aligned image and the texture of a bias-conflicting one, and the label
    of the first.
    """

    name = "biaswap"
    title = "BiaSwap"
    summary = "gives images the bias of others by a swapping autoencoder"
    distributed = True
    paper = "Kim et al., BiaSwap: Removing Dataset Bias with Bias-Tailored Swapping Augmentation, ICCV 2021"
    Config = BiaSwapConfig
    neutral: ClassVar[dict[str, Any] | None] = None
    neutral_reason = "the classifier sees images that no data set holds"
    brief: ClassVar[dict[str, Any]] = {
        "biased_epochs": 2,
        "swap_epochs": 1,
        "width": 4,
        "texture": 8,
        "down": 1,
        "patches": 2,
        "patch_largest": 0.6,
        "r1_every": 2,
    }
    task: ImageTask

    def build(self, task: Task) -> None:
        if not isinstance(task, ImageTask):
            raise UserError("BiaSwap makes images; it is for labels of classes.")
        options = self.config
        channels, height, width = (int(side) for side in task.source("train").images.shape[1:])
        codes = (options.width, options.structure, options.texture, options.down)
        self.target = task.new_target(0)
        self.biased = task.new_target(1)
        if self.swaps:
            self.autoencoder = task.new_module(
                lambda: SwappingAutoencoder((height, width), channels, *codes), "autoencoder"
            )
            self.discriminator = task.new_module(
                lambda: Discriminator(channels, options.width, options.down), "discriminator"
            )
            self.patch_discriminator = task.new_module(lambda: PatchDiscriminator(channels, options.width), "patches")
        self.pixels = max(4, round(options.patch_largest * min(height, width)))
        self.scores: Tensor
        self.conflicting: Tensor
        self.register_buffer("scores", torch.zeros(task.n_rows, device=task.device))
        self.register_buffer("conflicting", torch.zeros(task.n_rows, dtype=torch.bool, device=task.device))
        self._map: tuple[str | None] | None = None

    @property
    def swaps(self) -> bool:
        """Whether the classifier sees swapped images."""
        return self.config.lambda_swap > 0

    def stages(self) -> list[Stage]:
        options, networks = self.config, ("autoencoder", "discriminator", "patch_discriminator")
        biased = Stage("biased", ("biased",), "biased", selector="last", epochs=options.biased_epochs)
        swap = Stage("swap", networks, "biased", selector="last", epochs=options.swap_epochs)
        return [biased, swap, Stage()] if self.swaps else [biased, Stage()]

    def optimizers(self, stage: Stage) -> dict[str, Optim]:
        if stage.name == "biased":
            return {"target": Optim({"biased": 0.0})}
        if stage.name == "train":
            return super().optimizers(stage)
        shared: dict[str, Any] = {"algorithm": "adam", "lr": self.config.gan_lr, "weight_decay": 0.0}
        return {name: Optim({name: 0.0}, schedule=Schedule(), **shared) for name in stage.train}

    def begin_stage(self, stage: Stage) -> None:
        if stage.name != ("swap" if self.swaps else "train"):
            return
        logits = self.task.scan(lambda inputs: self.task.call(self.biased, inputs))
        self.scores.copy_(bias_score(logits, self.task.labels))
        self.conflicting.copy_(self.scores > self.scores.mean())
        if self.conflicting.all() or not self.conflicting.any():  # equal scores may lie above their rounded mean
            raise TrainingError(
                "The biased network gives every training image the same score, so nothing is aligned or conflicting: "
                "train it longer (biased_epochs), or with another learning rate."
            )

    def passes(self, stage: Stage, epoch: int) -> list[Pass]:
        if stage.name == "biased" or not self.swaps:
            return [Pass()]
        rows = {"aligned": self._whole_batches(~self.conflicting), "contrary": self._whole_batches(self.conflicting)}
        if stage.name == "swap":
            return [Pass(rows=rows["aligned"], streams={"contrary": Pass(rows=rows["contrary"])})]
        return [Pass(streams={name: Pass(rows=some) for name, some in rows.items()})]

    def _whole_batches(self, chosen: Tensor) -> Tensor:
        """Rows that are ``chosen``; fewer than a batch are repeated, so that every batch has the same size."""
        rows, size = chosen.nonzero().squeeze(1), self.task.batch_size
        return rows if len(rows) >= size else rows.repeat(-(-size // len(rows)))

    def step(self, stage: Stage, batch: Batch, clock: Clock) -> Iterator[Update]:
        if stage.name == "biased":
            logits = self.task.call(self.biased, batch.inputs)
            yield Update(objectives.generalized_cross_entropy(logits, batch.label, self.config.q), batch.groups)
        elif stage.name == "swap":
            yield from self._learn_to_swap(batch, clock)
        elif self.swaps:
            yield self._debiased(batch)
        else:
            logits = self.task.call(self.target, batch.inputs)
            yield Update(objectives.classification_loss(logits, batch.label), batch.groups)

    def _debiased(self, batch: Batch) -> Update:
        content, style = batch.streams["aligned"], batch.streams["contrary"]
        with torch.no_grad():
            swapped = self.task.call(self.autoencoder, (content.inputs, style.inputs, False))
        logits = self.task.call(self.target, torch.cat([batch.inputs, swapped.to(batch.inputs.dtype)]))
        loss = objectives.classification_loss(logits, torch.cat([batch.label, content.label]))
        real, made = loss.split([len(batch.label), len(content.label)])
        logs = {"swapped_loss": made.mean()}
        return Update(torch.cat([real, self.config.lambda_swap * made]), (len(real), len(made)), logs=logs)

    # The swapping autoencoder

    def _learn_to_swap(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """Both discriminators against what the autoencoder makes, then the autoencoder against both."""
        options, style = self.config, batch.streams["contrary"]
        n, real = len(batch.label), torch.cat([batch.inputs, style.inputs])
        penalised = clock.step % options.r1_every == 0
        made = self.task.call(self.autoencoder, (batch.inputs, style.inputs, True)).to(real.dtype)
        kept = made.detach()
        yield self._discriminate(real, kept, n, options.r1 if penalised else 0.0)
        swapped = self.patches(kept[2 * n :], batch.label)
        references, candidates = (self.patches(style.inputs, style.label) for _ in range(2))
        yield self._discriminate_patches(candidates, swapped, references, options.patch_r1 if penalised else 0.0)
        self.discriminator.requires_grad_(False)
        self.patch_discriminator.requires_grad_(False)
        error = (made[: 2 * n] - real).square().flatten(1).mean(1)
        fooled = F.softplus(-self.task.call(self.discriminator, made).squeeze(1))
        cut = self.patches(made[2 * n :], batch.label)
        alike = F.softplus(-self.task.call(self.patch_discriminator, torch.cat([cut, references], 1))).mean(1)
        self.discriminator.requires_grad_(True)
        self.patch_discriminator.requires_grad_(True)
        rebuilt = options.lambda_content * error + options.lambda_rebuilt * fooled[: 2 * n]
        swaps = options.lambda_swapped * fooled[2 * n :] + options.lambda_style * alike
        logs = {"content": error.mean(), "style": alike.mean(), "realistic": fooled.mean()}
        yield Update(torch.cat([rebuilt, swaps]), (2 * n, n), optimizer="autoencoder", logs=logs)

    def _discriminate(self, real: Tensor, made: Tensor, n: int, strength: float) -> Update:
        options = self.config
        say, penalty = self._penalised(self.discriminator, real, strength)
        genuine = F.softplus(-say.squeeze(1)) + penalty
        false = F.softplus(self.task.call(self.discriminator, made).squeeze(1))
        losses = [genuine, options.lambda_rebuilt * false[: 2 * n], options.lambda_swapped * false[2 * n :]]
        logs = {"discriminator": (genuine - penalty).mean() + false.mean()}
        return Update(torch.cat(losses), (len(real), 2 * n, n), optimizer="discriminator", logs=logs)

    def _discriminate_patches(self, real: Tensor, swapped: Tensor, references: Tensor, strength: float) -> Update:
        say, penalty = self._penalised(self.patch_discriminator, torch.cat([real, references], 1), strength)
        genuine = F.softplus(-say).mean(1)
        false = F.softplus(self.task.call(self.patch_discriminator, torch.cat([swapped, references], 1))).mean(1)
        logs = {"patch_discriminator": (genuine + false).mean()}
        return Update(genuine + false + penalty, (len(real),), optimizer="patch_discriminator", logs=logs)

    def _penalised(self, module: nn.Module, inputs: Tensor, strength: float) -> tuple[Tensor, Tensor]:
        """A discriminator's logits, and ``strength / 2 ||grad||^2`` of every image, times the steps it stands for."""
        if strength == 0:
            return self.task.call(module, inputs), inputs.new_zeros(len(inputs))
        inputs = inputs.detach().requires_grad_()
        # Not through task.call: compiled networks have no second derivative.
        logits = self.task.call_with(module, dict(module.named_parameters()), inputs)
        (slope,) = torch.autograd.grad(logits.sum(), inputs, create_graph=True)
        return logits, self.config.r1_every * strength / 2 * slope.square().flatten(1).sum(1)

    def patches(self, images: Tensor, label: Tensor) -> Tensor:
        """``(n, k, C, p, p)`` patches of ``(n, C, H, W)`` images, drawn by the biased network's activation map."""
        options, seen = self.config, images.detach()
        if self._map is None:
            self._map = (last_map(self.biased, seen[:1]),)
        classes = label
        if options.cam_class == "predicted":
            with torch.no_grad():
                classes = self.task.call(self.biased, seen).argmax(1)
        maps = activation_maps(self.biased, self._map[0], seen, classes)
        n, k = len(images), options.patches
        whole = n * self.parallel.size
        draws = torch.rand(whole, k, 4)[self.parallel.share(whole)].to(maps)
        shares = options.patch_smallest + draws[..., 3] * (options.patch_largest - options.patch_smallest)
        return crop(images, places(maps, draws[..., :3]), shares, self.pixels)

    def findings(self) -> dict[str, Any]:
        """The split: how many rows are taken for conflicting, and, where the bias is known, how rightly."""
        split: dict[str, Any] = {"conflicting": float(self.conflicting.float().mean())}
        split["mean_score"] = float(self.scores.mean())
        train = self.task.source("train")
        if BIAS in train.attributes:
            split |= split_quality(self.conflicting, ~aligned(train).to(self.conflicting.device))
        return {"split": split}
