"""Distances between two samples: what changed when a row was left out.

A distance is called as ``distance(left_out, full)``, with samples along the first axis of both, and
as many of each as there are; the other axes are broadcast. Those that have a sign are positive where
leaving the row out raises what they speak of. The names ``"mean"``, ``"variance"``, ``"std"``,
``"w1"``, ``"w2"``, ``"energy"``, ``"ks"`` and ``"kl"`` stand for the ones without parameters.
"""

from .base import Difference, Distance, Samples
from .distributions import Energy, KolmogorovSmirnov, KullbackLeibler, Wasserstein
from .numbers import Mean, Quantile, StandardDeviation, TailProbability, Variance
from .resolve import NAMED, OfPairs, resolve_distance
from .vectors import SlicedWasserstein

__all__ = [
    "NAMED",
    "Difference",
    "Distance",
    "Energy",
    "KolmogorovSmirnov",
    "KullbackLeibler",
    "Mean",
    "OfPairs",
    "Quantile",
    "Samples",
    "SlicedWasserstein",
    "StandardDeviation",
    "TailProbability",
    "Variance",
    "Wasserstein",
    "resolve_distance",
]
