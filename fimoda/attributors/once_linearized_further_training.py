"""Further training with the network linearised once: a few epochs in seconds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from math import nan
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .._validation import (
    POSITIVE_REAL,
    StrOptions,
    check_seeds,
    in_steps,
)
from ..curvature.kernel import OutputKernel
from ..measured import Measured
from ..measurements import Measurement
from ..training.optimizers import LearningRate
from ..training.recorded import observe_run
from ..trials import Trial
from ..walks.kernel_run import has_penalty, kernel_bytes, kernel_runs
from ..walks.kinks import kink_sharpness
from ..walks.linearized import (
    LinearizedRun,
    discrepancy,
    require_memory,
    warn_of_discrepancy,
)
from ..walks.row_changes import Relabelled
from ..walks.stepped_run import stepped_runs
from .families.further_training import BaseFurtherTraining, HorizonsMixin

#: Right-hand sides that take as long in a matrix product as one vector alone.
_ALONE = 8

#: Rows whose Jacobians are tried, and steps of trial runs.
_TRIED_ROWS, _TRIED_STEPS = 64, (1, 5)

#: Sharpness of ``kink_smoothing="auto"``.
KINK_SMOOTHING = 100.0


class OnceLinearizedFurtherTraining(HorizonsMixin, BaseFurtherTraining):
    r"""Derivative of further training, with the network linearised once, where the run begins.

    The run on all rows is trained once. From its beginning on the rows' Jacobians J and the
    Gauss-Newton matrix H of the objective stand still, so that the removal of row i changes the
    parameters as in `LinearizedFurtherTraining`, by

    .. math:: \delta_{t+1} = (I - \eta H) \delta_t
              + \eta \, \tfrac{s_i}{1 - s_i} (J_i^\top r_{t,i} - \bar g_t), \qquad
              S_{z,i} = \nabla m_z(\theta_T)^\top \delta_T

    (for SGD), :math:`s_i` the row's share of the objective (1/n), :math:`r_{t,i}` the gradient of
    its loss in its outputs along the run, and :math:`\bar g_t` the mean gradient. All rows are
    scored at once. Everything is an inner product of Jacobians (seconds for a thousand rows; for
    losses other than a squared error a step takes :math:`m (nC)^2` operations for m test rows and C
    outputs). It holds while the network stays near its beginning: for a few epochs.

    Batch normalisation keeps its running statistics: further training with
    ``batch_statistics="frozen"`` is what this is the derivative of.

    Parameters
    ----------
    estimator : object, default=None
        Fitted model; an unfitted scikit-learn or skorch estimator is cloned and fitted. None is a
        small MLP.
    n_epochs : float or list of float, default=10
        Epochs of further training; several horizons cost little more, see `transform_horizons`. A
        fraction of an epoch is so many of its steps, rounded to whole ones.
    solver : {"auto", "kernel", "steps"}, default="auto"
        "kernel" works in the space of the rows' outputs, with the expectation
        of minibatches; "steps" follows the minibatches and the optimiser, all of its state included, at
        the cost of `UnrolledDifferentiation`. "auto" is the kernel if it fits
        `memory_budget` and the objective has no L2 penalty, which it cannot follow.
    n_seeds : int or list of int, default=1
        Number of runs to average over (drawn from `random_state`) or their seeds.
    removal : {"first-order", "exact"}, default="first-order"
        With "exact" the left-out row's own residual follows its own run: exact in the
        linearised network. Needs the kernel and a squared error.
    kink_smoothing : float, "auto" or None, default="auto"
        As in `UnrolledDifferentiation`, of losses with kinks and ``solver="steps"``; "auto" is 100
        for SGD and None for other optimisers.
    optimizer : str or type, default=None
        SGD, Adam, AdamW, RMSprop or Adagrad of ``torch.optim``, or a name; the model's own by
        default, SGD if it has none. The second moments of adaptive optimisers, those of the run,
        stand still in a segment.
    lr : float or callable, default=None
        Learning rate, or a function of the epoch (from 0) giving it; by default the last one of the
        model's own training, 0.01 if it has none.
    batch_size : int, default=None
        The model's own by default, 128 if it has none.
    optimizer_params : dict, default=None
        Other settings of the optimiser (momentum, weight_decay, betas, ...); `max_grad_norm` or
        `max_grad_value`, at which gradients are clipped; `param_groups`, a list of patterns of names with
        their own `lr` and `weight_decay`. Those of the model's own training are kept if `optimizer` is
        None or the same.
    measurement : str or callable, default="loss"
        What is attributed: ``"loss"``, ``"margin"``, ``"log_prob"``, ``"output"`` or a callable
        ``m(outputs, targets)`` giving one number per row.
    criterion : nn.Module, default=None
        Training criterion of a bare ``nn.Module``.
    memory_budget : int, default=2 GiB
        Bytes for the kernel, or the states of a run; and for the vectors that walk back.
    random_state : int, RandomState or None, default=None
        Used to fit an unfitted `estimator` and to draw the seeds.
    n_jobs : int, default=None
        joblib workers, of one thread each, over seeds.
    verbose : int, default=0
        Show progress if positive.

    Attributes
    ----------
    estimator_ : object
        The final model.
    model_ : FinalModel
        Its frozen functional view.
    train_indices_ : ndarray of shape (n_train,)
        Training row of each column.
    seeds_ : list of int
        Seeds of the runs.
    horizons_ : list of number
        The horizons of `transform_horizons`.
    solver_ : {"kernel", "steps"}
        How the linearised runs are followed.
    discrepancy_ : ndarray of shape (n_horizons,)
        How far the linearised run on all rows is from the real one at each horizon:
        :math:`|\Delta f_{real} - \Delta f_{linear}| / |\Delta f_{real}|` of the change of the
        training rows' outputs, over seeds. Near zero the linearisation holds; near one it says
        nothing. Minibatch noise adds to it at short horizons.
    scores_sem_ : ndarray of shape (n_test, n_train)
        Standard error over seeds of the scores last returned by `transform`; NaN for one seed.

    Raises
    ------
    ValueError
        If the optimiser has no linear form, `removal` needs another loss or solver, or the kernel
        is to follow a penalty, or weight decay in the gradient of an adaptive optimiser.
    FloatingPointError
        If the run diverges, or is unstable when linearised: the learning rate is above 2 over the
        largest (preconditioned) curvature, and that blows up within the epochs asked for.
    MemoryError
        If the kernel, or the states of a run, do not fit `memory_budget`.

    Warns
    -----
    ConvergenceWarning
        If `discrepancy_` is above one half and the outputs change by more than a hundredth of
        their spread over the rows.

    References
    ----------
    fimoda's own; see the user guide for the derivation.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import LinearRegression
    >>> from fimoda import OnceLinearizedFurtherTraining
    >>> X, y = load_diabetes(return_X_y=True)
    >>> linearized = OnceLinearizedFurtherTraining(
    ...     LinearRegression().fit(X, y), n_epochs=[1, 3], lr=0.1, removal="exact", random_state=0
    ... )
    >>> linearized.fit(X, y).transform(X[:4], y[:4]).shape
    (4, 442)
    >>> linearized.transform_horizons(X[:4], y[:4]).shape
    (2, 4, 442)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **HorizonsMixin._parameter_constraints,
        "solver": [StrOptions({"auto", "kernel", "steps"})],
        "removal": [StrOptions({"first-order", "exact"})],
        "kink_smoothing": [POSITIVE_REAL, StrOptions({"auto"}), None],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        n_epochs: float | Iterable[float] = 10,
        solver: str = "auto",
        n_seeds: int | Iterable[int] = 1,
        removal: str = "first-order",
        kink_smoothing: float | str | None = "auto",
        optimizer: str | type[torch.optim.Optimizer] | None = None,
        lr: LearningRate | None = None,
        batch_size: int | None = None,
        optimizer_params: dict[str, Any] | None = None,
        measurement: Measurement = "loss",
        criterion: nn.Module | None = None,
        memory_budget: int = 2 * 2**30,
        random_state: Any = None,
        n_jobs: int | None = None,
        verbose: int = 0,
    ):
        super().__init__(
            estimator, measurement=measurement, criterion=criterion, random_state=random_state
        )
        self.n_epochs = n_epochs
        self.n_seeds = n_seeds
        self.optimizer = optimizer
        self.lr = lr
        self.batch_size = batch_size
        self.optimizer_params = optimizer_params
        self.solver = solver
        self.removal = removal
        self.kink_smoothing = kink_smoothing
        self.memory_budget = memory_budget
        self.n_jobs = n_jobs
        self.verbose = verbose

    def _fit(self) -> None:
        run = self._run()
        self._set_horizons(run)
        self.seeds_ = check_seeds(self.n_seeds, self.random_state)
        self.solver_ = self._choose_solver()
        self._runs: Sequence[LinearizedRun]
        if self.solver_ == "steps":
            kinks = kink_sharpness(self.kink_smoothing, run.optimizer, KINK_SMOOTHING)
            self._runs = stepped_runs(run, self.seeds_, self._steps, kinks, self._workers)
        else:
            exact = self.removal == "exact"
            self._runs = kernel_runs(run, self.seeds_, self._steps, exact, self._workers)
        self.discrepancy_ = discrepancy(self._runs, self._steps)
        warn_of_discrepancy(
            self._runs,
            self.discrepancy_,
            f"{type(self).__name__}: ",
            "Use segments (LinearizedFurtherTraining)",
        )

    def _choose_solver(self) -> str:
        """Return the solver that is asked for, or fits; ValueError if it does not remove rows so."""
        solver = self.solver
        if solver == "auto":
            needed = kernel_bytes(self._objective, len(self.seeds_), len(self.horizons_))
            fits = needed <= self.memory_budget and not has_penalty(self.model_)
            solver = "kernel" if fits or self.removal == "exact" else "steps"
        squared = self.model_.loss.constant_curvature(self.n_outputs_) is not None
        if self.removal == "exact" and not (solver == "kernel" and squared):
            raise ValueError(
                "removal='exact' needs solver='kernel' and a squared error, got "
                f"solver={self.solver!r} and {type(self.model_.loss).__name__}. Use "
                "removal='first-order'."
            )
        return solver

    def _expected_seconds(self, trial: Trial) -> float:
        own = trial.prepared(self)
        objective, run = own._objective, own._run()
        modes = trial.n_rows * own.n_outputs_
        if self.solver == "steps" or has_penalty(own.model_):
            return nan
        require_memory(kernel_bytes(objective, 1, 1), self.memory_budget, "use segments")
        width = objective.differentiate.row_bytes() / (4 * own.model_.theta.element_size())
        rows = np.linspace(0, trial.n_rows - 1, min(trial.n_rows, _TRIED_ROWS)).astype(np.int64)
        few = OutputKernel(objective.restricted(rows))
        jacobians = min(trial.timed(few) for _ in range(2)) * trial.n_rows / len(rows)
        n_steps = in_steps(self._check_horizons(), run.steps_per_epoch, "n_epochs")[-1]
        one, more = (trial.timed(partial(observe_run, run, 0, [k])) for k in _TRIED_STEPS)
        each = max(more - one, 0.0) / (_TRIED_STEPS[1] - _TRIED_STEPS[0])
        seconds = one + n_steps * each + jacobians + modes**2 * width / trial.product_rate
        if own.model_.loss.constant_curvature(own.n_outputs_) is not None:
            return seconds + 3 * modes**3 / trial.eigen_rate
        # two products with the kernel a step, of the run's outputs and of the test rows
        return seconds + 2 * n_steps * modes**2 * (trial.n_test + _ALONE) / trial.product_rate

    def _known_error(self, scores: NDArray[np.float64]) -> list[str]:
        missed = f"the linearised run misses {self.discrepancy_[-1]:.0%} of the outputs' change"
        return [*super()._known_error(scores), missed]

    def _run_scores(
        self, test: Measured, horizons: list[int]
    ) -> tuple[NDArray[np.float64], Tensor]:
        blocks = self._blocks(test, len(horizons))
        scores = [torch.cat([run.scores(b, horizons) for b in blocks], 1) for run in self._runs]
        ends = torch.stack([run.observed.theta(horizons[-1]) for run in self._runs])
        return torch.stack(scores, -1).double().cpu().numpy(), ends

    def _reweighted(self, test: Measured, factors: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the effect exactly, if rows are removed exactly: all rows follow the same run."""
        if self.removal != "exact":
            return super()._reweighted(test, factors)
        weights = torch.from_numpy(factors).to(self.model_.device)
        effects = [run.reweighted(test, self._steps[-1], weights) for run in self._runs]
        return torch.stack(effects).mean(0).cpu().numpy()

    def _relabelled(
        self, test: Measured, rows: NDArray[np.int64], targets: NDArray[Any]
    ) -> NDArray[np.float64]:
        change = Relabelled.of(rows, *self._with_targets(rows, targets))
        effects = [run.relabelled(test, self._steps[-1], change) for run in self._runs]
        return torch.stack(effects).mean(0).cpu().numpy()

    def _group_methods(self) -> tuple[str, ...]:
        return ("first-order", "exact") if self.removal == "exact" else ("first-order",)

    def _without(
        self, test: Measured, groups: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        effects = np.stack([self._reweighted(test, 1.0 - group) for group in groups], axis=1)
        return effects, np.full_like(effects, np.nan)
