"""Further training at many horizons, measured as it goes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from .._validation import check_horizons, is_integer
from ..adapters import check_fitted
from ..base import prepared
from ..batch_statistics import BatchStatistics
from ..gradient_mode import with_gradients
from ..measurements import Measurement
from ..training.batches import LeaveOutMode
from ..training.optimizers import LearningRate
from ..training.outcomes import Outcomes, standard_error
from ..training.run import Way
from .further_training import FurtherTraining

#: Horizons of a curve unless others are given.
EPOCHS = (1, 2, 5, 10, 20, 50)


@dataclass(frozen=True, repr=False)
class FurtherTrainingCurve:
    """Scores of further training at several horizons.

    Attributes
    ----------
    epochs : ndarray of shape (n_epochs,)
        Horizons, in epochs of further training: whole numbers, or floats where fractions were asked.
    leave_out : ndarray of shape (n_left_out,)
        Left-out training rows.
    seeds : list of int
        Seeds of the runs.
    outcomes : Outcomes
        The measurements themselves, without each row and with all.
    correction : {"full", "mean"} or None
        What the scores are corrected by.
    n_train : int or None
        Number of training rows, if known: methods fitted on others are refused.
    steps : ndarray of shape (n_epochs,) or None
        The same horizons, in steps of the optimiser, if known.
    """

    epochs: NDArray[Any]
    leave_out: NDArray[np.int64]
    seeds: list[int]
    outcomes: Outcomes
    correction: str | None = "full"
    n_train: int | None = None
    steps: NDArray[np.int64] | None = None

    @property
    def per_seed(self) -> NDArray[np.float64]:
        """Scores of each seed, (n_epochs, n_test, n_left_out, n_seeds)."""
        return self.outcomes.scores(self.correction)

    @property
    def scores(self) -> NDArray[np.float64]:
        """Mean over seeds, (n_epochs, n_test, n_left_out), in the unit of the measurement."""
        return self.per_seed.mean(-1)

    @property
    def sem(self) -> NDArray[np.float64]:
        """Standard error over seeds, of the shape of `scores`; NaN for one seed."""
        return standard_error(self.per_seed)

    def __repr__(self) -> str:
        _, n_test, n_left_out, n_seeds = self.per_seed.shape
        sizes = (np.sqrt((one**2).mean((1, 2))) for one in (self.scores, self.sem))
        lines = [
            f"{epochs:g}: {size:.2g} ± {error:.1g}"
            for epochs, size, error in zip(self.epochs, *sizes, strict=True)
        ]
        return (
            f"FurtherTrainingCurve: {n_left_out} rows left out, {n_test} test rows, {n_seeds} seeds, "
            f"correction={self.correction!r}\nsize of scores ± standard error, root mean squares, by "
            f"epochs: {', '.join(lines)}"
        )

    def corrected(self, correction: str | None) -> FurtherTrainingCurve:
        """Return the same runs with another correction."""
        if correction not in ("full", "mean", None):
            raise ValueError(f"correction must be 'full', 'mean' or None, got {correction!r}.")
        return replace(self, correction=correction)


@with_gradients
def further_training_curve(
    estimator: Any,
    X: Any,
    y: Any,
    X_test: Any,
    y_test: Any = None,
    *,
    epochs: float | Iterable[float] | None = None,
    steps: int | Iterable[int] | None = None,
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
    sample_weight: ArrayLike | None = None,
    batch_statistics: BatchStatistics = "update",
    compile: bool | str = "auto",
    engine: Way = "auto",
    chunk_size: int | None = None,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    memory_budget: int = 2 * 2**30,
    sem_tol: float = 0.2,
    max_seeds: int = 100,
    random_state: Any = None,
    n_jobs: int | None = None,
    verbose: int = 0,
) -> FurtherTrainingCurve:
    r"""Return scores of further training at several horizons, without keeping the trained models.

    The score at horizon T of test row z and left-out row i is the mean over seeds of
    :math:`m_z(\theta_T(D \setminus i; \xi_r)) - m_z(\theta_T(D; \xi_r))`, see `FurtherTraining`. Of boosting
    all horizons are read from one run.

    Parameters
    ----------
    estimator : object
        Fitted model.
    X, y : array-like
        The rows it was trained on and their targets.
    X_test, y_test : array-like
        Test rows and their targets; without targets the measurement is the prediction
        (regression) or is taken at the predicted class.
    epochs : float or list of float, default=None
        Increasing horizons; 1, 2, 5, 10, 20 and 50 by default. A fraction of an epoch is so many of its
        steps, rounded to whole ones.
    steps : int or list of int, default=None
        The horizons in steps of the optimiser, in place of `epochs`; of estimators that go on by themselves
        they are the same.
    n_seeds : int, list of int or "auto", default=10
        As in `FurtherTraining`; "auto" looks at the last horizon.
    leave_out : None, int or list of int, default=None
        As in `FurtherTraining`.
    correction : {"full", "mean"} or None, default="full"
        As in `FurtherTraining`; can be changed afterwards with ``curve.corrected``.
    leave_out_mode : {"mask", "drop", "expected"}, default="mask"
        As in `FurtherTraining`.
    optimizer : str or type, default=None
        As in `FurtherTraining`.
    lr : float or callable, default=None
        As in `FurtherTraining`.
    batch_size : int, default=None
        As in `FurtherTraining`.
    optimizer_params : dict, default=None
        As in `FurtherTraining`.
    measurement : str or callable, default="loss"
        As in `FurtherTraining`.
    criterion : nn.Module, default=None
        As in `FurtherTraining`.
    sample_weight : array-like of shape (n_train,), default=None
        Weights of the training rows in the objective.
    batch_statistics : {"update", "frozen"}, default="update"
        As in `FurtherTraining`.
    compile : bool or "auto", default="auto"
        As in `FurtherTraining`.
    engine : {"auto", "layers", "vmap", "loop"}, default="auto"
        As in `FurtherTraining`.
    chunk_size : int, default=None
        As in `FurtherTraining`.
    checkpoint_dir : path, default=None
        Directory that keeps the measurements of finished stacks; a call with the same arguments
        resumes from it.
    memory_budget : int, default=2 GiB
        Bytes that the measurements may take.
    sem_tol : float, default=0.2
        As in `FurtherTraining`.
    max_seeds : int, default=100
        As in `FurtherTraining`.
    random_state : int, RandomState or None, default=None
        As in `FurtherTraining`.
    n_jobs : int, default=None
        As in `FurtherTraining`.
    verbose : int, default=0
        As in `FurtherTraining`.

    Returns
    -------
    FurtherTrainingCurve
        With ``epochs``, ``steps``, ``leave_out``, ``scores`` (n_epochs, n_test, n_left_out), ``sem`` and
        ``per_seed``.

    Raises
    ------
    NotFittedError
        If the model is not fitted.
    ValueError, FloatingPointError, MemoryError, OSError
        As `FurtherTraining` does.

    References
    ----------
    Wei et al., arXiv 2412.03906, equations 13 and 17.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from fimoda import further_training_curve
    >>> X, y = load_diabetes(return_X_y=True)
    >>> curve = further_training_curve(
    ...     Ridge().fit(X, y),
    ...     X,
    ...     y,
    ...     X[:4],
    ...     y[:4],
    ...     epochs=[1, 3],
    ...     n_seeds=2,
    ...     leave_out=[0, 7, 9],
    ...     random_state=0,
    ... )
    >>> curve.scores.shape
    (2, 4, 3)
    """
    horizons = _check_horizons(epochs, steps)
    check_fitted(estimator)
    settings: dict[str, Any] = {
        "n_seeds": n_seeds,
        "leave_out": leave_out,
        "correction": correction,
        "leave_out_mode": leave_out_mode,
        "optimizer": optimizer,
        "lr": lr,
        "batch_size": batch_size,
        "optimizer_params": optimizer_params,
        "batch_statistics": batch_statistics,
        "compile": compile,
        "engine": engine,
        "chunk_size": chunk_size,
        "checkpoint_dir": checkpoint_dir,
        "memory_budget": memory_budget,
        "sem_tol": sem_tol,
        "max_seeds": max_seeds,
        "random_state": random_state,
        "n_jobs": n_jobs,
        "verbose": verbose,
    }
    method = FurtherTraining(estimator, measurement=measurement, criterion=criterion, **settings)
    objective, test = prepared(method, X, y, sample_weight, X_test, y_test)
    if steps is not None:
        horizons = [method._in_epochs(int(step)) for step in horizons]
    runs, seeds, outcomes = method._runs(horizons, "epochs").measured(test)
    return FurtherTrainingCurve(
        np.array(horizons),
        runs.leave_out,
        seeds,
        outcomes,
        correction,
        n_train=len(objective),
        steps=np.array(runs.horizons),
    )


def _check_horizons(epochs: Any, steps: Any) -> list[float]:
    """Return the horizons that one of the two parameters gives, as it gives them."""
    if steps is None:
        return check_horizons(EPOCHS if epochs is None else epochs)
    if epochs is not None:
        raise ValueError(
            f"epochs and steps both give horizons, got {epochs!r} and {steps!r}. Leave one of them out."
        )
    listed = list(steps) if np.iterable(steps) else [steps]
    if not all(is_integer(step) and step >= 1 for step in listed):
        raise ValueError(f"steps must be positive whole numbers of steps, got {steps!r}.")
    return check_horizons(listed, "steps")
