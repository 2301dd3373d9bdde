"""Training rows that may turn a prediction, in the orders in which they are tried."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .._validation import check_is_fitted
from ..base import BaseAttributor
from ..measured import Measured
from ..model import FinalModel
from ._search import NO_ROWS, Rows

#: Measurements whose scores say which rows hold a prediction, and the sign with which they do.
_SIGNS = {"loss": 1.0, "margin": -1.0, "log_prob": -1.0}


def checked(attributor: BaseAttributor, max_rows: int) -> tuple[NDArray[Any], float]:
    """Return the classes of an attributor's model, and the sign of scores of rows that hold a prediction.

    ValueError unless its scores say which rows these are.
    """
    check_is_fitted(attributor, "model_")
    loss, classes, n = attributor.model_.loss, attributor.model_.classes, len(attributor._objective)
    if not loss.is_classifier or classes is None:
        raise ValueError(
            "attributor must be of a classifier, whose predictions turn, got one of a model of numbers. For "
            "these take greedy_removal."
        )
    sign = _SIGNS.get(str(attributor.measurement))
    if sign is None:
        raise ValueError(
            f"attributor must have one of the measurements {list(_SIGNS)}, got "
            f"{attributor.measurement!r}."
        )
    if max_rows >= n:
        raise ValueError(
            f"max_rows must be below the number of training rows ({n}), got {max_rows}."
        )
    return classes, sign


def likely_classes(model: FinalModel, test: Measured) -> NDArray[np.int64]:
    """Return the predicted class of each test row and the next likely one (n_test, 2), by number."""
    outputs = model.outputs(test.inputs)
    first = model.predicted_targets(outputs)
    if outputs.shape[1] == 1:
        return torch.stack([first, 1 - first], dim=1).long().cpu().numpy()
    others = outputs.scatter(1, first.long()[:, None], -torch.inf)
    return torch.stack([first.long(), others.argmax(1)], dim=1).cpu().numpy()


def asked(
    attributor: BaseAttributor, X_test: Any, y_test: Any, predicted: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return which test rows are to be looked at: those that are predicted right, if that is known."""
    if y_test is None:
        return np.ones(len(predicted), dtype=bool)
    return attributor._test(X_test, y_test).targets.cpu().numpy().ravel() == predicted


def orders_of(
    attributor: BaseAttributor,
    test: Measured,
    sign: float,
    likely: NDArray[np.int64],
    max_rows: int,
    relabel: bool,
) -> dict[str, Any]:
    """Return the first rows of each test row in the orders that the attributor knows."""
    if relabel:
        return {"top": _relabelled_rows(attributor, test, sign, likely[:, 1], max_rows)}
    scores = np.nan_to_num(sign * attributor._scores(test), nan=-np.inf)
    top = np.argsort(-scores, axis=1, kind="stable")[:, :max_rows]
    greedy = attributor._greedy_rows(test, max_rows, sign, False)
    orders = {"top": attributor.train_indices_[top]}
    return orders if greedy is None else orders | {"greedy": greedy}


def _relabelled_rows(
    attributor: BaseAttributor,
    test: Measured,
    sign: float,
    wanted: NDArray[np.int64],
    max_rows: int,
) -> list[Rows]:
    """Return the rows whose relabelling to the class that is wanted does most, for each test row."""
    found = [NO_ROWS] * len(test)
    known = attributor._objective.rows.targets.cpu().numpy().ravel()
    for label in np.unique(wanted):
        rows, at = np.flatnonzero(known != label), np.flatnonzero(wanted == label)
        targets = np.repeat(np.asarray(attributor.model_.classes)[[label]], len(rows))
        effects = sign * attributor._relabelled(test[at], rows, targets)
        order = np.argsort(-effects, axis=1, kind="stable")[:, :max_rows]
        for z, first in zip(at, rows[order], strict=True):
            found[z] = first
    return found


def random_rows(
    attributor: BaseAttributor, likely: NDArray[np.int64], max_rows: int, rng: Any
) -> list[Rows]:
    """Return random rows of the class that is predicted of each test row."""
    known = attributor._objective.rows.targets.cpu().numpy().ravel()
    return [rng.permutation(np.flatnonzero(known == label))[:max_rows] for label in likely[:, 0]]
