"""Classes of the rows that help."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arrays import check_unmasked
from .._validation import POSITIVE_INTEGER, checks_arguments
from ..base import BaseAttributor
from ._scores import largest, score_matrix


@checks_arguments(k=[POSITIVE_INTEGER])
def class_detection(
    scores: BaseAttributor | ArrayLike,
    y_train: ArrayLike,
    y_test: ArrayLike,
    X_test: Any = None,
    *,
    k: int = 10,
) -> NDArray[np.float64]:
    """Return the share of the k most helpful rows that have the class of the test row.

    Rows of the same class should be those that help. It is a check of plausibility, not of
    counterfactuals: a nearest-neighbour search does well at it. Chance is the share of the class.

    Parameters
    ----------
    scores : fitted attributor or array-like of shape (n_test, n_train)
        An attributor of the loss, or its scores: positive for rows that help.
    y_train : array-like of shape (n_train,)
        Classes of the training rows.
    y_test : array-like of shape (n_test,)
        Classes of the test rows.
    X_test : array-like, default=None
        The test rows; needed for an attributor.
    k : int, default=10
        Helpful rows looked at.

    Returns
    -------
    share : ndarray of shape (n_test,)
        Of each test row, between 0 and 1.

    References
    ----------
    Hanawa et al., "Evaluation of Similarity-based Explanations", ICLR 2021: identical class test.

    Examples
    --------
    >>> from fimoda import class_detection
    >>> class_detection([[0.3, 0.2, -0.1]], ["cat", "dog", "cat"], ["cat"], k=2)
    array([0.5])
    """
    check_unmasked(y_train, "y_train")
    check_unmasked(y_test, "y_test")
    classes, wanted = np.asarray(y_train).ravel(), np.asarray(y_test).ravel()
    matrix = score_matrix("scores", scores, (len(wanted), len(classes)), X_test, y_test)
    return (classes[largest("scores", matrix, k)] == wanted[:, None]).mean(1)
