"""Checks of arguments; with `_arrays` and `as_estimator` alone in leaning on scikit-learn internals."""

from __future__ import annotations

import itertools
import numbers
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeGuard, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import _fit_context
from sklearn.exceptions import ConvergenceWarning, FitFailedWarning, UndefinedMetricWarning
from sklearn.utils import check_random_state, get_tags
from sklearn.utils._missing import is_pandas_na, is_scalar_nan
from sklearn.utils._param_validation import Interval as _Interval
from sklearn.utils._param_validation import StrOptions, validate_params
from sklearn.utils.validation import (
    _check_sample_weight,
    assert_all_finite,
    check_consistent_length,
    check_is_fitted,
    validate_data,
)

from ._arrays import check_unmasked, native

#: What others take from scikit-learn by way of this file.
__all__ = [
    "ConvergenceWarning",
    "FitFailedWarning",
    "StrOptions",
    "UndefinedMetricWarning",
    "check_consistent_length",
    "check_is_fitted",
    "check_random_state",
    "validate_data",
]

Method = TypeVar("Method", bound=Callable[..., Any])

#: Decorator of ``fit``: the parameters of ``__init__`` are checked before it runs.
checks_parameters: Callable[[Method], Method] = _fit_context(prefer_skip_nested_validation=False)


def checks_arguments(**constraints: list[Any]) -> Callable[[Method], Method]:
    """Return a decorator of a function: these of its arguments are checked before it runs."""
    decorator: Callable[[Method], Method] = validate_params(
        constraints, prefer_skip_nested_validation=False
    )
    return decorator


class Interval(_Interval):
    """Numbers of an interval, as scikit-learn has them, without True and False."""

    def is_satisfied_by(self, val: Any) -> bool:
        """Return whether a value is one of the numbers."""
        return not isinstance(val, bool | np.bool_) and bool(super().is_satisfied_by(val))


POSITIVE_INTEGER = Interval(numbers.Integral, 1, None, closed="left")
NON_NEGATIVE_REAL = Interval(numbers.Real, 0, None, closed="left")
POSITIVE_REAL = Interval(numbers.Real, 0, None, closed="neither")
SHARE = Interval(numbers.Real, 0, 1, closed="both")
OPEN_SHARE = Interval(numbers.Real, 0, 1, closed="neither")

#: Largest seed drawn from a random state.
MAX_SEED = 2**31 - 1


def is_integer(value: Any) -> TypeGuard[int]:
    """Return whether a value is a whole number, which True and False are not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def may_miss_values(estimator: Any) -> bool:
    """Return whether NaN stands for a missing value in rows of an estimator."""
    return bool(get_tags(estimator).input_tags.allow_nan)


def check_count(value: Any, name: str) -> None:
    """Raise ValueError unless a value is a whole number of at least 1."""
    if not is_integer(value):
        raise ValueError(f"{name} must be a whole number, got {value!r}.")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}.")


def check_top(k: int, n_columns: int) -> None:
    """Raise unless k rows can be named."""
    check_count(k, "k")
    if k > n_columns:
        raise ValueError(
            f"k must be between 1 and the number of scored rows ({n_columns}), got {k}."
        )


def is_missing(value: Any) -> bool:
    """Return whether a value stands for a missing one: None, NaN or pandas' NA."""
    return value is None or bool(is_scalar_nan(value)) or bool(is_pandas_na(value))


def check_targets(y: Any, n_rows: int, name: str = "y") -> NDArray[Any]:
    """Return targets, one per row, without NaN or infinity."""
    if y is None:
        raise ValueError(f"fit requires {name} to be passed, but the target {name} is None.")
    check_unmasked(y, name)
    if hasattr(y, "detach"):
        y = y.detach().cpu()
    y = np.asarray(y)
    if y.ndim == 0:
        raise ValueError(f"{name} must have one entry per row of X, got the scalar {y}.")
    if len(y) != n_rows:
        raise ValueError(
            f"{name} must have one entry per row of X: Found input variables with inconsistent "
            f"numbers of samples: [{n_rows}, {len(y)}]."
        )
    if y.dtype.kind == "O" and any(map(is_missing, y.ravel())):
        raise ValueError(f"Input {name} contains NaN or None: a target is missing. Drop its row.")
    if y.dtype.kind == "c":
        raise ValueError(f"Complex data not supported: {name} must hold labels or real numbers.")
    if y.dtype.kind in "mM":
        raise ValueError(
            f"{name} must hold class labels or real numbers, got {y.dtype}. Convert dates and durations "
            "to numbers in a unit of your choice."
        )
    if y.dtype.kind == "O" and all(isinstance(v, numbers.Real) for v in y.ravel()):
        y = y.astype(float)
    if y.dtype.kind in "fc":
        assert_all_finite(y, input_name=name)
    return native(y)


