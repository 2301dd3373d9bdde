"""Labels of training rows: finding wrong ones, and those of the rows that help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from .._arrays import check_unmasked
from .._validation import POSITIVE_INTEGER, SHARE, check_random_state, checks_arguments
from ..base import BaseAttributor
from ._scores import check_training_rows, largest, score_matrix


@dataclass(frozen=True)
class MislabelDetection:
    """Scores judged by the mislabelled rows that they find.

    Attributes
    ----------
    roc_auc : float
        Probability that a mislabelled row scores above a correct one; 0.5 is chance.
    average_precision : float
        Mean precision over the mislabelled rows; their share is chance.
    inspected : ndarray of shape (n_points,)
        Share of all rows inspected, in falling order of their scores; rows of equal score are one
        step.
    found : ndarray of shape (n_points,)
        Share of the mislabelled rows among them.
    share : float
        Share of mislabelled rows: the perfect order has found all after it.
    """

    roc_auc: float
    average_precision: float
    inspected: NDArray[np.float64]
    found: NDArray[np.float64]
    share: float

    def found_after(self, inspected: float) -> float:
        """Return the share of the mislabelled rows found after inspecting this share of all rows."""
        return float(np.interp(inspected, self.inspected, self.found))


def mislabel_detection(
    scores: BaseAttributor | ArrayLike, is_mislabelled: ArrayLike
) -> MislabelDetection:
    """Judge how well scores of training rows, such as self-influence, find wrong labels.

    A row that the model could fit only by its own presence has a large self-influence: without it,
    its own loss would rise most. Rows are inspected from the largest score down.

    Parameters
    ----------
    scores : fitted attributor or array-like of shape (n_train,)
        An attributor is asked for its ``self_influence()`` (of `DataOOB` with the other sign). Larger is more
        suspicious, in any unit.
    is_mislabelled : array-like of bool, shape (n_train,)
        True for the rows with a wrong label, see `flip_labels`.

    Returns
    -------
    MislabelDetection

    Raises
    ------
    ValueError
        If lengths differ, a score is not finite, or there are no mislabelled or no correct rows.

    References
    ----------
    Koh and Liang, "Understanding Black-box Predictions via Influence Functions", ICML 2017, section
    5.4. Pruthi et al., "Estimating Training Data Influence by Tracing Gradient Descent", NeurIPS 2020.

    Examples
    --------
    >>> from fimoda import mislabel_detection
    >>> result = mislabel_detection([0.9, 0.1, 0.8, 0.2], [True, False, False, True])
    >>> result.roc_auc, result.found_after(0.25)
    (0.75, 0.5)
    """
    check_unmasked(is_mislabelled, "is_mislabelled")
    truth = np.asarray(is_mislabelled)
    if truth.ndim != 1 or truth.dtype != bool:
        raise ValueError(
            "is_mislabelled must hold True or False for each training row, got shape "
            f"{truth.shape} of {truth.dtype}."
        )
    if isinstance(scores, BaseAttributor):
        check_training_rows("scores", scores, len(truth))
        truth, scores = truth[scores.train_indices_], scores._suspicion()
    values = np.asarray(scores, dtype=float)
    if values.shape != truth.shape:
        raise ValueError(
            f"scores must have one entry for each of the {len(truth)} training rows, got shape "
            f"{values.shape}. Of a score matrix pass the diagonal: attributor.self_influence()."
        )
    if not np.isfinite(values).all():
        raise ValueError("scores must be finite, got NaN or infinite ones.")
    share = truth.mean()
    if share in (0, 1):
        raise ValueError(
            f"is_mislabelled must have both True and False, got only {bool(share)} for "
            f"{len(truth)} rows."
        )
    false_found, found, _ = roc_curve(truth, values, drop_intermediate=False)
    inspected = share * found + (1 - share) * false_found
    area, precision = roc_auc_score(truth, values), average_precision_score(truth, values)
    return MislabelDetection(float(area), float(precision), inspected, found, float(share))


@checks_arguments(fraction=[SHARE])
def flip_labels(
    y: ArrayLike, fraction: float, random_state: Any = None
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Give some rows a wrong label, drawn evenly from the other classes.

    Parameters
    ----------
    y : array-like of shape (n_rows,)
        Class labels.
    fraction : float
        Share of rows that get a wrong label, rounded to whole rows.
    random_state : int, RandomState instance or None, default=None
        Draws the rows and their labels.

    Returns
    -------
    y_noisy : ndarray of shape (n_rows,)
        Labels, some of them wrong.
    is_mislabelled : ndarray of bool, shape (n_rows,)
        True for those.

    Examples
    --------
    >>> from fimoda import flip_labels
    >>> y_noisy, is_mislabelled = flip_labels(["a", "b", "c", "a"], 0.5, random_state=0)
    >>> int(is_mislabelled.sum())
    2
    """
    check_unmasked(y, "y")
    y = np.asarray(y)
    if y.ndim != 1:
        raise ValueError(f"y must be one label a row, got shape {y.shape}.")
    classes, codes = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"y must have at least two classes, got {len(classes)}.")
    rng = check_random_state(random_state)
    rows = rng.choice(len(y), round(fraction * len(y)), replace=False)
    shift = rng.randint(1, len(classes), size=len(rows))
    y_noisy = y.copy()
    y_noisy[rows] = classes[(codes[rows] + shift) % len(classes)]
    return y_noisy, np.isin(np.arange(len(y)), rows)


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
