"""Other questions about the training rows than the removal of one: of several, by weight, by target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._arrays import n_rows
from ._validation import check_is_fitted, check_row_indices, check_targets, is_integer
from .gradient_mode import with_gradients
from .measured import Measured
from .preparation import Preparation

Floats = NDArray[np.float64]


class ChangedRows(Preparation):
    """The part of an attributor that answers for rows removed together, reweighted or relabelled."""

    train_indices_: NDArray[np.int64]

    #: Hook of the attributor: scores (n_test, n_columns).
    _scores: Callable[[Measured], Floats]

    #: Scores estimate changes of the measurement in its unit, as the contract says; some only rank.
    _in_unit: ClassVar[bool] = True

    def _finite_effects(self, effects: Floats, change: str) -> Floats:
        """Return effects of a change, if all are numbers."""
        if not np.isfinite(effects).all():
            raise FloatingPointError(
                f"{type(self).__name__} gave effects of {change} that are NaN or infinite: training failed, "
                "a row has no score, or the measurement of a test row is not finite there."
            )
        return effects

    # ---- weights ----------------------------------------------------------------------------

    @with_gradients
    def reweight(self, X: Any, y: Any = None, *, weights: ArrayLike) -> Floats:
        r"""Return the effect of multiplying the weights of rows, for example of removing a set.

        To first order the sum of the rows' scores,
        :math:`\sum_i S_{z,i} (1 - c_i) \frac{1 - s_i}{1 + \sum_j (c_j - 1) s_j}`, with
        :math:`c_i` the factor of row i and :math:`s_i` its share of the objective; zero where the other
        rows keep their weights (as in a sum of losses, or without ``reweight_others``).

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
            Change of the measurement, for methods with several horizons at the last one.

        Raises
        ------
        ValueError
            If `weights` has the wrong length, is negative or not finite, or leaves no weight.
        """
        check_is_fitted(self, "model_")
        factors = self._check_factors(weights)
        return self._finite_effects(self._reweighted(self._test(X, y), factors), "other weights")

    def _reweighted(self, test: Measured, factors: Floats) -> Floats:
        """Hook of `reweight`: effects (n_test,); this one sums the rows' scores."""
        return self._summed(self._scores(test), factors[None])[:, 0]

    def _summed(self, scores: Floats, factors: Floats) -> Floats:
        """Return effects (n_test, k) of weights times factors (k, n_columns) to first order."""
        if not self._in_unit:
            raise TypeError(
                f"Scores of {type(self).__name__} do not add up to an effect of rows that leave or change "
                "their weight: they are values, ranks or distances. Ask a method whose scores are effects, "
                "such as GradDot, EKFACInfluence or LeaveOneOut, or sum the scores yourself."
            )
        share = self._mean_shares()
        left = 1 + (factors - 1) @ share
        moved = (factors != 1).any(0)  # the others may have no score
        parts = (1 - factors) * (1 - share) / left[:, None]
        return scores[:, moved] @ parts[:, moved].T

    def _mean_shares(self) -> Floats:
        """Return what the others get of each scored row's weight (n_columns,): its share of a mean."""
        objective, n = self._objective, len(self._objective)
        model = objective.model
        kept = not getattr(self, "reweight_others", False) or not model.n_parameters
        if kept or (model.weighting.total == "sum" and model.recipe.solved):
            return np.zeros(len(self.train_indices_))
        if model.weighting.total == "rows":
            return np.full(len(self.train_indices_), 1 / n)
        return self._row_shares()

    def _row_shares(self) -> Floats:
        """Return the share (n_columns,) of each scored row in the objective."""
        return self._objective.rows.shares.cpu().numpy()[self.train_indices_]

    def _check_factors(self, weights: ArrayLike) -> Floats:
        factors = np.asarray(weights, dtype=np.float64)
        n = len(self.train_indices_)
        wrong = ~np.isfinite(factors) | (factors < 0)
        if factors.shape != (n,) or wrong.any():
            got = f"shape {factors.shape}" if factors.shape != (n,) else f"{factors[wrong][0]}"
            raise ValueError(
                f"weights must hold one non-negative number for each of the {n} scored rows, got "
                f"{got}. Use 0 for rows to remove and 1 for the others."
            )
        if n == len(self._objective) and 1 + ((factors - 1) * self._row_shares()).sum() <= 1e-12:
            raise ValueError("weights must leave some row with a positive weight.")
        return factors

    # ---- targets ----------------------------------------------------------------------------

    @with_gradients
    def relabel(self, X: Any, y: Any = None, *, rows: ArrayLike, targets: ArrayLike) -> Floats:
        r"""Return the effect of giving training rows other targets, each row alone.

        To first order the row leaves with its gradient and comes back with another,

        .. math:: S_{z,i}(y_i) - S_{z,i}(y'_i),

        with :math:`S_{z,i}(y)` the score of row i if its target were y and the others kept their
        weights, and its own follows from its new class where classes have weights (balanced ones stay as
        they are). Exact in the linearised network for a squared error. Methods that train without rows train
        with the new target; those that make leaves anew do it with it.

        Parameters
        ----------
        X : array-like of shape (n_test, n_features)
            Test rows.
        y : array-like of shape (n_test,), default=None
            Their targets, as in `transform`.
        rows : int or array-like of int of shape (n_rows,)
            Indices of the training rows to relabel, none twice. 5 is row 5.
        targets : array-like of shape (n_rows,) or (n_rows, n_outputs)
            Their new targets; of one row, a scalar will do.

        Returns
        -------
        effect : ndarray of shape (n_test, n_rows)
            Change of the measurement, for methods with several horizons at the last one.

        Raises
        ------
        TypeError
            If another target of a row means nothing to the method, whose scores are values or similarities,
            or if it does not know what one would do.
        ValueError
            If `rows` are no training rows, or there is not one target for each.
        """
        check_is_fitted(self, "model_")
        chosen, new = self._new_targets(rows, targets)
        effects = self._relabelled(self._test(X, y), chosen, new)
        return self._finite_effects(effects, "another target")

    def _relabelled(self, test: Measured, rows: NDArray[np.int64], targets: NDArray[Any]) -> Floats:
        """Hook of `relabel`: effects (n_test, n_rows); targets as the model is fitted on them."""
        others = (
            "Use an influence function, GradDot, LinearizedFurtherTraining, UnrolledDifferentiation, "
            "LeafInfluence (for trees), or LeaveOneOut, which trains with it."
        )
        if not self._in_unit:
            raise TypeError(
                f"{type(self).__name__} cannot tell what another target of a row would do: its scores are "
                f"values, ranks, distances or similarities, and no effects of a change. {others}"
            )
        raise TypeError(
            f"{type(self).__name__} does not know what another target of a row would do. {others}"
        )

    def _new_targets(
        self, rows: ArrayLike, targets: ArrayLike
    ) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Return rows to relabel, one or several, and their new targets as the model is fitted on them."""
        if is_integer(rows):
            rows, targets = [rows], np.atleast_1d(np.asarray(targets))
        chosen = check_row_indices(rows, len(self._objective), "rows")
        n_targets = n_rows(targets) if np.ndim(targets) else 0
        if n_targets != len(chosen):
            got = n_targets if np.ndim(targets) else repr(targets)
            raise ValueError(
                f"targets must have one entry for each of the {len(chosen)} rows to relabel, got {got}."
            )
        return chosen, self._model_targets(check_targets(targets, len(chosen), "targets"))

    def _with_targets(
        self, rows: NDArray[np.int64], targets: NDArray[Any]
    ) -> tuple[Measured, Measured]:
        """Return rows measured by their loss, as they are and with other targets."""
        model, known = self.model_, self._objective.rows[rows]
        encoded, weights = model.encode_y(targets, self.n_outputs_), known.weights
        if model.class_weight is not None and weights is not None:
            by_class = model.class_weight.to(weights)
            weights = weights * by_class[encoded.long()] / by_class[known.targets.long()]
        changed = replace(known, targets=encoded, weights=weights)
        return Measured(known, model.loss), Measured(changed, model.loss)

    @staticmethod
    def _weight_ratio(known: Measured, changed: Measured) -> Floats:
        """Return new weights (n_rows,) as parts of the old; rows without weight have none."""
        return changed.share_ratio(known).cpu().numpy()

    # ---- groups -----------------------------------------------------------------------------

    def _group_methods(self) -> tuple[str, ...]:
        """Return the ways in which the removal of a group is known, the closest to training last."""
        return ("first-order",)

    def _second_order(self, test: Measured, groups: NDArray[np.bool_]) -> Floats:
        """Hook of `group_influence`: effects (n_test, k) of removing groups (k, n), with interaction."""
        raise NotImplementedError("methods that name 'second-order' in _group_methods have it")

    def _without(self, test: Measured, groups: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        """Hook of `group_influence`: effects (n_test, k) of removing groups (k, n), and their errors.

        As exactly as the method removes one row; errors are NaN where there are none.
        """
        raise NotImplementedError("methods that name 'exact' in _group_methods have it")

    def _greedy_rows(
        self, test: Measured, n_rows: int, sign: float, together: bool
    ) -> NDArray[np.int64] | None:
        """Hook of `greedy_removal`: rows (n_test, n_rows) in order, where choices update a solution.

        One line for the mean of all test rows if they are taken `together`.
        """
        return None
