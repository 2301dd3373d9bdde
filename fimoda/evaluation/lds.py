"""Linear datamodeling score: predicted against measured effects of removing many rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._validation import OPEN_SHARE, POSITIVE_INTEGER, check_random_state, checks_arguments
from ..distances import resolve_distance
from ._correlation import Ranks, weighted_spearman
from ._scores import Method, Outcomes, labelled, score_matrix
from ._tables import table, tidy
from .ceiling import noise_ceiling

#: From the measurements (n_test, n_seeds) of a subset to its effect on each test row.
Effect = Callable[[NDArray[np.float64]], NDArray[np.float64]]

#: Subsets below which a rank correlation says nothing.
MIN_SUBSETS = 3


@dataclass(frozen=True)
class LinearDatamodelingScore:
    """Agreement of methods with the effect of removing many rows.

    Attributes
    ----------
    methods : list of str
        Names of the methods.
    ratios : ndarray of shape (n_ratios,)
        Share of the training rows that is kept.
    values : ndarray of shape (n_methods, n_ratios, n_test)
        Spearman correlation over subsets, of each test row.
    bootstrap : ndarray of shape (n_methods, n_ratios, n_bootstrap)
        Mean over test rows, over subsets drawn with replacement, the same for all methods.
    ceiling : ndarray of shape (n_ratios, n_test)
        What the exact expected measurement would reach, see `noise_ceiling`; NaN for one seed and
        for a distributional score.
    confidence : float
        Coverage of `interval`.
    n_subsets : ndarray of shape (n_ratios,)
        Subsets of which at least one training succeeded.
    """

    methods: list[str]
    ratios: NDArray[np.float64]
    values: NDArray[np.float64]
    bootstrap: NDArray[np.float64]
    ceiling: NDArray[np.float64]
    confidence: float
    n_subsets: NDArray[np.int64]

    def mean(self) -> NDArray[np.float64]:
        """Return the mean over test rows, (n_methods, n_ratios)."""
        return self.values.mean(-1)

    def interval(self) -> NDArray[np.float64]:
        """Return the percentile bootstrap interval of the mean, (n_methods, n_ratios, 2).

        It is about which subsets were drawn; the test rows are taken as they are.
        """
        return self._quantiles(self.bootstrap)

    def _quantiles(self, draws: NDArray[np.float64]) -> NDArray[np.float64]:
        tail = (1 - self.confidence) / 2
        return np.moveaxis(np.quantile(draws, [tail, 1 - tail], axis=-1), 0, -1)

    def difference(self, method: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the mean of one of `methods` less that of each (n_methods, n_ratios), and its interval.

        The interval (n_methods, n_ratios, 2) is over the same draws of subsets, where all methods are
        lucky together: it says more than whether two of `interval` overlap. ValueError if there is no
        such method.
        """
        if method not in self.methods:
            raise ValueError(f"method must be one of {self.methods}, got {method!r}.")
        k, mean = self.methods.index(method), self.mean()
        return mean[k] - mean, self._quantiles(self.bootstrap[k] - self.bootstrap)

    def to_frame(self) -> Any:
        """Return a tidy pandas DataFrame: one row per method and ratio, with interval and ceiling."""
        lds, low_and_high = self.mean(), np.moveaxis(self.interval(), -1, 0)
        low, high, ceiling = np.broadcast_arrays(*low_and_high, self.ceiling.mean(-1))
        levels = {"method": self.methods, "ratio": self.ratios}
        return tidy(levels, lds=lds, low=low, high=high, ceiling=ceiling)

    def table(self) -> str:
        """Return a plain-text table of means and intervals, methods by ratios, and the ceiling."""
        cells = [
            [f"{m:.2f} [{low:5.2f},{high:5.2f}]" for m, (low, high) in zip(*row, strict=True)]
            for row in zip(self.mean(), self.interval(), strict=True)
        ]
        cells.append([f"{one:.2f}{'':14}" for one in self.ceiling.mean(-1)])
        head = ["", *(f"{ratio:.3g}" for ratio in self.ratios)]
        return table(head, [*self.methods, "ceiling"], cells)


