"""Unrolled differentiation: the derivative of further training in each row's weight."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import ceil
from typing import Any, ClassVar

import numpy as np
import torch
from joblib import delayed
from numpy.typing import NDArray
from torch import Tensor, nn

from .._validation import (
    OPEN_SHARE,
    POSITIVE_INTEGER,
    POSITIVE_REAL,
    StrOptions,
    check_leave_out,
    check_random_state,
    check_seeds,
)
from ..batch_statistics import BATCH_STATISTICS, BatchStatistics
from ..last_call import of_last_call
from ..measured import Measured
from ..measurements import Measurement
from ..training.differentiable import n_parts
from ..training.optimizers import LearningRate
from ..training.recorded import check_run
from ..trials import Trial
from ..walks.ends import Ends
from ..walks.kinks import kink_sharpness
from ..walks.row_changes import LeftOut, Relabelled, RowChange
from ..walks.run_derivatives import Unrolled, growth_of
from ..walks.tangents import walk_forward
from ..walks.unrolled import ROWS_BUDGET, WalkBack, walks_back
from ..walks.walk_memory import bytes_back, bytes_forward, require_memory
from .families.further_training import BaseFurtherTraining, HorizonsMixin

#: Sharpness of ``kink_smoothing="auto"``.
KINK_SMOOTHING = 400.0

#: Runs of ``measurement_draws="auto"``.
N_ENDS = 4

#: Test rows that walk back through a run together; a unit of work.
BLOCK = 64


class UnrolledDifferentiation(HorizonsMixin, BaseFurtherTraining):
    r"""Derivative of the real run of further training in the weight of each row.

    .. math:: S_{z,i} = \frac1R \sum_{r=1}^R \nabla m_z(\theta_T)^\top \dot\theta_T^{(i)}, \qquad
              \dot\theta_{t+1} = (I - \eta H_t) \dot\theta_t
              + \eta \, 1[i \in B_t] \, \tfrac{w_i}{1 - w_i} (g_i - \bar g_t)

    for SGD: :math:`\theta_t` are the iterates of the run on all rows with the randomness of seed r,
    :math:`\bar g_t` and :math:`H_t` gradient and Hessian of the batch's mean loss, :math:`g_i` the
    gradient of row i and :math:`w_i` its weight in that mean (1/B). This is the change of the
    measurement when row i is masked as `FurtherTraining` does it, to first order in the removal.
    Momentum, Adam and every other optimiser of torch that can be differentiated carry their
    buffers along. All rows are scored by one walk backwards from the test rows (`mode` "adjoint"),
    or forwards from a few left-out rows ("forward"); both give the same numbers.

    A ReLU network bends at kinks, of which its derivatives know nothing; `kink_smoothing` puts that
    curvature back.

    This is the score of a seed, ``order="own"``. What differs from seed to seed is mostly when a row comes
    up, and with which others, and by default it is averaged: every row is pushed at every step with its
    share :math:`s_i` in all rows,

    .. math:: S_{z,i} = \frac1R \sum_{r=1}^R \sum_t \tfrac{s_i}{1 - s_i} \,
              a_{t+1}^\top \Big(\sum_j s_j g_j(\theta_t) - g_i(\theta_t)\Big),

    with :math:`a_{t+1}` the derivative of the measurement in the gradient of step t, found by the
    walk backwards. It is the mean over random batches, conditional on the run: its iterates stay its own, and
    its Hessians are those of its batches (and of the next ones, `curvature_batches`), as if the row being
    left out and the other rows of its batches were independent. Adjoints are summed over blocks of steps,
    an epoch or less, and all rows are gone through once a block, with the parameters in its middle.
    Optimisers that divide by second moments have these raised to what batches have on average, and rows are
    taken out of a step to second order: its own second moment goes with a row. So does that
    of a row that is relabelled (`relabel`).

    One step costs about 12 k B p operations, B the batch size, p the number of parameters, and k
    the number of test rows (times horizons; or of left-out rows, if they are fewer).

    Where batch normalisation is trained, too, the rows of a batch act on each other through its statistics:
    a left-out row changes these, its batch's gradient and, by the running statistics, the final outputs.
    All of that is in the derivative (``batch_statistics="update"``).

    Parameters
    ----------
    estimator : object, default=None
        Fitted model; an unfitted scikit-learn or skorch estimator is cloned and fitted. None is a
        small MLP.
    n_epochs : float or list of float, default=10
        Epochs of further training; several horizons are scored in one walk, see
        `transform_horizons`. A fraction of an epoch is so many of its steps, rounded to whole ones.
    n_seeds : int or list of int, default=1
        Number of runs to average over (drawn from `random_state`) or their seeds.
    leave_out : None, int or list of int, default=None
        Rows to leave out, one at a time: all, a random number of them, or these.
    start : nn.Module, dict or None, default=None
        Where the run starts: a network of the same architecture or its ``state_dict``, for example
        the initial parameters of training. None is the final model.
    kink_smoothing : float, "auto" or None, default="auto"
        Sharpness of the curvature at kinks (ReLU, LeakyReLU, max pooling, absolute losses): one
        over its width, in units of what goes into the kink. "auto" is 400 for SGD and None for
        other optimisers and where batch statistics are trained. None leaves it out.
    order : {"expected", "own"}, default="expected"
        When a row is pushed: with its share at every step, the mean over random orders, or at the steps at
        which the run has it. "expected" agrees with the mean over seeds, and takes few of them; "own" has
        the noise of the run's seed, as training with it has, and is what the outcomes of given seeds need.
    blocks_per_epoch : int, default=1
        For ``order="expected"``: in how many blocks an epoch is taken. More where gradients of rows
        move fast within an epoch.
    curvature_batches : int, default=1
        For ``order="expected"``: the Hessian of a step is that of so many batches of its epoch, its own and
        the next ones. Random orders have that of all rows on average, and with more batches a walk has less
        noise of its own, at the cost of more products. Where batch statistics are trained, it is that of the
        step's own batch always.
    gradient_draws : int, default=4
        For ``order="expected"``, where a row's gradient depends on chance, by dropout or by the rows that
        share the statistics of its batch: all rows are gone through so many times a block, first as the run
        has them, then in batches and with noise of other draws. More have less noise, and take longer.
    measurement_draws : int or "auto", default="auto"
        For ``order="expected"``: measurements of test rows are differentiated where so many runs end, the
        walk's own and others that are trained beside it. The gradient of a test row depends on the run, most
        of all near kinks. "auto" is 4 from the final model, and 1 from another start, where runs end in
        other places.
    max_growth : float, "auto" or None, default="auto"
        For ``order="expected"``: over an epoch a vector grows by this factor at most on its way back. The
        vectors of a run grow in a few epochs, at kinks above all, of which other runs know nothing and where
        training saturates. "auto" is 1 for SGD without momentum from the final model, and None otherwise:
        from other starts, changes do grow. None lets them. `growth_` is what it would be without.
    n_test_components : int, float or None, default=None
        Walk back from so many combinations of test rows in place of each of them: those with the largest
        products with gradients of training rows at the final model, all test rows counting the same, or as
        many as have this part of the sum of squares. The time goes with their number, and
        `truncation_error_` says what they miss. None is all test rows.
    mode : {"auto", "adjoint", "forward"}, default="auto"
        Direction; with ``order="own"``, "auto" walks forwards if fewer rows are left out than there are
        test vectors. The expected order walks backwards.
    optimizer : str or type, default=None
        A ``torch.optim`` class that updates every coordinate on its own and has the option
        ``differentiable``, or its name; the model's own by default, SGD if it has none.
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
    batch_statistics : {"update", "frozen"}, default="update"
        Batch normalisation in training: "update" takes the mean and variance of the rows that a model
        has in a batch (a left-out row, or one of weight zero, is not among them) and updates running
        statistics of each model, which is measured with them; "frozen" takes the final model's. Walking
        forwards needs "frozen".
    measurement : str or callable, default="loss"
        What is attributed: ``"loss"``, ``"margin"``, ``"log_prob"``, ``"output"`` or a callable
        ``m(outputs, targets)`` giving one number per row.
    criterion : nn.Module, default=None
        Training criterion of a bare ``nn.Module``.
    memory_budget : int, default=2 GiB
        Bytes for the states of a run and the vectors that walk through it.
    random_state : int, RandomState or None, default=None
        Used to fit an unfitted `estimator` and to draw the seeds and a random number of left-out
        rows.
    n_jobs : int, default=None
        joblib workers, of one thread each, over seeds and blocks of 64 test rows. Scores are the
        same bits for every value.
    verbose : int, default=0
        Show progress if positive.

    Attributes
    ----------
    estimator_ : object
        The final model.
    model_ : FinalModel
        Its frozen functional view.
    train_indices_ : ndarray of shape (n_columns,)
        Training row of each column.
    seeds_ : list of int
        Seeds of the runs.
    horizons_ : list of number
        The horizons of `transform_horizons`.
    scores_sem_ : ndarray of shape (n_test, n_columns)
        Standard error over seeds of the scores last returned by `transform`; NaN for one seed.
    truncation_error_ : float
        What the scores last returned miss by `n_test_components`, as a part of their size (root mean square
        over test rows): an estimate from one random combination of what was left out.
    growth_ : float
        Largest factor by which a vector has grown in the last walk, or would have but for `max_growth`. Far
        above one the run is unstable: small changes do not stay small, and the derivative overstates them.

    Raises
    ------
    ValueError
        If the optimiser cannot be differentiated.
    FloatingPointError
        If the run diverges.
    MemoryError
        If the states of a run do not fit `memory_budget`.

    Warns
    -----
    ConvergenceWarning
        If `growth_` is above 100 and vectors are not held by `max_growth`.

    References
    ----------
    Hara et al., "Data Cleansing for Models Trained with SGD", NeurIPS 2019; Ilyas and Engstrom,
    "MAGIC", arXiv 2504.16430. The curvature at kinks is fimoda's own.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from fimoda import UnrolledDifferentiation
    >>> X, y = load_diabetes(return_X_y=True)
    >>> unrolled = UnrolledDifferentiation(
    ...     Ridge().fit(X, y), n_epochs=[1, 3], lr=0.1, random_state=0
    ... )
    >>> unrolled.fit(X, y).transform(X[:4], y[:4]).shape
    (4, 442)
    >>> unrolled.transform_horizons(X[:4], y[:4]).shape
    (2, 4, 442)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **HorizonsMixin._parameter_constraints,
        "leave_out": [POSITIVE_INTEGER, "array-like", range, None],
        "start": [nn.Module, dict, None],
        "kink_smoothing": [POSITIVE_REAL, StrOptions({"auto"}), None],
        "order": [StrOptions({"own", "expected"})],
        "blocks_per_epoch": [POSITIVE_INTEGER],
        "curvature_batches": [POSITIVE_INTEGER],
        "gradient_draws": [POSITIVE_INTEGER],
        "measurement_draws": [POSITIVE_INTEGER, StrOptions({"auto"})],
        "max_growth": [POSITIVE_REAL, StrOptions({"auto"}), None],
        "n_test_components": [POSITIVE_INTEGER, OPEN_SHARE, None],
        "mode": [StrOptions({"auto", "adjoint", "forward"})],
        "batch_statistics": [StrOptions(set(BATCH_STATISTICS))],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        n_epochs: float | Iterable[float] = 10,
        n_seeds: int | Iterable[int] = 1,
        leave_out: int | Iterable[int] | None = None,
        start: nn.Module | dict[str, Tensor] | None = None,
        kink_smoothing: float | str | None = "auto",
        order: str = "expected",
        blocks_per_epoch: int = 1,
        curvature_batches: int = 1,
        gradient_draws: int = 4,
        measurement_draws: int | str = "auto",
        max_growth: float | str | None = "auto",
        n_test_components: float | None = None,
        mode: str = "auto",
        optimizer: str | type[torch.optim.Optimizer] | None = None,
        lr: LearningRate | None = None,
        batch_size: int | None = None,
        optimizer_params: dict[str, Any] | None = None,
        batch_statistics: BatchStatistics = "update",
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
        self.batch_statistics = batch_statistics
        self.leave_out = leave_out
        self.start = start
        self.kink_smoothing = kink_smoothing
        self.order = order
        self.blocks_per_epoch = blocks_per_epoch
        self.curvature_batches = curvature_batches
        self.gradient_draws = gradient_draws
        self.measurement_draws = measurement_draws
        self.max_growth = max_growth
        self.n_test_components = n_test_components
        self.mode = mode
        self.memory_budget = memory_budget
        self.n_jobs = n_jobs
        self.verbose = verbose

    # ---- fit --------------------------------------------------------------------------------

    def _fit(self) -> None:
        if self.order == "expected" and self.mode == "forward":
            raise ValueError(
                "mode must be 'auto' or 'adjoint' with order='expected', which is found on the way "
                "back from test rows; got 'forward'. Set order='own' to walk forwards."
            )
        rng = check_random_state(self.random_state)
        self.train_indices_ = check_leave_out(self.leave_out, len(self._objective), rng)
        run = self._run()
        start = None if self.start is None else run.model.vector_of(self.start, "start")
        self._full_run = replace(run, start=start)
        if self.mode == "forward" and run.model.statistics:
            raise ValueError(
                "mode must be 'auto' or 'adjoint' where batch normalisation is trained, got 'forward'. Set "
                "batch_statistics='frozen' to walk forwards."
            )
        self._set_horizons(self._full_run)
        self.seeds_ = check_seeds(self.n_seeds, rng)
        auto = None if run.model.statistics else KINK_SMOOTHING
        self._kinks = kink_sharpness(self.kink_smoothing, run.optimizer, auto)
        if self.mode == "forward":
            needed, other = self._bytes_forward(), "set mode='adjoint'"
        else:
            needed, other = sum(self._bytes_back(len(self._steps))), "use GradDot or EKFACInfluence"
        require_memory(needed, self.memory_budget, self._steps[-1], other)
        self._forward: list[Unrolled] = []  # by seed, once walked
        self._ends = [Ends({}) for _ in self.seeds_]
        if self.mode == "forward":
            self._walk_forward()
        else:  # a run that diverges, or an optimiser that has no derivative, shows now
            last = self._steps[-1]
            jobs = [delayed(check_run)(self._full_run, seed, last) for seed in self.seeds_]
            self._workers.do(self._workers.shown(jobs))
        if (n_others := self._n_ends() - 1) > 0:
            given = self._steps, n_others
            jobs = [delayed(Ends.of)(self._full_run, seed, *given) for seed in self.seeds_]
            self._ends = self._workers.do(self._workers.shown(jobs))

    def _bytes_forward(self) -> int:
        n_rows = len(self.train_indices_)
        return bytes_forward(self._full_run, self._steps[-1], len(self._steps), n_rows)

    def _bytes_back(self, n_horizons: int) -> tuple[int, int]:
        fixed, each = bytes_back(self._full_run, self._steps[-1], n_horizons)
        others = self._n_ends() - 1
        known = self._full_run.bytes_of(others * len(self.seeds_) * len(self._steps))
        return fixed + known, each + (self._full_run.bytes_of(1) if others else 0)

    def _n_ends(self) -> int:
        """Return the number of runs that `measurement_draws` asks for, with that of the walk."""
        if self.order == "own":
            return 1
        if self.measurement_draws == "auto":
            return N_ENDS if self.start is None else 1
        return int(self.measurement_draws)

    def _walk_forward(self) -> None:
        """Find the tangents of all left-out rows, by one walk a seed."""
        what = self._steps, [int(i) for i in self.train_indices_], self._kinks
        jobs = [delayed(walk_forward)(self._full_run, seed, *what) for seed in self.seeds_]
        self._forward = self._workers.do(self._workers.shown(jobs))

    # ---- transform --------------------------------------------------------------------------

    def _run_scores(
        self, test: Measured, horizons: list[int]
    ) -> tuple[NDArray[np.float64], Tensor]:
        load = len(test) * sum(horizons) / horizons[-1]  # vectors on their way back, on average
        fewer = len(self.train_indices_) < load
        fits = self._bytes_forward() <= self.memory_budget
        own = self.order == "own" and not self._full_run.model.statistics
        if self.mode == "auto" and own and fewer and fits and not self._forward:
            self._walk_forward()
        self._seen["truncation_error_"] = 0.0
        if self._forward:
            places = [self._steps.index(step) for step in horizons]
            found = [walk.scores(self.model_, places, test) for walk in self._forward]
            self._seen["growth_"] = growth_of(found)
        else:
            walked = self._walk_back(test, horizons, LeftOut(len(self._objective)))
            found = [one.columns(self.train_indices_) for one in walked]
        scores = torch.stack([one.values for one in found], -1)
        return scores.cpu().numpy(), torch.stack([one.thetas[-1] for one in found])

    def _walk_back(self, test: Measured, horizons: list[int], change: RowChange) -> list[Unrolled]:
        """Return the scores of each seed, by walks back from blocks of test rows or combinations."""
        fixed, each = self._bytes_back(len(horizons))
        room = self.memory_budget - int(ROWS_BUDGET * self.memory_budget / 2) - fixed
        together = min(BLOCK, max(1, room // each))
        n_blocks = None if self.order == "own" else self.blocks_per_epoch
        held = self._held_growth()
        how = self._kinks, n_blocks, self.curvature_batches, self.gradient_draws, held
        walk = WalkBack(self._full_run, horizons, change, *how)
        given = self.seeds_, self._ends, test, together, self.n_test_components, self._workers
        found, self._seen["truncation_error_"] = walks_back(walk, *given)
        self._seen["growth_"] = growth_of(found, is_held=held is not None)
        return found

    def _relabelled(
        self, test: Measured, rows: NDArray[np.int64], targets: NDArray[Any]
    ) -> NDArray[np.float64]:
        change = Relabelled.of(rows, *self._with_targets(rows, targets))
        found = self._walk_back(test, self._steps[-1:], change)
        return torch.stack([one.values[0] for one in found]).mean(0).cpu().numpy()

    def _held_growth(self) -> float | None:
        """Return what `max_growth` asks for."""
        if self.order == "own":
            return None
        if self.max_growth != "auto":
            return None if self.max_growth is None else float(self.max_growth)
        run = self._full_run
        plain = n_parts(run.optimizer) == 1 and not run.model.statistics
        return 1.0 if plain and self.start is None else None

    def _expected_seconds(self, trial: Trial) -> float:
        rows, tests = self._trial_rows(trial), min(trial.n_test, BLOCK)
        changes = {"n_epochs": 1, "n_seeds": 1, "n_jobs": None, "leave_out": None, "verbose": 0}
        walk = trial.twice(self, rows, tests, **changes)
        walks = ceil(trial.n_test / tests) * len(check_seeds(self.n_seeds, 0))
        n_epochs = self._check_horizons()[-1] * trial.n_rows / rows
        return walk * n_epochs * walks / min(trial.n_jobs, walks)

    def _known_error(self, scores: NDArray[np.float64]) -> list[str]:
        known = [f"small changes grow {self.growth_:.2g}-fold at most"]
        if self.n_test_components is not None:
            known.append(f"combinations of test rows leave out {self.truncation_error_:.1%} of it")
        return [*super()._known_error(scores), *known]

    truncation_error_ = of_last_call(
        "truncation_error_",
        "What the scores last returned miss by `n_test_components`, a part of them.",
    )
    growth_ = of_last_call(
        "growth_", "Largest factor by which a vector has grown in the last walk."
    )
