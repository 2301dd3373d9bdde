"""Fitted estimators that go on training by themselves: rounds of boosting, epochs of ``partial_fit``."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import is_classifier

from ..rows import RawRows
from .randomness import global_generators


@dataclass(frozen=True, eq=False)
class OwnRows:
    """Training rows as an estimator takes them, with their targets and weights, if there are any."""

    X: RawRows
    y: NDArray[Any]
    sample_weight: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.y)

    @property
    def weights(self) -> NDArray[np.float64]:
        """Weights of the rows, 1 where none were given."""
        return np.ones(len(self)) if self.sample_weight is None else self.sample_weight

    def weighted(self) -> OwnRows:
        """Return the same rows, whose weights are written out."""
        return replace(self, sample_weight=self.weights)

    def taken(self, rows: NDArray[np.int64]) -> OwnRows:
        """Return some of the rows, in the order given."""
        weights = None if self.sample_weight is None else self.sample_weight[rows]
        return OwnRows(self.X[rows], self.y[rows], weights)

    def without(self, row: int) -> OwnRows:
        """Return the rows without one."""
        return self.taken(np.delete(np.arange(len(self)), row))

    def masked(self, row: int) -> OwnRows:
        """Return the rows, one of them with weight zero."""
        return replace(self, sample_weight=np.where(np.arange(len(self)) == row, 0, self.weights))


class Continuing(ABC):
    """A way in which fitted models go on training by themselves, in units of their own.

    Parameters
    ----------
    model : object
        The fitted model, without its wrappers; it is not changed.
    """

    #: What is counted, and what the whole is called.
    unit: ClassVar[str]
    process: ClassVar[str]

    #: Classes of such models, where they can be imported.
    types: ClassVar[tuple[type, ...]] = ()

    def __init__(self, model: Any):
        self.model = model

    def refusal(self) -> str | None:
        """Return why the model cannot go on, if it cannot."""
        return None

    def known_by(self) -> Any:
        """Return what tells the model from others."""
        return self.model

    def is_random(self, n_rows: int) -> bool:
        """Return whether seeds make a difference."""
        return True

    def draws_rows(self) -> bool:
        """Return whether seeds draw rows, or their order: those of weight zero keep their place there."""
        return False

    def must_stay(self, rows: OwnRows) -> NDArray[np.bool_]:
        """Return a mask of rows that are left out by weight zero alone: the only ones of their class."""
        if not is_classifier(self.model):
            return np.zeros(len(rows), dtype=bool)
        return alone(rows.y)

    def held_out(self) -> float | None:
        """Return the part of its rows that early stopping has held out of the training, if it did."""
        return None

    def check_rows(self, rows: OwnRows) -> None:
        """Raise ValueError if a class of the model has no row, and warn if it was not trained on all."""
        if is_classifier(self.model):
            missing = np.setdiff1d(self.model.classes_, rows.y)
            if missing.size:
                raise ValueError(
                    f"y must have rows of all classes that {type(self.model).__name__} was fitted on, got "
                    f"none of class {missing[0]}. Pass the rows that it was trained on."
                )
        if part := self.held_out():
            told = f"{part:.0%} of its rows" if part < 1 else f"{part:g} of its rows"
            warnings.warn(
                f"{type(self.model).__name__} has held {told} out of its training (early stopping); further "
                "training goes on with all rows that are given, and stops after so many "
                f"{self.unit}. Pass the rows that it was trained on, or train without early stopping.",
                UserWarning,
                stacklevel=2,
            )

    @abstractmethod
    def after(
        self, rows: OwnRows, left_out: int | None, stays: bool, seed: int, horizons: Sequence[int]
    ) -> list[Any]:
        """Return the models after so many more units each, all from one run.

        They are estimators that predict. `left_out` is the row left out, by weight zero if it `stays`.
        """


class Boosting(Continuing):
    """Models that add trees in rounds, and leave those that there are as they are."""

    unit = "rounds of boosting"
    process = "further boosting of the final model"

    def after(
        self, rows: OwnRows, left_out: int | None, stays: bool, seed: int, horizons: Sequence[int]
    ) -> list[Any]:
        if left_out is not None:
            rows = rows.masked(left_out) if stays else rows.without(left_out)
        with global_generators(seed):
            last = self.boosted(rows, seed, horizons[-1])
        done = self.n_rounds(self.model)
        return [self.first(last, done + n) for n in horizons]

    @abstractmethod
    def n_rounds(self, model: Any) -> int:
        """Return the rounds that a model predicts with."""

    @abstractmethod
    def boosted(self, rows: OwnRows, seed: int, n_more: int) -> Any:
        """Return a model with so many more rounds, and without early stopping."""

    @abstractmethod
    def first(self, model: Any, n_rounds: int) -> Any:
        """Return an estimator that predicts with the first rounds of a model."""


def alone(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Return a mask of the entries that are there once."""
    known = [str(value) for value in values]
    counts = Counter(known)
    return np.array([counts[value] == 1 for value in known], dtype=bool)
