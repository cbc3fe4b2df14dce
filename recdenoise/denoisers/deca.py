"""DeCA: two models that fit different noise are asked to agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from recdenoise import objectives
from recdenoise.denoisers.base import Clock, Denoiser, DenoiserConfig, Losses, Stage
from recdenoise.options import require
from recdenoise.task import Batch, Task

PAPER = "Wang et al., Label Denoising through Cross-Model Agreement, TORS 2023"


@dataclass(frozen=True)
class CrossModelConfig(DenoiserConfig):
    """Options that DeCA and DeCA(p) share."""

    c_1: float = 1000.0
    """Stands for -log P(y~ = 0 | y = 1) in DP steps: how sure we are that negatives are negative."""

    c_2: float = 10.0
    """Stands for -log P(y~ = 1 | y = 0) in DN steps: how sure we are that positives are positive."""

    alpha: float = 0.5
    """Weight of KL(g || f) against KL(f || g)."""

    subtask: Literal["both", "dp", "dn"] = "both"
    """``both`` alternates steps that denoise positives and negatives; ``dp`` and ``dn`` keep to one (Table 5)."""

    h_model: Literal["mf", "gmf", "neumf"] = "mf"
    """Network for h = P(y~ = 1 | y = 0) and h' = P(y~ = 1 | y = 1) (Table 6)."""

    kl_order: Literal["eq9", "eq13"] = "eq9"
    """``eq9``: alpha weighs KL(g || f) in both methods, as the public code has it; ``eq13`` prints the other order."""

    iterative: bool = True
    """With ``compat: paper_code``: False takes the published code's third branch in every step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.c_1 >= 0, "c_1", self.c_1, "zero or more")
        require(self.c_2 >= 0, "c_2", self.c_2, "zero or more")
        require(0 <= self.alpha <= 1, "alpha", self.alpha, "from 0 to 1")
        require(
            self.iterative or self.compat == "paper_code",
            "iterative",
            self.iterative,
            "true unless compat is paper_code (only the published code has a non-iterative branch)",
        )


@dataclass(frozen=True)
class DeCAConfig(CrossModelConfig):
    """Options of DeCA."""

    auxiliary: str = "mf"
    """Model that is trained jointly and asked to agree: mf, or any model the backend knows by name."""


class CrossModel(Denoiser):
    """The step that DeCA and DeCA(p) share (Algorithms 1 and 2): -E + agreement, with DP and DN taking turns."""

    Config = CrossModelConfig
    neutral = None
    loss_selector_note = (
        "its probabilities move to the extremes as it learns, so the validation loss is lowest in the first epochs; "
        "choose by a ranking metric such as valid_selector: ndcg@20, or keep the last epoch"
    )
    neutral_reason = "the loss has no cross-entropy with the observed label: h and h' explain it"

    def build(self, task: Task) -> None:
        self.target = task.new_target(0)
        self.h = task.new_auxiliary(self.config.h_model, 100)
        self.h_prime = task.new_auxiliary(self.config.h_model, 101)

    def other_logits(self, inputs: Any) -> Tensor:
        """Logits of the model that the target is asked to agree with."""
        return self.task.call(self.module("auxiliary"), inputs)

    def denoises_positives(self, step: int) -> bool:
        """Whether ``step`` is a DP step: even ones are, unless ``subtask`` says otherwise."""
        return self.config.subtask == "dp" or (self.config.subtask == "both" and step % 2 == 0)

    def losses(self, batch: Batch, clock: Clock) -> Losses:
        if self.config.compat == "paper_code":
            return self.paper_code_losses(batch, clock)
        target = self.task.call(self.target, batch.inputs)
        other = self.other_logits(batch.inputs)
        if self.denoises_positives(clock.step):
            h = self.task.call(self.h, batch.inputs)
            fit = objectives.denoise_positives(target, h, batch.label, self.config.c_1)
        else:
            h_prime = self.task.call(self.h_prime, batch.inputs)
            fit = objectives.denoise_negatives(target, h_prime, batch.label, self.config.c_2)
        return Losses(fit + objectives.agreement(target, other, self.kl_weight))

    @property
    def kl_weight(self) -> float:
        """Weight of KL(other || target)."""
        return self.config.alpha if self.config.kl_order == "eq9" else 1.0 - self.config.alpha

    def paper_code_losses(self, batch: Batch, clock: Clock) -> Losses:
        """The published code's step: log(x + 1e-5), and a third branch at step 0 or where ``iterative`` is off."""
        target = self.task.call(self.target, batch.inputs)
        branch = {"dp": "dp", "dn": "dn"}.get(self.config.subtask, "dp" if clock.step % 2 == 1 else "dn")
        if self.config.subtask == "both" and (clock.step == 0 or not self.config.iterative):
            branch = "mixed"
        h = target if branch == "dn" else self.task.call(self.h, batch.inputs)  # the branch does not read the other h
        h_prime = target if branch == "dp" else self.task.call(self.h_prime, batch.inputs)
        c = self.config.c_1 if branch == "dp" else self.config.c_2
        fit = objectives.paper_code_denoise(target, h, h_prime, batch.label, branch, c)
        other = self.other_logits(batch.inputs)
        return Losses(fit + objectives.paper_code_agreement(target, other, self.kl_weight))


class DeCA(CrossModel):
    """Denoising with cross-model agreement (Eq. 9, 10, 22): the auxiliary model is trained jointly (Algorithm 1)."""

    name = "deca"
    title = "DeCA"
    summary = "agreement with a jointly trained auxiliary model"
    paper = PAPER
    Config = DeCAConfig

    def build(self, task: Task) -> None:
        super().build(task)
        self.auxiliary = task.new_auxiliary(self.config.auxiliary, 102)

    def stages(self) -> list[Stage]:
        return [Stage(train=("target", "auxiliary", "h", "h_prime"))]

    def clean_probability(self) -> Tensor:
        """Eq. 25."""

        def posterior(inputs: Any) -> Tensor:
            logits = [self.task.call(m, inputs) for m in (self.target, self.h, self.h_prime)]
            return objectives.true_positive_posterior(*logits)

        return self.task.scan(posterior)
