"""The distance of joint laws: several measurements of the same trainings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..distances import SlicedWasserstein
from .outcome_samples import OutcomeSamples


def joint_distance(
    samples: Sequence[OutcomeSamples], distance: SlicedWasserstein | None = None
) -> NDArray[np.float64]:
    """Return the distance of the joint laws of several measurements of the same trainings.

    It sees what no measurement sees alone, for example that two outputs no longer move together.

    Parameters
    ----------
    samples : sequence of OutcomeSamples
        One a measurement (for example one an output), all of one unit, of the same trainings, test
        rows and left-out rows.
    distance : SlicedWasserstein, default=None
        A distance of vectors; with its own parameters by default.

    Returns
    -------
    distances : ndarray of shape (n_test, n_left_out)

    Examples
    --------
    >>> import numpy as np
    >>> from fimoda import OutcomeSamples, joint_distance
    >>> full, turned = np.eye(2), np.eye(2)[::-1]
    >>> first = OutcomeSamples(full[:, :1], full[:, :1, None])
    >>> second = OutcomeSamples(full[:, 1:], turned[:, 1:, None])
    >>> first.distance("w2"), second.distance("w2")
    (array([[0.]]), array([[0.]]))
    >>> joint_distance([first, second]).round(1)
    array([[0.6]])
    """
    known = list(samples)
    if not known or any(
        one.left_out.shape != known[0].left_out.shape
        or one.full.shape != known[0].full.shape
        or not np.array_equal(one.rows, known[0].rows)
        for one in known
    ):
        raise ValueError(
            "samples must hold one OutcomeSamples a measurement, of the same trainings, test rows and "
            f"left-out rows, got shapes {[one.left_out.shape for one in known]}."
        )
    between = SlicedWasserstein() if distance is None else distance
    blocks = zip(*(one.blocks() for one in known), strict=True)
    return np.concatenate(
        [
            between(*(np.stack(each, axis=1) for each in zip(*block, strict=True)))
            for block in blocks
        ]
    )
