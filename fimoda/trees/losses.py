"""Losses of boosting: what the leaves of the next trees are made of, and its derivatives.

Arrays have the outputs as their first axis and the rows as their second, (C, n, ...); further axes are
other runs of the same rows. All is float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..losses import BinaryCrossEntropy, CrossEntropy, RowLoss, SquaredError
from ..losses.regression import PinballLoss, TweedieLoss

Floats = NDArray[np.float64]

#: Smallest probability and mean of which a logarithm is taken.
_TINY = float(np.finfo(np.float64).tiny)


class BoostingLoss(ABC):
    """A loss whose gradient g and second derivative h make the values of leaves, ``-sum g / sum h``.

    h is diagonal unless `is_coupled`, and may have a factor, as the library has it that grew the trees.
    """

    #: False if leaves are medians or quantiles of residuals, for which there is no second derivative.
    is_smooth: bool = True

    #: Whether h is a matrix (C, C, n, ...) over the outputs of one tree.
    is_coupled: bool = False

    @property
    @abstractmethod
    def row_loss(self) -> RowLoss:
        """The same loss, one number a row, of raw outputs."""

    def encoded(self, targets: NDArray[np.generic], n_outputs: int) -> Floats:
        """Return targets (C, n) from those that `row_loss` takes."""
        return np.asarray(targets, dtype=np.float64).reshape(len(targets), -1).T.copy()

    @abstractmethod
    def derivatives(self, outputs: Floats, targets: Floats) -> tuple[Floats, Floats]:
        """Return g and h of the rows, of the shape of `outputs`."""

    @abstractmethod
    def pull(self, outputs: Floats, targets: Floats, values: Floats, vectors: Floats) -> Floats:
        r"""Return :math:`\sum_k (\partial_j g_k + u_k \partial_j h_k) q_k` for vectors q (C, n, m).

        These are the derivatives in the row's outputs (C, n), with a value u (C, n) of each row.
        """

    # ---- the score before the first tree ------------------------------------------------------

    def means(self, targets: Floats, weights: Floats) -> Floats:
        """Return the weighted means (C,) of the targets, from which the first score comes."""
        return (targets * weights).sum(1) / weights.sum()

    @abstractmethod
    def link(self, means: Floats) -> Floats:
        """Return the raw score (C, ...) of so large a mean of the targets."""

    @abstractmethod
    def link_slopes(self, means: Floats, changes: Floats) -> Floats:
        """Return the change (C, n) of the raw score where the means (C,) change by `changes` (C, n)."""

    def start(self, targets: Floats, weights: Floats) -> Floats:
        """Return the constant score (C,) that suits the rows best."""
        return self.link(self.means(targets, weights))

    def start_slopes(self, targets: Floats, weights: Floats) -> Floats:
        """Return the derivative (C, n) of `start` in the removal of each row."""
        means = self.means(targets, weights)
        changes = -(targets - means[:, None]) * (weights / weights.sum())
        return self.link_slopes(means, changes)


@dataclass(frozen=True)
class Squared(BoostingLoss):
    """Half the squared error: g is the residual's negative, and h is 1."""

    @property
    def row_loss(self) -> RowLoss:
        return SquaredError(over_outputs="sum")

    def derivatives(self, outputs: Floats, targets: Floats) -> tuple[Floats, Floats]:
        return outputs - targets, np.broadcast_to(1.0, outputs.shape)

    def pull(self, outputs: Floats, targets: Floats, values: Floats, vectors: Floats) -> Floats:
        return vectors

    def link(self, means: Floats) -> Floats:
        return means

    def link_slopes(self, means: Floats, changes: Floats) -> Floats:
        return changes


@dataclass(frozen=True)
class Quantile(Squared):
    """The pinball loss: leaves are quantiles of residuals, and there is no second derivative."""

    is_smooth = False
    level: float = 0.5

    @property
    def row_loss(self) -> RowLoss:
        return PinballLoss(self.level)


