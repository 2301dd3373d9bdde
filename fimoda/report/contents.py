"""Data of a report: scores and rows, as JSON has them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._arrays import n_rows
from ..top_rows import TopRows, as_text, shortened
from .cells import Cells, label, labels, number, numbers
from .repeats import repeated

#: Cells of features that a page holds at most.
MAX_CELLS = 200_000

#: What self-influence says of a wrong label: it is large, or very negative.
_SUSPICION = {"loss": 1, "margin": -1, "log_prob": -1}


def first_to_look_at(
    own: NDArray[np.float64] | None, measurement: Any, contamination: float
) -> NDArray[np.int64]:
    """Return the share `contamination` of columns that look most like wrong labels, the foremost first.

    None of them where self-influence does not tell.
    """
    sign = _SUSPICION.get(measurement) if isinstance(measurement, str) else None
    if own is None or sign is None:
        return np.empty(0, dtype=np.int64)
    order = np.argsort(-sign * own, kind="stable")  # NaN last
    order = order[sign * own[order] > 0]
    return order[: int(np.ceil(contamination * len(own)))]


def contents(
    found: Any,
    *,
    k: int,
    own: NDArray[np.float64] | None,
    cells: Cells,
    contamination: float,
    max_test_rows: int,
    max_train_rows: int,
) -> dict[str, Any]:
    """Return the rows of an attribution, and for each test row those that matter most.

    ``rows`` has a list for each fact, with an entry for each training row that is shown: those of test
    rows, then those that look like wrong labels, those that are repeated, and those of large mean scores.
    Other entries name rows by their place in it.
    """
    X_train, y_train = found.data["X_train"], found.data["y_train"]
    X_test, y_test = found.data["X_test"], found.data["y_test"]
    positions = np.asarray(found.attributor.train_indices_)
    tests = np.arange(min(max_test_rows, len(found.scores)))
    top = _top(found, positions, min(k, max(1, len(positions) // 2)), tests)
    mean, extreme = _mean(found.scores), _extreme(found.scores)
    tells = found.attributor.measurement if found.attributor._of_test_rows else None
    suspects = first_to_look_at(own, tells, contamination)
    group, of_tests, n_known = _groups(X_train, X_test, positions)
    sizes = np.bincount(group[group >= 0], minlength=int(group.max(initial=0)) + 1)
    again = np.flatnonzero((group >= 0) & (sizes[group] > 1))

    # ---- which rows
    columns = {int(position): j for j, position in enumerate(positions)}
    of_test = [top.of_row(z) for z in range(len(tests))]
    shown = [columns[int(position)] for rows, _, _ in of_test for position in rows]
    by_size = np.argsort(-np.abs(mean), kind="stable")
    order = list(dict.fromkeys([*shown, *suspects, *again, *by_size]))
    listed = np.array(order[: max(max_train_rows, len(set(shown)))], dtype=np.int64)
    place = {int(j): i for i, j in enumerate(listed)}

    # ---- what they hold
    with_cells = listed[: max(MAX_CELLS // max(cells.per_row, 1), len(set(shown)))]
    of_train, of_tests_cells = cells.of(positions[with_cells], tests)
    names = [label(as_text(name)) for name in found.attributor._row_labels()]
    return {
        "features": cells.features,
        "rows": {
            "position": positions[listed].tolist(),
            "name": [names[j] for j in listed],
            "target": labels(y_train, positions[listed]),
            "mean": numbers(mean[listed]),
            "extreme": numbers(extreme[listed]),
            "own": None if own is None else numbers(own[listed]),
            "group": [int(one) if one >= 0 else None for one in group[listed]],
            "cells": of_train,
        },
        "suspects": [place[int(j)] for j in suspects if int(j) in place],
        "repeated": [place[int(j)] for j in again if int(j) in place],
        "conflicts": _conflicts(group[again], labels(y_train, positions[again])),
        "tests": [
            {
                "name": label(as_text(found.test_names[z])),
                "target": labels(y_test, tests[z : z + 1])[0],
                "cells": of_tests_cells[z],
                "group": int(of_tests[z]) if of_tests[z] >= 0 else None,
                "rows": [place[columns[int(position)]] for position in of_test[z][0]],
                "scores": numbers(of_test[z][1]),
                "errors": None if of_test[z][2] is None else numbers(of_test[z][2]),
            }
            for z in tests
        ],
        "counts": {
            "train": len(positions),
            "tests": len(found.scores),
            "suspects": len(suspects),
            "repeated": len(again),
            "known_tests": n_known,
            "features_left_out": cells.n_left_out,
        },
    }


def _top(found: Any, positions: NDArray[np.int64], k: int, tests: NDArray[np.int64]) -> TopRows:
    errors = None if found.errors is None else found.errors[tests]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*fewer than .* training rows with a score")
        return TopRows.of(found.scores[tests], positions, k, errors)


def _mean(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over test rows that have a score; NaN without any."""
    known = ~np.isnan(scores)
    sums, counts = np.where(known, scores, 0).sum(0), known.sum(0)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _extreme(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the score of each column that is farthest from zero; NaN without any."""
    sizes = np.where(np.isnan(scores), -1, np.abs(scores))
    return np.take_along_axis(scores, sizes.argmax(0)[None], 0)[0]


def _groups(
    X_train: Any, X_test: Any, positions: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Return the group of each column and of each test row, and how many of these are training rows, too.

    The group is -1 unless another row has the same features.
    """
    n = n_rows(X_train)
    every = np.full(n + n_rows(X_test), -1)
    rows, groups = repeated(X_train, X_test)
    every[rows] = groups
    train, test = every[:n], every[n:]
    return train[positions], test, int(np.isin(test, train[train >= 0]).sum())


def _conflicts(group: NDArray[np.int64], targets: list[Any]) -> list[int]:
    """Return the groups whose rows have different targets."""
    found: dict[int, set[Any]] = {}
    for one, target in zip(group.tolist(), targets, strict=True):
        found.setdefault(one, set()).add(target)
    return [one for one, different in found.items() if len(different) > 1]


def group_effects(groups: Any) -> dict[str, list[Any]]:
    """Return names and effects of groups, the largest effects first; means over test rows."""
    if isinstance(groups, Mapping):
        names, effects = (
            list(groups),
            [np.asarray(one, dtype=np.float64) for one in groups.values()],
        )
        values = [one.mean() for one in effects]
    elif hasattr(groups, "names") and hasattr(groups, "effects"):
        names, table = list(groups.names), np.asarray(groups.effects, dtype=np.float64)
        values = list(table.reshape(-1, table.shape[-1]).mean(0)) if table.ndim else []
    else:
        raise TypeError(
            "groups must be what group_influence returns, or a dict of effects by the names of groups, got "
            f"{type(groups).__name__}."
        )
    if len(names) != len(values):
        raise ValueError(
            f"groups must have as many names as effects, got {len(names)} and {len(values)}."
        )
    order = sorted(range(len(names)), key=lambda j: -abs(values[j]))
    found = [(shortened(as_text(names[j])), number(values[j])) for j in order]
    return {"name": [name for name, _ in found], "effect": [effect for _, effect in found]}
