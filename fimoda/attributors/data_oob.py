"""DataOOB: how well models of bags predict a row that is not in them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .._validation import POSITIVE_INTEGER, StrOptions, check_random_state, check_seeds
from ..batch_statistics import BatchStatistics
from ..games.bags import bagged, draw_bags
from ..measured import Measured
from ..measurements import Measurement
from ..training.optimizers import LearningRate
from ..training.run import Way
from ..training.subset_outcomes import assemble_subsets, mean_and_error
from .families.trained_again import BaseTrainedAgain


class DataOOB(BaseTrainedAgain):
    r"""Value each row by how well models predict it that were trained on bags without it.

    .. math:: \phi_i = \frac{\sum_b [i \notin b] \, T(f_b(x_i), y_i)}{\sum_b [i \notin b]}

    :math:`f_b` is the model trained on bag b, n rows drawn with replacement, and T is one where the predicted
    class is right (the share of positions, where a row has several), or minus the squared error of a number.
    Rows that no model without them predicts are thought to be mislabelled or out of place: they have low
    values. No test rows are needed: ``values_`` are there after `fit`, and `transform` gives them once for
    each test row.

    Parameters
    ----------
    estimator : object, default=None
        Fitted model; an unfitted scikit-learn or skorch estimator is cloned and fitted. None is a
        small MLP. Its parameters are not where training starts.
    n_samples : int, default=100
        Number of bags.
    measured : {"prediction", "measurement"}, default="prediction"
        What T is: whether the prediction is right (or how near), or minus the `measurement`.
    n_epochs : int, default=None
        Epochs of training of a network; those of its own training by default.
    n_seeds : int or list of int, default=1
        Number of trainings of each model (drawn from `random_state`) or their seeds. A seed fixes
        initial parameters, batch order and dropout; other estimators take it as ``random_state``.
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
        Directory that keeps what is measured after each training, for a call with the same arguments.
    memory_budget : int, default=2 GiB
        Bytes that the predictions of all bags may take.
    random_state : int, RandomState or None, default=None
        Used to fit an unfitted `estimator` and to draw the seeds and bags.
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
    bags_ : ndarray of int of shape (n_samples, n_train)
        How often each row is in each bag.
    train_indices_ : ndarray of shape (n_train,)
        Training row of each column: all rows, in order.
    values_ : ndarray of shape (n_train,)
        Values of the training rows.
    values_sem_ : ndarray of shape (n_train,)
        Standard error of ``values_`` over bags.
    failed_ : list of tuple
        Number of the bag, seed and reason of each training that failed; values are of the rest.

    Raises
    ------
    FloatingPointError
        If a row is in every bag that could be trained on.
    ValueError
        If a parameter for networks is given for an estimator that is not one.

    Notes
    -----
    Networks are trained in stacks, in which a row that was drawn twice has twice the weight; linear models
    are solved for many bags at once; any other estimator is cloned and fitted.

    References
    ----------
    Kwon and Zou, "Data-OOB: Out-of-bag Estimate as a Simple and Efficient Data Value", ICML 2023.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.tree import DecisionTreeClassifier
    >>> from fimoda import DataOOB
    >>> X, y = load_iris(return_X_y=True)
    >>> method = DataOOB(DecisionTreeClassifier().fit(X, y), n_samples=40, random_state=0).fit(X, y)
    >>> method.values_.shape, method.transform(X[:4]).shape
    ((150,), (4, 150))
    """

    intervention = "each training row predicted by models of bags without it"
    _in_unit = False
    _of_test_rows = False

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **{k: v for k, v in BaseTrainedAgain._parameter_constraints.items() if k != "max_seconds"},
        "n_samples": [POSITIVE_INTEGER],
        "measured": [StrOptions({"prediction", "measurement"})],
    }

    max_seconds = None

    def __init__(
        self,
        estimator: Any = None,
        *,
        n_samples: int = 100,
        measured: str = "prediction",
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
        self.measured = measured
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

    def _fit(self) -> None:
        n, rng = len(self._objective), check_random_state(self.random_state)
        if n < 2:
            raise ValueError(
                f"X must have at least 2 rows to leave one out of a bag, got n_samples = {n}."
            )
        self.seeds_ = check_seeds(self.n_seeds, rng)
        self.bags_ = draw_bags(n, self.n_samples, rng)
        retraining = self._retrained_with(self.seeds_)
        retraining = replace(retraining, way=bagged(retraining.way, self.n_outputs_))
        own = Measured(self._objective.rows, self._prediction)
        if self.measured == "measurement":
            own = self._own
        outcomes = assemble_subsets(self.bags_, self.seeds_, retraining.train(self.bags_, own))
        outcomes.require_some()
        self._seen["failed_"] = outcomes.failed
        out = np.where(self.bags_ == 0, outcomes.mean, np.nan)
        sign = -1.0 if self.measured == "measurement" else 1.0
        mean, self.values_sem_ = mean_and_error(out.T)
        self.values_ = sign * mean
        if not np.isfinite(self.values_).all():
            row = np.flatnonzero(~np.isfinite(self.values_))[0]
            raise FloatingPointError(
                f"row {row} is in every bag of {self.n_samples} that could be trained on. Raise n_samples."
            )

    def _prediction(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return one where the predicted class is right, or minus the squared error."""
        loss = self.model_.loss
        if not loss.is_classifier:
            return -((outputs - targets.reshape(outputs.shape)) ** 2).sum(-1)
        right = (self.model_.predicted_targets(outputs) == targets).double()
        return right.reshape(len(right), -1).mean(1)  # of all positions of a row

    def _scores(self, test: Measured) -> NDArray[np.float64]:
        return np.tile(self.values_, (len(test), 1))

    def _suspicion(self) -> NDArray[np.float64]:
        return -self.self_influence()  # rows that others predict badly have low values

    def _n_runs(self) -> int:
        return int(self.n_samples)
