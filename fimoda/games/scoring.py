"""Scores of a whole set of test rows: scikit-learn's scorers of a model that is known by its outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import get_scorer, get_scorer_names
from torch import Tensor

from ..adapters import Answers, asked, does_not_fit
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


@dataclass(frozen=True)
class _Score:
    """A score as a measurement: the same number for each of the test rows."""

    model: FinalModel
    scoring: Any
    X: Any
    y: NDArray[Any]

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        answers = Answers(self.model, outputs.double().cpu().numpy())
        if self._is_accuracy():
            found = float((self.model.predicted_targets(outputs) == targets).double().mean())
        elif self._is_area_of_pairs(targets):
            found = area_under_roc(answers.decisions(), (targets == 1).cpu().numpy())
        elif self._is_log_loss(answers, targets):
            found = -log_loss(answers.probabilities(), targets.cpu().numpy())
        elif self._is_of_labels(targets):
            found = self._of_labels(self.model.predicted_targets(outputs), targets)
        else:
            given = asked(as_scorer(self.scoring), answers, self.X, self.y, self.scoring)
            try:
                found = float(given)
            except (TypeError, ValueError) as error:
                raise ValueError(f"scoring must give one number, got {given!r}.") from error
        return torch.full((len(targets),), found, dtype=torch.float64, device=outputs.device)

    def _is_accuracy(self) -> bool:
        return (
            isinstance(self.scoring, str)
            and self.scoring == "accuracy"
            and self.model.loss.is_classifier
        )

    def _is_area_of_pairs(self, targets: Tensor) -> bool:
        """Return whether the score is an area under the ROC curve of two classes that both are there."""
        if not isinstance(self.scoring, str) or self.scoring != "roc_auc":
            return False
        classes = self.model.classes
        return classes is not None and len(classes) == 2 and len(targets.unique()) == 2

    def _is_log_loss(self, answers: Answers, targets: Tensor) -> bool:
        """Return whether the score is the log-loss, of rows of every class."""
        if not isinstance(self.scoring, str) or self.scoring != "neg_log_loss":
            return False
        classes = self.model.classes
        every = classes is not None and len(classes) == len(targets.unique())
        return every and answers.has_probabilities

    def _is_of_labels(self, targets: Tensor) -> bool:
        """Return whether the score is one of scikit-learn's that asks for predicted classes alone."""
        if not isinstance(self.scoring, str) or self.model.classes is None or targets.dim() > 1:
            return False
        asks = getattr(as_scorer(self.scoring), "_response_method", None)
        return asks == "predict" and self.model.loss.is_classifier

    def _of_labels(self, predicted: Tensor, targets: Tensor) -> float:
        """Return the score of predicted classes, by how many rows there are of each pair of classes."""
        classes = np.asarray(self.model.classes)
        n = len(classes)
        counts = torch.bincount(targets.long() * n + predicted.long(), minlength=n * n)
        try:
            return _of_counts(self.scoring, tuple(classes), tuple(counts.tolist()))
        except ValueError as error:
            raise does_not_fit(self.scoring, self.model, error) from error


class _Told(ClassifierMixin, BaseEstimator):
    """A classifier whose rows are its predictions."""

    def __init__(self, classes: NDArray[Any]):
        self.classes_ = classes

    def predict(self, X: Any) -> Any:
        """Return the rows."""
        return X


@lru_cache(maxsize=2**16)  # sets of rows are many, and tables of counts few
def _of_counts(scoring: str, classes: tuple[Any, ...], counts: tuple[int, ...]) -> float:
    """Return the score of rows of each pair of a true and a predicted class, row by row of the table."""
    pairs = np.repeat(np.indices((len(classes), len(classes))).reshape(2, -1), counts, axis=1)
    true, predicted = np.asarray(classes)[pairs]
    return float(as_scorer(scoring)(_Told(np.asarray(classes)), predicted, true))


def area_under_roc(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> float:
    """Return the share of pairs, a positive row and another, in which the positive one has more."""
    n, ranks = int(positive.sum()), rankdata(scores)
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(scores) - n)))


def log_loss(probabilities: NDArray[np.float64], targets: NDArray[np.int64]) -> float:
    """Return the mean of minus the logarithm of the probability of the target, from (n, K)."""
    eps = np.finfo(np.float64).eps
    own = probabilities[np.arange(len(targets)), targets]
    return float(-np.log(own.clip(eps, 1 - eps)).mean())


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
