"""Grad-Cos: cosine of gradients at the final model."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..base import BaseAttributor
from ..curvature.checks import check_gradients
from ..measured import Measured
from ..measurements import Measurement
from ..model import DEFAULT_BUDGET
from ..row_gradients import RowGradients
from ..trials import Trial


class GradCos(BaseAttributor):
    r"""Cosine of the test row's and the training row's gradient.

    .. math:: S_{z,i} = \frac{\nabla_\theta m_z^\top \nabla_\theta \ell_i}
                             {\|\nabla_\theta m_z\| \, \|\nabla_\theta \ell_i\|}

    in [-1, 1], without unit: it only ranks. A row whose gradient is zero scores zero.

    Parameters
    ----------
    estimator : object, default=None
        Fitted model; an unfitted scikit-learn or skorch estimator is cloned and fitted. None is a
        small MLP.
    measurement : str or callable, default="loss"
        What is attributed: ``"loss"``, ``"margin"``, ``"log_prob"``, ``"output"`` or a callable
        ``m(outputs, targets)`` giving one number per row.
    criterion : nn.Module, default=None
        Training criterion of a bare ``nn.Module``.
    chunk_size : int, default=None
        Rows whose gradients are held at a time; from `memory_budget` by default.
    memory_budget : int, default=512 MiB
        Bytes for gradients. Scores are the same for every value.
    random_state : int, RandomState or None, default=None
        Used to fit an unfitted `estimator`.

    Attributes
    ----------
    estimator_ : object
        The final model.
    model_ : FinalModel
        Its frozen functional view.
    train_indices_ : ndarray of shape (n_train,)
        Training row of each column.

    References
    ----------
    Wei et al., arXiv 2412.03906 (Grad-Cos); Charpiat et al., NeurIPS 2019.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from fimoda import GradCos
    >>> X, y = load_diabetes(return_X_y=True)
    >>> attributor = GradCos(Ridge().fit(X[:400], y[:400])).fit(X[:400], y[:400])
    >>> bool(abs(attributor.transform(X[400:], y[400:])).max() <= 1 + 1e-6)
    True
    """

    process = "a step of gradient descent from the final model (its direction only)"
    _in_unit = False

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **BaseAttributor._parameter_constraints,
        **BaseAttributor._BUDGET_CONSTRAINTS,
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        measurement: Measurement = "loss",
        criterion: nn.Module | None = None,
        chunk_size: int | None = None,
        memory_budget: int = DEFAULT_BUDGET,
        random_state: Any = None,
    ):
        super().__init__(
            estimator, measurement=measurement, criterion=criterion, random_state=random_state
        )
        self.chunk_size = chunk_size
        self.memory_budget = memory_budget

    def _expected_seconds(self, trial: Trial) -> float:
        return trial.by_rows(self)

    def _fit(self) -> None:
        check_gradients(self._objective)

    def _scores(self, test: Measured) -> NDArray[np.float64]:
        return self._objective.pairs(
            test, product=lambda a, b: a.inner(b.unit()), prepared=RowGradients.unit
        )

    def _self_influence(self) -> NDArray[np.float64]:
        return self._objective.rowwise(
            self._own, product=lambda a, b: a.unit().inner_rowwise(b.unit())
        )
