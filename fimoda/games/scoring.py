"""Scores of a whole set of test rows: scikit-learn's scorers of a model that is known by its outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.metrics import get_scorer, get_scorer_names
from torch import Tensor

from ..measured import ROWS, Measured, outputs_of_stack
from ..model import FinalModel
from ..rows import Rows

#: A scorer's name, a scorer, or a callable ``f(estimator, X, y)``; more is better.
Scoring = str | Callable[[Any, Any, Any], float]


def as_scorer(scoring: Scoring) -> Any:
    """Return the callable ``f(estimator, X, y)`` behind a scoring; ValueError for an unknown name."""
    if not isinstance(scoring, str):
        return scoring
    if scoring not in get_scorer_names():
        raise ValueError(
            "scoring must be the name of a scorer, as sklearn.metrics.get_scorer_names lists them, a "
            f"scorer, or a callable f(estimator, X, y), got {scoring!r}."
        )
    return get_scorer(scoring)


class _Predictor(BaseEstimator):
    """An estimator that knows what it predicts for the test rows, from outputs (n, C)."""

    def __init__(self, model: FinalModel, outputs: Tensor):
        self.model = model
        self.outputs = outputs

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def predict(self, X: Any) -> NDArray[Any]:
        predicted = self.model.predicted_targets(self.outputs).cpu().numpy()
        classes = self.model.classes
        return predicted if classes is None else classes[predicted]


class _Regressor(RegressorMixin, _Predictor):
    def predict(self, X: Any) -> NDArray[Any]:
        outputs = self.outputs.cpu().numpy()
        return outputs[:, 0] if outputs.shape[1] == 1 else outputs


class _Classifier(ClassifierMixin, _Predictor):
    @property
    def classes_(self) -> NDArray[Any]:
        return np.asarray(self.model.classes)

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        return self.model.loss.probabilities(self.outputs).cpu().numpy()


@dataclass(frozen=True)
class _Score:
    """A score as a measurement: the same number for each of the test rows."""

    model: FinalModel
    scoring: Any
    X: Any
    y: NDArray[Any]

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if isinstance(self.scoring, str) and self.scoring == "accuracy":
            found = float((self.model.predicted_targets(outputs) == targets).double().mean())
        else:
            kind = _Classifier if self.model.loss.is_classifier else _Regressor
            predictor = kind(self.model, outputs)
            given = as_scorer(self.scoring)(predictor, self.X, self.y)
            try:
                found = float(given)
            except (TypeError, ValueError) as error:
                raise ValueError(f"scoring must give one number, got {given!r}.") from error
        return torch.full((len(targets),), found, dtype=torch.float64, device=outputs.device)


@dataclass(frozen=True, eq=False)
class Scored(Measured):
    """Test rows that are measured together: the score of all is that of each."""

    def of_stack(self, model: FinalModel, thetas: Tensor) -> Tensor:
        """Return the score (L, n) of each of the models with parameters (L, p), n times."""
        parts = [outputs_of_stack(model, thetas, rows.inputs) for rows in self.rows.split(ROWS)]
        outputs = torch.cat(parts, dim=1)
        return torch.stack([self.measure(one, self.targets) for one in outputs])


def scored(model: FinalModel, scoring: Scoring, rows: Rows, X: Any, y: NDArray[Any]) -> Scored:
    """Return test rows, as users and models see them, with the score that is taken of them."""
    return Scored(rows, _Score(model, scoring, X, y))
