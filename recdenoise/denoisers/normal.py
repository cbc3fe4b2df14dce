"""Plain training: every observed label is believed."""

from __future__ import annotations

from recdenoise.denoisers.base import Denoiser


class Normal(Denoiser):
    """Mean cross-entropy over the positives plus mean cross-entropy over the negatives, plus L2."""

    name = "normal"
    title = "Normal"
    summary = "plain cross-entropy on the observed labels"
    distributed = True
    paper = "He et al., Neural Collaborative Filtering, WWW 2017"
