"""Scorers for scikit-learn's searches over the parameters of an attributor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arrays import n_rows
from ..attributors.further_training_curve import FurtherTrainingCurve
from ..base import BaseAttributor
from ._scores import Outcomes
from .agreement import agreement_curve
from .labels import mislabel_detection
from .lds import linear_datamodeling_score


@dataclass(frozen=True)
class AllRows:
    """One split with all rows on both sides, for searches over the parameters of an attributor.

    An attributor scores the rows that its final model was trained on, so it is fitted on all of
    them; what it is judged by is in the scorer.

    Examples
    --------
    >>> from fimoda import AllRows
    >>> [(train, test)] = AllRows().split([[1.0], [2.0]])
    >>> train, test
    (array([0, 1]), array([0, 1]))
    """

    def split(
        self, X: Any, y: Any = None, groups: Any = None
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Yield the split: indices of all rows (n_samples,) of `X`, twice; `y` and `groups` are not used."""
        rows = np.arange(n_rows(X))
        yield rows, rows

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Return 1; nothing is used."""
        return 1


@dataclass(frozen=True)
class AgreementScorer:
    """Scores a fitted attributor by its agreement with further training.

    For `GridSearchCV` and its kin, with ``cv=AllRows()``: the attributor must be fitted on the
    training rows of the curve. The rows that the search passes are not used.

    Parameters
    ----------
    curve : FurtherTrainingCurve
        A small gold standard, from `further_training_curve`.
    X_test, y_test : array-like
        The test rows of the curve.
    epochs : float, default=None
        Horizon of the curve to agree with; the last by default.
    metric : {"cosine", "cosine_centred", "spearman"}, default="cosine"
        Agreement that is averaged over test rows.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from sklearn.model_selection import GridSearchCV
    >>> from fimoda import AgreementScorer, AllRows, ExactInfluence, further_training_curve
    >>> X, y = load_diabetes(return_X_y=True)
    >>> ridge = Ridge().fit(X, y)
    >>> curve = further_training_curve(
    ...     ridge, X, y, X[:9], y[:9], epochs=5, n_seeds=2, leave_out=20, random_state=0
    ... )
    >>> scorer, grid = AgreementScorer(curve, X[:9], y[:9]), {"damping": [1e-3, 1e3]}
    >>> search = GridSearchCV(ExactInfluence(ridge), grid, scoring=scorer, cv=AllRows())
    >>> search.fit(X, y).best_params_
    {'damping': 1000.0}
    """

    curve: FurtherTrainingCurve
    X_test: Any
    y_test: Any = None
    epochs: float | None = None
    metric: str = "cosine"

    def __call__(self, attributor: BaseAttributor, X: Any = None, y: Any = None) -> float:
        """Return the mean agreement of the attributor over the test rows of the curve."""
        horizons = self.curve.epochs.tolist()
        if self.epochs is not None and self.epochs not in horizons:
            raise ValueError(
                f"epochs must be a horizon of the curve, {horizons}, got {self.epochs}."
            )
        place = -1 if self.epochs is None else horizons.index(self.epochs)
        methods = {type(attributor).__name__: attributor}
        result = agreement_curve(methods, self.curve, self.X_test, self.y_test)
        return float(result.mean(self.metric)[0, place])


@dataclass(frozen=True)
class LinearDatamodelingScorer:
    """Scores a fitted attributor by its linear datamodeling score.

    For `GridSearchCV` and its kin, with ``cv=AllRows()``: the rows that the search passes are not used.

    Parameters
    ----------
    outcomes : outcomes of trained subsets
        Of the training rows of the attributor, from `train_on_subsets`.
    X_test, y_test : array-like
        The test rows of the outcomes.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from sklearn.model_selection import GridSearchCV
    >>> from fimoda import AllRows, ExactInfluence, LinearDatamodelingScorer
    >>> from fimoda import random_subsets, train_on_subsets
    >>> X, y = load_diabetes(return_X_y=True)
    >>> subsets = random_subsets(len(X), 30, ratio=0.9, random_state=0)
    >>> outcomes = train_on_subsets(Ridge(), X, y, subsets, X[:5], y[:5], n_seeds=1)
    >>> scorer, grid = LinearDatamodelingScorer(outcomes, X[:5], y[:5]), {"damping": [1e-6, 1e3]}
    >>> influence = ExactInfluence(Ridge().fit(X, y))
    >>> search = GridSearchCV(influence, grid, scoring=scorer, cv=AllRows())
    >>> search.fit(X, y).best_params_
    {'damping': 1e-06}
    """

    outcomes: Outcomes
    X_test: Any
    y_test: Any = None

    def __call__(self, attributor: BaseAttributor, X: Any = None, y: Any = None) -> float:
        """Return the mean score of the attributor over the test rows of the outcomes."""
        result = linear_datamodeling_score(
            {type(attributor).__name__: attributor},
            self.outcomes,
            self.X_test,
            self.y_test,
            n_bootstrap=1,
            random_state=0,
        )
        return float(result.mean()[0, 0])


@dataclass(frozen=True)
class MislabelScorer:
    """Scores a fitted attributor by how well its self-influence finds planted wrong labels.

    For `GridSearchCV` and its kin, with ``cv=AllRows()``: the rows that the search passes are not used.

    Parameters
    ----------
    is_mislabelled : array-like of bool, shape (n_train,)
        True for the training rows with a wrong label, see `flip_labels`.
    metric : {"roc_auc", "average_precision"}, default="roc_auc"
        See `MislabelDetection`.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sklearn.preprocessing import scale
    >>> from fimoda import AllRows, ExactInfluence, MislabelScorer, flip_labels
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> noisy, flipped = flip_labels(y, 0.1, random_state=0)
    >>> model = LogisticRegression().fit(scale(X), noisy)
    >>> scorer, grid = MislabelScorer(flipped), {"damping": [1e-3, 1e3]}
    >>> search = GridSearchCV(ExactInfluence(model), grid, scoring=scorer, cv=AllRows())
    >>> bool(search.fit(scale(X), noisy).best_score_ > 0.9)
    True
    """

    is_mislabelled: ArrayLike
    metric: str = "roc_auc"

    def __call__(self, attributor: BaseAttributor, X: Any = None, y: Any = None) -> float:
        """Return how well the attributor finds the mislabelled rows."""
        if self.metric not in ("roc_auc", "average_precision"):
            raise ValueError(
                f"metric must be 'roc_auc' or 'average_precision', got {self.metric!r}."
            )
        return float(getattr(mislabel_detection(attributor, self.is_mislabelled), self.metric))
