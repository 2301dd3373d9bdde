"""Rows whose joint removal moves a measurement most, chosen one after another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .._validation import POSITIVE_INTEGER, StrOptions, check_is_fitted, checks_arguments
from ..base import BaseAttributor
from ..evaluation._tables import table
from ..gradient_mode import with_gradients
from ..measured import Measured

#: Test rows and training rows that are printed.
_TESTS, _ROWS = 5, 8


@dataclass(frozen=True, repr=False)
class GreedyRemoval:
    """Rows whose joint removal moves a measurement most, beside the rows with the largest scores.

    Printed, it is a table of the first test rows.

    Attributes
    ----------
    rows : ndarray of int of shape (n_test, n_rows)
        Training rows in the order in which they were chosen; with ``together=True`` n_test is 1.
    effects : ndarray of shape (n_test, n_rows)
        Effect of removing the first 1, 2, ... of them together, as the attributor knows it, in the unit
        of the measurement.
    top_rows : ndarray of int of shape (n_test, n_rows)
        The rows with the largest scores of their own, in order.
    top_effects : ndarray of shape (n_test, n_rows)
        Effect of removing the first 1, 2, ... of these together.
    """

    rows: NDArray[np.int64]
    effects: NDArray[np.float64]
    top_rows: NDArray[np.int64]
    top_effects: NDArray[np.float64]

    def to_frame(self) -> Any:
        """Return a tidy pandas DataFrame: one row per test row and number of rows removed."""
        import pandas as pd

        m, k = self.rows.shape
        return pd.DataFrame(
            {
                "test_row": np.repeat(np.arange(m), k),
                "n_rows": np.tile(np.arange(1, k + 1), m),
                "row": self.rows.ravel(),
                "effect": self.effects.ravel(),
                "top_row": self.top_rows.ravel(),
                "top_effect": self.top_effects.ravel(),
            }
        )

    def table(self) -> str:
        """Return a plain-text table: the rows of each test row, and the effects of both choices."""
        cells = [
            [
                " ".join(map(str, rows[:_ROWS])) + " ..." * (len(rows) > _ROWS),
                f"{e:+.3g}",
                f"{t:+.3g}",
            ]
            for rows, e, t in zip(
                self.rows[:_TESTS], self.effects[:, -1], self.top_effects[:, -1], strict=False
            )
        ]
        head = ["test row", "rows, greedily", "effect", "of the top rows"]
        return table(head, map(str, range(len(cells))), cells)

    def __repr__(self) -> str:
        return self.table()


@with_gradients
@checks_arguments(
    attributor=[BaseAttributor],
    n_rows=[POSITIVE_INTEGER],
    direction=[StrOptions({"raise", "lower"})],
    n_candidates=[POSITIVE_INTEGER],
    together=["boolean"],
)
def greedy_removal(
    attributor: BaseAttributor,
    X_test: Any,
    y_test: Any = None,
    *,
    n_rows: int = 10,
    direction: Literal["raise", "lower"] = "raise",
    together: bool = False,
    n_candidates: int = 50,
) -> GreedyRemoval:
    r"""Choose rows whose joint removal moves a measurement most, each after those before it.

    The rows with the largest scores are not the set with the largest effect: near duplicates stand in for
    each other, so that removing one makes the other matter more, and rows that do the same share one
    effect. Here each next row has the largest effect given that those before it are gone,

    .. math:: i_{k+1} = \arg\max_i \Delta_z(\{i_1, \dots, i_k, i\}),

    :math:`\Delta_z(U)` the change of the measurement when the rows U are removed together, see
    `group_influence`. `ExactInfluence` updates its solution after each choice, by one column of a matrix over
    rows, if factors of all rows fit its `memory_budget`. Other attributors that know the removal of a group
    try the `n_candidates` rows with the largest scores after each choice.

    Parameters
    ----------
    attributor : BaseAttributor
        Fitted; one that knows more than "first-order" of groups, see `group_influence`.
    X_test : array-like of shape (n_test, n_features)
        Test rows.
    y_test : array-like of shape (n_test,), default=None
        Their targets, as in `transform`.
    n_rows : int, default=10
        Rows to choose.
    direction : {"raise", "lower"}, default="raise"
        Whether their removal is to raise the measurement (of a loss: the rows that help) or to lower it.
    together : bool, default=False
        Choose for the mean over the test rows, and not for each.
    n_candidates : int, default=50
        Rows that are tried for each choice, where the attributor does not update its solution.

    Returns
    -------
    GreedyRemoval

    Raises
    ------
    TypeError
        If the attributor knows no interaction of rows.
    ValueError
        If `n_rows` are not fewer than the training rows.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from fimoda import ExactInfluence, greedy_removal
    >>> X, y = load_diabetes(return_X_y=True)
    >>> influence = ExactInfluence(Ridge(alpha=0.1).fit(X, y)).fit(X, y)
    >>> found = greedy_removal(influence, X[:3], y[:3], n_rows=20)
    >>> bool((found.effects[:, -1] >= found.top_effects[:, -1]).all())
    True
    """
    check_is_fitted(attributor, "model_")
    known = attributor._group_methods()
    if known == ("first-order",):
        raise TypeError(
            f"attributor must know how rows act together, and {type(attributor).__name__} knows the sum of "
            "their scores only, whose largest are `top`. Use ExactInfluence, LeafRefit, or another that "
            "knows more than 'first-order' of groups."
        )
    n, columns = len(attributor._objective), attributor.train_indices_
    if n_rows >= min(n, len(columns) + 1):
        raise ValueError(
            f"n_rows must be below the number of training rows ({n}), and at most that of scored rows "
            f"({len(columns)}), got {n_rows}."
        )
    test = attributor._test(X_test, y_test)
    sign = 1.0 if direction == "raise" else -1.0
    scores = sign * attributor._finite(attributor._scores(test))
    if together:
        scores = scores.mean(0, keepdims=True)
    order = np.argsort(-scores, axis=1, kind="stable")
    top = columns[order[:, :n_rows]]
    rows = attributor._greedy_rows(test, n_rows, sign, together)
    if rows is None:
        candidates = columns[order[:, :n_candidates]]
        rows = _tried(attributor, test, candidates, n_rows, sign, together)
    effects, top_effects = (_nested(attributor, test, one, together) for one in (rows, top))
    return GreedyRemoval(rows, effects, top, top_effects)


def group_effects(
    attributor: BaseAttributor, test: Measured, masks: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return effects (n_test, k) of groups (k, n), as exactly as the attributor knows them."""
    if attributor._group_methods()[-1] == "exact":
        return attributor._without(test, masks)[0]
    return attributor._second_order(test, masks)


