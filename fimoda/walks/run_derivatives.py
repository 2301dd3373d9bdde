"""Scores of test rows, or tangents of left-out rows, at horizons of a run."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._validation import ConvergenceWarning
from ..layers.by_autograd import gradients_by_autograd
from ..measured import Measured
from ..model import FinalModel

#: A vector that grows by more than this on its way says more of the derivative than of training.
GROWTH = 100.0


@dataclass(frozen=True)
class Unrolled:
    """Derivatives at several horizons, in steps, with the parameters (n_horizons, p) of the run there.

    `growth` is the largest factor by which a vector has grown on its way, looked at once an epoch:
    backwards those of the test rows, forwards a step along the first gradient.
    """

    values: Tensor  # scores (n_horizons, m, n) or tangents (n_horizons, L, p)
    thetas: Tensor
    growth: float

    def scores(self, model: FinalModel, places: Sequence[int], test: Measured) -> Unrolled:
        """Return scores (n_places, m, L) of test rows from tangents, at some of the horizons."""
        found = []
        for place in places:
            gradients = gradients_by_autograd(model.at(self.thetas[place]), test)
            found.append((gradients @ self.values[place].mT).double())
        return Unrolled(torch.stack(found), self.thetas[places], self.growth)

    def columns(self, rows: NDArray[np.int64]) -> Unrolled:
        """Return the scores of some of the training rows."""
        return replace(self, values=self.values[..., torch.from_numpy(rows)])

    @classmethod
    def joined(cls, parts: Sequence[Unrolled]) -> Unrolled:
        """Return the scores of all test rows, from those of blocks of them."""
        values = torch.cat([one.values for one in parts], 1)
        return cls(values, parts[0].thetas, max(one.growth for one in parts))


def growth_of(found: Sequence[Unrolled], is_held: bool = False) -> float:
    """Return the largest growth of a vector, with a warning if it is large and vectors were not held."""
    growth = max(one.growth for one in found)
    if growth > GROWTH and not is_held:
        warnings.warn(
            f"UnrolledDifferentiation: a small change of the parameters grows {growth:.0f}-fold on "
            "its way through the run, where real training saturates: scores are too large. Lower "
            "n_epochs or lr, set kink_smoothing=None, or trust FurtherTraining only.",
            ConvergenceWarning,
            stacklevel=2,
        )
    return growth
