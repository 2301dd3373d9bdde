"""Agreement of attribution methods with further training, by horizon."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from ..attributors.further_training_curve import FurtherTrainingCurve
from ..base import BaseAttributor
from ._scores import check_training_rows

METRICS = ("cosine", "cosine_centred", "spearman")


@dataclass(frozen=True)
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
    epochs: NDArray[np.int64]
    values: dict[str, NDArray[np.float64]]

    def mean(self, metric: str = "cosine") -> NDArray[np.float64]:
        """Mean over test rows, (n_methods, n_epochs)."""
        return self._of(metric).mean(-1)

    def sem(self, metric: str = "cosine") -> NDArray[np.float64]:
        """Standard error over test rows, (n_methods, n_epochs); NaN for one test row."""
        values = self._of(metric)
        if values.shape[-1] < 2:
            return np.full(values.shape[:-1], np.nan)
        return values.std(-1, ddof=1) / np.sqrt(values.shape[-1])

    def _of(self, metric: str) -> NDArray[np.float64]:
        if metric not in METRICS:
            raise ValueError(
                f"metric must be one of {', '.join(map(repr, METRICS))}, got {metric!r}."
            )
        return self.values[metric]

    def to_frame(self) -> Any:
        """Tidy pandas DataFrame: one row per method, horizon and metric, with mean and sem."""
        import pandas as pd

        return pd.DataFrame(
            [
                (method, int(epoch), metric, self.mean(metric)[m, e], self.sem(metric)[m, e])
                for m, method in enumerate(self.methods)
                for e, epoch in enumerate(self.epochs)
                for metric in METRICS
            ],
            columns=["method", "epochs", "metric", "mean", "sem"],
        )

    def table(self, metric: str = "cosine") -> str:
        """Plain-text table of means, methods by horizons."""
        width = max(len(m) for m in self.methods)
        header = " " * width + "".join(f"{int(e):>8}" for e in self.epochs)
        rows = (
            f"{name:<{width}}" + "".join(f"{v:8.2f}" for v in row)
            for name, row in zip(self.methods, self.mean(metric), strict=True)
        )
        return "\n".join([header, *rows])


def agreement_curve(
    methods: Mapping[str, BaseAttributor | NDArray[np.float64]],
    curve: FurtherTrainingCurve,
    X_test: Any = None,
    y_test: Any = None,
) -> AgreementCurve:
    """How well methods agree with further training, at each horizon of `curve`.

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
    if not methods:
        raise ValueError("methods must name at least one attributor or score matrix, got none.")
    truth = _centred(curve.scores)
    names = list(methods)
    aligned = [_aligned(name, methods[name], curve, X_test, y_test) for name in names]
    scores = np.stack([np.broadcast_to(one, truth.shape) for one in aligned])
    ranks, true_ranks = (rankdata(a, axis=-1) for a in (scores, curve.scores))
    values = {
        "cosine": _cosine(scores, truth),
        "cosine_centred": _cosine(_centred(scores), truth),
        "spearman": _cosine(_centred(ranks), _centred(true_ranks)),
    }
    return AgreementCurve(names, curve.epochs, values)


def _centred(a: NDArray[np.float64]) -> NDArray[np.float64]:
    """Less the mean over the last axis; exactly zero where all are equal."""
    a = a - a[..., :1]
    return a - a.mean(-1, keepdims=True)


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosine along the last axis; 0 where a side is zero."""
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.divide((a * b).sum(-1), lengths, out=np.zeros(lengths.shape), where=lengths > 0)


def _aligned(
    name: str,
    method: BaseAttributor | NDArray[np.float64],
    curve: FurtherTrainingCurve,
    X_test: Any,
    y_test: Any,
) -> NDArray[np.float64]:
    """Scores (n_epochs or 1, n_test, n_left_out) of the curve's rows, in its order."""
    n_epochs, n_test, n_left_out = curve.scores.shape
    if isinstance(method, BaseAttributor):
        if X_test is None:
            raise ValueError("X_test must be given to score with attributors.")
        if curve.n_train is not None:
            check_training_rows(f"methods[{name!r}]", method, curve.n_train)
        epochs = [int(epoch) for epoch in curve.epochs]
        scores = method._at_horizons(X_test, y_test, epochs)
        columns = {int(row): k for k, row in enumerate(method.train_indices_)}
        missing = [int(row) for row in curve.leave_out if int(row) not in columns]
        if missing:
            raise ValueError(
                f"methods[{name!r}] does not score training rows {missing[:5]}, which the curve leaves out. "
                "Fit it on the same training rows."
            )
        scores = scores[..., [columns[int(row)] for row in curve.leave_out]]
    else:
        scores = np.asarray(method, dtype=float)
        if scores.ndim not in (2, 3):
            raise ValueError(
                f"methods[{name!r}] must be a fitted attributor, a matrix (n_test, n_columns), or one for "
                f"each horizon, got {type(method).__name__} of shape {scores.shape}."
            )
        if scores.ndim == 3 and len(scores) != n_epochs:
            raise ValueError(
                f"methods[{name!r}] has {len(scores)} horizons, the curve has {n_epochs}."
            )
        if scores.shape[-1] != n_left_out:
            if scores.shape[-1] <= curve.leave_out.max():
                raise ValueError(
                    f"methods[{name!r}] must have a column for every training row, or for each of the "
                    f"{n_left_out} left-out rows; got {scores.shape[-1]} columns."
                )
            scores = scores[..., curve.leave_out]
    if scores.shape[-2] != n_test:
        raise ValueError(
            f"methods[{name!r}] has {scores.shape[-2]} test rows, the curve has {n_test}."
        )
    if not np.isfinite(scores).all():
        raise ValueError(f"methods[{name!r}] has scores that are NaN or infinite.")
    return scores if scores.ndim == 3 else scores[None]
