"""Linearised further training: the gold standard at the price of a few gradients."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from math import ceil, inf
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
import torch
from joblib import Parallel
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from tqdm.auto import tqdm

from .._validation import (
    POSITIVE_INTEGER,
    POSITIVE_REAL,
    ConvergenceWarning,
    StrOptions,
    check_is_fitted,
    check_row_indices,
    check_seeds,
    check_targets,
    is_integer,
)
from ..base import BaseAttributor
from ..gradient_mode import with_gradients
from ..measured import Measured
from ..measurements import Measurement
from ..training.optimizers import LearningRate
from ._horizons import BaseHorizons
from ._kernel_run import KernelRun, kernel_bytes, kernel_runs
from ._linearized import LinearizedRun
from ._segmented_run import bytes_per_component, components_that_fit, segmented_runs
from ._stepped_run import stepped_runs
from ._walks import Walk, kink_sharpness

#: Sharpness of ``kink_smoothing="auto"``.
KINK_SMOOTHING = 100.0

#: Segments of ``n_segments="auto"``.
SEGMENTS = 6

#: By how much the Krylov spaces of segments take longer than their operations (8-128-128-1, 927 rows).
KRYLOV = 3.5

#: Part of the outputs' change that the linearised run may miss before it is said.
MISSED = 0.5


#: Change of the outputs, beside their spread over the rows, from which it is worth a warning.
VISIBLE = 0.01


class LinearizedFurtherTraining(BaseHorizons):
    r"""Derivative of further training, with the network linearised at a few points of the run.

    The run on all rows is trained once. Between two points of it the rows' Jacobians J and the
    curvature H of the objective stand still, so that the removal of row i changes the parameters by

    .. math:: \delta_{t+1} = (I - \eta H) \delta_t
              + \eta \, \tfrac{s_i}{1 - s_i} (J_i^\top r_{t,i} - \bar g_t), \qquad
              S_{z,i} = \nabla m_z(\theta_T)^\top \delta_T

    (for SGD), :math:`s_i` the row's share of the objective (1/n), :math:`r_{t,i}` the gradient of
    its loss in its outputs along the run, and :math:`\bar g_t` the mean gradient. All rows are
    scored at once. The drift of the residuals, and measurements taken at the end of the run, correct for a
    final model that is not converged. Minibatches enter by their expectation.

    With ``n_segments=1`` the network is linearised once, where the run begins; everything is then
    an inner product of Jacobians (seconds for a thousand rows; for losses other than a squared
    error a step takes :math:`m (nC)^2` operations for m test rows and C outputs). With more segments
    it is linearised anew in the middle of each, with the true Hessian and the curvature of kinks,
    and evaluated in Krylov spaces of `n_components` dimensions (tens of seconds); this agrees with
    further training far longer.

    Parameters
    ----------
    estimator : object, default=None
        Fitted model; an unfitted scikit-learn or skorch estimator is cloned and fitted. None is a
        small MLP.
    n_epochs : int or list of int, default=10
        Epochs of further training; several horizons cost little more, see `transform_horizons`.
    n_segments : int or "auto", default="auto"
        Linearisations, at the middles of segments that get longer with time; every horizon also
        ends a segment. "auto" is 6.
    solver : {"auto", "kernel", "steps"}, default="auto"
        For ``n_segments=1``. "kernel" works in the space of the rows' outputs, with the expectation
        of minibatches; "steps" follows the minibatches and the optimiser, all of its state included, at
        the cost of `UnrolledDifferentiation`. "auto" is the kernel if it fits `memory_budget`.
    n_seeds : int or list of int, default=1
        Number of runs to average over (drawn from `random_state`) or their seeds.
    removal : {"first-order", "exact"}, default="first-order"
        With "exact" the left-out row's own residual follows its own run: exact in the
        linearised network. Needs ``n_segments=1``, the kernel and a squared error.
    kink_smoothing : float, "auto" or None, default="auto"
        As in `UnrolledDifferentiation`, for more than one segment; "auto" is 100 for SGD and
        None for other optimisers.
    n_components : int or "auto", default="auto"
        Dimensions of a Krylov space; "auto" is 640, or as many as fit `memory_budget`.
    block_size : int, default=64
        Vectors that a Krylov space begins with.
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
        Other settings of the optimiser (momentum, weight_decay, betas, ...). Those of the model's
        own optimiser are kept if `optimizer` is None or the same.
    measurement : str or callable, default="loss"
        What is attributed: ``"loss"``, ``"margin"``, ``"log_prob"``, ``"output"`` or a callable
        ``m(outputs, targets)`` giving one number per row.
    criterion : nn.Module, default=None
        Training criterion of a bare ``nn.Module``.
    memory_budget : int, default=2 GiB
        Bytes for the kernel, or for the bases of all segments; and for the vectors that walk back
        through them.
    random_state : int, RandomState or None, default=None
        Used to fit an unfitted `estimator` and to draw the seeds.
    n_jobs : int, default=None
        joblib workers, of one thread each, over seeds and segments.
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
    horizons_ : list of int
        The horizons of `transform_horizons`.
    n_segments_ : int
        Linearisations of a run.
    n_components_ : int
        Dimensions of their Krylov spaces; 0 for ``n_segments=1``.
    solver_ : {"kernel", "steps", "segments"}
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
        If the optimiser has no linear form, or `removal` needs another loss or number of segments.
    FloatingPointError
        If the run diverges, or is unstable when linearised: the learning rate is above 2 over the
        largest (preconditioned) curvature, and that blows up within the epochs asked for.
    MemoryError
        If the kernel, or the bases of the segments, do not fit `memory_budget`.

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
    >>> from sklearn.linear_model import Ridge
    >>> from fimoda import LinearizedFurtherTraining
    >>> X, y = load_diabetes(return_X_y=True)
    >>> linearized = LinearizedFurtherTraining(
    ...     Ridge().fit(X, y), n_epochs=[1, 3], lr=0.1, random_state=0
    ... )
    >>> linearized.fit(X, y).transform(X[:4], y[:4]).shape
    (4, 442)
    >>> linearized.transform_horizons(X[:4], y[:4]).shape
    (2, 4, 442)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseHorizons._parameter_constraints,
        "n_segments": [POSITIVE_INTEGER, StrOptions({"auto"})],
        "solver": [StrOptions({"auto", "kernel", "steps"})],
        "removal": [StrOptions({"first-order", "exact"})],
        "kink_smoothing": [POSITIVE_REAL, StrOptions({"auto"}), None],
        "n_components": [POSITIVE_INTEGER, StrOptions({"auto"})],
        "block_size": [POSITIVE_INTEGER],
        "memory_budget": [POSITIVE_INTEGER],
        "n_jobs": [Integral, None],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        n_epochs: int | Iterable[int] = 10,
        n_segments: int | str = "auto",
        solver: str = "auto",
        n_seeds: int | Iterable[int] = 1,
        removal: str = "first-order",
        kink_smoothing: float | str | None = "auto",
        n_components: int | str = "auto",
        block_size: int = 64,
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
            estimator,
            n_epochs=n_epochs,
            n_seeds=n_seeds,
            optimizer=optimizer,
            lr=lr,
            batch_size=batch_size,
            optimizer_params=optimizer_params,
            measurement=measurement,
            criterion=criterion,
            random_state=random_state,
        )
        self.n_segments = n_segments
        self.solver = solver
        self.removal = removal
        self.kink_smoothing = kink_smoothing
        self.n_components = n_components
        self.block_size = block_size
        self.memory_budget = memory_budget
        self.n_jobs = n_jobs
        self.verbose = verbose

    # ---- fit --------------------------------------------------------------------------------

    def _fit(self) -> None:
        self.horizons_ = self._check_horizons()
        run = self._run()
        self.seeds_ = check_seeds(self.n_seeds, self.random_state)
        smooth = kink_sharpness(self.kink_smoothing, run.optimizer, KINK_SMOOTHING)
        walk = Walk(self._objective, run.optimizer, run.batch_size, kink_smoothing=smooth)
        self.solver_ = self._choose_solver()
        self._check_removal()
        self._runs = self._linearize(walk)
        self.n_segments_, self.n_components_ = self._runs[0].n_segments, self._runs[0].n_components
        self.discrepancy_ = self._discrepancy()
        if self.discrepancy_[-1] > MISSED and self._matters():
            warnings.warn(
                "LinearizedFurtherTraining: the linearised run misses "
                f"{self.discrepancy_[-1]:.0%} of the outputs' change over {self.horizons_[-1]} epochs "
                "(discrepancy_). Raise n_segments, lower n_epochs, or use UnrolledDifferentiation.",
                ConvergenceWarning,
                stacklevel=2,
            )

    def _n_passes(self, fitted: BaseAttributor, n_test: int, n_jobs: int) -> float:
        model, n, n_outputs = fitted.model_, len(fitted._objective), fitted.n_outputs_
        n_epochs = self._check_horizons()[-1]
        if self.n_segments != 1:
            each = bytes_per_component(model, n, n_outputs, SEGMENTS, 1)
            k = components_that_fit(model, each, self.memory_budget)
            krylov = SEGMENTS * KRYLOV * (2 * k + 10 * k * k / (6 * n))  # a pass: 6 n p operations
            return (krylov + n_epochs) / min(n_jobs, SEGMENTS)
        if model.l2 is not None or kernel_bytes(n, n_outputs, 1, 1) > self.memory_budget:
            return inf
        n_steps = n_epochs * ceil(n / (self.batch_size or model.recipe.batch_size or n))
        modes = n * n_outputs
        squared = model.loss.constant_curvature(n_outputs) is not None
        each = 10 * modes if squared else 2 * n_test * n_steps
        return each * modes**2 / (6 * n * model.n_parameters) + n_epochs

    def _known_error(self, scores: NDArray[np.float64]) -> list[str]:
        missed = f"the linearised run misses {self.discrepancy_[-1]:.0%} of the outputs' change"
        return [*super()._known_error(scores), missed]

    def _discrepancy(self) -> NDArray[np.float64]:
        changes = [run.changes(self.horizons_) for run in self._runs]
        missed = sum((true - linear).double().square().sum((1, 2)) for true, linear in changes)
        total = sum(true.double().square().sum((1, 2)) for true, _ in changes)
        ratio = torch.as_tensor(missed / total).sqrt()
        return torch.nan_to_num(ratio, nan=0.0).cpu().numpy()

    def _matters(self) -> bool:
        """Whether the outputs change visibly at all, beside their spread over the rows."""
        outputs = torch.stack([run.run.outputs[[0, -1]] for run in self._runs])
        change = (outputs[:, 1] - outputs[:, 0]).square().mean().sqrt()
        return bool(change > VISIBLE * outputs[0, 0].std(0).norm())

    def _linearize(self, walk: Walk) -> list[LinearizedRun]:
        """The runs of all seeds."""
        budget, horizons = self.memory_budget, self.horizons_
        if self.n_segments != 1:
            count = SEGMENTS if isinstance(self.n_segments, str) else int(self.n_segments)
            some = None if isinstance(self.n_components, str) else int(self.n_components)
            size = some, self.block_size
            return segmented_runs(walk, self.seeds_, horizons, count, *size, budget, self._parallel)
        if self.solver_ == "steps":
            return stepped_runs(walk, self.seeds_, horizons, budget, self._parallel)
        exact = self.removal == "exact"
        return kernel_runs(walk, self.seeds_, horizons, exact, budget, self._parallel)

    def _choose_solver(self) -> str:
        if self.n_segments != 1:
            return "segments"
        if self.solver != "auto":
            return self.solver
        needed = kernel_bytes(
            len(self._objective), self.n_outputs_, len(self.seeds_), len(self.horizons_)
        )
        fits = needed <= self.memory_budget or self.removal == "exact"
        return "kernel" if fits else "steps"

    def _check_removal(self) -> None:
        if self.removal == "exact" and not (
            self.solver_ == "kernel"
            and self.model_.loss.constant_curvature(self.n_outputs_) is not None
        ):
            raise ValueError(
                "removal='exact' needs n_segments=1, solver='kernel' and a squared error, got "
                f"n_segments={self.n_segments!r}, solver={self.solver!r} and "
                f"{type(self.model_.loss).__name__}. Use removal='first-order'."
            )

    def _parallel(self, jobs: list[Any]) -> list[Any]:
        """Results of the jobs, in their order."""
        return list(
            Parallel(n_jobs=self.n_jobs)(
                tqdm(jobs, desc="linearised further training", disable=not self.verbose)
            )
        )

    # ---- transform --------------------------------------------------------------------------

    def _run_scores(
        self, test: Measured, horizons: list[int]
    ) -> tuple[NDArray[np.float64], Tensor]:
        X, y, measure = test.inputs, test.targets, test.measure
        vector = self.model_.n_parameters * self.model_.theta.element_size() * 8 * len(horizons)
        chunk = int(max(1, self.memory_budget // vector))
        per_seed = torch.stack(
            [
                torch.cat(
                    [
                        run.scores(x, target, measure, horizons)
                        for x, target in zip(X.split(chunk), y.split(chunk), strict=True)
                    ],
                    dim=1,
                )
                for run in self._runs
            ],
            dim=-1,
        )
        ends = torch.stack([run.run.theta(horizons[-1]) for run in self._runs])
        return per_seed.double().cpu().numpy(), ends

    # ---- other questions than the removal of one row ----------------------------------------

    def _reweighted(self, test: Measured, factors: NDArray[np.float64]) -> NDArray[np.float64]:
        """Exactly, if rows are removed exactly: all rows in question follow the same run."""
        X, y, measure = test.inputs, test.targets, test.measure
        if self.removal != "exact":
            return super()._reweighted(test, factors)
        weights = torch.from_numpy(factors).to(self.model_.device)
        effects = [
            run.reweighted(X, y, measure, self.horizons_[-1], weights)
            for run in self._runs
            if isinstance(run, KernelRun)
        ]
        return torch.stack(effects).mean(0).cpu().numpy()

    @with_gradients
    def relabel(
        self, X: Any, y: Any = None, *, rows: ArrayLike, targets: ArrayLike
    ) -> NDArray[np.float64]:
        """Effect of giving training rows other targets, each row alone, to first order.

        Exact in the linearised network for a squared error.

        Parameters
        ----------
        X : array-like of shape (n_test, n_features)
            Test rows.
        y : array-like of shape (n_test,), default=None
            Their targets, as in `transform`.
        rows : int or array-like of int of shape (n_rows,)
            Indices of the training rows to relabel, none twice. 5 is row 5.
        targets : array-like of shape (n_rows,) or (n_rows, n_outputs)
            Their new targets; of one row, a scalar will do.

        Returns
        -------
        effect : ndarray of shape (n_test, n_rows)
            Change of the measurement at the last horizon.
        """
        check_is_fitted(self, "model_")
        chosen = check_row_indices(
            [rows] if is_integer(rows) else rows, len(self._objective), "rows"
        )
        if is_integer(rows):
            targets = np.atleast_1d(np.asarray(targets))
        new = self.model_.encode_y(check_targets(targets, len(chosen)), self.n_outputs_)
        test = self._test(X, y)
        share = self._shares()[chosen]
        horizon = self.horizons_[-1:]
        effects = []
        for run in self._runs:
            residuals = run.run.residuals
            other = residuals.clone()
            for epoch, outputs in enumerate(run.run.outputs[:, chosen]):
                other[epoch, chosen] = self.model_.loss.gradient(outputs, new)
            before, after = (
                run.scores(test.inputs, test.targets, test.measure, horizon, own)[0][:, chosen]
                for own in (residuals, other)
            )
            effects.append((before - after).double().cpu().numpy() * (1 - share))
        return self._finite(np.mean(effects, axis=0))
