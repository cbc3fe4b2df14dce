"""The scikit-learn face: ``NoisyLabelClassifier(...).fit(X, y).predict(X)``. scikit-learn itself is not imported."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from recdenoise.errors import UserError, unknown_name

if TYPE_CHECKING:
    from vision.models import Model


class NoisyLabelClassifier:
    """A classifier that follows scikit-learn's conventions: ``clone``, pipelines and searches work on it.

    Args:
        model: as :func:`vision.fit` takes it.
        method: name of the method.
        method_options: options of the method.
        valid: share of the training images that choose the epoch.
        seed: everything random follows from it.
        options: further options of :func:`vision.fit`, such as ``{"epochs": 30}``.

    Attributes:
        classes_: ``(C,)`` labels as they were given to :meth:`fit`, sorted.
        result_: the :class:`vision.FitResult`.
        clean_probability_: ``(N,)`` P(the given label is right), in the order of :meth:`fit`'s rows.
    """

    _estimator_type = "classifier"

    def __init__(
        self,
        model: Model = "resnet20",
        *,
        method: str = "deca_p",
        method_options: Mapping[str, Any] | None = None,
        valid: float = 0.2,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.method, self.method_options = model, method, method_options
        self.valid, self.seed, self.options = valid, seed, options

    @classmethod
    def _names(cls) -> list[str]:
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name, as they were given."""
        return {name: getattr(self, name) for name in self._names()}

    def set_params(self, **params: Any) -> NoisyLabelClassifier:
        """Change parameters; returns itself. Raises ``UserError`` for a name that is none."""
        for name, value in params.items():
            if name not in self._names():
                raise unknown_name("parameter", name, self._names())
            setattr(self, name, value)
        return self

    def fit(self, X: Any, y: Any) -> NoisyLabelClassifier:
        """Train on images ``X`` (N first) and their labels ``y``, of any type that sorts; returns itself.

        A call that fails leaves an earlier one's attributes as they are.

        Raises:
            UserError: labels that are missing, of mixed types or not one for each image; and what :func:`vision.fit`
                refuses.
        """
        from vision.fitting import fit

        try:
            classes, numbers = np.unique(checked_labels(X, y), return_inverse=True)
        except TypeError:
            raise UserError(MIXED) from None
        spec = {**(self.method_options or {}), "name": self.method}
        options = dict(self.options or {})
        result = fit(self.model, (X, numbers), method=spec, valid=self.valid, seed=self.seed, **options)
        self.classes_, self.result_, self.clean_probability_ = classes, result, result.clean_probability
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """``(n, C)`` probabilities, columns in the order of ``classes_``."""
        return np.asarray(self._fitted().predict_proba(X))

    def predict(self, X: Any) -> np.ndarray:
        """``(n,)`` labels of the types that were given."""
        classes = np.asarray(self._fitted().predict(X))
        return self.classes_[classes]

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy against ``y``, 0 to 1; a label that :meth:`fit` has not seen counts as an error.

        Args:
            X: images, N first.
            y: ``(N,)`` labels.
            sample_weight: ``(N,)`` what each image counts for; ``None`` counts all alike.

        Raises:
            UserError: labels that are missing, of mixed types or not one for each image; weights that have no mean.
        """
        right = self.predict(X) == checked_labels(X, y)
        if sample_weight is None:
            return float(np.mean(right))
        try:
            weights = np.asarray(sample_weight, dtype=float)
        except (TypeError, ValueError):
            raise UserError(NO_WEIGHTS) from None
        if weights.shape != right.shape:
            raise UserError(
                f"There are {len(right)} images and weights of shape {weights.shape}; give one weight for each image."
            )
        if not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
            raise UserError(NO_WEIGHTS)
        return float(np.average(right, weights=weights))

    def _fitted(self) -> Any:
        if not hasattr(self, "result_"):
            raise UserError("This NoisyLabelClassifier is not fitted yet; call fit first.")
        return self.result_

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "result_")

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn asks of an estimator; only scikit-learn calls it."""
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags(),
            input_tags=InputTags(three_d_array=True, two_d_array=False),
        )

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.get_params().items())
        return f"{type(self).__name__}({given})"


MIXED = "The labels are of types that do not sort together; give all as numbers or all as text."
NO_WEIGHTS = "The weights must be numbers of 0 or more, one for each image, and not all 0."


def checked_labels(X: Any, y: Any) -> np.ndarray:
    """``y`` as an array ``(N,)``. Raises ``UserError`` unless it holds one label for each image of ``X``."""
    try:
        labels = np.asarray(y)
    except ValueError:
        raise UserError("The labels are not one array; give one label for each image.") from None
    if labels.ndim != 1 or len(labels) != len(X):
        raise UserError(f"There are {len(X)} images and labels of shape {labels.shape}; give one label for each image.")
    # A list is looked at as it is: NumPy would make text of None, NaN and numbers that stand among text.
    listed = labels if labels.dtype.kind not in "OUS" or isinstance(y, np.ndarray) else np.asarray(y, dtype=object)
    if listed.dtype.kind in "fcmM":
        missing = np.nonzero(listed != listed)[0][:1].tolist()
    else:
        missing = [row for row, label in enumerate(listed) if listed.dtype.kind == "O" and is_missing(label)][:1]
    if missing:
        raise UserError(f"The label of row {missing[0]} is {listed[missing[0]]}; every image needs one.")
    if listed.dtype.kind == "O" and len({isinstance(label, str) for label in listed}) > 1:
        raise UserError(MIXED)
    return labels


def is_missing(label: Any) -> bool:
    """Whether a label is ``None``, NaN, or what pandas writes for either."""
    try:
        return label is None or bool(label != label)
    except (TypeError, ValueError):  # pandas.NA is neither itself nor another
        return True