@checks_arguments(n_bootstrap=[POSITIVE_INTEGER], confidence=[OPEN_SHARE])
def linear_datamodeling_score(
    methods: Mapping[str, Method],
    outcomes: Outcomes | Mapping[float, Outcomes] | list[Outcomes],
    X_test: Any = None,
    y_test: Any = None,
    *,
    distance: Any = None,
    reference: ArrayLike | None = None,
    n_bootstrap: int = 1000,
    confidence: float = 0.95,
    random_state: Any = None,
) -> LinearDatamodelingScore:
    r"""Judge how well methods rank the effects of training on subsets of the rows.

    For each test row z, the rank correlation over the subsets S between the predicted effect of
    the rows that are missing and the measurement after training without them,

    .. math:: \mathrm{LDS}_z = \mathrm{Spearman}_S \Bigl( \sum_{i \notin S} s_{z,i},
        \; \tfrac{1}{R} \sum_{r=1}^R m_z(\theta(S; \xi_r)) \Bigr).

    A score is positive if removing the row raises the measurement, as everywhere; scores and
    outcomes must be of the same measurement. A correlation has no unit: LDS judges the order of the
    effects, not their size.

    A *distributional* score has in place of the mean over trainings any distance between the
    measurements after training on S and those after training on all rows, each a sample over seeds.

    Parameters
    ----------
    methods : dict of str to fitted attributor or ndarray
        Attributors fitted on the same training rows, or score matrices (n_test, n_train).
    outcomes : outcomes of trained subsets, or a dict or list of them
        Anything with ``subsets`` (n_subsets, n_train), True for the rows trained on, and
        ``measured`` (n_subsets, n_test, n_seeds); one for each share of kept rows (a dict's keys
        name it). A training with a measurement that is not finite has failed: the other seeds of
        its subset are averaged, and a subset without any is left out.
    X_test, y_test : array-like, default=None
        The test rows that were measured; needed for attributors.
    distance : str, Distance or callable, default=None
        A name such as ``"variance"`` or one of `fimoda.distances`, as in `DistributionalInfluence`;
        or ``f(sample, reference)``, one number from two samples, arrays of shape (n_seeds,) of the
        subset and (n_reference,) of all rows. Scores must be of the same effect. By default the
        difference of the means.
    reference : array-like of shape (n_test, n_reference), default=None
        Measurements after training on all rows with several seeds; needed for a `distance`.
    n_bootstrap : int, default=1000
        Bootstrap draws of the subsets.
    confidence : float, default=0.95
        Coverage of the bootstrap interval.
    random_state : int, RandomState instance or None, default=None
        Draws the subsets of the bootstrap and the halves of the noise ceiling.

    Returns
    -------
    LinearDatamodelingScore
        A test row whose prediction or measurement is the same for all subsets scores 0.

    Raises
    ------
    ValueError
        If shapes do not match, a method does not score a row that is missing from a subset, fewer
        than 3 subsets were trained, or a distance is not a number.

    References
    ----------
    Park et al., "TRAK: Attributing Model Behavior at Scale", ICML 2023, arXiv 2303.14186, section 2.
    Ilyas et al., "Datamodels", ICML 2022. Mlodozeniec et al., "Distributional Training Data
    Attribution", NeurIPS 2025, arXiv 2506.12965.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from fimoda import (
    ...     ExactInfluence,
    ...     linear_datamodeling_score,
    ...     random_subsets,
    ...     train_on_subsets,
    ... )
    >>> X, y = load_diabetes(return_X_y=True)
    >>> subsets = random_subsets(len(X), 30, ratio=0.97, random_state=0)
    >>> outcomes = train_on_subsets(Ridge(), X, y, subsets, X[:5], y[:5], n_seeds=1)
    >>> influence = ExactInfluence(Ridge().fit(X, y), damping=0.0).fit(X, y)
    >>> lds = linear_datamodeling_score({"exact": influence}, outcomes, X[:5], y[:5])
    >>> lds.mean().round(1)
    array([[1.]])
    """
    by_label, by_ratio = labelled(methods), _by_ratio(outcomes)
    shape = _shape(by_ratio[0][1])
    scores = {
        label: score_matrix(label, method, shape, X_test, y_test)
        for label, method in by_label.items()
    }
    rng = check_random_state(random_state)
    effect = _effect(distance, reference, shape[0])
    parts = [_judge(scores, one, effect, n_bootstrap, rng) for _, one in by_ratio]
    values, bootstrap, ceiling, n_subsets = (np.stack(part) for part in zip(*parts, strict=True))
    if distance is not None:  # halves of the seeds are another distance away
        ceiling[:] = np.nan
    return LinearDatamodelingScore(
        list(methods),
        np.array([ratio for ratio, _ in by_ratio]),
        values.swapaxes(0, 1),
        bootstrap.swapaxes(0, 1),
        ceiling,
        confidence,
        n_subsets,
    )


