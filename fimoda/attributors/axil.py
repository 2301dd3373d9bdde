"""AXIL: each prediction as a weighted sum of the training targets, and what follows for removal."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import nn

from .._validation import check_is_fitted
from ..adapters import default_forest, default_trees, is_class_target
from ..measured import Measured
from ..measurements import Measurement
from ..model import DEFAULT_BUDGET
from ..trees import (
    Boosting,
    BoostingRun,
    FirstOrder,
    Forest,
    ForestRows,
    Squared,
    TargetsByOne,
    differences,
    row_derivatives,
)
from ..trees.ensemble import Leaves
from .families.trees import BaseTrees, Floats

#: Least part of a row's own prediction that must come from other rows for the row to be removed.
_OTHERS = 1e-9


class AXIL(BaseTrees):
    r"""Write each prediction as a weighted sum of the training targets, and move one target for a removal.

    .. math:: f(z) = \sum_i k_{zi}\, y_i, \qquad
              S_{z,i} = m_z\Big(f(z) + k_{zi} \frac{f(x_i) - y_i}{1 - k_{ii}}\Big) - m_z(f(z))

    Trees that are grown by the squared error predict means of targets; boosted ones the mean of all targets
    and, times the learning rate, means of what the rounds before have left over. With the structures held
    that is linear in the targets, and :math:`k_{zi} = \partial f(z) / \partial y_i`. Removing row i is taken
    for giving it the target that the model would then predict for it,
    :math:`\hat y_i = f(x_i) + k_{ii} (\hat y_i - y_i)`, where it asks for nothing.
    Another target (`relabel`) moves :math:`f(z)` by :math:`k_{zi} (y'_i - y_i)`.

    Parameters
    ----------
    estimator : object, default=None
        Fitted trees, alone or at the end of a Pipeline; unfitted ones are cloned and fitted. They must be
        boosted by the squared error, or a random forest, extremely randomised trees, a bag of trees or a
        single tree; None is a small HistGradientBoosting model, or for classes a small random forest.
    measurement : str or callable, default="loss"
        What is attributed: ``"loss"``, ``"margin"``, ``"log_prob"``, ``"output"`` or a callable
        ``m(outputs, targets)`` giving one number per row. Outputs are the trees' raw scores.
    criterion : nn.Module, default=None
        Training criterion of a bare ``nn.Module``. Trees have their own: leave it None.
    memory_budget : int, default=512 MiB
        Bytes that the adjoints of a block of test rows may take.
    random_state : int, RandomState or None, default=None
        Used to fit an unfitted `estimator`.

    Attributes
    ----------
    estimator_ : object
        The final model.
    model_ : TreeModel
        Its frozen functional view.
    train_indices_ : ndarray of shape (n_train,)
        Training row of each column: all rows, in order.

    Raises
    ------
    TypeError
        If the model is boosted by another loss than the squared error, has several outputs, or leaves that
        are no means of its rows; or if it is not known which rows were drawn for each round.
    ValueError
        If the values of its leaves do not come from the rows given.

    Notes
    -----
    `LeafInfluence` differs in one thing. Let :math:`a_{ti}` be the part of :math:`k_{zi}` that comes through
    the target in round t, so that :math:`k_{zi} = \sum_t a_{ti}`. A removal gives the row in each round the
    target that it asks nothing with there: with :math:`u_t` the value of its leaf before the learning rate,

    .. math:: \mathrm{LeafInfluence}_{z,i} = \nabla m_z \sum_t a_{ti}\, (f_{t-1}(x_i) + u_t(x_i) - y_i)

    where AXIL has one target for all rounds. They agree to first order for one tree with a learning rate of 1
    and a start of 0; there AXIL is exact, because :math:`1 - k_{ii}` is the part of the leaf that stays.

    A row whose prediction comes from its own target alone, as in a fully grown tree, has the score 0: the
    weights do not say what would be in its place (`LeafKernel` does). Fitting takes the weights of all
    training rows for each other.

    References
    ----------
    Geertsema and Lu, "Instance-based Explanations for Gradient Boosting Machine Predictions with AXIL
    Weights", arXiv 2301.01864, 2023.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.ensemble import HistGradientBoostingRegressor
    >>> from fimoda import AXIL
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = HistGradientBoostingRegressor(max_iter=20).fit(X, y)
    >>> axil = AXIL(model).fit(X, y)
    >>> np.allclose(axil.weights(X[:4]) @ y, model.predict(X[:4]))
    True
    """

    process = "another target for the row, with the splits of the trees held"

    _run: BoostingRun | ForestRows
    _shares: csr_array | None
    _moves: Floats

    def __init__(
        self,
        estimator: Any = None,
        *,
        measurement: Measurement = "loss",
        criterion: nn.Module | None = None,
        memory_budget: int = DEFAULT_BUDGET,
        random_state: Any = None,
    ):
        super().__init__(
            estimator, measurement=measurement, criterion=criterion, random_state=random_state
        )
        self.memory_budget = memory_budget

    def _default(self, y: NDArray[Any]) -> Any:
        return (default_forest if is_class_target(y) else default_trees)(y, self.random_state)

    def weights(self, X: Any) -> NDArray[np.float64]:
        """Return the weight of each training target in the prediction for each row.

        Parameters
        ----------
        X : array-like of shape (n_test, n_features)
            Test rows, made as those of `fit`.

        Returns
        -------
        weights : ndarray of shape (n_test, n_train)
            Times the targets they give the model's predictions; of a forest of classes, the probability of a
            class is the sum of the weights of its rows. Where boosting starts at a fixed score s, it is what
            the targets have above s that is weighted, and s is added.
        """
        check_is_fitted(self, "model_")
        blocks = self._test(X, None).blocks(self.memory_budget, self._bytes_of_row)
        return np.concatenate([self._weights(self.model_.leaves(b.inputs)) for b in blocks])

    def _fit(self) -> None:
        rows, ensemble = self._objective.rows, self.model_.ensemble
        if isinstance(ensemble, Forest):
            if ensemble.is_constrained:
                raise self._no_means("monotonic_cst keeps its leaves from the means of their rows")
            self._run = self.model_.forest_rows(rows)
            self._shares = self._run.shares()
            known = self._run.targets.T
        else:
            self._run = self._linear_run(rows)
            self._shares = None
            known = self._run.targets
        own, leaves, n = np.empty(len(rows)), self._run.leaves, len(rows)
        step = max(1, self.memory_budget // self._bytes_of_row)
        for block in np.split(np.arange(n), np.arange(step, n, step)):
            own[block] = self._weights(leaves[block])[np.arange(len(block)), block]
        others = np.where(1 - own > _OTHERS, 1 - own, np.inf)
        self._moves = (ensemble.outputs(leaves) - known) / others

    def _linear_run(self, rows: Any) -> BoostingRun:
        """Return the run of boosting, if predictions are linear in the targets."""
        run = self.model_.run(rows)
        boosting = run.boosting
        loss = boosting.loss.loss if isinstance(boosting.loss, FirstOrder) else boosting.loss
        if type(loss) is not Squared:
            raise self._no_means("it was boosted by another loss than the squared error")
        if boosting.n_outputs > 1:
            raise self._no_means(f"it has {boosting.n_outputs} outputs; fit one model for each")
        if boosting.is_constrained:
            raise self._no_means("constraints keep its leaves from the means of their rows")
        if boosting.l1:
            raise self._no_means("its penalty of absolute values is not linear in the targets")
        if not boosting.rows_are_known:
            raise self._no_means("it is not known which rows were drawn for each round")
        return run

    def _no_means(self, reason: str) -> TypeError:
        """Return the error for a model whose predictions are no weighted sums of targets."""
        boosted = isinstance(self.model_.ensemble, Boosting)
        others = "LeafInfluence, LeafRefit or TREX" if boosted else "LeafKernel or TREX"
        return TypeError(
            f"estimator {type(self.estimator_).__name__} must predict weighted sums of its training targets "
            f"for this method, but {reason}. Use {others}."
        )

    @property
    def _bytes_of_row(self) -> int:
        """Bytes of what is known of all training rows for each other row."""
        return 8 * len(self._run) * (3 * self.n_outputs_ + 3)

    def _weights(self, leaves: Leaves) -> Floats:
        """Return the weights (m, n) of the training targets for rows in these leaves."""
        if isinstance(self._run, ForestRows):
            found: Floats = (self.model_.ensemble.indicators(leaves) @ self._shares).toarray()
            return found
        each = np.ones((1, len(leaves)))
        return row_derivatives(self._run, each, leaves, TargetsByOne())

    def _scores(self, test: Measured) -> Floats:
        return self._changed(test, slice(None), self._moves)

    def _relabelled(self, test: Measured, rows: NDArray[np.int64], targets: NDArray[Any]) -> Floats:
        known = self._run.targets
        before = known[rows].T if isinstance(self._run, ForestRows) else known[:, rows]
        return self._changed(test, rows, self._averaged(rows, targets).T - before)

    def _changed(self, test: Measured, rows: Any, moves: Floats) -> Floats:
        """Return the effects (n_test, k) of targets of rows that move by (C, k)."""
        found = []
        for block in test.blocks(self.memory_budget, self._bytes_of_row):
            leaves = self.model_.leaves(block.inputs)
            changes = self._weights(leaves)[:, rows] * moves[:, None]
            found.append(differences(block, self.model_.ensemble.outputs(leaves), changes))
        return np.concatenate(found)
