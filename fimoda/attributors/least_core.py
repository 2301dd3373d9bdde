"""LeastCore: shares with which no set of rows would be better off alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .._validation import POSITIVE_INTEGER, StrOptions
from ..batch_statistics import BatchStatistics
from ..games.estimates import Estimate, with_mean
from ..games.exact import all_subsets
from ..games.least_core import least_core
from ..games.scoring import Scoring
from ..games.utility import Utility
from ..last_call import of_last_call
from ..measurements import Measurement
from ..training.optimizers import LearningRate
from ..training.run import Way
from .families.games import GameMixin
from .families.trained_again import BaseTrainedAgain


class LeastCore(GameMixin, BaseTrainedAgain):
    r"""Share what all rows achieve so that no set of rows gets much less than it achieves alone.

    .. math:: \min_{\phi, e} e \quad \text{so that} \quad \sum_i \phi_i = v(N) - v(\emptyset), \quad
              \sum_{i \in S} \phi_i + e \ge v(S) - v(\emptyset) \text{ for all } S

    Of the values with the smallest :math:`e` those of the smallest norm are taken (the egalitarian least
    core).
    :math:`v(S)` is minus the measurement of a test row after training on the rows S (`transform`), or a score
    of all test rows (`values`): a positive value says that the row helps. Scores are in the unit of the
    measurement.

    Parameters
    ----------
    estimator : object, default=None
        Fitted model; an unfitted scikit-learn or skorch estimator is cloned and fitted. None is a
        small MLP. Its parameters are not where training starts.
    n_samples : int or "exact", default=1000
        Number of random sets of rows, each with that of all other rows; "exact" trains on all sets of at most
        14 rows.
    scoring : str or callable, default=None
        What `values` shares among the rows: a scorer of scikit-learn's by name, a scorer, or a callable
        ``f(estimator, X, y)`` giving one number for all test rows, more being better. The estimator predicts
        the test rows (``predict``, ``predict_proba``). None is the mean of the scores of `transform`.
    n_epochs : int, default=None
        Epochs of training of a network; those of its own training by default.
    n_seeds : int or list of int, default=1
        Number of trainings of each model (drawn from `random_state`) or their seeds. A seed fixes
        initial parameters, batch order and dropout; other estimators take it as ``random_state``.
        Utilities are means over seeds.
    optimizer : str or type, default=None
        Networks only: a ``torch.optim`` class that updates every coordinate on its own, or its
        name; the model's own by default, SGD if it has none.
    lr : float or callable, default=None
        Networks only: learning rate, or a function of the epoch (from 0) giving it; the model's own
        by default, 0.01 if it has none.
    batch_size : int, default=None
        Networks only: the model's own by default, 128 if it has none.
    optimizer_params : dict, default=None
        Networks only: other settings of the optimiser (momentum, weight_decay, betas, ...);
        `max_grad_norm` or `max_grad_value`, at which gradients are clipped; `param_groups`, a list of
        patterns of names with their own `lr` and `weight_decay`.
    init : callable, default=None
        Makes a new module of the network's architecture, with random initial parameters. By default
        a skorch net is initialised again, and a bare module's parts ``reset_parameters``.
    refit : {"all", "last", "search"}, default="all"
        What is trained again: the whole estimator, with the parameters that a search has chosen; the
        last step of a Pipeline, behind its earlier steps as they are; or the whole estimator and its
        search. A network behind steps that learn is fitted by the Pipeline's own ``fit``, one at a
        time, unless the last step alone is trained.
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
        Directory that keeps what is measured after each training, once for each set of test rows, for a
        call with the same arguments and for other games with the same sets of rows and seeds.
    memory_budget : int, default=2 GiB
        Bytes that the utilities of the sets that are trained on at a time may take.
    random_state : int, RandomState or None, default=None
        Used to fit an unfitted `estimator` and to draw the seeds and samples.
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
    seeds_ : list of int
        Seeds of the trainings.
    train_indices_ : ndarray of shape (n_train,)
        Training row of each column: all rows, in order.
    scores_sem_ : ndarray of shape (n_test, n_train)
        Standard error over samples of the scores last returned by `transform`: zero where all sets are
        known, and NaN where only some are.
    subsidy_ : ndarray of shape (n_test + 1,)
        The smallest :math:`e` of each test row and, last, of all of them together.
    values_ : ndarray of shape (n_train,)
        Values for all test rows of the last call: the mean of the scores, or of what `values` returned.
    values_sem_ : ndarray of shape (n_train,)
        Standard error of ``values_``.
    n_samples_ : int
        Number of samples behind the last call.
    failed_ : list of tuple
        Number of the set, seed and reason of each training that failed in the last call: its set counted as
        the empty one.

    Raises
    ------
    FloatingPointError
        If the model cannot be trained on all rows, or the training of a network diverges.
    ValueError
        If a parameter for networks is given for an estimator that is not one, or there are too many rows for
        ``n_samples="exact"``.

    Warns
    -----
    FitFailedWarning
        If sets of rows have no model for another reason than a missing class.

    Notes
    -----
    Training takes place in `transform` and `values`, since a utility is that of test rows; see `DataShapley`,
    also for sets that a model cannot be trained on.

    References
    ----------
    Yan and Procaccia, "If You Like Shapley Then You'll Love the Core", AAAI 2021.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from fimoda import LeastCore
    >>> X, y = load_diabetes(return_X_y=True)
    >>> X, y, X_test, y_test = X[:40], y[:40], X[40:50], y[40:50]
    >>> method = LeastCore(Ridge().fit(X, y), n_samples=200, scoring="r2", random_state=0)
    >>> method.fit(X, y).transform(X_test, y_test).shape
    (10, 40)
    >>> method.values(X_test, y_test).shape
    (40,)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **GameMixin._parameter_constraints,
        "n_samples": [POSITIVE_INTEGER, StrOptions({"exact"})],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        n_samples: int | str = 1000,
        scoring: Scoring | None = None,
        n_epochs: int | None = None,
        n_seeds: int | Iterable[int] = 1,
        optimizer: str | type[torch.optim.Optimizer] | None = None,
        lr: LearningRate | None = None,
        batch_size: int | None = None,
        optimizer_params: dict[str, Any] | None = None,
        init: Callable[[], nn.Module] | None = None,
        refit: str = "all",
        measurement: Measurement = "loss",
        criterion: nn.Module | None = None,
        batch_statistics: BatchStatistics = "update",
        compile: bool | str = "auto",
        engine: Way = "auto",
        chunk_size: int | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        memory_budget: int = 2 * 2**30,
        random_state: Any = None,
        n_jobs: int | None = None,
        verbose: int = 0,
    ):
        self.estimator = estimator
        self.n_samples = n_samples
        self.scoring = scoring
        self.n_epochs = n_epochs
        self.n_seeds = n_seeds
        self.optimizer = optimizer
        self.lr = lr
        self.batch_size = batch_size
        self.optimizer_params = optimizer_params
        self.init = init
        self.refit = refit
        self.measurement = measurement
        self.criterion = criterion
        self.batch_statistics = batch_statistics
        self.compile = compile
        self.engine = engine
        self.chunk_size = chunk_size
        self.checkpoint_dir = checkpoint_dir
        self.memory_budget = memory_budget
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.verbose = verbose

    def _exactly(self, utilities: NDArray[np.float64]) -> NDArray[np.float64]:
        return self._core(all_subsets(len(self._objective)), utilities)

    def _sampled(self, utility: Utility, random_state: np.random.RandomState) -> Estimate:
        n = utility.n_rows
        drawn = random_state.rand(-(-int(self.n_samples) // 2), n) < 0.5
        ends = np.array([[False] * n, [True] * n])
        # each set with the one of all other rows, without which e would have no bound
        sets = np.concatenate([ends, drawn, ~drawn])
        sets = np.unique(sets, axis=0)
        values = self._core(sets, with_mean(utility(sets)))
        all_known = len(sets) == 2.0**n
        errors = np.full_like(values, 0.0 if all_known else np.nan)
        return Estimate.of(values, errors, len(sets))

    def _core(self, sets: NDArray[np.bool_], utilities: NDArray[np.float64]) -> NDArray[np.float64]:
        found = [least_core(sets, own) for own in utilities.T]
        self._seen["subsidy_"] = np.array([subsidy for _, subsidy in found])
        return np.stack([values for values, _ in found])

    subsidy_ = of_last_call(
        "subsidy_",
        "Smallest e of each test row and, last, of all of them together, (n_test + 1,).",
    )
