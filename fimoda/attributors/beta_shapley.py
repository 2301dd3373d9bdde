"""BetaShapley: the value of a row, with more weight on small or on large sets."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .._validation import POSITIVE_REAL
from ..batch_statistics import BatchStatistics
from ..games.estimates import Estimate
from ..games.exact import semivalues
from ..games.scoring import Scoring
from ..games.semivalues import sampled_semivalues
from ..games.utility import Utility
from ..games.weights import beta_probabilities
from ..measurements import Measurement
from ..training.optimizers import LearningRate
from ..training.run import Way
from .data_shapley import DataShapley
from .families.games import GameMixin
from .families.trained_again import BaseTrainedAgain


class BetaShapley(GameMixin, BaseTrainedAgain):
    r"""Value each row by what it adds to sets of the others, weighed by size with a Beta distribution.

    .. math:: \phi_i = \sum_{S \not\ni i} \frac{B(|S| + \beta, n - 1 - |S| + \alpha)}{B(\alpha, \beta)}
                       \bigl( v(S \cup i) - v(S) \bigr)

    :math:`v(S)` is minus the measurement of a test row after training on the rows S (`transform`), or a score
    of all test rows (`values`): a positive value says that the row helps. The weights sum to one. Equal
    parameters of 1 give `DataShapley`; a larger :math:`\alpha` gives more weight to small sets, in which a
    row is less lost among the others, a larger :math:`\beta` to large ones. Values have no fixed sum.

    Parameters
    ----------
    estimator : object, default=None
        Fitted model; an unfitted scikit-learn or skorch estimator is cloned and fitted. None is a
        small MLP. Its parameters are not where training starts.
    alpha : float, default=16.0
        First parameter of the Beta distribution: large for small sets.
    beta : float, default=1.0
        Second parameter of the Beta distribution: large for large sets.
    n_samples : int or {"auto", "exact"}, default=100
        Number of random permutations, along each of which the model is trained on the first rows, from one
        to all; "auto" draws more until 95 per cent of the variance of ``values_`` between rows is no error,
        or 4,096 are drawn, or `max_seconds` over; "exact" trains on all sets of at most 14 rows.
    sampling : {"permutation", "antithetic", "stratified"}, default="permutation"
        How permutations are drawn: independently; in pairs, of one and its reverse; in fours, in which each
        row comes once in each quarter of the places.
    truncation : float, default=0.0
        A permutation ends where the mean measurement of its first rows is as near to that of all rows, in
        parts of the difference between no rows and all; the rows behind add nothing. Values then depend
        on the company of test rows a little.
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
    max_seconds : float, default=None
        Seconds that ``n_samples="auto"`` may take: another round, of as many samples as all before it, begins
        if it should end in time. Values are then of those that were drawn, with their errors and a warning.
        How many these are depends on the machine.
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
        Standard error over samples of the scores last returned by `transform`.
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
    Kwon and Zou, "Beta Shapley: a Unified and Noise-reduced Data Valuation Framework for Machine Learning",
    AISTATS 2022.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from fimoda import BetaShapley
    >>> X, y = load_diabetes(return_X_y=True)
    >>> X, y, X_test, y_test = X[:40], y[:40], X[40:50], y[40:50]
    >>> method = BetaShapley(Ridge().fit(X, y), n_samples=20, scoring="r2", random_state=0)
    >>> method.fit(X, y).transform(X_test, y_test).shape
    (10, 40)
    >>> method.values(X_test, y_test).shape
    (40,)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **DataShapley._parameter_constraints,
        "alpha": [POSITIVE_REAL],
        "beta": [POSITIVE_REAL],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        alpha: float = 16.0,
        beta: float = 1.0,
        n_samples: int | str = 100,
        sampling: str = "permutation",
        truncation: float = 0.0,
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
        max_seconds: float | None = None,
        random_state: Any = None,
        n_jobs: int | None = None,
        verbose: int = 0,
    ):
        self.estimator = estimator
        self.alpha = alpha
        self.beta = beta
        self.n_samples = n_samples
        self.sampling = sampling
        self.truncation = truncation
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
        self.max_seconds = max_seconds
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.verbose = verbose

    def _exactly(self, utilities: NDArray[np.float64]) -> NDArray[np.float64]:
        return semivalues(utilities, self._probabilities())

    def _sampled(self, utility: Utility, random_state: np.random.RandomState) -> Estimate:
        given = self.sampling, self.truncation, self.memory_budget, random_state
        return sampled_semivalues(utility, self._probabilities(), *given, self._settled)

    def _probabilities(self) -> NDArray[np.float64]:
        """Return the part (n,) of each number of other rows, which sum to one."""
        return beta_probabilities(len(self._objective), float(self.alpha), float(self.beta))
