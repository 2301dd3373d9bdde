"""`train_on_subsets`: what a model measures after training on parts of its rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from ..batch_statistics import BatchStatistics
from ..gradient_mode import with_gradients
from ..measurements import Measurement
from ..training.optimizers import LearningRate
from ..training.run import Way
from ..training.subset_outcomes import SubsetOutcomes
from .leave_one_out import LeaveOneOut


@with_gradients
def train_on_subsets(
    estimator: Any,
    X: Any,
    y: Any,
    subsets: Any,
    X_test: Any,
    y_test: Any = None,
    *,
    n_seeds: int | Iterable[int] = 5,
    n_epochs: int | None = None,
    optimizer: str | type[torch.optim.Optimizer] | None = None,
    lr: LearningRate | None = None,
    batch_size: int | None = None,
    optimizer_params: dict[str, Any] | None = None,
    init: Callable[[], nn.Module] | None = None,
    refit: str = "all",
    measurement: Measurement = "loss",
    criterion: nn.Module | None = None,
    sample_weight: Any = None,
    batch_statistics: BatchStatistics = "update",
    compile: bool | str = "auto",
    engine: Way = "auto",
    chunk_size: int | None = None,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    memory_budget: int = 2 * 2**30,
    random_state: Any = None,
    n_jobs: int | None = None,
    verbose: int = 0,
) -> SubsetOutcomes:
    r"""Train a model from scratch on each of some subsets of its rows, and measure test rows.

    .. math:: m_z(\theta(S_k; \xi_r)), \qquad k = 1..M,\ r = 1..R

    A seed fixes the randomness :math:`\xi_r`: initial parameters, batch order (one order of all rows
    an epoch, of which each subset keeps its own; always the rows' own order where the model's training
    does not shuffle, as is skorch's default) and dropout. So the trainings of one seed on
    different subsets are coupled. The unit is that of the measurement. A training that fails, for
    example by diverging, is reported with its subset and seed; the others are not disturbed.

    Models are trained again as `LeaveOneOut` trains them: networks in stacks, other estimators by their
    own ``fit``.

    Parameters
    ----------
    estimator : object
        Fitted model; an unfitted scikit-learn or skorch estimator is cloned and fitted on all rows.
    X : array-like of shape (n_train, n_features)
        Training rows, as the model (or its Pipeline) takes them.
    y : array-like of shape (n_train,) or (n_train, n_outputs)
        Their targets.
    subsets : ndarray of bool of shape (M, n_train) or list of arrays of int
        True where a row is in a subset, or the rows of each subset (see `random_subsets`).
    X_test : array-like of shape (n_test, n_features)
        Test rows.
    y_test : array-like of shape (n_test,), default=None
        Their targets. Without them the measurement is the prediction (regression), or is taken at
        the class that `estimator` predicts (classification).
    n_seeds : int or list of int, default=5
        Number of trainings of each subset (drawn from `random_state`) or their seeds. A seed fixes
        initial parameters, batch order and dropout; other estimators take it as ``random_state``. One whose
        fit draws no random numbers is fitted once for all seeds.
    n_epochs : int, default=None
        Epochs of training of a network; those of its own training by default.
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
        What is measured: ``"loss"``, ``"margin"``, ``"log_prob"``, ``"output"`` or a callable
        ``m(outputs, targets)`` giving one number per row.
    criterion : nn.Module, default=None
        Training criterion of a bare ``nn.Module``.
    sample_weight : array-like of shape (n_train,), default=None
        Weights of the training rows in the objective.
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
        Directory that keeps the measurements of finished stacks; a call with the same arguments
        resumes from it, one with other test rows adds its own.
    memory_budget : int, default=2 GiB
        Bytes that the measurements may take in memory when there is no `checkpoint_dir`.
    random_state : int, RandomState or None, default=None
        Used to fit an unfitted `estimator` and to draw the seeds.
    n_jobs : int, default=None
        joblib workers, of one thread each. Measurements are the same bits for every value.
    verbose : int, default=0
        Show progress if positive.

    Returns
    -------
    SubsetOutcomes
        With ``subsets``, ``seeds``, ``measured`` (M, n_test, R), ``failed`` and ``mean``.

    Raises
    ------
    ValueError
        If a subset is empty or names a row that does not exist, a parameter of the network cannot be
        drawn again, or one of `train_on_subsets` for networks is given for an estimator that is
        fitted by its own ``fit``.
    FloatingPointError
        If all trainings fail; the message begins with the reason.
    MemoryError
        Before training, if the measurements do not fit `memory_budget`.

    References
    ----------
    Ilyas et al., "Datamodels: Predicting Predictions from Training Data", ICML 2022.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from fimoda import random_subsets, train_on_subsets
    >>> X, y = load_diabetes(return_X_y=True)
    >>> subsets = random_subsets(len(X), 6, ratio=0.5, random_state=0)
    >>> outcomes = train_on_subsets(Ridge(), X, y, subsets, X[:4], y[:4], n_seeds=1)
    >>> outcomes.measured.shape, outcomes.failed
    ((6, 4, 1), [])
    """
    method = LeaveOneOut(
        estimator,
        n_epochs=n_epochs,
        n_seeds=n_seeds,
        optimizer=optimizer,
        lr=lr,
        batch_size=batch_size,
        optimizer_params=optimizer_params,
        init=init,
        refit=refit,
        measurement=measurement,
        criterion=criterion,
        batch_statistics=batch_statistics,
        compile=compile,
        engine=engine,
        chunk_size=chunk_size,
        checkpoint_dir=checkpoint_dir,
        memory_budget=memory_budget,
        random_state=random_state,
        n_jobs=n_jobs,
        verbose=verbose,
    )
    outcomes = method.trainer(X, y, X_test, y_test, sample_weight)(subsets)
    outcomes.require_some()
    return outcomes
