"""Effects of groups by several methods, beside what training without them gives."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base import BaseAttributor
from ..evaluation._tables import table
from ..evaluation.failures import FAILURES, told
from .influence import GroupInfluence, group_influence


@dataclass(frozen=True, repr=False)
class GroupComparison:
    """Effects of groups by several methods, and their errors.

    Printed, it is a table of the errors.

    Attributes
    ----------
    methods : list of str
        Names of the methods: attributor and way, such as ``"ExactInfluence, second-order"``.
    effects : ndarray of shape (n_methods, n_test, n_groups)
        What each says.
    gold : GroupInfluence
        The gold standard.
    seconds : dict of str to float
        What each took, the attributor's ``fit`` left out.
    skipped : dict of str to str
        Methods that do not apply, and why.
    """

    methods: list[str]
    effects: NDArray[np.float64]
    gold: GroupInfluence
    seconds: dict[str, float]
    skipped: dict[str, str]

    def relative_error(self) -> NDArray[np.float64]:
        r"""Return :math:`\|e - g\| / \|g\|` over the groups, of each test row, (n_methods, n_test).

        0 is perfect, and 1 what saying "no effect" would give.
        """
        gold = self.gold.effects
        size = np.linalg.norm(gold, axis=1)
        return np.linalg.norm(self.effects - gold, axis=2) / np.where(size > 0, size, np.nan)

    def cosine(self) -> NDArray[np.float64]:
        """Return the cosine with the gold standard over the groups, of each test row, (n_methods, n_test)."""
        gold = self.gold.effects
        sizes = np.linalg.norm(self.effects, axis=2) * np.linalg.norm(gold, axis=1)
        return (self.effects * gold).sum(2) / np.where(sizes > 0, sizes, np.nan)

    def noise(self) -> float:
        """Return the root mean square of the gold standard's errors over that of its effects."""
        errors, effects = self.gold.sem, self.gold.effects
        return float(np.sqrt((errors**2).mean() / (effects**2).mean()))

    def to_frame(self) -> Any:
        """Return a tidy pandas DataFrame: one row per method, with mean errors and seconds."""
        import pandas as pd

        return pd.DataFrame(
            {
                "method": self.methods,
                "relative_error": np.nanmean(self.relative_error(), axis=1),
                "cosine": np.nanmean(self.cosine(), axis=1),
                "seconds": [self.seconds[name] for name in self.methods],
            }
        )

    def table(self) -> str:
        """Return a plain-text table of the methods' errors, medians over test rows."""
        cells = [
            [
                f"{np.nanmedian(error):.2f}",
                f"{np.nanmedian(cosine):.2f}",
                f"{self.seconds[name]:.2g}",
            ]
            for name, error, cosine in zip(
                self.methods, self.relative_error(), self.cosine(), strict=True
            )
        ]
        return table(["method", "relative error", "cosine", "seconds"], self.methods, cells)

    def __repr__(self) -> str:
        noise = "" if np.isnan(self.noise()) else f", whose own error is {self.noise():.0%}"
        return f"{self.table()}\n(against {self.gold.method}{noise})"


def compare_group_influence(
    attributors: BaseAttributor | Mapping[str, BaseAttributor],
    groups: Any,
    X_test: Any,
    y_test: Any = None,
    *,
    X_train: Any = None,
    y_train: Any = None,
    train: Any = None,
    gold: BaseAttributor | GroupInfluence | None = None,
    random_state: Any = None,
) -> GroupComparison:
    """Compare what attributors say of groups, in each way that they know, with training without these.

    Parameters
    ----------
    attributors : BaseAttributor or dict of str to BaseAttributor
        Fitted, of the same training rows and measurement.
    groups : list of lists of int, dict, array-like of labels, str, int or clusterer
        As in `group_influence`.
    X_test : array-like of shape (n_test, n_features)
        Test rows.
    y_test : array-like of shape (n_test,), default=None
        Their targets, as in `transform`.
    X_train, y_train : array-like, default=None
        The training rows and their targets; needed to train from scratch, and `X_train` for a column's name.
    train : estimator or attributor, default=None
        What is trained from scratch without each group, as in `group_influence`.
    gold : fitted attributor or GroupInfluence, default=None
        Another gold standard than training from scratch: an attributor whose "exact" effects are meant, such
        as a fitted `FurtherTraining`, or effects that are known already.
    random_state : int, RandomState instance or None, default=None
        Used by k-means.

    Returns
    -------
    GroupComparison
        Methods that fail are left out, with the reason.

    Raises
    ------
    ValueError
        If no method applies, or as in `group_influence`.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from fimoda import ExactInfluence, LeaveOneOut, compare_group_influence
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = Ridge(alpha=0.1).fit(X, y)
    >>> influence = ExactInfluence(model).fit(X, y)
    >>> found = compare_group_influence(
    ...     influence,
    ...     [range(40), range(40, 120)],
    ...     X[:5],
    ...     y[:5],
    ...     X_train=X,
    ...     y_train=y,
    ...     train=LeaveOneOut(model, n_seeds=1),
    ... )
    >>> found.relative_error().mean(1).round(2)
    array([0.27, 0.06, 0.  ])
    """
    if not isinstance(attributors, BaseAttributor | Mapping):
        raise ValueError(
            "attributors must be a fitted attributor or a dict of names to such, got "
            f"{type(attributors).__name__}. Pass {{'name': attributor}}."
        )
    named = (
        attributors
        if isinstance(attributors, Mapping)
        else {type(attributors).__name__: attributors}
    )
    if not named:
        raise ValueError("attributors must name at least one fitted attributor, got none.")
    given: dict[str, Any] = {"X_train": X_train, "random_state": random_state}
    first = next(iter(named.values()))
    if gold is None:
        trained: dict[str, Any] = {"y_train": y_train, "train": train, "method": "retraining"}
        gold = group_influence(first, groups, X_test, y_test, **given, **trained)
    elif isinstance(gold, BaseAttributor):
        gold = group_influence(gold, groups, X_test, y_test, method="exact", **given)
    effects, seconds, skipped = {}, {}, {}
    for name, attributor in named.items():
        for way in attributor._group_methods():
            label, start = f"{name}, {way}", time.perf_counter()
            try:
                found = group_influence(attributor, gold.groups, X_test, y_test, method=way)
            except FAILURES as error:
                skipped[label] = told(error)
                continue
            effects[label], seconds[label] = found.effects, time.perf_counter() - start
    if not effects:
        raise ValueError(f"attributors: no method applies; {skipped}.")
    return GroupComparison(list(effects), np.stack([*effects.values()]), gold, seconds, skipped)