@dataclass(frozen=True)
class Logistic(BoostingLoss):
    """The log-loss of two classes, of one output, the logit of the second.

    Parameters
    ----------
    start_from : {"logit", "step", "mean"}
        What the first score is: the logit of the mean, one Newton step from zero, or the mean itself.
    """

    start_from: Literal["logit", "step", "mean"] = "logit"

    @property
    def row_loss(self) -> RowLoss:
        return BinaryCrossEntropy()

    def derivatives(self, outputs: Floats, targets: Floats) -> tuple[Floats, Floats]:
        p = _sigmoid(outputs)
        return p - targets, p * (1 - p)

    def pull(self, outputs: Floats, targets: Floats, values: Floats, vectors: Floats) -> Floats:
        p = _sigmoid(outputs)
        return (p * (1 - p) * (1 + values * (1 - 2 * p)))[..., None] * vectors

    def link(self, means: Floats) -> Floats:
        if self.start_from != "logit":
            return means if self.start_from == "mean" else 4 * means - 2
        return np.log(np.maximum(means, _TINY)) - np.log(np.maximum(1 - means, _TINY))

    def link_slopes(self, means: Floats, changes: Floats) -> Floats:
        if self.start_from != "logit":
            return changes if self.start_from == "mean" else 4 * changes
        return changes / (means * (1 - means))[:, None]


@dataclass(frozen=True)
class Softmax(BoostingLoss):
    """The log-loss of several classes, one output for each.

    Parameters
    ----------
    factor : float
        Of h, which is ``factor * p * (1 - p)``.
    is_centred : bool
        Whether the scores before the first tree sum to zero.
    """

    factor: float = 1.0
    is_centred: bool = True

    @property
    def row_loss(self) -> RowLoss:
        return CrossEntropy()

    def encoded(self, targets: NDArray[np.generic], n_outputs: int) -> Floats:
        return (np.asarray(targets) == np.arange(n_outputs)[:, None]).astype(np.float64)

    def derivatives(self, outputs: Floats, targets: Floats) -> tuple[Floats, Floats]:
        p = _softmax(outputs)
        return p - targets, self.factor * p * (1 - p)

    def pull(self, outputs: Floats, targets: Floats, values: Floats, vectors: Floats) -> Floats:
        p = _softmax(outputs)
        scaled = (p * (1 + self.factor * values * (1 - 2 * p)))[..., None] * vectors
        return scaled - p[..., None] * scaled.sum(0)

    def link(self, means: Floats) -> Floats:
        logs = np.log(np.maximum(means, _TINY))
        return logs - logs.mean(0) if self.is_centred else logs

    def link_slopes(self, means: Floats, changes: Floats) -> Floats:
        found = changes / means[:, None]
        return found - found.mean(0) if self.is_centred else found


@dataclass(frozen=True)
class Tweedie(BoostingLoss):
    r"""The deviance of positive targets with a logarithmic link, of a `power` from 1 (Poisson) to 2 (gamma).

    .. math:: g = e^{(2 - \rho) f} - y e^{(1 - \rho) f}

    Parameters
    ----------
    power : float
    factor : float
        Of h.
    """

    power: float = 1.0
    factor: float = 1.0

    @property
    def row_loss(self) -> RowLoss:
        return TweedieLoss(self.power)

    def derivatives(self, outputs: Floats, targets: Floats) -> tuple[Floats, Floats]:
        a, b = 2 - self.power, 1 - self.power
        first, second = np.exp(a * outputs), targets * np.exp(b * outputs)
        return first - second, self.factor * (a * first - b * second)

    def pull(self, outputs: Floats, targets: Floats, values: Floats, vectors: Floats) -> Floats:
        a, b = 2 - self.power, 1 - self.power
        first, second = np.exp(a * outputs), targets * np.exp(b * outputs)
        bent = self.factor * (a**2 * first - b**2 * second)
        return (a * first - b * second + values * bent)[..., None] * vectors

    def link(self, means: Floats) -> Floats:
        return np.log(np.maximum(means, _TINY))

    def link_slopes(self, means: Floats, changes: Floats) -> Floats:
        return changes / means[:, None]


def _sigmoid(outputs: Floats) -> Floats:
    """Return 1 / (1 + exp(-f)), by tanh, which cannot overflow."""
    found: Floats = np.tanh(0.5 * outputs)
    found += 1
    found *= 0.5
    return found


def _softmax(outputs: Floats) -> Floats:
    """Return the probabilities over the first axis."""
    powers = np.exp(outputs - outputs.max(0))
    return powers / powers.sum(0)
