"""Agreement of attribution methods with further training, by horizon."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..attributors.further_training_curve import FurtherTrainingCurve
from ..base import BaseAttributor
from ..training.outcomes import standard_error
from ._correlation import centred, cosine, pearson, spearman
from ._scores import Method, attributed, labelled
from ._tables import table, tidy

METRICS = ("cosine", "cosine_centred", "spearman")


@dataclass(frozen=True, repr=False)
class AgreementCurve:
    """Agreement of methods with further training.

    Attributes
    ----------
    methods : list of str
        Names of the methods.
    epochs : ndarray of shape (n_epochs,)
        Horizons.
    values : dict of ndarray of shape (n_methods, n_epochs, n_test)
        For each metric, the agreement on each test row: ``"cosine"`` (truth centred over the
        left-out rows, scores as they are), ``"cosine_centred"`` (both centred) and ``"spearman"``
        (rank correlation).
    """

    methods: list[str]
    epochs: NDArray[Any]
    values: dict[str, NDArray[np.float64]]

    def mean(self, metric: str = "cosine") -> NDArray[np.float64]:
        """Return the mean over test rows, (n_methods, n_epochs)."""
        return self._of(metric).mean(-1)

    def sem(self, metric: str = "cosine") -> NDArray[np.float64]:
        """Return the standard error over test rows, (n_methods, n_epochs); NaN for one test row."""
        return standard_error(self._of(metric))

    def _of(self, metric: str) -> NDArray[np.float64]:
        if metric not in METRICS:
            raise ValueError(
                f"metric must be one of {', '.join(map(repr, METRICS))}, got {metric!r}."
            )
        return self.values[metric]

    def to_frame(self) -> Any:
        """Return a tidy pandas DataFrame: one row per method, horizon and metric, with mean and sem."""
        levels = {"method": self.methods, "epochs": self.epochs, "metric": METRICS}
        means = np.stack([self.mean(metric) for metric in METRICS], -1)
        return tidy(levels, mean=means, sem=np.stack([self.sem(one) for one in METRICS], -1))

    def __repr__(self) -> str:
        n_test = next(iter(self.values.values())).shape[-1]
        head = (
            f"AgreementCurve: cosine with further training, mean of {n_test} test rows, by epochs"
        )
        return f"{head}\n{self.table()}"

    def table(self, metric: str = "cosine") -> str:
        """Return a plain-text table of means, methods by horizons."""
        means = ((f"{mean:.2f}" for mean in row) for row in self.mean(metric))
        return table(["", *(f"{e:g}" for e in self.epochs)], self.methods, means)


def agreement_curve(
    methods: Mapping[str, Method],
    curve: FurtherTrainingCurve,
    X_test: Any = None,
    y_test: Any = None,
) -> AgreementCurve:
    """Compare methods with further training, at each horizon of `curve`.

    For each test row the scores of all left-out rows are compared with those of further training,
    by cosine and by rank correlation; a row whose scores are all equal agrees 0.

    Parameters
    ----------
    methods : dict of str to fitted attributor or ndarray
        Attributors fitted on the same training rows, or score matrices (n_test, n_columns) whose
        columns are all training rows or those left out by `curve`. An attributor that scores every
        horizon of the curve (``transform_horizons``, ``n_epochs=curve.epochs``) is compared with its
        own scores at each; so is an array (n_epochs, n_test, n_columns). Other scores are compared
        with all horizons.
    curve : FurtherTrainingCurve
        The gold standard, from `further_training_curve`.
    X_test, y_test : array-like, default=None
        The test rows of the curve; needed for attributors.

    Returns
    -------
    AgreementCurve

    Raises
    ------
    ValueError
        If a method does not score the left-out rows of the curve, or the test rows do not match.

    References
    ----------
    Wei et al., arXiv 2412.03906, section 5: cosine with mean-centred further training.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from fimoda import GradDot, agreement_curve, further_training_curve
    >>> X, y = load_diabetes(return_X_y=True)
    >>> ridge = Ridge().fit(X, y)
    >>> curve = further_training_curve(
    ...     ridge, X, y, X[:4], y[:4], epochs=[1, 3], n_seeds=2, leave_out=[0, 7, 9], random_state=0
    ... )
    >>> result = agreement_curve({"Grad-Dot": GradDot(ridge).fit(X, y)}, curve, X[:4], y[:4])
    >>> result.mean("cosine").shape
    (1, 2)
    """
    found = [_aligned(*method, curve, X_test, y_test) for method in labelled(methods).items()]
    truth = curve.scores
    scores = np.stack([np.broadcast_to(one, truth.shape) for one in found])
    values = {
        "cosine": cosine(scores, centred(truth)),
        "cosine_centred": pearson(scores, truth),
        "spearman": spearman(scores, truth),
    }
    return AgreementCurve(list(methods), curve.epochs, values)


def _aligned(
    label: str, method: Method, curve: FurtherTrainingCurve, X_test: Any, y_test: Any
) -> NDArray[np.float64]:
    """Return scores ([n_epochs,] n_test, n_left_out) of the curve's rows, in its order."""
    n_epochs, n_test, n_left_out = curve.scores.shape
    if isinstance(method, BaseAttributor):
        epochs = curve.epochs.tolist()
        scores = attributed(label, method, curve.n_train, X_test, y_test, epochs)
        missing = np.setdiff1d(curve.leave_out, method.train_indices_)
        if missing.size:
            raise ValueError(
                f"{label} does not score training rows {missing[:5].tolist()}, which the curve leaves out. "
                "Fit it on the same training rows."
            )
        scores = scores[..., curve.leave_out]
    else:
        scores = np.asarray(method, dtype=float)
        if scores.ndim not in (2, 3):
            raise ValueError(
                f"{label} must be a fitted attributor, a matrix (n_test, n_columns), or one for each "
                f"horizon, got {type(method).__name__} of shape {scores.shape}."
            )
        if scores.ndim == 3 and len(scores) != n_epochs:
            raise ValueError(f"{label} has {len(scores)} horizons, the curve has {n_epochs}.")
        if scores.shape[-1] != n_left_out:
            if scores.shape[-1] <= curve.leave_out.max():
                raise ValueError(
                    f"{label} must have a column for every training row, or for each of the "
                    f"{n_left_out} left-out rows; got {scores.shape[-1]} columns."
                )
            scores = scores[..., curve.leave_out]
    if scores.shape[-2] != n_test:
        raise ValueError(f"{label} has {scores.shape[-2]} test rows, the curve has {n_test}.")
    if not np.isfinite(scores).all():
        raise ValueError(f"{label} has scores that are NaN or infinite.")
    return scores
