"""CIT: causal interventional training, an image's content before contexts that other images lend it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from recdenoise import objectives
from recdenoise.denoisers.base import Clock, Denoiser, DenoiserConfig, Losses, Optim, Stage
from recdenoise.errors import UserError, unknown_name
from recdenoise.options import require
from recdenoise.task import Batch, Call, Pass, Task
from vision import splitters
from vision.contexts import ContextSets, stratify_b, stratify_c_given_a
from vision.embedding import head_name
from vision.methods.cut_mix import draw_box, pasted
from vision.methods.mixup import draw_partners, draw_share, mixed
from vision.networks.double_branch import CONTENT, CONTEXT, DoubleBranch, high_blocks
from vision.task import ImageTask

SINGLE = ("baseline", "2x_baseline", "only_obj", "only_bg")
"""Settings of Table I with a network of one image."""
DOUBLE = ("obj_bg", "sal_img")
"""Settings of Table I that need two branches."""
DRAWN = ("cit", "obj_all_bg")
"""Settings of Table I that draw contexts."""


@dataclass(frozen=True)
class CITConfig(DenoiserConfig):
    """Options of CIT. The paper on ImageNet: double ResNet-34 or -50 from trained weights, ``train_blocks`` 2, 32
    epochs of SGD 1e-3 with Nesterov's momentum .9, times 0.1 at 16, batch 128, decay 1e-4. On framed CIFAR: one branch,
    160 epochs of SGD 0.1, times 0.1 at 80 and 120."""

    setting: Literal["cit", "baseline", "obj_bg", "sal_img", "2x_baseline", "only_obj", "only_bg", "obj_all_bg"] = "cit"
    """``cit``, or one of the comparisons of Table I."""

    contexts: Literal["stratify_c_given_a", "stratify_b"] = "stratify_c_given_a"
    """Which contexts an image gets: those of images with the same A, or one for each value of B by its P(b)."""

    prior: Literal["uniform", "observed"] | tuple[float, ...] = "uniform"
    """P(b) of ``stratify_b``: equal, the shares among the training images, or one number for each value from 0 on."""

    common_sense: str | None = None
    """What A is: an attribute of the images, ``class`` (the given label), or ``none`` (any image's context will do);
    null takes the attribute ``a`` where the images have it, else the class."""

    bias: str = "b"
    """What B is: an attribute of the images."""

    splitter: str | None = None
    """What parts content and context: ``saliency``, ``pattern`` (a frame), ``precomputed`` (masks on disk) or a
    registered function; null takes ``pattern`` for images that come with a frame, else ``saliency``."""

    frame: int | None = None
    """Width in pixels of the frame that is the context, for ``pattern``; null takes the one that the images have."""

    threshold: float | None = 0.5
    """Masks become 1 above it and 0 else; null keeps their shares."""

    fill: Literal["blank", "mean"] = "blank"
    """What stands where a part was taken out: the mean colour of the data, or of the pixels that are left."""

    branches: Literal["single", "double"] | None = None
    """One composed image into one network, or content and context into two branches; null takes what the setting needs,
    and one image for ``cit``."""

    train_blocks: int = 0
    """Residual blocks that train, the last ones of each branch, and the last layer with them; what is below keeps its
    weights and statistics. 0 trains everything."""

    own_term: bool = True
    """Whether the loss of the content in its own context is added (Eq. 12); false takes drawn contexts alone, as
    Algorithm 1 is printed."""

    mix: Literal["none", "mixup", "cutmix"] = "none"
    """What is done to the composed images."""

    mix_alpha: float = 1.0
    """Of the Beta(alpha, alpha) that shares of mixing are drawn from, one a batch."""

    mix_probability: float = 1.0
    """Share of the batches that are mixed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.frame is None or self.frame >= 1, "frame", self.frame, "1 or more, or null")
        share = self.threshold is None or 0 <= self.threshold < 1
        require(share, "threshold", self.threshold, "at least 0 and below 1, or null")
        require(self.train_blocks >= 0, "train_blocks", self.train_blocks, "zero or more")
        require(self.mix_alpha > 0, "mix_alpha", self.mix_alpha, "above 0")
        require(0 < self.mix_probability <= 1, "mix_probability", self.mix_probability, "above 0 and at most 1")
        read = self.contexts == "stratify_b" and self.setting == "cit"
        if self.prior != "uniform" and not read:
            raise UserError(
                f"Option 'prior' is {self.prior!r}, which only contexts: stratify_b with setting: cit reads; name it, "
                "or leave the prior out."
            )
        need = {**dict.fromkeys(SINGLE, "single"), **dict.fromkeys(DOUBLE, "double")}.get(self.setting)
        if need is not None and self.branches not in (None, need):
            raise UserError(f"Option 'branches' is {self.branches!r}; the setting {self.setting} needs {need} or null.")

    @property
    def double(self) -> bool:
        """Whether the network has two branches."""
        if self.branches is not None:
            return self.branches == "double"
        return self.setting in (*DOUBLE, "obj_all_bg")


