"""Methods that look along the training run: its checkpoints, steps and stages."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..._validation import (
    POSITIVE_INTEGER,
    POSITIVE_REAL,
    check_horizons,
    in_steps,
    is_integer,
)
from ...adapters import is_fitted, is_network, recorded_trajectory, training_epochs
from ...base import BaseAttributor
from ...curvature.removal import Removal
from ...objective import Objective
from ...row_gradients import RowGradients
from ...training.groups import Groups
from ...training.optimizers import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_LR,
    OptimizerSpec,
    optimizer_class,
)
from ...trajectory import Stage, Trajectory, check_architecture, lr_factors_of, stage_rows


@dataclass(frozen=True, eq=False)
class StageRows:
    """The rows that a stage was trained on: their numbers among all, and its objective."""

    rows: NDArray[np.int64]
    objective: Objective
    removal: Removal

    @cached_property
    def shares(self) -> NDArray[np.float64]:
        """Shares (n,) of the rows in the objective."""
        return self.objective.rows.shares.cpu().numpy()


class BaseAlongTheRun(BaseAttributor):
    """Base of the methods that take a `Trajectory`.

    `_prepare` finds the run (``trajectory_``), the rows of its stages (`_stages`) and the numbers of
    those that are attributed to (`_attributed`).
    """

    process = "the recorded training"
    _knows_rows = True

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseAttributor._parameter_constraints,
        **BaseAttributor._BUDGET_CONSTRAINTS,
        "trajectory": [Trajectory, str, None],
        "stage": [int, str, None],
        "n_epochs": [POSITIVE_REAL, None],
        "lr": [POSITIVE_REAL, None],
        "batch_size": [POSITIVE_INTEGER, None],
        "reweight_others": ["boolean"],
    }

    trajectory: Trajectory | str | None
    stage: int | str | None
    n_epochs: float | None
    lr: float | None
    batch_size: int | None
    reweight_others: bool
    chunk_size: int | None
    memory_budget: int

    # ---- the run ----------------------------------------------------------------------------

    def _prepare(self, X: Any, y: Any, sample_weight: ArrayLike | None) -> None:
        fitted_here = self.estimator is None or not is_fitted(self.estimator)
        super()._prepare(X, y, sample_weight)
        recorded = self._recorded(fitted_here)
        self._alone = recorded is None
        self.trajectory_ = self._final_alone() if recorded is None else recorded
        if not len(self.trajectory_) or not self.trajectory_.n_steps:
            raise ValueError(
                f"trajectory must hold checkpoints and steps, got {self.trajectory_!r}. Record the run "
                "with a TrajectoryRecorder, or make it with Trajectory.from_checkpoints."
            )
        check_architecture(self.trajectory_, self.model_)
        factors = lr_factors_of(self.trajectory_, self.model_)
        self._roots = None if factors is None else factors.sqrt()
        stages = self.trajectory_.stages
        of_stages = stage_rows(stages, len(self._objective))
        self._stages = [self._trained_on(rows) for rows in of_stages]
        self._attributed = self._chosen_stages(stages)

    def _restrict(self, rows: NDArray[np.int64]) -> None:
        if len(self._stages) > 1:
            raise ValueError("the rows of a run with several stages cannot be restricted.")
        super()._restrict(rows)
        self._stages = [self._trained_on(np.arange(len(rows)))]

    def _trained_on(self, rows: NDArray[np.int64]) -> StageRows:
        """Return the objective of steps on these rows, and what leaves it with one of them."""
        objective = self._objective
        if not np.array_equal(rows, np.arange(len(objective))):
            objective = objective.of_rows(objective.rows[rows].alone)
        return StageRows(rows, objective, Removal.of(objective, self.reweight_others))

    def _recorded(self, fitted_here: bool) -> Trajectory | None:
        """Return the run, or None if the final model stands for it."""
        if isinstance(self.trajectory, Trajectory):
            return self.trajectory
        if isinstance(self.trajectory, str) and self.trajectory != "final":
            raise ValueError(
                f"trajectory must be a Trajectory, 'final' or None, got {self.trajectory!r}."
            )
        recorded = recorded_trajectory(self.estimator_)
        if self.trajectory is None and recorded is not None:
            return recorded
        if self.trajectory is None and not fitted_here:
            raise ValueError(
                f"{type(self).__name__} needs checkpoints of the training run, and estimator has no "
                "TrajectoryRecorder that recorded any. Train it with one (skorch), pass "
                "trajectory=Trajectory.from_checkpoints(...), or let the final model stand for the "
                "whole run with trajectory='final'."
            )
        return None

    def _final_alone(self) -> Trajectory:
        """Return a run of which the final model is the only checkpoint."""
        recipe = self.model_.recipe
        if self.n_epochs is None and not is_network(self.estimator_):
            raise ValueError(
                f"n_epochs must be given with trajectory='final': {type(self.estimator_).__name__} does "
                "not say for how long it was trained."
            )
        epochs = training_epochs(self.estimator_, self.n_epochs)
        batch = self.batch_size or recipe.batch_size or DEFAULT_BATCH_SIZE
        own = DEFAULT_LR if recipe.lr is None else recipe.lr
        used = optimizer_class(recipe.optimizer) or torch.optim.SGD
        return Trajectory.from_checkpoints(
            [self.model_.module.state_dict()],
            in_steps(check_horizons(epochs), ceil(len(self._objective) / batch), "n_epochs"),
            own if self.lr is None else self.lr,
            lr_factors=self._lr_factors(own),
            optimizer=used.__name__,
            optimizer_params=recipe.params,
        )

    def _lr_factors(self, lr: float) -> dict[str, float]:
        """Return the parts of a learning rate that the parameters have by the model's own groups."""
        groups = tuple(self.model_.recipe.beside.get("param_groups", ()))
        rates = Groups(OptimizerSpec(torch.optim.SGD, lr, groups=groups), self.model_).rates(0)
        return {name: rate / lr for name, rate in rates.items()}

    def _chunked(self, objective: Objective) -> Objective:
        """Return the objective with as many rows in a chunk as gradients that are written out allow."""
        if self._roots is None or objective.chunk_size is not None:
            return objective
        written = 8 * self._roots.numel() * self._roots.element_size()
        return replace(objective, chunk_size=max(1, min(512, objective.memory_budget // written)))

    def _scaled(self, gradients: RowGradients) -> RowGradients:
        """Return gradients times the roots of what parameters have of the learning rate."""
        if self._roots is None:
            return gradients
        return RowGradients.of(gradients.dense() * self._roots)

    def _chosen_stages(self, stages: Sequence[Stage]) -> list[int]:
        """Return the numbers of the stages whose rows are attributed to, and are the columns."""
        if self.stage is None:
            return list(range(len(stages)))
        names = [stage.name for stage in stages]
        chosen = names.index(self.stage) if self.stage in names else self.stage
        if not is_integer(chosen) or not 0 <= chosen < len(stages):
            raise ValueError(
                f"stage must be the name or the number of a stage of the run ({names}), got "
                f"{self.stage!r}."
            )
        return [chosen]

    def _fit(self) -> None:
        if self.stage is not None:
            self.train_indices_ = np.sort(self._stages[self._attributed[0]].rows)

    def _self_influence(self) -> NDArray[np.float64]:
        if any(stage.removal.changes_others for stage in self._stages):
            return super()._self_influence()
        return self._own_products()

    @abstractmethod
    def _own_products(self) -> NDArray[np.float64]:
        """Return the scores (n,) of the rows on themselves while the others keep their weights."""

    def _shares_in(self, stage: StageRows, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the shares (k,) of training rows in the steps of a stage, 0 for those that it has not."""
        shares = np.bincount(stage.rows, stage.shares, len(self._objective))
        return shares.astype(np.float64)[rows]

    def _columns(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the columns that are attributed to, out of those of all rows."""
        return scores[..., self.train_indices_]
