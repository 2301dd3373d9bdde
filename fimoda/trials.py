"""Seconds that methods are thought to take, from short trials on some of the rows."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch

#: An attributor.
Method = TypeVar("Method", bound=Any)

#: Rows of the first trial of a method, and by how much the next one is larger.
_FIRST, _LARGER = 64, 4

#: Seconds from which on a trial tells more than noise, and part of the time left that no trial may exceed.
CLEAR, SHARE = 0.1, 0.05

#: Rows left out and epochs of trials of a method that trains without rows.
_WITHOUT = (1, 1), (1, 10), (15, 10)

#: Sides of the matrices on which products and decompositions are timed.
_SIDE = 384

#: The clock of all trials.
clock = time.perf_counter


@dataclass(eq=False)
class Trial:
    """The rows that methods are tried on, and the time there is.

    X, y and `sample_weight` are the training rows as `fit` takes them, `test` the test rows as `transform`
    does; `left` says how many seconds are left, and `n_jobs` how many workers a method has.
    """

    X: Any
    y: Any
    sample_weight: Any
    test: tuple[Any, Any]
    n_rows: int
    n_test: int
    left: Callable[[], float]
    n_jobs: int = 1

    def seconds(
        self,
        method: Any,
        n_rows: int | None = None,
        n_test: int | None = None,
        **changes: Any,
    ) -> float:
        """Return the seconds of fit and scores of a method on some rows, all by default.

        With other parameters, if there are `changes`; without test rows only those of fit.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tried = self.prepared(method, **changes)
            test = tried._test(*self.test)[: self.n_test if n_test is None else n_test]
            if n_rows is not None and n_rows < self.n_rows:
                some = np.linspace(0, self.n_rows - 1, n_rows).astype(np.int64)
                tried._restrict(some)
            start = clock()
            tried._fit()
            if len(test):
                tried._scores(test)
            return clock() - start

    def prepared(self, method: Method, **changes: Any) -> Method:
        """Return the method with other parameters, with the model and all rows, but not fitted."""
        tried = method.__sklearn_clone__().set_params(**changes)
        tried._prepare(self.X, self.y, self.sample_weight)
        tried.train_indices_ = np.arange(self.n_rows)
        return tried

    def fitted(self, method: Method) -> Method:
        """Return the method, fitted to all rows."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tried = self.prepared(method)
            tried._fit()
        return tried

    def twice(self, method: Any, *rows: int, **changes: Any) -> float:
        """Return the seconds of a method that has warmed up, if there is time for it."""
        first = self.seconds(method, *rows, **changes)
        if first > SHARE * self.left():
            return first
        return min(first, self.seconds(method, *rows, **changes))

    def by_rows(self, method: Any, **changes: Any) -> float:
        """Return the seconds of a method whose time grows with the rows, from trials of growing size."""
        rows = min(_FIRST, self.n_rows)
        before = self.twice(method, rows, **changes)
        a_row = before / rows
        first = True  # two sizes tell what does not grow
        while rows < self.n_rows and (first or before < CLEAR) and a_row * self.n_rows > CLEAR:
            more = min(_LARGER * rows, self.n_rows)
            if a_row * more > max(SHARE * self.left(), CLEAR):
                break
            now = self.seconds(method, more, **changes)
            a_row = max(now - before, 0.0) / (more - rows)
            rows, before, first = more, now, False
        return before + a_row * (self.n_rows - rows)

    def by_models(self, method: Any, n_rows: int, **changes: Any) -> float:
        """Return the seconds of one model and epoch of a method that trains further without single rows.

        From trials of growing size, the first on so many rows.
        """
        once = self.twice(method, n_rows, 0, n_epochs=1, leave_out=[0], **changes) / 2
        once *= self.n_rows / n_rows
        for n_left_out, n_epochs in _WITHOUT:
            some = range(min(n_left_out, self.n_rows - 1))
            work = n_epochs * (len(some) + 1)
            if once * work > SHARE * self.left():
                break
            once = (
                self.seconds(method, None, 0, n_epochs=n_epochs, leave_out=some, **changes) / work
            )
        return once

    def timed(self, work: Callable[[], Any]) -> float:
        """Return the seconds of some work."""
        start = clock()
        work()
        return max(clock() - start, 1e-9)

    @cached_property
    def product_rate(self) -> float:
        """Multiplications a second of matrix products in float64."""
        matrix = torch.rand(_SIDE, _SIDE, dtype=torch.float64)
        return _SIDE**3 / min(self.timed(lambda: matrix @ matrix) for _ in range(3))

    @cached_property
    def eigen_rate(self) -> float:
        """Cubed sides a second of symmetric eigendecompositions in float64."""
        matrix = torch.rand(_SIDE, _SIDE, dtype=torch.float64)
        return _SIDE**3 / min(
            self.timed(lambda: torch.linalg.eigh(matrix @ matrix.mT)) for _ in range(2)
        )