def check_weights(sample_weight: ArrayLike | None, X: NDArray[Any]) -> NDArray[Any] | None:
    """Return weights of the training rows: non-negative, not all zero; None stays None."""
    if sample_weight is None:
        return None
    check_unmasked(sample_weight, "sample_weight")
    weights = _check_sample_weight(
        sample_weight,
        X.reshape(len(X), -1),
        dtype=np.float64,
        ensure_non_negative=True,
    )
    if not weights.any():  # early scikit-learn lets it pass
        raise ValueError("sample weights must not all be zero.")
    return weights


def _require_inside(indices: NDArray[Any], n_rows: int, message: str) -> None:
    """Raise ValueError if an index is none of a training row."""
    outside = indices[(indices < 0) | (indices >= n_rows)]
    if outside.size:
        raise ValueError(message.format(f"[0, {n_rows}), the training rows", outside[0]))


def check_leave_out(leave_out: Any, n_rows: int, random_state: Any) -> NDArray[np.int64]:
    """Return the indices of the rows to leave out: all (None), a random number of them, or a list."""
    if leave_out is None:
        return np.arange(n_rows)
    if is_integer(leave_out):
        if not 1 <= leave_out <= n_rows:
            raise ValueError(
                f"leave_out must be between 1 and the number of training rows ({n_rows}), got {leave_out}."
            )
        drawn = check_random_state(random_state).choice(n_rows, int(leave_out), replace=False)
        return np.sort(drawn)
    return check_row_indices(
        leave_out,
        n_rows,
        "leave_out",
        "None, a number of rows, or a list of row indices (integers), as numpy.flatnonzero makes of a mask",
    )


def check_row_indices(
    rows: Any, n_rows: int, name: str, what: str = "a list of row indices (integers)"
) -> NDArray[np.int64]:
    """Return a list of indices of training rows: at least one, none twice, all of them in range."""
    listed = isinstance(rows, Iterable) and not isinstance(rows, str)
    indices = np.asarray(list(rows) if listed and not isinstance(rows, np.ndarray) else rows)
    if indices.size == 0:
        raise ValueError(f"{name} must name at least one training row, got an empty list.")
    if indices.ndim != 1 or indices.dtype.kind not in "iu":
        raise ValueError(f"{name} must be {what}, got {rows!r}.")
    _require_inside(indices, n_rows, f"{name} must hold indices in {{}}; got {{}}.")
    unique, counts = np.unique(indices, return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"{name} must not repeat a row; {unique[counts > 1][0]} appears "
            f"{counts.max()} times. Pass np.unique({name})."
        )
    return indices.astype(np.int64)


def warn_of_seeds(checkpoint_dir: Any, asked: Iterable[Any], random_state: Any) -> None:
    """Warn if a directory is to keep trainings of seeds or rows that every call draws anew.

    They are drawn where a number of them, or "auto", is `asked` for.
    """
    draws = any(is_integer(one) or isinstance(one, str) for one in asked)
    if checkpoint_dir is not None and draws and random_state is None:
        warnings.warn(
            "checkpoint_dir keeps trainings by their seeds and rows, and with random_state=None another call "
            "draws others and finds none of them. Set random_state to a number.",
            UserWarning,
            stacklevel=2,
        )


