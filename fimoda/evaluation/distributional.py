"""Agreement of predicted with measured changes of distributions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..distances import resolve_distance
from ..training.outcome_samples import OutcomeSamples
from ._correlation import pearson, spearman


@dataclass(frozen=True)
class DistributionalAgreement:
    """Agreement of predicted samples without each row with measured ones.

    Attributes
    ----------
    predicted, measured : ndarray of shape (n_test, n_left_out)
        Distance of the samples without a row from those with all rows.
    before : ndarray of shape (n_test, n_left_out)
        Distance of the measured samples without the row from the samples that the prediction started
        from, in size.
    after : ndarray of shape (n_test, n_left_out)
        Their distance from the predicted samples, in size. Where it is less than `before`, the
        prediction is closer to the truth than no prediction.
    pearson, spearman : ndarray of shape (n_test,)
        Correlation and rank correlation of `predicted` with `measured` over the left-out rows; 0
        where one of them is the same for all rows.
    """

    predicted: NDArray[np.float64]
    measured: NDArray[np.float64]
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    pearson: NDArray[np.float64]
    spearman: NDArray[np.float64]

    @property
    def closer(self) -> float:
        """Return the share of the test and left-out rows where `after` is less than `before`."""
        return float((self.after < self.before).mean())


def distributional_agreement(
    predicted: OutcomeSamples, measured: OutcomeSamples, distance: Any = "w2"
) -> DistributionalAgreement:
    """Compare predicted with measured samples of the same test rows, without the same rows.

    Distances between samples that were drawn independently contain the noise of both. Predict from
    trainings with the seeds that were measured to be rid of most of it.

    Of samples without groups of rows (`OutcomeSamples.of_groups`, and
    `OutcomeSamples.from_retraining` of random subsets) the rank correlation is the linear
    datamodeling score of the distance.

    Parameters
    ----------
    predicted : OutcomeSamples
        For example `DistributionalInfluence.outcome_samples`.
    measured : OutcomeSamples
        For example `OutcomeSamples.from_retraining`; its rows must be among those predicted.
    distance : str, Distance or callable, default="w2"
        As in `DistributionalInfluence`.

    Returns
    -------
    DistributionalAgreement

    Raises
    ------
    ValueError
        If the samples are of different measurements, test rows or left-out rows.

    Examples
    --------
    >>> import numpy as np
    >>> from fimoda import OutcomeSamples, distributional_agreement
    >>> rng = np.random.default_rng(0)
    >>> full, effects = rng.normal(size=(50, 1)), np.linspace(-1, 1, 8)
    >>> measured = OutcomeSamples(full, full[..., None] + effects)
    >>> predicted = OutcomeSamples(full, full[..., None] + 0.5 * effects)
    >>> agreement = distributional_agreement(predicted, measured, "mean")
    >>> agreement.pearson.round(2), agreement.closer
    (array([1.]), 1.0)
    """
    names = {predicted.measurement, measured.measurement} - {None}
    if len(names) > 1:
        raise ValueError(
            "predicted and measured must be of the same measurement, got "
            f"{predicted.measurement!r} and {measured.measurement!r}."
        )
    if predicted.full.shape[1] != measured.full.shape[1]:
        raise ValueError(
            f"predicted and measured must have the same test rows, got {predicted.full.shape[1]} and "
            f"{measured.full.shape[1]} of them."
        )
    between = resolve_distance(distance)
    predicted = predicted.of_rows(measured.rows)
    ours, theirs = predicted.distance(between), measured.distance(between)
    start = np.broadcast_to(predicted.full[..., None], (*predicted.full.shape, ours.shape[1]))
    before, after = (np.abs(between(measured.left_out, one)) for one in (start, predicted.left_out))
    correlations = pearson(ours, theirs), spearman(ours, theirs)
    return DistributionalAgreement(ours, theirs, before, after, *correlations)
