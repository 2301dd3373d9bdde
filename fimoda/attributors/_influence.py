"""What influence functions have in common: damping and curvature."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .._validation import MAX_SEED, NON_NEGATIVE_REAL, StrOptions, check_random_state
from ..base import BaseAttributor
from ..curvature.checks import check_curvature, check_gradients, is_solved
from ..curvature.operators import CURVATURES, Curvature
from ..curvature.removal import Removal
from ..curvature.trace import gauss_newton_trace
from ..measured import Measured
from ..measurements import Measurement
from ..model import DEFAULT_BUDGET
from ._tuning import tuned_damping

#: ``damping="auto"`` is this many times the mean squared entry of the rows' gradients, but at most
#: this part of the trace of the curvature.
DAMPING_FACTOR, MOST_OF_TRACE = 1000.0, 0.05

#: Part of a column's mean square from which on a damping drowns it.
MOST_OF_COLUMN = 1e-4


class BaseInfluence(BaseAttributor):
    r"""Influence functions, products :math:`\tilde w_i \nabla m_z^\top (C + \lambda I)^{-1} g_i`.

    :math:`\tilde w_i = w_i / \sum_j w_j` is 1/n without weights; `_removal` makes scores of them. A
    subclass implements `_prepare_solver` (what depends on training rows only, for any damping) and
    `_scores`, which follows `damping_`.
    """

    process = "training to convergence near the final model"

    #: The part of the trace that is ``damping="auto"`` where the model is at its minimum.
    _AT_MINIMUM: ClassVar[float] = 1e-12

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseAttributor._parameter_constraints,
        **BaseAttributor._BUDGET_CONSTRAINTS,
        "damping": [NON_NEGATIVE_REAL, StrOptions({"auto", "tuned"})],
        "tuning": [dict, None],
        "reweight_others": ["boolean"],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        damping: float | str = "auto",
        tuning: dict[str, Any] | None = None,
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

    # ---- hooks ------------------------------------------------------------------------------

    @abstractmethod
    def _prepare_solver(self) -> None:
        """Compute whatever of the solution depends on neither test rows nor damping."""

    def _check_damping(self) -> None:
        """Raise ValueError now if the damped curvature cannot be solved with `damping_`."""

    def _scores_by_damping(
        self, dampings: Sequence[float], test: Measured
    ) -> Iterator[tuple[float, NDArray[np.float64]]]:
        """Scores for each damping at which the solver succeeds; `damping_` changes on the way."""
        for damping in dampings:
            self.damping_ = damping
            try:
                self._check_damping()
                scores = self._scores(test)
            except (ValueError, FloatingPointError):
                continue  # not positive definite, or divergent, at this damping
            yield damping, scores

    # ---- fit --------------------------------------------------------------------------------

    def _fit(self) -> None:
        check_gradients(self._objective)
        if self._kind == "gauss-newton":
            check_curvature(self._objective)
        self._differentiate = self._objective.differentiate
        self._share = self._objective.rows.shares.cpu().numpy()
        self._removal = Removal.of(self._objective, self.reweight_others)
        self._prepare_solver()
        if self.damping == "tuned":
            if self.model_.recipe.solved:
                warnings.warn(
                    f"{type(self).__name__}: damping='tuned' agrees with further training by "
                    "gradient steps. This model was fitted by a solver: to know what fitting it "
                    "again would give take damping='auto'.",
                    UserWarning,
                    stacklevel=2,
                )
            unit = self._mean_squared_entry()
            trace = self._trace()
            unit = min(unit, trace / self.model_.n_parameters) if trace > 0 else unit
            self.damping_, self.damping_agreement_ = tuned_damping(self, unit, self.tuning)
        elif self.damping == "auto":
            self.damping_ = self._auto_damping()
        else:
            self.damping_ = float(self.damping)
        self._check_damping()

    def _auto_damping(self) -> float:
        solved = is_solved(self._objective)
        if self._kind == "hessian" and not solved:  # may not be definite
            return DAMPING_FACTOR * self._mean_squared_entry()
        trace = self._trace()
        if solved and trace > 0:
            return self._damping_at_minimum(trace)
        by_gradients = DAMPING_FACTOR * self._mean_squared_entry()
        return min(by_gradients, MOST_OF_TRACE * trace) if trace > 0 else by_gradients

    def _damping_at_minimum(self, trace: float) -> float:
        """Hook of ``damping="auto"``: next to nothing, for a linear model at its minimum."""
        damping = self._AT_MINIMUM * trace
        sizes = self._X.double().square().mean(0)
        smallest = sizes[sizes > 0].min() if bool((sizes > 0).any()) else 1.0
        if BaseInfluence._AT_MINIMUM * float(sizes.sum()) > MOST_OF_COLUMN * float(smallest):
            warnings.warn(
                f"{type(self).__name__}: columns of X differ so much in size that damping drowns the "
                "smallest. Put a StandardScaler before the model, or take ExactInfluence.",
                UserWarning,
                stacklevel=2,
            )
        return damping

    @property
    def _kind(self) -> str:
        return getattr(self, "curvature", "gauss-newton")

    def _trace(self) -> float:
        """Trace of the curvature, for the Hessian of the Gauss-Newton matrix.

        The penalty is part of it, unless the loss has no curvature at all.
        """
        if self._kind == "empirical-fisher":
            trace = self.model_.n_parameters * self._mean_squared_entry()
        else:
            trace = gauss_newton_trace(self._objective)
        if trace > 0 and self.model_.l2 is not None:
            trace += float(self.model_.l2.double().sum())
        return trace

    def _mean_squared_entry(self) -> float:
        """Return the mean squared entry of the training rows' gradients, the unit of damping."""
        mean = self._objective.mean_squared_gradient
        if mean == 0:
            raise ValueError(
                f"damping={self.damping!r} needs a training row with a gradient; all are zero at this model "
                f"(n_samples={len(self._X)}). Give damping as a number."
            )
        return mean

    def _group_gradients(self) -> Tensor:
        """Sums of the rows' shares of the gradient over the groups that removal tells apart, (K, p)."""
        member = torch.from_numpy(self._removal.members() * self._share[:, None])
        total = self.model_.theta.new_zeros(member.shape[1], self.model_.n_parameters)
        for place, rows in self._objective.row_gradients():
            total += rows.combine(member[place].to(total))
        return total

    def _curvature(self, name: str) -> Curvature:
        """The curvature of the training objective, its L2 penalty included."""
        own = {}
        if name == "sampled-fisher":
            own["seed"] = int(check_random_state(self.random_state).randint(MAX_SEED))
        return CURVATURES[name](self._objective, penalty=True, **own)

    def _chunk(self) -> int:
        """Return how many training rows' gradients fit half of the memory budget."""
        return self._objective.chunk()
