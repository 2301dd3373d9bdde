"""Linearised further training: the gold standard at the price of a few gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .._validation import (
    POSITIVE_INTEGER,
    POSITIVE_REAL,
    StrOptions,
    check_seeds,
    in_steps,
)
from ..measured import Measured
from ..measurements import Measurement
from ..training.optimizers import LearningRate
from ..trials import Trial
from ..walks.kinks import kink_sharpness
from ..walks.linearized import discrepancy, warn_of_discrepancy
from ..walks.row_changes import Relabelled
from ..walks.segmented_run import (
    bytes_per_component,
    components_that_fit,
    cut,
    segmented_runs,
)
from .families.further_training import BaseFurtherTraining, HorizonsMixin

#: Sharpness of ``kink_smoothing="auto"``.
KINK_SMOOTHING = 100.0

#: Segments of ``n_segments="auto"``.
SEGMENTS = 6


class LinearizedFurtherTraining(HorizonsMixin, BaseFurtherTraining):
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

    The network is linearised anew in the middle of each segment of the run, with the true Hessian and
    the curvature of kinks, and evaluated in Krylov spaces of `n_components` dimensions (tens of
    seconds); this agrees with further training far longer than one linearisation,
    `OnceLinearizedFurtherTraining`, which takes seconds.

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
    n_segments : int or "auto", default="auto"
        Linearisations, at least 2, at the middles of segments that get longer with time; every
        horizon also ends a segment. "auto" is 6.
    n_seeds : int or list of int, default=1
        Number of runs to average over (drawn from `random_state`) or their seeds.
    kink_smoothing : float, "auto" or None, default="auto"
        As in `UnrolledDifferentiation`; "auto" is 100 for SGD and None for other optimisers.
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
        Bytes for the bases of all segments; and for the vectors that walk back through them.
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
    horizons_ : list of number
        The horizons of `transform_horizons`.
    n_segments_ : int
        Linearisations of a run.
    n_components_ : int
        Dimensions of their Krylov spaces.
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
        If the optimiser has no linear form, or there is one segment only.
    FloatingPointError
        If the run diverges, or is unstable when linearised: the learning rate is above 2 over the
        largest (preconditioned) curvature, and that blows up within the epochs asked for.
    MemoryError
        If the bases of the segments do not fit `memory_budget`.

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
        **HorizonsMixin._parameter_constraints,
        "n_segments": [POSITIVE_INTEGER, StrOptions({"auto"})],
        "kink_smoothing": [POSITIVE_REAL, StrOptions({"auto"}), None],
        "n_components": [POSITIVE_INTEGER, StrOptions({"auto"})],
        "block_size": [POSITIVE_INTEGER],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        n_epochs: float | Iterable[float] = 10,
        n_segments: int | str = "auto",
        n_seeds: int | Iterable[int] = 1,
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
            estimator, measurement=measurement, criterion=criterion, random_state=random_state
        )
        self.n_epochs = n_epochs
        self.n_seeds = n_seeds
        self.optimizer = optimizer
        self.lr = lr
        self.batch_size = batch_size
        self.optimizer_params = optimizer_params
        self.n_segments = n_segments
        self.kink_smoothing = kink_smoothing
        self.n_components = n_components
        self.block_size = block_size
        self.memory_budget = memory_budget
        self.n_jobs = n_jobs
        self.verbose = verbose

    def _fit(self) -> None:
        if self.n_segments == 1:
            raise ValueError(
                "n_segments must be at least 2, or 'auto', got 1. For one linearisation, where the run "
                "begins, use OnceLinearizedFurtherTraining, which has solver and removal too."
            )
        run = self._run()
        self._set_horizons(run)
        self.seeds_ = check_seeds(self.n_seeds, self.random_state)
        self._runs, self.n_components_ = segmented_runs(
            run,
            self.seeds_,
            self._steps,
            SEGMENTS if isinstance(self.n_segments, str) else int(self.n_segments),
            None if isinstance(self.n_components, str) else int(self.n_components),
            self.block_size,
            kink_sharpness(self.kink_smoothing, run.optimizer, KINK_SMOOTHING),
            self._workers,
        )
        self.n_segments_ = len(self._runs[0].segments)
        self.discrepancy_ = discrepancy(self._runs, self._steps)
        warn_of_discrepancy(
            self._runs, self.discrepancy_, f"{type(self).__name__}: ", "Raise n_segments"
        )

    def _expected_seconds(self, trial: Trial) -> float:
        own = trial.prepared(self)
        run, asked = own._run(), SEGMENTS if isinstance(self.n_segments, str) else self.n_segments
        horizons = in_steps(self._check_horizons(), run.steps_per_epoch, "n_epochs")
        n_segments = len(cut(horizons, int(asked), run.steps_per_epoch)) - 1
        n_seeds = len(check_seeds(self.n_seeds, 0))
        k = self.n_components
        if isinstance(k, str):
            each = bytes_per_component(own._objective, n_segments, n_seeds)
            k = components_that_fit(own._objective, each, self.memory_budget)
        few = min(k, self.block_size)
        changes: dict[str, Any] = {"n_epochs": 2, "n_segments": 2, "n_components": few}
        changes |= {"n_seeds": 1, "n_jobs": None, "verbose": 0}
        one = trial.by_rows(self, **changes) / 2
        if k > few:
            more = trial.by_rows(self, **changes | {"n_components": min(k, 2 * few)}) / 2
            one += max(more - one, 0.0) * (k - few) / (min(k, 2 * few) - few)
        # orthogonal bases grow with the square, in float32; their matrices are decomposed
        algebra = 2.5 * k**2 * own.model_.n_parameters / trial.product_rate
        segment = one + algebra + k**3 / trial.eigen_rate
        return n_seeds * n_segments * segment / min(trial.n_jobs, n_segments * n_seeds)

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

    def _relabelled(
        self, test: Measured, rows: NDArray[np.int64], targets: NDArray[Any]
    ) -> NDArray[np.float64]:
        change = Relabelled.of(rows, *self._with_targets(rows, targets))
        effects = [run.relabelled(test, self._steps[-1], change) for run in self._runs]
        return torch.stack(effects).mean(0).cpu().numpy()