def _parts(test: Measured, together: bool) -> list[Measured]:
    """Return the test rows that are looked at each on their own."""
    return [test] if together else [test[z : z + 1] for z in range(len(test))]


def _nested(
    attributor: BaseAttributor, test: Measured, rows: NDArray[np.int64], together: bool
) -> NDArray[np.float64]:
    """Return the effects (n_test, n_rows) of removing the first 1, 2, ... rows together."""
    found = []
    for one, chosen in zip(_parts(test, together), rows, strict=True):
        masks = np.zeros((len(chosen), len(attributor._objective)), dtype=bool)
        for k in range(len(chosen)):
            masks[k:, chosen[k]] = True
        found.append(group_effects(attributor, one, masks).mean(0))
    return np.stack(found)


def _tried(
    attributor: BaseAttributor,
    test: Measured,
    candidates: NDArray[np.int64],
    n_rows: int,
    sign: float,
    together: bool,
) -> NDArray[np.int64]:
    """Return the rows (n_test, n_rows) of which each has the largest effect beside those before it."""
    if n_rows > candidates.shape[1]:
        raise ValueError(
            f"n_candidates must be at least n_rows ({n_rows}), got {candidates.shape[1]} candidates."
        )
    found = np.empty((len(candidates), n_rows), dtype=np.int64)
    for z, one in enumerate(_parts(test, together)):
        left, gone = list(candidates[z]), np.zeros(len(attributor._objective), dtype=bool)
        for k in range(n_rows):
            masks = np.repeat(gone[None], len(left), axis=0)
            masks[np.arange(len(left)), left] = True
            best = int(np.argmax(sign * group_effects(attributor, one, masks).mean(0)))
            found[z, k] = left.pop(best)
            gone[found[z, k]] = True
    return found