def check_seeds(n_seeds: Any, random_state: Any) -> list[int]:
    """Return an explicit list of seeds: as given, or drawn from `random_state`.

    The first k of m drawn seeds are the k that would have been drawn alone.
    """
    if is_integer(n_seeds):
        if n_seeds < 1:
            raise ValueError(f"n_seeds must be at least 1, got {n_seeds}.")
        rng = check_random_state(random_state)
        return [int(s) for s in rng.randint(MAX_SEED, size=int(n_seeds))]
    if isinstance(n_seeds, str) or not isinstance(n_seeds, Iterable):
        raise ValueError(f"n_seeds must be a number, 'auto' or a list of seeds, got {n_seeds!r}.")
    seeds = list(n_seeds)
    if not seeds or not all(is_integer(s) and 0 <= s < 2**32 for s in seeds):
        raise ValueError(
            f"n_seeds as a list must hold non-negative integers below 2**32, got {seeds!r}."
        )
    if len(set(seeds)) < len(seeds):
        raise ValueError("n_seeds must not repeat a seed: repeats would count as independent runs.")
    return [int(s) for s in seeds]


def check_subsets(subsets: Any, n_rows: int) -> NDArray[np.bool_]:
    """Return subsets of the training rows as a mask (M, n_rows): a mask, or a list of index arrays."""
    if isinstance(subsets, np.ndarray) and subsets.dtype == bool:
        if subsets.ndim != 2 or subsets.shape[1] != n_rows:
            raise ValueError(
                f"subsets as a mask must have shape (n_subsets, {n_rows}), one column per training "
                f"row, got {subsets.shape}."
            )
        mask = subsets.copy()
    else:
        mask = np.array([_as_mask(rows, k, n_rows) for k, rows in enumerate(subsets)], dtype=bool)
    if len(mask) == 0:
        raise ValueError("subsets must hold at least one subset, got none.")
    empty = np.flatnonzero(~mask.any(1))
    if empty.size:
        raise ValueError(
            f"subsets must have at least one row each; subset {empty[0]} is empty. Remove it."
        )
    return mask


def _as_mask(rows: Any, number: int, n_rows: int) -> NDArray[np.bool_]:
    indices = np.asarray(rows)
    if indices.dtype == bool and indices.shape == (n_rows,):
        return indices
    mask = np.zeros(n_rows, dtype=bool)
    if indices.size == 0:
        return mask
    if indices.ndim != 1 or indices.dtype.kind not in "iu":
        raise ValueError(
            f"subsets must be a boolean array (n_subsets, {n_rows}) or a list of arrays of row "
            f"indices (integers); subset {number} is an array of {indices.dtype} of shape "
            f"{indices.shape}."
        )
    _require_inside(
        indices, n_rows, f"subsets must hold indices in {{}}; subset {number} has {{}}."
    )
    mask[indices] = True
    if mask.sum() < len(indices):
        raise ValueError(
            f"subsets must not repeat a row; subset {number} does. Weigh rows by sample_weight."
        )
    return mask


def check_horizons(epochs: Any, name: str = "epochs") -> list[float]:
    """Return an increasing list of positive numbers of epochs, the whole ones as integers."""
    values = list(epochs) if np.iterable(epochs) else [epochs]
    if not values or not all(POSITIVE_REAL.is_satisfied_by(e) for e in values):
        raise ValueError(f"{name} must be positive numbers of epochs, got {epochs!r}.")
    if sorted(set(values)) != values:
        raise ValueError(f"{name} must increase without repeats, got {values}.")
    return [int(e) if e == int(e) else float(e) for e in values]


def in_steps(horizons: Sequence[float], per_epoch: int, name: str = "epochs") -> list[int]:
    """Return the steps, rounded to whole ones, after which horizons in epochs are reached.

    Raises ValueError if a horizon is no step, or two of them are the same.
    """
    steps = [round(epochs * per_epoch) for epochs in horizons]
    an_epoch = f"an epoch of this training has {per_epoch} step" + "s" * (per_epoch > 1)
    if steps[0] < 1:
        raise ValueError(
            f"{name} must be at least one step: {an_epoch}, and {horizons[0]:g} epochs are less than half "
            f"of one. Give {1 / per_epoch:g} or more, or lower batch_size."
        )
    for place, (sooner, later) in enumerate(itertools.pairwise(steps)):
        if sooner == later:
            raise ValueError(
                f"{name} must lie on different steps: {an_epoch}, and {horizons[place]:g} and "
                f"{horizons[place + 1]:g} epochs are both {later}. Leave one of them out."
            )
    return steps
