"""KNNShapley: Shapley values of the rows for the vote of the nearest ones, in closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from torch import nn

from .._arrays import check_rows, n_rows
from .._validation import POSITIVE_INTEGER, StrOptions, check_weights
from ..adapters import default_neighbours
from ..base import BaseAttributor
from ..games.nearest import of_mean, of_vote
from ..last_call import of_last_call
from ..measured import Measured
from ..measurements import Measurement
from ..model import DEFAULT_BUDGET
from ..rows import RawRows, SeveralInputs
from ..trials import Trial
from ..views import View, refitted_view

#: Arrays of float64 of the size of the scores that are alive at a time.
_ARRAYS = 8


class KNNShapley(BaseAttributor):
    r"""Share the vote of the k nearest rows among the training rows, exactly and for all test rows at once.

    .. math:: \phi_i = \frac{1}{n} \sum_{S \not\ni i} \binom{n-1}{|S|}^{-1}
                       \bigl( v(S \cup i) - v(S) \bigr), \quad
              v(S) = \frac1k \sum_{j \in N_k(S)} w_j \, [y_j = y]

    :math:`N_k(S)` are the k rows of S that are nearest to the test row, or all if there are fewer, and
    :math:`w` is 1 or the weight of a distance. Of numbers the utility is minus the squared error of the mean,
    :math:`v(S) = -(\frac1k \sum_{j \in N_k(S)} y_j - y)^2`, summed over outputs. A positive score says that
    the row helps. The scores of a test row sum to the utility of all rows less that of none. Nothing is
    trained: rows are sorted by distance, and the sums over all sets have a closed form.

    Rows are compared as the last step of a Pipeline sees them: scale features of different units there.

    Parameters
    ----------
    estimator : object, default=None
        Fitted model; an unfitted scikit-learn or skorch estimator is cloned and fitted. None is k nearest
        neighbours. Its earlier steps, if it is a Pipeline, transform the rows; the model itself only predicts
        targets where `transform` has none.
    n_neighbors : int, default=5
        Number k of rows that vote.
    metric : str or callable, default="euclidean"
        Distance between rows: a metric of ``scipy.spatial.distance.cdist``.
    weights : {"uniform"} or callable, default="uniform"
        Weight of a row in the vote, a function of distances (z, n) that gives weights of that shape, such as
        ``lambda d: np.exp(-d)``. Classes only. They are not divided by their sum.
    measurement : str or callable, default="loss"
        What is attributed: ``"loss"`` of the vote, one less the utility (or the squared error); ``"output"``,
        the vote of the target's class or the mean of the targets itself, whose scores have the sign of
        a measurement that a row lowers by its absence.
    criterion : nn.Module, default=None
        Training criterion of a bare ``nn.Module``.
    memory_budget : int, default=512 MiB
        Bytes that distances and their order may take for a block of test rows.
    random_state : int, RandomState or None, default=None
        Used to fit an unfitted `estimator`.

    Attributes
    ----------
    estimator_ : object
        The final model.
    model_ : FinalModel
        Its frozen functional view.
    train_indices_ : ndarray of shape (n_train,)
        Training row of each column: all rows, in order.
    values_ : ndarray of shape (n_train,)
        Means of the scores last returned by `transform` over the test rows.

    Raises
    ------
    ValueError
        If rows are no vectors of numbers, the measurement is another one, or weights are given for numbers.

    References
    ----------
    Jia et al., "Efficient Task-Specific Data Valuation for Nearest Neighbor Algorithms", VLDB 2019.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from fimoda import KNNShapley
    >>> X, y = load_iris(return_X_y=True)
    >>> method = KNNShapley(n_neighbors=3).fit(X[::2], y[::2])
    >>> method.transform(X[1::2], y[1::2]).shape
    (75, 75)
    >>> print(method.values_.sum().round(2))
    0.96
    """

    intervention = "each training row added to sets of the others"
    _in_unit = False
    process = "a vote of the nearest rows, in which others take its place"

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseAttributor._parameter_constraints,
        "memory_budget": BaseAttributor._BUDGET_CONSTRAINTS["memory_budget"],
        "n_neighbors": [POSITIVE_INTEGER],
        "metric": [str, callable],
        "weights": [StrOptions({"uniform"}), callable],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        n_neighbors: int = 5,
        metric: str | Callable[[Any, Any], float] = "euclidean",
        weights: str | Callable[[NDArray[np.float64]], NDArray[np.float64]] = "uniform",
        measurement: Measurement = "loss",
        criterion: nn.Module | None = None,
        memory_budget: int = DEFAULT_BUDGET,
        random_state: Any = None,
    ):
        super().__init__(
            estimator, measurement=measurement, criterion=criterion, random_state=random_state
        )
        self.n_neighbors = n_neighbors
        self.metric = metric
        self.weights = weights
        self.memory_budget = memory_budget

    values_ = of_last_call(
        "values_", "Means of the scores last returned over test rows, (n_train,)."
    )

    def _prepare(self, X: Any, y: Any, sample_weight: Any) -> None:
        if self.estimator is None and sample_weight is not None:
            check_weights(sample_weight, np.zeros((n_rows(X), 1)))
            sample_weight = None  # of no use to nearest rows
        super()._prepare(X, y, sample_weight)

    def _view(self, estimator: Any) -> View:
        return refitted_view(estimator, "last")

    def _default(self, y: NDArray[Any]) -> Any:
        return default_neighbours(y, self.n_neighbors)

    def _expected_seconds(self, trial: Trial) -> float:
        return trial.by_rows(self)

    def _fit(self) -> None:
        if self.measurement not in ("loss", "output"):
            raise ValueError(
                "measurement must be 'loss' or 'output', those of the vote of the nearest rows, got "
                f"{self.measurement!r}. DataShapley takes any other."
            )
        rows = self._objective.rows
        self._votes = self.model_.loss.is_classifier and rows.targets.dim() == 1
        if not self._votes and (self.weights != "uniform" or self.model_.loss.is_classifier):
            raise ValueError(
                "weights must be 'uniform' for targets that are numbers, and targets must be one class or "
                "number each: the vote has no closed form otherwise."
            )
        self._rows = _vectors(rows.inputs)
        self._targets = rows.targets.double().cpu().numpy().reshape(len(rows), -1)

    def _scores(self, test: Measured) -> NDArray[np.float64]:
        of_output = self.measurement == "output" or test.measure == self.model_.loss.target_output
        size = max(1, self.memory_budget // (8 * _ARRAYS * len(self._rows)))
        scores = np.concatenate([self._of_block(part, of_output) for part in test.split(size)])
        self._seen["values_"] = scores.mean(0)
        return scores

    def _of_block(self, test: Measured, of_output: bool) -> NDArray[np.float64]:
        distances = cdist(_vectors(test.inputs), self._rows, self.metric)
        if not np.isfinite(distances).all():
            raise ValueError(f"metric {self.metric!r} gives distances that are not finite.")
        order = np.argsort(distances, axis=1, kind="stable")
        goals = test.targets.double().cpu().numpy().reshape(len(test), -1)
        nearest = self._targets[order]  # (z, n, outputs)
        k = self.n_neighbors
        if self._votes:
            parts = (nearest[..., 0] == goals).astype(float) * self._weights(distances, order)
            found = of_vote(parts, k) * (-1.0 if of_output else 1.0)
        elif of_output:
            found = -of_vote(nearest[..., 0], k)
        else:
            outputs = range(nearest.shape[2])
            found = np.sum([of_mean(nearest[..., c], goals[:, c], k) for c in outputs], axis=0)
        scores = np.empty_like(distances)
        np.put_along_axis(scores, order, found, axis=1)
        return scores

    def _weights(self, distances: NDArray[np.float64], order: NDArray[np.int64]) -> Any:
        """Return the weights (z, n) of rows in their order, or 1."""
        if not callable(self.weights):
            return 1.0
        sorted_distances = np.take_along_axis(distances, order, axis=1)
        weights = np.asarray(self.weights(sorted_distances), dtype=np.float64)
        if weights.shape != distances.shape or not np.isfinite(weights).all():
            raise ValueError(
                f"weights must give finite numbers of shape {distances.shape}, one for each distance, got "
                f"an array of shape {weights.shape}. Mind distances of zero."
            )
        return weights


def _vectors(inputs: Any) -> NDArray[np.float64]:
    """Return rows as vectors (n, p)."""
    if isinstance(inputs, SeveralInputs):
        raise ValueError(
            "X must be one array to compare rows by distance, got several inputs. Compare their joint "
            "representation instead."
        )
    rows = (
        check_rows(inputs.dense(), "X after the Pipeline's earlier steps")
        if isinstance(inputs, RawRows)
        else inputs.double().cpu().numpy()
    )
    return np.asarray(rows, dtype=np.float64).reshape(len(rows), -1)
