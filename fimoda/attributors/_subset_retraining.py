"""Methods that learn from models trained on random subsets of the rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .._validation import POSITIVE_INTEGER, POSITIVE_REAL, check_subsets
from ..measurements import Measurement
from ..training.optimizers import LearningRate
from ..training.subset_outcomes import SubsetOutcomes, covering_subsets, random_subsets
from ._retraining import BaseRetraining

#: How often each row is in a subset, and how often out of one, whatever the time: errors need two.
TIMES = 2


class BaseSubsetRetraining(BaseRetraining):
    """Base of the methods that read scores of all rows from trainings on random subsets."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseRetraining._parameter_constraints,
        "n_subsets": [POSITIVE_INTEGER],
        "ratio": [POSITIVE_REAL],
        "subsets": ["array-like", None],
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
        compile: bool | str = "auto",
        chunk_size: int | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        memory_budget: int = 2 * 2**30,
        max_seconds: float | None = None,
        random_state: Any = None,
        n_jobs: int | None = None,
        verbose: int = 0,
    ):
        super().__init__(
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
            compile=compile,
            chunk_size=chunk_size,
            checkpoint_dir=checkpoint_dir,
            memory_budget=memory_budget,
            max_seconds=max_seconds,
            random_state=random_state,
            n_jobs=n_jobs,
            verbose=verbose,
        )
        self.n_subsets = n_subsets
        self.ratio = ratio
        self.subsets = subsets

    def _subsets(self, random_state: np.random.RandomState) -> NDArray[np.bool_]:
        n = len(self._X)
        if self.subsets is None:
            if n < 2:
                raise ValueError("X must have at least 2 rows for a subset, got n_samples = 1.")
            subsets = random_subsets(n, self.n_subsets, self.ratio, random_state)
            if self.max_seconds is not None:
                pairs = [covering_subsets(n, self.ratio, random_state) for _ in range(TIMES)]
                first = np.concatenate(pairs)
                subsets[: len(first)] = first[: len(subsets)]
        else:
            subsets = check_subsets(self.subsets, n)
        _require_both(subsets)
        return subsets

    def _order(self, subsets: NDArray[np.bool_]) -> tuple[NDArray[np.int64], int]:
        inside, number = subsets.cumsum(0), np.arange(1, len(subsets) + 1)[:, None]
        covered = (np.minimum(inside, number - inside) >= TIMES).all(1)
        n_needed = int(covered.argmax()) + 1 if covered.any() else len(subsets)
        return np.arange(len(subsets)), n_needed

    def score_outcomes(self, outcomes: SubsetOutcomes) -> NDArray[np.float64]:
        """Scores from models that were trained elsewhere; needs no `fit`.

        Parameters
        ----------
        outcomes : SubsetOutcomes
            Of `train_on_subsets`.

        Returns
        -------
        S : ndarray of shape (n_test, n_train)
            Scores in the unit of what was measured.
        """
        self._validate_params()
        _require_both(outcomes.subsets)
        return self._finite(self._scores_of(outcomes)[0])


def _require_both(subsets: NDArray[np.bool_]) -> None:
    """Raise ValueError unless each row is in some subset and out of another."""
    often = subsets.sum(0)
    constant = np.flatnonzero((often == 0) | (often == len(subsets)))
    if constant.size:
        where = "in none" if often[constant[0]] == 0 else "in all"
        raise ValueError(
            f"subsets must have every row in some and out of others; row {constant[0]} is {where} "
            f"of the {len(subsets)}. Raise n_subsets, or choose a ratio closer to 0.5."
        )
