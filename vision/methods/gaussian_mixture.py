"""A mixture of two Gaussians on the losses of a training set: one for right labels, one for wrong ones.

Source: Li et al., *DivideMix* (ICLR 2020). scikit-learn fits it; what is kept are a few numbers, so that posteriors are
taken where the losses are.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from recdenoise.errors import TrainingError

SPREAD = 1e-6
"""Losses whose range is not wider than this, relative to the largest, are taken as equal."""


@dataclass(frozen=True)
class GaussianMixture:
    """A fitted mixture on losses that were mapped to [0, 1]; the first component has the smaller mean.

    Attributes:
        mean, variance, weight: ``(2,)`` float64. A weight of 0 stands for a component that is not there.
        low, high: the losses that were mapped to 0 and 1.
    """

    mean: Tensor
    variance: Tensor
    weight: Tensor
    low: float
    high: float

    def place(self, loss: Tensor) -> Tensor:
        """``(n,)`` losses on the mixture's scale, in float64."""
        return (loss.double() - self.low) / ((self.high - self.low) or 1.0)

    def small(self, loss: Tensor) -> Tensor:
        """``(n,)`` float64 posterior probabilities that a loss is of the component of small losses.

        A loss that is not finite has 0: nothing speaks for its label.
        """
        x = self.place(loss).unsqueeze(1)
        log_density = -0.5 * ((x - self.mean) ** 2 / self.variance + self.variance.log())
        posterior = torch.softmax(log_density + self.weight.log(), dim=1)[:, 0]
        return torch.where(loss.isfinite(), posterior, 0.0)


def normalised(loss: Tensor) -> Tensor:
    """``(n,)`` losses mapped to [0, 1] by the smallest and the largest finite one, in float64; zeros where equal."""
    low, high = _ends(loss)
    return (loss.double() - low) / ((high - low) or 1.0)


def fit(loss: Tensor, rounds: int = 10, tolerance: float = 1e-2, floor: float = 5e-4) -> GaussianMixture:
    """Fit the mixture by EM, from the means of a k-means clustering; the same losses give the same mixture.

    Losses that are all equal tell nothing apart: they are one population, and every posterior of small losses is 1.
    Losses that are not finite are left out.

    Args:
        loss: ``(n,)`` losses.
        rounds: of EM, at most.
        tolerance: EM stops where the mean log-likelihood rises by less.
        floor: added to the variances, on the scale where the losses are between 0 and 1.

    Raises:
        TrainingError: no loss is finite.
    """
    low, high = _ends(loss)
    if low == high:
        mean, variance, weight = torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0]]).double().to(loss.device)
        return GaussianMixture(mean, variance, weight, low, high)
    # Imported here: scikit-learn takes a second, and most methods need no mixture.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture as Estimator

    values = normalised(loss)[loss.isfinite()].cpu().numpy().reshape(-1, 1)
    estimator = Estimator(2, max_iter=rounds, tol=tolerance, reg_covar=floor, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # so few rounds are the method's
        estimator.fit(values)
    order = estimator.means_[:, 0].argsort()
    found = (estimator.means_[order, 0], estimator.covariances_[order, 0, 0], estimator.weights_[order])
    mean, variance, weight = (torch.from_numpy(value).to(loss.device) for value in found)
    return GaussianMixture(mean, variance, weight, low, high)


def _ends(loss: Tensor) -> tuple[float, float]:
    """The smallest and the largest finite loss; twice the smallest where they are as good as equal."""
    finite = loss[loss.isfinite()]
    if len(finite) == 0:
        raise TrainingError("No training loss is finite: a mixture cannot be fitted. A lower learning rate may help.")
    low, high = (float(value) for value in finite.aminmax())
    return (low, low) if high - low <= SPREAD * max(1.0, abs(high)) else (low, high)
