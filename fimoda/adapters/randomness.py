"""Random numbers of others: the global generators, and estimators whose fit depends on a seed."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone, is_classifier
from sklearn.utils import _safe_indexing

#: Rows of each class that are always kept, and one of how many later ones is set aside.
_KEPT, _ONE_OF = 10, 4

#: Predictions that are closer than this, by their largest, differ by rounding.
_ROUNDING = 1e-10


@contextmanager
def global_generators(seed: int) -> Iterator[None]:
    """Seed the global generators of Python, numpy and torch inside, and put them back."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 (the user's own)
    on_gpus = torch.cuda.is_initialized()
    with torch.random.fork_rng(range(torch.cuda.device_count()) if on_gpus else []):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        # torch.manual_seed would seed a GPU that is not in use yet, for later
        (torch.manual_seed if on_gpus else torch.default_generator.manual_seed)(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


class Watched(np.random.RandomState):
    """A generator that is one and the same in every copy of its owner, and cannot leave the process."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Watched:
        return self

    def __reduce__(self) -> Any:
        raise TypeError("what draws from it would not be seen")


def known_states(own: np.random.RandomState) -> list[bytes]:
    """Return the states of a generator, and of the global ones of Python, numpy and torch."""
    states = random.getstate(), np.random.get_state(), own.get_state()  # noqa: NPY002
    return [pickle.dumps(states), torch.get_rng_state().numpy().tobytes()]


def seed_parameters(estimator: Any) -> list[str]:
    """Return the names of all ``random_state`` parameters, those of inner estimators included.

    One that is text, such as ``"deprecated"``, is none.
    """
    return [
        name
        for name, value in estimator.get_params().items()
        if name.split("__")[-1] == "random_state" and not isinstance(value, str)
    ]


def is_random(
    estimator: Any, X: Any, y: ArrayLike, sample_weight: NDArray[np.float64] | None = None
) -> bool:
    """Return whether the fit of an estimator depends on its seeds.

    Clones of it are fitted with two seeds, and their predictions compared. A part of the rows is set
    aside when they are fitted: a model may predict its own training rows alike whatever its seed is,
    as a fully grown tree does. False at once where no parameter is a ``random_state``.
    """
    names = seed_parameters(estimator)
    if not names:
        return False
    y = np.asarray(y)
    kept = np.flatnonzero(~_aside(y, is_classifier(estimator)))
    given = {} if sample_weight is None else {"sample_weight": np.asarray(sample_weight)[kept]}
    rows = _safe_indexing(X, kept)

    def predicted(seed: int) -> NDArray[Any]:
        fresh = clone(estimator).set_params(**dict.fromkeys(names, seed))
        with global_generators(0):
            return _predictions(fresh.fit(rows, _safe_indexing(y, kept), **given), X)

    first, second = predicted(0), predicted(1)
    if first.shape != second.shape or first.dtype.kind not in "fiub":
        return not np.array_equal(first, second)
    return bool(np.abs(first - second).max() > _ROUNDING * np.abs(first).max())


def _aside(y: NDArray[Any], is_class: bool) -> NDArray[np.bool_]:
    """Return a mask of the rows that are not fitted, never many of a small class."""
    groups = np.unique(y, return_inverse=True)[1] if is_class and y.ndim == 1 else np.zeros(len(y))
    place = np.zeros(len(y), dtype=int)
    for group in np.unique(groups):
        members = groups == group
        place[members] = np.arange(members.sum())
    return (place >= _KEPT) & (place % _ONE_OF == 0)


def _predictions(fitted: Any, X: Any) -> NDArray[Any]:
    """Return all that it predicts, as finely as it does."""
    for name in ("predict_proba", "decision_function", "predict"):
        if hasattr(fitted, name):
            found = getattr(fitted, name)(X)
            parts = found if isinstance(found, list) else [found]
            flat = np.concatenate([np.ravel(np.asarray(part)) for part in parts])
            return flat.astype(float) if flat.dtype.kind in "fiub" else flat
    raise TypeError(f"estimator {type(fitted).__name__} must predict, but has no method predict.")
