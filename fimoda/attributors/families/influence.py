"""The base of influence functions: damping, and scores from solutions."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..._validation import (
    MAX_SEED,
    NON_NEGATIVE_REAL,
    POSITIVE_INTEGER,
    StrOptions,
    check_random_state,
)
from ...base import BaseAttributor
from ...curvature.checks import check_curvature, check_gradients
from ...curvature.damping import automatic_damping, curvature_trace, damping_unit
from ...curvature.group_removal import measured_change, outputs_along, second_order_steps
from ...curvature.iterative import IterativeSolver
from ...curvature.operators import CURVATURES, Curvature
from ...curvature.removal import Removal
from ...measured import Measured
from ...objective import Objective
from ...training.tuning import GOLD, tuned_damping
from ...trials import Trial
from ..further_training import FurtherTraining

#: Part of a column's mean square from which on a damping drowns it.
MOST_OF_COLUMN = 1e-4


class BaseInfluence(BaseAttributor):
    r"""Influence functions, products :math:`s_i \nabla m_z^\top (C + \lambda I)^{-1} g_i`.

    `_removal` makes scores of them. A subclass implements `_prepare_solver` (what depends on training
    rows only, for any damping) and `_solve`, which follows `damping_`.
    """

    process = "training to convergence near the final model"

    #: The part of the trace that is ``damping="auto"`` where the model is at its minimum.
    _AT_MINIMUM: ClassVar[float] = 1e-12

    #: Vectors of the size of the model that are alive for each right-hand side of `_solve`.
    _COPIES: ClassVar[int] = 8

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseAttributor._parameter_constraints,
        **BaseAttributor._BUDGET_CONSTRAINTS,
        "damping": [NON_NEGATIVE_REAL, StrOptions({"auto", "tuned"})],
        "tuning": [dict, None],
        "reweight_others": ["boolean"],
    }
    _CURVATURE_CONSTRAINTS: ClassVar[dict[str, list[Any]]] = {
        "curvature": [StrOptions(set(CURVATURES))]
    }
    _SUBSAMPLE_CONSTRAINTS: ClassVar[dict[str, list[Any]]] = {
        "curvature_rows": [POSITIVE_INTEGER, None]
    }

    damping: float | str
    tuning: dict[str, Any] | None
    reweight_others: bool
    memory_budget: int
    curvature: str = "gauss-newton"
    curvature_rows: int | None = None

    #: The solver of a method that iterates: it compares dampings in one Krylov space.
    _iterative: IterativeSolver | None = None

    # ---- hooks ------------------------------------------------------------------------------

    @abstractmethod
    def _prepare_solver(self) -> None:
        """Compute whatever of the solution depends on neither test rows nor damping."""

    @abstractmethod
    def _solve(self, V: Tensor) -> Tensor:
        """Return solutions of ``(C + damping_ I) u = v`` for the rows of V (k, p), as rows."""

    def _trace(self) -> float:
        """Return the trace of the curvature, by which ``damping="auto"`` is bounded."""
        return curvature_trace(self._curved, self.curvature)

    def _check_damping(self) -> None:
        """Raise ValueError now if the damped curvature cannot be solved with `damping_`."""

    # ---- fit --------------------------------------------------------------------------------

    def _expected_seconds(self, trial: Trial) -> float:
        return trial.by_rows(self)

    def _fit(self) -> None:
        check_gradients(self._objective)
        if self.curvature == "gauss-newton":
            check_curvature(self._objective)
        self._share = self._objective.rows.shares.cpu().numpy()
        self._removal = Removal.of(self._objective, self.reweight_others)
        self._curved = self._drawn()
        self._prepare_solver()
        if self.damping == "tuned":
            self.damping_, self.damping_agreement_ = self._tuned()
        elif self.damping == "auto":
            self.damping_ = automatic_damping(
                self._objective, self.curvature, self._damping_at_minimum, self._trace
            )
        else:
            self.damping_ = float(self.damping)
        self._check_damping()

    def _drawn(self) -> Objective:
        """Return the objective whose curvature is taken, of all rows or some."""
        n = len(self._objective)
        if self.curvature_rows is None or self.curvature_rows >= n:
            return self._objective
        rows = check_random_state(self.random_state).permutation(n)[: self.curvature_rows]
        return self._objective.restricted(np.sort(rows))

    def _tuned(self) -> tuple[float, dict[float, float]]:
        """Return the damping that agrees best with further training, and the agreement by damping."""
        if self.model_.recipe.solved:
            warnings.warn(
                f"{type(self).__name__}: damping='tuned' agrees with further training by "
                "gradient steps. This model was fitted by a solver: to know what fitting it "
                "again would give take damping='auto'.",
                UserWarning,
                stacklevel=2,
            )
        unit = damping_unit(self._objective, "tuned")
        trace = self._trace()
        unit = min(unit, trace / self.model_.n_parameters) if trace > 0 else unit
        gold = {**GOLD, "random_state": self.random_state, **(self.tuning or {})}
        training = FurtherTraining(self.estimator_, criterion=self.criterion, **gold)
        training._validate_params()
        scored = self._objective, self._own, self._scores_by_damping
        return tuned_damping(*scored, unit, self.random_state, training._settings())

    def _damping_at_minimum(self, trace: float) -> float:
        """Hook of ``damping="auto"``: next to nothing, for a linear model at its minimum."""
        sizes = self._objective.rows.inputs.double().square().mean(0)
        smallest = sizes[sizes > 0].min() if bool((sizes > 0).any()) else 1.0
        if BaseInfluence._AT_MINIMUM * float(sizes.sum()) > MOST_OF_COLUMN * float(smallest):
            warnings.warn(
                f"{type(self).__name__}: columns of X differ so much in size that damping drowns the "
                "smallest. Put a StandardScaler before the model, or take ExactInfluence.",
                UserWarning,
                stacklevel=2,
            )
        return self._AT_MINIMUM * trace

    def _curvature(self) -> Curvature:
        """Return the curvature of the training objective, its L2 penalty included."""
        return self._curvature_of(self._curved, penalty=True)

    def _curvature_of(self, objective: Objective, penalty: bool = False) -> Curvature:
        own = {}
        if self.curvature == "sampled-fisher":
            own["seed"] = int(check_random_state(self.random_state).randint(MAX_SEED))
        return CURVATURES[self.curvature](objective, penalty=penalty, **own)

    # ---- transform --------------------------------------------------------------------------

    def _scores(self, test: Measured) -> NDArray[np.float64]:
        if self._iterative is not None:
            self._iterative.n_iter = 0
        result = np.empty((len(test), len(self._objective)))
        for rows, V in self._right_hand_sides(test, self._COPIES):
            result[rows] = self._applied(self._solve(V))
        return result

    def _scores_by_damping(
        self, dampings: Sequence[float], test: Measured
    ) -> Iterator[tuple[float, NDArray[np.float64]]]:
        """Yield the scores for each damping at which the solver succeeds; `damping_` may change."""
        if self._iterative is not None:
            yield from self._scores_by_space(self._iterative, dampings, test)
            return
        for damping in dampings:
            self.damping_ = damping
            try:
                self._check_damping()
                scores = self._scores(test)
            except (ValueError, FloatingPointError):
                continue  # not positive definite, or divergent, at this damping
            yield damping, scores

    def _scores_by_space(
        self, solver: IterativeSolver, dampings: Sequence[float], test: Measured
    ) -> Iterator[tuple[float, NDArray[np.float64]]]:
        """Yield the scores from one Krylov space, whatever the solver of a single damping."""
        result = np.empty((len(dampings), len(test), len(self._objective)))
        for rows, V in self._right_hand_sides(test, 6 * len(dampings) + self._COPIES):
            for scores, u in zip(result, solver.solve_all(V, dampings), strict=True):
                scores[rows] = self._applied(u)
        for damping, scores in zip(dampings, result, strict=True):
            if np.isfinite(scores).all():
                yield damping, scores

    def _right_hand_sides(self, test: Measured, copies: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield test rows' gradients (k, p), as many as fit the memory with so many copies of each."""
        vector_bytes = copies * self.model_.n_parameters * self.model_.theta.element_size()
        size = min(max(self.memory_budget // vector_bytes, 1), len(test))
        for rows, gradients in self._objective.row_gradients(test, size):
            yield rows, gradients.dense()

    def _applied(self, solved: Tensor) -> NDArray[np.float64]:
        """Return scores (k, n) of the training rows, from solutions (k, p)."""
        pull = self._removal.pull
        pulled = None if pull is None else (solved.double() @ pull.double()).cpu().numpy()
        products = self._objective.along(solved.to(self.model_.dtype)).mT.cpu().numpy()
        return self._removal(products * self._share, pulled)

    def _pulled(self, test: Measured) -> NDArray[np.float64] | None:
        """Return products (m,) of test rows with the gradient of a penalty that removal changes."""
        pull = self._removal.pull
        return None if pull is None else self._along(test, pull[None])[:, 0]

    def _along(self, rows: Measured, vectors: Tensor) -> NDArray[np.float64]:
        """Return products (m, k) of rows' gradients with the solutions for vectors (k, p)."""
        return self._objective.along(self._solve(vectors), rows).cpu().numpy()

    def _group_gradients(self) -> Tensor:
        """Return sums (K, p) of the rows' shares of the gradient over the groups that removal tells apart."""
        member = self._removal.members() * self._share[:, None]
        return self._objective.combined(torch.from_numpy(member))

    # ---- groups and targets -----------------------------------------------------------------

    def _group_methods(self) -> tuple[str, ...]:
        return "first-order", "second-order"

    def _removal_of(self, groups: NDArray[np.bool_]) -> Removal:
        """Return what the removal of groups (k, n) does to the weights of the others."""
        return Removal.of(self._objective, self.reweight_others, groups)

    def _second_order(self, test: Measured, groups: NDArray[np.bool_]) -> NDArray[np.float64]:
        removal = self._removal_of(groups)
        steps = second_order_steps(
            self._objective, removal, groups, self._solve, self._curvature_of
        )
        return measured_change(self.model_, test, outputs_along(self.model_, test, steps))

    def _relabelled(
        self, test: Measured, rows: NDArray[np.int64], targets: NDArray[Any]
    ) -> NDArray[np.float64]:
        found = np.empty((len(test), len(rows)))
        states = self._with_targets(rows, targets)
        for at, V in self._right_hand_sides(test, self._COPIES):
            solved = self._solve(V).to(self.model_.dtype)
            before, after = (
                (self._objective.along(solved, one).mT * one.rows.shares).cpu().numpy()
                for one in states
            )
            found[at] = before - after
        return found
