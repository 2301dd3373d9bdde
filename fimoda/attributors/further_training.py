"""Further training: the gold standard of final-model-only attribution, as an estimator."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any, ClassVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .._validation import (
    POSITIVE_INTEGER,
    POSITIVE_REAL,
    StrOptions,
    check_horizons,
    check_leave_out,
    check_seeds,
)
from ..adapters import RefittableModel, continues_itself
from ..batch_statistics import BATCH_STATISTICS, BatchStatistics
from ..measured import Measured
from ..measurements import Measurement
from ..training.batches import LeaveOutMode
from ..training.continued import continued_run, continued_runs
from ..training.further import FurtherRuns, further_runs
from ..training.optimizers import LearningRate
from ..training.outcomes import standard_error
from ..training.relabelled import relabelled
from ..training.run import WAYS, Way
from ..training.without_groups import without_groups
from ..training.workers import Workers
from ..trials import Trial
from ..views import GradientView, PredictionView, View
from .families.further_training import BaseFurtherTraining

#: Parameters that say what is trained and measured; the others say how to train.
_WHAT = "estimator", "measurement", "criterion"


class FurtherTraining(BaseFurtherTraining):
    r"""Train the final model further with and without each row, and compare.

    .. math:: S_{z,i} = \frac1R \sum_{r=1}^R
              \left[ m_z(\theta_T(D \setminus i; \xi_r)) - m_z(\theta_T(D; \xi_r)) \right]

    :math:`\theta_T(D; \xi)` are the parameters after ``n_epochs`` more epochs from the final model
    on the rows D, with randomness :math:`\xi` (batch order, dropout) the same in both runs. The
    run on all rows is the correction for a final model that is not converged, which moves also
    when nothing is left out. The score answers: how does this prediction depend on row i, in a
    model that goes on training as described? Its unit is that of the measurement. The other rows' weights
    in the mean grow, and class weights stay as they are, also balanced ones.

    `fit` trains; `transform` evaluates. Models that leave out different rows are trained as one
    stack. Dropout is active, with the same units dropped in both runs.

    Estimators that are no networks go on by themselves. Gradient boosting (of scikit-learn, XGBoost, LightGBM
    and CatBoost) adds rounds to those that there are, with early stopping off; a round counts as an epoch.
    Others with ``partial_fit`` (``SGDClassifier`` with ``loss="hinge"``, ``Perceptron``) take a step for each
    row of an epoch. What they predict is measured: probabilities and their log-loss, values of a decision
    function and their hinge loss, or predictions and their squared error. Horizons are whole numbers,
    `optimizer` and the other parameters of steps are left alone, and balanced class weights are those of the
    rows that are left. If nothing is drawn, all seeds are one run. Trees that are grown from other rows each
    time (``subsample``) say little about one row: look at ``scores_sem_``.

    Parameters
    ----------
    estimator : object, default=None
        Fitted model; an unfitted scikit-learn or skorch estimator is cloned and fitted. None is a
        small MLP.
    n_epochs : float, default=10
        Epochs of further training. A fraction of an epoch is so many of its steps, rounded to whole ones:
        0.25 are the first 30 of 120.
    n_seeds : int, list of int or "auto", default=10
        Number of runs to average over (drawn from `random_state`) or their seeds. "auto" adds
        seeds, 5 at a time, until the root mean square of the standard errors is at most `sem_tol`
        times that of the scores (measured by the loss of up to 200 training rows).
    leave_out : None, int or list of int, default=None
        Rows to leave out, one at a time: all, a random number of them, or these.
    correction : {"full", "mean"} or None, default="full"
        "full" subtracts the run on all rows with the same seed. "mean" also subtracts the mean
        over the left-out rows. None subtracts the final model itself: the uncorrected quantity.
    leave_out_mode : {"mask", "drop", "expected"}, default="mask"
        "mask": the left-out row keeps its place in its batch with weight zero, the others are
        averaged. "drop": it is deleted from the order, so that later batches shift by one. Both
        have the same expectation; "mask" is far less noisy. "expected": the row is taken out of every
        batch's mean with its share in all rows, :math:`\bar g_t + \frac{s_i}{1 - s_i} (\bar g_t - g_i)`:
        to first order this is the mean over orders, without the noise of when the row comes up, so that a
        seed is worth several. With Adam a row's own second moment stays, and long runs differ by it.
        Of estimators that go on by themselves "mask" keeps a row with weight zero where a seed draws rows
        or their order (``subsample``, ``partial_fit``), so that the same others are drawn; some libraries
        still count it in the size of a leaf. Where no rows are drawn it is taken away, as by "drop"; but one
        that is the only one of its class or category always stays with weight zero.
    optimizer : str or type, default=None
        A ``torch.optim`` class that updates every coordinate on its own, or its name; the model's
        own by default, SGD if it has none. It starts without state.
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
    batch_statistics : {"update", "frozen"}, default="update"
        Batch normalisation in training: "update" takes the mean and variance of the rows that a model
        has in a batch (a left-out row, or one of weight zero, is not among them) and updates running
        statistics of each model, which is measured with them; "frozen" takes the final model's.
    compile : bool or "auto", default="auto"
        Whether gradients go through ``torch.compile``; "auto" does for long runs that gain from it.
    engine : {"auto", "layers", "vmap", "loop"}, default="auto"
        How many models are trained: layer by layer as one stack, which chains of linear layers can;
        by ``torch.vmap`` as one stack; or one after the other. "auto" is "layers" where it can be,
        otherwise "loop" in short runs, and in long ones the faster of "vmap" and "loop", timed on a
        few steps. Results differ by rounding.
    chunk_size : int, default=None
        Models in a stack; by default as many as stay in the processor's cache.
    checkpoint_dir : path, default=None
        Directory that keeps the trained stacks; they are read from it one by one when needed. A
        call with the same arguments resumes from it, also after the process was killed. Of estimators that
        go on by themselves it keeps measurements: `transform` trains, once for each set of test rows.
    memory_budget : int, default=2 GiB
        Bytes that trained models may take in memory when there is no `checkpoint_dir`.
    sem_tol : float, default=0.2
        Target of ``n_seeds="auto"``.
    max_seeds : int, default=100
        Most seeds that ``n_seeds="auto"`` runs.
    max_seconds : float, default=None
        Seconds of training in `fit`: no seed but the first begins that would not end in time, as
        long as the others took. Which seeds are run then depends on the machine.
    random_state : int, RandomState or None, default=None
        Used to fit an unfitted `estimator` and to draw the seeds and a random number of left-out
        rows.
    n_jobs : int, default=None
        joblib workers, of one thread each. Scores are the same bits for every value.
    verbose : int, default=0
        Show progress if positive.

    Attributes
    ----------
    estimator_ : object
        The final model.
    model_ : FinalModel
        Its frozen functional view.
    train_indices_ : ndarray of shape (n_left_out,)
        Training row of each column.
    seeds_ : list of int
        Seeds of the runs; fewer than asked for if `max_seconds` were over.
    engine_ : str
        The way in which models were trained, as `engine` takes it; "own" if an estimator went on by itself.
    scores_sem_ : ndarray of shape (n_test, n_left_out)
        Standard error over seeds of the scores last returned by `transform`; NaN for one seed.

    Raises
    ------
    FloatingPointError
        If training diverges.
    MemoryError
        Before training, if the models fit neither `memory_budget` nor a `checkpoint_dir` is given.
    OSError
        If `checkpoint_dir` cannot be written or has no room.
    TypeError
        If the model cannot be trained further: of forests more trees do not change those that there are, and
        naive Bayes would count its rows again.

    Warns
    -----
    UserWarning
        If early stopping has held rows out of the training, which goes on with all.

    References
    ----------
    Wei et al., "Final-Model-Only Data Attribution with a Unifying View of Gradient-Based Methods",
    NeurIPS 2025, arXiv 2412.03906: equations 13 ("mean") and 17 ("full").

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from fimoda import FurtherTraining
    >>> X, y = load_diabetes(return_X_y=True)
    >>> gold = FurtherTraining(
    ...     Ridge().fit(X, y), n_epochs=2, n_seeds=3, leave_out=[0, 7], random_state=0
    ... )
    >>> gold.fit(X, y).transform(X[:4], y[:4]).shape
    (4, 2)
    >>> gold.scores_sem_.shape
    (4, 2)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseFurtherTraining._parameter_constraints,
        **BaseFurtherTraining._BUDGET_CONSTRAINTS,
        "n_seeds": [POSITIVE_INTEGER, StrOptions({"auto"}), "array-like"],
        "leave_out": [POSITIVE_INTEGER, "array-like", range, None],
        "correction": [StrOptions({"full", "mean"}), None],
        "leave_out_mode": [StrOptions(set(get_args(LeaveOutMode)))],
        "batch_statistics": [StrOptions(set(BATCH_STATISTICS))],
        "compile": ["boolean", StrOptions({"auto"})],
        "engine": [StrOptions(set(WAYS))],
        "checkpoint_dir": [str, os.PathLike, None],
        "sem_tol": [POSITIVE_REAL],
        "max_seeds": [POSITIVE_INTEGER],
        "max_seconds": [POSITIVE_REAL, None],
        "n_jobs": [Integral, None],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        n_epochs: float = 10,
        n_seeds: int | Iterable[int] | str = 10,
        leave_out: int | Iterable[int] | None = None,
        correction: str | None = "full",
        leave_out_mode: LeaveOutMode = "mask",
        optimizer: str | type[torch.optim.Optimizer] | None = None,
        lr: LearningRate | None = None,
        batch_size: int | None = None,
        optimizer_params: dict[str, Any] | None = None,
        measurement: Measurement = "loss",
        criterion: nn.Module | None = None,
        batch_statistics: BatchStatistics = "update",
        compile: bool | str = "auto",
        engine: Way = "auto",
        chunk_size: int | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        memory_budget: int = 2 * 2**30,
        sem_tol: float = 0.2,
        max_seeds: int = 100,
        max_seconds: float | None = None,
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
        self.leave_out = leave_out
        self.correction = correction
        self.leave_out_mode = leave_out_mode
        self.batch_statistics = batch_statistics
        self.compile = compile
        self.engine = engine
        self.chunk_size = chunk_size
        self.checkpoint_dir = checkpoint_dir
        self.memory_budget = memory_budget
        self.sem_tol = sem_tol
        self.max_seeds = max_seeds
        self.max_seconds = max_seconds
        self.n_jobs = n_jobs
        self.verbose = verbose

    # ---- the model --------------------------------------------------------------------------

    def _view(self, estimator: Any) -> View:
        if continues_itself(estimator):
            return PredictionView(estimator, "last")
        return GradientView(estimator)

    @property
    def _goes_on(self) -> bool:
        """True if the model goes on by itself, and takes no steps of an optimiser."""
        return isinstance(self.model_, RefittableModel)

    def _prepare(self, X: Any, y: Any, sample_weight: Any) -> None:
        super()._prepare(X, y, sample_weight)
        if self._goes_on:
            self._own_run = continued_run(self, *self._seen_rows)

    def _in_epochs(self, n_steps: int) -> float:
        """Return the epochs of so many steps; where no optimiser takes them they are epochs or rounds."""
        run = self._own_run if self._goes_on else self._run()
        return run.n_epochs(n_steps)

    def _mean_shares(self) -> NDArray[np.float64]:
        return super()._mean_shares() if self._goes_on else self._row_shares()

    # ---- fit --------------------------------------------------------------------------------

    def _fit(self) -> None:
        runs = self._runs(check_horizons(self.n_epochs, "n_epochs"), "n_epochs")
        self._trained = runs.trained(self._own)
        self.seeds_ = list(self._trained.seeds)
        self.train_indices_ = self._trained.runs.leave_out
        self.engine_ = self._trained.runs.run.way

    def _settings(self) -> dict[str, Any]:
        """Return the parameters that say how to train."""
        given = self.get_params(deep=False)
        return {name: value for name, value in given.items() if name not in _WHAT}

    def _runs(self, epochs: Sequence[float], name: str, **changes: Any) -> FurtherRuns:
        """Return the runs that the parameters ask for, read after so many epochs (`name` in errors)."""
        settings = {**self._settings(), **changes}
        del settings["n_epochs"]
        if self._goes_on:
            return continued_runs(self._own_run, epochs, name, **settings)
        return further_runs(self._objective, epochs, name, **settings)

    # ---- groups -----------------------------------------------------------------------------

    def _group_methods(self) -> tuple[str, ...]:
        return ("first-order",) if self._goes_on else ("first-order", "exact")

    def _without(
        self, test: Measured, groups: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return without_groups(self._trained, self.n_epochs, test, groups)

    # ---- targets ----------------------------------------------------------------------------

    def _relabelled(
        self, test: Measured, rows: NDArray[np.int64], targets: NDArray[Any]
    ) -> NDArray[np.float64]:
        """Train further with each of the targets, by the batches of the run with all rows as they are."""
        if self._goes_on:
            return super()._relabelled(test, rows, targets)
        changed = self._with_targets(rows, targets)[1].rows
        workers = Workers(self.n_jobs, self.verbose, type(self).__name__)
        return relabelled(self._trained, rows, changed, test, workers).mean(-1)

    # ---- transform --------------------------------------------------------------------------

    def _scores(self, test: Measured) -> NDArray[np.float64]:
        per_seed = self._trained.outcomes(test).scores(self.correction)[0]
        self._seen["scores_sem_"] = standard_error(per_seed)
        return per_seed.mean(-1)

    def _self_influence(self) -> NDArray[np.float64]:
        return self._trained.own_scores(self._own, self.correction)

    def _coupled(self, test: Measured) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        outcomes = self._trained.outcomes(test)
        return outcomes.full[0].T, np.moveaxis(outcomes.scores("full")[0], -1, 0)

    def _known_error(self, scores: NDArray[np.float64]) -> list[str]:
        alone = ["one seed: with more, standard errors tell how random training is"]
        return super()._known_error(scores) or alone

    def _process(self) -> str:
        if self._goes_on:
            process = f"{self._own_run.continuing.process}: {self.n_epochs:g} {self._own_run.continuing.unit}"
            return process + ", rows kept with weight zero" * self._own_run.masks
        ways = {
            "drop": ", batches cut anew without the row",
            "expected": ", rows left out in expectation",
        }
        return super()._process() + ways.get(self.leave_out_mode, "")

    def _caveats(self) -> list[str]:
        n, planned = len(self.seeds_), self._trained.n_planned
        cut = f"the time was over after {n} of {planned} seeds"
        stay = self._own_run.must_stay[self.train_indices_] if self._goes_on else np.zeros(0)
        alone = f"{stay.sum()} rows that are the only ones of a class or category are left out by weight zero"
        return super()._caveats() + [cut] * (n < planned) + [alone] * bool(stay.any())

    def _expected_seconds(self, trial: Trial) -> float:
        n = trial.n_rows
        n_models = len(check_leave_out(self.leave_out, n, 0)) + 1
        seeds = self.max_seeds if isinstance(self.n_seeds, str) else self.n_seeds
        prepared = trial.prepared(self)
        one: dict[str, Any] = {"n_seeds": 1, "n_jobs": None, "verbose": 0}
        one |= {"checkpoint_dir": None, "max_seconds": None}
        if prepared._goes_on:
            two = trial.seconds(self, leave_out=[0], **one)
            n_seeds = len(check_seeds(seeds, 0)) if prepared._own_run.is_random else 1
            return n_models * n_seeds * two / 2 / trial.n_jobs
        epochs = check_horizons(self.n_epochs)
        whole = prepared._runs(epochs, "n_epochs", verbose=0, max_seconds=None)
        few, way = self._trial_rows(trial), whole.decided().way
        each = trial.by_models(self, few, engine=way, **one)
        n_epochs = epochs[-1] / trial.n_jobs + trial.n_test / (3 * n)  # and measuring
        return n_models * len(check_seeds(seeds, 0)) * n_epochs * each
