"""Methods that speak of the same further training: its parameters, and what they mean for a model."""

from __future__ import annotations

from abc import abstractmethod
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..._validation import (
    POSITIVE_INTEGER,
    POSITIVE_REAL,
    check_horizons,
    check_is_fitted,
    in_steps,
)
from ...base import BaseAttributor
from ...batch_statistics import BatchStatistics, statistics_in
from ...gradient_mode import with_gradients
from ...last_call import of_last_call
from ...measured import Measured
from ...training.optimizers import LearningRate
from ...training.outcomes import standard_error
from ...training.run import Run, resolve_run
from ...training.workers import Workers
from ...trials import Trial

#: Batches of the rows that a few steps are tried on.
TRIED = 4


class BaseFurtherTraining(BaseAttributor):
    """Base of the methods that train further, or say what further training would do.

    `_run` gives what the parameters mean for the model and the training rows at hand.
    """

    process = "further training of the final model"

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseAttributor._parameter_constraints,
        "n_epochs": [POSITIVE_REAL],
        "n_seeds": [POSITIVE_INTEGER, "array-like"],
        "optimizer": [str, type, None],
        "lr": [POSITIVE_REAL, callable, None],
        "batch_size": [POSITIVE_INTEGER, None],
        "optimizer_params": [dict, None],
    }

    n_epochs: Any
    optimizer: str | type[torch.optim.Optimizer] | None
    lr: LearningRate | None
    batch_size: int | None
    optimizer_params: dict[str, Any] | None
    batch_statistics: BatchStatistics = "frozen"
    seeds_: list[int]

    def _run(self) -> Run:
        """Return the run that the parameters ask for; what is None is the model's own."""
        chosen = self.optimizer, self.lr, self.optimizer_params, self.batch_size
        recipe, statistics = self.model_.recipe.continued, self.batch_statistics
        return resolve_run(self._objective, recipe, *chosen, batch_statistics=statistics)

    def _process(self) -> str:
        run, recipe = self._run(), self.model_.recipe
        spec = run.optimizer
        own = self.lr is None and recipe.last_lr == spec.lr
        source = f" ({recipe.last_lr_from}; its training began with {recipe.lr:g})" if own else ""
        limits = spec.clipping.settings.items()
        beside = f", {len(spec.groups)} parameter groups" if spec.groups else ""
        beside += "".join(f", {name} {limit:g}" for name, limit in limits)
        return (
            f"{self.process}: {self.n_epochs} epochs of {spec.name}, learning rate "
            f"{spec.lr_at(0):g}{source}, batches of {run.batch_size}{beside}"
        )

    def _trial_rows(self, trial: Trial) -> int:
        """Return how many rows are enough to try a few steps on."""
        return min(trial.n_rows, TRIED * trial.prepared(self)._run().batch_size)

    scores_sem_ = of_last_call(
        "scores_sem_",
        "Standard error over seeds of the scores last returned, (n_test, n_columns).",
    )

    def _n_runs(self) -> int:
        return len(self.seeds_)


if TYPE_CHECKING:
    _FurtherTraining = BaseFurtherTraining
else:
    _FurtherTraining = object


class HorizonsMixin(_FurtherTraining):
    """Mixin of the approximations of further training that score all horizons in one go.

    A method implements `_run_scores`. `transform` gives the last horizon. Users have horizons in
    epochs, and hooks have them in steps.
    """

    memory_budget: int
    n_jobs: int | None
    verbose: int
    horizons_: list[float]
    _steps: list[int]
    _per_epoch: int

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseFurtherTraining._parameter_constraints,
        "n_epochs": [POSITIVE_REAL, "array-like"],
        "memory_budget": [POSITIVE_INTEGER],
        "n_jobs": [Integral, None],
        "verbose": ["verbose"],
    }

    def _caveats(self) -> list[str]:
        frozen = (
            "batch normalisation keeps its running statistics, as with batch_statistics='frozen'"
        )
        stays = self.batch_statistics == "frozen" and statistics_in(self.model_.module)
        return super()._caveats() + [frozen] * bool(stays)

    @abstractmethod
    def _run_scores(
        self, test: Measured, horizons: list[int]
    ) -> tuple[NDArray[np.float64], Tensor]:
        """Hook: return scores (n_horizons, n_test, n_columns, n_seeds) of the runs, and their
        parameters (n_seeds, p) at the last horizon."""

    def _horizon_scores(self, test: Measured, horizons: list[int]) -> NDArray[np.float64]:
        """Return the scores (n_horizons, n_test, n_columns), means over seeds."""
        per_seed, _ = self._run_scores(test, horizons)
        self._seen["scores_sem_"] = standard_error(per_seed)[-1]
        return per_seed.mean(-1)

    def _coupled(self, test: Measured) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        scores, ends = self._run_scores(test, self._steps[-1:])
        measured = test.of_stack(self._run().model, ends)
        return measured.cpu().numpy(), np.moveaxis(scores[0], -1, 0)

    def _check_horizons(self) -> list[float]:
        return check_horizons(self.n_epochs, "n_epochs")

    def _set_horizons(self, run: Run) -> None:
        self.horizons_ = self._check_horizons()
        self._steps = in_steps(self.horizons_, run.steps_per_epoch, "n_epochs")
        self._per_epoch = run.steps_per_epoch

    @with_gradients
    def transform_horizons(self, X: Any, y: Any = None) -> NDArray[np.float64]:
        """Score at every horizon of `n_epochs`.

        Parameters
        ----------
        X : array-like of shape (n_test, n_features)
            Test rows.
        y : array-like of shape (n_test,), default=None
            Their targets, as in `transform`.

        Returns
        -------
        S : ndarray of shape (n_horizons, n_test, n_columns)
            ``S[k]`` belongs to ``horizons_[k]``; the last is what `transform` gives.
        """
        check_is_fitted(self, "model_")
        return self._finite(self._horizon_scores(self._test(X, y), self._steps))

    def _at_horizons(self, X: Any, y: Any, epochs: list[float]) -> NDArray[np.float64]:
        steps = [round(one * self._per_epoch) for one in epochs]
        if not set(steps) <= set(self._steps):
            return super()._at_horizons(X, y, epochs)
        return self.transform_horizons(X, y)[[self._steps.index(step) for step in steps]]

    def _finite(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        if not np.isfinite(scores).all():
            raise FloatingPointError(
                f"{type(self).__name__} gave scores that are NaN or infinite: small changes blow up on "
                "their way through the run, or a measurement is not finite at its end. Lower n_epochs "
                "or lr, or set kink_smoothing=None."
            )
        return scores

    @property
    def _workers(self) -> Workers:
        return Workers(self.n_jobs, self.verbose, type(self).__name__)

    def _blocks(self, test: Measured, n_horizons: int) -> list[Measured]:
        """Return blocks of test rows whose vectors fit the memory budget."""
        vector = self.model_.n_parameters * self.model_.theta.element_size() * 8 * n_horizons
        return test.blocks(self.memory_budget, vector)

    def _scores(self, test: Measured) -> NDArray[np.float64]:
        return self._horizon_scores(test, self._steps[-1:])[0]

    def _mean_shares(self) -> NDArray[np.float64]:
        return self._row_shares()
