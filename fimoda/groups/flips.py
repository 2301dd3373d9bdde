"""The smallest sets of training rows that turn a prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._validation import (
    POSITIVE_INTEGER,
    Interval,
    check_random_state,
    check_seeds,
    checks_arguments,
)
from ..base import BaseAttributor
from ..evaluation._retraining import retraining_method
from ..evaluation._tables import table
from ..gradient_mode import with_gradients
from ._candidates import asked, checked, likely_classes, orders_of, random_rows
from ._search import NO_ROWS, Prefix, Rows, Shrinking, shortest, shrink
from ._training_rows import check_training_rows
from ._turning import Turning

#: Test rows and training rows that are printed.
_TESTS, _ROWS = 8, 6

#: Share of seeds above which a prediction has turned, where the search has not seen them.
MAJORITY = 0.5


@dataclass(frozen=True, repr=False)
class SmallestFlips:
    """The smallest sets found whose removal, or relabelling, turns a prediction.

    Printed, it is a table of the first test rows.

    Attributes
    ----------
    rows : list of (ndarray of int or None) of length n_test
        The set of each test row; None where none was found up to `max_rows`. Empty where training again
        on all rows turns the prediction already.
    share : ndarray of shape (n_test,)
        Part of the seeds, other ones than those of the search, in which the set turns the prediction; NaN
        without a set.
    sizes : dict of str to ndarray of shape (n_test,)
        Rows that each order needs: ``"top"`` by score, ``"greedy"`` with interaction (of attributors that
        know it), ``"random"`` of the rows of the predicted class; NaN for none up to `max_rows`.
    before : ndarray of shape (n_test,)
        Part of the seeds in which training again on all rows turns the prediction.
    looked_at : ndarray of bool of shape (n_test,)
        False for test rows that are predicted wrong, where their targets are known: they have no set.
    predicted : ndarray of shape (n_test,)
        The classes that the model predicts.
    labels : ndarray of shape (n_test,) or None
        The classes that rows were relabelled to, None where they were removed.
    max_rows : int
        Rows tried at most.
    n_trained : int
        Trainings that it took.
    """

    rows: list[NDArray[np.int64] | None]
    share: NDArray[np.float64]
    sizes: dict[str, NDArray[np.float64]]
    before: NDArray[np.float64]
    looked_at: NDArray[np.bool_]
    predicted: NDArray[Any]
    labels: NDArray[Any] | None
    max_rows: int
    n_trained: int

    @property
    def size(self) -> NDArray[np.float64]:
        """Number of rows of each set (n_test,); NaN for none."""
        return np.array([np.nan if rows is None else len(rows) for rows in self.rows])

    @property
    def verified(self) -> NDArray[np.bool_]:
        """True where the set turns the prediction in most of the seeds of the verification, (n_test,)."""
        with np.errstate(invalid="ignore"):
            return self.share > MAJORITY

    def to_frame(self) -> Any:
        """Return a pandas DataFrame: one row per test row, with sizes, rows, and the share of seeds."""
        import pandas as pd

        labels = {} if self.labels is None else {"relabelled": self.labels}
        return pd.DataFrame(
            {
                "predicted": self.predicted,
                **labels,
                "size": self.size,
                **{f"size_{order}": sizes for order, sizes in self.sizes.items()},
                "share": self.share,
                "verified": self.verified,
                "before": self.before,
                "looked_at": self.looked_at,
                "rows": self.rows,
            }
        )

    def table(self) -> str:
        """Return a plain-text table: what each test row takes to turn."""
        cells = []
        for z, rows in enumerate(self.rows[:_TESTS]):
            sizes = [self._told(sizes[z]) for sizes in self.sizes.values()]
            listed = "" if rows is None else " ".join(map(str, rows[:_ROWS]))
            listed += " ..." * (rows is not None and len(rows) > _ROWS)
            share = "" if rows is None else f"{self.share[z]:.0%}"
            smallest = self._told(self.size[z])
            if not self.looked_at[z]:
                smallest, sizes = "predicted wrong", [""] * len(sizes)
            cells.append([str(self.predicted[z]), smallest, share, *sizes, listed])
        head = ["test row", "predicted", "smallest", "of seeds", *self.sizes, "rows"]
        return table(head, map(str, range(len(cells))), cells)

    def _told(self, size: float) -> str:
        return f"none up to {self.max_rows}" if np.isnan(size) else f"{size:.0f}"

    def __repr__(self) -> str:
        what = "removed" if self.labels is None else "relabelled"
        return f"{self.table()}\n({len(self.rows)} test rows, training rows {what})"


@with_gradients
@checks_arguments(
    attributor=[BaseAttributor],
    max_rows=[POSITIVE_INTEGER],
    n_seeds=[POSITIVE_INTEGER],
    share=[Interval(Real, 0, 1, closed="right")],
    relabel=["boolean"],
    shrinking=["boolean"],
    random_baseline=["boolean"],
)
def smallest_flip(
    attributor: BaseAttributor,
    X_test: Any,
    y_test: Any = None,
    *,
    X_train: Any,
    y_train: Any,
    max_rows: int = 32,
    n_seeds: int = 5,
    share: float = 0.8,
    relabel: bool = False,
    train: Any = None,
    shrinking: bool = True,
    random_baseline: bool = True,
    random_state: Any = None,
) -> SmallestFlips:
    """Find the smallest set of training rows whose removal turns the prediction of each test row.

    Candidates are the rows that hold the prediction most: in the order of their scores and, where the
    attributor knows how rows act together, in that of `greedy_removal`. For either order the model is
    trained again without its first 1, 2, 4, ... rows until the prediction turns with the `share` of seeds
    that is asked for, and then with numbers between. From the smaller set rows are put back, part by part,
    as long as the prediction stays turned. What is left is verified with as many other seeds: it is,
    where the prediction turns in most of them. All sets of all test rows are trained together, networks in
    stacks.

    A set found is an upper bound: there may be smaller ones. "None up to `max_rows`" is an answer, too.

    Parameters
    ----------
    attributor : BaseAttributor
        Fitted, of a classifier, with ``measurement`` "loss", "margin" or "log_prob".
    X_test : array-like of shape (n_test, n_features)
        Test rows.
    y_test : array-like of shape (n_test,), default=None
        Their targets, if only test rows are to be looked at that are predicted right: the others have no
        set, NaN for sizes, and False in ``looked_at``. Predictions turn from what they are, whatever the
        targets.
    X_train, y_train : array-like
        The training rows and their targets, as in ``fit`` of the attributor.
    max_rows : int, default=32
        Rows to remove at most.
    n_seeds : int, default=5
        Seeds of the search, and as many others of the verification. Where fitting again has nothing random
        in it, 1 is enough.
    share : float, default=0.8
        Part of the seeds of the search in which the prediction must turn. Sets that turn it in little more
        than half of them often fail the verification.
    relabel : bool, default=False
        Do not remove rows but give them the class that the model holds for next likely at the test row.
    train : estimator or attributor, default=None
        What is trained again: a model, or, with its settings, that of a retraining method such as
        ``LeaveOneOut(net, n_epochs=20, checkpoint_dir="runs")``, of which `n_seeds` and `random_state` are
        those given here. By default the model of `attributor`. With a ``checkpoint_dir`` a call with the
        same arguments goes on where another was stopped.
    shrinking : bool, default=True
        Whether to put rows of the sets back.
    random_baseline : bool, default=True
        Whether to count the random rows, of the predicted class, that are needed instead.
    random_state : int, RandomState instance or None, default=None
        Draws the seeds and the random rows.

    Returns
    -------
    SmallestFlips

    Raises
    ------
    TypeError
        With `relabel`, if the attributor does not know what another target would do.
    ValueError
        If the model is no classifier, the measurement is another, `max_rows` are not fewer than the
        training rows, or these are others than those of the attributor.

    References
    ----------
    Ilyas et al., "Datamodels: Predicting Predictions from Training Data", ICML 2022, section 4.1.
    Yang et al., "How Many and Which Training Points Would Need to be Removed to Flip this Prediction?",
    EACL 2023.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from fimoda import ExactInfluence, smallest_flip
    >>> from fimoda.datasets import split_breast_cancer
    >>> X, X_test, y, y_test = split_breast_cancer()
    >>> model = LogisticRegression().fit(X, y)
    >>> influence = ExactInfluence(model).fit(X, y)
    >>> near = abs(model.decision_function(X_test)).argsort()[:3]
    >>> found = smallest_flip(
    ...     influence, X_test[near], X_train=X, y_train=y, max_rows=32, n_seeds=1, random_state=0
    ... )
    >>> bool((found.size <= found.sizes["top"]).all()), found.verified.tolist()
    (True, [True, True, True])
    """
    classes, sign = checked(attributor, max_rows)
    check_training_rows(attributor, X_train, y_train)
    rng = check_random_state(random_state)
    seeds = check_seeds(2 * n_seeds, rng)
    test = attributor._test(X_test, None)
    likely = likely_classes(attributor.model_, test)
    predicted, labels = classes[likely[:, 0]], classes[likely[:, 1]] if relabel else None
    orders = orders_of(attributor, test, sign, likely, max_rows, relabel)
    if random_baseline:
        orders["random"] = random_rows(attributor, likely, max_rows, rng)
    retrain = Turning.of(
        retraining_method(attributor if train is None else train),
        (X_train, y_train, attributor._sample_weight),
        (X_test, predicted),
        seeds,
        labels,
        orders.values(),
    )
    before = retrain.turned([(z, NO_ROWS) for z in range(len(test))])
    looked_at = asked(attributor, X_test, y_test, likely[:, 0])
    open_ = np.flatnonzero((before <= MAJORITY) & looked_at)
    prefixes = {name: [Prefix(int(z), rows[z]) for z in open_] for name, rows in orders.items()}
    shortest([one for each in prefixes.values() for one in each], retrain.turned, share)
    sets = _smaller_of(prefixes["top"], prefixes.get("greedy", []))
    if shrinking:
        shrink(sets, retrain.turned, share)
    shares = retrain.turned([(one.test_row, one.rows) for one in sets], fresh=True)
    rows: list[Rows | None] = [NO_ROWS if moved else None for moved in before > MAJORITY]
    turned, sizes = np.where(before > MAJORITY, before, np.nan), {}
    for one, found in zip(sets, shares, strict=True):
        rows[one.test_row], turned[one.test_row] = one.rows, found
    for name, each in prefixes.items():
        sizes[name] = np.where(before > MAJORITY, 0.0, np.nan)
        for prefix in each:
            sizes[name][prefix.test_row] = prefix.found or np.nan
    return SmallestFlips(
        rows, turned, sizes, before, looked_at, predicted, labels, max_rows, retrain.n_trained
    )


def _smaller_of(top: Sequence[Prefix], greedy: Sequence[Prefix]) -> list[Shrinking]:
    """Return the smaller set of each test row that has one."""
    best: dict[int, Prefix] = {}
    for one in [*top, *greedy]:
        known = best.get(one.test_row)
        if one.found is not None and (known is None or one.found < (known.found or 0)):
            best[one.test_row] = one
    return [Shrinking(z, one.order[: one.found], one.share) for z, one in best.items()]
