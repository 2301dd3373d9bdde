"""`train_ensemble`: a model trained again with several seeds, its trajectories recorded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from ..gradient_mode import with_gradients
from ..training.ensemble import Ensemble
from ..training.optimizers import LearningRate
from ..training.recording import Checkpoints
from .ensemble import EnsembleAttributor


@with_gradients
def train_ensemble(
    estimator: Any,
    X: Any,
    y: Any,
    *,
    n_seeds: int | Iterable[int] = 5,
    checkpoints: Checkpoints = 6,
    start: Ensemble | None = None,
    n_epochs: int | None = None,
    optimizer: str | type[torch.optim.Optimizer] | None = None,
    lr: LearningRate | None = None,
    batch_size: int | None = None,
    optimizer_params: dict[str, Any] | None = None,
    init: Callable[[], nn.Module] | None = None,
    criterion: nn.Module | None = None,
    sample_weight: Any = None,
    directory: str | os.PathLike[str] | None = None,
    random_state: Any = None,
    n_jobs: int | None = None,
) -> Ensemble:
    r"""Train a model again on all its rows, as it was trained, with several seeds.

    Networks are trained through the stack engine: their trajectories hold checkpoints with the
    optimiser's state, learning rates and the rows of every batch. The batches of a seed are those of
    `FurtherTraining` and `UnrolledDifferentiation` with that seed, or always in the order of the rows
    where the model's own training does not shuffle (skorch's default). Other estimators are cloned and
    fitted, without a trajectory.

    Parameters
    ----------
    estimator : object
        Fitted model; an unfitted scikit-learn or skorch estimator is cloned and fitted first. It
        says what is trained, and is not one of the models.
    X : array-like of shape (n_train, n_features)
        Training rows.
    y : array-like of shape (n_train,) or (n_train, n_outputs)
        Their targets.
    n_seeds : int or list of int, default=5
        Number of models (seeds drawn from `random_state`) or their seeds. A seed fixes initial
        parameters, batch order and dropout.
    checkpoints : int, list of int or "all", default=6
        How many checkpoints, evenly spaced, the last at the end; after which steps; or after every
        step and before the first, as `Hydra` needs.
    start : Ensemble, default=None
        Go on from these models instead: X is a further stage of their training, and their seeds stay.
    n_epochs : int, default=None
        Epochs of training; those of the network's own training by default.
    optimizer : str or type, default=None
        A ``torch.optim`` class that updates every coordinate on its own, or its name; the model's own
        by default, SGD if it has none.
    lr : float or callable, default=None
        Learning rate, or a function of the epoch (from 0) giving it; the model's own by default, 0.01
        if it has none.
    batch_size : int, default=None
        The model's own by default, 128 if it has none.
    optimizer_params : dict, default=None
        Other settings of the optimiser (momentum, weight_decay, betas, ...); `max_grad_norm` or
        `max_grad_value`, at which gradients are clipped; `param_groups`, a list of patterns of names with
        their own `lr` and `weight_decay`.
    init : callable, default=None
        Makes a new module of the network's architecture, with random initial parameters. By default
        a skorch net is initialised again, and a bare module's parts ``reset_parameters``.
    criterion : nn.Module, default=None
        Training criterion of a bare ``nn.Module``.
    sample_weight : array-like of shape (n_train,), default=None
        Weights of the training rows in the objective.
    directory : path, default=None
        Where checkpoints are kept, in a directory for each seed; in memory by default.
    random_state : int, RandomState or None, default=None
        Used to fit an unfitted `estimator` and to draw the seeds.
    n_jobs : int, default=None
        joblib workers, of one thread each. Models are the same bits for every value.

    Returns
    -------
    Ensemble
        With ``models``, ``trajectories`` and ``seeds``.

    Raises
    ------
    ValueError
        If a parameter of the network cannot be drawn again, or the optimiser is not one of torch's
        that can be differentiated.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from fimoda import SOURCE, train_ensemble
    >>> X = np.random.default_rng(0).normal(size=(20, 3)).astype("float32")
    >>> y, mse = X[:, :1], torch.nn.MSELoss()
    >>> ensemble = train_ensemble(
    ...     torch.nn.Linear(3, 1), X, y, n_seeds=[0, 1], n_epochs=4, batch_size=5, criterion=mse
    ... )
    >>> ensemble.trajectories[0]
    Trajectory(SGD, 16 steps, 6 checkpoints, 1 stages)
    >>> source = SOURCE(ensemble.models[0], trajectory=ensemble.trajectories[0]).fit(X, y)
    >>> source.transform(X[:4], y[:4]).shape
    (4, 20)
    """
    trainer = EnsembleAttributor(
        estimator,
        n_seeds=n_seeds,
        checkpoints=checkpoints,
        n_epochs=n_epochs,
        optimizer=optimizer,
        lr=lr,
        batch_size=batch_size,
        optimizer_params=optimizer_params,
        init=init,
        criterion=criterion,
        random_state=random_state,
        n_jobs=n_jobs,
    )
    trainer._validate_params()
    trainer._prepare(X, y, sample_weight)
    return trainer._trained(start, directory)
