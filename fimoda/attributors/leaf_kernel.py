"""LeafKernel: the leaves of a forest without each row, with the structure of its trees held."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..adapters import default_forest
from ..measured import Measured
from ..measurements import Measurement
from ..model import DEFAULT_BUDGET
from ..trees import ForestRows
from ._trees import BaseTrees, Floats, differences


class LeafKernel(BaseTrees):
    r"""Take each training row out of the leaves of a forest, with the structure of its trees held.

    .. math:: S_{z,i} = m_z\Big(f(z) + \frac1T \sum_{t=1}^{T} [\text{z and i share a leaf}] \,
              \frac{w_{ti} (v_t - y_i)}{W_t - w_{ti}}\Big) - m_z(f(z))

    for T trees; :math:`v_t` is the mean of the leaf, :math:`W_t` the weight of the rows of the tree's bag in
    it, and :math:`w_{ti}` how often row i is in that bag, times its weight: 0 where it is not. Targets y are
    numbers, or one at the class of a row. The change of the outputs is exact, where structures do not move.

    Parameters
    ----------
    estimator : object, default=None
        Fitted random forest, extremely randomised trees, a bag of trees or a single tree, alone or at the
        end of a Pipeline; unfitted ones are cloned and fitted. None is a small random forest.
    measurement : str or callable, default="loss"
        What is attributed: ``"loss"``, ``"margin"``, ``"log_prob"``, ``"output"`` (a raw score) or a
        callable ``m(outputs, targets)`` of raw scores giving one number per row.
    criterion : None
        Trees have their own.
    memory_budget : int, default=512 MiB
        Bytes that the changed outputs of a block of test rows may take.
    random_state : int, RandomState or None, default=None
        Used to fit an unfitted `estimator`.

    Attributes
    ----------
    estimator_ : object
        The final model.
    model_ : TreeModel
        Its frozen view.
    train_indices_ : ndarray of shape (n_train,)
        Training row of each column: all rows, in order.

    Raises
    ------
    TypeError
        If the trees were boosted (`LeafRefit` is for them), or their leaves are medians.
    ValueError
        If the values of the leaves do not come from the rows given, in the order of the model's fit.

    Notes
    -----
    A leaf that loses its last row takes the mean of the nearest node above it with other rows in its bag: in
    a fully grown tree, where each leaf has one row, the leaf beside it takes over. Leaves whose value is
    held by a monotonic constraint do not change.

    A new forest draws new bags. Drawn with replacement from many rows, how often a row is drawn does not
    depend on the others, so that the bags of a forest without row i are those of a forest with it that do
    not have it. The expected change is therefore the mean over all trees of the change of a tree that loses
    the row, where trees that did not have it count as 0; nothing is scaled. Forests of one
    hundred trees differ by their bags much more than by a row: `LeaveOneOut` needs many seeds.

    Raw scores are the class probabilities or the predictions. The loss is that of `LeaveOneOut`:
    probabilities, if some training row has a class of probability 0, are smoothed.

    References
    ----------
    Davies and Ghahramani, "The Random Forest Kernel and Other Kernels for Big Data from Random Partitions",
    2014.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.ensemble import RandomForestRegressor
    >>> from fimoda import LeafKernel
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = RandomForestRegressor(n_estimators=20, random_state=0).fit(X, y)
    >>> LeafKernel(model).fit(X, y).transform(X[:4], y[:4]).shape
    (4, 442)
    """

    process = "a new forest, with the structure of its trees held"

    _rows: ForestRows

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
        return default_forest(y, self.random_state)

    def _fit(self) -> None:
        self._rows = self.model_.forest_rows(self._objective.rows)
        self._changes = self._rows.changes()

    def _scores(self, test: Measured) -> Floats:
        # the sparse product of one output at a time, and changed outputs three times
        bytes_of_row = 8 * len(self._rows) * (3 * self.n_outputs_ + 2)
        return np.concatenate([self._of_block(b) for b in self._blocks(test, bytes_of_row)])

    def _of_block(self, test: Measured) -> Floats:
        leaves = self.model_.leaves(test.inputs)
        shared = self._rows.forest.indicators(leaves)
        changes = np.stack([(shared @ change).toarray() for change in self._changes])
        return differences(test, self.model_.ensemble.outputs(leaves), changes)
