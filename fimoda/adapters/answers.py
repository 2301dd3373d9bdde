"""An estimator that answers with given outputs: what scikit-learn's scorers ask."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    RegressorMixin,
    is_classifier,
    is_regressor,
)
from sklearn.utils.metaestimators import available_if

from .._arrays import n_rows
from ..model import FinalModel

#: Predictions that differ by this part of the largest, and labels that may differ, are rounding.
_ROUNDING, _FEW = 1e-3, 0.01


class Answers:
    """Predictions of n rows by a model with outputs (..., n, C).

    Parameters
    ----------
    model : FinalModel
        Its loss says what the outputs mean.
    outputs : ndarray of shape (..., n, C)
        With any leading axes, one for each changed model.
    """

    def __init__(self, model: FinalModel, outputs: NDArray[np.float64]):
        self.model = model
        self.outputs = outputs
        self._tensor = torch.from_numpy(np.ascontiguousarray(outputs))

    @property
    def has_probabilities(self) -> bool:
        """True if the outputs say how probable each class is."""
        try:
            self.probabilities()
        except NotImplementedError:
            return False
        return not self.model.loss.only_classes

    @property
    def has_decisions(self) -> bool:
        """True if the outputs are values of a decision function, and no probabilities."""
        return "probabilit" not in self.model.loss.outputs_are

    def predicted(self) -> NDArray[Any]:
        """Return predicted targets as the model encodes them: classes (..., n), or numbers (..., n, C)."""
        return self.model.predicted_targets(self._tensor).numpy()

    def labels(self) -> NDArray[Any]:
        """Return predictions in the user's words: labels (..., n), or numbers (..., n) or (..., n, C)."""
        found = self.predicted()
        if self.model.loss.is_classifier:
            return found if self.model.classes is None else self.model.classes[found]
        return found[..., 0] if found.shape[-1] == 1 else found

    def probabilities(self) -> NDArray[np.float64]:
        """Return class probabilities (..., n, K); of changed outputs, the nearest that are."""
        return self._probabilities

    @cached_property
    def _probabilities(self) -> NDArray[np.float64]:
        found = self.model.loss.probabilities(self._tensor).numpy().clip(0, 1)
        return np.asarray(found / found.sum(-1, keepdims=True))

    def decisions(self) -> NDArray[np.float64]:
        """Return the decision function (..., n) of two classes, or (..., n, K)."""
        outputs = self.outputs
        if outputs.shape[-1] == 1:
            return outputs[..., 0]
        return outputs[..., 1] - outputs[..., 0] if outputs.shape[-1] == 2 else outputs

    def estimator(self) -> Any:
        """Return an estimator for a scorer that gives these answers (of no leading axes) to its n rows."""
        return (_Classifier if self.model.loss.is_classifier else _Regressor)(self)


class _Answering(BaseEstimator):
    """A fitted estimator whose predictions are known."""

    def __init__(self, answers: Answers):
        self.answers = answers

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def _known(self, X: Any, answer: NDArray[Any]) -> NDArray[Any]:
        if n_rows(X) != len(answer):
            raise ValueError(
                f"scoring must ask for predictions of all {len(answer)} test rows at once, which are known; "
                f"it asked for {n_rows(X)}."
            )
        return answer

    def predict(self, X: Any) -> NDArray[Any]:
        """Return predictions."""
        return self._known(X, self.answers.labels())


class _Regressor(RegressorMixin, _Answering):
    """A regressor whose predictions are known."""


def _has_probabilities(answering: Any) -> bool:
    return answering.answers.has_probabilities


def _has_decisions(answering: Any) -> bool:
    return answering.answers.has_decisions


class _Classifier(ClassifierMixin, _Answering):
    """A classifier whose predictions are known."""

    @property
    def classes_(self) -> NDArray[Any]:
        return np.asarray(self.answers.model.classes)

    @available_if(_has_probabilities)
    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return class probabilities."""
        return self._known(X, self.answers.probabilities())

    @available_if(_has_decisions)
    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Return the decision function."""
        return self._known(X, self.answers.decisions())


def check_answers(estimator: Any, X: Any, answers: Answers) -> None:
    """Raise ValueError unless a fitted estimator predicts rows as its frozen view does.

    Not so where targets are transformed, a threshold is tuned or probabilities are calibrated.
    """
    if not hasattr(estimator, "predict") or not (
        is_classifier(estimator) or is_regressor(estimator)
    ):
        return  # a bare network, or a booster with rows of its own kind
    own, known = np.asarray(estimator.predict(X)), answers.labels()
    own = own.reshape(known.shape) if own.size == known.size else own
    if is_classifier(estimator):
        same = own.shape == known.shape and np.mean(own != known) <= _FEW
    else:
        size = _ROUNDING * np.abs(own).max(initial=0.0)
        same = own.shape == known.shape and np.allclose(own, known, rtol=_ROUNDING, atol=size)
    if not same:
        raise ValueError(
            f"estimator {type(estimator).__name__} must predict by the outputs that are attributed, but its "
            "own predictions of the test rows are others: its targets are transformed, its threshold is "
            "tuned or its probabilities are calibrated. Attribute to the model inside."
        )
