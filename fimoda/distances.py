"""Distances between two samples: what changed when a row was left out.

A distance is called as ``distance(left_out, full)``, with samples along the first axis of both, and
as many of each as there are; the other axes are broadcast. Those that have a sign are positive where
leaving the row out raises what they speak of. The names ``"mean"``, ``"variance"``, ``"std"``,
``"w1"``, ``"w2"``, ``"energy"``, ``"ks"`` and ``"kl"`` stand for the ones without parameters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._validation import check_random_state

Samples = NDArray[np.float64]


class Distance(ABC):
    """Base of the distances; `signed` says whether one can be negative."""

    signed: ClassVar[bool] = False
    minimum: ClassVar[int] = 1

    def __call__(self, left_out: ArrayLike, full: ArrayLike) -> NDArray[np.float64]:
        """Return an array of the other axes, from samples (n_left_out, ...) and (n_full, ...)."""
        samples = []
        for name, given in (("left_out", left_out), ("full", full)):
            sample = np.asarray(given, dtype=float)
            if sample.ndim == 0 or len(sample) < self.minimum:
                found = sample.shape[0] if sample.ndim else 0
                raise ValueError(
                    f"{name} must have at least {self.minimum} samples for {self}, got {found}. "
                    "Use more seeds or models."
                )
            if not np.isfinite(sample).all():
                raise ValueError(f"{name} has samples that are NaN or infinite.")
            samples.append(sample)
        return self._between(*samples)

    @abstractmethod
    def _between(self, left_out: Samples, full: Samples) -> NDArray[np.float64]:
        """Hook: the distance."""


class Difference(Distance):
    """Base of the differences of one number of each sample."""

    signed: ClassVar[bool] = True

    def _between(self, left_out: Samples, full: Samples) -> NDArray[np.float64]:
        return self._of(left_out) - self._of(full)

    @abstractmethod
    def _of(self, samples: Samples) -> NDArray[np.float64]:
        """Hook: return the number of each sample."""


@dataclass(frozen=True)
class Mean(Difference):
    """Difference of the means, in the unit of the measurement."""

    def _of(self, samples: Samples) -> NDArray[np.float64]:
        return samples.mean(0)


@dataclass(frozen=True)
class Variance(Difference):
    """Difference of the (unbiased) variances, in the squared unit of the measurement."""

    minimum: ClassVar[int] = 2

    def _of(self, samples: Samples) -> NDArray[np.float64]:
        return samples.var(0, ddof=1)


@dataclass(frozen=True)
class StandardDeviation(Difference):
    """Difference of the standard deviations, in the unit of the measurement."""

    minimum: ClassVar[int] = 2

    def _of(self, samples: Samples) -> NDArray[np.float64]:
        return samples.std(0, ddof=1)


@dataclass(frozen=True)
class Quantile(Difference):
    """Difference of a quantile, in the unit of the measurement.

    Parameters
    ----------
    q : float
        Between 0 and 1. At least ``1 / min(q, 1 - q)`` samples are needed: with fewer the quantile
        lies beyond the outermost sample.

    Examples
    --------
    >>> from fimoda.distances import Quantile
    >>> float(Quantile(0.5)([1.0, 5.0, 9.0], [0.0, 2.0]))
    4.0
    """

    q: float

    def __post_init__(self) -> None:
        if not 0 < self.q < 1:
            raise ValueError(f"q must lie between 0 and 1, got {self.q}.")

    def _between(self, left_out: Samples, full: Samples) -> NDArray[np.float64]:
        needed = int(np.ceil(1 / min(self.q, 1 - self.q) - 1e-9))
        if min(len(left_out), len(full)) < needed:
            raise ValueError(
                f"{self} needs at least {needed} samples, got {len(left_out)} and {len(full)}. Use "
                "more seeds or models, or a quantile nearer to the median."
            )
        return super()._between(left_out, full)

    def _of(self, samples: Samples) -> NDArray[np.float64]:
        return np.quantile(samples, self.q, axis=0)


@dataclass(frozen=True)
class TailProbability(Difference):
    """Difference of the share of samples above a threshold.

    Parameters
    ----------
    threshold : float
        In the unit of the measurement.

    Examples
    --------
    >>> from fimoda.distances import TailProbability
    >>> float(TailProbability(0.5)([1.0, 1.0], [1.0, 0.0]))
    0.5
    """

    threshold: float

    def _of(self, samples: Samples) -> NDArray[np.float64]:
        return (samples > self.threshold).mean(0)


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


@dataclass(frozen=True)
class SlicedWasserstein:
    r"""Wasserstein-2 distance of vectors, averaged over random directions.

    .. math:: SW_2^2 = d \, \mathrm{mean}_u \, W_2^2(u^\top P, u^\top Q), \qquad |u| = 1,

    for vectors of d numbers of the same unit. With the factor d a shift by a vector is its length,
    as for the Wasserstein distance itself.

    Parameters
    ----------
    n_directions : int, default=100
    random_state : int, RandomState or None, default=0
        Draws the directions.

    References
    ----------
    Bonneel et al., "Sliced and Radon Wasserstein Barycenters of Measures", 2015.

    Examples
    --------
    >>> import numpy as np
    >>> from fimoda.distances import SlicedWasserstein
    >>> full = np.random.default_rng(0).normal(size=(50, 2))
    >>> float(SlicedWasserstein(2000)(full + [3.0, 4.0], full).round(1))
    5.0
    """

    n_directions: int = 100
    random_state: Any = 0

    def __call__(self, left_out: ArrayLike, full: ArrayLike) -> NDArray[np.float64]:
        """Return an array of the other axes, from vectors (n_left_out, d, ...), (n_full, d, ...)."""
        ours, theirs = np.asarray(left_out, dtype=float), np.asarray(full, dtype=float)
        if min(ours.ndim, theirs.ndim) < 2 or ours.shape[1] != theirs.shape[1]:
            raise ValueError(
                "left_out and full must be samples of vectors of one length, (n, d, ...), got "
                f"shapes {ours.shape} and {theirs.shape}."
            )
        d = ours.shape[1]
        directions = check_random_state(self.random_state).normal(size=(self.n_directions, d))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        plain = Wasserstein(2)
        squares = [
            plain(np.tensordot(ours, u, (1, 0)), np.tensordot(theirs, u, (1, 0))) ** 2
            for u in directions
        ]
        return np.sqrt(d * np.mean(squares, axis=0))


@dataclass(frozen=True)
class OfPairs(Distance):
    """A user's function ``f(left_out, full)`` of two vectors, called for each pair of samples."""

    function: Callable[[Samples, Samples], Any]
    signed: ClassVar[bool] = True

    def _between(self, left_out: Samples, full: Samples) -> NDArray[np.float64]:
        shape = np.broadcast_shapes(left_out.shape[1:], full.shape[1:])
        ours, theirs = (
            np.broadcast_to(sample, (len(sample), *shape)).reshape(len(sample), -1).T
            for sample in (left_out, full)
        )
        found = np.array([self.function(a, b) for a, b in zip(ours, theirs, strict=True)], object)
        try:
            values = found.astype(float)
        except (TypeError, ValueError):
            values = np.full(1, np.nan)
        if values.ndim != 1 or not np.isfinite(values).all():
            raise ValueError(
                "distance must give one finite number for two samples; check it on single seeds, "
                "of which for example a variance is not known."
            )
        return values.reshape(shape)


NAMED: dict[str, Distance] = {
    "mean": Mean(),
    "variance": Variance(),
    "std": StandardDeviation(),
    "w1": Wasserstein(1),
    "w2": Wasserstein(2),
    "energy": Energy(),
    "ks": KolmogorovSmirnov(),
    "kl": KullbackLeibler(),
}


def resolve_distance(distance: Any) -> Distance:
    """Return the distance that a name, a `Distance` or a function of two vectors stands for.

    Raises
    ------
    ValueError
        If it is none of them.
    """
    if isinstance(distance, Distance):
        return distance
    if isinstance(distance, str) and distance in NAMED:
        return NAMED[distance]
    if callable(distance) and not isinstance(distance, type):
        return OfPairs(distance)
    raise ValueError(
        f"distance must be one of {', '.join(map(repr, NAMED))}, one of fimoda.distances such as "
        f"Quantile(0.9), or a function of two samples, got {distance!r}."
    )


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
