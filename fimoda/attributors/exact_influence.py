"""Exact influence functions: dual or primal, whichever is smaller."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..curvature.cg import USUAL_ITERATIONS
from ..curvature.exact import DualGaussNewton, NewtonSteps, PrimalSolver, row_factors
from ..curvature.greedy_removal import GreedyRemoval
from ..curvature.group_removal import Coordinates, measured_change
from ..measured import Measured
from ..measurements import Measurement
from ..trials import Trial
from .families.influence import BaseInfluence

#: Multiplications of an eigendecomposition, in cubed sides: by their seconds (see `Trial.eigen_rate`).
DECOMPOSITION = 8

#: Multiplications of a decomposition of some ten seconds, and test rows from which on it is no waste.
MANY_OPERATIONS, FEW_ROWS = 2 * 10**11, 100

#: Rows and vectors of the trial of products.
_TRIED = 64


class ExactInfluence(BaseInfluence):
    r"""Influence function with an exact solution.

    .. math:: S_{z,i} = \frac{s_i}{1 - s_i} \nabla_\theta m_z^\top (C + \lambda I)^{-1} (g_i - \bar g)

    estimates the change of the measurement when row i is removed and the model is trained to
    convergence near the final model. :math:`g_i` is the gradient of the row's loss, :math:`s_i = w_i /
    \sum_j w_j` its share (1/n), :math:`\bar g = \sum_j s_j g_j`, C the curvature of the weighted mean
    loss and of the penalty, if the model has one (weight decay of the optimiser included). With
    ``reweight_others=False``, and for solvers that minimise a sum of losses beside the penalty, it is
    :math:`s_i \nabla m_z^\top (C + \lambda I)^{-1} g_i`.

    The Gauss-Newton matrix is solved in the space of the outputs (n C x n C) when that is smaller
    than the parameters and the penalty, if any, is even, otherwise as a dense p x p matrix. Either takes one
    eigendecomposition in ``fit``, after which any test row and any damping costs products only.

    Parameters
    ----------
    estimator : object, default=None
        Fitted model; an unfitted scikit-learn or skorch estimator is cloned and fitted. None is a
        small MLP.
    curvature : str, default="gauss-newton"
        The matrix C: "gauss-newton", "hessian", "empirical-fisher", or "sampled-fisher".
    newton_step : bool, default=False
        Remove the row from the curvature too, :math:`(C_{-i} + \lambda I)^{-1}`: a full Newton step
        of the objective without the row. For models with one output this divides the score by one
        minus the row's leverage (rescaled influence); for least squares it is exact. Only with
        ``curvature="gauss-newton"``.
    damping : float, "auto" or "tuned", default="auto"
        :math:`\lambda`; "auto" is 1,000 times the mean squared entry of the rows' gradients, at most
        0.05 of the trace of the curvature (but for the Hessian); a linear model at its minimum
        takes none, or 1e-12 of the trace where C is singular; "tuned" agrees best with a small
        gold standard, see `tuning`.
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
        Rows whose gradients are held at a time; from `memory_budget` by default.
    memory_budget : int, default=4 GiB
        Bytes for matrices and gradients.
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
    MemoryError
        If neither matrix fits `memory_budget`.
    ValueError
        If the damped curvature is not positive definite.

    Warns
    -----
    UserWarning
        If the decomposition takes some ten seconds or more, with the number of test rows up to which
        `CGInfluence` takes less.

    References
    ----------
    Koh and Liang, "Understanding Black-box Predictions via Influence Functions", ICML 2017; Wei et
    al., arXiv 2412.03906.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from fimoda import ExactInfluence
    >>> X, y = load_diabetes(return_X_y=True)
    >>> influence = ExactInfluence(Ridge().fit(X, y), damping=0.0).fit(X, y)
    >>> influence.transform(X[:4], y[:4]).shape
    (4, 442)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseInfluence._parameter_constraints,
        **BaseInfluence._CURVATURE_CONSTRAINTS,
        "newton_step": ["boolean"],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        curvature: str = "gauss-newton",
        newton_step: bool = False,
        damping: float | str = "auto",
        tuning: dict[str, Any] | None = None,
        reweight_others: bool = True,
        measurement: Measurement = "loss",
        criterion: nn.Module | None = None,
        chunk_size: int | None = None,
        memory_budget: int = 4 * 2**30,
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
        self.newton_step = newton_step

    def _expected_seconds(self, trial: Trial) -> float:
        own = trial.prepared(self)
        objective, p = own._objective, own.model_.n_parameters
        rate, eigen = trial.product_rate, trial.eigen_rate
        if self.curvature == "gauss-newton" and DualGaussNewton.is_smaller(objective):
            modes = trial.n_rows * own.n_outputs_
            width = objective.differentiate.row_bytes() / (4 * own.model_.theta.element_size())
            return modes**2 * (width + 2 * trial.n_test) / rate + modes**3 / eigen
        if 3 * 8 * p**2 > self.memory_budget:
            return 0.0  # until it says so
        rows = np.linspace(0, trial.n_rows - 1, min(trial.n_rows, _TRIED)).astype(np.int64)
        own._curved = objective.restricted(rows)
        some = own._curvature().double
        vectors = torch.zeros(min(_TRIED, p), p, dtype=torch.float64, device=own.model_.device)
        vectors.fill_diagonal_(1)
        few = min(trial.timed(lambda: some.matmat(vectors)) for _ in range(2))
        products = few * p / len(vectors) * trial.n_rows / len(rows)
        return products + p**3 / eigen + trial.n_test * p**2 / rate

    def _prepare_solver(self) -> None:
        if self.newton_step and self.curvature != "gauss-newton":
            raise ValueError(
                "newton_step=True removes a row from the Gauss-Newton matrix: it needs "
                f"curvature='gauss-newton', got {self.curvature!r}."
            )
        self._warn_of_size()
        self._dual: DualGaussNewton | None = None
        self._primal: PrimalSolver | None = None
        self._newton: NewtonSteps | None = None
        self._known: dict[float, Coordinates] = {}
        if self.curvature == "gauss-newton" and DualGaussNewton.is_smaller(self._objective):
            self._dual = DualGaussNewton(self._objective)
            return
        self._primal = PrimalSolver(self._curvature())
        if self.newton_step:
            self._newton = self._newton_steps(self._primal)

    def _newton_steps(self, solver: PrimalSolver) -> NewtonSteps:
        return NewtonSteps(solver, self._objective, self._removal)

    def _warn_of_size(self) -> None:
        """Say for how many test rows conjugate gradients take less, if the decomposition is large."""
        n, p, outputs = len(self._objective), self.model_.n_parameters, self.n_outputs_
        side = min(n * outputs, p) if self.curvature == "gauss-newton" else p
        row = USUAL_ITERATIONS * 4 * n * p  # multiplications of products with the curvature
        even = DECOMPOSITION * side**3 / row
        if DECOMPOSITION * side**3 > MANY_OPERATIONS and even > FEW_ROWS:
            warnings.warn(
                f"ExactInfluence decomposes a matrix of {side:,} rows. CGInfluence gives the same scores "
                f"to its tolerance, and takes less for up to about {float(f'{even:.1g}'):,.0f} test rows.",
                UserWarning,
                stacklevel=2,
            )

    def _damping_at_minimum(self, trace: float) -> float:
        if self._primal is not None and self._primal.is_definite:
            return 0.0
        return super()._damping_at_minimum(trace)

    def _scores(self, test: Measured) -> NDArray[np.float64]:
        if self._dual is not None:
            removal = self._removal if self.newton_step else None
            scores = self._dual.scores(test, self.damping_, removal).cpu().numpy()
            return scores if self.newton_step else self._removal(scores)
        if self._newton is not None:
            gradients = self._objective.differentiate(test).dense()
            return self._newton.scores(gradients, self.damping_).cpu().numpy()
        return super()._scores(test)

    def _solve(self, V: Tensor) -> Tensor:
        if self._primal is None:
            raise RuntimeError("the dual solution never forms vectors of parameters")
        return self._primal.solve(V, self.damping_)

    # ---- groups -----------------------------------------------------------------------------

    def _group_methods(self) -> tuple[str, ...]:
        known = super()._group_methods()
        return (*known, "exact") if self.curvature == "gauss-newton" else known

    def _coordinates(self) -> Coordinates:
        """Return coordinates in which the Gauss-Newton matrix is diagonal, kept for this damping."""
        if self.damping_ not in self._known:
            if self._primal is not None:
                solver: DualGaussNewton | NewtonSteps = self._newton_steps(self._primal)
            elif self._dual is not None:
                solver = self._dual
            self._known = {self.damping_: solver.coordinates(self.damping_)}
        return self._known[self.damping_]

    def _second_order(self, test: Measured, groups: NDArray[np.bool_]) -> NDArray[np.float64]:
        if self.curvature != "gauss-newton":
            return super()._second_order(test, groups)
        return self._together(test, groups, exact=False)

    def _without(
        self, test: Measured, groups: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        effects = self._together(test, groups, exact=True)
        return effects, np.full_like(effects, np.nan)

    def _together(
        self, test: Measured, groups: NDArray[np.bool_], exact: bool
    ) -> NDArray[np.float64]:
        """Return the effects (n_test, k) of groups in the quadratic model."""
        coordinates = self._coordinates()
        steps = coordinates.steps(self._removal_of(groups), groups, exact)
        return measured_change(self.model_, test, coordinates.push(test, steps))

    def _greedy_rows(
        self, test: Measured, n_rows: int, sign: float, together: bool
    ) -> NDArray[np.int64] | None:
        if self.curvature != "gauss-newton":
            return None
        coordinates, share = self._coordinates(), self._mean_shares()
        if 2 * 8 * coordinates.reach.numel() * len(coordinates.loss) > self.memory_budget:
            return None  # the factors of all rows are held
        gradients = sign * coordinates.gradients(self.model_, test)
        if together:
            gradients = gradients.mean(0, keepdim=True)
        greedy = GreedyRemoval(coordinates, share)
        return np.array([greedy.rows(one, n_rows) for one in gradients])

    def _relabelled(
        self, test: Measured, rows: NDArray[np.int64], targets: NDArray[Any]
    ) -> NDArray[np.float64]:
        if self._dual is None:
            return super()._relabelled(test, rows, targets)
        known, changed = self._with_targets(rows, targets)
        objective = self._objective.of_rows(known.rows).double
        ratio = (changed.rows.shares / known.rows.shares).nan_to_num(
            1.0
        )  # rows without weight have none
        before, after = (row_factors(objective, one.targets)[1] for one in (known, changed))
        found = self._dual.products(test, self.damping_, rows, before - ratio[:, None] * after)
        return found.cpu().numpy()
