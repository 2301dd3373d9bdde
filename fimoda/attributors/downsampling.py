"""Downsampling: the effect of a row on models of random subsets."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..batch_statistics import BatchStatistics
from ..measurements import Measurement
from ..training.optimizers import LearningRate
from ..training.run import Way
from ..training.subset_outcomes import SubsetOutcomes, means_of_groups
from .families.subsets import OF_SUBSETS, SubsetsMixin
from .families.trained_again import BaseTrainedAgain


class Downsampling(SubsetsMixin, BaseTrainedAgain):
    r"""Compare models trained on random subsets without a row with those trained on subsets with it.

    .. math:: S_{z,i} = \operatorname{mean}_{k:\, i \notin S_k} m_z(S_k)
                      - \operatorname{mean}_{k:\, i \in S_k} m_z(S_k)

    :math:`m_z(S)` is the measurement after training on the rows S, averaged over seeds. M trainings
    serve all rows at once. The unit is that of the measurement; the removal is one from
    ``ratio * n`` rows. Since all subsets have the same size, a subset without row i has another row
    in its place: for an additive measurement :math:`m_z(S) = \sum_{j \in S} w_j` the expected score
    is :math:`-\frac{n}{n-1}(w_i - \bar w)`, the effect against that of the mean row.

    Models are trained again as `LeaveOneOut` trains them: networks in stacks, other estimators by their
    own ``fit``.

    Parameters
    ----------
    estimator : object, default=None
        Fitted model; an unfitted scikit-learn or skorch estimator is cloned and fitted. None is a
        small MLP. Its parameters are not where training starts.
    n_subsets : int, default=100
        Number M of random subsets.
    ratio : float, default=0.5
        Part of the rows that is in a subset.
    subsets : ndarray of bool of shape (M, n_train) or list of arrays of int, default=None
        Subsets to train on instead of random ones: a mask, or the rows of each.
    n_epochs : int, default=None
        Epochs of training of a network; those of its own training by default.
    n_seeds : int or list of int, default=5
        Number of trainings of each subset (drawn from `random_state`) or their seeds. A seed fixes
        initial parameters, batch order and dropout; other estimators take it as ``random_state``. One whose
        fit draws no random numbers is fitted once for all seeds.
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
        Directory that keeps what is finished, for a call with the same arguments and for other
        methods with the same subsets and seeds: of networks the trained models, of estimators that
        are fitted again their measurements, so that `transform` trains, once for each set of test
        rows.
    memory_budget : int, default=2 GiB
        Bytes that trained models may take in memory when there is no `checkpoint_dir`.
    max_seconds : float, default=None
        Seconds of training in `fit`, after which none begins. Each row is twice in a subset and
        twice out of one all the same (four trainings for a `ratio` of one half). Which are done in
        time depends on the machine.
    random_state : int, RandomState or None, default=None
        Used to fit an unfitted `estimator` and to draw the seeds and subsets.
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
    subsets_ : ndarray of bool of shape (M, n_train)
        Rows of each training; fewer than asked for if `max_seconds` were over.
    seeds_ : list of int
        Seeds of each subset's trainings.
    train_indices_ : ndarray of shape (n_columns,)
        Training row of each column.
    scores_sem_ : ndarray of shape (n_test, n_columns)
        Standard error over subsets of the scores last returned by `transform`.
    failed_ : list of tuple
        Number of the subset, seed and reason of each training that failed; scores are of the rest.

    Raises
    ------
    FloatingPointError
        If so many trainings fail that a row has no score.
    ValueError
        If a parameter for networks is given for an estimator that is not one.
    MemoryError
        Before training, if the models fit neither `memory_budget` nor a `checkpoint_dir` is given.

    References
    ----------
    Feldman and Zhang, "What Neural Networks Memorize and Why: Discovering the Long Tail via
    Influence Estimation", NeurIPS 2020.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.tree import DecisionTreeRegressor
    >>> from fimoda import Downsampling
    >>> X, y = load_diabetes(return_X_y=True)
    >>> tree = DecisionTreeRegressor(max_depth=3).fit(X, y)
    >>> method = Downsampling(tree, n_subsets=30, n_seeds=1, random_state=0).fit(X, y)
    >>> method.transform(X[:4], y[:4]).shape
    (4, 442)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseTrainedAgain._parameter_constraints,
        **OF_SUBSETS,
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        n_subsets: int = 100,
        ratio: float = 0.5,
        subsets: Any = None,
        n_epochs: int | None = None,
        n_seeds: int | Iterable[int] = 5,
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
        self.n_subsets = n_subsets
        self.ratio = ratio
        self.subsets = subsets
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

    def score_outcomes(self, outcomes: SubsetOutcomes) -> NDArray[np.float64]:
        """Return scores from models that were trained elsewhere; needs no `fit`.

        Parameters
        ----------
        outcomes : SubsetOutcomes
            Of `train_on_subsets`.

        Returns
        -------
        S : ndarray of shape (n_test, n_train)
            Scores in the unit of what was measured.
        """
        return self._scores_of_others(outcomes)

    def _scores_of(
        self, outcomes: SubsetOutcomes
    ) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
        measured = outcomes.mean.T  # (n_test, M)
        inside = outcomes.subsets.astype(float)
        without, error_without = means_of_groups(measured, 1 - inside)
        with_row, error_with = means_of_groups(measured, inside)
        return without - with_row, {"scores_sem_": np.hypot(error_without, error_with)}
