"""The distance that a name or a function of the user's stands for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .base import Distance, Samples
from .distributions import Energy, KolmogorovSmirnov, KullbackLeibler, Wasserstein
from .numbers import Mean, StandardDeviation, Variance


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