def _by_ratio(outcomes: Any) -> list[tuple[float, Outcomes]]:
    """Return outcomes with the share of rows that they keep, all of the same shape."""
    if isinstance(outcomes, Mapping):
        pairs = [(float(ratio), one) for ratio, one in outcomes.items()]
    else:
        several = list(outcomes) if isinstance(outcomes, list | tuple) else [outcomes]
        pairs = [(float(np.mean(one.subsets)), one) for one in several]
    if not pairs:
        raise ValueError("outcomes must hold trained subsets, got none. See train_on_subsets.")
    shapes = list(dict.fromkeys(_shape(one) for _, one in pairs))
    if len(shapes) > 1:
        raise ValueError(
            "outcomes must all be of the same test and training rows, got (n_test, n_train) = "
            f"{shapes[0]} and {shapes[1]}."
        )
    return pairs


def _shape(outcomes: Outcomes) -> tuple[int, int]:
    """Return the numbers of test rows and training rows, of checked outcomes."""
    subsets, measured = np.asarray(outcomes.subsets), np.asarray(outcomes.measured)
    if subsets.ndim != 2 or subsets.dtype != bool:
        raise ValueError(
            "outcomes.subsets must be a matrix (n_subsets, n_train) of True for the rows that "
            f"are trained on, got shape {subsets.shape} of {subsets.dtype}."
        )
    if measured.ndim != 3 or len(measured) != len(subsets):
        raise ValueError(
            f"outcomes.measured must have shape ({len(subsets)}, n_test, n_seeds), one for each "
            f"subset, got {measured.shape}."
        )
    return measured.shape[1], subsets.shape[1]


def _effect(distance: Any, reference: ArrayLike | None, n_test: int) -> Effect:
    """Return what is predicted: the mean, or the distance from a sample of each test row."""
    if (distance is None) != (reference is None):
        raise ValueError(
            "distance and reference must be given together: the distance is to measurements after "
            "training on all rows, for example train_on_subsets(..., [range(n)], ...).measured[0]."
        )
    if distance is None:
        return lambda measured: measured.mean(1)
    samples = np.asarray(reference, dtype=float)
    if samples.ndim != 2 or len(samples) != n_test or not samples.size:
        raise ValueError(
            f"reference must have shape ({n_test}, n_reference), a sample for each test row, got "
            f"{samples.shape}."
        )
    between, finite = resolve_distance(distance), [row[np.isfinite(row)] for row in samples]
    return lambda measured: np.array(list(map(between, measured, finite)))


def _judge(
    scores: Mapping[str, NDArray[np.float64]],
    outcomes: Outcomes,
    effect: Effect,
    n_bootstrap: int,
    rng: Any,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], int]:
    """Return values (n_methods, n_test), bootstrap means (n_methods, n_bootstrap), ceiling, subsets."""
    measured = np.asarray(outcomes.measured, dtype=float)
    succeeded = np.isfinite(measured).all(1)  # (n_subsets, n_seeds)
    used = succeeded.any(1)
    n_subsets = int(used.sum())
    if n_subsets < MIN_SUBSETS:
        raise ValueError(
            f"outcomes must have at least {MIN_SUBSETS} trained subsets, got {n_subsets} of "
            f"{len(used)} without failure. Train more subsets, 50 or more for a useful interval."
        )
    removed = ~np.asarray(outcomes.subsets)[used]
    effects = [effect(one[:, ok]) for one, ok in zip(measured[used], succeeded[used], strict=True)]
    predicted = [_group_effects(*one, removed) for one in scores.items()]
    ranks, true_ranks = Ranks(np.stack(predicted)), Ranks(np.stack(effects, 1))
    once = np.ones(n_subsets, dtype=np.int64)
    draws = rng.multinomial(n_subsets, once / n_subsets, size=n_bootstrap)
    bootstrap = [weighted_spearman(ranks, true_ranks, weights).mean(-1) for weights in draws]
    ceiling = noise_ceiling(measured, random_state=rng)
    values = weighted_spearman(ranks, true_ranks, once)
    return values, np.stack(bootstrap, -1), ceiling, n_subsets


def _group_effects(
    label: str, scores: NDArray[np.float64], removed: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return the sum of the scores of the removed rows over that of all sizes, (n_test, n_subsets).

    Rounded to twelve digits, so that the order of summation does not tell equal sums apart.
    """
    unknown = np.flatnonzero(np.isnan(scores[0]) & removed.any(0))
    if unknown.size:
        raise ValueError(
            f"{label} does not score training rows {unknown[:5].tolist()}, which some subset leaves out. "
            "Score all training rows."
        )
    scores = np.nan_to_num(scores)
    size = np.abs(scores).sum(1, keepdims=True)
    effects = scores @ removed.T.astype(float)
    return np.divide(effects, size, out=np.zeros_like(effects), where=size > 0).round(12)
