"""Influence functions by conjugate gradients."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from .._validation import (
    MAX_SEED,
    POSITIVE_INTEGER,
    POSITIVE_REAL,
    StrOptions,
    check_is_fitted,
    check_random_state,
)
from ..curvature.cg import USUAL_ITERATIONS, conjugate_gradients
from ..curvature.iterative import IterativeSolver
from ..curvature.preconditioner import EKFACPreconditioner
from ..measurements import Measurement
from ..model import DEFAULT_BUDGET
from ..trials import Trial
from .families.influence import BaseInfluence

#: Iterations of trials.
_TRIED = (2, 6)


class CGInfluence(BaseInfluence):
    r"""Influence function solved by conjugate gradients.

    .. math:: S_{z,i} = \frac{s_i}{1 - s_i} \nabla_\theta m_z^\top (C + \lambda I)^{-1} (g_i - \bar g)

    estimates the change of the measurement when row i is removed and the model is trained to
    convergence near the final model. :math:`g_i` is the gradient of the row's loss, C the
    curvature of the weighted mean loss (and of the L2 penalty, if the model has one).

    :math:`(C + \lambda I) u = \nabla_\theta m_z` is solved for all test rows at once, by products
    with C over the whole training set; C is never formed. Each test row costs about
    :math:`\sqrt\kappa` products, :math:`\kappa` the largest eigenvalue of C over
    :math:`\lambda`. ``fit`` tries the solver on one combination of training gradients.

    :math:`s_i = w_i / \sum_j w_j` is the row's share of the objective (1/n) and :math:`\bar g = \sum_j
    s_j g_j`. With ``reweight_others=False``, and for linear models that a solver has fitted (there
    :math:`\bar g` and the penalty cancel), :math:`s_i g_i` stands in its place.

    Parameters
    ----------
    estimator : object, default=None
        Fitted model; an unfitted scikit-learn or skorch estimator is cloned and fitted. None is a
        small MLP.
    curvature : str, default="gauss-newton"
        The matrix C: "gauss-newton", "hessian", "empirical-fisher", or "sampled-fisher".
    curvature_rows : int, default=None
        Training rows, drawn at random, that C is the mean over; all by default. Products cost as
        many times less, and scores vary from draw to draw.
    damping : float, "auto" or "tuned", default="auto"
        :math:`\lambda`; "auto" is 1,000 times the mean squared entry of the rows' gradients, at most
        0.05 of the trace of the curvature (but for the Hessian), and 1e-12 of it for a linear model
        at its minimum; "tuned" agrees best with a small gold standard, see `tuning`.
    tuning : dict, default=None
        For ``damping="tuned"``: parameters of `FurtherTraining` (its ``n_epochs`` is the horizon to
        agree with) that differ from 10 epochs, 5 seeds and 30 left-out rows. Candidates are 0.1 to
        100,000 times the mean squared entry of the rows' gradients. All are solved at once, at
        the cost of the least.
    preconditioner : "ekfac" or None, default=None
        "ekfac" steps along the EK-FAC approximation of C. It takes fewer iterations where training
        rows times outputs outnumber parameters and layers see inputs of very different sizes; with
        few rows it may take more.
    tol : float, default=1e-6
        A test row is solved when its residual is at most this times its right-hand side. In
        float32 a badly conditioned curvature may not allow that, which is a warning.
    max_iter : int, default=None
        Most iterations; by default ten times the number of parameters, at most 1,000.
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
        Bytes for vectors and gradients. Scores are the same for every value.
    random_state : int, RandomState or None, default=None
        Used to fit an unfitted `estimator`, to sample targets, to draw `curvature_rows` and for the trial
        in ``fit``.

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
    n_iter_ : int
        Iterations of the test row that took most, in the last call (in the trial, after ``fit``).
    train_indices_ : ndarray of shape (n_train,)
        Training row of each column.

    Raises
    ------
    ValueError
        If the damped curvature has a negative direction (the true Hessian may).

    Warns
    -----
    ConvergenceWarning
        If a test row is not solved to `tol`.

    References
    ----------
    Martens, "Deep Learning via Hessian-free Optimization", ICML 2010; Koh and Liang,
    "Understanding Black-box Predictions via Influence Functions", ICML 2017.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from fimoda import CGInfluence
    >>> X, y = load_diabetes(return_X_y=True)
    >>> influence = CGInfluence(Ridge().fit(X, y), damping=0.01).fit(X, y)
    >>> influence.transform(X[:4], y[:4]).shape
    (4, 442)
    """

    _COPIES = 16  # iterates are float64

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseInfluence._parameter_constraints,
        **BaseInfluence._CURVATURE_CONSTRAINTS,
        **BaseInfluence._SUBSAMPLE_CONSTRAINTS,
        "preconditioner": [StrOptions({"ekfac"}), None],
        "tol": [POSITIVE_REAL],
        "max_iter": [POSITIVE_INTEGER, None],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        curvature: str = "gauss-newton",
        curvature_rows: int | None = None,
        damping: float | str = "auto",
        tuning: dict[str, Any] | None = None,
        preconditioner: str | None = None,
        tol: float = 1e-6,
        max_iter: int | None = None,
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
        self.damping = damping
        self.tuning = tuning
        self.reweight_others = reweight_others
        self.chunk_size = chunk_size
        self.memory_budget = memory_budget
        self.curvature = curvature
        self.curvature_rows = curvature_rows
        self.preconditioner = preconditioner
        self.tol = tol
        self.max_iter = max_iter

    def _expected_seconds(self, trial: Trial) -> float:
        few, more = (trial.by_rows(self, max_iter=k) for k in _TRIED)
        each = max(more - few, 0.0) / (_TRIED[1] - _TRIED[0])
        seconds = few + each * (USUAL_ITERATIONS - _TRIED[0])
        if seconds > trial.left():
            return seconds
        # how many it takes shows in fit, for one right-hand side
        own = trial.fitted(self)
        return few + each * max(own.n_iter_ - _TRIED[0], 0)

    def _prepare_solver(self) -> None:
        self._seed = int(check_random_state(self.random_state).randint(MAX_SEED))
        self._iterative = self._solver = IterativeSolver(self._curvature(), self)
        self._preconditioner = (
            None if self.preconditioner is None else EKFACPreconditioner(self._solver.matrix)
        )

    def _check_damping(self) -> None:
        """Solve for one random combination of gradients of training rows."""
        n = len(self._objective)
        rows = np.random.default_rng(self._seed).permutation(n)[: self._objective.chunk()]
        signs = np.where(np.random.default_rng(self._seed).random((len(rows), 1)) < 0.5, -1.0, 1.0)
        gradients = self._objective.differentiate(self._objective.losses[rows])
        self._solve(gradients.combine(torch.from_numpy(signs).to(self.model_.theta)))

    def _solve(self, V: Tensor) -> Tensor:
        return self._solver.solve(V, self._iterate)

    def _iterate(self, V: Tensor) -> tuple[Tensor, int, str | None]:
        """Return solutions, iterations, and what to warn of."""
        most = self.max_iter or min(10 * self.model_.n_parameters, 1000)
        found = conjugate_gradients(
            self._solver.matrix, V, self.damping_, self.tol, most, self._preconditioner
        )
        worst = float(found.residuals.max())
        if worst <= self.tol:
            return found.u, found.n_iter, None
        reason = (
            f"after max_iter={most} iterations; raise max_iter or damping"
            if found.n_iter >= most
            else f"where rounding in {self.model_.dtype} stops it; raise damping or tol, or use "
            "a model in float64"
        )
        trouble = f"the worst relative residual is {worst:.1e}, above tol={self.tol:.1e}, {reason}."
        return found.u, found.n_iter, trouble

    @property
    def n_iter_(self) -> int:
        """Iterations of the right-hand side that took most, in the last solution."""
        check_is_fitted(self, "model_")
        return self._solver.n_iter
