"""MAE: the mean absolute error between the one-hot label and the predicted probabilities."""

from __future__ import annotations

from recdenoise import objectives
from recdenoise.denoisers.base import Clock, Denoiser, Losses
from recdenoise.task import Batch


class MAE(Denoiser):
    """``2 (1 - p_y)``: a symmetric loss, whose minimiser symmetric noise below 1 - 1/C does not move (Theorem 1)."""

    name = "mae"
    title = "MAE"
    summary = "a bounded, symmetric loss in place of cross-entropy"
    distributed = True
    paper = "Ghosh, Kumar and Sastry, Robust Loss Functions under Label Noise for Deep Neural Networks, AAAI 2017"
    neutral = None
    neutral_reason = "it has no option, and its gradient is that of cross-entropy times the label's probability"

    def losses(self, batch: Batch, clock: Clock) -> Losses:
        logits = self.task.call(self.target, batch.inputs)
        return Losses(objectives.mean_absolute_error(logits, batch.label), batch.weight)
