"""Influence functions by a Neumann series (LiSSA)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from .._validation import (
    MAX_SEED,
    POSITIVE_INTEGER,
    POSITIVE_REAL,
    StrOptions,
    check_is_fitted,
    check_random_state,
)
from ..curvature.iterative import IterativeSolver
from ..curvature.lanczos import extreme_eigenvalues
from ..curvature.lissa import automatic_scale, batch_series, full_series
from ..measured import Measured
from ..measurements import Measurement
from ..model import DEFAULT_BUDGET
from .families.influence import BaseInfluence

#: ``depth="auto"`` takes at most this many terms.
MAX_DEPTH = 50_000


class LiSSAInfluence(BaseInfluence):
    r"""Influence function solved by a Neumann series.

    .. math:: S_{z,i} = \frac{s_i}{1 - s_i} u_z^\top (g_i - \bar g), \qquad
              x \leftarrow \nabla_\theta m_z + \left(I - \frac{C + \lambda I}{s}\right) x,
              \quad u_z = x / s

    estimates the change of the measurement when row i is removed and the model is trained to
    convergence near the final model. :math:`g_i` is the gradient of the row's loss, C the
    curvature of the weighted mean loss (and of the L2 penalty, if the model has one).

    The scale s and the number of terms follow from the extreme eigenvalues of C, found in ``fit``,
    so that nothing has to be guessed: over all rows, s is half the sum of the extreme eigenvalues
    of :math:`C + \lambda I`, with :math:`\mu` the lowest of them each term shrinks the error by
    :math:`1 - \mu/s`, and a test row stops when its solution is sure to be within `tol`. With
    batches each term costs less, but s must allow for the largest curvature that a batch can have, and
    the noise stays: the last half of the iterates is averaged. `CGInfluence` needs the square root
    of the number of terms.

    :math:`s_i = w_i / \sum_j w_j` is the row's share of the objective (1/n) and :math:`\bar g = \sum_j
    s_j g_j`. With ``reweight_others=False``, and for linear models that a solver has fitted (there
    :math:`\bar g` and the penalty cancel), :math:`s_i g_i` stands in its place.

    Parameters
    ----------
    estimator : object, default=None
        Fitted model; an unfitted scikit-learn or skorch estimator is cloned and fitted. None is a
        small MLP.
    curvature : str, default="gauss-newton"
        The matrix C: "gauss-newton", "hessian", "empirical-fisher", or "sampled-fisher". With the
        Hessian this is LiSSA-H.
    damping : float, "auto" or "tuned", default="auto"
        :math:`\lambda`; "auto" is 1,000 times the mean squared entry of the rows' gradients, at most
        0.05 of the trace of the curvature (but for the Hessian), and 0.001 of it for a linear model
        that a solver has fitted; "tuned" agrees best with a small gold standard, see `tuning`.
    tuning : dict, default=None
        For ``damping="tuned"``: parameters of `FurtherTraining` (its ``n_epochs`` is the horizon to
        agree with) that differ from 10 epochs, 5 seeds and 30 left-out rows. Candidates are 0.1 to
        100,000 times the mean squared entry of the rows' gradients, compared by their converged
        solutions.
    depth : int or "auto", default="auto"
        Most terms of the series; "auto" is :math:`(s/\mu) \log(2 s/(\mu\,\mathrm{tol}))`,
        which is sure to reach `tol` (:math:`2 (s/\mu) \log(1/\mathrm{tol})` with batches), and at
        most 50,000.
    batch_size : int, default=None
        Rows in each term; all of them by default.
    scale : float or "auto", default="auto"
        The scale s.
    tol : float, default=1e-3
        Relative error of a solution at which the series stops (over all rows only).
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
        Bytes for vectors and gradients.
    random_state : int, RandomState or None, default=None
        Used to fit an unfitted `estimator`, to sample targets and to draw batches.

    Attributes
    ----------
    estimator_ : object
        The final model.
    model_ : FinalModel
        Its frozen functional view.
    damping_ : float
        The damping used; may be changed after ``fit``, `scale_` and `depth_` follow.
    damping_agreement_ : dict of float to float
        Agreement by candidate (cosine, both centred); only with ``damping="tuned"``.
    scale_ : float
        The scale used.
    depth_ : int
        Most terms.
    n_iter_ : int
        Terms taken in the last call of `transform` or `self_influence`.
    train_indices_ : ndarray of shape (n_train,)
        Training row of each column.

    Raises
    ------
    FloatingPointError
        If the series diverges.
    ValueError
        If the damped curvature has a negative direction (the true Hessian may), or is singular and
        `depth` is not given.

    Warns
    -----
    ConvergenceWarning
        If a test row is not solved to `tol`.

    References
    ----------
    Agarwal, Bullins and Hazan, "Second-Order Stochastic Optimization for Machine Learning in Linear
    Time", JMLR 2017; Koh and Liang, "Understanding Black-box Predictions via Influence Functions",
    ICML 2017.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from fimoda import LiSSAInfluence
    >>> X, y = load_diabetes(return_X_y=True)
    >>> influence = LiSSAInfluence(Ridge().fit(X, y), damping=0.01).fit(X, y)
    >>> influence.transform(X[:4], y[:4]).shape
    (4, 442)
    """

    _COPIES = 16  # iterates are float64
    _AT_MINIMUM = 1e-3  # the number of terms is in proportion to its inverse

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseInfluence._parameter_constraints,
        **BaseInfluence._CURVATURE_CONSTRAINTS,
        "depth": [POSITIVE_INTEGER, StrOptions({"auto"})],
        "batch_size": [POSITIVE_INTEGER, None],
        "scale": [POSITIVE_REAL, StrOptions({"auto"})],
        "tol": [POSITIVE_REAL],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        curvature: str = "gauss-newton",
        damping: float | str = "auto",
        tuning: dict[str, Any] | None = None,
        depth: int | str = "auto",
        batch_size: int | None = None,
        scale: float | str = "auto",
        tol: float = 1e-3,
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
        self.depth = depth
        self.batch_size = batch_size
        self.scale = scale
        self.tol = tol

    def _prepare_solver(self) -> None:
        self._seed = int(check_random_state(self.random_state).randint(MAX_SEED))
        self._iterative = self._solver = IterativeSolver(self._curvature(), self)
        self._extremes = extreme_eigenvalues(self._solver.matrix, self._seed)

    def _check_damping(self) -> None:
        _ = self.scale_, self.depth_  # impossible settings show now

    def _scores_by_damping(
        self, dampings: Sequence[float], test: Measured
    ) -> Iterator[tuple[float, NDArray[np.float64]]]:
        contracting = [damping for damping in dampings if self._extremes[0] + damping > 0]
        return super()._scores_by_damping(contracting, test)

    @property
    def _lowest(self) -> float:
        """The lowest eigenvalue of the damped curvature."""
        lowest = self._extremes[0] + self.damping_
        if lowest <= 0 and self._extremes[0] < 0:
            raise ValueError(
                f"the curvature has the eigenvalue {self._extremes[0]:.2e}, and damping="
                f"{self.damping_:g} does not make it positive: the series would diverge. Raise damping "
                f"above {-self._extremes[0]:.1e}, or use curvature='gauss-newton'."
            )
        return lowest

    @property
    def _batch(self) -> int | None:
        """Rows in each term; None for all."""
        few = self.batch_size is not None and self.batch_size < len(self._objective)
        return self.batch_size if few else None

    @property
    def scale_(self) -> float:
        """The scale used."""
        if not isinstance(self.scale, str):
            return float(self.scale)
        _, largest = self._extremes
        lowest = self._lowest - self.damping_
        return automatic_scale(lowest, largest, self.damping_, len(self._objective), self._batch)

    @property
    def depth_(self) -> int:
        """Most terms."""
        if not isinstance(self.depth, str):
            return int(self.depth)
        lowest = self._lowest
        if lowest <= 0:
            raise ValueError(
                f"depth='auto' needs a curvature that is positive definite; with damping="
                f"{self.damping_:g} it may be singular. Raise damping, or give depth."
            )
        ratio, tol = self.scale_ / lowest, min(self.tol, 0.5)
        if self._batch is None:  # |r| / (mu |u|) starts at 2 s / mu or less
            terms = ratio * np.log(2 * ratio / tol)
        else:  # the first half of the iterates is not averaged
            terms = 2 * ratio * np.log(1 / tol)
        return int(min(np.ceil(terms) + 1, MAX_DEPTH))

    def _solve(self, V: Tensor) -> Tensor:
        return self._solver.solve(V, self._iterate)

    def _iterate(self, V: Tensor) -> tuple[Tensor, int, str | None]:
        """Return solutions, terms, and what to warn of."""
        matrix, scale, depth = self._solver.matrix, self.scale_, self.depth_
        if self._batch is None:
            found = full_series(matrix, V, self.damping_, scale, depth, self.tol, self._lowest)
        else:
            found = batch_series(matrix, V, self.damping_, scale, depth, self._batch, self._seed)
        trouble = (
            None
            if found.converged
            else f"not within tol={self.tol:g} after {depth} terms; raise depth or damping, or use "
            "CGInfluence, which needs far fewer products."
        )
        return found.u, found.n_iter, trouble

    @property
    def n_iter_(self) -> int:
        """Terms of the right-hand side that took most, in the last solution."""
        check_is_fitted(self, "model_")
        return self._solver.n_iter
