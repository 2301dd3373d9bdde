"""Distances between the whole distributions of two samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base import Distance, Samples


@dataclass(frozen=True)
class Wasserstein(Distance):
    r"""Wasserstein distance of order p between the two empirical distributions.

    .. math:: W_p^p = \int_0^1 |F^{-1}(u) - G^{-1}(u)|^p \, du,

    exactly, on the merged grid of the two quantile functions; in the unit of the measurement.

    Parameters
    ----------
    p : {1, 2}, default=2

    Examples
    --------
    >>> from fimoda.distances import Wasserstein
    >>> float(Wasserstein(1)([0.0, 1.0, 5.0, 6.0], [1.0]))
    2.5
    """

    p: int = 2

    def __post_init__(self) -> None:
        if self.p not in (1, 2):
            raise ValueError(f"p must be 1 or 2, got {self.p}.")

    def _between(self, left_out: Samples, full: Samples) -> NDArray[np.float64]:
        quantiles, others = _sorted(left_out), _sorted(full)
        n, m = len(left_out), len(full)
        if n == m:
            gap = np.subtract(quantiles, others)
            widths = np.full(n, 1 / n)
        else:  # levels in units of 1 / (n m), which are whole numbers
            levels = np.union1d(np.arange(n + 1) * m, np.arange(m + 1) * n)
            widths = np.diff(levels) / (n * m)
            gap = quantiles[..., levels[:-1] // m] - others[..., levels[:-1] // n]
        if self.p == 1:
            return np.abs(gap) @ widths
        return np.sqrt(np.square(gap) @ widths)


@dataclass(frozen=True)
class Energy(Distance):
    r"""Energy distance, :math:`\sqrt{2 \int (F - G)^2 \, dx}`, in the root of the unit."""

    def _between(self, left_out: Samples, full: Samples) -> NDArray[np.float64]:
        values, gap = _merged(left_out, full)
        return np.sqrt(2 * (gap[..., :-1] ** 2 * np.diff(values)).sum(-1))


@dataclass(frozen=True)
class KolmogorovSmirnov(Distance):
    r"""Largest difference of the distribution functions, :math:`\max_x |F - G|`."""

    def _between(self, left_out: Samples, full: Samples) -> NDArray[np.float64]:
        values, gap = _merged(left_out, full)
        inside = np.diff(values) == 0  # between equal samples there is no place to look
        gap[..., :-1][inside] = 0
        return np.abs(gap).max(-1)


@dataclass(frozen=True)
class KullbackLeibler(Distance):
    r"""Divergence :math:`\sum_b P_b \log(P_b / Q_b)` of the left-out from the full histogram, in nats.

    Both histograms have the same bins of equal width, over the range of the two samples together. To
    the share of samples in every bin half a sample's share (of the smaller number of samples) is
    added, so that the divergence is finite. It is 0 for samples that are all the same number. Few
    samples or many bins raise it.

    Parameters
    ----------
    bins : int, default=10
    """

    bins: int = 10

    def __post_init__(self) -> None:
        if self.bins < 2:
            raise ValueError(f"bins must be at least 2, got {self.bins}.")

    def _between(self, left_out: Samples, full: Samples) -> NDArray[np.float64]:
        low = np.minimum(left_out.min(0), full.min(0))
        width = np.maximum(left_out.max(0), full.max(0)) - low
        more = 0.5 / min(len(left_out), len(full))
        p, q = (self._histogram(sample, low, width, more) for sample in (left_out, full))
        return (p * np.log(p / q)).sum(0)

    def _histogram(self, sample: Samples, low: Any, width: Any, more: float) -> Samples:
        """Return smoothed shares, (bins, ...)."""
        place = np.divide(
            sample - low, width, out=np.zeros(np.broadcast(sample, low).shape), where=width > 0
        )
        bins = np.minimum((place * self.bins).astype(np.int64), self.bins - 1)
        shares = np.stack([(bins == b).mean(0) for b in range(self.bins)])
        return (shares + more) / (1 + more * self.bins)


def _sorted(samples: Samples) -> NDArray[np.float64]:
    """Return samples in increasing order along the last axis."""
    return np.sort(np.ascontiguousarray(np.moveaxis(samples, 0, -1)), axis=-1)


def _merged(left_out: Samples, full: Samples) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return all samples in increasing order (..., n + m), and F - G after each of them."""
    n, m = len(left_out), len(full)
    shape = np.broadcast_shapes(left_out.shape[1:], full.shape[1:])
    both = np.empty((*shape, n + m))
    both[..., :n] = np.moveaxis(left_out, 0, -1)
    both[..., n:] = np.moveaxis(full, 0, -1)
    order = np.argsort(both, axis=-1)
    steps = np.where(order < n, 1 / n, -1 / m)
    return np.take_along_axis(both, order, -1), np.cumsum(steps, axis=-1)