class CIT(Denoiser):
    """``CE(f(x, c_j), y) + CE(f(x, c), y)`` (Eq. 12): x and c are an image's content and context, c_j another image's
    context, drawn anew each epoch from the context set of x. ``setting`` turns it into the comparisons of Table I."""

    name = "cit"
    title = "CIT"
    summary = "shows contents in front of contexts that other images lend them"
    distributed = True
    paper = "Qin et al., Causal Interventional Training for Image Recognition, IEEE Transactions on Multimedia 25, 2023"
    Config = CITConfig
    neutral: ClassVar[dict[str, Any] | None] = {"setting": "baseline"}
    brief: ClassVar[dict[str, Any]] = {"splitter": "pattern", "frame": 1}
    task: ImageTask

    def build(self, task: Task) -> None:
        if not isinstance(task, ImageTask):
            raise UserError("CIT is for images.")
        config = self.config
        channels, height, width = task.source("train").images.shape[1:]
        self.channels = int(channels)
        self._sets: ContextSets | None = None
        self._split(task, height, width)
        if config.double:
            content, size = task.new_backbone(0)
            context, _ = task.new_backbone(1)
            self.target = task.new_module(lambda: DoubleBranch(content, context, size, task.n_classes), "double branch")
        else:
            self.target = task.new_target(0)
        if config.setting in DRAWN:
            self.partner: Tensor
            self.register_buffer("partner", torch.arange(task.n_rows))
        self._parts = self._trained_parts()

    def _split(self, task: ImageTask, height: int, width: int) -> None:
        """Decide where masks come from: the buffer ``frame``, or the inputs' last channel."""
        config, own = self.config, getattr(task.augment, "frame", 0)
        name = config.splitter or ("pattern" if own else "saliency")
        self.framed = name == splitters.PATTERN
        self.frame: Tensor
        if self.framed:
            pixels = config.frame or own
            if not pixels:
                raise UserError(
                    "These images come with no frame: say how many pixels wide it is, for example frame: 4."
                )
            self.register_buffer("frame", splitters.frame(height, width, pixels), persistent=False)
            return
        plain = config.setting in ("baseline", "2x_baseline")
        task.isolate(name, training=not plain, scoring=config.double)

    def _trained_parts(self) -> tuple[str, ...]:
        count = self.config.train_blocks
        if not count:
            return ("target",)
        if isinstance(self.target, DoubleBranch):
            each = [(name, high_blocks(getattr(self.target, name), count)) for name in (CONTENT, CONTEXT)]
            return (*(f"target.{branch}.{block}" for branch, blocks in each for block in blocks), "target.fc")
        head = head_name(self.target, self.task.n_classes)
        if head is None:
            raise UserError(f"{type(self.target).__name__} has no last nn.Linear to train; take train_blocks: 0.")
        return (*(f"target.{block}" for block in high_blocks(self.target, count)), f"target.{head}")

    def stages(self) -> list[Stage]:
        return [Stage(train=self._parts)]

    def optimizers(self, stage: Stage) -> dict[str, Optim]:
        return {"target": Optim(dict.fromkeys(stage.train, self.config.l2), lr=stage.lr)}

    # Contexts

    def context_sets(self) -> ContextSets:
        """The context sets of the training images (Algorithm 1, step 2).

        Raises:
            UserError: an attribute that the images lack, or nothing but images that are alone with their A.
        """
        a = self._attribute("A", self._common_sense())
        if self.config.setting == "obj_all_bg" or self.config.contexts == "stratify_c_given_a":
            sets = stratify_c_given_a(a)
        else:
            sets = stratify_b(a, self._attribute("B", self.config.bias), self.config.prior)
        if int(sets.sizes.max()) < 2:
            raise UserError(
                "Every training image is alone with its A, so that none can lend another its context: take "
                "common_sense: class, or none."
            )
        return sets

    def _common_sense(self) -> str:
        if self.config.setting == "obj_all_bg":
            return "none"
        attributes = getattr(self.task.source("train"), "attributes", {})
        return self.config.common_sense or ("a" if "a" in attributes else "class")

    def _attribute(self, role: str, name: str) -> Tensor:
        if name == "class":
            return self.task.labels
        if name == "none":
            return torch.zeros_like(self.task.labels)
        attributes = getattr(self.task.source("train"), "attributes", {})
        if name not in attributes:
            known = [*attributes, "class", "none"]
            raise unknown_name(f"attribute for {role} (of the training images):", name, known)
        return attributes[name].to(self.task.labels.device)

    def begin_epoch(self, stage: Stage, epoch: int) -> None:
        if self.config.setting in DRAWN:
            self._sets = self._sets or self.context_sets()
            self.partner.copy_(self._sets.draw())

    def passes(self, stage: Stage, epoch: int) -> list[Pass]:
        if self.config.setting in DRAWN:
            return [Pass(streams={"context": Pass(rows=self.partner, paired=True)})]
        return [Pass(), Pass()] if self.config.setting == "2x_baseline" else [Pass()]

    # Images

    def _masked(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Images, and the masks of their contents, not cut at the threshold."""
        if self.framed:
            return inputs, self.frame
        return inputs[:, : self.channels], inputs[:, self.channels :]

    def _cut(self, masks: Tensor) -> Tensor:
        level = self.config.threshold
        return masks if self.framed or level is None else (masks > level).to(masks.dtype)

    def _split_images(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        images, masks = self._masked(inputs)
        return splitters.split(images, self._cut(masks), self.config.fill)

    def _observed(self, inputs: Tensor) -> Tensor:
        """What the network sees of images as they are: themselves, or two parts of them."""
        if not self.config.double:
            return inputs[:, : self.channels]
        images, masks = self._masked(inputs)
        if self.config.setting == "sal_img":
            return torch.cat([images, (2 * masks - 1).expand_as(images)], 1)
        return torch.cat(splitters.split(images, self._cut(masks), self.config.fill), 1)

    def _intervened(self, inputs: Tensor, lent: Tensor) -> Tensor:
        """What the network sees of contents in the contexts of other images."""
        images, masks = self._masked(inputs)
        masks = self._cut(masks)
        if self.config.double:
            content = splitters.split(images, masks, self.config.fill)[0]
            return torch.cat([content, self._split_images(lent)[1]], 1)
        # A frame covers the lender's content; an object of another shape does not, and leaves a hole.
        context = lent if self.framed else self._split_images(lent)[1]
        return splitters.paste(images, context, masks)

    def views(self, batch: Batch) -> list[Tensor]:
        """The network's inputs of a step, one ``(n, ...)`` for each term of the loss, the intervened one first."""
        setting = self.config.setting
        if setting == "only_obj":
            return [self._split_images(batch.inputs)[0]]
        if setting == "only_bg":
            return [self._split_images(batch.inputs)[1]]
        if setting not in DRAWN:
            return [self._observed(batch.inputs)]
        drawn = self._intervened(batch.inputs, batch.streams["context"].inputs)
        return [drawn, self._observed(batch.inputs)] if self.config.own_term else [drawn]

    # Loss

    def losses(self, batch: Batch, clock: Clock) -> Losses:
        views, share, partners = self.views(batch), 1.0, None
        if self.config.mix != "none" and float(torch.rand(())) < self.config.mix_probability:
            views, share, partners = self._mix(views)
        logits = self.task.call(self.target, torch.cat(views)).chunk(len(views))
        terms = [objectives.classification_loss(each, batch.label) for each in logits]
        if partners is not None:
            other = self.parallel.gather(batch.label).index_select(0, partners)
            others = [objectives.classification_loss(each, other) for each in logits]
            terms = [share * mine + (1.0 - share) * their for mine, their in zip(terms, others, strict=True)]
        names = ("loss_drawn", "loss_own") if len(terms) == 2 else ()
        logs = {name: term.detach().mean() for name, term in zip(names, terms, strict=False)}
        return Losses(torch.stack(terms).sum(0), batch.weight, logs)

    def _mix(self, views: list[Tensor]) -> tuple[list[Tensor], float, Tensor]:
        """mixup or CutMix of every term's inputs with the same partners and share."""
        share = draw_share(self.config.mix_alpha)
        partners = draw_partners(len(views[0]), self.parallel).to(views[0].device)
        if self.config.mix == "mixup":
            return [mixed(view, partners, share, self.parallel) for view in views], share, partners
        box = draw_box(views[0].shape[2], views[0].shape[3], share)
        return [pasted(view, partners, box, self.parallel) for view in views], box.share, partners

    # Answers

    def score(self, inputs: Any) -> Tensor:
        return self.task.call(self.target, self._observed(inputs))

    def watched_score(self, stage: Stage) -> Call:
        return self.score

    def partial_scores(self) -> dict[str, Call]:
        """Answers to a part of every image: ``object_only`` and ``background_only`` (Table II)."""
        if self.config.setting == "sal_img":
            return {}
        return {"object_only": self._score_object, "background_only": self._score_background}

    def _score_object(self, inputs: Any) -> Tensor:
        content, _ = self._split_images(inputs)
        return self._score_parts(content, None)

    def _score_background(self, inputs: Any) -> Tensor:
        _, context = self._split_images(inputs)
        return self._score_parts(None, context)

    def _score_parts(self, content: Tensor | None, context: Tensor | None) -> Tensor:
        """The logits of one part; the other branch sees a blank image."""
        part = content if content is not None else context
        assert part is not None
        if not self.config.double:
            return self.task.call(self.target, part)
        blank = torch.zeros_like(part)
        pair = (blank if content is None else content, blank if context is None else context)
        return self.task.call(self.target, torch.cat(pair, 1))
