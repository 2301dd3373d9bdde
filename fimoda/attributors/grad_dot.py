"""Grad-Dot: inner products of gradients at the final model."""

from __future__ import annotations

from math import ceil
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .._validation import POSITIVE_INTEGER, POSITIVE_REAL, check_horizons, in_steps
from ..base import BaseAttributor
from ..curvature.checks import check_gradients
from ..curvature.removal import Removal
from ..measured import Measured
from ..measurements import Measurement
from ..model import DEFAULT_BUDGET
from ..training.optimizers import DEFAULT_BATCH_SIZE, DEFAULT_LR
from ..trials import Trial


class GradDot(BaseAttributor):
    r"""Inner product of the test row's and the training row's gradient, as one step of SGD.

    .. math:: S_{z,i} = \eta T \, \frac{s_i}{1 - s_i} \, \nabla_\theta m_z^\top (g_i - \bar g)

    is the first-order effect of removing row i from T steps of gradient descent with learning
    rate :math:`\eta` on the weighted mean loss: :math:`g_i` is the gradient of the row's loss,
    :math:`s_i = w_i / \sum_j w_j` its share (1/n without weights) and :math:`\bar g = \sum_j s_j g_j`.
    With ``reweight_others=False``, and for linear models that a solver has fitted (there :math:`\bar g`
    and the penalty cancel), it is :math:`\eta T s_i \nabla m_z^\top g_i`, the papers' formula. It is
    what further training does over few steps; with more it decays, since the curvature and the drift of
    the residuals are left out.

    Parameters
    ----------
    estimator : object, default=None
        Fitted model; an unfitted scikit-learn or skorch estimator is cloned and fitted. None is a
        small MLP.
    n_epochs : float, default=1
        Amount of further training whose effect is estimated; ``T = n_epochs * ceil(n / batch_size)``.
    lr : float, default=None
        Learning rate; the model's own by default (divided by 1 - momentum if it has momentum),
        0.01 if it has none. For models trained with an adaptive optimiser the scores rank rows,
        their size means nothing.
    batch_size : int, default=None
        Batch size; the model's own by default, 128 if it has none.
    reweight_others : bool, default=True
        Score the removal of a row as fitting without it does it: the other rows get its part of a mean,
        so that it is compared with their mean gradient, and balanced class weights change. False is
        the field's formula, in which the others keep their weights.
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
    Wei et al., "Final-Model-Only Data Attribution with a Unifying View of Gradient-Based Methods",
    NeurIPS 2025, arXiv 2412.03906 (Grad-Dot); Charpiat et al., "Input Similarity from the Neural
    Network Perspective", NeurIPS 2019.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from fimoda import GradDot
    >>> X, y = load_diabetes(return_X_y=True)
    >>> attributor = GradDot(Ridge().fit(X[:400], y[:400])).fit(X[:400], y[:400])
    >>> attributor.transform(X[400:], y[400:]).shape
    (42, 400)
    """

    process = "a step of gradient descent from the final model"

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseAttributor._parameter_constraints,
        **BaseAttributor._BUDGET_CONSTRAINTS,
        "n_epochs": [POSITIVE_REAL],
        "lr": [POSITIVE_REAL, None],
        "batch_size": [POSITIVE_INTEGER, None],
        "reweight_others": ["boolean"],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        n_epochs: float = 1,
        lr: float | None = None,
        batch_size: int | None = None,
        reweight_others: bool = True,
        measurement: Measurement = "loss",
        criterion: nn.Module | None = None,
        chunk_size: int | None = None,
        memory_budget: int = DEFAULT_BUDGET,
        random_state: Any = None,
    ):
        super().__init__(
            estimator, measurement=measurement, criterion=criterion, random_state=random_state
        )
        self.n_epochs = n_epochs
        self.lr = lr
        self.batch_size = batch_size
        self.reweight_others = reweight_others
        self.chunk_size = chunk_size
        self.memory_budget = memory_budget

    def _expected_seconds(self, trial: Trial) -> float:
        return trial.by_rows(self)

    def _fit(self) -> None:
        check_gradients(self._objective)
        self._removal = Removal.of(self._objective, self.reweight_others)
        self._scale = self._step()

    def _step(self) -> float:
        r"""Return :math:`\eta T`."""
        recipe = self.model_.recipe.continued
        momentum = recipe.params.get("momentum", 0.0)
        own = DEFAULT_LR if recipe.lr is None else recipe.lr / (1 - momentum)
        batch = self.batch_size or recipe.batch_size or DEFAULT_BATCH_SIZE
        per_epoch = ceil(len(self._objective) / batch)
        (steps,) = in_steps(check_horizons(self.n_epochs), per_epoch, "n_epochs")
        return (own if self.lr is None else self.lr) * steps

    def _factors(self) -> NDArray[np.float64]:
        r"""Return :math:`\eta T s_i` of each training row, (n,)."""
        return self._scale * self._objective.rows.shares.cpu().numpy()

    def _scores(self, test: Measured) -> NDArray[np.float64]:
        scores = self._objective.pairs(test) * self._factors()
        return self._removal(scores, self._pulled(test))

    def _self_influence(self) -> NDArray[np.float64]:
        scores = self._objective.rowwise(self._own) * self._factors()
        if not self._removal.changes_others:
            return scores
        members = torch.from_numpy(self._removal.members() * self._factors()[:, None])
        groups = self._objective.combined(members)
        sums = self._objective.along(groups, self._own).cpu().numpy()
        return self._removal.diagonal(scores, sums, self._pulled(self._own))

    def _pulled(self, test: Measured) -> NDArray[np.float64] | None:
        """Return products (m,) of test rows with the gradient of a penalty that removal changes."""
        if self._removal.pull is None:
            return None
        found = self._objective.along(self._removal.pull[None], test)[:, 0]
        return found.cpu().numpy() * self._scale

    def _relabelled(
        self, test: Measured, rows: NDArray[np.int64], targets: NDArray[Any]
    ) -> NDArray[np.float64]:
        before, after = (
            self._objective.pairs(test, one) * one.rows.shares.cpu().numpy()
            for one in self._with_targets(rows, targets)
        )
        return self._scale * (before - after)
