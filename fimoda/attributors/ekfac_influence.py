"""EK-FAC influence functions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from .._validation import MAX_SEED, StrOptions, check_random_state
from ..curvature.ekfac import EKFAC, fisher_of
from ..layers import LayerGradients
from ..measured import Measured
from ..measurements import Measurement
from ..row_gradients import RowGradients
from .families.influence import BaseInfluence


class EKFACInfluence(BaseInfluence):
    r"""Influence function with eigenvalue-corrected Kronecker-factored curvature.

    .. math:: S_{z,i} = \frac{s_i}{1 - s_i} \nabla_\theta m_z^\top (C + \lambda I)^{-1} (g_i - \bar g),
        \qquad C = \bigoplus_l (Q_S \otimes Q_A)\, \Lambda\, (Q_S \otimes Q_A)^\top

    has one block a layer: :math:`Q_A` and :math:`Q_S` are the eigenvectors of the second moments of
    the layer's inputs (a last coordinate of ones stands for the bias) and of the gradients in its
    outputs, and :math:`\Lambda = E[(Q_S^\top G Q_A)^2]` the second moments of the gradients G in
    that basis, all means with the weights :math:`w_i / \sum_j w_j` over training rows at targets
    that the model itself predicts. It is the best diagonal in that basis of the layer's block of
    the Gauss-Newton matrix, and exact for a linear model under squared error.

    Linear layers, on vectors or on sequences, and attention's projections have such a block,
    convolutions one for each group of channels. Of an embedding :math:`Q_A` is the identity, since
    tokens are inputs of one entry. Of rows that are padded, A has the positions in use alone. Scale
    and shift of a normalisation, biases alone and parameters that no layer owns have a dense block,
    the exact one, up to 1,024 of them, and the diagonal beyond, as has a side of a layer wider than
    8,192. The training rows stay in the eigenbases where
    they fit `memory_budget`, so that ``transform`` does not differentiate them again.

    :math:`s_i = w_i / \sum_j w_j` is the row's share of the objective (1/n) and :math:`\bar g = \sum_j
    s_j g_j`. With ``reweight_others=False``, and for linear models that a solver has fitted (there
    :math:`\bar g` and the penalty cancel), :math:`s_i g_i` stands in its place.

    Parameters
    ----------
    estimator : object, default=None
        Fitted model; an unfitted scikit-learn or skorch estimator is cloned and fitted. None is a
        small MLP.
    fisher : {"auto", "expected", "sampled"}, default="auto"
        How the mean over the model's own targets is taken: exactly, by one backward pass an
        output, or from one draw a row, by which scores depend on the order of the rows. "auto" is
        "expected" for up to 128 outputs, those of all positions of a sequence counted.
    damping : float, "auto" or "tuned", default="auto"
        :math:`\lambda`; "auto" is 1,000 times the mean squared entry of the rows' gradients, at most
        0.05 of the trace of the curvature, and 1e-12 of it for a linear model at its
        minimum; "tuned" agrees best with a small gold standard, see `tuning`.
    tuning : dict, default=None
        For ``damping="tuned"``: parameters of `FurtherTraining` (its ``n_epochs`` is the horizon to
        agree with) that differ from 10 epochs, 5 seeds and 30 left-out rows. Candidates are 0.1 to
        100,000 times the mean squared entry of the rows' gradients.
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
        Rows whose factors are computed at a time; from `memory_budget` by default.
    memory_budget : int, default=1 GiB
        Bytes for factors and gradients. Scores are the same for every value.
    random_state : int, RandomState or None, default=None
        Used to fit an unfitted `estimator` and to sample targets.

    Attributes
    ----------
    estimator_ : object
        The final model.
    model_ : FinalModel
        Its frozen functional view.
    damping_ : float
        The damping used; may be changed after ``fit`` at no cost.
    damping_agreement_ : dict of float to float
        Agreement by candidate (cosine, both centred); only with ``damping="tuned"``.
    train_indices_ : ndarray of shape (n_train,)
        Training row of each column.

    Raises
    ------
    ValueError
        If the damped curvature is singular.

    References
    ----------
    Grosse et al., "Studying Large Language Model Generalization with Influence Functions", arXiv
    2308.03296; George et al., "Fast Approximate Natural Gradient Descent in a Kronecker-factored
    Eigenbasis", NeurIPS 2018.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from fimoda import EKFACInfluence
    >>> X, y = load_iris(return_X_y=True)
    >>> influence = EKFACInfluence(LogisticRegression(max_iter=500).fit(X, y)).fit(X, y)
    >>> influence.transform(X[:4], y[:4]).shape
    (4, 150)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseInfluence._parameter_constraints,
        "fisher": [StrOptions({"auto", "expected", "sampled"})],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        fisher: str = "auto",
        damping: float | str = "auto",
        tuning: dict[str, Any] | None = None,
        reweight_others: bool = True,
        measurement: Measurement = "loss",
        criterion: nn.Module | None = None,
        chunk_size: int | None = None,
        memory_budget: int = 2**30,
        random_state: Any = None,
    ):
        super().__init__(
            estimator, measurement=measurement, criterion=criterion, random_state=random_state
        )
        self.damping = damping
        self.tuning = tuning
        self.reweight_others = reweight_others
        self.chunk_size = chunk_size
        self.memory_budget = memory_budget
        self.fisher = fisher

    def _prepare_solver(self) -> None:
        fisher = fisher_of(self._objective, self.fisher)
        sampled = fisher == "sampled"
        seed = check_random_state(self.random_state).randint(MAX_SEED) if sampled else 0
        objective = replace(self._objective, memory_budget=self.memory_budget // 4)
        self._ekfac = EKFAC(objective, fisher=fisher, seed=int(seed))
        self._kept: list[tuple[slice, list[LayerGradients]]] | None = None
        if len(objective) * self._ekfac.row_bytes() <= self.memory_budget // 2:
            self._kept = list(self._ekfac.chunks(self._objective.losses))

    def _train_factors(self) -> Iterable[tuple[slice, list[LayerGradients]]]:
        """Return gradients of the training rows in the eigenbases, a chunk at a time."""
        return self._ekfac.chunks(self._objective.losses) if self._kept is None else self._kept

    def _trace(self) -> float:
        # the bases keep lengths, so that the eigenvalues have the trace of the Fisher matrix itself
        return self._ekfac.trace() if self._ekfac.fisher == "expected" else super()._trace()

    def _check_damping(self) -> None:
        self._ekfac.check_definite(self.damping_)

    def _scores(self, test: Measured) -> NDArray[np.float64]:
        self._ekfac.check_definite(self.damping_)
        solved_together = max(1, self.memory_budget // (4 * self._ekfac.solved_bytes()))
        if self._kept is None:
            result = self._objective.pairs(test, prepared=self._solved, together=solved_together)
        else:
            result = np.zeros((len(test), len(self._objective)))
            for at, rotated in self._ekfac.chunks(test, solved_together):
                solved = self._ekfac.divide(rotated, self.damping_)
                for rows, layers in self._kept:
                    for one, layer in zip(solved, layers, strict=True):
                        result[at, rows] += layer.inner(one).mT.cpu().numpy()
        return self._removal(result * self._share, self._pulled(test))

    def _solved(self, gradients: RowGradients) -> RowGradients:
        return self._ekfac.solved(gradients, self.damping_)

    def _solve(self, V: Tensor) -> Tensor:
        return self._ekfac.solve(V, self.damping_)

    def _self_influence(self) -> NDArray[np.float64]:
        self._ekfac.check_definite(self.damping_)
        result = np.empty(len(self._objective))
        for rows, train in self._train_factors():
            test = train
            if self._measure is not self.model_.loss:
                test = self._ekfac.rotated(self._own[rows])
            result[rows] = self._ekfac.inner_rowwise(test, train, self.damping_).cpu().numpy()
        result *= self._share
        if not self._removal.changes_others:
            return result
        sums = self._along(self._own, self._group_gradients())
        return self._removal.diagonal(result, sums, self._pulled(self._own))
