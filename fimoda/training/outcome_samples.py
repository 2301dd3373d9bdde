"""`OutcomeSamples`: what many trainings measure, with all rows and without each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._validation import check_count, check_random_state, check_subsets
from ..distances import resolve_distance

#: Numbers that a distance works on at a time.
BLOCK = 2**22


@dataclass(frozen=True)
class OutcomeSamples:
    r"""Measurements after many trainings: with all rows, and without each of some rows.

    Training is random (initial parameters, batch order, dropout), so that what a model says of a
    test row is a random number. These are samples of it: from further training, from training
    anew, predicted (`DistributionalInfluence.outcome_samples`), or of models of one's own.

    Parameters
    ----------
    full : array-like of shape (n_full, n_test)
        Measurement of each test row after each training on all rows.
    left_out : array-like of shape (n_samples, n_test, n_left_out)
        The same after trainings without each row.
    rows : array-like of int of shape (n_left_out,), default=None
        The rows that are left out; numbered by default.
    paired : bool, default=True
        Whether sample r of both is the same training but for the row (same seed, or predicted from
        it). The order of samples matters then, and there must be as many of each.
    measurement : str, default=None
        What was measured, where known; samples of different measurements are not compared.

    Raises
    ------
    ValueError
        If shapes do not match, a value is not finite, or paired samples are not as many.

    Examples
    --------
    >>> import numpy as np
    >>> from fimoda import OutcomeSamples
    >>> full = np.array([[0.0], [2.0]])
    >>> left_out = np.array([[[1.0, -1.0]], [[3.0, 3.0]]])
    >>> samples = OutcomeSamples(full, left_out)
    >>> samples.distance("mean"), samples.distance("std").round(1)
    (array([[1., 0.]]), array([[0. , 1.4]]))
    """

    full: NDArray[np.float64]
    left_out: NDArray[np.float64]
    rows: NDArray[np.int64] = None  # type: ignore[assignment]
    paired: bool = True
    measurement: str | None = None

    def __post_init__(self) -> None:
        full, left_out = np.asarray(self.full, float), np.asarray(self.left_out, float)
        if full.ndim != 2 or left_out.ndim != 3 or full.shape[1] != left_out.shape[1]:
            raise ValueError(
                "full must have shape (n_full, n_test) and left_out (n_samples, n_test, n_left_out), "
                f"with the same test rows, got {full.shape} and {left_out.shape}."
            )
        if not full.size or not left_out.size:
            raise ValueError(
                f"full and left_out must hold samples, got shapes {full.shape} and {left_out.shape}."
            )
        if self.paired and len(full) != len(left_out):
            raise ValueError(
                f"paired samples must be as many with all rows ({len(full)}) as without each "
                f"({len(left_out)}). Give those of the same seeds, or set paired=False."
            )
        for name, samples in (("full", full), ("left_out", left_out)):
            if not np.isfinite(samples).all():
                raise ValueError(
                    f"{name} has samples that are NaN or infinite; leave out the trainings that failed."
                )
        given = np.arange(left_out.shape[2]) if self.rows is None else np.asarray(self.rows)
        if given.shape != left_out.shape[2:] or given.dtype.kind not in "iu":
            raise ValueError(
                f"rows must hold the index of each of the {left_out.shape[2]} left-out rows, got "
                f"shape {given.shape} of {given.dtype}."
            )
        for name, value in (("full", full), ("left_out", left_out), ("rows", given)):
            object.__setattr__(self, name, value)

    @classmethod
    def from_further_training(
        cls, curve: Any, epochs: float | None = None, measurement: str | None = None
    ) -> OutcomeSamples:
        """Return the runs of a `FurtherTrainingCurve`, a sample for each seed.

        Parameters
        ----------
        curve : FurtherTrainingCurve
        epochs : float, default=None
            Which of its horizons; the last by default.
        measurement : str, default=None
            Name of what was measured.
        """
        known = np.asarray(curve.epochs).tolist()
        if epochs is not None and epochs not in known:
            raise ValueError(f"epochs must be one of the curve's horizons {known}, got {epochs}.")
        place = -1 if epochs is None else known.index(epochs)
        full, left_out = curve.outcomes.full[place], curve.outcomes.left_out[place]
        rows = np.asarray(curve.leave_out)
        return cls(full.T, np.moveaxis(left_out, -1, 0), rows, measurement=measurement)

    @classmethod
    def from_retraining(cls, outcomes: Any, measurement: str | None = None) -> OutcomeSamples:
        """Return trainings anew on subsets, a sample for each seed.

        Parameters
        ----------
        outcomes : SubsetOutcomes
            Of `train_on_subsets`. One subset must be all rows; each other one is a left-out row (if
            it lacks one row) or group of rows, which are numbered. Seeds of which a training failed
            are left out.
        measurement : str, default=None
            Name of what was measured.
        """
        subsets, measured = np.asarray(outcomes.subsets), np.asarray(outcomes.measured, float)
        whole = subsets.all(1)
        if whole.all() or not whole.any():
            raise ValueError(
                "outcomes must hold a subset of all rows, to compare with, and others. Add "
                "np.ones(n, dtype=bool) to the subsets."
            )
        seeds = np.isfinite(measured).all((0, 1))
        if not seeds.any():
            raise ValueError("outcomes must have a seed with which no training failed, got none.")
        others = ~subsets[~whole]
        single = bool((others.sum(1) == 1).all())
        return cls(
            measured[whole][0].T[seeds],
            measured[~whole].transpose(2, 1, 0)[seeds],
            others.argmax(1) if single else np.arange(len(others)),
            measurement=measurement,
        )

    @property
    def effects(self) -> NDArray[np.float64]:
        """Change of the measurement in each pair, (n_samples, n_test, n_left_out)."""
        if not self.paired:
            raise ValueError("effects are there for paired samples only; compare by `distance`.")
        return self.left_out - self.full[..., None]

    def of_rows(self, rows: ArrayLike) -> OutcomeSamples:
        """Return the samples without these rows, in their order.

        Parameters
        ----------
        rows : array-like of int
            Some of ``self.rows``.
        """
        place = {int(row): k for k, row in enumerate(self.rows)}
        wanted = np.asarray(rows)
        missing = [int(row) for row in wanted if int(row) not in place]
        if missing:
            raise ValueError(f"rows must be among those left out, got {missing[:5]} beside them.")
        columns = [place[int(row)] for row in wanted]
        return replace(self, left_out=self.left_out[:, :, columns], rows=wanted)

    def of_groups(self, groups: ArrayLike | Sequence[ArrayLike]) -> OutcomeSamples:
        """Return predicted samples without groups of rows: each pair's effects, summed.

        First-order effects add up; those of real trainings do not.

        Parameters
        ----------
        groups : ndarray of bool of shape (n_groups, n_left_out) or list of arrays of int
            True for the columns whose rows are removed together, or those columns.
        """
        removed = check_subsets(groups, self.left_out.shape[2])
        left_out = self.full[..., None] + self.effects @ removed.T.astype(float)
        return replace(self, left_out=left_out, rows=np.arange(len(removed)))

    # ---- distances --------------------------------------------------------------------------

    def distance(self, distance: Any = "w2") -> NDArray[np.float64]:
        """Return the distance of the samples without each row from those with all.

        Parameters
        ----------
        distance : str, Distance or callable, default="w2"
            ``"mean"``, ``"variance"``, ``"std"``, ``"w1"``, ``"w2"``, ``"energy"``, ``"ks"``,
            ``"kl"``, one of `fimoda.distances`, or a function ``f(left_out, full)`` of two vectors.

        Returns
        -------
        distances : ndarray of shape (n_test, n_left_out)
            Signed (left-out minus full) where the distance has a sign.
        """
        between = resolve_distance(distance)
        return np.concatenate([between(one, full) for one, full in self.blocks()])

    def blocks(self) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Yield left-out and full samples of a few test rows, (n, b, n_left_out) and (n, b, 1)."""
        n, n_test, n_left_out = self.left_out.shape
        size = max(1, BLOCK // (n_left_out * max(n, len(self.full))))
        for start in range(0, n_test, size):
            rows = slice(start, start + size)
            yield self.left_out[:, rows], self.full[:, rows, None]

    def interval(
        self,
        distance: Any = "w2",
        *,
        confidence: float = 0.95,
        n_bootstrap: int = 200,
        random_state: Any = None,
    ) -> NDArray[np.float64]:
        """Return a percentile bootstrap interval of each distance, over samples drawn again.

        A distance without a sign is larger between draws than between the samples, since draws
        differ also from themselves: its interval lies too high where there is little effect. Whether
        there is any effect is for `permutation_test` to say.

        Parameters
        ----------
        distance : str, Distance or callable, default="w2"
            As in `distance`.
        confidence : float, default=0.95
        n_bootstrap : int, default=200
            Draws; of pairs where the samples are paired.
        random_state : int, RandomState or None, default=None

        Returns
        -------
        interval : ndarray of shape (2, n_test, n_left_out)
            Lower and upper ends.
        """
        between = resolve_distance(distance)
        if not 0 < confidence < 1:
            raise ValueError(f"confidence must lie between 0 and 1, got {confidence}.")
        check_count(n_bootstrap, "n_bootstrap")
        rng = check_random_state(random_state)
        n, m = len(self.left_out), len(self.full)
        ours = rng.randint(n, size=(n_bootstrap, n))
        theirs = ours if self.paired else rng.randint(m, size=(n_bootstrap, m))
        tail = (1 - confidence) / 2
        ends = []
        for one, full in self.blocks():
            drawn = [between(one[a], full[b]) for a, b in zip(ours, theirs, strict=True)]
            ends.append(np.quantile(drawn, [tail, 1 - tail], axis=0))
        return np.concatenate(ends, axis=1)

    def permutation_test(
        self, distance: Any = "w2", *, n_permutations: int = 199, random_state: Any = None
    ) -> NDArray[np.float64]:
        """Return the p-value of each distance if leaving the row out had no effect.

        The two numbers of each pair are swapped at random, or all samples shuffled where they are
        not paired; the p-value is the share of swaps, the samples as they are among them, with a
        distance at least as far from zero.

        Parameters
        ----------
        distance : str, Distance or callable, default="w2"
            As in `distance`.
        n_permutations : int, default=199
            The smallest p-value is ``1 / (1 + n_permutations)``.
        random_state : int, RandomState or None, default=None

        Returns
        -------
        p_values : ndarray of shape (n_test, n_left_out)
        """
        between = resolve_distance(distance)
        check_count(n_permutations, "n_permutations")
        rng = check_random_state(random_state)
        n, m = len(self.left_out), len(self.full)
        drawn: list[NDArray[Any]]
        if self.paired:
            drawn = list(rng.randint(2, size=(n_permutations, n, 1, 1)).astype(bool))
            shuffle: Callable[..., Any] = _swapped
        else:
            drawn = [rng.permutation(n + m) for _ in range(n_permutations)]
            shuffle = _shuffled
        p_values = []
        for one, full in self.blocks():
            found = np.abs(between(one, full))
            limit = found * (1 - 1e-9)  # ties, rounded
            beyond = sum(np.abs(between(*shuffle(one, full, draw))) >= limit for draw in drawn)
            p_values.append((1 + np.asarray(beyond)) / (1 + n_permutations))
        return np.concatenate(p_values)


def _swapped(
    left_out: NDArray[np.float64], full: NDArray[np.float64], swap: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.where(swap, full, left_out), np.where(swap, left_out, full)


def _shuffled(
    left_out: NDArray[np.float64], full: NDArray[np.float64], order: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    shape = (len(full), *left_out.shape[1:])
    both = np.concatenate([left_out, np.broadcast_to(full, shape)])[order]
    return both[: len(left_out)], both[len(left_out) :]
