"""Methods that say what further training would do, at one or several horizons."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .._validation import POSITIVE_INTEGER, check_horizons, check_is_fitted
from ..gradient_mode import with_gradients
from ..measured import Measured
from ..training.outcomes import standard_error
from ._further_training import BaseFurtherTraining


class BaseHorizons(BaseFurtherTraining):
    """Base of the approximations of further training that score all horizons in one go.

    A subclass implements `_run_scores`. `transform` gives the last horizon.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseFurtherTraining._parameter_constraints,
        "n_epochs": [POSITIVE_INTEGER, "array-like"],
    }

    @abstractmethod
    def _run_scores(
        self, test: Measured, horizons: list[int]
    ) -> tuple[NDArray[np.float64], Tensor]:
        """Hook: scores of each run, (n_horizons, n_test, n_columns, n_seeds), and its parameters at
        the last horizon, (n_seeds, p)."""

    def _horizon_scores(self, test: Measured, horizons: list[int]) -> NDArray[np.float64]:
        """Scores (n_horizons, n_test, n_columns)."""
        per_seed, _ = self._run_scores(test, horizons)
        self._seen["scores_sem_"] = standard_error(per_seed)[-1]
        return per_seed.mean(-1)

    def _coupled(self, test: Measured) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        scores, ends = self._run_scores(test, self.horizons_[-1:])
        measured = test.of_stack(self.model_, ends)
        return measured.cpu().numpy(), np.moveaxis(scores[0], -1, 0)

    def _check_horizons(self) -> list[int]:
        return check_horizons(self.n_epochs, "n_epochs")

    @with_gradients
    def transform_horizons(self, X: Any, y: Any = None) -> NDArray[np.float64]:
        """Scores at every horizon of `n_epochs`.

        Parameters
        ----------
        X : array-like of shape (n_test, n_features)
            Test rows.
        y : array-like of shape (n_test,), default=None
            Their targets, as in `transform`.

        Returns
        -------
        S : ndarray of shape (n_horizons, n_test, n_columns)
            ``S[k]`` belongs to ``horizons_[k]``; the last is what `transform` gives.
        """
        check_is_fitted(self, "model_")
        test = self._test(X, y)
        return self._finite(self._horizon_scores(test, self.horizons_))

    def _at_horizons(self, X: Any, y: Any, epochs: list[int]) -> NDArray[np.float64]:
        if not set(epochs) <= set(self.horizons_):
            return super()._at_horizons(X, y, epochs)
        return self.transform_horizons(X, y)[[self.horizons_.index(epoch) for epoch in epochs]]

    def _finite(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        if not np.isfinite(scores).all():
            raise FloatingPointError(
                f"{type(self).__name__} gave scores that are NaN or infinite: small changes blow up on "
                "their way through the run, or a measurement is not finite at its end. Lower n_epochs "
                "or lr, or set kink_smoothing=None."
            )
        return scores

    def _scores(self, test: Measured) -> NDArray[np.float64]:
        return self._horizon_scores(test, self.horizons_[-1:])[0]

    # ---- other questions than the removal of one row ----------------------------------------

    @with_gradients
    def reweight(self, X: Any, y: Any = None, *, weights: ArrayLike) -> NDArray[np.float64]:
        r"""Effect of multiplying the weights of training rows, for example of removing a set.

        To first order the sum of the rows' scores,
        :math:`\sum_i S_{z,i} (1 - c_i) \frac{1 - s_i}{1 + \sum_j (c_j - 1) s_j}`, with
        :math:`c_i` the factor of row i and :math:`s_i` its share of the objective.

        Parameters
        ----------
        X : array-like of shape (n_test, n_features)
            Test rows.
        y : array-like of shape (n_test,), default=None
            Their targets, as in `transform`.
        weights : array-like of shape (n_columns,)
            Factor of each row's weight, in the order of ``train_indices_``: 0 removes the row, 1
            leaves it as it is, 2 counts it twice.

        Returns
        -------
        effect : ndarray of shape (n_test,)
            Change of the measurement at the last horizon.

        Raises
        ------
        ValueError
            If `weights` has the wrong length, is negative or not finite, or leaves no weight.
        """
        check_is_fitted(self, "model_")
        factors = self._check_factors(weights)
        test = self._test(X, y)
        return self._finite(self._reweighted(test, factors))

    def _check_factors(self, weights: ArrayLike) -> NDArray[np.float64]:
        factors = np.asarray(weights, dtype=np.float64)
        n = len(self.train_indices_)
        if factors.shape != (n,) or not np.isfinite(factors).all() or (factors < 0).any():
            raise ValueError(
                f"weights must hold one non-negative number for each of the {n} scored rows, got "
                f"shape {factors.shape}. Use 0 for rows to remove and 1 for the others."
            )
        if 1 + ((factors - 1) * self._shares()).sum() <= 1e-12:
            raise ValueError("weights must leave some row with a positive weight.")
        return factors

    def _shares(self) -> NDArray[np.float64]:
        """Share of each scored row in the objective."""
        return self._objective.rows.shares.cpu().numpy()[self.train_indices_]

    def _reweighted(self, test: Measured, factors: NDArray[np.float64]) -> NDArray[np.float64]:
        share = self._shares()
        scale = (1 - factors) * (1 - share) / (1 + ((factors - 1) * share).sum())
        return self._scores(test) @ scale
