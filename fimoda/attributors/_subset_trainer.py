"""Training on subsets and measuring test rows, prepared once for many calls."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._validation import check_random_state, check_seeds, check_subsets
from ..model import FinalModel
from ..training.subset_outcomes import SubsetOutcomes, assemble_subsets
from ._retraining import BaseRetraining


@dataclass(frozen=True)
class Timing:
    """What one training takes.

    Parameters
    ----------
    training, measuring : float
        Seconds.
    cores : float
        How many of them training kept busy.
    n_bytes : int
        Of what is kept of the model.
    """

    training: float
    cores: float
    measuring: float
    n_bytes: int


class SubsetTrainer:
    """Trains the model of a retraining method from scratch on subsets of rows.

    Parameters
    ----------
    method : BaseRetraining
        Says what is trained, how, and what is measured. It is fitted to the rows, without training.
    X, y : array-like
        Training rows and targets.
    X_test, y_test : array-like
        Test rows; targets may be None.
    sample_weight : array-like of shape (n_train,), default=None
        Weights of the training rows.
    """

    def __init__(
        self, method: BaseRetraining, X: Any, y: Any, X_test: Any, y_test: Any, sample_weight: Any
    ):
        method._validate_params()
        method._prepare(X, y, sample_weight)
        self._method = method
        self.seeds = check_seeds(method.n_seeds, check_random_state(method.random_state))
        method._way = method._retraining(self.seeds)
        self.measurer = method._test(X_test, y_test)

    @property
    def model(self) -> FinalModel:
        """Frozen view of the model trained on all rows."""
        return self._method.model_

    def timed(self) -> Timing:
        """Train once, on all rows.

        Raises
        ------
        ValueError
            If the model cannot be trained on all rows.
        """
        everything = np.ones((1, len(self._method._X)), dtype=bool)
        way = self._method._way
        unit = way.units(everything, self.seeds[:1])[0]
        begin, busy = time.perf_counter(), time.process_time()
        kept = np.asarray(way.train(unit))
        training, used = time.perf_counter() - begin, time.process_time() - busy
        reading = way.measure(kept, self.measurer)
        measuring = time.perf_counter() - begin - training
        if reading["reason"][0]:
            raise ValueError(
                f"estimator has no scores, trained again on all rows: {reading['reason'][0]}"
            )
        return Timing(training, used / training, measuring, kept.nbytes)

    def __call__(self, subsets: Any) -> SubsetOutcomes:
        """What the test rows measure after training on each subset with each seed."""
        mask = check_subsets(subsets, len(self._method._X))
        return assemble_subsets(
            mask, self.seeds, self._method._train(mask, self.seeds, self.measurer)
        )
